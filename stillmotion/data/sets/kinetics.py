"""Kinetics (Kay et al. 2017 and later): CSV with `label,youtube_id,time_start,time_end,split[,is_cc]`.

Videos are the trimmed clips as the usual downloaders name them, `youtube_id_SSSSSS_EEEEEE.mp4` (start and end in whole
seconds, six digits), in one folder, in class folders, or in class folders below split folders. Other containers count
too. The test lists of some releases have no labels.
"""

import csv
from pathlib import Path

from stillmotion.data.sets.fetch import Fetch
from stillmotion.data.sets.layout import Missing, Videos, make_table
from stillmotion.data.table import Sample, Table, TableError

_COLUMNS = ("youtube_id", "time_start", "time_end")
_SPLITS = {"validate": "val", "validation": "val"}

FETCH = Fetch(
    home=("https://github.com/cvdfoundation/kinetics-dataset",),
    files=("the CSV lists of one release (400, 600, 700)", "the clips, as tar files there or cut from YouTube"),
    terms="lists CC BY 4.0; the videos belong to their uploaders",
    layout={
        "train/zumba/-0a_B-cdefg_000026_000036.mp4": "",
        "train.csv": "label,youtube_id,time_start,time_end,split\nzumba,-0a_B-cdefg,26,36,train\n",
    },
    note="the terms are from memory",
)


def read(root: Path, *, annotations: Path | None = None, missing: Missing = "error") -> Table:
    """Reads one CSV list, or all of a folder.

    Args:
        root: Folder with the videos, in any folders below it.
        annotations: The list, or a folder of lists. Default: the lists in `root`.
        missing: What to do with listed videos that are not there (many have left YouTube).

    Returns:
        Splits `train`, `val`, `test`; the group is the YouTube id.

    Raises:
        TableError: In one line: file, line, remedy.
    """
    source = annotations or root
    lists = [source] if source.is_file() else sorted(source.glob("*.csv"))
    if not lists:
        raise TableError(f"{source}: no CSV list here; pass annotations=, the official list or its folder")
    samples = [sample for path in lists for sample in _samples(path, root)]
    return make_table(samples, source, Videos(root, ignore_case=False), missing)


def _samples(path: Path, root: Path) -> list[Sample]:
    samples = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if lacking := [c for c in _COLUMNS if c not in (reader.fieldnames or ())]:
            raise TableError(f"{path} line 1: no column `{lacking[0]}`; is this an official Kinetics list?")
        for row in reader:
            where = f"{path} line {reader.line_num}"
            try:
                times = [int(float(row[c])) for c in ("time_start", "time_end")]
            except (TypeError, ValueError):
                raise TableError(f"{where}: time_start and time_end must be seconds; correct the line") from None
            label, video = row.get("label") or "", row["youtube_id"]
            split = (row.get("split") or path.stem).lower()
            name = f"{label}/{video}_{times[0]:06d}_{times[1]:06d}.mp4".lstrip("/")
            targets = {"label": label} if label else {}
            samples.append(Sample(root / name, name, targets, _SPLITS.get(split, split), video, line=reader.line_num))
    return samples
