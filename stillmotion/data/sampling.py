"""Which frames of a sample a view sees. No video is opened and no torch imported."""

from collections.abc import Sequence
from fractions import Fraction
from math import floor

import numpy as np
from numpy.typing import NDArray

from stillmotion.view import Draw, View


def frame_indices(
    view: View,
    num_frames: int,
    fps: float | None,
    draw: Draw,
    *,
    keyframes: Sequence[int] = (),
    around: tuple[int, int] = (0, 0),
) -> NDArray[np.int64]:
    """Frames that a view sees of a sample with `num_frames` frames.

    The moments do not depend on the length of the clip, so a student's frame and its teacher's clip share them.

    Args:
        view: What is asked for.
        num_frames: n, frames of the sample.
        fps: Frame rate of the video; only views with a rate of their own need it.
        draw: Where `random` moments lie, and how far `spaced` ones are shifted.
        keyframes: Keyframes of the video relative to the sample's first frame; those outside of it are passed over.
        around: Frames of the video before and behind the sample, for views that look outside of it.

    Returns:
        Indices (N, T) in [0, n), relative to the sample's first frame, and for views that look outside in
        [-before, n + behind); for flow (N, 2T), pair by pair: the end rule
        goes for fields, the last of which ends with the last frame. With stride 0, and of a single frame, a frame is
        paired with itself.

    Raises:
        ValueError: The view has a rate and the video has none.

    Example:
        >>> from stillmotion.view import NO_DRAW
        >>> frame_indices(View(num_frames=4), 10, None, NO_DRAW)
        array([[5, 6, 7, 8]])
        >>> frame_indices(View(kind="flow", num_frames=4), 8, None, NO_DRAW)
        array([[4, 5, 5, 6, 6, 7, 6, 7]])
    """
    assert num_frames >= 1
    if view.clip == "whole":
        return _spread(view, num_frames, draw)
    points = _moments(view, num_frames, fps, draw, keyframes)
    step = _step(view, fps)
    outside, behind = around if view.outside else (0, 0)
    points, num_frames = points + outside, outside + num_frames + behind
    before = {"start": 0, "middle": view.num_frames // 2, "end": view.num_frames - 1}[view.clip]
    offsets = _rounded(np.arange(-before, view.num_frames - before), step)
    if view.kind != "flow":
        return _inside(points[:, None] + offsets, view, num_frames, step) - outside
    # A field begins where its second frame is still inside.
    first = _inside(points[:, None] + offsets, view, max(1, num_frames - view.flow.step), step)
    return _pairs(first, view, num_frames) - outside


def spread_evenly(total: int, count: int) -> NDArray[np.int64]:
    """Up to `count` different numbers below `total`, from the first to the last.

    >>> spread_evenly(10, 4).tolist(), spread_evenly(2, 4).tolist(), spread_evenly(0, 4).tolist()
    ([0, 3, 6, 9], [0, 1], [])
    """
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(np.int64))


def _pairs(first: NDArray[np.int64], view: View, n: int) -> NDArray[np.int64]:
    """First frames (N, T) of fields of flow -> both frames of each (N, 2T)."""
    second = np.minimum(first + (view.flow.step if view.stride else 0), n - 1)
    return np.stack([first, second], 2).reshape(len(first), -1)


def _spread(view: View, n: int, draw: Draw) -> NDArray[np.int64]:
    """Clips over the whole sample: a frame out of each of its parts."""
    count, parts = view.num_moments, view.num_frames
    last = max(1, n - view.flow.step) if view.kind == "flow" else n
    places = np.arange(parts) * count + np.arange(count)[:, None]  # of parts * count places
    if view.moment == "random" and draw.time is not None:
        frames = np.floor((places + draw.time) * last / (parts * count)).astype(np.int64)
    else:
        frames = (2 * places + 1) * last // (2 * parts * count)
    frames = np.minimum(frames, last - 1)
    return _pairs(frames, view, n) if view.kind == "flow" else frames


def resampled(num_frames: int, fps: float, rate: float) -> NDArray[np.int64]:
    """Frames of a video that make it one of another rate: at each of the new times the nearest.

    Example:
        >>> resampled(6, 30.0, 25.0).tolist(), resampled(3, 25.0, 50.0).tolist()
        ([0, 1, 2, 4, 5], [0, 1, 1, 2, 2, 2])
    """
    step = Fraction(fps).limit_denominator(10**6) / Fraction(rate).limit_denominator(10**6)
    return np.minimum(_rounded(np.arange(max(1, round(num_frames / step))), step), num_frames - 1)


def _moments(view: View, n: int, fps: float | None, draw: Draw, keyframes: Sequence[int]) -> NDArray[np.int64]:
    """Frames (N,) at which the clips of a view are anchored; `spaced` ones may lie outside of the sample."""
    count, anchor = view.num_moments, n // 2
    if view.moment == "spaced":
        shift = 0 if draw.time is None else floor(draw.time * (2 * view.jitter + 1)) - view.jitter
        numbers = np.arange(count) * view.spacing + shift - (view.lead or 0)
        return _rounded(numbers, _ratio(view, fps)) + (n if view.lead else 0)
    if view.moment == "uniform" or (view.moment == "random" and draw.time is None):
        return np.array([(2 * k + 1) * n // (2 * count) for k in range(count)])
    if view.moment == "random":
        assert draw.time is not None
        return np.array([min(n - 1, floor((k + draw.time) * n / count)) for k in range(count)])
    if view.moment == "keyframe":
        inside = [k for k in keyframes if 0 <= k < n] or [anchor]
        return np.full(count, min(inside, key=lambda k: (abs(k - anchor), k)))
    return np.full(count, {"centre": anchor, "first": 0, "last": n - 1}[view.moment])


def _step(view: View, fps: float | None) -> Fraction:
    """Distance between two frames of a clip, in frames of the video."""
    return view.stride * (Fraction(1) if view.num_frames == 1 else _ratio(view, fps))


def _ratio(view: View, fps: float | None) -> Fraction:
    """Frames of the video for one at the view's rate."""
    if view.fps is None:
        return Fraction(1)
    if not fps:
        raise ValueError(
            f"the video has no frame rate, and a view asks for {view.fps:g} frames a second; set fps: null"
        )
    # As fractions, rates are what the container meant (30000/1001), and halves round alike everywhere.
    return Fraction(fps).limit_denominator(10**6) / Fraction(view.fps).limit_denominator(10**6)


def _rounded(numbers: NDArray[np.int64], step: Fraction) -> NDArray[np.int64]:
    """Nearest frames to `numbers` times `step`; halves go up."""
    if step.denominator == 1:
        return numbers * step.numerator
    return (2 * numbers * step.numerator + step.denominator) // (2 * step.denominator)


def _inside(clips: NDArray[np.int64], view: View, n: int, step: Fraction) -> NDArray[np.int64]:
    """Applies the end rule to the clips (N, T)."""
    if view.end == "shift":
        clips = clips - np.maximum(clips[:, -1:] - (n - 1), 0)
        clips = clips - np.minimum(clips[:, :1], 0)
    elif view.end == "hallucinet":
        # The official code compares with >= and steps back one frame more than needed (METHODS 2.5).
        span = int(_rounded(np.array([view.num_frames]), step)[0])
        first = clips[:, :1]
        start = np.where(first + span >= n, n - span - 1, first) if span else first
        clips = clips - first + np.maximum(start, 0)
    return np.minimum(np.maximum(clips, 0), n - 1)  # np.clip takes twice as long on a few numbers
