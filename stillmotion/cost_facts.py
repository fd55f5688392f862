"""What is known of a network of a cost card beside its times: its format, its size, its accuracy."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stillmotion.config import ModelConfig
from stillmotion.cost_worker import NUM_CLASSES, Answered, Loaded
from stillmotion.data.table import Sample
from stillmotion.export.deliver import report_path
from stillmotion.export.formats import format_of
from stillmotion.networks import open_exported
from stillmotion.results import read_results

Facts = dict[str, Any]


def facts_of(model: str) -> Facts | None:
    """What an exported file says of itself; None of other models."""
    return None if format_of(model) is None else open_exported(model, device="cpu")[1]


def kind_of(model: str, facts: Facts | None) -> str:
    """`torch`, or format and precision of an exported file."""
    return "torch" if facts is None else f"{Path(model).suffix[1:]} {facts['precision']}"


def size_of(config: ModelConfig, loaded: Loaded, facts: Facts | None) -> tuple[int | None, float | None]:
    """Parameters and GMACs a video, of an exported file those of the network that it was made from.

    None and None where torch is not installed.
    """
    try:
        from stillmotion.models.cost import count_video_cost
        from stillmotion.models.factory import create_model, is_trained, load_model
        from stillmotion.models.pretrained import load_pretrained
    except ModuleNotFoundError:
        return None, None
    if facts is not None:
        encoder = create_model(**facts["model"])
    elif is_trained(config.name):
        encoder = load_pretrained(config.name, weights=False)[0]
    else:
        encoder = load_model(replace(config, weights="random"), num_classes=NUM_CLASSES)
    encoder.views = loaded.views
    cost = count_video_cost(encoder)
    return cost.params, cost.gmacs


def megabytes_of(model: str, params: int | None) -> float | None:
    """Size of the weights on disk, 1e6 bytes; of a network by name that of its parameters in float32."""
    path, kind = Path(model), format_of(model)
    if kind is not None:
        return sum(path.with_suffix(s).stat().st_size for s in (kind.suffix, *kind.beside)) / 1e6
    weights = path / "model.safetensors"
    if weights.is_file():
        return weights.stat().st_size / 1e6
    return None if params is None else 4 * params / 1e6


def accuracy_of(
    model: str, loaded: Loaded, answers: Sequence[tuple[Sample, Answered]]
) -> tuple[str | None, float | None, str | None]:
    """Metric, value and where it is from: the labels of these videos, or else what the training or export found."""
    task = loaded.task
    if task is None:
        return None, None, None
    metric = task.metric_kinds[0]
    labelled = [(sample, answer) for sample, answer in answers if task.has_label(sample)]
    if labelled:
        logits = np.stack([answer.logits for _, answer in labelled])
        targets = task.encode_all(sample for sample, _ in labelled)
        return metric, task.metrics(logits, targets).get(metric), "videos"
    known = _known_accuracy(Path(model), metric)
    return metric, known, None if known is None else "results" if format_of(model) is None else "export"


def _known_accuracy(model: Path, metric: str) -> float | None:
    if format_of(model) is not None:
        report = report_path(model)
        found = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}
        return ((found.get("accuracy") or {}).get("file") or {}).get(metric)
    if not (model / "results.json").is_file():
        return None
    return read_results(model)[0]["metrics"].get(metric, {"mean": None})["mean"]
