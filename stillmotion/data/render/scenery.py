"""Backdrops: places that a person recognises, drawn with a little variety."""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Rng = np.random.Generator

HORIZON = 0.72
"""Where the ground begins, as a share of the height; figures stand below it."""


def draw_scenery(name: str, size: int, rng: Rng) -> Image:
    """Draws a place.

    Args:
        name: One of `PLACES`.
        size: Height and width in pixels.
        rng: Source of the variety.

    Returns:
        (size, size, 3) uint8, RGB.
    """
    image = np.zeros((size, size, 3), np.uint8)
    PLACES[name](image, rng)
    light = rng.uniform(0.85, 1.1)
    tint = rng.uniform(0.94, 1.06, 3)
    return (image * (light * tint)).clip(0, 255).astype(np.uint8)


def _gradient(image: Image, top: float, bottom: float, above: tuple[int, ...], below: tuple[int, ...]) -> None:
    """Fills the band between two heights (shares) with a change from one colour to the other."""
    size = image.shape[0]
    first, last = round(top * size), round(bottom * size)
    share = np.linspace(0.0, 1.0, last - first)[:, None, None]
    image[first:last] = (np.array(above) * (1 - share) + np.array(below) * share).astype(np.uint8)


def _box(image: Image, left: float, top: float, right: float, bottom: float, colour: tuple[int, ...]) -> None:
    size = image.shape[0]
    corners = [round(size * v) for v in (left, top, right, bottom)]
    cv2.rectangle(image, corners[:2], corners[2:], colour, -1)


def _shape(image: Image, points: list[tuple[float, float]], colour: tuple[int, ...]) -> None:
    cv2.fillPoly(image, [(np.array(points) * image.shape[0] * 16).astype(np.int32)], colour, cv2.LINE_AA, 4)


def _disc(image: Image, x: float, y: float, radius: float, colour: tuple[int, ...]) -> None:
    size = image.shape[0] * 16
    cv2.circle(image, (round(x * size), round(y * size)), round(radius * size), colour, -1, cv2.LINE_AA, 4)


def _beach(image: Image, rng: Rng) -> None:
    _gradient(image, 0.0, 0.5, (110, 180, 240), (200, 230, 250))
    _disc(image, rng.uniform(0.1, 0.9), rng.uniform(0.08, 0.2), 0.07, (255, 240, 170))
    _gradient(image, 0.5, HORIZON, (30, 110, 170), (80, 170, 200))
    _gradient(image, HORIZON, 1.0, (235, 214, 160), (215, 185, 125))
    x = rng.uniform(0.1, 0.7)
    _shape(image, [(x, 0.5), (x + 0.14, 0.5), (x + 0.07, 0.33)], (250, 250, 245))


def _forest(image: Image, rng: Rng) -> None:
    _gradient(image, 0.0, HORIZON, (95, 150, 95), (40, 90, 50))
    for x in np.arange(-0.05, 1.05, 0.16) + rng.uniform(-0.05, 0.05):
        x += rng.uniform(-0.03, 0.03)
        _box(image, x, 0.2, x + rng.uniform(0.03, 0.06), HORIZON + 0.03, (84, 58, 38))
        _disc(image, x + 0.02, rng.uniform(0.08, 0.24), rng.uniform(0.11, 0.16), (34, int(rng.integers(90, 130)), 44))
    _gradient(image, HORIZON, 1.0, (70, 100, 45), (100, 80, 45))


def _street(image: Image, rng: Rng) -> None:
    _gradient(image, 0.0, HORIZON, (170, 185, 200), (205, 205, 205))
    left = -0.1 * rng.random()
    while left < 1.0:
        right, top = left + rng.uniform(0.2, 0.34), rng.uniform(0.08, 0.3)
        wall = (int(rng.integers(130, 190)), int(rng.integers(80, 110)), int(rng.integers(70, 95)))
        _box(image, left, top, right, HORIZON, wall)
        for y in np.arange(top + 0.05, HORIZON - 0.1, 0.12):
            for x in np.arange(left + 0.03, right - 0.06, 0.09):
                _box(image, x, y, x + 0.045, y + 0.065, (235, 225, 150) if rng.random() < 0.4 else (55, 65, 85))
        left = right + 0.02
    _box(image, 0.0, HORIZON, 1.0, 1.0, (95, 95, 100))
    _box(image, 0.0, HORIZON, 1.0, HORIZON + 0.05, (165, 165, 160))


def _gym(image: Image, rng: Rng) -> None:
    _gradient(image, 0.0, HORIZON, (225, 205, 165), (205, 180, 140))
    left = rng.uniform(-0.1, 0.2)
    for x in (left, left + 0.45, left + 0.9):
        for y in np.arange(0.12, HORIZON - 0.02, 0.065):
            _box(image, x, y, x + 0.3, y + 0.02, (150, 95, 45))
        _box(image, x - 0.015, 0.08, x + 0.01, HORIZON, (120, 75, 35))
        _box(image, x + 0.29, 0.08, x + 0.315, HORIZON, (120, 75, 35))
    _gradient(image, HORIZON, 1.0, (205, 140, 70), (225, 160, 90))
    _box(image, 0.0, 0.86, 1.0, 0.875, (180, 40, 40))


def _snow(image: Image, rng: Rng) -> None:
    _gradient(image, 0.0, HORIZON, (130, 160, 200), (215, 225, 240))
    for _ in range(3):
        x, top, half = rng.uniform(0.0, 1.0), rng.uniform(0.15, 0.35), rng.uniform(0.3, 0.45)
        slope = half / (HORIZON - top)
        _shape(image, [(x - half, HORIZON), (x + half, HORIZON), (x, top)], (105, 115, 140))
        _shape(image, [(x - 0.12 * slope, top + 0.12), (x + 0.12 * slope, top + 0.12), (x, top)], (245, 248, 252))
    _gradient(image, HORIZON, 1.0, (250, 252, 255), (215, 225, 240))


def _room(image: Image, rng: Rng) -> None:
    _gradient(image, 0.0, HORIZON, (190, 120, 135), (175, 105, 125))
    for x in np.arange(rng.uniform(0.0, 0.1), 1.0, 0.1):
        _box(image, x, 0.0, x + 0.03, HORIZON, (215, 160, 165))
    x = rng.uniform(0.05, 0.65)
    _box(image, x, 0.12, x + 0.3, 0.45, (245, 240, 230))
    _box(image, x + 0.02, 0.14, x + 0.14, 0.43, (150, 200, 235))
    _box(image, x + 0.16, 0.14, x + 0.28, 0.43, (150, 200, 235))
    _gradient(image, HORIZON, 1.0, (95, 45, 80), (120, 60, 100))


def _studio(image: Image, rng: Rng) -> None:
    paper = rng.uniform(90, 220) * rng.uniform(0.8, 1.2, 3).clip(0, 1.15)
    _gradient(image, 0.0, HORIZON, tuple(paper * 0.85), tuple(paper))
    _gradient(image, HORIZON, 1.0, tuple(paper * 0.95), tuple(paper * 0.7))


PLACES: dict[str, Callable[[Image, Rng], None]] = {
    "beach": _beach,
    "forest": _forest,
    "gym": _gym,
    "room": _room,
    "snow": _snow,
    "street": _street,
    "studio": _studio,
}
