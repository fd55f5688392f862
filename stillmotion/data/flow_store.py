"""Optical flow on disk: computed once by `stillmotion flow`, or by whoever reads a sample first.

No torch, but for RAFT.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from stillmotion.data.flow import RAFT, Vectors, flow_function, stretch_table, stretched, to_grey
from stillmotion.data.flow_files import OpenFile, OpenPictures, Pictures, layout_of
from stillmotion.data.journal import HEADER, Entry, StoreError, first_difference, read_header, start_header
from stillmotion.data.remote import RemoteError, is_remote, local, place_of
from stillmotion.data.sampling import resampled
from stillmotion.data.source import Extent, Videos, damaged_frames
from stillmotion.data.store import file_size
from stillmotion.data.table import Sample, Table
from stillmotion.view import FlowMethod, View

LayoutName = Literal["video", "mars", "two-stream"]
FLOW_AGAIN = "repeat the settings, or name another folder"
PAPERS_BOUND = 20.0
CHUNK = 64
"""Frames decoded at a time."""


@dataclass(frozen=True, kw_only=True)
class FlowSettings:
    """How the fields of a store are made; its header.

    Args:
        method: dis, tvl1, farneback, raft_small, raft_large.
        step: Frames between the two of a field.
        stretch: Stretch dark videos over the whole range of grey before, by frames from all over the sample.
        short_side: Reduce frames to this shorter side before; None keeps their size.
        fps: Frames a second that the video is re-sampled to before (MARS: 25); None takes its own frames.
        bound: Pixels beyond which motion is cut off. None: 20 as in the papers' layouts, nothing in `video`.
        layout: `video` one file a sample; `mars`, `two-stream` the folders of pictures of these papers' tools.
        quality: Of JPEG. None: 95 in the papers' layouts, 75 in `video`.
        weights: Of RAFT, as `weights_name` calls them.
    """

    method: FlowMethod = "dis"
    step: int = 1
    stretch: bool = False
    short_side: int | None = None
    fps: float | None = None
    bound: float | None = None
    layout: LayoutName = "video"
    quality: int | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        for name, names in (("method", get_args(FlowMethod)), ("layout", get_args(LayoutName))):
            if getattr(self, name) not in names:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(names)}")
        for name in ("step", "short_side", "fps", "bound"):
            value = getattr(self, name)
            if value is not None and value < (1 if name in ("step", "short_side") else 1e-6):
                raise ValueError(f"{name}={value}: must be above 0")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise ValueError(f"quality={self.quality}: give 1 to 100")
        papers = self.layout != "video"
        object.__setattr__(self, "quality", self.quality or (95 if papers else 75))
        object.__setattr__(self, "bound", self.bound or (PAPERS_BOUND if papers else None))


class FlowStore:
    """Flow of the samples of a table, as a `FlowSource`. What is not there yet is computed, and added, when it is read.

    Args:
        folder: The store, or its address on object storage; nothing is added there.
        weights: File of RAFT's weights or `default`, to compute with.
        device: Where RAFT computes.

    Attributes:
        settings: How its fields are made.

    Raises:
        StoreError: There is no flow store of this format.
    """

    def __init__(self, folder: str | Path, *, weights: str | None = None, device: str = "cpu") -> None:
        self.folder, self.weights, self.device = place_of(folder), weights, device
        header = read_header(self.folder, "flow", "run `stillmotion flow` on this table")
        self.settings = FlowSettings(**{field.name: header[field.name] for field in fields(FlowSettings)})
        self.layout = layout_of(self.folder, self.settings)
        self._last: tuple[int, str, OpenFile | OpenPictures] | None = None

    @classmethod
    def create(cls, folder: str | Path, settings: FlowSettings, **options: Any) -> Self:
        """Starts a store, or goes on with one that has the same settings.

        Raises:
            StoreError: The store there has others; the message says which.
        """
        start_header(local(folder), {"kind": "flow", **asdict(settings)}, FLOW_AGAIN)
        return cls(folder, **options)

    def __getstate__(self) -> dict[str, Any]:
        return {**{k: v for k, v in self.__dict__.items() if k != "_calculate"}, "_last": None}

    def check(self, table: Table) -> None:
        """Refuses tables of which two samples would lie in the same place.

        Raises:
            StoreError: Naming the two.
        """
        seen: dict[Path, str] = {}
        for sample in table:
            if (other := seen.setdefault(self.layout.place(sample), sample.id)) != sample.id:
                raise StoreError(
                    f"{self.folder}: {other} and {sample.id} would lie in the same place in layout "
                    f"{self.settings.layout}; take layout video, or rename one"
                )

    def has(self, sample: Sample) -> bool:
        """Whether a sample is there, whole."""
        return self.layout.place(sample).exists()

    def extent(self, sample: Sample) -> Extent:
        """As `FlowSource.extent`.

        Raises:
            ValueError: The sample is not there yet and cannot be read, or its file is damaged or has changed.
        """
        entry = self._open(sample).entry
        return Extent(entry["num_frames"], entry["fps"], tuple(entry["keyframes"]), entry["fault"])

    def read(self, sample: Sample, pairs: NDArray[np.int64]) -> list[Vectors]:
        """As `FlowSource.read`; every field is checked as it is read.

        Raises:
            ValueError: As `extent`, or a field is damaged, or one of its frames was.
        """
        opened = self._open(sample)
        found: dict[int, Vectors] = {}
        for first, second in np.unique(pairs, axis=0).tolist():
            if first in opened.entry["damaged"] and first != second:
                fault = opened.entry["fault"]
                raise StoreError(
                    f"a frame of the flow from frame {first} of {sample.id} is damaged in the video; {fault}"
                )
            found[first] = opened.read(first) if first != second else np.zeros((*opened.entry["size"], 2), np.float32)
        return [found[first] for first in pairs[:, 0].tolist()]

    def fields(self, sample: Sample) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The fields of a sample: pairs (P, 2) to `read`, and the frame of the video (P,) that each begins at."""
        entry = self._open(sample).entry
        numbers = range(max(1, self._count(entry["num_frames"])))
        first = np.array([number for number in numbers if number not in entry["damaged"]], np.int64)
        pairs = np.stack([first, np.minimum(first + self.settings.step, entry["num_frames"] - 1)], 1)
        return pairs, self._steps(sample, Videos().extent(sample))[first]

    def _open(self, sample: Sample) -> OpenFile | OpenPictures:
        # By process: two that share an open file would move each other's place in it.
        if self._last is not None and self._last[:2] == (os.getpid(), sample.id):
            return self._last[2]
        if not self.has(sample):
            if is_remote(self.folder):
                raise RemoteError(f"{self.folder}: no flow of {sample.id}; run `stillmotion flow` on this table, and "
                                  "copy what it adds there")  # fmt: skip
            self.add(sample)
        opened = self.layout.open(sample)
        size, had = file_size(sample.path), opened.entry["bytes"]
        if opened.entry["id"] != sample.id:
            raise StoreError(f"{self.layout.place(sample)}: the flow of {opened.entry['id']}, not of {sample.id}")
        if None not in (size, had) and size != had:
            raise StoreError(
                f"{sample.path} has {size} bytes and had {had} when its flow was computed; remove "
                f"{self.layout.place(sample)} and run `stillmotion flow` again"
            )
        self._last = (os.getpid(), sample.id, opened)
        return opened

    def add(self, sample: Sample) -> Entry:
        """Computes the flow of a sample; pictures that another tool wrote only get their entry.

        Raises:
            ValueError: The sample cannot be read, or the number of another tool's pictures is not that of its fields.
        """
        videos = Videos(self.settings.short_side)
        extent = videos.extent(sample)
        if isinstance(self.layout, Pictures) and any(found := self.layout.count(sample)):
            return self._adopt(self.layout, found, sample, extent)
        try:
            return self._write(videos, sample, extent, frozenset())
        except StoreError:
            raise
        except ValueError:
            # Decoding has shown what is damaged, and where the readable part ends.
            extent = videos.extent(sample)
            return self._write(videos, sample, extent, damaged_frames(videos, sample, extent))

    def _write(self, videos: Videos, sample: Sample, extent: Extent, damaged: frozenset[int]) -> Entry:
        if len(damaged) == extent.num_frames:
            raise ValueError(f"{sample.path}: every frame is damaged; {extent.fault}")
        steps = self._steps(sample, extent)
        bad = np.isin(steps, list(damaged))
        ends = np.minimum(np.arange(len(steps)) + self.settings.step, len(steps) - 1)
        lost = np.flatnonzero((bad | bad[ends])[: self._count(len(steps))]).tolist()
        entry = {**self._entry(sample, extent, len(steps)), "damaged": lost}
        if len(lost) == self._count(len(steps)):  # then no field tells the size
            whole = min(set(range(extent.num_frames)) - damaged)
            entry["size"] = list(videos.read(sample, np.array([whole])).shape[1:3])
        return self.layout.write(sample, entry, self._fields(videos, sample, steps, frozenset(lost)))

    def _entry(self, sample: Sample, extent: Extent, num_frames: int) -> Entry:
        own = self.settings.fps is None
        return {
            "id": sample.id,
            "bytes": file_size(sample.path),
            "num_frames": num_frames,
            "fps": extent.fps if own else self.settings.fps,
            "keyframes": list(extent.keyframes) if own else [],
            "fault": extent.fault,
            "damaged": [],
        }

    def _steps(self, sample: Sample, extent: Extent) -> NDArray[np.int64]:
        """Frames of the sample, at the rate of the store."""
        if self.settings.fps is None:
            return np.arange(extent.num_frames)
        if not extent.fps:
            raise ValueError(f"{sample.id}: the video has no frame rate to re-sample; leave --fps out")
        return resampled(extent.num_frames, extent.fps, self.settings.fps)

    def _count(self, num_frames: int) -> int:
        """Fields of so many frames; where these are fewer than a step, one from the first to the last."""
        return max(1, num_frames - self.settings.step) if num_frames > 1 else 0

    def _fields(
        self, videos: Videos, sample: Sample, steps: NDArray[np.int64], lost: frozenset[int]
    ) -> Iterator[tuple[int, Vectors]]:
        """Numbers and vectors of the fields, without those that are lost."""
        step, last = self.settings.step, len(steps) - 1
        whole = [number for number in range(self._count(len(steps))) if number not in lost]
        table = None
        if self.settings.stretch and whole:
            spread = steps[whole[:: max(1, len(whole) // 8)]]
            table = stretch_table([to_grey(frame) for frame in videos.read(sample, spread)])
        for begin in range(0, len(whole), CHUNK):
            firsts = np.array(whole[begin : begin + CHUNK])
            seconds = np.minimum(firsts + step, last)
            frames = np.unique([firsts, seconds])
            pictures = [self._seen(frame, table) for frame in videos.read(sample, steps[frames])]
            places = zip(np.searchsorted(frames, firsts), np.searchsorted(frames, seconds), strict=True)
            for number, (first, second) in zip(firsts.tolist(), places, strict=True):
                yield number, self._calculate(pictures[first], pictures[second])

    def _seen(self, frame: NDArray[np.uint8], table: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
        if table is not None:
            return stretched(to_grey(frame), table)
        return frame if self.settings.method in RAFT else to_grey(frame)

    @cached_property
    def _calculate(self) -> Any:
        if self.settings.method not in RAFT or self.weights is None:
            return flow_function(self.settings.method)
        from stillmotion.data.raft import raft_function

        return raft_function(self.settings.method, self.weights, self.device)

    def _adopt(self, layout: Pictures, found: list[int], sample: Sample, extent: Extent) -> Entry:
        num_frames = len(self._steps(sample, extent))
        count = self._count(num_frames)
        # Tools that re-sample round a frame more or less.
        if found[0] != found[1] or abs(found[0] - count) > (self.settings.fps is not None):
            raise StoreError(
                f"{layout.files(sample, 0)[0].parent}: {found[0]} and {found[1]} pictures of u and v, and {count} "
                f"fields between the {num_frames} frames of {sample.name}; correct --fps or --step, or remove them"
            )
        num_frames += found[0] - count
        return layout.adopt(sample, self._entry(sample, extent, num_frames), found[0])


def open_flow(folder: str | Path | None, views: Mapping[str, View], short_side: int | None) -> FlowStore | None:
    """The store that views of flow read from; a folder that is empty or not there yet becomes one, as they want it.

    Args:
        folder: The store; None: flow is computed from the frames.
        views: All views; those of other kinds do not matter.
        short_side: Size of the frames that a live view would see; None takes that of the store.

    Returns:
        None without a folder, or without views of flow.

    Raises:
        ValueError: The views want other flow than there is.
    """
    wanted = {key: view.flow for key, view in views.items() if view.kind == "flow"}
    if not wanted:
        return None
    first = next(iter(wanted.values()))
    there = folder is not None and (is_remote(folder) or (Path(folder) / HEADER).exists())
    if not there and (raft := [flow.method for flow in wanted.values() if flow.method in RAFT]):
        flow_function(raft[0])  # says what to do
    if folder is None:
        return None
    place = place_of(folder)
    if not there and not (place.is_dir() and any(place.iterdir())):
        settings = FlowSettings(method=first.method, step=first.step, stretch=first.stretch, short_side=short_side)
        FlowStore.create(place, settings)
    store = FlowStore(place)
    for key, flow in wanted.items():
        asked: dict[str, Any] = {"method": flow.method, "step": flow.step, "stretch": flow.stretch}
        asked |= {"short_side": short_side} if short_side is not None else {}
        have = {name: getattr(store.settings, name) for name in asked}
        if difference := first_difference(have, asked):
            raise StoreError(
                f"{place}: {difference} (view {key}); change the view, or store this flow in another folder"
            )
    return store
