"""Index of a video's packets, given only where seeking by timestamp is proven to find the right frame.

Timestamps lie often enough (packed B-frames, edit lists, cut files) that everything not proven here is decoded in
order and counted. Nothing is decoded for the index: it reads packets and the few bits of them that tell.
"""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

SEEKABLE_CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi")
KEYFRAME_CODECS = frozenset(["av1", "ffv1", "mjpeg", "prores", "dnxhd", "huffyuv", "rawvideo", "png"])
PROGRESSIVE = (0, 1)
"""Field orders (unknown, progressive) in which one packet is one frame."""
SMALLEST_VOP = 20
"""Bytes; FFmpeg takes smaller MPEG-4 packets for placeholders of packed B-frames, which give no frame."""


class Packet(NamedTuple):
    """What the bitstream says of a packet: `sync` decoding may start here, `disposable` no other frame needs it."""

    sync: bool
    disposable: bool = False


PacketReader = Callable[["av.Packet[VideoStream]"], Packet | None]
"""Looks into a packet; None if it might not be exactly one frame."""


@dataclass(frozen=True, eq=False)
class Index:
    """Packets in decoding order. Frame i of the video is packet `order[i]`.

    Args:
        pts: Presentation times in units of the stream's time base, (P,).
        seek_times: Times by which the container seeks to these packets: Matroska's are pts, others' dts, (P,).
        order: Packet positions by presentation time, (P,).
        syncs: Positions of the packets at which decoding may start.
        disposable: Packets that no other frame needs, (P,).
    """

    pts: NDArray[np.int64]
    seek_times: NDArray[np.int64]
    order: NDArray[np.int64]
    syncs: tuple[int, ...]
    disposable: NDArray[np.bool_]

    @property
    def num_frames(self) -> int:
        """Frames of the video."""
        return len(self.pts)

    @cached_property
    def keyframes(self) -> tuple[int, ...]:
        """Frame numbers of the packets at which decoding may start."""
        rank = np.empty_like(self.order)
        rank[self.order] = np.arange(len(self.order))
        return tuple(sorted(int(rank[position]) for position in self.syncs))

    def start_for(self, position: int) -> int:
        """The last packet from which decoding gives the packet `position` exactly.

        A frame shown before a keyframe that precedes it in the file (open GOP) needs the keyframe before that.
        """
        last = bisect_right(self.syncs, position) - 1
        while last > 0 and self.pts[self.syncs[last]] > self.pts[position]:
            last -= 1
        return self.syncs[last]


def build_index(container: InputContainer, stream: VideoStream, look: PacketReader) -> Index | None:
    """Reads all packets of the stream. None: not proven, decode in order.

    Args:
        container, stream: Just opened.
        look: From `packet_reader`.

    Raises:
        av.FFmpegError: The container cannot be read to its end.
    """
    pts, seek_times, packets = [], [], []
    by_dts = not container.format.name.startswith("matroska")
    for packet in container.demux(stream):
        if packet.size == 0 and packet.pts is None:  # the last one, which flushes
            break
        time = packet.dts if by_dts else packet.pts
        if packet.pts is None or time is None or packet.is_discard or packet.is_corrupt:
            return None
        seen = look(packet)
        if seen is None:
            return None
        pts.append(packet.pts)
        seek_times.append(time)
        packets.append(seen)
    if not packets or not packets[0].sync or pts[0] != min(pts) or len(set(pts)) != len(pts):
        return None
    if stream.frames not in (0, len(packets)):
        return None
    if container.format.name == "avi" and pts != sorted(pts):
        return None
    times = np.array(pts, np.int64)
    return Index(
        pts=times,
        seek_times=np.array(seek_times, np.int64),
        order=np.argsort(times, kind="stable"),
        syncs=tuple(i for i, packet in enumerate(packets) if packet.sync),
        disposable=np.array([packet.disposable for packet in packets]),
    )


def packet_reader(container: str, stream: VideoStream) -> PacketReader | None:
    """How to read this codec's packets in this container; None where it is not known well enough."""
    context = stream.codec_context
    codec, extradata = context.codec.canonical_name, context.extradata or b""
    if container not in SEEKABLE_CONTAINERS or context.field_order not in PROGRESSIVE:
        return None
    if codec in KEYFRAME_CODECS:
        return lambda packet: Packet(packet.is_keyframe)
    if codec == "mpeg4" and not context.reorder_depth:
        return _mpeg4
    if container == "avi":  # no presentation times: those that FFmpeg makes up change after a seek
        return None
    if codec == "vp9":
        return _vp9
    if codec == "vp8":
        return lambda packet: Packet(packet.is_keyframe) if bytes(packet)[0] & 16 else None
    if codec == "h264" and len(extradata) > 6 and extradata[0] == 1:
        return lambda packet: _h264(packet, (extradata[4] & 3) + 1)
    if codec == "hevc" and len(extradata) > 22 and extradata[0] == 1:
        return lambda packet: _hevc(packet, (extradata[21] & 3) + 1)
    return None


def _mpeg4(packet: "av.Packet[VideoStream]") -> Packet | None:
    """One coded VOP that is no B-VOP, or None."""
    data = bytes(packet)
    start = data.find(b"\0\0\1\xb6")
    if len(data) < SMALLEST_VOP or start < 0 or data.find(b"\0\0\1\xb6", start + 4) >= 0:
        return None
    kind = data[start + 4] >> 6
    return None if kind == 2 else Packet(packet.is_keyframe and kind == 0)


def _vp9(packet: "av.Packet[VideoStream]") -> Packet | None:
    """A superframe, or a frame that is shown; None for hidden frames in packets of their own."""
    data = bytes(packet)
    shown = data[0] & 0b1010 or data[-1] & 0b11100000 == 0b11000000
    return Packet(packet.is_keyframe) if shown else None


def _units(data: bytes, prefix: int) -> list[int] | None:
    """Offsets of the NAL units after their length prefixes; None if the lengths do not fill the packet."""
    offsets, offset, end = [], prefix, len(data)
    while offset < end:
        size = int.from_bytes(data[offset - prefix : offset], "big")
        if size == 0:
            return None
        offsets.append(offset)
        offset += size + prefix
    return offsets if offset == end + prefix and offsets else None


def _h264(packet: "av.Packet[VideoStream]", prefix: int) -> Packet | None:
    data = bytes(packet)
    units = _units(data, prefix)
    if units is None:
        return None
    disposable, num_slices, sync = True, 0, False
    for unit in units:
        kind = data[unit] & 31
        if 1 <= kind <= 5:
            num_slices += 1
            disposable = disposable and data[unit] < 32  # nal_ref_idc, two bits above the kind, is 0
            sync = sync or kind == 5
        elif kind == 6:
            sync = sync or _recovers(data[unit + 1 : unit + 256])
    return Packet(sync and packet.is_keyframe, disposable) if num_slices else None


def _recovers(message: bytes) -> bool:
    """Whether an SEI unit says that decoding from here is exact at once (recovery point, 0 frames, exact match)."""
    offset = 0
    while offset + 2 < len(message):
        kind, size = message[offset], message[offset + 1]
        if kind == 255 or size == 255:
            return False
        if kind == 6:
            return message[offset + 2] >> 5 == 0b110
        offset += 2 + size
    return False


def _hevc(packet: "av.Packet[VideoStream]", prefix: int) -> Packet | None:
    data = bytes(packet)
    units = _units(data, prefix)
    if units is None:
        return None
    slices = [kind for kind in (data[u] >> 1 & 63 for u in units) if kind < 32]
    return Packet(packet.is_keyframe and all(16 <= kind <= 21 for kind in slices)) if slices else None
