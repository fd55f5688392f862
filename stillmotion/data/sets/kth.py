"""KTH Actions (Schuldt, Laptev, Caputo 2004): 599 videos, 6 classes, 25 persons, 4 scenarios, 2,391 ranges.

The official list `sequences.txt` names the persons for training, validation and test in its head, then the ranges of
every video: `person01_boxing_d1  frames  1-95, 96-185, ...`, counted from 1, both ends included. Videos are
`personXX_ACTION_dY_uncomp.avi`, in one folder or in class folders.
"""

import re
from pathlib import Path

from stillmotion.data.sets.fetch import Fetch
from stillmotion.data.sets.layout import Missing, Videos, lines_of, make_table
from stillmotion.data.table import Sample, Table, TableError

_PERSONS = re.compile(r"(Training|Validation|Test):\s*person(.+)")
_VIDEO = re.compile(r"person(?P<person>\d\d)_(?P<label>\w+)_(?P<scenario>d\d)\s+(?P<ranges>.+)")
_RANGE = re.compile(r"(\d+)-(\d+)")
_SPLITS = {"Training": "train", "Validation": "val", "Test": "test"}

FETCH = Fetch(
    home=("https://www.csc.kth.se/cvap/actions/",),
    files=("boxing.zip, handclapping.zip, handwaving.zip, jogging.zip, running.zip, walking.zip", "00sequences.txt"),
    terms="published for research without an open licence",
    layout={
        "boxing/person11_boxing_d1_uncomp.avi": "",
        "00sequences.txt": "Training:\tperson11, 12\nperson11_boxing_d1\t\tframes\t1-95, 96-185\n",
    },
    note="names of the archives are from memory",
)


def read(root: Path, *, annotations: Path | None = None, missing: Missing = "error") -> Table:
    """Reads the official ranges, one sample each, as half-open ranges that count from 0.

    Args:
        root: Folder with the videos, in any folders below it.
        annotations: `sequences.txt` or `00sequences.txt`, or its folder. Default: in `root`.
        missing: What to do with listed videos that are not there.

    Returns:
        Splits `train`, `val`, `test` by person; the group is the person; further column `scenario` (d1-d4).

    Raises:
        TableError: In one line: file, line, remedy.
    """
    path = annotations or root
    if path.is_dir():  # the official page has it as 00sequences.txt
        numbered = path / "00sequences.txt"
        path = numbered if numbered.is_file() else path / "sequences.txt"
    split_of: dict[str, str] = {}
    samples = []
    for number, line in lines_of(path):
        if match := _PERSONS.match(line):
            split_of |= {person: _SPLITS[match[1]] for person in re.findall(r"\d\d", match[2])}
        elif match := _VIDEO.match(line):
            if match["person"] not in split_of:
                raise TableError(
                    f"{path} line {number}: person{match['person']} is in no split; restore the file's head"
                )
            if "*missing*" not in line:
                samples += _ranges(match, split_of[match["person"]], root, f"{path} line {number}", number)
    return make_table(samples, path, Videos(root), missing)


def _ranges(match: re.Match[str], split: str, root: Path, where: str, line: int) -> list[Sample]:
    person, label, scenario = match["person"], match["label"], match["scenario"]
    name = f"{label}/person{person}_{label}_{scenario}_uncomp.avi"
    targets = {"label": label, "scenario": scenario}
    text = match["ranges"].removeprefix("frames").strip()
    bounds = [_RANGE.fullmatch(part.strip()) for part in text.split(",")]
    samples = []
    for part in bounds:
        if part is None or int(part[1]) < 1 or int(part[2]) < int(part[1]):
            raise TableError(f"{where}: {text!r} is not `first-last, ...` counted from 1; correct the line")
        start, end = float(part[1]) - 1, float(part[2])
        samples.append(Sample(root / name, name, targets, split, f"person{person}", start, end, line=line))
    return samples
