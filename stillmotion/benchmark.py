"""`stillmotion benchmark`: what networks cost on this machine, side by side.

Networks are timed in turn, round after round, so that a machine that slows down slows all of them.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from stillmotion.config import ModelConfig
from stillmotion.device import pick_device
from stillmotion.export.formats import format_of
from stillmotion.files import write_atomic
from stillmotion.memory import resident_mib
from stillmotion.models.cost import count_cost
from stillmotion.models.encoder import Encoder, to_channels_last
from stillmotion.models.factory import load_model
from stillmotion.models.pretrained import is_run, read_config
from stillmotion.run import environment

RESET_PEAK = Path("/proc/self/clear_refs")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one network costs.

    Args:
        name: As given.
        frames, size: What it sees of a clip, the frames of all its views; the size of the first.
        params: Parameters.
        gmacs: 1e9 multiply-accumulates a clip.
        ms: Median milliseconds of a run, by batch size.
        gmacs_per_s: Sustained at the largest batch size.
        memory_mib: Most memory of a run at the largest batch size, without the weights; None where it cannot be read.
    """

    name: str
    frames: int
    size: tuple[int, int]
    params: int
    gmacs: float
    ms: dict[int, float]
    gmacs_per_s: float
    memory_mib: float | None


def benchmark(
    models: Sequence[ModelConfig],
    *,
    batch_sizes: Sequence[int] = (1, 8),
    train: bool = False,
    rounds: int = 5,
    threads: int = 1,
    device: str = "cpu",
    num_classes: int = 400,
    output: str | Path | None = None,
) -> list[Measured]:
    """Measures networks; the entry of `stillmotion benchmark`.

    Args:
        models: By name or run folder.
        batch_sizes: Clips a run.
        train: Time a forward and backward pass in training mode, not a forward pass in evaluation.
        rounds: Timed runs of each network and batch size; the median counts.
        threads: For computing on the CPU.
        device: cpu or cuda.
        num_classes: Of the classifier, for networks that are not trained yet.
        output: JSON file to write as well.

    Returns:
        One entry a model, in the given order.

    Raises:
        ValueError: Nothing to measure, an unknown network, a batch size or number of rounds below 1.
    """
    if not models:
        raise ValueError("name at least one model, such as `stillmotion benchmark resnext3d_101 timm/mobilenetv2_100`")
    if exported := [config.name for config in models if format_of(config.name) is not None]:
        raise ValueError(f"{exported[0]}: an exported file is measured on videos; name some with --videos")
    if min([rounds, threads, *batch_sizes], default=0) < 1:
        raise ValueError("batch_sizes, rounds and threads must be at least 1")
    device = pick_device(device)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        encoders = [_load(config, num_classes, train).to(device) for config in models]
        measured = _measure(models, encoders, sorted(batch_sizes), train=train, rounds=rounds, device=device)
    finally:
        torch.set_num_threads(before)
    if output is not None:
        where = torch.cuda.get_device_name() if device == "cuda" else environment()["processor"]
        facts = {"device": where, "threads": threads, "torch": torch.__version__, "train": train}
        write_atomic(Path(output), json.dumps({**facts, "models": [asdict(m) for m in measured]}, indent=2) + "\n")
    return measured


def _load(config: ModelConfig, num_classes: int, train: bool) -> Encoder:
    if is_run(config.name):
        num_classes = read_config(Path(config.name))["model"]["num_classes"]
    encoder = load_model(config, num_classes=num_classes).train(train)
    to_channels_last(encoder)  # as a training has them
    return encoder


def _measure(
    models: Sequence[ModelConfig],
    encoders: Sequence[Encoder],
    batch_sizes: Sequence[int],
    *,
    train: bool,
    rounds: int,
    device: str,
) -> list[Measured]:
    times: dict[tuple[int, int], list[float]] = {}
    memory: dict[int, float | None] = {}
    for size in batch_sizes:
        runs = [_runner(encoder, size, train=train, device=device) for encoder in encoders]
        for number, run in enumerate(runs):
            memory[number] = _peak_mib(run, device)  # warms up, too
        for _ in range(rounds):
            for number, run in enumerate(runs):
                times.setdefault((number, size), []).append(_seconds(run, device))
    found = []
    for number, (config, encoder) in enumerate(zip(models, encoders, strict=True)):
        (view, *others) = encoder.views.values()
        frames = sum(v.num_frames * v.num_shown for v in (view, *others))
        cost = count_cost(encoder)
        ms = {size: 1000 * statistics.median(times[number, size]) for size in batch_sizes}
        largest = batch_sizes[-1]
        work = cost.gmacs * (3 if train else 1)  # a backward pass multiplies twice as much
        found.append(Measured(
            name=config.name, frames=frames, size=view.size, params=cost.params,
            gmacs=cost.gmacs, ms=ms, gmacs_per_s=work * largest / ms[largest] * 1000, memory_mib=memory[number],
        ))  # fmt: skip
    return found


def _runner(encoder: Encoder, batch_size: int, *, train: bool, device: str) -> Callable[[], None]:
    shapes = encoder.input_shapes(batch_size)
    inputs = [torch.randint(0, 256, shape, dtype=torch.uint8, device=device) for shape in shapes]

    def run() -> None:
        with torch.set_grad_enabled(train):
            outputs = encoder(*inputs)
            if train:
                outputs["logits"].logsumexp(1).mean().backward()
                encoder.zero_grad()

    return run


def _seconds(run: Callable[[], None], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _peak_mib(run: Callable[[], None], device: str) -> float | None:
    """Most memory that a run holds beyond what was held before it; Linux or CUDA."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - held) / 2**20
    try:
        RESET_PEAK.write_text("5")  # Linux: the peak starts again from what is held now
    except OSError:
        run()
        return None
    before = resident_mib("now")
    run()
    peak = resident_mib("peak")
    return None if before is None or peak is None else max(0.0, peak - before)


def table_rows(measured: Sequence[Measured]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells for a person; the last column compares with the first model, at the largest batch size."""
    sizes: Mapping[int, float] = measured[0].ms
    heads = ["model", "sees", "M params", "GMACs", *(f"ms (batch {size})" for size in sizes), "GMAC/s", "MiB", "speed"]
    largest = max(sizes)
    rows = [
        [m.name, f"{m.frames}x{m.size[0]}x{m.size[1]}", f"{m.params / 1e6:.2f}", f"{m.gmacs:.3g}",
         *(f"{m.ms[size]:.1f}" for size in sizes), f"{m.gmacs_per_s:.1f}",
         "" if m.memory_mib is None else f"{m.memory_mib:.0f}", f"{measured[0].ms[largest] / m.ms[largest]:.2f}x"]
        for m in measured
    ]  # fmt: skip
    return heads, rows
