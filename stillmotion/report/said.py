"""What networks said of test samples, read back from the files that hold it."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stillmotion.data.table import Sample
from stillmotion.tasks import Targets, Task


@dataclass(frozen=True)
class Said:
    """What one network said of test samples.

    Args:
        ids: Of the S samples.
        targets: (S, ...), as the task encodes them.
        logits: (S, K).
        groups: None where a sample has none.
    """

    ids: list[str]
    targets: Targets
    logits: NDArray[np.float32]
    groups: list[str | None]


def read_said(path: Path, task: Task) -> Said | None:
    """Predictions of `write_predictions`."""
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    several = len(task.parts) > 1
    samples = []
    for row in rows:
        texts = {column: row[column if several else "target"] for column in task.columns}
        samples.append(Sample(path, row["id"], {column: text for column, text in texts.items() if text}))
    logits = np.array([row["logits"].split() for row in rows], np.float32).reshape(len(rows), -1)
    return Said([r["id"] for r in rows], task.encode_all(samples), logits, [r["group"] or None for r in rows])


def read_arrays(path: Path, row: str, view: str) -> Said | None:
    """Predictions of a comparison."""
    if not path.is_file():
        return None
    with np.load(path) as arrays:
        if f"{row}/{view}" not in arrays:
            return None
        ids, groups = arrays["ids"].tolist(), [group or None for group in arrays["groups"].tolist()]
        return Said(ids, arrays["targets"], arrays[f"{row}/{view}"][0], groups)
