"""Shared fixtures: where the real videos are, and small videos made on the spot."""

import os

# One thread for each of the processes that run tests side by side; set before anything reads it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import signal
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would every process that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _find_data() -> Path | None:
    folder = Path(os.environ.get("STILLMOTION_DATA", Path(__file__).parents[2] / "shared" / "data"))
    return folder if (folder / "SHA256SUMS").exists() else None


DATA = _find_data()
needs_data = pytest.mark.skipif(DATA is None, reason="real videos not found; set STILLMOTION_DATA to their folder")

MakeVideo = Callable[..., Path]


@pytest.fixture
def make_video() -> MakeVideo:
    """Writes uint8 frames (T, H, W, 3) as a video and returns its path."""

    def make(
        path: Path,
        frames: NDArray[np.uint8],
        *,
        fps: int = 25,
        codec: str = "libx264",
        options: dict[str, str] | None = None,
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=Fraction(fps), options=options or {})
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            for frame in frames:
                for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)
        return path

    return make


def write_table(folder: Path, make_video: MakeVideo, *, train: int, test: int, num_frames: int) -> Path:
    """Two classes in turn, videos of noise."""
    rng, lines = np.random.default_rng(0), ["path,label,split"]
    for k in range(train + test):
        noise = rng.integers(0, 256, (num_frames, 6, 8, 3), np.uint8)
        make_video(folder / f"{k}.mp4", noise.repeat(8, 1).repeat(8, 2))
        lines.append(f"{k}.mp4,{'ab'[k % 2]},{'train' if k < train else 'test'}")
    (folder / "table.csv").write_text("\n".join(lines))
    return folder / "table.csv"


@pytest.fixture
def tiny_table(tmp_path: Path, make_video: MakeVideo) -> Path:
    """Two classes, five training and two test videos of 20 frames."""
    return write_table(tmp_path, make_video, train=5, test=2, num_frames=20)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings draw no curves and write no page, which is half of what a small one takes."""
    for name in ("report_safely", "draw_curves"):
        monkeypatch.setattr(f"stillmotion.train.{name}", lambda *_: None)
