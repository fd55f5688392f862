"""Several crops of a frame, against torchvision."""

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import functional as F

from stillmotion.data.transforms import render_view
from stillmotion.view import NO_DRAW, Draw, View

RNG = np.random.default_rng(0)
WIDE = RNG.integers(0, 256, (4, 45, 61, 3), np.uint8)
"""Two moments of two frames."""


def view(num_crops: int) -> View:
    return View(size=(24, 20), resize=32, num_frames=2, num_moments=2, num_crops=num_crops)  # type: ignore[arg-type]


@pytest.mark.parametrize(("number", "reference"), [(5, F.five_crop), (10, F.ten_crop)])
def test_corners_and_mirror_images_are_those_of_torchvision(number: int, reference: object) -> None:
    found = render_view(WIDE, view(number), Draw(flip=True, box=(0.2, 0.2, 0.5, 0.5)))
    assert found.shape == (2 * number, 2, 3, 24, 20)
    for frame in range(4):
        small = F.resize(Image.fromarray(WIDE[frame]), 32)
        for crop, picture in enumerate(reference(small, (24, 20))):  # type: ignore[operator]
            moment, place = divmod(frame, 2)
            expected = np.asarray(picture).transpose(2, 0, 1)
            np.testing.assert_array_equal(found[moment * number + crop, place], expected)


@pytest.mark.parametrize("tall", [False, True])
def test_three_crops_lie_along_the_longer_side(tall: bool) -> None:
    frames = WIDE.transpose(0, 2, 1, 3) if tall else WIDE
    found = render_view(frames, view(3), NO_DRAW)
    small = np.asarray(F.resize(Image.fromarray(frames[0]), 32)).transpose(2, 0, 1)
    rows, columns = small.shape[1:]
    places = [(0, 6), (round((rows - 24) / 2), 6), (rows - 24, 6)] if tall else [(4, 0), (4, 12), (4, columns - 20)]
    for crop, (top, left) in enumerate(places):
        np.testing.assert_array_equal(found[crop, 0], small[:, top : top + 24, left : left + 20])
    centre = render_view(frames, view(1), NO_DRAW)
    np.testing.assert_array_equal(found[[1, 4]], centre)


def test_crops_need_something_to_crop() -> None:
    with pytest.raises(ValueError, match=r"view.num_crops=3: needs resize=, of which the crops are parts"):
        View(num_crops=3)
    with pytest.raises(ValueError, match=r"view.num_crops=4: choose one of 1, 3, 5, 10"):
        View(num_crops=4, resize=256)  # type: ignore[arg-type]
