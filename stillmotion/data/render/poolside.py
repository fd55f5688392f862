"""What stands around a diver: the tower, the hall or the open air, the water and the splash.

Places are metres: x from the platform's edge out over the pool, y up from the water.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from stillmotion.data.render.diver import GRAVITY, PLATFORM
from stillmotion.data.render.figure import Colour
from stillmotion.data.render.painting import Floats, Rng, draw_dots, noise, over, ramp, sample

Image = NDArray[np.uint8]

LEFT, RIGHT, TOP, BOTTOM = -9.0, 11.0, 16.0, -3.5
"""What is painted of the world."""
FAR = 0.9
"""Where the far edge of the pool is seen."""
Box = Callable[[float, float, float, float, tuple[float, ...]], None]
"""Fills left, top, right, bottom with a colour."""


@dataclass(frozen=True)
class Venue:
    """What is the same in all dives of an event.

    Args:
        hall: In a hall; else in the open air.
        wall, accent, water: Colours, RGB.
        view: Height of what the camera sees, metres.
        lag: Seconds that the camera is late behind the diver.
        aim: How far beside and above the diver the camera looks, metres.
        mirrored: Whether the platform is on the right.
        light, tint, grain: Brightness, colour cast, noise.
        ability: How clean its divers dive; 0 is usual, more is worse.
        seed: Decides the details.
    """

    hall: bool
    wall: Colour
    accent: Colour
    water: Colour
    view: float
    lag: float
    aim: tuple[float, float]
    mirrored: bool
    light: float
    tint: tuple[float, float, float]
    grain: float
    ability: float
    seed: int

    @classmethod
    def of(cls, rng: Rng) -> "Venue":
        """A venue at random."""
        walls = ((214, 210, 200), (168, 186, 204), (120, 132, 150), (226, 220, 190), (150, 170, 160), (92, 96, 116))
        accents = ((24, 60, 150), (190, 36, 50), (20, 120, 110), (232, 150, 30), (110, 40, 130), (30, 36, 52))
        waters = ((28, 122, 188), (40, 160, 196), (20, 92, 160), (64, 176, 184), (30, 132, 150))
        return cls(
            hall=bool(rng.random() < 0.65),
            wall=walls[rng.integers(len(walls))],
            accent=accents[rng.integers(len(accents))],
            water=waters[rng.integers(len(waters))],
            view=rng.uniform(3.8, 5.2),
            lag=rng.uniform(0.04, 0.12),
            aim=(rng.uniform(-0.4, 0.5), rng.uniform(-0.35, 0.25)),
            mirrored=bool(rng.random() < 0.5),
            light=rng.uniform(0.86, 1.1),
            tint=(rng.uniform(0.94, 1.06), rng.uniform(0.96, 1.04), rng.uniform(0.94, 1.06)),
            grain=rng.uniform(1.5, 4.0),
            ability=rng.normal(0, 0.25),
            seed=int(rng.integers(2**31)),
        )


def paint_venue(venue: Venue, scale: float) -> Image:
    """The whole backdrop, without light and water's ripples.

    Args:
        venue: Which.
        scale: Pixels a metre.

    Returns:
        (H, W, 3) uint8, RGB; the upper left is at `LEFT`, `TOP`.
    """
    rng = np.random.default_rng([venue.seed, 5])
    height, width = round((TOP - BOTTOM) * scale), round((RIGHT - LEFT) * scale)
    image = np.zeros((height, width, 3), np.float32)
    wall = np.array(venue.wall, float)

    def box(left: float, top: float, right: float, bottom: float, colour: tuple[float, ...]) -> None:
        corners = [((left - LEFT) * scale, (TOP - top) * scale), ((right - LEFT) * scale, (TOP - bottom) * scale)]
        first, last = ((round(x), round(y)) for x, y in corners)
        cv2.rectangle(image, first, last, colour, -1)

    rows = np.linspace(TOP, BOTTOM, height)[:, None]
    if venue.hall:
        image[:] = ramp(rows, (FAR, tuple(0.72 * wall)), (TOP, tuple(wall)))
        for x in np.arange(LEFT + rng.uniform(0, 2), RIGHT, rng.uniform(2.2, 3.6)):
            box(x, TOP, x + 0.22, 3.2, tuple(0.86 * wall))
        for y in (6.2, 9.4, 12.6):
            box(LEFT, y, RIGHT, y - 0.12, tuple(0.8 * wall))
        if rng.random() < 0.6:
            for x in np.arange(LEFT + rng.uniform(0, 1), RIGHT, 2.6):
                box(x, 15.2, x + 1.9, 13.0, (206, 224, 238))
        left = rng.uniform(2, 5)
        box(left, 8.9, left + 3.4, 7.1, tuple(0.5 * np.array(venue.accent) + 20))
        box(left + 0.2, 8.6, left + 2.2, 8.2, (236, 236, 230))
    else:
        image[:] = ramp(rows, (2, (206, 226, 240)), (TOP, (96, 156, 220)))
        ridge = noise(rng, 1, width, (1, 5), 4)[0]
        points = np.stack([np.arange(width), (TOP - 3.6 - 4.2 * ridge) * scale], 1)
        points = np.concatenate([points, [[width, height], [0, height]]]).astype(np.int32)
        green = rng.uniform(0.7, 1.1) * np.array([70.0, 112.0, 62.0])
        cv2.fillPoly(image, [points], tuple(green), cv2.LINE_AA)
    _paint_stand(box, venue, rng)
    _paint_tower(box, venue)
    water = np.array(venue.water, float)
    low = rows[:, 0] < FAR
    image[low] = ramp(rows[low], (BOTTOM, tuple(0.78 * water)), (FAR, tuple((1.2 * water + 14).clip(0, 255))))
    return image.clip(0, 255).astype(np.uint8)


def _paint_stand(box: Box, venue: Venue, rng: Rng) -> None:
    """Spectators, a banner and the deck on the far side."""
    box(LEFT, 3.4, RIGHT, FAR, (92, 94, 100))
    for row in range(4):
        y = 3.3 - 0.42 * row
        for x in np.arange(LEFT + 0.17 * (row % 2), RIGHT, 0.34):
            if rng.random() < 0.78:
                shirt = tuple(rng.uniform(60, 225, 3))
                box(x, y - 0.14, x + 0.24, y - 0.4, shirt)
                box(x + 0.06, y, x + 0.18, y - 0.13, tuple(rng.uniform(0.5, 1.0) * np.array([224.0, 172.0, 138.0])))
    box(LEFT, 1.62, RIGHT, 1.15, venue.accent)
    for x in np.arange(LEFT + rng.uniform(0, 1), RIGHT, 2.4):
        box(x, 1.5, x + rng.uniform(0.7, 1.5), 1.28, (238, 238, 236))
    box(LEFT, 1.15, RIGHT, FAR, (198, 194, 184))


def _paint_tower(box: Box, venue: Venue) -> None:
    """Concrete with four platforms; the upper one is dived from, the lower ones show how far from it one falls."""
    concrete = 0.5 * np.array(venue.wall, float) + 70
    box(-3.6, PLATFORM, -2.2, FAR, tuple(0.82 * concrete))
    box(-2.2, PLATFORM, -2.0, FAR, tuple(0.62 * concrete))
    for y, edge in ((3.0, -0.5), (5.0, -0.8), (7.5, -0.6)):
        box(LEFT, y, edge, y - 0.24, tuple(0.9 * concrete))
        box(LEFT, y - 0.24, edge, y - 0.32, tuple(0.6 * concrete))
    box(LEFT, PLATFORM, 0.0, PLATFORM - 0.2, tuple(1.0 * concrete))
    box(LEFT, PLATFORM - 0.2, 0.0, PLATFORM - 0.34, venue.accent)
    for x in np.arange(LEFT, -1.4, 1.1):  # the railing
        box(x, PLATFORM + 1.0, x + 0.05, PLATFORM, (226, 226, 228))
    box(LEFT, PLATFORM + 1.04, -1.4, PLATFORM + 0.98, (226, 226, 228))


def follow(venue: Venue, centres: Floats, times: Floats, width: float, rng: Rng) -> Floats:
    """Where the camera looks: at the diver, a little late, shaking, and not under the water.

    Args:
        venue: Which.
        centres: Of the diver's mass in every frame, (T, 2) metres.
        times: Of the frames, (T,) seconds.
        width: Of what the camera sees, metres.
        rng: Source of the shaking.

    Returns:
        Centre of the picture, (T, 2) metres.
    """
    looks = centres.copy()
    late = 1 - np.exp(-(times[1] - times[0]) / venue.lag)
    for k in range(1, len(looks)):
        looks[k] = looks[k - 1] + late * (looks[k] - looks[k - 1])
    looks += venue.aim
    shake = rng.uniform(0, 2 * np.pi, (2, 2))
    for axis in (0, 1):
        waves = [np.sin(shake[axis, k] + rate * times) for k, rate in enumerate((2.1, 5.3))]
        looks[:, axis] += 0.03 * np.sum(waves, axis=0)
    looks[:, 1] = np.maximum(looks[:, 1], venue.view / 2 - 1.25)
    low = np.array([LEFT + width / 2, BOTTOM + venue.view / 2]) + 0.05  # a pixel or two, for rounding
    high = np.array([RIGHT - width / 2, TOP - venue.view / 2]) - 0.05
    seen: Floats = looks.clip(low, high)
    return seen


class Pool:
    """The water of one dive: ripples, what shines through, the splash.

    Args:
        rng: Source of the randomness.
        size: Of the splash, 0 (none) to 1 (huge).
        where: x of the entry.
        entry: Second of the entry.
    """

    def __init__(self, rng: Rng, *, size: float, where: float, entry: float):
        self.size, self.where, self.entry = size, where, entry
        self.waves = noise(rng, 128, 256, (8, 8), 4)
        number = round(30 + 330 * size)
        out = rng.normal(0, 1, number)
        self.speed = np.stack([0.9 * (0.3 + size) * out, (1.2 + 5.2 * size) * np.sqrt(rng.random(number))])
        self.delay = 0.24 * rng.random(number) ** 1.5
        self.radius = rng.uniform(0.018, 0.05, number) * (0.8 + 0.7 * size)
        self.start = where + 0.16 * (0.5 + size) * rng.normal(0, 1, number)

    def ripple(self, image: Image, time: float, corner: tuple[float, float], scale: float) -> None:
        """Lets the water move, in place.

        Args:
            image: (H, W, 3) uint8.
            time: Seconds.
            corner: x and y of the world at the picture's upper left.
            scale: Pixels a metre.
        """
        first = max(0, round((corner[1] - FAR) * scale))
        rows, columns = image.shape[0] - first, image.shape[1]
        if rows <= 0:
            return
        y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
        x, y = corner[0] + x / scale, corner[1] - (first + y) / scale
        deep = 1 / (FAR + 0.6 - y)  # ripples are flatter far away
        field = sample(self.waves, 34 * x + 14 * time, 110 * deep + 9 * time)
        field = (field + sample(self.waves, 27 * x - 11 * time + 40, 140 * deep - 7 * time))[..., None]
        shaded = image[first:] * (0.84 + 0.16 * field) + 120 * (field - 1.45).clip(0, 0.4)
        image[first:] = shaded.clip(0, 255).astype(np.uint8)

    def cover(self, image: Image, before: Image, corner: tuple[float, float], scale: float) -> None:
        """Puts what is below the surface under water, in place; `before` is the picture without the diver."""
        first = max(0, round(corner[1] * scale))
        if first < image.shape[0]:
            image[first:] = cv2.addWeighted(before[first:], 0.8, image[first:], 0.2, 0)

    def splash(self, image: Image, time: float, corner: tuple[float, float], scale: float) -> None:
        """Draws drops and foam, in place."""
        age = time - self.entry
        if age < 0:
            return
        height = image.shape[0]
        layer: Floats = np.zeros(image.shape[:2], np.float32)
        x, y = (self.where - corner[0]) * scale, corner[1] * scale
        grown = 1 - np.exp(-age / 0.3)
        axes = ((0.25 + 1.5 * self.size) * grown * scale, (0.06 + 0.24 * self.size) * grown * scale)
        cv2.ellipse(layer, (round(x), round(y)), (round(axes[0]), round(axes[1])), 0, 0, 360, 1.0, -1, cv2.LINE_AA)
        layer *= np.float32(0.75 * np.exp(-age / 1.2))
        flown = age - self.delay
        up = self.speed[1] * flown - GRAVITY / 2 * flown**2
        alive = (flown > 0) & (up > -0.1)
        spread = self.start + self.speed[0] * flown * 0.6
        places = ((spread - corner[0]) * scale / height, (corner[1] - up) * scale / height)
        drops = np.zeros_like(layer)
        draw_dots(drops, places[0][alive], places[1][alive], (self.radius * scale / height)[alive])
        drops = cv2.GaussianBlur(drops, (0, 0), 0.02 * scale)
        layer = np.maximum(layer, 0.85 * drops)
        image[:] = over(image.astype(np.float32), (240, 246, 250), layer).astype(np.uint8)
