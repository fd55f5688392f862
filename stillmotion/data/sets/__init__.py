"""Official data sets: each reader turns the published layout and split files into a table.

`SETS["ucf101"](Path("UCF-101"), split=2)` reads; `make_table` also writes the CSV and says what it found.
"""

import inspect
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from stillmotion.data.sets.layout import Missing, present
from stillmotion.data.table import Table, TableError

_ABOUT = {
    "ucf101": "ucfTrainTestlist, splits 1-3; groups are source videos",
    "hmdb51": "153 split files, splits 1-3; groups are source movies",
    "kinetics": "CSV lists of any Kinetics; files are named id_start_end",
    "arid": "list_cvt, splits 1-3, or labels.csv of the six-class selection; groups are scenes",
    "ut_interaction": "clip_sequence_class.avi; split is the sequence left out; groups are sequences",
    "fight_surv": "videos.txt or labels.csv; split is one of 5 folds by source video",
    "kth": "sequences.txt: official persons and frame ranges",
    "activitynet": "activity_net.v1-3 JSON; a row a video, several labels in `labels`",
    "sports1m": "train and test partition; videos named by YouTube id, several labels in `labels`",
    "aslan": "samples list; groups are source videos; pairs are for `stillmotion aslan`",
    "yupenn": "14 class folders, no split: leave one video out",
    "dynamic_scenes": "13 class folders (Maryland), no split: leave one video out",
}


def _reader(name: str) -> Callable[..., Table]:
    reader: Callable[..., Table] = import_module(f"stillmotion.data.sets.{name}").read
    return reader


def _lazy(name: str, about: str) -> Callable[..., Table]:
    def read(root: Path, **options: Any) -> Table:
        return _reader(name)(root, **options)

    read.__doc__ = about
    return read


SETS: dict[str, Callable[..., Table]] = {name: _lazy(name, about) for name, about in _ABOUT.items()}


def make_table(
    name: str,
    root: str,
    *,
    output: str,
    annotations: str | None = None,
    split: int | None = None,
    set: int | None = None,
    missing: Missing = "error",
) -> Table:
    """Writes the table of an official data set as CSV and prints what is in it.

    Args:
        name: ucf101, hmdb51, kinetics, arid, ut_interaction, fight_surv, kth, activitynet, sports1m, aslan, yupenn,
            dynamic_scenes.
        root: Folder with the videos.
        output: The CSV to write; paths in it are relative to its folder where possible.
        annotations: Official lists (file or folder), where they do not lie with the videos.
        split: Official split (ucf101, hmdb51, arid: 1-3, default 1), test sequence (ut_interaction: 1-20) or test fold
            (fight_surv: 0-4).
        set: Set of ut_interaction, 1 or 2.
        missing: Listed videos that are not there: `error`, `skip` them, or `keep` their rows.

    Returns:
        The table.

    Raises:
        TableError: In one line: file, line, remedy.
        ValueError: An unknown set, or an option that it does not have.
    """
    if name not in SETS:
        raise ValueError(f"unknown data set {name!r}; known: {', '.join(SETS)}")
    known = inspect.signature(_reader(name)).parameters
    options = {key: value for key, value in {"split": split, "set": set}.items() if value is not None}
    if unknown := [key for key in options if key not in known]:
        taken = ", ".join(key for key in ("split", "set") if key in known) or "neither split nor set"
        raise ValueError(f"{name} has no option {unknown[0]}={options[unknown[0]]}; it takes {taken}")
    if Path(output).suffix.lower() != ".csv":
        raise ValueError(f"output={output}: give a name that ends in .csv")
    lists = Path(annotations) if annotations is not None else None
    if lists is not None and not lists.exists():
        raise TableError(f"{lists}: no such file or folder; correct annotations=")
    listed = SETS[name](Path(root), annotations=lists, missing="keep", **options)
    table = present(listed, Path(root), missing)
    table.write(output)
    print(f"{output}: {summary(table)}")
    if lost := len(listed) - len(table):
        print(f"left out: {lost} of {len(listed)} listed samples have no video below {root}")
    return table


def summary(table: Table) -> str:
    """Counts in one line.

    Example:
        >>> from stillmotion.data.table import Sample
        >>> summary(Table((Sample(Path("a"), "a", {"label": "x"}, "train", "g"),)))
        '1 sample, 1 class, 1 group; train 1'
    """
    labels = {s.targets["label"] for s in table if "label" in s.targets}
    counts = {"sample": len(table), "class": len(labels), "group": len(table.groups)}
    text = ", ".join(
        f"{n} {word if n == 1 else word + ('es' if word == 'class' else 's')}" for word, n in counts.items()
    )
    splits = Counter(s.split for s in table if s.split is not None)
    return text + "".join(f"{'; ' if i == 0 else ', '}{name} {n}" for i, (name, n) in enumerate(splits.items()))
