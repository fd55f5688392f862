"""Training steps on a GPU: clips a second, share of the device's own ceiling, and what bounds each.

    python benchmarks/gpu.py [--rows hallucinet_live p3d_63 ...] [--batch 64] [--steps 30] [--rounds 3] [--workers 8]
        [--device cuda] [--no-compile] [--output FILE.json]
    python benchmarks/gpu.py --tiny      every row once, with the smallest networks and pictures, on the CPU

Method, optimiser (fused), precision, memory format, compilation and Lightning's trainer are those of `stillmotion
train`. Frames wait in (pinned) memory as uint8, so that copying them is part of the step, and normalising them on the
device, too. Each row climbs a ladder: `fp32`, `bf16` (mixed), `+layout` (`channels_last`), `+compile`, `+graphs`
(`compile: reduce-overhead`, CUDA graphs); all rungs take turns in every round, and the table has medians.

MFU is the arithmetic of a step (forward and backward of everything that runs, counted by torch) over its time and over
the ceiling: the best product of two square bf16 matrices that this device made at the start. `bound` says where the
time of the fastest rung goes: `matrix` (convolutions and products), `memory` (all other kernels: norms, activations,
copies) or `idle` (the device waits for the processor). `fed` is the throughput of the row `hallucinet_cached` with
frames from a frame store and loader processes over that with frames in memory: 1.00 where the loader keeps ahead.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.table import Table as Grid
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.loader import made_clips
from stillmotion.callbacks import make_trainer, quiet_lightning
from stillmotion.config import DataConfig, MethodConfig, OptimConfig, TrainerConfig
from stillmotion.data.pack import pack
from stillmotion.data.table import Sample, Table
from stillmotion.engine import Engine, Loaders
from stillmotion.loaders import VideoLoaders
from stillmotion.memory import keep_memory
from stillmotion.methods import build_method
from stillmotion.methods.base import Method
from stillmotion.models.encoder import Batch, Encoder, StoredFeatures, to_channels_last
from stillmotion.models.factory import create_model
from stillmotion.run import environment
from stillmotion.tasks import Classification
from stillmotion.view import View

TASK = Classification(tuple(f"class{i:03}" for i in range(101)))
WARM = 4
"""Steps before the clock starts: kernels are chosen and graphs recorded in them."""
RUNGS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "32-true", "channels_last": False},
    "bf16": {"precision": "bf16-mixed", "channels_last": False},
    "+layout": {"precision": "bf16-mixed"},
    "+compile": {"precision": "bf16-mixed", "compile": True},
    "+graphs": {"precision": "bf16-mixed", "compile": "reduce-overhead"},
}
MATRIX = (
    "gemm",
    "conv",
    "cutlass",
    "cudnn",
    "wgrad",
    "dgrad",
    "fprop",
    "xmma",
    "matmul",
    "nvjet",
    "::mm",
    "addmm",
    "bmm",
)
"""Parts of the names of kernels that multiply."""


def network(name: str, size: int, **options: Any) -> Encoder:
    """A network on pictures of this size."""
    return create_model(name, num_classes=101, view={"size": size, **options.pop("view", {})}, **options)


def methods(tiny: bool) -> dict[str, Callable[[], Method]]:
    """The rows; in `tiny` the smallest networks that they can be made of."""
    image, size = ("timm/test_efficientnet", 32) if tiny else ("timm/resnet50", 224)
    video, clip = ("resnet3d_10", 32) if tiny else ("resnext3d_101", 112)
    frames = {"view": {"num_frames": 8 if tiny else 16}, **({"width": 4} if tiny else {})}
    flow = {"kind": "flow", "num_frames": 2 if tiny else 10}

    def hallucinate(teacher: Encoder) -> Method:
        return build_method(MethodConfig(name="hallucinate"), network(image, clip), {"teacher": teacher}, TASK)

    def p3d(name: str) -> Method:
        return build_method(MethodConfig(), network(name, 32 if tiny else 160), {}, TASK)

    def mars() -> Method:
        student = network(video, clip, **frames)
        stored = StoredFeatures("memory", embedding_dim=student.embedding_dim)
        return build_method(MethodConfig(name="mars", options={"weight": 50.0}), student, {"teacher": stored}, TASK)

    def stddcn() -> Method:
        base = "timm/resnet18" if tiny else image
        motion = network(base, size, view=flow)
        return build_method(MethodConfig(name="stddcn"), network(base, size), {"teacher": motion}, TASK)

    return {
        "hallucinet_live": lambda: hallucinate(network(video, clip, **frames)),
        "hallucinet_cached": lambda: hallucinate(StoredFeatures("memory", embedding_dim=64 if tiny else 2048)),
        "p3d_63": lambda: p3d("p3d_63"),
        "p3d_199": lambda: p3d("p3d_199"),
        "mars": mars,
        "stddcn": stddcn,
    }


class Memory:
    """Loaders over batches in memory: uint8 frames, and random rows where the teacher is stored.

    Args:
        views: What a batch holds.
        teacher: Gives stored rows their width.
        size: Samples a batch.
        steps: Batches.
    """

    def __init__(self, method: Method, size: int, steps: int) -> None:
        self.steps_per_epoch = steps
        self.train_ids, self.val_ids = [str(i) for i in range(size)], list[str]()
        random = torch.Generator().manual_seed(0)
        batch: dict[str, Any] = {"index": torch.arange(size), "target": torch.arange(size) % 101}
        for key, view in method.views().items():
            if view.kind == "feature":
                width = method.encoder("teacher").embedding_dim
                batch[key] = torch.rand(size, view.num_moments, width, generator=random)
            else:
                shape = (size, view.num_moments, view.num_frames, view.channels, *view.size)
                batch[key] = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
        pinned = torch.cuda.is_available()
        self.batch: Batch = {key: value.pin_memory() if pinned else value for key, value in batch.items()}

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """All epochs are alike."""

    def __iter__(self) -> Iterator[Batch]:
        return iter([self.batch] * self.steps_per_epoch)

    def train(self, rank: int, world_size: int) -> "tuple[Memory, Memory]":
        """Itself."""
        return self, self

    def val(self, rank: int, world_size: int) -> Iterable[Batch] | None:
        """None."""
        return None


class Clock(Callback):
    """Seconds a step, from the end of the warm-up to the last step.

    Args:
        watched: Records these steps.
    """

    def __init__(self, watched: profile | None = None) -> None:
        self.count, self.began, self.seconds, self.watched = 0, 0.0, 0.0, watched

    def on_train_batch_end(self, *_: Any) -> None:
        self.count += 1
        if self.count == WARM:
            synchronise()
            if self.watched:
                self.watched.start()
            self.began = time.perf_counter()

    def on_train_epoch_end(self, *_: Any) -> None:
        synchronise()
        self.seconds = (time.perf_counter() - self.began) / (self.count - WARM)
        if self.watched:
            self.watched.stop()


def synchronise() -> None:
    """Waits for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def engine_of(make: Callable[[], Method], rung: str, loaders: Callable[[Method], Loaders]) -> Engine:
    """A training as `stillmotion train` prepares it."""
    torch.manual_seed(0)
    method, config = make(), TrainerConfig(**RUNGS[rung])
    if config.channels_last:
        to_channels_last(method)
    if config.compile:
        torch._functorch.config.donated_buffer = False
        method.student.compile(mode=config.compile if isinstance(config.compile, str) else None)
    # So small that 199 layers of random weights stay finite; the arithmetic of a step is the same.
    engine = Engine(method, OptimConfig(optimiser="sgd", lr=1e-8, schedule="constant"), loaders(method))
    engine.gradients = {"measured": False}  # done once a training, not part of a step
    return engine


def seconds(engine: Engine, rung: str, device: str, watched: profile | None = None) -> float:
    """Of one step."""
    clock = Clock(watched)
    config = TrainerConfig(accelerator="gpu" if device == "cuda" else "cpu", devices=1, **RUNGS[rung])
    make_trainer(config, engine.config, [clock], epochs=1).fit(engine)
    return clock.seconds


def ceiling(device: str, size: int, rounds: int = 10) -> float:
    """Floating point operations a second of the best product of two square bf16 matrices."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(rounds):
        synchronise()
        start = time.perf_counter()
        a @ b
        synchronise()
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


def operations(method: Method, batch: Batch, device: str) -> float:
    """Floating point operations of a step: forward and backward of all networks that run."""
    method.to(device).train()
    with FlopCounterMode(display=False) as counter:
        out = method({k: v.to(device) for k, v in batch.items() if isinstance(v, torch.Tensor)})
        torch.autograd.backward(out["loss"])
    return float(counter.get_total_flops())


def bound(engine: Engine, rung: str, device: str) -> dict[str, float]:
    """Shares of a step's time: `matrix`, `memory`, `idle`."""
    on_gpu = device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    seen = profile(activities=activities)
    wall = seconds(engine, rung, device, seen) * (engine.loaders.steps_per_epoch - WARM)
    times = {e.key: (e.self_device_time_total if on_gpu else e.self_cpu_time_total) / 1e6 for e in seen.key_averages()}
    if not on_gpu:  # what Lightning does around the step is not the step
        times = {name: spent for name, spent in times.items() if name.startswith("aten::")}
    matrix = sum(spent for name, spent in times.items() if any(part in name.lower() for part in MATRIX))
    busy = sum(times.values())
    whole = max(wall, busy)
    return {"matrix": matrix / whole, "memory": (busy - matrix) / whole, "idle": 1.0 - busy / whole}


def fed(make: Callable[[], Method], arguments: argparse.Namespace, rung: str, in_memory: float) -> float:
    """Throughput with frames from a frame store over that with frames in memory."""

    def loaders(method: Method) -> VideoLoaders:
        views: dict[str, View] = {k: v for k, v in method.views().items() if v.kind != "feature"}
        optim = OptimConfig(batch_size=arguments.batch, steps_per_epoch=arguments.steps + WARM)
        data = DataConfig(packed=str(folder / "packed"), workers=arguments.workers)
        return VideoLoaders(table, None, TASK, views, data, optim, seed=0)

    def plain() -> Method:
        # The same student without its teacher, whose rows cost nothing.
        method = make()
        options = {"weight": 0.0}
        return build_method(MethodConfig(name="hallucinate", options=options), method.student, {}, TASK)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "clips").mkdir()
        made = made_clips(folder / "clips", arguments.batch * (1 if arguments.tiny else 4))
        samples = [Sample(s.path, s.name, {"label": TASK.class_names[0]}) for s in made]
        pack(Table(tuple(samples)), folder / "packed", workers=arguments.workers, progress=False)
        rows = arguments.batch * (arguments.steps + WARM)
        table = Table(tuple(itertools.islice(itertools.cycle(samples), rows)))
        return in_memory / seconds(engine_of(plain, rung, loaders), rung, arguments.device)


def measure(name: str, make: Callable[[], Method], arguments: argparse.Namespace, top: float) -> dict[str, Any]:
    """A row."""

    def loaders(method: Method) -> Memory:
        return Memory(method, arguments.batch, arguments.steps + WARM)

    method = make()
    flops = operations(method, Memory(method, 2, 1).batch, arguments.device) * arguments.batch / 2
    rungs = [rung for rung in RUNGS if not (arguments.no_compile and "compile" in RUNGS[rung])]
    rungs = ["+layout"] if arguments.tiny else rungs
    engines = {rung: engine_of(make, rung, loaders) for rung in rungs}
    times: dict[str, list[float]] = {rung: [] for rung in rungs}
    for _ in range(arguments.rounds):
        for rung in rungs:
            times[rung].append(seconds(engines[rung], rung, arguments.device))
    medians = {rung: statistics.median(values) for rung, values in times.items()}
    best = min(medians, key=lambda rung: medians[rung])
    result = {
        "clips_per_second": {rung: arguments.batch / value for rung, value in medians.items()},
        "best": best,
        "operations": flops,
        "mfu": flops / medians[best] / top,
        "shares": bound(engines[best], best, arguments.device),
        "seconds": times,
    }
    if name == "hallucinet_cached":
        result["fed"] = fed(make, arguments, best, medians[best])
    return result


def show(results: dict[str, Any], arguments: argparse.Namespace, title: str) -> None:
    """Prints the table."""
    grid = Grid("row", *(f"{rung} clips/s" for rung in RUNGS), "best", "MFU", "bound", "fed", title=title)
    for name, row in results.items():
        rates = [f"{row['clips_per_second'][rung]:.1f}" if rung in row["clips_per_second"] else "" for rung in RUNGS]
        largest = max(row["shares"], key=lambda part: row["shares"][part])
        shares = ", ".join(f"{part} {share:.2f}" for part, share in row["shares"].items())
        kept = f"{row['fed']:.2f}" if "fed" in row else ""
        grid.add_row(name, *rates, row["best"], f"{row['mfu']:.3f}", f"{largest} ({shares})", kept)
    Console(width=180).print(grid)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(methods(tiny=True)), default=list(methods(tiny=True)))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    for option, value in {"batch": 64, "steps": 30, "rounds": 3, "workers": 8}.items():
        parser.add_argument(f"--{option}", type=int, default=value)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="shows that everything runs; its figures mean nothing")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.batch, arguments.steps, arguments.rounds, arguments.workers, arguments.device = 2, 2, 1, 0, "cpu"
    keep_memory()  # as every command does
    top = ceiling(arguments.device, 256 if arguments.device == "cpu" else 8192)
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU"
    results: dict[str, Any] = {}
    with quiet_lightning():
        made = methods(arguments.tiny)
        for row in arguments.rows:
            results[row] = measure(row, made[row], arguments, top)
            print(f"{row}: done", file=sys.stderr, flush=True)
    show(results, arguments, f"{name}, batch {arguments.batch}, ceiling {top / 1e12:.1f} TFLOP/s (bf16)")
    if arguments.output:
        settings = {key: str(value) for key, value in vars(arguments).items()}
        document = {
            "environment": environment(),
            "device": name,
            "ceiling": top,
            "arguments": settings,
            "rows": results,
        }
        arguments.output.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
