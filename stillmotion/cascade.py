"""A cascade: the student answers, and samples of which it is not sure go to the teacher. What that gives and costs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
from numpy.typing import NDArray

from stillmotion.calibration import check_cascade, confidence
from stillmotion.data.table import Sample, Table
from stillmotion.files import csv_text, write_atomic
from stillmotion.predictions import Predictions, common
from stillmotion.results import COSTS, Row, make_row
from stillmotion.tasks import Targets, Task
from stillmotion.view import View

if TYPE_CHECKING:
    from stillmotion.measure import Measured

LOSS = 0.01
"""Accuracy on validation that may be given away for a lower threshold."""
MOST = 101
"""Thresholds of a curve."""
FILE = "cascade"
Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Point:
    """A cascade at one threshold.

    Args:
        threshold: Samples of which the student is no surer than this go to the teacher.
        share: Of samples that do.
        accuracy: Main metric of the task.
        ms: From file to prediction, the mean over the samples: the student's, and the teacher's for those that it sees.
        kilobytes: Compressed video (KiB) that has to be decoded, likewise.
    """

    threshold: float
    share: float
    accuracy: float
    ms: float | None = None
    kilobytes: float | None = None


@dataclass(frozen=True)
class Pair:
    """What two networks say of the samples that both could read, and what it took.

    Args:
        task: Of both.
        student, teacher: Calibrated logits, (S, K).
        targets: (S, ...).
        ms: Milliseconds of a prediction of the student and of the teacher; None if not measured.
        sizes: Bytes of compressed video that each sample takes, (2, S), of the student and of the teacher.
    """

    task: Task
    student: Logits
    teacher: Logits
    targets: Targets
    ms: tuple[float, float] | None = None
    sizes: NDArray[np.float64] | None = None

    def joined(self, threshold: float) -> tuple[Logits, NDArray[np.bool_]]:
        """Logits of the cascade, and of which samples the teacher gave them."""
        passed = confidence(self.task, self.student) <= threshold
        return np.where(passed[:, None], self.teacher, self.student), passed

    def point(self, threshold: float) -> Point:
        """The cascade at a threshold."""
        logits, passed = self.joined(threshold)
        accuracy, share = next(iter(self.task.metrics(logits, self.targets).values())), float(passed.mean())
        ms = None if self.ms is None else self.ms[0] + share * self.ms[1]
        size = None if self.sizes is None else float((self.sizes[0] + passed * self.sizes[1]).mean()) / 1024.0
        return Point(threshold, share, accuracy, ms, size)

    def curve(self) -> list[Point]:
        """From the student alone to the teacher for all, with thresholds between the student's confidences."""
        sure = np.unique(confidence(self.task, self.student))
        between = (sure[:-1] + sure[1:]) / 2
        picked = between[np.unique(np.linspace(0, len(between) - 1, min(len(between), MOST - 2)).astype(int))]
        return [self.point(threshold) for threshold in (0.0, *picked.tolist(), 1.0)]


def pair_of(task: Task, student: Predictions, teacher: Predictions, other: Task) -> Pair:
    """What two networks say of the same table.

    Args:
        task: Of the student.
        student, teacher: Their predictions.
        other: Task of the teacher.

    Raises:
        ValueError: They tell of a score, or no sample has a label that both could read.
    """
    check_cascade(task, other)
    mine, theirs = common(student, teacher)
    targets = student.targets[mine]
    if not len(mine) or not task.labelled(targets).any():
        raise ValueError("cascade: no sample with a label could be read by both networks")
    return Pair(task, task.calibrated(student.logits[mine]), other.calibrated(teacher.logits[theirs]), targets)


def choose(points: Sequence[Point]) -> Point:
    """The lowest threshold that gives away no more than one point of the best accuracy.

    Example:
        >>> choose([Point(0.0, 0.0, 0.7), Point(0.5, 0.2, 0.895), Point(0.8, 0.5, 0.9), Point(1.0, 1.0, 0.9)]).threshold
        0.5
    """
    best = max(point.accuracy for point in points)
    return min((p for p in points if p.accuracy >= best - LOSS - 1e-9), key=lambda p: p.threshold)


def measure_cascade(
    found: "Sequence[Measured]",
    held: "Sequence[Measured]",
    tasks: tuple[Task, Task],
    table: Table,
    views: Sequence[Mapping[str, View]],
    output: str | Path | None,
) -> Row:
    """Chooses a threshold on held-out samples, and says what the cascade gives and costs on those that count.

    Args:
        found: Student and teacher on the samples that count.
        held: Likewise on the held-out ones.
        tasks: Of the two.
        table: The samples that count.
        views: Of the two.
        output: Folder for the files of `write_cascade`; None writes none.

    Returns:
        A row `cascade`.
    """
    pairs = [pair_of(tasks[0], a.predictions, b.predictions, tasks[1]) for a, b in (held, found)]
    points = pairs[0].curve()
    first, second = (m.cost["ms_per_video"] for m in found)
    both = set(found[1].predictions.ids)
    sizes = sizes_of(table, [i for i in found[0].predictions.ids if i in both], views)
    test = replace(
        pairs[1],
        ms=(first, second) if first is not None and second is not None else None,
        sizes=sizes if np.isfinite(sizes).all() else None,
    )
    chosen = test.point(choose(points).threshold)
    if output is not None:
        write_cascade(Path(output), test.curve(), chosen, points, tasks[0].metric_kinds[0])
    return cascade_row(test, chosen, [m.cost for m in found])


def cascade_row(pair: Pair, point: Point, costs: Sequence[Mapping[str, float | None]]) -> Row:
    """The cascade as a row of results, beside those of its networks.

    Args:
        pair: On the samples that count.
        point: At the threshold that was chosen.
        costs: Of the student and of the teacher.
    """
    logits, _ = pair.joined(point.threshold)
    metrics = {**pair.task.metrics(logits, pair.targets), "share_escalated": point.share, "threshold": point.threshold}
    if point.kilobytes is not None:
        metrics["kib_decoded"] = point.kilobytes
    cost: dict[str, float | None] = {}
    for name in COSTS:
        weight = 1.0 if name == "params" else point.share
        first, second = (c.get(name) for c in costs)
        cost[name] = None if first is None or second is None else first + weight * second
    return make_row("cascade", {name: [value] for name, value in metrics.items()}, cost)


def write_cascade(folder: Path, test: Sequence[Point], chosen: Point, validation: Sequence[Point], metric: str) -> None:
    """Writes `cascade.json`, `cascade.csv` (the curve of the samples that count) and `cascade.png`."""
    from stillmotion.report.calibration import plot_cascade

    data = {"metric": metric, "chosen": asdict(chosen), "curve": [asdict(p) for p in test],
            "validation": [asdict(p) for p in validation]}  # fmt: skip
    write_atomic(folder / f"{FILE}.json", json.dumps(data, indent=2) + "\n")
    head = [f.name for f in fields(Point)]
    write_atomic(folder / f"{FILE}.csv", csv_text(head, (asdict(point).values() for point in test)))
    plot_cascade(test, chosen, folder / f"{FILE}.png", metric=metric)


def sizes_of(table: Table, ids: Sequence[str], views: Sequence[Mapping[str, View]]) -> NDArray[np.float64]:
    """Bytes that networks have to decode of samples, (networks, S); NaN where the file cannot tell.

    Args:
        table: Has the samples.
        ids: Of those that count.
        views: Of every network.
    """
    by_id: dict[str, Sample] = {sample.id: sample for sample in table}
    return np.array([[_size(by_id[name], list(seen.values())) for name in ids] for seen in views])


def _size(sample: Sample, views: Sequence[View]) -> float:
    from stillmotion.data.packets import sample_bytes

    try:
        return float(sample_bytes(sample, views))
    except (ValueError, OSError, av.FFmpegError):
        return float("nan")
