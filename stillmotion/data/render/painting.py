"""What pictures of moving scenes are painted with: repeating noise, colour ramps, dots, hills.

Pictures are float32 (H, W, 3), RGB in 0 to 255; places are shares of the picture's height, x to the right, y down.
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]  # of floating numbers; OpenCV's types know no more
Rng = np.random.Generator
Moment = Callable[[float], Floats]
"""A scene: from seconds to a picture."""
Colour = tuple[float, float, float]


def noise(rng: Rng, height: int, width: int, cells: tuple[int, int], octaves: int = 4) -> Floats:
    """Smooth random field in 0 to 1 that repeats without a seam, (height, width).

    Args:
        rng: Source of the randomness.
        height, width: Of the field.
        cells: Rows and columns of its largest blobs.
        octaves: Finer and weaker layers.
    """
    total = np.zeros((height, width), np.float32)
    for k in range(octaves):
        rows, columns = cells[0] * 2**k, cells[1] * 2**k
        grid = np.pad(rng.random((rows, columns), np.float32), 1, "wrap")
        y = np.arange(height, dtype=np.float32)[:, None] * (rows / height) + 1
        x = np.arange(width, dtype=np.float32)[None] * (columns / width) + 1
        total += 0.5**k * sample(grid, x + 0 * y, y + 0 * x)
    low, high = np.percentile(total, (1, 99))
    levels: Floats = ((total - low) / (high - low)).clip(0, 1)
    return levels


def sample(field: Floats, x: Floats, y: Floats) -> Floats:
    """Values of a repeating field at fractional places."""
    x, y = x.astype(np.float32, copy=False), y.astype(np.float32, copy=False)
    return cv2.remap(field, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def ramp(values: Floats, *stops: tuple[float, Colour]) -> Floats:
    """Colours of values, through the given (value, colour)."""
    at = [s[0] for s in stops]
    return np.stack([np.interp(values, at, [s[1][c] for s in stops]) for c in range(3)], -1).astype(np.float32)


def over(image: Floats, colour: Floats | Colour, opacity: Floats) -> Floats:
    mixed: Floats = image + (np.asarray(colour, np.float32) - image) * opacity[..., None]
    return mixed


def places(height: int, width: int) -> tuple[Floats, Floats]:
    """x and y of every pixel as shares of the height, y from the top."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / height
    return x, y


def gradient(height: int, width: int, above: Colour, below: Colour, share: float = 1.0) -> Floats:
    _, y = places(height, width)
    return ramp(y / share, (0, above), (1, below))


def draw_hills(image: Floats, rng: Rng, base: float, rise: float, colour: Colour, *, rough: int = 3) -> None:
    """A ridge with its land below, drawn in place."""
    height, width = image.shape[:2]
    line = noise(rng, 1, width, (1, rough), 3)[0]
    x = np.arange(width)
    points = np.stack([x, height * (base - rise * line)], 1)
    points = np.concatenate([points, [[width, height], [0, height]]]).astype(np.int32)
    cv2.fillPoly(image, [points], colour, cv2.LINE_AA)


def draw_fir(image: Floats, x: float, foot: float, size: float, colour: Colour) -> None:
    h = image.shape[0]
    for k in range(3):
        half, top, low = size * (0.18 + 0.07 * k), size * (1 - 0.28 * k), size * (0.55 - 0.25 * k)
        points = np.array([[x - half, foot - low], [x + half, foot - low], [x, foot - top]]) * h
        cv2.fillPoly(image, [points.astype(np.int32)], colour, cv2.LINE_AA)


def draw_dots(layer: Floats, x: Floats, y: Floats, radius: Floats) -> None:
    """White discs on a layer of opacities, in place; places and radii as shares of the height."""
    h = layer.shape[0]
    for a, b, r in zip((x * h * 8).tolist(), (y * h * 8).tolist(), (radius * h * 8).tolist(), strict=True):
        cv2.circle(layer, (round(a), round(b)), max(4, round(r)), 1.0, -1, cv2.LINE_AA, 3)


def draw_box(image: Floats, left: float, top: float, right: float, bottom: float, colour: tuple[float, ...]) -> None:
    h = image.shape[0] * 8
    cv2.rectangle(
        image, (round(left * h), round(top * h)), (round(right * h), round(bottom * h)), colour, -1, cv2.LINE_AA, 3
    )


def scatter(rng: Rng, height: int, width: int, number: int) -> tuple[Floats, Floats, Floats]:
    """Start places and nearness of many particles."""
    near = rng.random(number).astype(np.float32) ** 2
    return (rng.random(number) * width / height).astype(np.float32), rng.random(number).astype(np.float32), near
