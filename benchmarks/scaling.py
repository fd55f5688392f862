"""What a second process brings: loading with 1 and 2 loader processes, extraction in 1 and 2 processes.

    python benchmarks/scaling.py [--clips 32] [--rounds 5] [--teacher resnet3d_18] [--output FILE.json]

Throughput of two over that of one, both in turn in every round of one run; 2.00 is perfect. Each process computes on
one thread. Loading: 16 frames at 112 of made clips (320x240), from the videos and from a frame store, nothing is
trained. Extraction: `stillmotion extract`'s function (decoding, network, store), in two processes each on its half of
the clips. Beside the wall time stands the share of a core that a process got (its CPU time over the wall time): on a
machine that others use both processes get less, and the ratio says less about us.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
import sys

import torch
from rich.console import Console
from rich.table import Table as Grid

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.loader import made_clips
from stillmotion.config import DataConfig
from stillmotion.data.dataset import VideoDataset
from stillmotion.data.loader import EpochBatches, make_loader
from stillmotion.data.pack import pack
from stillmotion.data.table import Sample, Table
from stillmotion.extract import extract
from stillmotion.models.factory import create_model
from stillmotion.run import environment
from stillmotion.view import Augment, View


def load(table: Table, packed: Path | None, workers: int) -> float:
    """Seconds of an epoch, from the second batch of each process on."""
    views = {"student/clip": View(size=112, num_frames=16, moment="random")}
    dataset = VideoDataset(table, None, views, random=True, augment=Augment(min_area=0.5, flip=0.5), packed=packed)
    order = EpochBatches(len(table), 2)
    batches = iter(make_loader(dataset, order, workers=workers))
    for _ in range(workers):
        next(batches)
    start = time.perf_counter()
    for _ in batches:
        pass
    return (time.perf_counter() - start) / (len(order) - workers)


def _extract(table: Table, teacher: str, folder: Path, ready: "multiprocessing.synchronize.Barrier", out: Path) -> None:
    torch.set_num_threads(1)
    encoder = create_model(teacher, num_classes=0, view={"num_frames": 16, "size": 112})
    data = DataConfig(train="train", test=None, num_draws=1, workers=0)
    ready.wait()
    start, spent = time.perf_counter(), time.process_time()
    extract(table, encoder, folder, data=data, batch_size=4)
    wall = time.perf_counter() - start
    out.write_text(json.dumps([wall, (time.process_time() - spent) / wall]))


def extraction(table: Table, teacher: str, folder: Path, processes: int) -> tuple[float, float]:
    """Seconds until the last process is done, and the mean share of a core that each had."""
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(processes)
    outs = [folder / f"{k}.json" for k in range(processes)]
    workers = []
    for k, out in enumerate(outs):
        part = Table(table.samples[k::processes])
        workers.append(context.Process(target=_extract, args=(part, teacher, folder / f"store{k}", ready, out)))
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    found = [json.loads(out.read_text()) for out in outs]
    return max(wall for wall, _ in found), statistics.mean(share for _, share in found)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--teacher", default="resnet3d_18")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ratios: dict[str, list[float]] = {"loading, videos": [], "loading, frame store": [], "extraction": []}
    shares: list[float] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        made = made_clips(folder, arguments.clips)
        table = Table(tuple(Sample(s.path, s.name, dict(s.targets), split="train") for s in made))
        pack(table, folder / "packed", workers=0, progress=False)
        cases: dict[str, Callable[[int], float]] = {
            "loading, videos": lambda n: load(table, None, n),
            "loading, frame store": lambda n: load(table, folder / "packed", n),
        }
        for number in range(arguments.rounds):
            for name, case in cases.items():
                ratios[name].append(case(1) / case(2))
            times = []
            for processes in (1, 2):
                place = folder / f"round{number}-{processes}"
                place.mkdir()
                wall, share = extraction(table, arguments.teacher, place, processes)
                times.append(wall)
                shares.append(share)
            ratios["extraction"].append(times[0] / times[1])
    load_average = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    grid = Grid("what", "2 over 1", "lowest, highest round", title=f"{os.cpu_count()} cores, load {load_average}")
    for name, values in ratios.items():
        grid.add_row(name, f"{statistics.median(values):.2f}", f"{min(values):.2f}, {max(values):.2f}")
    console = Console(width=100)
    console.print(grid)
    console.print(f"share of a core in extraction: one process {statistics.median(shares[::2]):.2f}, "
                  f"each of two {statistics.median(shares[1::2]):.2f}")  # fmt: skip
    if arguments.output:
        document = {"environment": environment(), "load": os.getloadavg(), "ratios": ratios, "shares": shares}
        arguments.output.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
