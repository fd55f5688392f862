"""Shared fixtures: where the real videos are, and small videos made on the spot."""

import os
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


@pytest.fixture
def tiny_table(tmp_path: Path, make_video: MakeVideo) -> Path:
    """Two classes, five training and two test videos of 20 frames."""
    rng, lines = np.random.default_rng(0), ["path,label,split"]
    for k in range(7):
        make_video(tmp_path / f"{k}.mp4", rng.integers(0, 256, (20, 6, 8, 3), np.uint8).repeat(8, 1).repeat(8, 2))
        lines.append(f"{k}.mp4,{'ab'[k % 2]},{'train' if k < 5 else 'test'}")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    return tmp_path / "table.csv"
