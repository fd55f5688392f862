"""Training step with a cached teacher, and with a live one, over the plain student step.

    python benchmarks/training.py [--students timm/resnet18 timm/mobilenetv3_small_100] [--size 112] [--batch 16]
        [--teacher resnext3d_101] [--skip-live] [--device cpu] [--rounds 5] [--steps 4] [--output FILE.json]

The steps are those of a training: method, optimiser and Lightning trainer as `stillmotion train` makes them, frames
from memory (the loader has its own benchmark), cached features read row by row from a feature store. `plain` trains
the student alone, `branch` the student with a hallucination branch but no teacher (what the larger network costs),
`cached` and `live` that with a teacher. All take turns in every round. On a CPU the time is that of all threads
together, so that neither threads nor a busy machine flatter; on a GPU it is wall time.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.table import Table as Grid

from stillmotion.callbacks import make_trainer, quiet_lightning
from stillmotion.config import MethodConfig, OptimConfig, TrainerConfig
from stillmotion.data.store import FeatureStore
from stillmotion.engine import Engine
from stillmotion.memory import keep_memory
from stillmotion.methods import build_method
from stillmotion.models.encoder import Batch, Encoder, StoredFeatures
from stillmotion.models.factory import create_model
from stillmotion.run import environment
from stillmotion.tasks import Classification
from stillmotion.view import View

TASK = Classification(tuple(f"class{i:03}" for i in range(101)))
WARM = 2
"""First steps of a round, which are not counted."""


class Memory:
    """Loaders over frames in memory; stored features come from their store.

    Args:
        views: What a batch holds.
        size: Samples a batch.
        steps: Batches.
        store: Where the views of stored features are read.
    """

    def __init__(self, views: dict[str, View], size: int, steps: int, store: FeatureStore) -> None:
        self.steps_per_epoch, self.size, self.store = steps, size, store
        self.train_ids = [f"{i}.mp4" for i in range(size)]
        self.val_ids: list[str] = []
        random = torch.Generator().manual_seed(0)
        self.stored = [key for key, view in views.items() if view.kind == "feature"]
        self.batch: dict[str, Any] = {"index": torch.arange(size), "target": torch.arange(size) % 101, "errors": []}
        for key, view in views.items():
            if view.kind != "feature":
                shape = (size, view.num_moments, view.num_frames, 3, *view.size)
                self.batch[key] = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """All epochs are alike."""

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.steps_per_epoch):
            rows = {key: [self.store.get(name, 0) for name in self.train_ids] for key in self.stored}
            yield {**self.batch, **{key: torch.from_numpy(np.stack(row)) for key, row in rows.items()}}

    def train(self, rank: int, world_size: int) -> "tuple[Memory, Memory]":
        """Itself."""
        return self, self

    def val(self, rank: int, world_size: int) -> Iterable[Batch] | None:
        """None."""
        return None


class Clock(Callback):
    """Seconds of every step: fetching, forward, backward, optimiser."""

    def __init__(self, device: str) -> None:
        self.device, self.times, self._last = device, list[float](), 0.0

    def on_train_batch_end(self, *_: Any) -> None:
        if self.device == "cpu":
            now = time.process_time()
        else:
            torch.accelerator.synchronize()
            now = time.perf_counter()
        self.times.append(now - self._last)
        self._last = now

    def take(self) -> float:
        """Median of the counted steps since the last call."""
        counted, self.times = self.times[WARM:], []
        return statistics.median(counted)


def variants(name: str, arguments: argparse.Namespace, teacher: Encoder, store: FeatureStore) -> dict[str, Engine]:
    """The trainings of a student."""
    stored = StoredFeatures(str(store.folder), embedding_dim=teacher.embedding_dim)
    no_teacher = {"weight": 0.0, "hallucinated_dim": teacher.embedding_dim}
    methods: dict[str, tuple[MethodConfig, dict[str, Encoder]]] = {
        "plain": (MethodConfig(), {}),
        "branch": (MethodConfig(name="hallucinate", options=no_teacher), {}),
        "cached": (MethodConfig(name="hallucinate"), {"teacher": stored}),
        "live": (MethodConfig(name="hallucinate"), {"teacher": teacher}),
    }
    if arguments.skip_live:
        methods.pop("live")
    engines = {}
    for label, (config, teachers) in methods.items():
        torch.manual_seed(0)
        student = create_model(name, num_classes=101, view={"size": arguments.size})
        method = build_method(config, student, teachers, TASK)
        for parameter in method.student.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        loaders = Memory(method.views(), arguments.batch, arguments.steps + WARM, store)
        engines[label] = Engine(method, OptimConfig(schedule="constant"), loaders)
        engines[label].gradients = {"measured": False}  # done once a training, not part of a step
    return engines


def measure(engines: dict[str, Engine], arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds a step of each training, one number a round."""
    times: dict[str, list[float]] = {label: [] for label in engines}
    config = TrainerConfig(accelerator="cpu" if arguments.device == "cpu" else "gpu", devices=1)
    for _ in range(arguments.rounds):
        for label, engine in engines.items():
            clock = Clock(arguments.device)
            trainer = make_trainer(config, engine.config, [clock], epochs=1)
            trainer.fit(engine)
            times[label].append(clock.take())
    return times


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", nargs="+", default=["timm/resnet18", "timm/mobilenetv3_small_100"])
    parser.add_argument("--teacher", default="resnext3d_101")
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--skip-live", action="store_true", help="the live teacher takes minutes a round on a CPU")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    keep_memory()  # as every command does
    teacher = create_model(arguments.teacher, num_classes=101)
    grid = Grid(
        "student", "plain ms", "cached / plain", "live / plain", title=f"throughput over plain, {arguments.device}"
    )
    results: dict[str, Any] = {
        "environment": environment(),
        "arguments": {k: str(v) for k, v in vars(arguments).items()},
    }
    with tempfile.TemporaryDirectory() as temporary, quiet_lightning():
        folder = f"{temporary}/features"
        rng, width = np.random.default_rng(0), teacher.embedding_dim
        with FeatureStore.create(folder, {"made": "here"}, {"embedding": (1, width)}) as store:
            store.add((f"{i}.mp4", 0, {"embedding": rng.random((1, width))}) for i in range(arguments.batch))
        for name in arguments.students:
            times = measure(variants(name, arguments, teacher, FeatureStore(folder)), arguments)
            ratios = {
                k: [p / t for p, t in zip(times["plain"], spent, strict=True)]
                for k, spent in times.items()
                if k != "plain"
            }
            results[name] = {"seconds": times, "ratios": ratios}
            shown = [f"{statistics.median(r):.3f} ({min(r):.3f}-{max(r):.3f})" for r in ratios.values()]
            grid.add_row(name, f"{1000 * statistics.median(times['plain']):.0f}", *shown)
    Console().print(grid)
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
