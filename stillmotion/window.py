"""The latest frames of a stream, as far as decisions to come need them, and which of them views see."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from stillmotion.data.picture import Painter
from stillmotion.data.sampling import frame_indices
from stillmotion.stream import StreamFrame
from stillmotion.view import NO_DRAW, Clip, View

MIN_INTERVAL = 8


class Window:
    """A ring of frames for one or several networks that look at the same stream.

    Attributes:
        interval: Frames between two decisions.
        first: Frame of the first decision; decisions are made of it and every `interval` frames after it.
        length: Frames that a decision reaches back, its own included.

    Args:
        views: Of each network; the first one decides the interval.
        short_sides: Of each network, as in `DataConfig`.
        fps: Of the stream.
        interval: As in `LiveConfig`.
    """

    def __init__(
        self, views: Sequence[Mapping[str, View]], short_sides: Sequence[int | None], fps: float, interval: int | None
    ) -> None:
        self.fps, self.short_sides = fps, tuple(short_sides)
        self.interval = interval or max(default_interval(view, fps) for view in views[0].values())
        each = [view for seen in views for view in seen.values()]
        self.first = max(span(view, fps) for view in each)
        self.views = [{name: live_view(v, self.interval, fps) for name, v in seen.items()} for seen in views]
        spans = [span(view, fps) for seen in self.views for view in seen.values()]
        self.length = max(*spans, self.first, self.interval if any(v.clip == "whole" for v in each) else 1)
        rows = [self._indices(view, self.length) for seen in self.views for view in seen.values()]
        # A frame is looked at by a decision that many frames later.
        self._later = {(self.length - 1 - int(i)) % self.interval for i in np.concatenate([r.ravel() for r in rows])}
        self._frames: dict[int, StreamFrame] = {}
        self._pictures: dict[tuple[int, int | None], NDArray[np.uint8]] = {}
        self._painters: dict[tuple[int, int, int | None], Painter] = {}
        self._start, self._number = 1, 0

    def is_due(self, number: int) -> bool:
        """Whether a decision is to be made at a frame of the batch that was begun."""
        return number - self._start + 1 >= self.first and (number - self.first) % self.interval == 0

    def begin(self, number: int) -> None:
        """Says with which frame the next batch begins; if some were dropped before it, nothing reaches back to them."""
        if number != self._number + 1:
            self._start = number

    def add(self, frame: StreamFrame) -> None:
        """Takes the next frame; those that no decision needs any more are forgotten."""
        self._number = frame.number
        early = frame.number < self._start + self.length  # the first decisions may see any frame
        if early or (self.first - frame.number) % self.interval in self._later:
            self._frames[frame.number] = frame
        oldest = frame.number - self.length + 1
        self._frames = {n: f for n, f in self._frames.items() if n >= oldest}
        self._pictures = {key: p for key, p in self._pictures.items() if key[0] >= oldest}

    def numbers(self, which: int, number: int) -> dict[str, NDArray[np.int64]]:
        """Frames (N, T) that the views of a network see of a decision at a frame."""
        length = min(number - self._start + 1, self.length)
        return {name: self._indices(v, length) + number - length + 1 for name, v in self.views[which].items()}

    def pictures(self, which: int, numbers: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        """Frames (H, W, 3), as the network's training read them."""
        return [self._picture(self._frames[int(n)], self.short_sides[which]) for n in numbers]

    def picture(self, frame: StreamFrame) -> NDArray[np.uint8]:
        """A frame (H, W, 3) at its full size."""
        return self._picture(frame, None)

    def _indices(self, view: View, length: int) -> NDArray[np.int64]:
        return frame_indices(view, length, self.fps, NO_DRAW)

    def _picture(self, frame: StreamFrame, short_side: int | None) -> NDArray[np.uint8]:
        key = (frame.number, short_side)
        if key not in self._pictures:
            size = (frame.picture.width, frame.picture.height)
            painter = self._painters.setdefault((*size, short_side), Painter(size, short_side))
            picture = painter(frame.picture)
            if frame.number not in self._frames:  # drawn once, for an overlay
                return picture
            self._pictures[key] = picture
        return self._pictures[key]


def span(view: View, fps: float) -> int:
    """Frames of the stream from the first to the last that a view sees; of moments without a distance, of one."""
    rate = fps / view.fps if view.fps else 1.0
    step = 1.0 if view.clip == "whole" else view.stride * rate
    apart = (view.num_moments - 1) * view.spacing * rate if view.moment == "spaced" else 0.0
    return 1 + round(apart + (view.num_frames - 1) * step) + (view.flow.step if view.kind == "flow" else 0)


def default_interval(view: View, fps: float) -> int:
    """The distance of the moments, so that a decision adds one moment; otherwise the span of a clip."""
    if view.moment == "spaced":
        return max(MIN_INTERVAL, round(view.spacing * (fps / view.fps if view.fps else 1.0)))
    return max(MIN_INTERVAL, span(view, fps))


def live_view(view: View, interval: int, fps: float) -> View:
    """The view of the latest frames: the last clip, or moments up to it.

    Moments that lay anywhere in a video lie `interval` frames apart, so that each decision adds one.
    """
    clip: Clip = "whole" if view.clip == "whole" else "end"
    if view.num_moments == 1 or view.clip == "whole":
        return replace(view, moment="last" if view.num_moments == 1 else "uniform", clip=clip, end="shift")
    spacing = view.spacing
    if view.moment != "spaced":
        spacing = max(1, round(interval * view.fps / fps)) if view.fps else interval
    lead = (view.num_moments - 1) * spacing + (view.num_frames - 1) * view.stride + 1
    return replace(view, moment="spaced", spacing=spacing, lead=lead, jitter=0, outside=False, clip="start",
                   end="shift")  # fmt: skip
