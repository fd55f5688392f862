"""Where the frames of a sample come from, and what all its views see of them. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stillmotion.data.decode import decode_frames, timeline
from stillmotion.data.sampling import frame_indices
from stillmotion.data.table import Sample
from stillmotion.data.transforms import render_view
from stillmotion.view import Draw, View


@dataclass(frozen=True)
class Extent:
    """What must be known of a sample before its frames are chosen.

    Args:
        num_frames: Frames in the sample's range.
        fps: Frame rate of the video; None if it has none (folders of images, stills).
        keyframes: Keyframes in the range, relative to its first frame.
        fault: What is wrong with a file that can be read in part only.
    """

    num_frames: int
    fps: float | None
    keyframes: tuple[int, ...] = ()
    fault: str | None = None


class FrameSource(Protocol):
    """Gives the frames of samples: `Videos` decodes them, `FrameStore` has them packed."""

    def extent(self, sample: Sample) -> Extent:
        """Number of frames, rate and keyframes of a sample."""
        ...

    def read(self, sample: Sample, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Frames (T, H, W, 3) at `indices`, relative to the sample's first frame."""
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
        return Extent(end - start, info.fps, keyframes, info.fault)

    def read(self, sample: Sample, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """As `FrameSource.read`.

        Raises:
            ValueError: The file cannot be read.
        """
        info = timeline(sample.path)
        start, _ = sample.frame_range(info.num_frames, info.fps)
        return decode_frames(sample.path, (indices + start).tolist(), short_side=self.short_side)


def show(source: FrameSource, sample: Sample, views: Mapping[str, View], draw: Draw) -> dict[str, NDArray[np.uint8]]:
    """What the views see of a sample; its frames are read once for all of them.

    Args:
        source: Where the frames come from.
        sample: The sample.
        views: By name; frames only, no stored features.
        draw: What is random, the same for all views.

    Returns:
        Frames (N, T, C, h, w) of every view.

    Raises:
        ValueError: The sample cannot be read.

    Example:
        >>> show(Videos(), sample, {"frames": View(size=(112, 112))}, NO_DRAW)["frames"].shape  # doctest: +SKIP
        (1, 1, 3, 112, 112)
    """
    extent = source.extent(sample)
    # Damage, and packets that lied, show when frames are decoded; then other frames are known to be readable, and the
    # sample is these.
    try:
        shown = _show(source, sample, views, draw, extent)
    except ValueError:
        if (readable := source.extent(sample)) == extent:
            raise
    else:
        if (readable := source.extent(sample)) == extent:
            return shown
    return _show(source, sample, views, draw, readable)


def _show(
    source: FrameSource, sample: Sample, views: Mapping[str, View], draw: Draw, extent: Extent
) -> dict[str, NDArray[np.uint8]]:
    wanted = {
        name: frame_indices(view, extent.num_frames, extent.fps, draw, keyframes=extent.keyframes).ravel()
        for name, view in views.items()
    }
    union = np.unique(np.concatenate(list(wanted.values())))
    frames = source.read(sample, union)
    # Most views want all of the frames in their order: no copy then.
    return {
        name: render_view(frames if np.array_equal(w, union) else frames[np.searchsorted(union, w)], views[name], draw)
        for name, w in wanted.items()
    }
