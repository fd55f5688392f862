"""Bytes of a file that must be read to see some of its frames."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray

from stillmotion.data.examine import open_video
from stillmotion.data.images import image_files, is_images
from stillmotion.data.index import Index, Packet, build_index, packet_reader
from stillmotion.data.seek import runs
from stillmotion.data.source import Videos
from stillmotion.data.table import Sample
from stillmotion.view import NO_DRAW, View


def sample_bytes(sample: Sample, views: Iterable[View]) -> int:
    """Bytes that must be read for what some views see of a sample, all of them together; see `decoded_bytes`.

    Raises:
        ValueError: The file cannot be read.
    """
    extent = Videos().extent(sample)
    start, _ = sample.frame_range(extent.num_frames + sum(extent.around), extent.fps)
    frames = np.unique(np.concatenate([extent.frames_of(view, NO_DRAW).ravel() for view in views])) + start
    return decoded_bytes(sample.path, frames)


def decoded_bytes(path: Path, frames: NDArray[np.int64]) -> int:
    """Bytes of the packets that must be read to see some frames: from the keyframe before each up to it.

    Where a file has to be decoded from its start (`stillmotion.data.index`), these are all packets up to the last
    frame. Sound and the container's own bytes do not count.

    Args:
        path: A video, a still, or a folder of numbered images.
        frames: Numbers of frames.

    Raises:
        ValueError: The file cannot be read.
    """
    if is_images(path):
        files = image_files(path)
        return sum(files[i].stat().st_size for i in np.unique(frames))
    sizes, index = _packets(path)
    if index is not None:
        return int(sum(sizes[first : last + 1].sum() for first, last in runs(index, np.unique(frames).tolist())))
    return int(sizes[: int(frames.max()) + 1].sum())


def _packets(path: Path) -> tuple[NDArray[np.int64], Index | None]:
    """Sizes of the packets in their order, and their index, if it can be trusted."""
    sizes: list[int] = []
    with open_video(path) as (container, video):
        look = packet_reader(container.format.name, video)

        def note(packet: "av.Packet[VideoStream]") -> Packet | None:
            assert look is not None
            sizes.append(packet.size)
            return look(packet)

        try:
            index = build_index(container, video, note) if look is not None else None
        except av.FFmpegError:
            index = None
    if index is None:
        sizes.clear()
        with open_video(path) as (container, video), suppress(av.FFmpegError):  # what precedes a fault can be decoded
            sizes.extend(packet.size for packet in container.demux(video) if packet.size)
    return np.array(sizes, np.int64), index
