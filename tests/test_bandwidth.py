"""The bytes of `benchmarks/bandwidth.py`, against files written by other means."""

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from benchmarks.bandwidth import CRFS, cell, cheapest, h264, jpeg, measure, psnr
from tests.conftest import MakeVideo


def scene(num_frames: int, step: int) -> np.ndarray:
    """A smooth picture that moves sideways by `step` pixels a frame, (T, 64, 64, 3)."""
    y, x = np.mgrid[:64, :64]
    frames = [
        np.stack([128 + 90 * np.sin((x + step * t) / 7.0), 128 + 90 * np.cos(y / 9.0), 2.0 * x + y], -1)
        for t in range(num_frames)
    ]
    return np.clip(np.stack(frames), 0, 255).astype(np.uint8)


def test_a_picture_is_as_large_as_its_file(tmp_path: Path) -> None:
    frame = scene(1, 0)[0]
    Image.fromarray(frame).save(tmp_path / "a.jpg", quality=80, optimize=True)
    count, seen = jpeg(frame, 80)
    assert count == (tmp_path / "a.jpg").stat().st_size
    np.testing.assert_array_equal(seen, np.asarray(Image.open(tmp_path / "a.jpg")))


def test_psnr_by_hand() -> None:
    black = np.zeros((2, 4, 4, 3), np.uint8)
    assert psnr(list(black), list(black + 5)) == pytest.approx(20 * np.log10(255 / 5))


def test_the_cheapest_is_the_last_that_is_good_enough() -> None:
    frames = list(scene(4, 3))
    sizes = {crf: h264(frames, crf) for crf in CRFS}
    assert all(len(seen) == 4 for _, seen in sizes.values())
    wanted = psnr(frames, sizes[24][1])
    good = [crf for crf, (_, seen) in sizes.items() if psnr(frames, seen) >= wanted]
    assert cheapest(frames, wanted) == sizes[max(good)][0]
    assert cheapest(frames, 1e3) == sizes[CRFS[0]][0]


def test_a_still_scene_is_nearly_free_as_video(tmp_path: Path, make_video: MakeVideo) -> None:
    video = make_video(tmp_path / "v.mp4", scene(40, 0), options={"g": "10", "bf": "0", "sc_threshold": "0"})
    found = measure(video, 90)["as filmed"]
    assert found["16 JPEGs"] == pytest.approx(16 * found["1 JPEG"], rel=0.05)
    assert found["H.264 of 16"] < 4 * found["H.264 of 1"]
    with av.open(str(video)) as container:
        sizes = [p.size for p in container.demux(video=0) if p.size]
    # Frames 12 to 27; the middle one is 20, a keyframe.
    assert found["packets for 1"] == found["nearest keyframe"] == sizes[20]
    assert found["packets for 16"] == sum(sizes[10:28])
    with pytest.raises(ValueError, match=r"short\.mp4: 5 frames; 16 are wanted"):
        measure(make_video(tmp_path / "short.mp4", scene(5, 0)), 90)


def test_cells_compare_with_one_jpeg() -> None:
    rows = [{"1 JPEG": 1024.0, "x": 2048.0}, {"1 JPEG": 1024.0, "x": 4096.0}]
    assert cell(rows, "x") == "3.0 (3.0; 2.0-4.0)"
