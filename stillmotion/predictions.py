"""What a network says about the samples of a table: arrays, and the files that hold them. No torch at import."""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stillmotion.data.faults import TIMEOUT_SECONDS
from stillmotion.data.table import Table
from stillmotion.files import csv_text, write_atomic
from stillmotion.protocols.pooling import average_precisions
from stillmotion.tasks import UNLABELLED, Classification, MultiLabel, Score, Targets, Task, task_from_dict

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader

    from stillmotion.models.encoder import Encoder

FILE = "predictions.csv"
TASK_FILE = "task.json"


@dataclass(frozen=True)
class Predictions:
    """Outputs for S samples that could be read, in the order of their table.

    Args:
        ids: `Sample.id`.
        groups: None where a sample has no group.
        logits: (S, num_outputs of the task).
        targets: (S, ...) as the task encodes them.
        outputs: Further arrays of the network by name, (S, N, ...).
        errors, faults: Reason by id of samples that could not be read, or only in part.
    """

    ids: list[str]
    groups: list[str | None]
    logits: NDArray[np.float32]
    targets: Targets
    outputs: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)


def common(one: Predictions, other: Predictions) -> tuple[list[int], list[int]]:
    """Places, in each, of the samples that both networks could read."""
    places = {name: i for i, name in enumerate(other.ids)}
    mine = [i for i, name in enumerate(one.ids) if name in places]
    return mine, [places[one.ids[i]] for i in mine]


def predict_table(
    encoder: "Encoder",
    table: Table,
    task: Task | None,
    *,
    outputs: Iterable[str] = (),
    role: str = "student",
    batch_size: int = 16,
    workers: int = 0,
    device: "torch.device | str" = "cpu",
    short_side: int | None = None,
    packed: str | None = None,
    flow: str | None = None,
    timeout: float = TIMEOUT_SECONDS,
) -> Predictions:
    """Runs a network on every sample of a table, with nothing random.

    Args:
        encoder: The network; it is put into `eval()` and onto the device.
        table: The samples.
        task: Encodes the targets; None gives none.
        outputs: Names of further outputs to keep.
        role: Under which stored features are found.
        batch_size, workers, device: Where and how it runs.
        short_side, packed, flow, timeout: As in `DataConfig`.

    Raises:
        ValueError: No sample can be read; the message names the first.
    """
    from stillmotion.data.dataset import VideoDataset
    from stillmotion.data.loader import EpochBatches, make_loader

    views = {f"{role}/{name}": view for name, view in encoder.views.items()}
    dataset = VideoDataset(table, task, views, short_side=short_side, packed=packed, flow=flow)
    loader = make_loader(dataset, EpochBatches(len(table), batch_size, shuffle=False), workers=workers, timeout=timeout)
    encoder.to(device).eval()
    return collect(table, loader, lambda batch: encoder.from_batch(batch, role), device, outputs)


def collect(
    table: Table,
    loader: "DataLoader[Any]",
    function: Any,
    device: "torch.device | str",
    outputs: Iterable[str] = (),
) -> Predictions:
    """Runs a function of batches that gives `logits`, and joins what it gives.

    Raises:
        ValueError: No sample can be read.
    """
    import torch

    parts: dict[str, list[NDArray[np.float32]]] = {}
    rows: list[int] = []
    targets: list[Targets] = []
    errors: dict[str, str] = {}
    faults: dict[str, str] = {}
    for batch in loader:
        errors |= {table[row].id: reason for row, reason in batch["errors"]}
        faults |= {table[row].id: reason for row, reason in batch["faults"]}
        if not len(batch["index"]):
            continue
        with torch.inference_mode():
            moved = {k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
            out = function(moved)
        for name in ("logits", *outputs):
            if name in out:
                parts.setdefault(name, []).append(out[name].float().cpu().numpy())
        rows += batch["index"].tolist()
        targets.append(batch["target"].cpu().numpy())
    if not rows:
        name, reason = next(iter(errors.items()))
        raise ValueError(f"{table.source}: none of {len(table)} samples can be read; the first: {name}: {reason}")
    arrays = {name: np.concatenate(values) for name, values in parts.items()}
    samples = [table[row] for row in rows]
    return Predictions(
        ids=[s.id for s in samples],
        groups=[s.group for s in samples],
        logits=arrays.pop("logits"),
        targets=np.concatenate(targets),
        outputs=arrays,
        errors=errors,
        faults=faults,
    )


def write_predictions(folder: Path, predictions: Predictions, task: Task) -> None:
    """Writes `predictions.csv` and what shows it best.

    Of one class a sample `per_class.csv`, `confusion.json` and `confusion.png`, of several classes a sample
    `per_class.csv` with their average precision, of a score `scores.png`. Of several targets these carry the column in
    their name (`confusion.COLUMN.png`), and `predictions.csv` has each column by itself (`COLUMN`, `COLUMN_predicted`).
    Where the logits are not those of one column of classes, `task.json` says what they are.

    Args:
        folder: Exists.
        predictions: Of the network.
        task: Says what they mean.
    """
    p, several = predictions, len(task.parts) > 1
    parts = [(part, p.logits[:, place], task.part_targets(p.targets, i)) for i, (place, part) in enumerate(task.parts)]
    head = ["id", "group", "target", "predicted"]
    head += [name for column in task.columns if several for name in (column, f"{column}_predicted")]
    rows = []
    for i, (name, group, logits) in enumerate(zip(p.ids, p.groups, p.logits, strict=True)):
        said = task.answers(logits, top=1)
        each = [
            cell for (part, _, t), a in zip(parts, said, strict=True) if several for cell in (part.text(t[i]), a.text)
        ]
        numbers = " ".join(f"{x:.6g}" for x in logits)
        best = said[0].labels[0][0] if task.class_names else task.describe(logits)
        rows.append([name, group or "", task.text(p.targets[i]), best, *each, numbers])
    write_atomic(folder / FILE, csv_text([*head, "logits"], rows))
    if not task.class_names:
        write_atomic(folder / TASK_FILE, json.dumps(task.to_dict(), ensure_ascii=False) + "\n")
    for part, logits, targets in parts:
        _write_part(folder, part, logits, targets, f".{part.target}" if several else "")


def _write_part(folder: Path, task: Task, logits: NDArray[np.float32], targets: Targets, suffix: str) -> None:
    """What shows the predictions of one column."""
    from stillmotion.report.plots import plot_confusion, plot_scores

    known, names = task.labelled(targets), task.class_names
    if isinstance(task, MultiLabel):
        marks = task.marks(targets[known])
        found = zip(names, marks.sum(0), average_precisions(logits[known], marks), strict=True)
        each = ([name, count, score if count else ""] for name, count, score in found)
        write_atomic(folder / f"per_class{suffix}.csv", csv_text(("class", "samples", "average_precision"), each))
    elif isinstance(task, Score):
        if known.any():
            plot_scores(task.guess(logits[known]), targets[known], task.target, folder / f"scores{suffix}.png")
    else:
        matrix = confusion(logits.argmax(1), targets, len(names))
        head = ("class", "samples", "correct", "accuracy", "precision", "mistaken_for")
        write_atomic(folder / f"per_class{suffix}.csv", csv_text(head, per_class(matrix, names)))
        text = json.dumps({"classes": list(names), "matrix": matrix.tolist()})
        write_atomic(folder / f"confusion{suffix}.json", text + "\n")
        if matrix.any():
            plot_confusion(matrix, names, folder / f"confusion{suffix}.png")


def read_predictions(folder: Path) -> tuple[Task, dict[str, NDArray[np.float32]]]:
    """What `write_predictions` wrote.

    Returns:
        What the logits mean, and logits (K,) by sample.

    Raises:
        ValueError: The files are missing or are not ours.
    """
    try:
        if (folder / TASK_FILE).exists():
            task = task_from_dict(json.loads((folder / TASK_FILE).read_text(encoding="utf-8")))
        else:  # of one column of classes
            with (folder / "per_class.csv").open(newline="", encoding="utf-8") as file:
                task = Classification(tuple(row["class"] for row in csv.DictReader(file)))
        with (folder / FILE).open(newline="", encoding="utf-8") as file:
            logits = {row["id"]: np.array(row["logits"].split(), np.float32) for row in csv.DictReader(file)}
        if any(len(values) != task.num_outputs for values in logits.values()):
            raise ValueError(f"{task.num_outputs} classes, and other numbers of logits")
    except (OSError, KeyError, TypeError, AttributeError, csv.Error, ValueError) as error:
        raise ValueError(f"{folder}: no predictions of `evaluate --output` in it ({error})") from None
    return task, logits


def confusion(predicted: NDArray[np.int64], targets: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """Counts (K, K): row = true class, column = predicted one; unlabelled samples are left out.

    Example:
        >>> confusion(np.array([0, 1, 1]), np.array([0, 0, -1]), 2).tolist()
        [[1, 1], [0, 0]]
    """
    known = targets != UNLABELLED
    matrix = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(matrix, (targets[known], predicted[known]), 1)
    return matrix


def per_class(matrix: NDArray[np.int64], names: Iterable[str]) -> list[tuple[Any, ...]]:
    """Class, samples, correct ones, accuracy (recall), precision, and the class it is most often mistaken for.

    Example:
        >>> per_class(np.array([[1, 3], [0, 0]]), ("run", "walk"))
        [('run', 4, 1, 0.25, 1.0, 'walk'), ('walk', 0, 0, '', 0.0, '')]
    """
    names, rows = tuple(names), []
    for k, name in enumerate(names):
        total, right, called = int(matrix[k].sum()), int(matrix[k, k]), int(matrix[:, k].sum())
        wrong = np.where(np.arange(len(names)) == k, 0, matrix[k])
        other = names[int(wrong.argmax())] if wrong.any() else ""
        rows.append((name, total, right, right / total if total else "", right / called if called else "", other))
    return rows
