"""What is measured of a network: metrics and cost on a table, the distance to a teacher."""

import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillmotion.data.dataset import VideoDataset
from stillmotion.data.faults import TIMEOUT_SECONDS
from stillmotion.data.flow import RAFT
from stillmotion.data.loader import EpochBatches, make_loader
from stillmotion.data.table import Table
from stillmotion.journey import Seen, travel
from stillmotion.methods.base import Method
from stillmotion.metrics import feature_means, hallucination_r2
from stillmotion.models.cost import count_video_cost
from stillmotion.models.encoder import Encoder
from stillmotion.networks import TorchNetwork
from stillmotion.predictions import Predictions, collect, common, predict_table
from stillmotion.protocols.pooling import TINY, Pooling, sigmoid
from stillmotion.results import Row, make_row
from stillmotion.stopwatch import Stopwatch
from stillmotion.tasks import Targets, Task
from stillmotion.view import NO_DRAW, View

Array = NDArray[np.float32]
TIMED = 7


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How samples are read and where networks run."""

    batch_size: int = 16
    workers: int = 0
    device: torch.device | str = "cpu"
    short_side: int | None = None
    packed: str | None = None
    flow: str | None = None
    timeout: float = TIMEOUT_SECONDS

    def loader(self, table: Table, task: Task, views: dict[str, View]) -> Any:
        """Batches of a table with nothing random."""
        dataset = VideoDataset(table, task, views, short_side=self.short_side, packed=self.packed, flow=self.flow)
        batches = EpochBatches(len(table), self.batch_size, shuffle=False)
        return make_loader(dataset, batches, workers=self.workers, timeout=self.timeout)


@dataclass(frozen=True)
class Measured:
    """A network on some samples."""

    name: str
    predictions: Predictions
    metrics: dict[str, float]
    cost: dict[str, float | None]

    def row(self) -> Row:
        """As `results.json` has it; unreadable samples are a metric where there are any."""
        broken = {"unreadable": float(len(self.predictions.errors))} if self.predictions.errors else {}
        return make_row(self.name, {k: [v] for k, v in {**self.metrics, **broken}.items()}, self.cost)


def measure(
    name: str,
    encoder: Encoder,
    table: Table,
    task: Task,
    reading: Reading,
    pooling: Pooling = "logits",
    trained: Task | None = None,
) -> Measured:
    """Cost, predictions and metrics of a network.

    Args:
        name: Of the row.
        encoder: The network.
        table: Samples that count.
        task: Their targets and metrics.
        reading: How samples are read.
        pooling: See `pool_clips`.
        trained: What the network was trained for, where that is another task: its probabilities are ranked.

    Raises:
        ValueError: No sample can be read; the network gives no logits a moment that could be joined otherwise.
    """
    trained = trained or task
    cost = measure_cost(encoder, table, reading)
    found = predict_with(encoder, table, task, reading)
    if pooling != "logits" and "moment_logits" not in found.outputs:
        raise ValueError(f"pooling={pooling}: {name} joins its moments itself; leave pooling out")
    joined = {"logits": found.logits} | {n: found.outputs[n] for n in encoder.further_logits if n in found.outputs}
    for field, logits in joined.items():
        if pooling != "logits":
            logits = trained.pool(found.outputs[f"moment_{field}"], pooling)
        joined[field] = ranked(logits, trained, task)
    metrics = task.metrics(joined["logits"], found.targets)
    main = task.metric_kinds[0]
    for field in [n for n in joined if n != "logits" and metrics]:
        metrics[f"{main}{field.removeprefix('logits')}"] = task.metrics(joined[field], found.targets)[main]
    return Measured(name, replace(found, logits=joined["logits"]), metrics, cost)


def ranked(logits: Array, trained: Task, task: Task) -> Array:
    """Logits that have an order from sample to sample where the task asks for it; those of a softmax have none."""
    result = logits.copy()
    for (place, before), (_, now) in zip(trained.parts, task.parts, strict=True):
        if before.exclusive and not now.exclusive:
            result[..., place] = np.log(np.maximum(before.scores(logits[..., place]), TINY))
    return result


def predict_with(encoder: Encoder, table: Table, task: Task, reading: Reading) -> Predictions:
    """Predictions with everything that a comparison with a teacher needs."""
    further = [name for part in encoder.further_logits for name in (part, f"moment_{part}")]
    outputs = ("embedding", "moment_logits", "hallucinated", *further)
    return predict_table(encoder, table, task, outputs=outputs, **asdict(reading))


def measure_cost(encoder: Encoder, table: Table, reading: Reading) -> dict[str, float | None]:
    """Parameters, GMACs, milliseconds and frames of one video.

    Args:
        encoder: The network.
        table: Some of its samples are timed one by one, from the file to the prediction; the median counts.
        reading: Where it runs.

    Returns:
        `params`, `gmacs`, `ms_per_video`, `frames` (that are looked at; None, like the time, if none can be read).
    """
    counted = count_video_cost(encoder)
    # Flow is a part of the cost, and so computed here; only RAFT's is read where it is stored.
    flow = reading.flow if any(view.flow.method in RAFT for view in encoder.views.values()) else None
    dataset = VideoDataset(table, None, encoder.views, short_side=reading.short_side, packed=reading.packed, flow=flow)
    network = TorchNetwork(encoder.to(reading.device).eval(), str(reading.device))
    times, frames = [], []
    rows = np.unique(np.linspace(0, len(table) - 1, TIMED + 1).astype(int)).tolist()
    for row in [rows[0], *(rows[1:] or rows)]:  # the first only warms up
        try:
            trip, seen = travel(partial(_see, dataset, row), network, table[row])
        except ValueError:
            continue
        times.append(1000.0 * trip.total)
        frames.append(len(seen.frames))
    warm = times[1:] or times
    return {"params": counted.params, "gmacs": counted.gmacs, "ms_per_video": median(warm) if warm else None,
            "frames": median(frames) if frames else None}  # fmt: skip


def _see(dataset: VideoDataset, row: int, watch: Stopwatch) -> Seen:
    """As a loader reads a sample: from its video, or from stores. Only the time of all of it is wanted, not of parts.

    Raises:
        ValueError: It cannot be read.
    """
    began = time.perf_counter()
    item = dataset[row]
    if "error" in item:
        raise ValueError(item["error"])
    seconds = time.perf_counter() - began
    inputs = {name: x.numpy() for name, x in item.items() if isinstance(x, Tensor)}
    extent = dataset.source.extent(dataset.table[row])
    views = [*dataset.frame_views.values(), *dataset.feature_views.values()]
    shown = [extent.frames_of(view, NO_DRAW).ravel() for view in views]
    return Seen(inputs, np.unique(np.concatenate(shown)), item.get("fault"), seconds, decoding=seconds)


def distance(student: Predictions, teacher: Predictions, reference: Predictions | None, task: Task) -> dict[str, float]:
    """How far a student is from its teacher on the samples that both could read.

    Args:
        student, teacher: On the same table.
        reference: The teacher on the training samples, for R2.
        task: Of both.

    Returns:
        `agreement`, share of equal first guesses of classes (the mean over the columns); where the student has a guess
        of the same width as the teacher's feature, `feature_mse`, the mean squared distance of the two squashed by a
        sigmoid; and where it hallucinates, `hallucinated_r2` and `hallucinated_r2_within_class`.
    """
    mine, theirs = common(student, teacher)
    same = task.choices(student.logits[mine]) == task.choices(teacher.logits[theirs])
    result = {"agreement": float(same.mean())} if same.size else {}
    guess = student.outputs.get("hallucinated", student.outputs.get("embedding"))
    field = _matching(teacher, guess)
    if guess is None or field is None or not mine:
        return result
    guess, target = guess[mine], teacher.outputs[field][theirs]
    result["feature_mse"] = float(np.mean((sigmoid(guess) - sigmoid(target)) ** 2))
    if "hallucinated" in student.outputs and reference is not None:
        result |= explained(guess, target, student.targets[mine], reference.outputs[field], reference.targets, task)
    return result


def _matching(teacher: Predictions, guess: Array | None) -> str | None:
    """Name of the teacher's output that has the shape of the guess."""
    if guess is None:
        return None
    fields = ("embedding", "moment_logits")
    return next((f for f in fields if f in teacher.outputs and teacher.outputs[f].shape[1:] == guess.shape[1:]), None)


def explained(
    guess: Array, target: Array, labels: Targets, train: Array, train_labels: Targets, task: Task
) -> dict[str, float]:
    """R2 of hallucinated features, see `hallucination_r2`; every moment of a sample counts.

    Args:
        guess, target: (S, N, D), of the student and of the teacher.
        labels: (S, ...), as the task encodes them; equal combinations of classes are a class.
        train: Of the teacher on training samples, (S', N', D).
        train_labels: (S', ...).
        task: Tells which samples are of a class.
    """
    flat = [x.reshape(-1, x.shape[-1]) for x in (guess, target, train)]
    classes = task.classes_of(np.concatenate([labels, train_labels]))
    mine, theirs = classes[: len(labels)], classes[len(labels) :]
    mean, class_means = feature_means(flat[2], np.repeat(theirs, train.shape[1]), max(1, int(classes.max()) + 1))
    mine = np.repeat(mine, guess.shape[1])
    return hallucination_r2(flat[0], flat[1], mean=mean, class_means=class_means, labels=mine)


def learned(method: Method, train: Table, test: Table, task: Task, reading: Reading) -> dict[str, float]:
    """How much of its teacher's feature a method's student has learned, told on the test split.

    Args:
        method: One that hallucinates, with its teacher; others give nothing.
        train: Samples whose mean features are the reference.
        test: Samples that count.
        task: Its classes.
        reading: How samples are read.

    Raises:
        ValueError: The teacher's features are stored, and not for these samples.
    """
    if not (method.hallucinates and method.frozen):
        return {}
    names = ("hallucinated", "hallucination_target")
    method.to(reading.device).eval()
    views = method.views()
    found = collect(test, reading.loader(test, task, views), method, reading.device, names)
    known = collect(train, reading.loader(train, task, views), method, reading.device, names[1:])
    guess, target = (found.outputs[name] for name in names)
    return explained(guess, target, found.targets, known.outputs[names[1]], known.targets, task)
