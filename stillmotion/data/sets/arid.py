"""ARID (Xu et al. 2020), Action Recognition In the Dark.

Official lists: `list_cvt/ARID_split{1,2,3}_{train,test}.txt`, tab separated: index, class number, Class/Class_S_C.avi,
where S is the scene (the group) and C the clip; `mapping_table*.txt` names the classes. A six-class selection used in
teaching has such lists as `train.txt` and `validate.txt`, whose validation files are plain numbers; a `labels.csv`
beside its videos also gives groups to those.
"""

import re
from pathlib import Path

from stillmotion.data.sets.fetch import Fetch
from stillmotion.data.sets.layout import Missing, Videos, chosen, first_folder, lines_of, make_table
from stillmotion.data.table import Sample, Table, TableError, read_table

_SCENE = re.compile(r"(?P<group>[A-Za-z]+_\d+)_\d+")

FETCH = Fetch(
    home=("https://xuyu0010.github.io/arid.html",),
    files=("the clips", "list_cvt with the lists of three splits"),
    terms="published for research without an open licence",
    layout={
        "clips/Drink/Drink_11_1.mp4": "",
        "clips/Drink/Drink_2_10.mp4": "",
        "list_cvt/ARID_split1_train.txt": "0\t0\tDrink/Drink_11_1.mp4\n",
        "list_cvt/ARID_split1_test.txt": "0\t0\tDrink/Drink_2_10.mp4\n",
    },
    note="the page's address is from memory",
)


def read(root: Path, *, annotations: Path | None = None, split: int = 1, missing: Missing = "error") -> Table:
    """Reads an official split, or the six-class selection.

    Args:
        root: Folder with the videos, in any folders below it.
        annotations: Folder with the lists. Default: `labels.csv` in `root` if there is one, else `list_cvt` in `root`,
            or `root`.
        split: 1, 2 or 3, of the official lists; the selection has one.
        missing: What to do with listed videos that are not there.

    Returns:
        Splits `train` and `test` (the selection: `val`); groups are scenes where the names or `labels.csv` tell.

    Raises:
        TableError: In one line: file, line, remedy.
    """
    if annotations is None and (root / "labels.csv").is_file():
        return _from_labels(root, missing)
    chosen("split", split, (1, 2, 3))
    folder = first_folder(annotations or root / "list_cvt", root, holding="*train.txt")
    prefix = f"ARID_split{split}_" if (folder / f"ARID_split{split}_train.txt").is_file() else ""
    names = _class_names(folder)
    samples = _listed(folder / f"{prefix}train.txt", "train", names, root)
    path, part = (folder / f"{prefix}test.txt", "test") if prefix else (folder / "validate.txt", "val")
    samples += _listed(path, part, names, root)
    return make_table(samples, folder / f"{prefix}train.txt", Videos(root), missing)


def _from_labels(root: Path, missing: Missing) -> Table:
    table = read_table(root / "labels.csv", check_files=False)
    samples = []
    for s in table:
        targets = {"label": s.targets["class"], "class_id": s.targets["class_id"]}
        samples.append(Sample(s.path, s.name, targets, s.split, s.group, line=s.line))
    return make_table(samples, root / "labels.csv", Videos(root), missing)


def _class_names(folder: Path) -> dict[str, str]:
    """Names by class number, if a mapping table is there."""
    tables = sorted(folder.glob("mapping_table*.txt"))
    pairs = [line.split(maxsplit=1) for table in tables for _, line in lines_of(table)]
    return {number: name for number, name in pairs}


def _listed(path: Path, part: str, names: dict[str, str], root: Path) -> list[Sample]:
    samples = []
    for number, line in lines_of(path):
        cells = line.split(maxsplit=2)
        label = names.get(cells[1], cells[2].rpartition("/")[0]) if len(cells) == 3 else ""
        if not label:
            raise TableError(f"{path} line {number}: {line!r} is not `index class file`; correct the line")
        scene = _SCENE.fullmatch(Path(cells[2]).stem)
        targets = {"label": label, "class_id": cells[1]}
        samples.append(Sample(root / cells[2], cells[2], targets, part, scene["group"] if scene else None, line=number))
    return samples
