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
    draw's flip. A view with one (`resize`) is resized as a whole and its centre is cropped, pixel for pixel what
    torchvision's `Resize` and `CenterCrop` give on PIL images; box and flip are then ignored.

    Args:
        frames: (N * T, H, W, 3), RGB, moment by moment.
        view: What is asked for.
        draw: Box, flip and, for `interpolation="random"`, the filters.

    Returns:
        (N, T, 3, h, w), contiguous.

    Raises:
        ValueError: The view crops more than its resize leaves.
    """
    assert view.kind in ("rgb", "difference")
    assert len(frames) == view.num_moments * view.num_frames
    (height, width), source = view.size, frames.shape[1:3]
    names = [str(view.interpolation)] * len(frames)
    if view.interpolation == "random":
        names = random.Random(draw.filters).choices(list(FILTERS), k=len(frames))
    result = np.empty((len(frames), 3, height, width), np.uint8)
    for frame, name, target in zip(frames, names, result, strict=True):
        image = Image.fromarray(frame)
        if view.resize is None:
            image = image.resize((width, height), FILTERS[name], box=_pixel_box(draw, source))
        else:
            image = _resize_and_crop(image, view, FILTERS[name])
        pixels = np.asarray(image).transpose(2, 0, 1)
        # For flow this is the place where the sign of u turns with the picture.
        target[...] = pixels[:, :, ::-1] if draw.flip and view.resize is None else pixels
    return result.reshape(view.num_moments, view.num_frames, 3, height, width)


def _pixel_box(draw: Draw, size: Size) -> tuple[float, float, float, float]:
    """Left, upper, right, lower of the draw's box in pixels, as Pillow wants it."""
    (top, left, height, width), (rows, columns) = draw.box, size
    right, lower = min(1.0, left + width), min(1.0, top + height)
    return left * columns, top * rows, right * columns, lower * rows


def _resize_and_crop(image: Image.Image, view: View, resample: Image.Resampling) -> Image.Image:
    """The view's own geometry, rounded as torchvision rounds."""
    height, width = resized_size((image.height, image.width), view.resize)
    h, w = view.size
    if h > height or w > width:
        raise ValueError(f"view.size={view.size}: the frame is only {height}x{width} after resize={view.resize}")
    image = image.resize((width, height), resample)
    top, left = round((height - h) / 2.0), round((width - w) / 2.0)
    return image.crop((left, top, left + w, top + h))


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
