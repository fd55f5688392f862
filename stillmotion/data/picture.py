"""From a decoded frame to an upright RGB array, the same way on every path that leads to it."""

import struct
from collections.abc import Mapping
from threading import local
from typing import Any, cast

import numpy as np
from av.buffer import Buffer
from av.sidedata.sidedata import SideDataContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

Size = tuple[int, int]
"""Width and height in pixels."""


def reduced_size(size: Size, short_side: int | None) -> Size:
    """Size with the shorter side brought down to `short_side` pixels, aspect kept; never larger.

    Example:
        >>> reduced_size((340, 256), 128), reduced_size((100, 80), 128)
        ((170, 128), (100, 80))
    """
    width, height = size
    if short_side is None or min(size) <= short_side:
        return size
    factor = short_side / min(size)
    return max(short_side, round(width * factor)), max(short_side, round(height * factor))


class Turn:
    """The display matrix of a frame as quarter turns and mirrors; anything between is left alone."""

    def __init__(self, frame: VideoFrame):
        # Not `frame.side_data`: the frame would keep what keeps the frame, and every picture would wait in memory for
        # the garbage collector, which knows nothing of its megabytes.
        side_data: Mapping[str, Buffer] = cast(Any, SideDataContainer)(frame)
        matrix = side_data.get("DISPLAYMATRIX")
        a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix)) if matrix is not None else (1, 0, 0, 0, 1)
        self.transposed = abs(b) > abs(a)
        x, y = (c, b) if self.transposed else (a, d)
        self.mirrored, self.upside_down = x < 0, y < 0

    def size(self, size: Size) -> Size:
        """Width and height after the turn (or before it: the same swap)."""
        return (size[1], size[0]) if self.transposed else size

    def __call__(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Turns (H, W, 3) upright; a view."""
        if self.transposed:
            picture = picture.swapaxes(0, 1)
        return picture[:: -1 if self.upside_down else 1, :: -1 if self.mirrored else 1]


class Painter:
    """Writes frames of one video as upright RGB of one size.

    Colour matrix and range are the frame's own.

    Args:
        size: Width and height of the video's first frame as stored; frames of other sizes are brought to it.
        short_side: Reduce the shorter side to this many pixels while converting.
    """

    def __init__(self, size: Size, short_side: int | None):
        self.stored = size
        self.short_side = short_side

    def __call__(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """The picture, (H, W, 3)."""
        turn = Turn(frame)
        width, height = turn.size(reduced_size(turn.size(self.stored), self.short_side))
        return turn(as_array(scaled(frame, width, height)))


class _Scalers(local):
    """One scaler a thread: a new one for every frame makes it 2-4 times dearer, and one frame is often all we read."""

    def __init__(self) -> None:
        self.scaler = VideoReformatter()


_scalers = _Scalers()


def scaled(frame: VideoFrame, width: int, height: int) -> VideoFrame:
    """The frame as rgb24 of this size; on one core, so that loader workers do not fight over them."""
    return _scalers.scaler.reformat(
        frame, width, height, format="rgb24", interpolation=Interpolation.BILINEAR, threads=1
    )


def as_array(frame: VideoFrame) -> NDArray[np.uint8]:
    """View of an rgb24 frame without the padding of its lines, (H, W, 3)."""
    plane = frame.planes[0]
    lines = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
    return lines[: frame.height, : frame.width * 3].reshape(frame.height, frame.width, 3)
