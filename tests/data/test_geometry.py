"""Geometry on the device against Pillow's, on which that of the loader rests."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillmotion.data.dataset import VideoDataset, collate
from stillmotion.data.geometry import render_batch
from stillmotion.data.table import Sample, Table
from stillmotion.view import Augment, View
from tests.conftest import MakeVideo


@pytest.fixture
def table(tmp_path: Path, make_video: MakeVideo) -> Table:
    """Smooth videos of two sizes, and one that cannot be read."""
    rng, samples = np.random.default_rng(0), []
    for k, (height, width) in enumerate([(48, 64), (64, 48), (48, 64)]):
        small = rng.integers(0, 256, (6, height // 8, width // 8, 3), np.uint8)
        path = make_video(tmp_path / f"{k}.mp4", small.repeat(8, 1).repeat(8, 2))
        samples.append(Sample(path, path.name, {}))
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    return Table((*samples, Sample(tmp_path / "bad.mp4", "bad.mp4", {})))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(16, 24), (80, 72)])
def test_the_device_shows_what_the_loader_shows(table: Table, interpolation: str, size: tuple[int, int]) -> None:
    views = {
        "student/frames": View(size=size, num_moments=2, moment="random", interpolation=interpolation),  # type: ignore[arg-type]
        "teacher/clip": View(size=16, num_frames=3, moment="random", resize=20),  # its own geometry
    }
    made: list[dict[str, Any]] = []
    for as_read in (False, True):
        dataset = VideoDataset(table, None, views, random=True, as_read=as_read,
                               augment=Augment(min_area=0.3, max_ratio=1.5, flip=0.5))  # fmt: skip
        batches = [collate([dataset[epoch, row] for row in range(4)]) for epoch in range(4)]
        assert [len(batch["errors"]) for batch in batches] == [1] * 4
        if as_read:
            assert batches[0]["student/frames"].shape == (3, 2, 1, 64, 64, 3), "both sizes in one batch"
        made += [render_batch(batch) for batch in batches]
    for here, there in zip(made[:4], made[4:], strict=True):
        assert here.keys() == there.keys()
        assert there["student/frames"].dtype == torch.uint8
        assert there["student/frames"].shape == (3, 2, 1, 3, *size)
        torch.testing.assert_close(here["teacher/clip"], there["teacher/clip"], rtol=0, atol=0)
        distance = (here["student/frames"].int() - there["student/frames"].int()).abs()
        assert distance.max() <= 1
        assert here["student/frames"].float().std() > 20, "there is something to see"


def test_a_batch_that_is_ready_stays() -> None:
    batch = {"student/frames": torch.zeros(1), "errors": []}
    assert render_batch(batch) is batch
