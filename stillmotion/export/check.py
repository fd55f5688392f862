"""Whether a file gives the network's answers: on three batch sizes, and on every sample of a table."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stillmotion.data.table import Sample
from stillmotion.export.formats import Arrays, Run
from stillmotion.export.frames import Frames, rows_of
from stillmotion.export.graph import Network
from stillmotion.networks import open_exported
from stillmotion.predict import Predictor

BATCH_SIZES = (1, 2, 5)
TOLERANCE = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 1e-1}
"""Largest difference of a logit, as a share of the largest logit (if that is above 1); int8 answers by its accuracy."""
RESIZED = 2
"""Largest difference of a pixel that the graph resizes, of 255."""

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Checked:
    """What a check found.

    Args:
        report: As JSON data.
        fault: Why the file must not be delivered; None if it may.
    """

    report: dict[str, Any]
    fault: str | None


@dataclass
class Answers:
    """Logits of both on the samples that could be read."""

    samples: list[Sample] = field(default_factory=list)
    torch: list[Logits] = field(default_factory=list)
    file: list[Logits] = field(default_factory=list)
    seconds: list[tuple[float, float]] = field(default_factory=list)
    rows: list[Arrays] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    geometry: list[NDArray[np.int16]] = field(default_factory=list)


def check(path: Path, network: Network, frames: Frames, *, precision: str, max_drop: float) -> Checked:
    """Compares a file with the network that it was written from.

    Args:
        path: The file, readable by `stillmotion.networks`.
        network: The graph in torch.
        frames: Real ones; without them random frames are taken, and no accuracy is measured.
        precision: Decides how far apart they may be.
        max_drop: Points that the main metric may lose.

    Raises:
        ValueError: The file cannot be read, or no sample can.
    """
    run, _ = open_exported(str(path), device="cpu")
    answers = _answers(Predictor.load(path, device="cpu"), network, frames) if frames.valid is not None else Answers()
    if frames.valid is not None and not answers.rows:
        name, reason = next(iter(answers.errors.items()))
        raise ValueError(f"{frames.valid.source}: none of {len(frames.valid)} samples can be read; {name}: {reason}")
    rows = answers.rows or [_random(network)]
    differences = _parity(run, network, rows)
    report: dict[str, Any] = {
        "frames": frames.where,
        "parity": {"largest_difference": differences, "tolerance": TOLERANCE.get(precision)},
    }
    worst = max(differences, key=lambda key: _badness(differences[key]))
    fault = None
    if not _badness(differences[worst]) <= TOLERANCE.get(precision, math.inf):
        fault = f"as its logits differ from the network's by {differences[worst]['absolute']:.2g} at {worst}"
    if answers.samples:
        report["accuracy"] = accuracy = _accuracy(frames, answers)
        drop = accuracy["drop"]
        if fault is None and drop is not None and drop > max_drop:
            fault = (f"as it loses {drop:.1f} points of {accuracy['metric']} on {frames.where} (agreement "
                     f"{accuracy['agreement']:.3f}): raise calibration_samples, float_layers or max_drop")  # fmt: skip
        report["ms"] = {name: 1e3 * median(t[i] for t in answers.seconds) for i, name in enumerate(("torch", "file"))}
    if answers.geometry:
        report["geometry"], beyond = _geometry(answers.geometry)
        fault = fault or beyond
    report["unreadable"] = answers.errors
    return Checked(report, fault)


def _random(network: Network) -> Arrays:
    return dict(zip(network.names, (x.numpy() for x in network.example(max(BATCH_SIZES))), strict=True))


def _badness(difference: dict[str, float]) -> float:
    return difference["relative"] if math.isfinite(difference["relative"]) else math.inf


def _answers(predictor: Predictor, network: Network, frames: Frames) -> Answers:
    """Runs both on every sample, the file as `stillmotion predict` does."""
    assert frames.valid is not None
    found, whole = Answers(), predictor.whole_frames
    for sample, inputs in frames.read(frames.predictor, frames.valid, found.errors):
        given = predictor.see(sample).inputs if whole else inputs
        times, logits = [], []
        for function, shown in ((frames.predictor.network, inputs), (predictor.network, given)):
            began = time.perf_counter()
            logits.append(function(shown))
            times.append(time.perf_counter() - began)
        found.samples.append(sample)
        found.torch.append(logits[0])
        found.file.append(logits[1])
        found.seconds.append((times[0], times[1]))
        if len(found.rows) < max(BATCH_SIZES):
            found.rows.append(rows_of(given, network.encoder.joins_moments))
            if whole:
                found.geometry += [
                    _rendered(resample, given[name]) - inputs[name].astype(np.int16)
                    for name, resample in zip(network.names, network.resamplers, strict=True)
                ]
    return found


@torch.inference_mode()
def _rendered(resample: Any, frames: NDArray[np.uint8]) -> NDArray[np.int16]:
    result: NDArray[np.int16] = resample(torch.from_numpy(frames)).numpy().astype(np.int16)
    return result


def _parity(run: Run, network: Network, rows: Sequence[Arrays]) -> dict[str, dict[str, float]]:
    """Largest differences of logits, by batch size and, where it is free, number of frames."""
    found = {}
    shape = {name: x.shape[1:] for name, x in rows[0].items()}
    alike = [row for row in rows if all(row[name].shape[1:] == shape[name] for name in shape)]
    joined = {name: np.concatenate([row[name] for row in alike]) for name in shape}
    sizes = [(f"batch size {size}", size, None) for size in BATCH_SIZES]
    for what, size, count in [*sizes, *((f"{count} frames", 2, count) for count in network.counts())]:
        batch = {name: x[np.arange(size) % len(x)] for name, x in joined.items()}
        if count is not None:
            assert network.axis is not None
            batch = {name: x.take(np.arange(count) % x.shape[network.axis], network.axis) for name, x in batch.items()}
        with torch.inference_mode():
            expected = network(*(torch.from_numpy(batch[name]) for name in network.names)).numpy()
        given = run(batch)
        error = float(np.abs(given - expected).max()) if given.shape == expected.shape else math.inf
        found[what] = {"absolute": error, "relative": error / max(1.0, float(np.abs(expected).max()))}
    return found


def _accuracy(frames: Frames, answers: Answers) -> dict[str, Any]:
    """Metrics of both, and how often they say the same."""
    task = frames.predictor.task
    targets = task.encode_all(answers.samples)
    logits = {"torch": np.stack(answers.torch), "file": np.stack(answers.file)}
    metrics = {name: task.metrics(values, targets) for name, values in logits.items()}
    main = task.metric_kinds[0]
    before, after = (metrics[name].get(main, math.nan) for name in logits)
    same = task.choices(logits["torch"]) == task.choices(logits["file"])
    return {
        "samples": len(answers.samples),
        "metric": main,
        "drop": 100.0 * (before - after) if math.isfinite(before) and math.isfinite(after) else None,
        "agreement": float(same.mean()) if same.size else None,
        "largest_difference": float(np.abs(logits["torch"] - logits["file"]).max()),
        **metrics,
    }


def _geometry(differences: Sequence[NDArray[np.int16]]) -> tuple[dict[str, float], str | None]:
    """How far frames resized in the graph are from those that training saw, in levels of 255."""
    largest = max(int(np.abs(d).max()) for d in differences)
    share = float(np.mean(np.concatenate([(d != 0).ravel() for d in differences])))
    if largest > RESIZED:
        beyond = f"as frames that it resizes differ by {largest} of 255 from those of training"
    else:
        beyond = None
    return {"largest_difference_of_255": largest, "share_that_differs": share}, beyond
