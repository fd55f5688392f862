"""A stream that is watched for minutes, broken twice on the way: memory over time, and which events were right.

    python benchmarks/live.py [--minutes 10] [--model RUN_OR_ONNX] [--output FILE.json]

A local server sends three colours in turn as MPEG-TS over HTTP, at the pace of a camera, and is cut off twice. A network
runs at every decision (random weights; another one with --model), and the answer is read from the colour, so that
what is right is known: an event for every stretch of a colour, begun and ended where the server began and ended it.
"""

import http.server
import threading
import time
from collections.abc import Iterator
from typing import Any

import av
import numpy as np

NAMES = ("red", "green", "blue")
COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200))
TOLERANCE = 1.5
"""Seconds by which the beginning and the end of an event may be off."""


class Camera:
    """A server whose clock goes on whether anybody watches or not, as that of a camera.

    Args:
        seconds: That each colour is shown.
        fps: Frames a second.
        size: Width and height.
    """

    def __init__(self, *, seconds: float = 5.0, fps: int = 25, size: tuple[int, int] = (160, 120)) -> None:
        self.seconds, self.fps, self.size = seconds, fps, size
        self.began = time.time()
        self.away_until = 0.0
        self.clients = 0
        self._cut = threading.Event()
        camera = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                if time.time() < camera.away_until:
                    self.send_error(503)
                    return
                self.send_response(200)
                self.send_header("Content-Type", "video/mp2t")
                self.end_headers()
                camera.send(self.wfile)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/live.ts"

    def __enter__(self) -> "Camera":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect(3600.0)
        self._server.shutdown()
        self._server.server_close()

    def disconnect(self, seconds: float) -> None:
        """Cuts all connections, and refuses new ones for a while."""
        self.away_until = time.time() + seconds
        self._cut.set()
        self._cut = threading.Event()

    def colour(self, seconds: float) -> int:
        """Number of the colour that is shown so long after the start."""
        return int(seconds // self.seconds) % len(COLOURS)

    def stretches(self, end: float) -> Iterator[tuple[int, float, float]]:
        """Colours with the time at which each began and ended, up to `end` (seconds since 1970)."""
        begin = self.began
        while begin < end:
            yield self.colour(begin - self.began + 1e-6), begin, begin + self.seconds
            begin += self.seconds

    def send(self, file: Any) -> None:
        """Encodes frames as they are due until the connection is cut."""
        cut, self.clients = self._cut, self.clients + 1
        rng = np.random.default_rng(0)
        noise = rng.integers(-20, 20, (self.size[1], self.size[0], 3))
        number = int((time.time() - self.began) * self.fps) + 1
        try:
            with av.open(_Sink(file), "w", format="mpegts", options={"flush_packets": "1"}) as container:
                stream = container.add_stream("libx264", rate=self.fps, options={
                    "preset": "ultrafast", "tune": "zerolatency", "g": str(self.fps)})  # fmt: skip
                stream.width, stream.height = self.size
                stream.pix_fmt = "yuv420p"
                while True:
                    if cut.wait(max(0.0, self.began + number / self.fps - time.time())):
                        raise ConnectionAbortedError
                    picture = np.clip(COLOURS[self.colour(number / self.fps)] + noise, 0, 255).astype(np.uint8)
                    frame = av.VideoFrame.from_ndarray(np.roll(picture, 3 * number, 1), format="rgb24")
                    frame.pts = number
                    container.mux(stream.encode(frame))
                    number += 1
        except (OSError, av.FFmpegError):
            pass


class _Sink:
    """What PyAV writes to; after a failure all is swallowed, so that the container closes."""

    def __init__(self, file: Any) -> None:
        self.file, self.broken = file, False

    def write(self, data: bytes) -> int:
        if not self.broken:
            try:
                self.file.write(data)
            except OSError:
                self.broken = True
                raise
        return len(data)
