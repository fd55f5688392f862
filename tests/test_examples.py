"""The examples run."""

import runpy
from pathlib import Path

import numpy as np

from tests.conftest import MakeVideo

FOLDER = Path(__file__).parents[1] / "examples"


def test_hallucinet(tmp_path: Path, make_video: MakeVideo) -> None:
    """Two classes told apart by how fast a bar moves; one epoch on six videos."""
    lines = ["path,label,split"]
    for k in range(9):
        frames = np.zeros((16, 48, 64, 3), np.uint8)
        for t in range(16):
            frames[t, :, (3 * k + (1 + 3 * (k % 2)) * t) % 64] = 255
        make_video(tmp_path / f"{k}.mp4", frames)
        lines.append(f"{k}.mp4,{('slow', 'fast')[k % 2]},{'train' if k < 6 else 'test'}")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    main = runpy.run_path(str(FOLDER / "hallucinet.py"))["main"]
    scores = main([str(tmp_path / "table.csv"), "--epochs", "1"])
    assert list(scores) == ["teacher", "branch idle", "hallucinet", "hallucinated_r2", "hallucinated_r2_within_class"]
    assert all(0.0 <= scores[name] <= 1.0 for name in ("teacher", "branch idle", "hallucinet"))
    assert scores["hallucinated_r2"] < 1.0
