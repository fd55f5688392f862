"""Frames by seeking, where an index tells which packets they need."""

from collections.abc import Iterator

from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from stillmotion.data.index import Index


class NotAsIndexed(Exception):
    """Seeking did not give what the index says; count instead."""


def seek_frames(
    container: InputContainer, video: VideoStream, index: Index, wanted: list[int]
) -> Iterator[tuple[int, VideoFrame]]:
    """Yields wanted frames with their numbers, each decoded from the keyframe that it needs.

    Raises:
        NotAsIndexed, av.FFmpegError: The packets are not those of the index, or a frame does not come out sound.
    """
    numbers = {int(index.pts[index.order[number]]): number for number in wanted}
    for first, last in runs(index, wanted):
        for frame in _decode_run(container, video, index, first, last, numbers):
            number = numbers.pop(frame.pts, None) if frame.pts is not None else None
            if number is not None:
                if frame.is_corrupt:
                    raise NotAsIndexed
                yield number, frame
    if numbers:
        raise NotAsIndexed


def runs(index: Index, wanted: list[int]) -> list[tuple[int, int]]:
    """Stretches of packets, first and last, that hold the wanted frames and all that those need."""
    found: list[tuple[int, int]] = []
    for last in sorted(int(index.order[number]) for number in wanted):
        first = index.start_for(last)
        while found and first <= found[-1][1] + 1:
            first = min(first, found.pop()[0])
        found.append((first, last))
    return found


def _decode_run(
    container: InputContainer, video: VideoStream, index: Index, first: int, last: int, numbers: dict[int, int]
) -> Iterator[VideoFrame]:
    """Frames of the packets `first` to `last`; those that nobody wants or needs are skipped."""
    context = video.codec_context
    expected = index.pts[first : last + 1].tolist()
    spare = index.disposable[first : last + 1].tolist()
    container.seek(int(index.seek_times[first]), stream=video)
    position, skipping = -1, False
    for packet in container.demux(video):
        if position < 0 and packet.pts is not None and packet.pts != expected[0]:
            continue  # the container went further back than asked
        position += 1
        if packet.pts != expected[position]:
            raise NotAsIndexed
        if skipping != (spare[position] and packet.pts not in numbers):
            skipping = not skipping
            context.skip_frame = "NONREF" if skipping else "DEFAULT"
        yield from packet.decode()
        if position == len(expected) - 1:
            break
    context.skip_frame = "DEFAULT"
    yield from context.decode(None)
