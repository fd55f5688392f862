"""Official data sets: each reader turns the published layout and split files into a table.

`SETS["ucf101"](Path("UCF-101"), split=2)` reads; `make_table` also writes the CSV and says what it found.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from stillmotion.data.sets.fetch import Fetch
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
    "yup_plus_plus": "20 class folders, still and moving camera; a tenth for training, drawn by us or listed",
    "static_yup_plus_plus": "the same videos, half of them for training; the split is ours, not that of the paper",
    "mtl_aqa": "1,412 dives: attributes, score, commentary; split 0, or one event left out; groups are events",
    "unlv_dive": "372 dives, annotated as in MTL-AQA; splits 0 and 4",
    "aqa7": "six Olympic actions with scores, split 4",
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


def set_options(name: str) -> dict[str, Any]:
    """Options of a reader beside folders and missing videos, with their defaults."""
    known = inspect.signature(_reader(name)).parameters
    return {key: p.default for key, p in known.items() if key not in ("root", "annotations", "missing")}


def fetch_list(name: str | None = None) -> str:
    """What a user must obtain for a set (None: for all), and how it must lie.

    Raises:
        ValueError: An unknown set.
    """
    if name is not None:
        _check_name(name)
    parts = []
    for each in SETS if name is None else [name]:
        fetch: Fetch = import_module(f"stillmotion.data.sets.{each}").FETCH
        parts.append(fetch.text(each, _ABOUT[each]))
    return "\n\n".join(parts)


def _check_name(name: str) -> None:
    if name not in SETS:
        raise ValueError(f"unknown data set {name!r}; known: {', '.join(SETS)}")


def make_table(
    name: str,
    root: str,
    *,
    output: str,
    annotations: str | None = None,
    split: int | None = None,
    set: int | None = None,
    missing: Missing = "error",
    options: Mapping[str, Any] = {},
) -> Table:
    """Writes the table of an official data set as CSV and prints what is in it.

    Args:
        name: As in `SETS`.
        root: Folder with the videos.
        output: The CSV to write; paths in it are relative to its folder where possible.
        annotations: Official lists (file or folder), where they do not lie with the videos.
        split: As the reader takes it.
        set: Set of ut_interaction, 1 or 2.
        missing: Listed videos that are not there: `error`, `skip` them, or `keep` their rows.
        options: Further options of the reader, see `set_options`.

    Returns:
        The table.

    Raises:
        TableError: In one line: file, line, remedy.
        ValueError: An unknown set, or an option that it does not have.
    """
    _check_name(name)
    given = {"split": split, "set": set}
    options = {**{key: value for key, value in given.items() if value is not None}, **options}
    known = list(set_options(name))
    if unknown := [key for key in options if key not in known]:
        taken = ", ".join(known) or "neither split nor set"
        raise ValueError(f"{name} has no option {unknown[0]}={options[unknown[0]]}; it takes {taken}")
    if Path(output).suffix.lower() != ".csv":
        raise ValueError(f"output={output}: give a name that ends in .csv")
    lists = Path(annotations) if annotations is not None else None
    if lists is not None and not lists.exists():
        raise TableError(f"{lists}: no such file or folder; correct annotations=")
    # All of them first, so that those left out can be counted.
    listed = SETS[name](Path(root), annotations=lists, missing="error" if missing == "error" else "keep", **options)
    table = present(listed, Path(root), missing)
    table.write(output)
    print(f"{output}: {summary(table)}")
    for note in table.notes:
        print(f"note: {note}")
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
        f"{n} {word if n == 1 else word + ('es' if word == 'class' else 's')}"
        for word, n in counts.items()
        if n or word != "class"
    )
    splits = Counter(s.split for s in table if s.split is not None)
    return text + "".join(f"{'; ' if i == 0 else ', '}{name} {n}" for i, (name, n) in enumerate(splits.items()))
