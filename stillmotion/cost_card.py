"""The cost card: networks side by side on the same videos, each from the file to its prediction.

Every network has a process of its own (`cost_worker.py`), in which nobody else's memory counts. They take turns video
by video, round after round, so that a machine that slows down slows all of them; one computes while the others wait.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

import numpy as np

from stillmotion.config import ModelConfig
from stillmotion.cost_facts import accuracy_of, facts_of, kind_of, megabytes_of, size_of
from stillmotion.cost_worker import Answered, Clock, Loaded, Refused, Setting, serve
from stillmotion.data.packets import sample_bytes
from stillmotion.data.pool import Failure, Process
from stillmotion.data.sampling import spread_evenly
from stillmotion.data.table import Sample, Table
from stillmotion.energy import Meter
from stillmotion.inputs import find_samples, is_live
from stillmotion.journey import PARTS, Trip
from stillmotion.progress import progress_bar
from stillmotion.run import environment

PERCENTILES = (50, 90, 99)
PATIENCE = 600.0
"""Seconds after which a network that does not answer is given up."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What one network costs, a video.

    Args:
        name: Short, for tables.
        model: As given.
        kind: `torch`, or format and precision of an exported file.
        ms: Milliseconds by part (`PARTS`): of the median round of each video, the mean over the videos. They add up.
        total_ms: Their sum.
        percentiles: Of the milliseconds of all videos in all rounds, by percentage.
        videos_per_s: Videos in a row, the next one read while the network looks at the last.
        frames: Different frames that are read.
        kilobytes: KiB of the packets that must be read for these (`stillmotion.data.packets`).
        memory_mib: Peak of the process, libraries and weights included.
        joules: Of the whole processor; None where the machine does not tell.
        params, gmacs: Of the network; None where torch is not installed.
        megabytes: Of the weights on disk, 1e6 bytes.
        accuracy: By `metric`; None if nothing is known.
        metric: The main one of its task.
        accuracy_on: `videos` (these, with their labels), or `results` of the training, or of the `export`.
        videos: Parts by video, milliseconds.
    """

    name: str
    model: str
    kind: str
    ms: dict[str, float]
    total_ms: float
    percentiles: dict[int, float]
    videos_per_s: float
    frames: float
    kilobytes: float
    memory_mib: float | None
    joules: float | None
    params: int | None
    gmacs: float | None
    megabytes: float | None
    accuracy: float | None
    metric: str | None
    accuracy_on: str | None
    videos: dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Card:
    """A finished measurement.

    Args:
        models: In the given order.
        videos: That were timed, by `Sample.id`.
        file_kilobytes: Mean size of their files.
        broken, faults: Reason by video that could not be read (by any of the networks), or only in part.
        settings: Rounds, threads, device, clock.
        environment: Machine and versions.
    """

    models: list[Costs]
    videos: list[str]
    file_kilobytes: float
    broken: dict[str, str]
    faults: dict[str, str]
    settings: dict[str, Any]
    environment: dict[str, Any]


@dataclass
class _Entry:
    """A network while it is measured."""

    config: ModelConfig
    process: Process[tuple[str, Any], Any]
    loaded: Loaded
    trips: dict[int, list[Answered]] = field(default_factory=dict)
    joules: list[float] = field(default_factory=list)

    def ask(self, name: str, value: Any) -> Any:
        """What the process says.

        Raises:
            ValueError: It died.
        """
        reply = self.process.call((name, value), PATIENCE)
        if isinstance(reply, Failure):
            raise ValueError(f"{self.config.name}: its process gave no answer ({reply.reason})")
        return reply


def cost_card(
    models: Sequence[ModelConfig],
    videos: Sequence[str],
    *,
    root: str | None = None,
    split: str | None = None,
    max_samples: int = 16,
    rounds: int = 5,
    threads: int = 1,
    device: str = "cpu",
    clock: Clock = "wall",
) -> Card:
    """Measures networks on videos; the entry of `stillmotion benchmark --videos`.

    Args:
        models: Run folders, exported files, or networks by name, which have random weights; their `view` has settings
            that differ.
        videos: Files, folders, tables.
        root: Folder that a table's relative paths start from.
        split: Of a table.
        max_samples: Time so many videos at most, spread evenly.
        rounds: Timed rounds, after one that warms up.
        threads: For computing on the CPU.
        device: cpu or cuda.
        clock: `cpu` counts the seconds in which the processor works for a network, over all threads.

    Raises:
        ValueError: Nothing to measure, no video can be read, a model or a setting is wrong.
    """
    _check(models, videos, max_samples, rounds, threads, device, clock)
    samples = _samples(videos, root, split, max_samples)
    settings = [Setting(model=m, device=device, threads=threads, clock=clock) for m in models]
    with _opened(settings) as entries:
        _check_labels(entries, Table(tuple(samples), ", ".join(videos)))
        broken = _run(entries, samples, rounds)
        rows = [row for row in range(len(samples)) if samples[row].id not in broken]
        names = _names([m.name for m in models])
        found = [_costs(e, name, samples, rows) for e, name in zip(entries, names, strict=True)]
        faults = {samples[row].id: fault for e in entries for row in rows if (fault := e.trips[row][0].fault)}
    used = [samples[row] for row in rows]
    facts = {"rounds": rounds, "threads": threads, "device": device, "clock": clock}
    return Card(models=found, videos=[s.id for s in used], broken=broken, faults=faults, settings=facts,
                file_kilobytes=fmean(_file_bytes(s.path) for s in used) / 1024, environment=environment())  # fmt: skip


def _check(
    models: Sequence[ModelConfig],
    videos: Sequence[str],
    max_samples: int,
    rounds: int,
    threads: int,
    device: str,
    clock: str,
) -> None:
    if not models:
        raise ValueError("name at least one model, such as `stillmotion benchmark RUN student.onnx --videos clip.mp4`")
    for name, value in (("max_samples", max_samples), ("rounds", rounds), ("threads", threads)):
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    if clock not in get_args(Clock):
        raise ValueError(f"clock={clock!r}: choose one of {', '.join(get_args(Clock))}")
    if clock == "cpu" and device != "cpu":
        raise ValueError(f"clock=cpu: does not see what device={device} does; use clock=wall")
    if live := [name for name in videos if is_live(name)]:
        raise ValueError(f"videos={live[0]}: a stream is never the same twice; record it, and give the file")


def _samples(videos: Sequence[str], root: str | None, split: str | None, most: int) -> list[Sample]:
    """The videos that are timed.

    Raises:
        ValueError: There is none, or the split is not there.
    """
    found = find_samples(videos, root=root)
    if split is not None:
        found = list(Table(tuple(found), ", ".join(videos)).select(split))
    if not found:
        raise ValueError(f"videos={', '.join(videos)}: no video in it")
    return [found[row] for row in spread_evenly(len(found), min(most, len(found)))]


@contextmanager
def _opened(settings: Sequence[Setting]) -> Iterator[list[_Entry]]:
    """The networks, each in its process, ready; the processes end with the block."""
    entries: list[_Entry] = []
    processes: list[Process[tuple[str, Any], Any]] = []
    try:
        with progress_bar() as bar:
            for setting in bar.track(settings, len(settings), description="loading"):
                processes.append(Process(serve))
                loaded = processes[-1].call(("load", setting), PATIENCE)
                if not isinstance(loaded, Loaded):
                    name, reason = setting.model.name, loaded.reason
                    raise ValueError(reason if reason.startswith(name) else f"{name}: {reason}")
                entries.append(_Entry(setting.model, processes[-1], loaded))
        yield entries
    finally:
        for process in processes:
            process.end()


def _check_labels(entries: Sequence[_Entry], table: Table) -> None:
    """Refuses labels that a trained network does not know, before anything is timed."""
    for entry in entries:
        if entry.loaded.task is not None:
            try:
                entry.loaded.task.check(table)
            except ValueError as error:
                raise ValueError(f"{entry.config.name}: {error}") from None


def _run(entries: Sequence[_Entry], samples: Sequence[Sample], rounds: int) -> dict[str, str]:
    """Times all networks on all videos, in turn; round 0 warms up and finds what cannot be read.

    Returns:
        Reason by video that a network could not read; none of them is timed on it.

    Raises:
        ValueError: No video can be read.
    """
    broken: dict[str, str] = {}
    meter = Meter.find()
    with progress_bar() as bar:
        steps = bar.add_task("timing", total=(rounds + 1) * len(samples) * len(entries))
        for number in range(rounds + 1):
            for row, sample in enumerate(samples):
                for entry in entries:
                    if sample.id not in broken:
                        before = meter.read() if meter else {}
                        answer = entry.ask("answer", sample)
                        if isinstance(answer, Refused):
                            broken[sample.id] = answer.reason
                        elif number == 0:
                            entry.trips[row] = []
                        if isinstance(answer, Answered) and number:
                            entry.trips[row].append(answer)
                            entry.joules += [meter.joules(before, meter.read())] if meter else []
                    bar.advance(steps)
            if len(broken) == len({s.id for s in samples}):
                name, reason = next(iter(broken.items()))
                raise ValueError(f"none of {len(samples)} videos can be read; the first: {name}: {reason}")
    return broken


def median_trip(trips: Sequence[Trip]) -> Trip:
    """The one whose total is the (lower) median: unlike medians of the parts, its parts add up."""
    return sorted(trips, key=lambda trip: trip.total)[(len(trips) - 1) // 2]


def percentiles(values: Sequence[float]) -> dict[int, float]:
    """By percentage, linear between the values.

    Example:
        >>> percentiles([1.0, 2.0, 3.0])
        {50: 2.0, 90: 2.8, 99: 2.98}
    """
    return {p: float(np.percentile(values, p)) for p in PERCENTILES}


def _costs(entry: _Entry, name: str, samples: Sequence[Sample], rows: Sequence[int]) -> Costs:
    """What was measured of a network, and what is known of it."""
    middle = {row: median_trip([a.trip for a in entry.trips[row]]) for row in rows}
    parts = {part: 1e3 * fmean(getattr(trip, part) for trip in middle.values()) for part in PARTS}
    used = [samples[row] for row in rows]
    memory = entry.ask("memory", None)  # before videos are read ahead
    seconds = entry.ask("stream", used)
    views = entry.loaded.views.values()
    facts = facts_of(entry.config.name)
    params, gmacs = size_of(entry.config, entry.loaded, facts)
    answers = [(samples[row], entry.trips[row][0]) for row in rows]
    metric, accuracy, source = accuracy_of(entry.config.name, entry.loaded, answers)
    return Costs(
        name=name,
        model=entry.config.name,
        kind=kind_of(entry.config.name, facts),
        ms=parts,
        total_ms=sum(parts.values()),
        percentiles=percentiles([1e3 * a.trip.total for row in rows for a in entry.trips[row]]),
        videos_per_s=len(used) / seconds if seconds > 0 else float("inf"),
        frames=fmean(entry.trips[row][0].frames for row in rows),
        kilobytes=fmean(sample_bytes(sample, views) for sample in used) / 1024,
        memory_mib=memory,
        joules=fmean(entry.joules) if entry.joules else None,
        params=params,
        gmacs=gmacs,
        megabytes=megabytes_of(entry.config.name, params),
        accuracy=accuracy,
        metric=metric,
        accuracy_on=source,
        videos={samples[row].id: {part: 1e3 * getattr(trip, part) for part in PARTS} for row, trip in middle.items()},
    )


def _names(models: Sequence[str]) -> list[str]:
    """Short names, where they tell the models apart."""
    short = [Path(m).name if Path(m).exists() else m for m in models]
    counts = Counter(short)
    return [model if counts[name] > 1 else name for model, name in zip(models, short, strict=True)]


def _file_bytes(path: Path) -> int:
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)
