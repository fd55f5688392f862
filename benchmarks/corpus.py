"""What one core does of each command that works through a corpus, and what whole corpora take by that.

    python benchmarks/corpus.py [--clips 6] [--frames 100] [--parts check pack ...] [--output RATES.json]
    python benchmarks/corpus.py --table RATES.json

Measured is the CPU time of one thread (other work on the machine disturbs it less than the clock) and the bytes that
are stored. Clips are those of STILLMOTION_DATA, or made ones (320x240). `--parts ray` is the wall time of `pack` on
`--cluster local`, Ray running already, over that of the plain command with as many workers, and the CPU time of the
driver for an item. `--table` prints the tables of `docs/corpora.md` from stored rates.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

Rates = dict[str, dict[str, Any]]
PARTS = ("check", "pack", "dis", "tvl1", "small", "large", "predict", "driver", "ray")
TEACHERS = {"small": "resnet3d_10", "large": "torchvision/r3d_18"}


@dataclass(frozen=True)
class Corpus:
    """Some videos.

    Args:
        name: For the table.
        files: How many.
        seconds: Of a file.
        size: Bytes of a second of compressed video.
        fps: Frames a second.
    """

    name: str
    files: float
    seconds: float
    size: float
    fps: float = 25.0


CORPORA = (
    Corpus("Kinetics-700", 650_000, 10.0, 70e3),
    Corpus("HowTo100M", 1.2e6, 134_000 * 3600 / 1.2e6, 70e3),
    Corpus("10^9 clips", 1e9, 10.0, 70e3),
)
CLIP_SECONDS = 10.0
"""Of these a teacher sees one clip, and a student one frame."""
WORK = {
    "data check": ("check", "frame"),
    "pack, 128 lines": ("pack", "frame"),
    "flow, DIS": ("dis", "frame"),
    "flow, TV-L1": ("tvl1", "frame"),
    "extract, resnet3d_10": ("small", "clip"),
    "extract, r3d_18": ("large", "clip"),
    "predict, one frame": ("predict", "clip"),
}
CORES = (64, 1024)
SERVER, DISK = 1.25e9, 0.5e9
"""Bytes a second of a file server behind 10 Gbit/s, and of the disk that the driver writes to."""
FSYNC_MS = 1.0
"""Of the two that a record of a store waits for on such a disk."""
BATCH = 8
"""Clips that the driver of an extraction hands out, and writes, together."""


def work_of(corpus: Corpus, rates: Rates, work: str) -> tuple[float, float, float]:
    """Core-seconds, bytes stored and items of one kind of work on a corpus.

    Example:
        >>> rates = {"pack": {"ms": 2.0, "bytes": 100.0}}
        >>> work_of(Corpus("ten minutes", 6, 100.0, 1.0), rates, "pack, 128 lines")
        (30.0, 1500000.0, 6)
    """
    part, unit = WORK[work]
    units = corpus.files * corpus.seconds * (corpus.fps if unit == "frame" else 1 / CLIP_SECONDS)
    rate = rates[part]
    items = units / BATCH if part in TEACHERS else units if unit == "clip" else corpus.files
    return units * rate["ms"] / 1000, units * rate["bytes"], items


def limits(corpus: Corpus, rates: Rates, work: str) -> dict[str, float]:
    """Cores from which something else than them is the limit, by what that is."""
    seconds, size, items = work_of(corpus, rates, work)
    read = corpus.files * corpus.seconds * corpus.size
    part = WORK[work][0]
    written = 0.0 if part in ("dis", "tvl1") else size  # flow is written by the workers
    busy = {
        "file server": (read + size - written) / SERVER,
        "driver's disk": written / DISK,
        "driver": items * (rates["driver"]["ms"] + (FSYNC_MS if part in ("pack", *TEACHERS) else 0.0)) / 1000,
    }
    return {name: seconds / other for name, other in busy.items() if other}


def tables(rates: Rates) -> str:
    """The tables of the page, as Markdown."""
    lines = [
        "| " + " | ".join(("rate", "core-ms", "for a", "bytes stored", "from")) + " |",
        "| --- | ---: | --- | ---: | --- |",
    ]
    for work, (part, unit) in WORK.items():
        rate = rates[part]
        lines.append(f"| {work} | {_short(rate['ms'])} | {unit} | {_short(rate['bytes'])} | {rate['from']} |")
    driver = rates["driver"]
    lines.append(f"| driver of a cluster | {_short(driver['ms'])} | item | | {driver['from']} |")
    for corpus in CORPORA:
        head = (
            "work",
            "core-hours",
            *(f"on {n} cores" for n in CORES),
            "stored",
            "limit",
            "from so many cores on",
        )
        lines += ["", f"**{corpus.name}**: {corpus.files:,.0f} files of {corpus.seconds:.0f} s", ""]
        lines += ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 3) + " --- | ---: |"]
        for work in WORK:
            seconds, size, _ = work_of(corpus, rates, work)
            first, cores = min(limits(corpus, rates, work).items(), key=lambda pair: pair[1])
            cells = (
                work,
                _short(seconds / 3600),
                *(_time(seconds / n) for n in CORES),
                _bytes(size),
                first,
                _short(cores),
            )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _short(value: float) -> str:
    """Two digits.

    Example:
        >>> _short(1234567.0), _short(0.1234), _short(0.0)
        ('1,200,000', '0.12', '0')
    """
    rounded = float(f"{value:.2g}")
    return f"{rounded:,.0f}" if rounded >= 10 or not rounded else f"{rounded:g}"


def _time(seconds: float) -> str:
    for unit, length in (("minutes", 60.0), ("hours", 3600.0), ("days", 86400.0), ("years", 365.25 * 86400)):
        if unit == "years" or seconds < 100 * length:
            break
    return f"{_short(seconds / length)} {unit}"


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000:
            return f"{_short(size)} {unit}" if size else ""
        size /= 1000
    return f"{_short(size)} PB"


def clips(folder: Path, count: int, frames: int) -> list[Any]:
    """Samples of real clips, or else of made ones, each cut to so many frames."""
    from benchmarks.loader import made_clips
    from stillmotion.data.rows import media_files
    from stillmotion.data.table import Sample

    data = Path(os.environ.get("STILLMOTION_DATA", "")) / "ucf101_mini"
    if data.is_dir():
        paths = [path for path in media_files(data)][:count]
        samples = [Sample(path, path.name, {"label": "a"}) for path in paths]
    else:
        samples = list(made_clips(folder, count))
    return [replace(sample, start=0, end=frames, split="train") for sample in samples]


@contextmanager
def timed(times: list[float]) -> Iterator[None]:
    """Adds the CPU time of this process."""
    start = time.process_time()
    yield
    times.append(time.process_time() - start)


def measure(parts: list[str], count: int, frames: int) -> Rates:
    """Core-milliseconds and stored bytes for a frame or a clip."""
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        samples = clips(folder, count, frames)
        found: Rates = {}
        for part in parts:
            rate = CASES[part](samples, folder) if part in CASES else _flow(part, samples, folder)
            found[part] = {**rate, "from": f"this program, {len(samples)} clips, CPU time"}
            print(part, json.dumps(rate), flush=True)
        return found


def _check(samples: list[Any], folder: Path) -> dict[str, float]:
    from stillmotion.data.check import look

    times: list[float] = []
    seen = []
    look(str(samples[0].path))
    for sample in samples:
        with timed(times):
            seen.append(look(str(sample.path)))
    return {"ms": 1000 * sum(times) / sum(getattr(one, "num_frames", 0) for one in seen), "bytes": 0.0}


def _pack(samples: list[Any], folder: Path) -> dict[str, float]:
    from stillmotion.data.pack import Packer

    packer, times, size, frames = Packer(128, "jpeg", 95), [], 0, 0
    packer(samples[0])
    for sample in samples:
        with timed(times):
            data, entry = packer(sample)
        size, frames = size + len(data), frames + entry["num_frames"]
    return {"ms": 1000 * sum(times) / frames, "bytes": size / frames}


def _flow(method: str, samples: list[Any], folder: Path) -> dict[str, float]:
    from stillmotion.data.flow_store import FlowSettings, FlowStore

    settings: Any = {"method": method, "short_side": 128}
    store = FlowStore.create(folder / method, FlowSettings(**settings))
    times: list[float] = []
    frames = 0
    for sample in samples:
        short = sample if method == "dis" else replace(sample, end=4)
        with timed(times):
            frames += store.add(short)["num_frames"] - 1
    size = sum(path.stat().st_size for path in (folder / method).rglob("*") if path.is_file())
    return {"ms": 1000 * sum(times) / frames, "bytes": size / frames}


def _teacher(part: str, samples: list[Any], folder: Path) -> dict[str, float]:
    from stillmotion.config import DataConfig
    from stillmotion.data.table import Table
    from stillmotion.extract import extract
    from stillmotion.models.factory import create_model

    teacher = create_model(TEACHERS[part], num_classes=0, view={"num_frames": 16, "size": 112})
    data, times = DataConfig(test=None, num_draws=1, workers=0), []
    for name in ("warm", "timed"):
        with timed(times):
            extract(Table(tuple(samples)), teacher, folder / part / name, data=data, device="cpu")
    rows = 2 * len(samples)  # the draw, and the one for evaluation
    size = sum(path.stat().st_size for path in (folder / part / "timed").rglob("*") if path.is_file())
    return {"ms": 1000 * times[1] / rows, "bytes": size / rows}


def _predict(samples: list[Any], folder: Path) -> dict[str, float]:
    from stillmotion.models.factory import create_model
    from stillmotion.models.pretrained import save_pretrained
    from stillmotion.predict import Predictor
    from stillmotion.tasks import Classification

    encoder = create_model("timm/mobilenetv3_small_100", num_classes=3, view={"size": 112})
    predictor = Predictor.load(save_pretrained(encoder, Classification(("a", "b", "c")), folder / "run"), threads=1)
    times: list[float] = []
    size = 0
    for sample in [samples[0], *samples]:
        with timed(times):
            size = len(json.dumps(predictor(sample).to_dict()))
    return {"ms": 1000 * sum(times[1:]) / len(samples), "bytes": float(size + 1)}


def _driver(samples: list[Any], folder: Path) -> dict[str, float]:
    """Of the process that hands out, takes back and writes: an item of 2 kB."""
    from stillmotion.data.cluster import map_items
    from stillmotion.data.journal import Journal

    count, start = 2000, 0.0
    with Journal.open(folder / "driver", {"kind": "frames"}, "") as journal:
        for position, answer in map_items("local", _two_kilobytes, list(range(count))):
            start = start or time.process_time()  # from the first answer on
            journal.append([(answer, {"id": str(position)})])
        return {"ms": 1000 * (time.process_time() - start) / (count - 1), "bytes": 0.0}


def _two_kilobytes() -> Callable[[int], bytes]:
    return lambda item: bytes(2048)


def _ray(samples: list[Any], folder: Path) -> dict[str, float]:
    from stillmotion.data.cluster import connected
    from stillmotion.data.pack import pack
    from stillmotion.data.table import Table

    table, seconds = Table(tuple(samples)), {}
    for name in ("plain", "cluster"):
        with connected("local") as ray:
            workers = min(len(samples), int(ray.cluster_resources()["CPU"]))
            start = time.monotonic()
            where: dict[str, Any] = {"workers": workers} if name == "plain" else {"cluster": "local"}
            pack(table, folder / f"ray_{name}", progress=False, **where)
            seconds[name] = time.monotonic() - start
    return {**seconds, "ratio": seconds["cluster"] / seconds["plain"]}


CASES: dict[str, Callable[[list[Any], Path], dict[str, float]]] = {
    "check": _check,
    "pack": _pack,
    "small": lambda samples, folder: _teacher("small", samples, folder),
    "large": lambda samples, folder: _teacher("large", samples, folder),
    "predict": _predict,
    "driver": _driver,
    "ray": _ray,
}


def main() -> None:
    """Runs the benchmark, or prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[part for part in PARTS if part != "ray"])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--table", type=Path)
    arguments = parser.parse_args()
    if arguments.table:
        print(tables(json.loads(arguments.table.read_text())["rates"]), end="")
        return
    from stillmotion.run import environment

    rates = measure(arguments.parts, arguments.clips, arguments.frames)
    if arguments.output:
        document = {"environment": environment(), "load": os.getloadavg(), "rates": rates}
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
