"""Whether a network is right as often as it says: calibration error, and a temperature that mends it.

Guo et al., "On Calibration of Modern Neural Networks", arXiv:1706.04599.
"""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillmotion.files import write_atomic
from stillmotion.protocols.pooling import softmax
from stillmotion.tasks import Classes, Classification, Joint, Targets, Task

BINS = 15
FEWEST = 10
"""Labelled samples, below which no temperature is fitted."""
COOLEST, HOTTEST = 0.05, 20.0
FILE = "calibration"
Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Reliability:
    """How sure a network is, and how often it is right, in bins of equal width over [0, 1].

    Args:
        confidence: Mean probability of the first guess, (BINS,); NaN in a bin without samples.
        accuracy: Share of right first guesses, (BINS,).
        samples: In each bin, (BINS,).
    """

    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    samples: NDArray[np.int64]

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance of the two, weighted by samples."""
        filled = self.samples > 0
        distance = np.abs(self.confidence - self.accuracy)[filled]
        return float((distance * self.samples[filled]).sum() / self.samples.sum())

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data, with null for what no sample tells."""
        rows = {"confidence": self.confidence, "accuracy": self.accuracy}
        lists = {name: [None if math.isnan(v) else v for v in values.tolist()] for name, values in rows.items()}
        return {"ece": self.error, **lists, "samples": self.samples.tolist()}


def reliability(probabilities: NDArray[np.floating], targets: NDArray[np.integer]) -> Reliability:
    """Bins of the first guess.

    Args:
        probabilities: (S, K).
        targets: Classes, (S,), all labelled.

    Raises:
        ValueError: No sample.

    Example:
        Sure to 0.9 and right once in two: off by 0.4.

        >>> found = reliability(np.array([[0.9, 0.1], [0.1, 0.9]]), np.array([0, 0]))
        >>> round(found.error, 6), int(found.samples.sum())
        (0.4, 2)
    """
    if not len(targets):
        raise ValueError("no sample has a label, so nothing tells how often the network is right")
    sure = probabilities.max(1).astype(np.float64)
    right = probabilities.argmax(1) == targets
    place = np.minimum((sure * BINS).astype(np.int64), BINS - 1)
    samples = np.bincount(place, minlength=BINS)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(place, values, BINS) / samples for values in (sure, right)]
    return Reliability(means[0], means[1], samples)


def fit_temperature(logits: Logits, targets: NDArray[np.integer]) -> float:
    """The temperature with the least negative log-likelihood, between 0.05 and 20.

    Args:
        logits: (S, K), as the network gives them.
        targets: Classes, (S,), all labelled.

    Raises:
        ValueError: Fewer than 10 samples.
    """
    from scipy.optimize import minimize_scalar

    if len(targets) < FEWEST:
        raise ValueError(f"{len(targets)} labelled samples are too few for a temperature; {FEWEST} are wanted")
    values = logits.astype(np.float64)
    values -= values.max(1, keepdims=True)
    own = values[np.arange(len(targets)), targets]

    def loss(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        return float((np.log(np.exp(scale * values).sum(1)) - scale * own).mean())

    found = minimize_scalar(loss, bounds=(math.log(COOLEST), math.log(HOTTEST)), method="bounded")
    return round(math.exp(float(found.x)), 4)


def calibrate(task: Task, logits: Logits, targets: Targets) -> Task:
    """The same task with a temperature for every column that has one class of several.

    Args:
        task: What the network tells.
        logits: (S, num_outputs), of held-out samples.
        targets: (S, ...), as the task encodes them.

    Raises:
        ValueError: There is no such column, or there are too few samples.
    """
    fitted: list[Task] = []
    for number, (place, part) in enumerate(task.parts):
        if isinstance(part, Classification):
            own = task.part_targets(targets, number)
            known = part.labelled(own)
            part = replace(part, temperature=fit_temperature(logits[known][:, place], own[known]))
        fitted.append(part)
    if not any(isinstance(part, Classification) for part in fitted):
        raise ValueError(f"{task.target}: only one class of several can be calibrated")
    return Joint(tuple(fitted), task.weights) if isinstance(task, Joint) else fitted[0]


def confidence(task: Task, logits: Logits) -> NDArray[np.float64]:
    """How sure a network is of its answer: the probability of the first class, of several columns the least of them.

    Args:
        task: What the logits tell.
        logits: (..., num_outputs), calibrated.

    Returns:
        (...).

    Raises:
        ValueError: The task has no classes.
    """
    each = [part.scores(logits[..., place]).max(-1) for place, part in task.parts if isinstance(part, Classes)]
    if not each:
        raise ValueError(f"the model tells of {task.target}, a number, and cannot say how sure it is; only of classes")
    return np.asarray(np.minimum.reduce(each), np.float64)


def check_cascade(task: Task, other: Task) -> None:
    """Refuses networks that cannot answer for each other.

    Raises:
        ValueError: Their classes differ, or they tell of a score.
    """
    if not task.same_as(other):
        raise ValueError(
            "teacher: its targets or classes are not those of the student, so it cannot answer in its place"
        )
    if odd := [part.target for _, part in task.parts if not isinstance(part, Classes)]:
        raise ValueError(f"teacher: {odd[0]} is a number, and the student cannot say how sure it is; only of classes")


def store(run: Path, task: Task, facts: dict[str, Any]) -> None:
    """Writes temperatures into the `config.json` of a run: the task has them, `calibration` says where they are from.

    Args:
        run: The run folder.
        task: As `calibrate` gave it.
        facts: Plain data.
    """
    from stillmotion.models.pretrained import CONFIG, read_config

    config = {**read_config(run), "task": task.to_dict(), "calibration": facts}
    write_atomic(run / CONFIG, json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def reliabilities(task: Task, logits: Logits, targets: Targets) -> dict[str, Reliability]:
    """Of every column with one class of several, as the network gives it and with its temperature, if it has one.

    Args:
        task: What the network tells.
        logits: (S, num_outputs), as the network gives them.
        targets: (S, ...).

    Returns:
        By metric: `ece` and `ece_calibrated`, of several columns `ece.COLUMN`. Empty where there is nothing to tell.
    """
    found: dict[str, Reliability] = {}
    for number, (place, part) in enumerate(task.parts):
        own = task.part_targets(targets, number)
        known = part.labelled(own)
        if not isinstance(part, Classification) or not known.any():
            continue
        end = f".{part.target}" if isinstance(task, Joint) else ""
        rows = logits[known][:, place]
        found[f"ece{end}"] = reliability(softmax(rows), own[known])
        if part.temperature != 1.0:
            found[f"ece_calibrated{end}"] = reliability(softmax(part.calibrated(rows)), own[known])
    return found


def write_reliability(folder: Path, found: dict[str, Reliability]) -> None:
    """Writes `calibration.json` and, for every column, `calibration.png` or `calibration.COLUMN.png`."""
    from stillmotion.report.calibration import plot_reliability

    write_atomic(folder / f"{FILE}.json", json.dumps({k: bins.to_dict() for k, bins in found.items()}, indent=2) + "\n")
    for end in dict.fromkeys(metric.partition(".")[2] for metric in found):
        own = {metric: bins for metric, bins in found.items() if metric.partition(".")[2] == end}
        plot_reliability(own, folder / f"{FILE}{f'.{end}' if end else ''}.png")
