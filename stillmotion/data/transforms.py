"""From decoded frames to what a view sees: box, flip and size in one resample.

Pillow and NumPy only. Training, evaluation and prediction call the same function, so that a student sees in use what
it saw in training.
"""

import random

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stillmotion.view import Draw, View

Frames = NDArray[np.uint8]
Size = tuple[int, int]

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def render_view(frames: Frames, view: View, draw: Draw) -> Frames:
    """Frames of a sample as one view sees them.

    A view without a geometry of its own gets the draw's box, resampled once (antialiased) to `view.size`, and the
    draw's flip. A view with one (`resize`) is resized as a whole and its centre (or several crops) taken, pixel for
    pixel what torchvision's `Resize`, `CenterCrop`, `FiveCrop` and `TenCrop` give on PIL images; box and flip are then
    ignored.

    Args:
        frames: (N * T, H, W, 3), RGB, moment by moment.
        view: What is asked for.
        draw: Box, flip and, for `interpolation="random"`, the filters.

    Returns:
        (N, T, 3, h, w), contiguous; N is moment by moment, crop by crop.

    Raises:
        ValueError: The view crops more than its resize leaves.
    """
    assert view.kind in ("rgb", "difference")
    assert len(frames) == view.num_moments * view.num_frames
    (height, width), source = view.size, frames.shape[1:3]
    names = [str(view.interpolation)] * len(frames)
    if view.interpolation == "random":
        names = random.Random(draw.filters).choices(list(FILTERS), k=len(frames))
    result = np.empty((view.num_moments, view.num_crops, view.num_frames, 3, height, width), np.uint8)
    for number, (frame, name) in enumerate(zip(frames, names, strict=True)):
        image = Image.fromarray(frame)
        if view.resize is None:
            image = image.resize((width, height), FILTERS[name], box=_pixel_box(draw, source))
            crops = [_mirrored(image) if draw.flip else image]
        else:
            crops = _resize_and_crop(image, view, FILTERS[name])
        moment, place = divmod(number, view.num_frames)
        for crop, target in zip(crops, result[moment, :, place], strict=True):
            target[...] = np.asarray(crop).transpose(2, 0, 1)
    return result.reshape(view.num_shown, view.num_frames, 3, height, width)


def _pixel_box(draw: Draw, size: Size) -> tuple[float, float, float, float]:
    """Left, upper, right, lower of the draw's box in pixels, as Pillow wants it."""
    (top, left, height, width), (rows, columns) = draw.box, size
    right, lower = min(1.0, left + width), min(1.0, top + height)
    return left * columns, top * rows, right * columns, lower * rows


def _resize_and_crop(image: Image.Image, view: View, resample: Image.Resampling) -> list[Image.Image]:
    """The view's own geometry, rounded and ordered as torchvision does it."""
    height, width = resized_size((image.height, image.width), view.resize)
    h, w = view.size
    if h > height or w > width:
        raise ValueError(f"view.size={view.size}: the frame is only {height}x{width} after resize={view.resize}")
    image = image.resize((width, height), resample)
    middle = (round((height - h) / 2.0), round((width - w) / 2.0))
    ends = [(0, 0), (0, width - w), (height - h, 0), (height - h, width - w)]
    places = [*ends, middle]
    if view.num_crops == 1:
        places = [middle]
    elif view.num_crops == 3:
        top, left = middle
        places = [(0, left), middle, (height - h, left)] if height > width else [(top, 0), middle, (top, width - w)]
    images = [image, _mirrored(image)] if view.num_crops == 10 else [image]
    return [i.crop((left, top, left + w, top + h)) for i in images for top, left in places]


def _mirrored(image: Image.Image) -> Image.Image:
    # For flow this is the place where the sign of u turns with the picture.
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
