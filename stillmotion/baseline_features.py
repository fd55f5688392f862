"""Features of the baseline rows: read in parallel or by a frozen network, and kept for the next fold."""

import hashlib
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillmotion.config import ModelConfig
from stillmotion.data.table import Sample, Table
from stillmotion.files import write_atomic
from stillmotion.tasks import Task

Floats = NDArray[np.float32]
Cost = dict[str, float | None]

TIMEOUT = 300.0
"""Seconds after which a video is given up."""
NUM_TIMED = 5


@dataclass(frozen=True)
class Work:
    """The arguments of `run_baseline`."""

    train: Table
    test: Table
    task: Task
    model: ModelConfig | None
    cache: Path | None
    seed: int
    workers: int
    columns: tuple[str, ...] = ()

    @property
    def both(self) -> Table:
        """Training samples, then test samples."""
        return replace(self.train, samples=(*self.train.samples, *self.test.samples))


def read_crop_size(sample: Sample) -> Floats:
    """Logarithms of width, height, their ratio and product.

    Raises:
        ValueError: The file cannot be read.
    """
    from stillmotion.data.decode import probe

    info = probe(sample.path)
    width, height = np.log([info.width, info.height])
    return np.array([width, height, width - height, width + height], np.float32)


def median_of(count: Callable[[Sample], float], table: Table) -> float | None:
    """Over some samples of a table; None if none of them can be read."""
    found = []
    for row in np.unique(np.linspace(0, len(table) - 1, NUM_TIMED).astype(int)):
        try:
            found.append(count(table[int(row)]))
        except ValueError:
            continue
    return float(median(found)) if found else None


def milliseconds(read: Callable[[Sample], Floats], table: Table) -> float | None:
    """Median time of reading a sample's features, from a file that this process has not read before where it can be.

    What is known of a file is remembered, so time before features are read.
    """

    def timed(sample: Sample) -> float:
        start = time.perf_counter()
        read(sample)
        return 1000.0 * (time.perf_counter() - start)

    median_of(timed, replace(table, samples=table.samples[:1]))  # only to warm up
    return median_of(timed, replace(table, samples=table.samples[1:] or table.samples))


def embed(work: Work) -> tuple[dict[str, Floats], dict[str, str], Cost]:
    """Embeddings of all samples by the frozen network, mean over its moments."""
    import torch

    from stillmotion.data.dataset import VideoDataset
    from stillmotion.device import pick_device
    from stillmotion.features import weights_hash
    from stillmotion.measure import Reading, measure_cost
    from stillmotion.models.factory import load_model
    from stillmotion.predictions import predict_table

    if work.model is None:
        raise ValueError("baseline frame_linear needs a network: set probe.name and probe.weights")
    torch.manual_seed(work.seed)
    encoder = load_model(work.model, num_classes=work.task.num_outputs)
    device = pick_device("auto")
    body = [name for name in encoder.state_dict() if name not in encoder.classifier_names()]
    views = {name: view.to_dict() for name, view in encoder.views.items()}
    settings = {"config": encoder.config, "views": views, "weights": weights_hash(encoder, body)}

    def compute(samples: Sequence[Sample]) -> tuple[dict[str, Floats], dict[str, str]]:
        table = replace(work.both, samples=tuple(samples))
        try:
            found = predict_table(encoder, table, None, outputs=("embedding",), workers=work.workers, device=device)
        except ValueError:
            items = VideoDataset(table, None, encoder.views)
            reasons = {s.id: items[i].get("error") for i, s in enumerate(table)}
            if not all(reasons.values()):
                raise
            return {}, {id: str(reason) for id, reason in reasons.items()}
        means = found.outputs["embedding"].mean(1)
        return dict(zip(found.ids, means, strict=True)), found.errors

    cost = measure_cost(encoder, work.test, Reading(device=device))
    rows, errors = _cached(work, "frame_linear", settings, compute)
    classifier = sum(encoder.state_dict()[name].numel() for name in encoder.classifier_names())
    cost["params"] = (cost["params"] or 0) - classifier
    return rows, errors, cost


def read_features(work: Work, name: str, read: Callable[[Sample], Floats]) -> tuple[dict[str, Floats], dict[str, str]]:
    """Features of all samples, each file read alone, in processes of their own if there are several workers."""

    def compute(samples: Sequence[Sample]) -> tuple[dict[str, Floats], dict[str, str]]:
        from stillmotion.data.pool import Failure, run_apart

        attempts = [_Attempt(read, s) for s in samples]
        if work.workers > 1 and len(samples) > 1:
            answers = dict(run_apart(_attempt, attempts, workers=work.workers, timeout=TIMEOUT))
        else:
            answers = {i: _attempt(a) for i, a in enumerate(attempts)}
        rows: dict[str, Floats] = {}
        errors: dict[str, str] = {}
        for i, answer in answers.items():
            if isinstance(answer, np.ndarray):
                rows[samples[i].id] = answer
            else:
                errors[samples[i].id] = answer.reason if isinstance(answer, Failure) else str(answer)
        return rows, errors

    return _cached(work, name, {"version": 1}, compute)


@dataclass(frozen=True)
class _Attempt:
    read: Callable[[Sample], Floats]
    sample: Sample


def _attempt(attempt: _Attempt) -> Floats | str:
    """In a worker: features, or the reason why not."""
    try:
        return attempt.read(attempt.sample)
    except ValueError as error:
        return str(error)


def _cached(
    work: Work,
    name: str,
    settings: Mapping[str, Any],
    compute: Callable[[Sequence[Sample]], tuple[dict[str, Floats], dict[str, str]]],
) -> tuple[dict[str, Floats], dict[str, str]]:
    """Features by sample id: the cache's for equal settings and unchanged files, the others computed."""
    samples = {s.id: s for s in work.both}
    keys = {id: _file_key(s) for id, s in samples.items()}
    stored: dict[str, Floats] = {}
    path = None
    if work.cache is not None:
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:12]
        path = work.cache / f"{name}-{digest}.npz"
        stored = _load(path)
    lacking = [s for id, s in samples.items() if keys[id] not in stored]
    errors: dict[str, str] = {}
    if lacking:
        rows, errors = compute(lacking)
        stored |= {keys[id]: row for id, row in rows.items()}
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = io.BytesIO()
            np.savez(file, keys=np.array(list(stored)), rows=np.stack(list(stored.values())))
            write_atomic(path, file.getvalue())
    return {id: stored[key] for id, key in keys.items() if key in stored}, errors


def _load(path: Path) -> dict[str, Floats]:
    if not path.exists():
        return {}
    with np.load(path) as data:
        return dict(zip(data["keys"].tolist(), data["rows"], strict=True))


def _file_key(sample: Sample) -> str:
    """Changes with the sample and with its file."""
    try:
        state = sample.path.stat()
        parts = [str(sample.path.resolve()), state.st_size, state.st_mtime_ns]
    except OSError:
        parts = [str(sample.path), 0, 0]
    extent = [sample.start, sample.end, sample.unit]
    return hashlib.sha256(json.dumps([*parts, *extent]).encode()).hexdigest()[:24]
