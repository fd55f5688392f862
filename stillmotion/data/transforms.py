"""From decoded frames to what a view sees: box, flip and size in one resample.

Pillow, NumPy and (for flow) OpenCV only. Training, evaluation and prediction call the same function, so that a student
sees in use what it saw in training.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stillmotion.data.flow import Vectors, flow_of_pairs, to_bytes
from stillmotion.stopwatch import Stopwatch
from stillmotion.view import Draw, View

Frames = NDArray[np.uint8]
Size = tuple[int, int]

STILL = 3e-4
"""Motion of so small a share of the view's shorter side is noise, and not blown up by `FlowConfig.relative`."""

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def render_view(frames: Frames | Sequence[Frames], view: View, draw: Draw, watch: Stopwatch | None = None) -> Frames:
    """Frames of a sample as one view sees them.

    A view without a geometry of its own gets the draw's box, resampled once (antialiased) to `view.size`, and the
    draw's flip. A view with one (`resize`) is resized as a whole and its centre (or several crops) taken, pixel for
    pixel what torchvision's `Resize`, `CenterCrop`, `FiveCrop` and `TenCrop` give on PIL images; box and flip are then
    ignored.

    Args:
        frames: N * T of (H, W, 3), RGB, moment by moment; for flow N * 2T, pair by pair.
        view: What is asked for.
        draw: Box, flip and, for `interpolation="random"`, the filters.
        watch: Learns how long flow takes (`flow`).

    Returns:
        (N, T, C, h, w), contiguous; N is moment by moment, crop by crop. C is 3, and 2 for flow.

    Raises:
        ValueError: The view crops more than its resize leaves.
    """
    if view.kind == "flow":
        assert len(frames) == 2 * view.num_moments * view.num_frames
        with (watch or Stopwatch()).part("flow"):
            fields = flow_of_pairs(frames, view.flow)
        return render_flow(fields, view, draw)
    assert view.kind in ("rgb", "difference")
    assert len(frames) == view.num_moments * view.num_frames
    names = [str(view.interpolation)] * len(frames)
    if view.interpolation == "random":
        names = random.Random(draw.filters).choices(list(FILTERS), k=len(frames))
    result = np.empty((view.num_moments, view.num_crops, view.num_frames, 3, *view.size), np.uint8)
    for number, (frame, name) in enumerate(zip(frames, names, strict=True)):
        moment, place = divmod(number, view.num_frames)
        for crop, target in zip(_shown(frame, view, draw, name).crops, result[moment, :, place], strict=True):
            target[...] = np.asarray(crop).transpose(2, 0, 1)
    return result.reshape(view.num_shown, view.num_frames, 3, *view.size)


def render_flow(fields: Iterable[Vectors], view: View, draw: Draw) -> Frames:
    """Fields of flow as a view sees them: in pixels of the view, as bytes.

    The vectors turn with the picture: they are stretched as it is, and a mirror image moves the other way.

    Args:
        fields: N * T of (H, W, 2), in pixels of their own, moment by moment.
        view, draw: As in `render_view`.

    Returns:
        (N, T, 2, h, w).
    """
    name = str(view.interpolation) if view.interpolation != "random" else "bilinear"
    result = np.empty((view.num_moments, view.num_crops, view.num_frames, 2, *view.size), np.float32)
    for number, vectors in enumerate(fields):
        moment, place = divmod(number, view.num_frames)
        u, v = (_shown(np.ascontiguousarray(vectors[..., k]), view, draw, name) for k in range(2))
        for crop, (x, y) in enumerate(zip(u.crops, v.crops, strict=True)):
            sign = -1.0 if u.mirrored[crop] else 1.0
            result[moment, crop, place, 0] = np.asarray(x) * np.float32(sign * u.scale[1])
            result[moment, crop, place, 1] = np.asarray(y) * np.float32(u.scale[0])
    if view.flow.relative:
        result /= np.sqrt(np.square(result).mean((2, 3, 4, 5), keepdims=True)) + STILL * min(view.size)
    return to_bytes(result, view.flow.bound).reshape(view.num_shown, view.num_frames, 2, *view.size)


@dataclass(frozen=True)
class _Shown:
    """What a view sees of a picture.

    Args:
        crops: Pictures of the view's size.
        mirrored: Which of them are mirror images.
        scale: By how much the picture was stretched, down and across.
    """

    crops: list[Image.Image]
    mirrored: list[bool]
    scale: tuple[float, float]


def _shown(picture: NDArray[Any], view: View, draw: Draw, name: str) -> _Shown:
    """Applies the geometry of a view and draw to RGB (H, W, 3) uint8, or to one channel (H, W) of floats."""
    image, (height, width) = Image.fromarray(picture), view.size
    if view.resize is None:
        left, upper, right, lower = _pixel_box(draw, picture.shape[:2])
        image = image.resize((width, height), FILTERS[name], box=(left, upper, right, lower))
        scale = (height / (lower - upper), width / (right - left))
        return _Shown([_mirror(image) if draw.flip else image], [draw.flip], scale)
    crops, size = _resize_and_crop(image, view, FILTERS[name])
    mirrored = [view.num_crops == 10 and number >= 5 for number in range(len(crops))]
    return _Shown(crops, mirrored, (size[0] / picture.shape[0], size[1] / picture.shape[1]))


def _pixel_box(draw: Draw, size: tuple[int, ...]) -> tuple[float, float, float, float]:
    """Left, upper, right, lower of the draw's box in pixels, as Pillow wants it."""
    (top, left, height, width), (rows, columns) = draw.box, size
    right, lower = min(1.0, left + width), min(1.0, top + height)
    return left * columns, top * rows, right * columns, lower * rows


def _resize_and_crop(image: Image.Image, view: View, resample: Image.Resampling) -> tuple[list[Image.Image], Size]:
    """The view's own geometry, rounded and ordered as torchvision does it; also the size that it was resized to."""
    height, width = resized_size((image.height, image.width), view.resize)
    h, w = view.size
    if h > height or w > width:
        raise ValueError(f"view.size={view.size}: the frame is only {height}x{width} after resize={view.resize}")
    image = image.resize((width, height), resample)
    middle = (round((height - h) / 2.0), round((width - w) / 2.0))
    places = [(0, 0), (0, width - w), (height - h, 0), (height - h, width - w), middle]
    if view.num_crops == 1:
        places = [middle]
    elif view.num_crops == 3:
        top, left = middle
        places = [(0, left), middle, (height - h, left)] if height > width else [(top, 0), middle, (top, width - w)]
    images = [image, _mirror(image)] if view.num_crops == 10 else [image]
    return [i.crop((left, top, left + w, top + h)) for i in images for top, left in places], (height, width)


def _mirror(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def resized_size(size: Size, resize: Size | int | None) -> Size:
    """Height and width after `View.resize`: as given, or the shorter side as given and the other in proportion.

    Example:
        >>> resized_size((240, 320), 256)
        (256, 341)
    """
    if resize is None:
        return size
    if not isinstance(resize, int):
        return resize
    height, width = size
    if width <= height:
        return int(resize * height / width), resize
    return resize, int(resize * width / height)
