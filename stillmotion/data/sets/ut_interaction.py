"""UT-Interaction (Ryoo and Aggarwal, SDHA 2010), segmented clips: leave one sequence out, within each set.

Files are named `clip_sequence_class.avi`; sequences 1-10 are set 1 (`segmented_set1`), 11-20 set 2. Nothing else is
needed to read them; `labels.csv` beside the sets adds the main actor.
"""

import csv
import re
from pathlib import Path

from stillmotion.data.sets.fetch import Fetch
from stillmotion.data.sets.layout import Missing, Videos, chosen, make_table
from stillmotion.data.table import Sample, Table, TableError

CLASSES = ("hand_shaking", "hugging", "kicking", "pointing", "punching", "pushing")
_NAME = re.compile(r"(\d+)_(\d+)_([0-5])")

FETCH = Fetch(
    home=("https://cvrc.ece.utexas.edu/SDHA2010/Human_Interaction.html",),
    files=("ut-interaction_segmented_set1.zip", "ut-interaction_segmented_set2.zip"),
    terms="published for research without an open licence",
    layout={"segmented_set1/0_1_4.avi": "", "segmented_set2/0_11_0.avi": ""},
    note="the page's address is from memory",
)


def read(
    root: Path,
    *,
    annotations: Path | None = None,
    split: int | None = None,
    set: int | None = None,
    missing: Missing = "error",
) -> Table:
    """Reads the clips of one set or of both.

    Args:
        root: Folder with the clips, in any folders below it.
        annotations: `labels.csv`. Default: the one in `root`, if any.
        split: The sequence that is the test split, 1-20; None gives no split, for a comparison that leaves out each
            group in turn.
        set: 1 or 2; None: the set of the test sequence, or both.
        missing: What to do with clips of `labels.csv` that are not there.

    Returns:
        Groups are sequences (`seq01`); further columns `class_id`, `set`, and `main_actor` from `labels.csv`.

    Raises:
        TableError: No clip is there, or as `missing` says.
    """
    if split is not None:
        chosen("split", split, range(1, 21))
        set = set or (1 if split <= 10 else 2)
    if set is not None:
        chosen("set", set, (1, 2))
    path = annotations or root / "labels.csv"
    samples = _listed(path, root) if path.is_file() else _found(root)
    if set is not None:
        samples = [s for s in samples if s.targets["set"] == f"set{set}"]
    if split is not None:
        if not any(s.group == f"seq{split:02d}" for s in samples):
            raise TableError(f"{root}: no clip of sequence {split}; correct the folder or split=")
        samples = [_with_split(s, f"seq{split:02d}") for s in samples]
    source = path if path.is_file() else root
    return make_table(samples, source, Videos(root), missing)


def _found(root: Path) -> list[Sample]:
    paths = sorted(p for p in root.rglob("*.avi") if _NAME.fullmatch(p.stem))
    return [_sample(p.relative_to(root).as_posix(), root, 0) for p in paths]


def _listed(path: Path, root: Path) -> list[Sample]:
    samples = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            if not _NAME.fullmatch(Path(row.get("path") or "").stem):
                raise TableError(f"{path} line {line}: no `clip_sequence_class.avi` in column `path`; correct the line")
            samples.append(_sample(row["path"], root, line, main_actor=row.get("main_actor")))
    return samples


def _sample(name: str, root: Path, line: int, main_actor: str | None = None) -> Sample:
    match = _NAME.fullmatch(Path(name).stem)
    assert match is not None
    sequence, number = int(match[2]), int(match[3])
    targets = {"label": CLASSES[number], "class_id": str(number), "set": f"set{1 if sequence <= 10 else 2}"}
    if main_actor is not None:
        targets["main_actor"] = main_actor
    return Sample(root / name, name, targets, None, f"seq{sequence:02d}", line=line)


def _with_split(sample: Sample, test: str) -> Sample:
    split = "test" if sample.group == test else "train"
    return Sample(sample.path, sample.name, sample.targets, split, sample.group, line=sample.line)
