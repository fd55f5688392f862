"""ASLAN (Kliper-Gross, Hassner, Wolf 2012), action similarity: 3,697 clips `0001.avi` ... of 432 actions, and pairs.

`ASLAN_Samples_List.txt` (elsewhere `Samples_Details.txt`) has a line for each clip: number, tab, then
`action\\keyword-YouTube id-title-start-duration`. `View2.mat` holds `action_splits_pairs`, 600 pairs x 5 x 10 splits:
number of the first and of the second clip, 1 if their actions are the same, both actions. So says the data set's
ReadMe; the files themselves we could not open.
"""

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from stillmotion.data.sets.fetch import Fetch
from stillmotion.data.sets.layout import Missing, Videos, lines_of, make_table, mat_arrays
from stillmotion.data.table import Sample, Table, TableError

_LISTS = ("ASLAN_Samples_List.txt", "Samples_Details.txt")
_LINE = re.compile(r"(?P<number>\d+)\s+(?P<label>[^\\]+)\\(?P<rest>.+)")
_SOURCE = re.compile(r".*?-(?P<id>[\w-]{11})-.*-[\d.]+-[\d.]+")
_COLUMNS = ("first", "second", "same", "fold")

FETCH = Fetch(
    home=("https://talhassner.github.io/home/projects/ASLAN/ASLAN-main.html",),
    files=("the clips", "ASLAN_Samples_List.txt", "View2.mat, for `stillmotion aslan`"),
    terms="published for research without an open licence",
    layout={
        "ASLAN_MP4/0001.mp4": "",
        "ASLAN_Samples_List.txt": "1\tpush up\\push-ups exercise-a_B-cdefghI-how to-12-3.5\n",
    },
    note="the page's address is from memory",
)


def read(root: Path, *, annotations: Path | None = None, missing: Missing = "error") -> Table:
    """Reads the clips with their actions. There is no split: the protocol is about pairs (`read_pairs`).

    Args:
        root: Folder with the clips, in any folders below it.
        annotations: The samples list, or its folder. Default: in `root`.
        missing: What to do with listed clips that are not there.

    Returns:
        Groups are the YouTube videos that clips were cut from.

    Raises:
        TableError: In one line: file, line, remedy.
    """
    path = annotations or root
    if path.is_dir():
        path = next((path / name for name in _LISTS if (path / name).is_file()), path / _LISTS[0])
    samples = []
    for number, line in lines_of(path):
        match = _LINE.fullmatch(line)
        if match is None:
            raise TableError(f"{path} line {number}: {line!r} is not `number action\\keyword-...`; correct the line")
        source = _SOURCE.fullmatch(match["rest"])
        name = f"{int(match['number']):04d}.avi"
        group = source["id"] if source else None
        samples.append(Sample(root / name, name, {"label": match["label"].strip()}, None, group, line=number))
    return make_table(samples, path, Videos(root), missing)


@dataclass(frozen=True)
class Pair:
    """Two videos of the pair test.

    Args:
        first, second: Names of the videos; of the official pairs four digits.
        same: Whether they show the same action.
        fold: The split that the pair belongs to.
    """

    first: str
    second: str
    same: bool
    fold: int


def read_pairs(path: Path) -> list[Pair]:
    """Reads `View2.mat`, or a CSV with the columns first, second, same (0 or 1) and fold.

    Raises:
        ValueError: In one line: file, line, remedy.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give View2.mat, or a CSV with the columns {', '.join(_COLUMNS)}")
    pairs = _from_mat(path) if path.suffix.lower() == ".mat" else _from_csv(path)
    if not pairs:
        raise ValueError(f"{path}: lists no pair")
    return pairs


def _from_mat(path: Path) -> list[Pair]:
    arrays = list(mat_arrays(path).values())
    if len(arrays) != 1 or arrays[0].ndim != 3 or arrays[0].shape[1] != 5:
        shapes = ", ".join(" x ".join(map(str, a.shape)) for a in arrays) or "nothing"
        raise ValueError(f"{path}: holds {shapes}, not pairs x 5 x splits; give View2.mat, not the pairs of View 1")
    count, _, splits = arrays[0].shape
    rows = [(arrays[0][i, :, k], k) for k in range(splits) for i in range(count)]
    return [Pair(f"{int(row[0]):04d}", f"{int(row[1]):04d}", bool(row[2]), fold) for row, fold in rows]


def _from_csv(path: Path) -> list[Pair]:
    pairs = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if lacking := [c for c in _COLUMNS if c not in (reader.fieldnames or ())]:
            raise ValueError(f"{path} line 1: no column `{lacking[0]}`; give {', '.join(_COLUMNS)}")
        for row in reader:
            if row["same"] not in ("0", "1") or not (row["fold"] or "").isdigit():
                given = f"same={row['same']!r}, fold={row['fold']!r}"
                raise ValueError(f"{path} line {reader.line_num}: {given}; give 0 or 1, and a whole number")
            pairs.append(Pair(row["first"], row["second"], row["same"] == "1", int(row["fold"])))
    return pairs
