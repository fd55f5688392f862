"""Geometry of views, against torchvision on PIL images and against points that must land together."""

import random

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from stillmotion.data.transforms import render_view
from stillmotion.view import NO_DRAW, Augment, Draw, Interpolation, View


def noise(count: int = 1, height: int = 60, width: int = 80) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


@pytest.mark.parametrize("filter_name", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(("resize", "size"), [((48, 61), (45, 45)), (32, (32, 32)), (47, (33, 36)), (97, (80, 81))])
@pytest.mark.parametrize("shape", [(60, 80), (81, 47)])
def test_own_geometry_is_that_of_torchvision(
    filter_name: Interpolation, resize: tuple[int, int] | int, size: tuple[int, int], shape: tuple[int, int]
) -> None:
    frame = noise(1, *shape)
    view = View(resize=resize, size=size, interpolation=filter_name)
    image = Resize(resize, InterpolationMode(str(filter_name)))(Image.fromarray(frame[0]))
    expected = np.asarray(CenterCrop(size)(image)).transpose(2, 0, 1)
    # A flip and a box of the draw must not show.
    shown = render_view(frame, view, Draw(box=(0.1, 0.2, 0.5, 0.5), flip=True))
    np.testing.assert_array_equal(shown[0, 0], expected)


def test_crop_larger_than_the_resized_frame() -> None:
    with pytest.raises(ValueError, match=r"view.size=\(64, 64\): the frame is only 32x42 after resize=32"):
        render_view(noise(), View(resize=32, size=(64, 64)), NO_DRAW)


def test_whole_frame_at_its_size_is_untouched() -> None:
    frames = noise(6)
    shown = render_view(frames, View(size=(60, 80), num_moments=2, num_frames=3), NO_DRAW)
    assert shown.shape == (2, 3, 3, 60, 80)
    assert shown.flags.c_contiguous
    np.testing.assert_array_equal(shown.reshape(6, 3, 60, 80), frames.transpose(0, 3, 1, 2))


def test_box_of_whole_pixels_is_a_crop() -> None:
    frames = noise()
    draw = Draw(box=(15 / 60, 20 / 80, 30 / 60, 40 / 80))
    shown = render_view(frames, View(size=(30, 40)), draw)[0, 0]
    np.testing.assert_array_equal(shown, frames[0, 15:45, 20:60].transpose(2, 0, 1))
    flipped = render_view(frames, View(size=(30, 40)), Draw(box=draw.box, flip=True))[0, 0]
    np.testing.assert_array_equal(flipped, shown[:, :, ::-1])


def test_box_to_a_size_is_one_antialiased_resample() -> None:
    # 40 x 40 pixels to 10 x 10 with a triangle of radius 4: weights 1, 3, 5, 7, 7, 5, 3, 1 over 32 on each axis.
    frame = noise()
    weights = np.array([1, 3, 5, 7, 7, 5, 3, 1]) / 32
    patch = frame[0, 10 + 4 * 3 - 2 : 10 + 4 * 3 + 6, 20 + 4 * 5 - 2 : 20 + 4 * 5 + 6].astype(float)
    expected = np.einsum("hwc,h,w->c", patch, weights, weights)
    shown = render_view(frame, View(size=(10, 10)), Draw(box=(10 / 60, 20 / 80, 40 / 60, 40 / 80)))
    np.testing.assert_allclose(shown[0, 0, :, 3, 5], expected, atol=1.0)


@pytest.mark.parametrize("number", range(6))
def test_a_point_lands_at_the_same_place_in_views_of_different_size(number: int) -> None:
    draw = Draw.of(0, "sample", number, Augment(min_area=0.5, max_ratio=1.3, flip=0.5))
    rows, columns = np.mgrid[0:240, 0:320] + 0.5
    rng = random.Random(number)
    top, left, height, width = draw.box
    y, x = rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7)  # in the box
    blob = np.exp(-((rows / 240 - top - y * height) ** 2 + (columns / 320 - left - x * width) ** 2) / 0.002)
    frames = np.repeat((255 * blob).astype(np.uint8)[None, ..., None], 3, axis=3)
    for size in ((56, 56), (112, 150)):
        shown = render_view(frames, View(size=size), draw)[0, 0, 0].astype(float)
        rows_seen, columns_seen = np.mgrid[0 : size[0], 0 : size[1]] + 0.5
        assert (shown * rows_seen).sum() / shown.sum() / size[0] == pytest.approx(y, abs=0.01)
        expected = 1 - x if draw.flip else x
        assert (shown * columns_seen).sum() / shown.sum() / size[1] == pytest.approx(expected, abs=0.01)


def test_boxes_up_to_the_edge_stay_inside() -> None:
    frames = noise(1, 61, 83)
    for number in range(200):
        draw = Draw.of(1, "edge", number, Augment(min_area=0.98, max_ratio=1.5))
        render_view(frames, View(size=(8, 8)), draw)  # Pillow refuses a box that is outside by any fraction


def test_random_filter_is_drawn_for_each_frame_and_repeats() -> None:
    frames = np.repeat(noise(), 24, axis=0)
    view = View(size=(25, 35), num_frames=24, interpolation="random")
    shown = render_view(frames, view, Draw(filters=7))[0]
    single = {
        name: render_view(frames[:1], View(size=(25, 35), interpolation=name), NO_DRAW)[0, 0]
        for name in ("nearest", "bilinear", "bicubic", "lanczos")
    }
    used = [next(name for name, image in single.items() if np.array_equal(image, frame)) for frame in shown]
    assert set(used) == set(single)
    np.testing.assert_array_equal(render_view(frames, view, Draw(filters=7))[0], shown)
    assert not np.array_equal(render_view(frames, view, Draw(filters=8))[0], shown)


def test_arrays_become_tensors_without_a_copy() -> None:
    shown = render_view(noise(), View(size=(30, 40)), Draw(flip=True))
    assert torch.from_numpy(shown).data_ptr() == shown.ctypes.data
