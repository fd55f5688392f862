"""Exact frames of a video, a folder of numbered images or a still: `read_frames(path, indices)`.

Frame i is the i-th frame that decoding the file from its start gives. Where the packets prove that timestamps find
the same frame (`index.py`), it is reached by seeking to the keyframe before it; everywhere else by counting.

Partly readable files: the frames before the first decoding error, except those that the decoder itself flags as
corrupt, are exact and may be read; `VideoInfo.fault` says what is wrong. Asking for any other frame raises.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import NoReturn

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import ArrayLike, NDArray

from stillmotion.data.examine import examine, frame_rate, open_video
from stillmotion.data.faults import VideoError, missing_bytes
from stillmotion.data.images import image_files, image_size, is_images, read_image, reduced
from stillmotion.data.index import Index, build_index, packet_reader
from stillmotion.data.picture import Painter, Turn, reduced_size
from stillmotion.data.seek import NotAsIndexed, seek_frames

__all__ = ["Timeline", "VideoError", "VideoInfo", "decode_frames", "forget", "probe", "read_frames", "timeline"]

NUM_REMEMBERED = 4096
"""Videos whose index a process keeps (24 bytes a frame)."""


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a video without asking for its pictures.

    Args:
        num_frames: Frames that can be decoded, whatever the header says.
        fps: Frames a second; None where nothing tells (images, raw streams).
        width, height: In pixels, upright (after rotation), pixel aspect left alone.
        seekable: Frames are found by seeking; otherwise by decoding from the start.
        keyframes: Numbers of the frames that decode alone, never empty.
        fault: What is wrong with a partly readable file, in one line. Found by decoding: files whose packets look
            sound are believed until a frame fails (`stillmotion data check` decodes everything).
        notes: What is odd but no fault.
    """

    num_frames: int
    fps: float | None
    width: int
    height: int
    seekable: bool
    keyframes: tuple[int, ...]
    fault: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Timeline:
    """How long a video is and where it can be entered: what choosing frames needs. Fields as in `VideoInfo`."""

    num_frames: int
    fps: float | None
    keyframes: tuple[int, ...]
    fault: str | None = None


@dataclass
class _Known:
    """What this process has learned of a video; `index` is None where frames must be counted."""

    index: Index | None
    fps: float | None = None
    info: VideoInfo | None = None
    damaged: tuple[int, ...] = ()


class _Counted:
    """Frames of the video that was counted last, for the read that mostly follows: one decode for both."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._last: tuple[_Known | None, list[VideoFrame]] = (None, [])

    def put(self, known: _Known | None, frames: list[VideoFrame]) -> None:
        with self._lock:
            self._last = (known, frames)

    def take(self, known: _Known) -> list[VideoFrame]:
        """The frames if they are this video's; they are given away once."""
        with self._lock:
            last, self._last = self._last, (None, [])
        return last[1] if last[0] is known else []


_Key = tuple[str, int, int, int]
_known: dict[_Key, _Known] = {}
_counted = _Counted()


def read_frames(path: str | Path, indices: ArrayLike, *, stream: int | None = None) -> NDArray[np.uint8]:
    """Reads exactly the frames that decoding from the start gives at these positions.

    Args:
        path: A video, a folder of numbered images, or a still image (one frame).
        indices: Frame numbers from 0, in any order; repeats are allowed.
        stream: Which of the video streams, counted from 0. None: the first.

    Returns:
        RGB, upright, pixel aspect left alone, (T, 3, H, W).

    Raises:
        VideoError: The file cannot be read, or a frame is not there or damaged.
    """
    return np.ascontiguousarray(decode_frames(path, indices, stream=stream).transpose(0, 3, 1, 2))


def decode_frames(
    path: str | Path, indices: ArrayLike, *, stream: int | None = None, short_side: int | None = None
) -> NDArray[np.uint8]:
    """As `read_frames`, but channels last, and reduced while converting.

    Args:
        path, indices, stream: As in `read_frames`.
        short_side: Bring the shorter side down to this many pixels (never up), aspect kept.

    Returns:
        RGB (T, H, W, 3). Frames whose size differs from the first frame of the video are brought to its size.

    Raises:
        VideoError: The file cannot be read, or a frame is not there or damaged.
    """
    path = Path(path)
    numbers = _as_numbers(indices)
    if not numbers:
        info = probe(path, stream=stream)
        width, height = reduced_size((info.width, info.height), short_side)
        return np.empty((0, height, width, 3), np.uint8)
    sheet = _Sheet(numbers)
    if is_images(path):
        _read_images(path, sheet, short_side)
    else:
        _read_video(path, sheet, stream, short_side)
    return sheet.frames


def probe(path: str | Path, *, stream: int | None = None) -> VideoInfo:
    """What is known of a video; remembered by path, size and time of change.

    Raises:
        VideoError: Nothing of it can be read.
    """
    path = Path(path)
    if is_images(path):
        files = image_files(path)
        return VideoInfo(len(files), None, *image_size(files[0]), True, tuple(range(len(files))))
    key = _key(path, stream)
    known = _known.get(key)
    info = known.info if known is not None else None
    if known is None or info is None:
        with open_video(path, stream) as (container, video):
            known = known or _scan(key, container, video)[0]
            info = _describe(container, video, known)
        known.info = info = info or _examine(path, stream, known)
    return info


def timeline(path: str | Path) -> Timeline:
    """As `probe`, without a look at any picture where the packets tell; reading may still find that they lied.

    Raises:
        VideoError: Nothing of it can be read.
    """
    path = Path(path)
    if not is_images(path):
        key = _key(path, None)
        known = _known.get(key)
        if known is None:
            with open_video(path) as (container, video):
                known = _scan(key, container, video)[0]
        if known.index is not None:
            return Timeline(known.index.num_frames, known.fps, known.index.keyframes)
    info = probe(path)
    return Timeline(info.num_frames, info.fps, info.keyframes, info.fault)


def forget(path: str | Path | None = None) -> None:
    """Reads a video, or all of them, again as if for the first time in this process."""
    name = None if path is None else str(Path(path).absolute())
    for key in [key for key in list(_known) if name in (None, key[0])]:
        _known.pop(key, None)
    if path is None:
        _counted.put(None, [])


class _Sheet:
    """The frames asked for, as they come in."""

    def __init__(self, numbers: list[int]):
        self.rows: dict[int, list[int]] = {}
        for row, number in enumerate(numbers):
            self.rows.setdefault(number, []).append(row)
        self.wanted = sorted(self.rows)
        self._length = len(numbers)
        self._frames: NDArray[np.uint8] | None = None

    def clear(self) -> None:
        """Starts again, perhaps with pictures of another size."""
        self._frames = None

    def put(self, number: int, picture: NDArray[np.uint8]) -> None:
        if self._frames is None:
            self._frames = np.empty((self._length, *picture.shape), np.uint8)
        for row in self.rows[number]:
            self._frames[row] = picture

    @property
    def frames(self) -> NDArray[np.uint8]:
        assert self._frames is not None
        return self._frames


def _as_numbers(indices: ArrayLike) -> list[int]:
    array = np.atleast_1d(np.asarray(indices))
    if array.size and (array.ndim != 1 or array.dtype.kind not in "iu"):
        raise ValueError(f"frame indices must be whole numbers in one row, not {array.dtype} {array.shape}")
    return [int(number) for number in array]


def _key(path: Path, stream: int | None) -> _Key:
    try:
        state = path.stat()
    except OSError as error:
        raise VideoError(f"{path}: not found") from error
    return str(path.absolute()), state.st_size, state.st_mtime_ns, stream or 0


def _scan(key: _Key, container: InputContainer, video: VideoStream) -> tuple[_Known, bool]:
    """Builds the index, if it can be trusted, and remembers it; also says whether packets were read for it."""
    reader = packet_reader(container.format.name, video)
    try:
        index = build_index(container, video, reader) if reader else None
    except av.FFmpegError:
        index = None
    if index is not None and missing_bytes(Path(key[0])):
        index = None
    known = _known[key] = _Known(index, frame_rate(video, index.pts) if index is not None else None)
    while len(_known) > NUM_REMEMBERED:
        _known.pop(next(iter(_known)), None)
    return known, reader is not None


def _describe(container: InputContainer, video: VideoStream, known: _Known) -> VideoInfo | None:
    """From the index and the first frame, which knows how it is turned; None where there is no index."""
    index = known.index
    if index is None:
        return None
    try:
        _, first = next(seek_frames(container, video, index, [0]))
    except (NotAsIndexed, av.FFmpegError):
        known.index = None
        return None
    width, height = Turn(first).size((first.width, first.height))
    return VideoInfo(index.num_frames, known.fps, width, height, True, index.keyframes)


def _examine(path: Path, stream: int | None, known: _Known) -> VideoInfo:
    """By decoding everything, which shows what no index can promise."""
    frames: list[VideoFrame] = []
    seen = examine(path, stream, keep=frames)
    known.index, known.damaged = None, seen.damaged
    _counted.put(known, frames)
    return VideoInfo(seen.num_frames, seen.fps, *seen.size, False, seen.keyframes, seen.fault, seen.notes)


def _read_images(path: Path, sheet: _Sheet, short_side: int | None) -> None:
    files = image_files(path)
    _check_range(path, sheet.wanted, len(files))
    size = reduced_size(image_size(files[0]), short_side)
    for number in sheet.wanted:
        picture = read_image(files[number])
        sheet.put(number, picture if picture.shape[1::-1] == size else reduced(picture, size))


def _read_video(path: Path, sheet: _Sheet, stream: int | None, short_side: int | None) -> None:
    key = _key(path, stream)
    known = _known.get(key)
    index = known.index if known is not None else None
    if index is not None:
        _check_range(path, sheet.wanted, index.num_frames)
        with open_video(path, stream, quickly=True) as (container, video):
            if _found(container, video, index, sheet, short_side):
                return
    elif known is not None and _count(_counted.take(known), sheet, short_side):
        return
    with open_video(path, stream) as (container, video):
        known, used = (known, False) if known is not None else _scan(key, container, video)
        index = known.index
        if index is not None:
            used = True
            _check_range(path, sheet.wanted, index.num_frames)
            if _found(container, video, index, sheet, short_side):
                return
            known.index, known.info = None, None
        if not used and _count(container.decode(video), sheet, short_side):
            return
    if used:
        with open_video(path, stream) as (container, video):
            if _count(container.decode(video), sheet, short_side):
                return
    _refuse(path, stream, sheet, known)


def _found(container: InputContainer, video: VideoStream, index: Index, sheet: _Sheet, short_side: int | None) -> bool:
    """Fills the sheet by seeking; False if anything comes out otherwise than the index says."""
    painter = Painter((video.codec_context.width, video.codec_context.height), short_side)
    try:
        for number, frame in seek_frames(container, video, index, sheet.wanted):
            if (frame.width, frame.height) != painter.stored:
                return False  # what the first frame's size is, only counting tells
            sheet.put(number, painter(frame))
    except (NotAsIndexed, av.FFmpegError):
        return False
    return True


def _count(frames: Iterable[VideoFrame], sheet: _Sheet, short_side: int | None) -> bool:
    """Takes frames from the first on until all wanted ones are there; False if one is not, or is damaged."""
    if sheet.wanted[0] < 0:
        return False
    sheet.clear()
    painter: Painter | None = None
    try:
        for number, frame in enumerate(frames):
            painter = painter or Painter((frame.width, frame.height), short_side)
            if number in sheet.rows:
                if frame.is_corrupt:
                    return False
                sheet.put(number, painter(frame))
                if number == sheet.wanted[-1]:
                    return True
    except av.FFmpegError:
        pass
    return False


def _refuse(path: Path, stream: int | None, sheet: _Sheet, known: _Known) -> NoReturn:
    """Says why the wanted frames cannot be had."""
    known.info = info = known.info or _examine(path, stream, known)
    fault = f"; {info.fault}" if info.fault else ""
    _check_range(path, sheet.wanted, info.num_frames, fault)
    damaged = [number for number in sheet.wanted if number in known.damaged]
    if not damaged:  # another program wrote to it between the two looks
        forget(path)
        raise VideoError(f"{path}: changed while it was read; read it again")
    raise VideoError(f"{path}: frame {damaged[0]} is damaged{fault}")


def _check_range(path: Path, wanted: list[int], num_frames: int, fault: str = "") -> None:
    for number in (wanted[0], wanted[-1]):
        if not 0 <= number < num_frames:
            raise VideoError(f"{path}: no frame {number}; it has {num_frames} frames, counted from 0{fault}")
