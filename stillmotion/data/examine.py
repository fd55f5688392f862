"""Decodes a whole video once, in order, and says what is in it and what is wrong with it."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from stillmotion.data.faults import VideoError, cut_text, missing_bytes, reason, why_not_open
from stillmotion.data.index import SMALLEST_VOP
from stillmotion.data.picture import Size, Turn, as_array, scaled

RAW_STREAMS = frozenset(["m4v", "h264", "hevc", "mpegvideo", "vc1", "av1", "obu", "cavsvideo", "dirac", "mjpeg"])
"""Containers that are none: a bare stream of pictures without times."""
PLAYLISTS = frozenset(["hls", "concat", "dash", "imf", "sdp", "rtsp", "rtp", "webm_dash_manifest"])
"""Text that makes FFmpeg read other files, wherever they lie."""
DIGEST_SIZE = 64
KEEP_BYTES = 48 * 2**20


@dataclass(frozen=True)
class Examination:
    """What decoding a video in order from its start shows.

    Args:
        num_frames: Frames before the end or the first decoding error.
        fps: Frames a second, from the timestamps; None if there are none.
        size: Width and height of the first frame, upright.
        keyframes: Numbers of the frames that decoding can start with; frame 0 if there is none.
        damaged: Numbers of the frames that the decoder flags as corrupt.
        fault: What is wrong, in one line, or None.
        notes: What is odd but no fault, and how it is read.
        digest: Hash of all frames (reduced to 64x64), if it was asked for.
    """

    num_frames: int
    fps: float | None
    size: Size
    keyframes: tuple[int, ...]
    damaged: tuple[int, ...] = ()
    fault: str | None = None
    notes: tuple[str, ...] = ()
    digest: str | None = None


@contextmanager
def open_video(
    path: Path, stream: int | None = None, *, quickly: bool = False
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Opens a file and one of its video streams.

    Args:
        path: The file.
        stream: Which of the video streams, counted from 0; None: the first.
        quickly: Without reading ahead to guess frame rates and delays (half of the time for Matroska); where an index
            tells which frames must come.

    Raises:
        VideoError: Not there, not a video, or no such stream.
    """
    try:
        container = av.open(f"file:{path}", options={"analyzeduration": "1"} if quickly else {})
    except FileNotFoundError as error:
        raise VideoError(f"{path}: not found") from error
    except (OSError, ValueError, av.FFmpegError) as error:
        raise VideoError(f"{path}: {why_not_open(path, error)}") from error
    with container:
        if container.format.name in PLAYLISTS:
            raise VideoError(f"{path}: not a video but a playlist ({container.format.name}); name its videos")
        videos = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not videos:
            others = ", ".join(f"{s.type}" for s in container.streams) or "nothing"
            raise VideoError(f"{path}: no video stream (it holds: {others})")
        if not 0 <= (stream or 0) < len(videos):
            raise VideoError(f"{path}: no video stream {stream}; it has {len(videos)}, counted from 0")
        video = videos[stream or 0]
        if video.codec_context is None:
            raise VideoError(f"{path}: no decoder for its video stream")
        video.codec_context.thread_count = 1
        yield container, video


def is_still(container: InputContainer) -> bool:
    """Whether the file is an image, whatever its name."""
    return container.format.name.endswith("_pipe") or container.format.name == "image2"


def frame_rate(stream: VideoStream, pts: Sequence[int] | NDArray[np.int64]) -> float | None:
    """Frames a second: the declared rate, or half of it (fields), where the timestamps agree, else theirs.

    Args:
        stream: The stream that declares a rate.
        pts: Timestamps of all its frames, in any order.
    """
    declared = float(stream.average_rate) if stream.average_rate else None
    span = int(np.ptp(pts)) if len(pts) else 0
    if not span or not stream.time_base:
        return declared
    mean = (len(pts) - 1) / float(span * stream.time_base)
    for rate in (declared, declared / 2.0) if declared else ():
        if abs(mean / rate - 1.0) < max(0.1, 1.5 / len(pts)):
            return rate
    return mean


@dataclass
class _Tally:
    """Counts while decoding."""

    packets: int = 0
    hidden: int = 0
    placeholders: int = 0
    cut_packets: int = 0
    frames: int = 0
    size: Size = (0, 0)
    pts: list[int] = field(default_factory=list)
    keyframes: list[int] = field(default_factory=list)
    damaged: list[int] = field(default_factory=list)
    ordered: bool = True
    error: str | None = None
    """Its words alone: an error keeps all that its traceback saw, this and every picture too."""

    def packet(self, packet: "av.Packet[VideoStream]") -> None:
        self.packets += packet.size > 0
        self.hidden += packet.is_discard
        self.placeholders += 0 < packet.size < SMALLEST_VOP
        self.cut_packets += packet.is_corrupt

    def frame(self, frame: VideoFrame) -> None:
        if self.frames == 0:
            self.size = Turn(frame).size((frame.width, frame.height))
        if frame.key_frame:
            self.keyframes.append(self.frames)
        if frame.is_corrupt:
            self.damaged.append(self.frames)
        if frame.pts is not None:
            self.ordered = self.ordered and (not self.pts or frame.pts > self.pts[-1])
            self.pts.append(frame.pts)
        self.frames += 1


def examine(
    path: Path, stream: int | None = None, *, digest: bool = False, keep: list[VideoFrame] | None = None
) -> Examination:
    """Decodes everything in order.

    Args:
        path, stream: As in `open_video`.
        digest: Also hash all frames.
        keep: Is filled with the decoded frames, or left empty where they take more than `KEEP_BYTES`.

    Raises:
        VideoError: Not one frame can be decoded.
    """
    tally, kept = _Tally(), 0
    content = hashlib.blake2b(digest_size=16)
    with open_video(path, stream) as (container, video):
        try:
            for packet in container.demux(video):
                tally.packet(packet)
                for frame in packet.decode():
                    tally.frame(frame)
                    kept += sum(plane.buffer_size for plane in frame.planes)
                    if keep is not None and kept <= KEEP_BYTES:
                        keep.append(frame)
                    if digest:
                        content.update(as_array(scaled(frame, DIGEST_SIZE, DIGEST_SIZE)).tobytes())
        except av.FFmpegError as error:
            tally.error = reason(error)
        if keep is not None and kept > KEEP_BYTES:
            keep.clear()
        untimed = container.format.name in RAW_STREAMS or is_still(container)
        fault = "; ".join(_faults(path, container, video, tally)) or None
        if not tally.frames:
            raise VideoError(f"{path}: no frame can be decoded{cut_text(path)}: {fault or 'the stream is empty'}")
        return Examination(
            num_frames=tally.frames,
            fps=None if untimed else frame_rate(video, tally.pts),
            size=tally.size,
            keyframes=tuple(tally.keyframes) or (0,),
            damaged=tuple(tally.damaged),
            fault=fault,
            notes=tuple(_notes(video, tally)),
            digest=content.hexdigest() if digest else None,
        )


def _faults(path: Path, container: InputContainer, video: VideoStream, tally: _Tally) -> Iterator[str]:
    name = container.format.name
    suffix = path.suffix.lower().lstrip(".")
    if is_still(container):
        yield f"a still image ({name.removesuffix('_pipe').upper()}) named .{suffix}"
    elif name in RAW_STREAMS and suffix not in container.format.extensions:
        codec = video.codec_context.codec.canonical_name
        yield f"the .{suffix} header is lost: read as a raw {codec} stream of {tally.frames} frames without times"
    expected = _expected(video, tally)
    if tally.error is not None:
        of = f" of {expected}" if expected else ""
        cut = cut_text(path)
        what = "ends" if cut else "decoding fails"
        yield f"{what} after {tally.frames}{of} frames{cut}: {tally.error}"
    elif expected and tally.frames < expected - tally.placeholders - 2:
        yield f"ends after {tally.frames} of {expected} frames{cut_text(path)}"
    elif tally.cut_packets or (not video.frames and missing_bytes(path)):
        yield f"ends after {tally.frames} frames{cut_text(path)}"
    if tally.damaged:
        are = "is" if len(tally.damaged) == 1 else "are"
        yield f"{len(tally.damaged)} of {tally.frames} frames {are} damaged"


def _expected(video: VideoStream, tally: _Tally) -> int:
    """Frames that the header promises, 0 if it promises none or counts fields instead."""
    shown = video.frames - tally.hidden
    doubled = tally.frames + 2 < video.frames and abs(video.frames - 2 * tally.frames) <= 1
    fields = doubled and tally.frames == tally.packets
    return 0 if not video.frames or (fields and not tally.cut_packets) else shown


def _notes(video: VideoStream, tally: _Tally) -> Iterator[str]:
    if tally.hidden:
        yield f"edit list: {tally.frames} of {tally.packets} frames are shown"
    if video.frames and not _expected(video, tally):
        yield f"the header counts fields ({video.frames}); it has {tally.frames} frames"
    elif 0 < video.frames - tally.hidden - tally.frames <= tally.placeholders + 2:
        yield f"the header counts {video.frames - tally.hidden} frames, {tally.frames} can be decoded"
    if not tally.ordered:
        why = "packed B-frames: " if video.codec_context.codec.canonical_name == "mpeg4" else ""
        yield f"{why}timestamps are out of order, frames are counted instead"
