"""A stream that is watched for minutes, broken twice on the way: memory over time, and which events were right.

    python benchmarks/live.py [--minutes 10] [--model RUN_OR_ONNX] [--output FILE.json]

A local server sends three colours in turn as MPEG-TS over HTTP, at the pace of a camera, and is cut off twice. A
network runs at every decision (a run folder or an exported file with --model), and the answer is read from the colour,
so that what is right is known: an event for every stretch of a colour, begun and ended where the server did.
"""

import argparse
import http.server
import json
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

Outages = list[tuple[float, float]]
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


def make_run(folder: Path) -> Path:
    """A one-frame student with random weights."""
    import torch

    from stillmotion.models.factory import create_model
    from stillmotion.models.pretrained import save_pretrained
    from stillmotion.tasks import Classification

    torch.manual_seed(0)
    student = create_model("timm/mobilenetv3_small_100", num_classes=len(NAMES), view={"size": 112})
    return save_pretrained(student, Classification(NAMES), folder)


def coloured(predictor: Any) -> Any:
    """The predictor with answers that are read from the colour; its network runs all the same."""
    network, (name, *_) = predictor.network, predictor.views

    def run(inputs: dict[str, NDArray[np.uint8]]) -> NDArray[np.float32]:
        network(inputs)
        return (inputs[name].mean((0, 1, 3, 4)) / 8.0).astype(np.float32)

    predictor.network = run
    return predictor


def memory() -> float:
    """Of this process now, in MiB."""
    from stillmotion.memory import resident_mib

    held = resident_mib("now")
    if held is None:
        raise RuntimeError("this system does not tell how much memory a process holds")
    return held


def serve(pipe: Any, plan: list[tuple[float, float]]) -> None:
    """A camera in a process of its own, which is cut off as planned; says its address, its start and the cuts."""
    with Camera() as camera:
        pipe.send((camera.url, camera.began, camera.seconds))
        for at, seconds in plan:
            if pipe.poll(max(0.0, camera.began + at - time.time())):
                return
            camera.disconnect(seconds)
            pipe.send(time.time())
        pipe.recv()


def stretches(began: float, seconds: float, first: float, last: float) -> Iterator[tuple[int, float, float]]:
    """Colours that were shown between two times, each with when it began and ended."""
    number = int((first - began) // seconds)
    while began + number * seconds < last:
        yield number % len(COLOURS), began + number * seconds, began + (number + 1) * seconds
        number += 1


def check(shown: list[tuple[int, float, float]], events: list[Any], outages: Outages) -> dict[str, int]:
    """Compares what was told with what was shown.

    A colour that no outage touches must be one event, right at both ends. One that an outage touches may be told in
    parts or not at all, but never as another colour.

    Args:
        shown: Colours with when they began and ended.
        events: Starts and stops.
        outages: From when to when nothing was seen; before and after the watch, too.

    Returns:
        Numbers of colours that are `right`, `missed` or `touched`, and of events that are `wrong`.
    """
    starts = {e.id: _seconds(e.clock) for e in events if e.state == "start"}
    told = [(e.label, starts[e.id], _seconds(e.clock)) for e in events if e.state == "stop"]
    count = {"right": 0, "missed": 0, "touched": 0, "wrong": 0}
    known = set()
    for colour, first, last in shown:
        near = [i for i, (name, a, b) in enumerate(told) if name == NAMES[colour] and i not in known
                and a > first - TOLERANCE and b < last + TOLERANCE]  # fmt: skip
        exact = [i for i in near if abs(told[i][1] - first) < TOLERANCE and abs(told[i][2] - last) < TOLERANCE]
        known |= set(near)
        if any(a - TOLERANCE < last and first < b + TOLERANCE for a, b in outages):
            count["touched"] += 1
        else:
            count["right" if len(exact) == len(near) == 1 else "missed"] += 1
    count["wrong"] = len(told) - len(known)
    return count


def _seconds(clock: str) -> float:
    return datetime.fromisoformat(clock.replace("Z", "+00:00")).timestamp()


def main() -> None:
    """Prints memory every half a minute, and what was right."""
    from stillmotion.config import LiveConfig
    from stillmotion.live import watch
    from stillmotion.predict import Predictor

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--model", help="run folder or .onnx; default: a MobileNet with random weights")
    parser.add_argument("--output", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()
    seconds, stop, events = 60.0 * args.minutes, threading.Event(), []
    rows: list[dict[str, float]] = []
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        predictor = coloured(Predictor.load(args.model or make_run(Path(folder)), device="cpu"))
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        plan = [(seconds / 3.0, 3.0), (2.0 * seconds / 3.0, 8.0)]
        camera = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, plan), daemon=True)
        camera.start()
        url, began, length = ours.recv()
        begin, step = time.time(), min(30.0, seconds / 10.0)
        threading.Timer(seconds, stop.set).start()
        for decision in watch(url, predictor, LiveConfig(), on_event=events.append, stop=stop):
            times.append(time.time())
            if times[-1] - begin >= len(rows) * step:
                rows.append({"seconds": times[-1] - begin, "mib": memory(), "decisions": len(times),
                             "dropped": decision.dropped or 0, "threads": threading.active_count()})  # fmt: skip
                print("  ".join(f"{name} {value:8.1f}" for name, value in rows[-1].items()), flush=True)
        cuts = [ours.recv() for _ in plan]
        ours.send("done")
    back = [min(t for t in [*times, times[-1] + 1e9] if t > cut + 2.0) for cut in cuts]
    outages = [(began - 1e9, times[0]), *zip(cuts, back, strict=True), (times[-1], times[-1] + 1e9)]
    found = check(list(stretches(began, length, begin, times[-1])), events, outages)
    half = [row["mib"] for row in rows[len(rows) // 2 :]]
    print(f"events: {found}; seen again after {[round(b - a, 1) for a, b in zip(cuts, back, strict=True)]} s")
    print(f"memory in the second half: {half[0]:.1f} to {half[-1]:.1f} MiB, at most {max(half):.1f}")
    if args.output:
        args.output.write_text(json.dumps({"rows": rows, "events": found, "cuts": cuts, "back": back}, indent=1))


if __name__ == "__main__":
    main()
