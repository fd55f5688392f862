"""ActivityNet 1.3 (Caba Heilbron et al. 2015): 10,024 / 4,926 / 5,044 untrimmed videos, 200 activities.

The list is one JSON, `activity_net.v1-3.min.json`: `database` has for each YouTube id `subset` (training, validation,
testing) and `annotations`, each a `label` and a `segment` (start and end in seconds); the test videos have none. Videos
are `v_ID.mp4` (also .mkv, .webm), as the official archives name them, or `ID.mp4`.
"""

import json
from pathlib import Path
from typing import Any

from stillmotion.data.sets.fetch import Fetch
from stillmotion.data.sets.layout import Missing, Videos, first_folder, make_table
from stillmotion.data.table import Sample, Table, TableError

_FILES = "activity_net*.json"
_SPLITS = {"training": "train", "validation": "val", "testing": "test"}

FETCH = Fetch(
    home=("http://activity-net.org/download.html",),
    files=("activity_net.v1-3.min.json", "the videos, from YouTube or asked for by the form there"),
    terms="the videos belong to their uploaders",
    layout={
        "videos/v_-a_BcdefghI.mp4": "",
        "activity_net.v1-3.min.json": (
            '{"database": {"-a_BcdefghI": {"subset": "training", '
            '"annotations": [{"label": "Polo", "segment": [1.5, 20.0]}]}}}'
        ),
    },
)


def read(root: Path, *, annotations: Path | None = None, missing: Missing = "error", segments: bool = False) -> Table:
    """Reads whole videos, or their segments.

    Args:
        root: Folder with the videos, in any folders below it.
        annotations: The JSON, or its folder. Default: in `root`.
        missing: What to do with listed videos that are not there (many have left YouTube).
        segments: A row for each annotated segment, in seconds, instead of one for each video.

    Returns:
        Splits `train`, `val`, `test`; the group is the YouTube id. A whole video has the label of its first segment,
        and in the column `labels` all different ones, with `|` between them.

    Raises:
        TableError: In one line: file, video, remedy.
    """
    path = annotations or root
    if not path.is_file():
        path = next(iter(sorted(first_folder(path, holding=_FILES).glob(_FILES))))
    videos = Videos(root, ignore_case=False)
    samples = []
    for video, entry in _database(path).items():
        where = f"{path} video {video!r}"
        split = _SPLITS.get(str(entry.get("subset")))
        if split is None:
            raise TableError(f"{where}: subset {entry.get('subset')!r} is none of {', '.join(_SPLITS)}; correct it")
        name = next((n for n in (f"v_{video}.mp4", f"{video}.mp4") if videos.find(n).exists()), f"v_{video}.mp4")
        parts = [_segment(part, where) for part in entry.get("annotations", [])]
        if not segments:
            labels = list(dict.fromkeys(label for label, _, _ in parts))
            targets = {"label": labels[0], "labels": "|".join(labels)} if labels else {}
            samples.append(Sample(root / name, name, targets, split, video))
            continue
        for label, start, end in parts:
            samples.append(Sample(root / name, name, {"label": label}, split, video, start, end, "s"))
    return make_table(list(dict.fromkeys(samples)), path, videos, missing)


def _database(path: Path) -> dict[str, Any]:
    try:
        database = json.loads(path.read_text(encoding="utf-8"))["database"]
        if not all(isinstance(entry, dict) for entry in database.values()):
            raise TypeError("an entry is no object")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TableError(
            f"{path}: not a list of ActivityNet ({type(error).__name__}: {error}); download it again"
        ) from None
    return dict(database)


def _segment(part: Any, where: str) -> tuple[str, float, float]:
    try:
        start, end = (float(value) for value in part["segment"])
        label = str(part["label"])
    except (TypeError, ValueError, KeyError):
        raise TableError(f"{where}: {part} is not a label and a segment of two times; correct it") from None
    if not 0.0 <= start < end:
        raise TableError(f"{where}: segment {start:g} to {end:g} s holds nothing; correct it")
    return label, start, end
