"""Guesses without a pixel: how far do the annotations alone predict a score, or the majority a class?

On MTL-AQA the event and the difficulty of a dive alone reach a rank correlation of 0.67 with the scores: a network's
correlation means little without these numbers beside it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillmotion.data.sets import SETS
from stillmotion.data.sets.mtl_aqa import COUNTS, NAMES, Release, small_sets
from stillmotion.data.table import Sample, Table
from stillmotion.files import write_atomic
from stillmotion.metrics import relative_l2, spearman

GROUP = "group"
"""Stands for the table's groups among the columns of a guess."""
ATTRIBUTES = (*NAMES, *COUNTS)


@dataclass(frozen=True)
class Guesses:
    """What is guessed of a data set, and from what.

    Args:
        score: Column of the score.
        score_range: Lowest and highest score of the set, for R-l2.
        by: Columns that a guess of the score may look at, by name.
        classes: Columns whose most frequent value is guessed.
        folder: Of the release, whose smaller training sets are compared with the test split.
    """

    score: str
    score_range: tuple[float, float]
    by: Mapping[str, Sequence[str]]
    classes: Sequence[str]
    folder: str


_DIVES = {
    "difficulty": ("difficulty",),
    "attributes": ATTRIBUTES,
    "attributes + difficulty": (*ATTRIBUTES, "difficulty"),
    "event": (GROUP,),
    "event + difficulty": (GROUP, "difficulty"),
}
NO_PIXEL: dict[str, Guesses] = {
    "mtl_aqa": Guesses("final_score", (0.0, 104.5), _DIVES, ATTRIBUTES, "MTL-AQA_split_0_data"),
    "unlv_dive": Guesses("final_score", (0.0, 104.5), _DIVES, ATTRIBUTES, "UNLV_Dive_split_4"),
}


def no_pixel(name: str, root: str, *, output: str | None = None) -> dict[str, Any]:
    """Guesses the scores and classes of a set's test split from its training split.

    Args:
        name: One of `NO_PIXEL`; `-` is as good as `_`.
        root: Folder with the official annotations.
        output: JSON file to write as well.

    Returns:
        `samples` by split; `score_range`; `guesses` by name with `spearman` and `relative_l2`; `majority` by column
        with `value` and `accuracy`; `overlap` of smaller training sets with the test split.

    Raises:
        ValueError: An unknown set.
        TableError: The annotations are not there, or wrong.
    """
    known = name.replace("-", "_")
    if known not in NO_PIXEL:
        raise ValueError(f"no baselines of {name!r}; known: {', '.join(n.replace('_', '-') for n in NO_PIXEL)}")
    plan = NO_PIXEL[known]
    table = SETS[known](Path(root), missing="keep")
    train, test = table.select("train"), table.select("test")
    truth = _scores(test, plan.score)
    guesses = {}
    for title, columns in plan.by.items():
        guessed = mean_of_alike(train, test, plan.score, columns)
        guesses[title] = {
            "spearman": None if np.ptp(guessed) == 0 or np.ptp(truth) == 0 else spearman(guessed, truth),
            "relative_l2": relative_l2(guessed, truth, score_range=plan.score_range),
        }
    overlap = small_sets(Release.of(Path(root), plan.folder)) if known == "mtl_aqa" else {}
    found = {
        "set": known,
        "samples": {"train": len(train), "test": len(test)},
        "score_range": list(plan.score_range),
        "guesses": guesses,
        "majority": {column: majority(train, test, column) for column in plan.classes},
        "overlap": {title: {"samples": number, "in_test": lost} for title, (number, lost) in overlap.items()},
    }
    if output is not None:
        write_atomic(Path(output), json.dumps(found, indent=2) + "\n")
    return found


def mean_of_alike(train: Table, test: Table, score: str, columns: Sequence[str]) -> NDArray[np.float64]:
    """Guesses a score as the mean of the training samples that are alike.

    Args:
        train: Samples with scores.
        test: Samples to guess, (S).
        score: Column of the score.
        columns: In which samples must be equal to be alike; `group` is the table's group.

    Returns:
        (S,). Where nothing in training is alike: the mean of all.
    """
    scores = _scores(train, score)
    alike: dict[tuple[str | None, ...], list[float]] = {}
    for sample, value in zip(train, scores.tolist(), strict=True):
        alike.setdefault(values_of(sample, columns), []).append(value)
    everything = float(scores.mean())
    return np.array([np.mean(alike.get(values_of(sample, columns), [everything])) for sample in test])


def majority(train: Table, test: Table, column: str) -> dict[str, Any]:
    """The most frequent value of a column in training, and the share of the test samples that have it."""
    values = [sample.targets[column] for sample in train]
    best = max(sorted(set(values)), key=values.count)
    return {"value": best, "accuracy": float(np.mean([sample.targets[column] == best for sample in test]))}


def values_of(sample: Sample, columns: Sequence[str]) -> tuple[str | None, ...]:
    """The values of the columns, of which `group` is the table's group."""
    return tuple(sample.group if column == GROUP else sample.targets.get(column) for column in columns)


def _scores(table: Table, column: str) -> NDArray[np.float64]:
    return np.array([float(sample.targets[column]) for sample in table])


def table_rows(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells for a person."""
    low, high = found["score_range"]
    rows = [
        [
            f"score by {name}",
            "no ranking" if g["spearman"] is None else f"{g['spearman']:.4f} Spearman",
            f"{g['relative_l2']:.3f} R-l2 x100 ({low:g}-{high:g})",
        ]
        for name, g in found["guesses"].items()
    ]
    rows += [
        [f"majority of {name}", f"{100 * m['accuracy']:.1f} %", m["value"]] for name, m in found["majority"].items()
    ]
    rows += [
        [f"training set {name}", f"{o['in_test']} of {o['samples']} are in the test split", "leave them out"]
        for name, o in found["overlap"].items()
    ]
    return ["guess", "result", ""], rows
