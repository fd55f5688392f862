"""Frames of cameras and streams: a thread reads them, keeps the newest, and connects again when they break off."""

import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from stillmotion.config import LiveConfig
from stillmotion.data.faults import one_line

TIMEOUT = 10.0
"""Seconds without data after which a connection counts as broken."""
FIRST_DELAY, LONGEST_DELAY = 0.5, 10.0
"""Seconds between two attempts to connect; each time twice as many."""
DAMAGE = 100
"""Packets in a row that cannot be decoded, after which the connection counts as broken."""


@dataclass(frozen=True)
class StreamFrame:
    """A frame of a stream.

    Args:
        number: From 1, in its connection.
        connection: From 1.
        time: Seconds from the first frame of all; a lost connection counts with the time that it took.
        clock: When it arrived, in seconds since 1970.
        picture: As it was decoded.
    """

    number: int
    connection: int
    time: float
    clock: float
    picture: VideoFrame


class Stream:
    """A camera or stream, decoded in a thread of its own.

    Frames that the caller does not take in time are dropped, the oldest first, where they are late for good (`drops`):
    of a camera or another source without an end. A source with an end waits instead, and nothing of it is lost. An
    endless source that breaks off is connected again, after 0.5 s, 1 s, 2 s, ... up to 10 s.

    Attributes:
        fps: Frames a second, as the source says.
        endless: Whether it has no known end.
        drops: Whether late frames are dropped.
        dropped: How many were.
        damaged: Packets that could not be decoded.
        room: Frames that wait for the caller at most.
        error: Why it ended, if not as it should.

    Args:
        source: A camera's number, or a URL; `file://PATH` is a file that is read as a stream.
        config: `late`, `reconnect`, `max_frames` and `gap` count here.
        stop: Set from elsewhere, ends it.

    Raises:
        ValueError: It cannot be opened, or holds no video.
    """

    def __init__(self, source: str, config: LiveConfig, stop: threading.Event | None = None) -> None:
        self.source, self.config, self.stop = source, config, stop
        self._closed = threading.Event()
        self.fps, self.dropped, self.damaged, self.room = 25.0, 0, 0, 1
        self.error: str | None = None
        self._queue: deque[StreamFrame] = deque()
        self._ready = threading.Condition()
        self._ended, self._connection, self._count = False, 0, 0
        self._base, self._last, self._began = 0.0, -inf, 0.0
        self._container, self._stream = self._connect()
        self.endless = self._container.duration is None and not source.startswith("file:")
        self.drops = config.late == "drop" or (config.late == "auto" and self.endless)
        self._thread = threading.Thread(target=self._run, name=f"reader of {source}", daemon=True)

    def batches(self) -> Iterator[list[StreamFrame]]:
        """All frames that wait, again and again; ends with the source or when it is stopped.

        Where none comes for `gap` seconds, there is an empty batch.
        """
        self._thread.start()
        while True:
            with self._ready:
                until = time.monotonic() + self.config.gap
                while not (self._queue or self._ended or self._stopped) and time.monotonic() < until:
                    self._ready.wait(0.2)
                if self._stopped or (self._ended and not self._queue):
                    return
                batch = list(self._queue)
                self._queue.clear()
                self._ready.notify_all()
            yield batch

    @property
    def _stopped(self) -> bool:
        return self.stop is not None and self.stop.is_set()

    def close(self) -> None:
        """Ends the thread. One that waits for the network is left behind; it ends with its time-out."""
        self._closed.set()
        with self._ready:
            self._ready.notify_all()
        if self._thread.is_alive():
            self._thread.join(1.0)

    def _connect(self) -> tuple[InputContainer, VideoStream]:
        file, format = address(self.source)
        options = {"rtsp_transport": "tcp"} if file.startswith("rtsp") else {}
        try:
            container = av.open(file, format=format, timeout=TIMEOUT, options=options)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise ValueError(f"{self.source}: {one_line(error)}") from None
        if not container.streams.video:
            container.close()
            raise ValueError(f"{self.source}: no video in this stream")
        stream = container.streams.video[0]
        stream.thread_type = "SLICE"  # frame threads would hold back as many frames as there are threads
        fps = float(stream.average_rate or stream.guessed_rate or 0.0)
        self.fps = fps if 0.0 < fps <= 1000.0 else 25.0  # some cameras give the ticks of their clock
        self._connection += 1
        return container, stream

    def _run(self) -> None:
        try:
            while (reason := self._read()) is not None:
                self._container.close()
                if not self.endless:
                    self.error = f"{self.source}: {reason}"
                    return
                _say(f"{self.source}: {reason}; connecting again")
                if not self._again():
                    return
        finally:
            self._container.close()
            with self._ready:
                self._ended = True
                self._ready.notify_all()

    def _read(self) -> str | None:
        """Reads one connection; gives why it broke off, None if all was read that was wanted."""
        first: float | None = None
        number = damaged = 0
        try:
            for packet in self._container.demux(self._stream):
                try:
                    frames = packet.decode()
                except av.error.InvalidDataError:
                    self.damaged, damaged = self.damaged + 1, damaged + 1
                    if damaged == DAMAGE:
                        return f"{DAMAGE} packets in a row could not be decoded"
                    continue
                for frame in frames:
                    number, damaged, self._count = number + 1, 0, self._count + 1
                    seconds = frame.time if frame.time is not None else (number - 1) / self.fps
                    first = self._begin(seconds) if first is None else first
                    self._put(StreamFrame(number, self._connection, self._time(seconds - first), time.time(), frame))
                    if self._closed.is_set() or self._count == self.config.max_frames:
                        return None
        except (av.FFmpegError, OSError, ValueError) as error:
            return one_line(error)
        return "the stream broke off" if self.endless else None

    def _begin(self, seconds: float) -> float:
        """Notes the first frame of a connection; its time stamp."""
        if self._connection == 1:
            self._began = time.monotonic()
        self._base = time.monotonic() - self._began if self._connection > 1 else 0.0
        return seconds

    def _time(self, seconds: float) -> float:
        """Seconds since the first frame of all; time stamps that jump back go on from where they were."""
        if self._base + seconds <= self._last:
            self._base = self._last + 1.0 / self.fps - seconds
        self._last = self._base + seconds
        return self._last

    def _put(self, frame: StreamFrame) -> None:
        with self._ready:
            if self.drops:
                while len(self._queue) >= self.room:
                    self._queue.popleft()
                    self.dropped += 1
            while len(self._queue) >= self.room and not self._closed.is_set():
                self._ready.wait(0.2)
            self._queue.append(frame)
            self._ready.notify_all()

    def _again(self) -> bool:
        """Tries to connect until it works, the time is over or it is stopped."""
        lost, delay = time.monotonic(), FIRST_DELAY
        while time.monotonic() - lost < self.config.reconnect:
            if self._closed.wait(min(delay, max(0.0, lost + self.config.reconnect - time.monotonic()))):
                return False
            delay = min(2.0 * delay, LONGEST_DELAY)
            try:
                self._container, self._stream = self._connect()
            except ValueError:
                continue
            _say(f"{self.source}: connected again after {time.monotonic() - lost:.1f} s")
            return True
        self.error = f"{self.source}: lost, and not there again within {self.config.reconnect:g} s (live.reconnect)"
        return False


def address(source: str) -> tuple[str, str | None]:
    """File and format for `av.open`: a URL as it is, or the system's camera."""
    if not source.isdigit():
        return source.removeprefix("file://"), None
    if sys.platform == "darwin":
        return source, "avfoundation"
    if sys.platform == "win32":
        return f"video={source}", "dshow"
    return f"/dev/video{source}", "v4l2"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
