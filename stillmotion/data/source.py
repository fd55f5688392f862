"""Where the frames of a sample come from, and what all its views see of them. No torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stillmotion.data.decode import decode_frames, timeline
from stillmotion.data.examine import examine
from stillmotion.data.flow import Vectors
from stillmotion.data.sampling import frame_indices
from stillmotion.data.table import Sample
from stillmotion.data.transforms import render_flow, render_view
from stillmotion.stopwatch import Stopwatch
from stillmotion.view import Draw, View

Render = Callable[[Sequence[NDArray[np.uint8]], View, Draw, Stopwatch], NDArray[np.uint8]]


@dataclass(frozen=True)
class Extent:
    """What must be known of a sample before its frames are chosen.

    Args:
        num_frames: Frames in the sample's range.
        fps: Frame rate of the video; None if it has none (folders of images, stills).
        keyframes: Keyframes in the range, relative to its first frame.
        fault: What is wrong with a file that can be read in part only.
        around: Frames of the video before and behind the range that can be read, too.
    """

    num_frames: int
    fps: float | None
    keyframes: tuple[int, ...] = ()
    fault: str | None = None
    around: tuple[int, int] = (0, 0)

    def frames_of(self, view: View, draw: Draw) -> NDArray[np.int64]:
        """What a view sees of the sample: see `frame_indices`."""
        return frame_indices(view, self.num_frames, self.fps, draw, keyframes=self.keyframes, around=self.around)


class FrameSource(Protocol):
    """Gives the frames of samples: `Videos` decodes them, `FrameStore` has them packed."""

    def extent(self, sample: Sample) -> Extent:
        """Number of frames, rate and keyframes of a sample."""
        ...

    def read(self, sample: Sample, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Frames (T, H, W, 3) at `indices`, relative to the sample's first frame."""
        ...


class FlowSource(Protocol):
    """Gives the flow of samples: `FlowStore` has it on disk."""

    def extent(self, sample: Sample) -> Extent:
        """Frames between which the fields lie, their rate and keyframes."""
        ...

    def read(self, sample: Sample, pairs: NDArray[np.int64]) -> list[Vectors]:
        """Fields (H, W, 2) between the frames of each pair (P, 2), in pixels of their own."""
        ...


@dataclass(frozen=True)
class Videos:
    """Decodes the files of a table.

    Args:
        short_side: Reduce frames to this shorter side while decoding; None keeps the full size.
    """

    short_side: int | None = None

    def extent(self, sample: Sample) -> Extent:
        """As `FrameSource.extent`.

        Raises:
            ValueError: The file cannot be read, or the range holds no frame.
        """
        info = timeline(sample.path)
        start, end = sample.frame_range(info.num_frames, info.fps)
        keyframes = tuple(k - start for k in info.keyframes if start <= k < end)
        return Extent(end - start, info.fps, keyframes, info.fault, (start, info.num_frames - end))

    def read(self, sample: Sample, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """As `FrameSource.read`.

        Raises:
            ValueError: The file cannot be read.
        """
        info = timeline(sample.path)
        start, _ = sample.frame_range(info.num_frames, info.fps)
        return decode_frames(sample.path, (indices + start).tolist(), short_side=self.short_side)


def damaged_frames(videos: Videos, sample: Sample, extent: Extent) -> frozenset[int]:
    """Frames of a partly readable sample that cannot be read, relative to its first one; found by decoding all."""
    if not sample.path.is_dir():
        seen = examine(sample.path)
        start, _ = sample.frame_range(seen.num_frames, seen.fps)
        return frozenset(number - start for number in seen.damaged)
    damaged = set()
    for number in range(extent.num_frames):
        try:
            videos.read(sample, np.array([number]))
        except ValueError:
            damaged.add(number)
    return frozenset(damaged)


def show(
    source: FrameSource,
    sample: Sample,
    views: Mapping[str, View],
    draw: Draw,
    flow: FlowSource | None = None,
    watch: Stopwatch | None = None,
    render: Render = render_view,
) -> dict[str, NDArray[np.uint8]]:
    """What the views see of a sample; its frames are read once for all of them.

    Args:
        source: Where the frames come from.
        sample: The sample.
        views: By name; frames and flow only, no stored features.
        draw: What is random, the same for all views.
        flow: Where the views of flow get it; None computes it from the frames.
        watch: Learns how long reading (`decode`) and computing flow (`flow`) take.
        render: Makes of frames what a view sees; not of stored flow.

    Returns:
        Frames (N, T, C, h, w) of every view.

    Raises:
        ValueError: The sample cannot be read.

    Example:
        >>> show(Videos(), sample, {"frames": View(size=(112, 112))}, NO_DRAW)["frames"].shape  # doctest: +SKIP
        (1, 1, 3, 112, 112)
    """
    watch = watch or Stopwatch()
    stored = {name for name, view in views.items() if flow is not None and view.kind == "flow"}
    decoded = {name: view for name, view in views.items() if name not in stored}
    shown = _decoded(source, sample, decoded, draw, watch, render)
    for name in stored:
        assert flow is not None
        with watch.part("decode"):
            pairs = flow.extent(sample).frames_of(views[name], draw)
            fields = flow.read(sample, pairs.reshape(-1, 2))
        shown[name] = render_flow(fields, views[name], draw)
    return shown


def _decoded(
    source: FrameSource, sample: Sample, views: Mapping[str, View], draw: Draw, watch: Stopwatch, render: Render
) -> dict[str, NDArray[np.uint8]]:
    if not views:
        return {}
    with watch.part("decode"):
        extent = source.extent(sample)
    # Damage, and packets that lied, show when frames are decoded; then other frames are known to be readable, and the
    # sample is these.
    try:
        shown = _show(source, sample, views, draw, extent, watch, render)
    except ValueError:
        if (readable := source.extent(sample)) == extent:
            raise
    else:
        if (readable := source.extent(sample)) == extent:
            return shown
    return _show(source, sample, views, draw, readable, watch, render)


def _show(
    source: FrameSource,
    sample: Sample,
    views: Mapping[str, View],
    draw: Draw,
    extent: Extent,
    watch: Stopwatch,
    render: Render,
) -> dict[str, NDArray[np.uint8]]:
    wanted = {name: extent.frames_of(view, draw).ravel() for name, view in views.items()}
    union = np.unique(np.concatenate(list(wanted.values())))
    with watch.part("decode"):
        read = source.read(sample, union)
    frames = list(read)  # a frame that is seen twice is not copied, nor turned to grey twice
    return {
        name: render([frames[place] for place in np.searchsorted(union, w)], views[name], draw, watch)
        for name, w in wanted.items()
    }
