"""Loader throughput over the student-only limit: frames from videos, and from the frame store.

    python benchmarks/loader.py [--data FOLDER] [--size 112] [--batch 32] [--workers 1] [--rounds 5] [--steps 12]

The limit is the training step of MobileNetV3-small on a batch that is already in memory. Every source takes its turn
in every round, so the ratios hold on a machine that others use too. FOLDER holds `arid6/labels.csv`; without it, clips
like those (320x240, 69 frames, dark) are made.
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import timm
import torch
from rich.console import Console
from rich.table import Table as Grid

from stillmotion.data.dataset import VideoDataset
from stillmotion.data.loader import EpochBatches, make_loader
from stillmotion.data.pack import pack
from stillmotion.data.table import Sample, Table, read_table
from stillmotion.memory import keep_memory
from stillmotion.view import Augment, View

Stream = Iterator[dict[str, Any]]
SHORT_SIDE = 128
AHEAD = 3
"""Batches that a loader has ready after its pause; they are taken before the clock starts."""


def made_clips(folder: Path, count: int = 64) -> Table:
    """Dark noisy clips with a moving square, 320x240, 69 frames."""
    samples = []
    for k in range(count):
        rng = np.random.default_rng(k)
        path = folder / f"{k}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=30, options={"crf": "14"})
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
            for t in range(69):
                frame = rng.integers(0, 30, (240, 320, 3), np.uint8)
                frame[80:160, 10 + 3 * t : 70 + 3 * t] += 40
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
            container.mux(stream.encode())
        samples.append(Sample(path, path.name, {"label": "a"}))
    return Table(tuple(samples))


class Student:
    """A training step of MobileNetV3-small."""

    def __init__(self) -> None:
        self.net = timm.create_model("mobilenetv3_small_100", num_classes=6).to(memory_format=torch.channels_last)
        self.optimiser = torch.optim.Adam(self.net.parameters())

    def step(self, batch: dict[str, Any]) -> None:
        """One step on the batch's frames."""
        x = batch["student/frames"].flatten(0, 2).to(memory_format=torch.channels_last).float().div(255)
        loss = torch.nn.functional.cross_entropy(self.net(x), torch.zeros(len(x), dtype=torch.int64))
        self.optimiser.zero_grad()
        torch.autograd.backward(loss)
        self.optimiser.step()


def endless(table: Table, args: argparse.Namespace, **source: Any) -> Stream:
    """Batches of one epoch after the other."""
    views = {"student/frames": View(size=(args.size, args.size), moment="random")}
    augment = Augment(min_area=0.5, flip=0.5)
    dataset = VideoDataset(table, None, views, random=True, augment=augment, **source)
    batches = EpochBatches(len(table), args.batch, drop_last=True)
    loader = make_loader(dataset, batches, workers=args.workers)
    for epoch in itertools.count():
        batches.set_epoch(epoch)
        yield from loader


def seconds(student: Student, stream: Stream, steps: int) -> float:
    """Of one step, steady state."""
    for _ in range(AHEAD):
        student.step(next(stream))
    start = time.perf_counter()
    for _ in range(steps):
        student.step(next(stream))
    return (time.perf_counter() - start) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with arid6/labels.csv")
    for name, value in {"size": 112, "batch": 32, "workers": 1, "rounds": 5, "steps": 12}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    keep_memory()  # as every command does
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        table = read_table(args.data / "arid6" / "labels.csv") if args.data else made_clips(folder)
        streams: dict[str, Stream] = {"videos": endless(table, args, short_side=SHORT_SIDE)}
        sizes = {"videos": sum(s.path.stat().st_size for s in table)}
        for codec in ("jpeg", "raw"):
            report = pack(table, folder / codec, short_side=SHORT_SIDE, codec=codec, workers=args.workers)
            streams[f"frame store, {codec}"] = endless(table, args, packed=folder / codec)
            sizes[f"frame store, {codec}"] = report.size
        in_memory = next(streams["videos"])
        streams["in memory (the limit)"] = itertools.repeat(in_memory)
        student = Student()
        times: dict[str, list[float]] = {name: [] for name in streams}
        for _, (name, stream) in itertools.product(range(args.rounds), streams.items()):
            times[name].append(seconds(student, stream, args.steps))
    show(times, sizes, args)


def show(times: dict[str, list[float]], sizes: dict[str, int], args: argparse.Namespace) -> None:
    """Prints medians over the rounds; ratios are taken round by round."""
    limit = times["in memory (the limit)"]
    note = f"MobileNetV3-small, batch {args.batch}, {args.size}x{args.size}, {args.workers} loader process(es), "
    grid = Grid(title=note + f"{torch.get_num_threads()} threads, {os.cpu_count()} cores, torch {torch.__version__}")
    for column in ("frames from", "ms a step", "of the limit", "lowest, highest round", "MiB"):
        grid.add_column(column)
    for name, values in times.items():
        ratios = [best / value for best, value in zip(limit, values, strict=True)]
        spread = f"{min(ratios):.2f}, {max(ratios):.2f}"
        size = f"{sizes[name] / 2**20:.0f}" if name in sizes else ""
        grid.add_row(name, f"{1e3 * statistics.median(values):.0f}", f"{statistics.median(ratios):.2f}", spread, size)
    Console(width=120).print(grid)


if __name__ == "__main__":
    main()
