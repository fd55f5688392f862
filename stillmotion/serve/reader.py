"""Reading an upload: runs in a process of its own, which may crash, hang or want too much memory without harm."""

import resource
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stillmotion.data.decode import decode_frames, forget, probe, timeline
from stillmotion.data.faults import one_line
from stillmotion.data.images import reduced
from stillmotion.data.picture import reduced_size
from stillmotion.data.sampling import spread_evenly
from stillmotion.data.source import Extent, Videos, show
from stillmotion.data.table import Sample
from stillmotion.journey import Seen
from stillmotion.networks import Inputs
from stillmotion.predict import Predictor, Sight
from stillmotion.view import NO_DRAW, View, shown_view, visible
from stillmotion.window import span

MIB = 2**20
MOST_INPUT = 256 * MIB
"""Bytes of frames for the network that one upload may come to."""
MOST_KEPT = 128 * MIB
"""Bytes of frames that are decoded together for the timeline."""
PICTURE_SIDE = 240
"""Pixels of the shorter side of a picture in an answer."""


@dataclass(frozen=True)
class Order:
    """What is to be read of a file.

    Args:
        path: The file; None reads nothing (a process warms up).
        networks: Numbers of the networks that look.
        points: Of the timeline.
        pictures: Of the frames looked at, for each network, at most.
    """

    path: Path | None
    networks: tuple[int, ...] = (0,)
    points: int = 0
    pictures: int = 0


@dataclass(frozen=True)
class Pictures:
    """Frames that a network looked at.

    Args:
        places: Moment and place in the clip of each, (P, 2).
        times: Seconds of the video; of what has no rate, numbers of frames.
        images: (P, H, W, 3).
    """

    places: NDArray[np.int64]
    times: list[float]
    images: list[NDArray[np.uint8]]


@dataclass
class Reading:
    """What was read.

    Args:
        num_frames, fps: Of the video; no rate of stills.
        seen: By each network.
        parts: Of the video, for the timeline: middle in seconds, and what the first network sees.
        pictures: Of each network.
    """

    num_frames: int
    fps: float | None
    seen: list[Seen]
    parts: list[tuple[float, Inputs]] = field(default_factory=list)
    pictures: list[Pictures] = field(default_factory=list)


@dataclass(frozen=True)
class Unreadable:
    """Nothing was read, and why; `status` is that of the answer."""

    status: int
    reason: str


class Reader:
    """Reads uploads, in the process that it is sent to.

    Args:
        sights: Of the networks; the first gives the timeline.
        max_seconds: Length of a video.
        seconds: After which the process ends itself, should nobody else do it.
        mib: Memory beyond what it starts with.
    """

    def __init__(self, sights: Sequence[Sight], *, max_seconds: float, seconds: float, mib: int) -> None:
        self.sights, self.max_seconds, self.seconds, self.mib = tuple(sights), max_seconds, seconds, mib
        self._predictors: list[Predictor] = []

    def __call__(self, order: Order) -> Reading | Unreadable | None:
        """What was ordered; None of no file."""
        if order.path is None:
            self._begin()
            return None
        signal.setitimer(signal.ITIMER_REAL, self.seconds)  # nothing handles it: it ends the process, even in C
        try:
            return self._read(order, order.path)
        except (ValueError, OSError) as error:
            # Where it lies is nobody's business.
            words = one_line(error).replace(f"{order.path}: ", "").replace(f"'{order.path}'", "it")
            return Unreadable(422, f"the file cannot be read: {words}")
        except MemoryError:
            return Unreadable(422, f"the file cannot be read within {self.mib} MiB of memory")
        except _TooMuch as error:
            return Unreadable(413, str(error))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            forget()

    def _begin(self) -> None:
        """Limits of the process: memory, no files written. SIGTERM is for the parent, which finishes what it took."""
        self._predictors = [sight.predictor() for sight in self.sights]
        with (
            TemporaryDirectory() as folder,
            suppress(ValueError),
        ):  # what is imported late is not the first upload's cost
            Image.new("RGB", (64, 64)).save(still := Path(folder) / "still.png")
            for predictor in self._predictors:
                predictor.see(Sample(still, still.name))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        if sys.platform == "linux":
            limit = _data_size() + self.mib * MIB
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    def _read(self, order: Order, path: Path) -> Reading:
        began = time.perf_counter()
        known = timeline(path)
        opening = time.perf_counter() - began
        length = known.num_frames / known.fps if known.fps else 0.0
        if length > self.max_seconds:
            raise _TooMuch(f"the video is {length:.0f} s long; at most {self.max_seconds:g} s are taken")
        sample = Sample(path, path.name)
        looking = [self._predictors[i] for i in order.networks]
        first = self._seen(looking[0], sample)
        # Part of its cost: a file whose frames have to be counted is decoded when it is opened.
        seen = [replace(first, seconds=first.seconds + opening, decoding=first.decoding + opening)]
        for predictor in looking[1:]:
            forget(path)  # each opens it: what they cost is compared
            seen.append(self._seen(predictor, sample))
        known = timeline(path)  # decoding may have found that the packets lied
        reading = Reading(known.num_frames, known.fps, seen)
        if order.points:
            reading.parts = self._parts(looking[0], sample, reading, order.points)
        if order.pictures:
            reading.pictures = [_pictures(p, sample, known.fps, order.pictures) for p in looking]
        return reading

    def _seen(self, predictor: Predictor, sample: Sample) -> Seen:
        seen = predictor.see(sample)
        if (size := sum(x.nbytes for x in seen.inputs.values())) > MOST_INPUT:
            raise _TooMuch(f"the frames come to {size / MIB:.0f} MiB; at most {MOST_INPUT // MIB} MiB are taken")
        return seen

    def _parts(self, predictor: Predictor, sample: Sample, reading: Reading, points: int) -> list[tuple[float, Inputs]]:
        """The video in overlapping parts, each as long as the network's clip at least."""
        size = sum(x.nbytes for x in reading.seen[0].inputs.values())
        points = max(1, min(points, reading.num_frames, MOST_INPUT // size))
        clip = max(span(view, reading.fps or 25.0) for view in predictor.views.values())
        parts = _cut(sample, reading.num_frames, points, clip)
        source, found = _Shared(predictor.short_side), []
        for at, part in enumerate(parts):
            source.prepare(parts[at:], predictor.shown(sample))
            assert part.start is not None
            assert part.end is not None
            middle = (part.start + part.end) / 2.0 / (reading.fps or 1.0)
            try:
                found.append((middle, predictor.see(part, frames=source).inputs))
            except ValueError:  # damaged there; the rest of the line is drawn
                continue
        return found


class _TooMuch(Exception):
    """The file is larger than is taken."""


class _Shared:
    """Frames of a video for several parts of it, with one decode for as many of them as fit into memory."""

    def __init__(self, short_side: int | None) -> None:
        self.videos = Videos(short_side)
        self._frames: dict[int, NDArray[np.uint8]] = {}
        self._prepared: set[str] = set()

    def prepare(self, parts: Sequence[Sample], views: dict[str, View]) -> None:
        """Decodes what views will see of the first part, and of further ones; nothing if that is done."""
        if parts[0].id in self._prepared:
            return
        wanted: set[int] = set()
        self._prepared, self._frames = set(), {}
        for part in parts:
            seen = self._numbers(part, self.videos.extent(part), views)
            if self._prepared and (len(wanted | seen)) * self._frame_size(part) > MOST_KEPT:
                break
            wanted |= seen
            self._prepared.add(part.id)
        numbers = sorted(wanted)
        try:
            frames = decode_frames(parts[0].path, numbers, short_side=self.videos.short_side)
        except ValueError:
            return  # `read` finds out which of them is damaged
        self._frames = dict(zip(numbers, frames, strict=True))

    def extent(self, sample: Sample) -> Extent:
        """As `FrameSource.extent`."""
        return self.videos.extent(sample)

    def read(self, sample: Sample, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """As `FrameSource.read`."""
        numbers = [int(i) + int(sample.start or 0) for i in indices]
        if any(number not in self._frames for number in numbers):
            return self.videos.read(sample, indices)
        return np.stack([self._frames[number] for number in numbers])

    def _numbers(self, part: Sample, extent: Extent, views: dict[str, View]) -> set[int]:
        return {int(i) + int(part.start or 0) for v in views.values() for i in extent.frames_of(v, NO_DRAW).ravel()}

    def _frame_size(self, part: Sample) -> int:
        info = probe(part.path)
        width, height = reduced_size((info.width, info.height), self.videos.short_side)
        return width * height * 3


def _cut(sample: Sample, num_frames: int, points: int, clip: int) -> list[Sample]:
    """Parts of a video of at least `clip` frames, spread evenly."""
    length = min(num_frames, max(clip, ceil(num_frames / points)))
    starts = [min(max(0, (2 * k + 1) * num_frames // (2 * points) - length // 2), num_frames - length)
              for k in range(points)]  # fmt: skip
    return [Sample(sample.path, sample.name, start=start, end=start + length) for start in dict.fromkeys(starts)]


def _pictures(predictor: Predictor, sample: Sample, fps: float | None, most: int) -> Pictures:
    """Frames that are looked at, as people see them: in the geometry of the network's view, with colours."""
    shown = predictor.shown(sample)
    view = visible(shown[shown_view(shown)])
    source = Videos(predictor.short_side)
    frames = show(source, sample, {"shown": view}, NO_DRAW)["shown"]  # (N, T, C, H, W)
    numbers = np.repeat(source.extent(sample).frames_of(view, NO_DRAW), view.num_crops, axis=0)
    places = np.stack(np.unravel_index(spread_evenly(numbers.size, most), numbers.shape), axis=1)
    images = []
    for moment, place in places:
        image = np.ascontiguousarray(frames[moment, place].transpose(1, 2, 0))
        images.append(reduced(image, reduced_size((image.shape[1], image.shape[0]), PICTURE_SIDE)))
    return Pictures(places, [round(float(numbers[m, t]) / (fps or 1.0), 3) for m, t in places], images)


def _data_size() -> int:
    """Bytes of the process's data, as RLIMIT_DATA counts them."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[5]) * resource.getpagesize()
