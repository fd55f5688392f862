"""From one prediction after another to events: what began when and ended when. NumPy only."""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
from numpy.typing import NDArray

from stillmotion.config import LiveConfig
from stillmotion.tasks import Classes, Task

COLUMNS = ("id", "source", "label", "start", "end", "seconds", "peak", "cut", "clock")


@dataclass(frozen=True)
class Event:
    """That a class began, or ended, in a stream.

    Args:
        state: `start`, or `stop`.
        id: From 1, the same for the start and the stop.
        source: The stream.
        label: The class; of several columns `COLUMN: CLASS`.
        start: Seconds of the stream.
        clock: When it began (or, of a stop, ended), UTC.
        end: Seconds of the stream; None while it lasts.
        peak: Highest probability so far.
        cut: It did not end by itself: the stream was lost, or the watch was stopped.
    """

    state: Literal["start", "stop"]
    id: int
    source: str
    label: str
    start: float
    clock: str
    end: float | None = None
    peak: float = 0.0
    cut: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data; `end`, `seconds` and `cut` only of a stop."""
        data: dict[str, Any] = {"event": self.state, "id": self.id, "source": self.source, "label": self.label}
        data |= {"start": round(self.start, 3)}
        if self.end is not None:
            data |= {"end": round(self.end, 3), "seconds": round(self.end - self.start, 3), "cut": self.cut}
        return {**data, "peak": round(self.peak, 4), "clock": self.clock}


class EventList:
    """Hysteresis: a class begins when its probability reaches `enter` and ends when it falls below `leave`.

    It has to last for `min_seconds` to count; its start is then told late, with the time at which it began.

    Args:
        source: The stream.
        names: Of the K probabilities.
        config: Thresholds; `classes` are those that count.

    Raises:
        ValueError: A class in `classes` that there is not.

    Example:
        >>> events = EventList("0", ("run", "sit"), LiveConfig(enter=0.6, leave=0.4, min_seconds=1.0, classes=["run"]))
        >>> for time, p in enumerate((0.1, 0.7, 0.5, 0.9, 0.3)):
        ...     for event in events.update(np.array([p, 1 - p]), float(time), 0.0):
        ...         print(time, event.state, event.label, event.start, event.end, event.peak)
        2 start run 1.0 None 0.7
        4 stop run 1.0 4.0 0.9
    """

    def __init__(self, source: str, names: Sequence[str], config: LiveConfig) -> None:
        if unknown := [name for name in config.classes if name not in names]:
            known = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            raise ValueError(f"live.classes: the model knows no {unknown[0]!r}; classes: {known}")
        self.source, self.names, self.config = source, tuple(names), config
        self._watched = np.array([not config.classes or name in config.classes for name in names], bool)
        self._since = np.full(len(names), np.nan)
        self._peak = np.zeros(len(names))
        self._open: dict[int, int] = {}
        self._seen: tuple[float, float] | None = None
        self._count = 0

    @property
    def active(self) -> tuple[str, ...]:
        """Classes whose event lasts."""
        return tuple(self.names[k] for k in self._open)

    def update(self, probabilities: NDArray[np.floating], time: float, clock: float) -> list[Event]:
        """Takes the next decision.

        Args:
            probabilities: (K,).
            time: Seconds of the stream.
            clock: Seconds since 1970.

        Returns:
            What ended and what began.
        """
        events = []
        self._seen = (time, clock)
        lasting = ~np.isnan(self._since)
        rises = self._watched & ~lasting & (probabilities >= self.config.enter)
        falls = lasting & (probabilities < self.config.leave)
        for k in np.flatnonzero(falls):
            if k in self._open:
                events.append(self._stop(int(k), time, clock, cut=False))
        self._since[falls], self._since[rises] = np.nan, time
        self._peak = np.where(rises, probabilities, np.maximum(self._peak, probabilities))
        for k in np.flatnonzero(time - self._since >= self.config.min_seconds):  # NaN is never
            if int(k) not in self._open:
                events.append(self._start(int(k), time, clock))
        return events

    def close(self) -> list[Event]:
        """Ends what lasts, where it was last seen."""
        time, clock = self._seen or (0.0, 0.0)
        events = [self._stop(k, time, clock, cut=True) for k in list(self._open)]
        self._since[:] = np.nan
        return events

    def _start(self, k: int, time: float, clock: float) -> Event:
        self._count += 1
        self._open[k] = self._count
        start = float(self._since[k])
        return Event("start", self._count, self.source, self.names[k], start, _utc(clock - (time - start)),
                     peak=float(self._peak[k]))  # fmt: skip

    def _stop(self, k: int, time: float, clock: float, *, cut: bool) -> Event:
        return Event("stop", self._open.pop(k), self.source, self.names[k], float(self._since[k]), _utc(clock), time,
                     float(self._peak[k]), cut)  # fmt: skip


def _utc(clock: float) -> str:
    return datetime.fromtimestamp(clock, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def class_names(task: Task) -> tuple[str, ...]:
    """Names of `class_probabilities`.

    Raises:
        ValueError: The task has no classes.
    """
    several = len(task.parts) > 1
    parts = [part for _, part in task.parts if isinstance(part, Classes)]
    if not parts:
        raise ValueError(f"the model tells of {task.target}, which is no class; events are of classes")
    return tuple(f"{part.target}: {name}" if several else name for part in parts for name in part.class_names)


def class_probabilities(task: Task, logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities of all classes of all columns, (K,), from a row of logits."""
    return np.concatenate([part.scores(logits[place]) for place, part in task.parts if isinstance(part, Classes)])


@contextmanager
def event_writer(output: str | None) -> Iterator[Callable[[Event], None]]:
    """Writes events as they come: `.jsonl` starts and stops, `.csv` a row for every event that ended.

    They join what is there: a watch that is started again must not lose what the last one saw.

    Raises:
        ValueError: The name ends otherwise.
    """
    if output is None:
        yield lambda event: None
        return
    path = Path(output)
    if path.suffix.lower() not in (".jsonl", ".csv"):
        raise ValueError(f"events={output}: give a name that ends in .jsonl or .csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        if path.suffix.lower() == ".csv":
            table = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
            if file.tell() == 0:
                table.writeheader()
            yield lambda event: _write_row(file, table, event)
        else:
            yield lambda event: print(json.dumps(event.to_dict(), ensure_ascii=False), file=file, flush=True)


def _write_row(file: TextIO, table: "csv.DictWriter[str]", event: Event) -> None:
    if event.state == "stop":
        table.writerow(event.to_dict())
        file.flush()
