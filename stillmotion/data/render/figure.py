"""A person in the side view: skeleton, pose, drawing. Other worlds (dives, scenes) draw the same figure."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Colour = tuple[int, int, int]
Point = NDArray[np.float64]

JOINTS = ("lean", "head", "arm", "elbow", "arm2", "elbow2", "thigh", "knee", "thigh2", "knee2", "lift", "shift")
"""What a pose holds. Angles in degrees, 0 hanging straight down (torso and head: straight up), positive to the front;
knees bend backwards, elbows forwards. `2` marks the limb on the far side. `lift` (flight above the ground) and `shift`
(way to the front) in body heights."""

STAND = {
    "arm": -4.0,
    "elbow": 12.0,
    "arm2": 6.0,
    "elbow2": 12.0,
    "thigh": 4.0,
    "knee": 4.0,
    "thigh2": -5.0,
    "knee2": 2.0,
}

Pose = NDArray[np.float64]


def pose(**angles: float) -> Pose:
    """A standing figure with some joints changed.

    Returns:
        One number for each of `JOINTS`, (12,).
    """
    assert set(angles) <= set(JOINTS), angles
    return np.array([angles.get(name, STAND.get(name, 0.0)) for name in JOINTS])


@dataclass(frozen=True)
class Body:
    """Proportions (in body heights) and clothes of one person.

    Args:
        height: Body height, as a share of the picture's height.
        legs: Length of a leg.
        width: Thickness of the limbs, 1 is usual.
        skin, hair, shirt, trousers, shoes: Colours, RGB.
        sleeves: Whether the shirt covers the arms.
    """

    height: float = 0.62
    legs: float = 0.48
    width: float = 1.0
    skin: Colour = (224, 172, 138)
    hair: Colour = (60, 40, 30)
    shirt: Colour = (200, 40, 40)
    trousers: Colour = (40, 50, 110)
    shoes: Colour = (30, 30, 30)
    sleeves: bool = True

    @classmethod
    def of(cls, rng: np.random.Generator) -> "Body":
        """A person at random."""
        skins = ((244, 208, 177), (224, 172, 138), (198, 134, 96), (141, 85, 54), (96, 60, 42))
        hairs = ((30, 25, 22), (70, 45, 30), (150, 100, 50), (215, 185, 120), (120, 120, 122))
        return cls(
            height=rng.uniform(0.68, 0.75),
            legs=rng.uniform(0.45, 0.51),
            width=rng.uniform(0.85, 1.25),
            skin=skins[rng.integers(len(skins))],
            hair=hairs[rng.integers(len(hairs))],
            shirt=_colour(rng),
            trousers=_colour(rng),
            shoes=_colour(rng),
            sleeves=bool(rng.random() < 0.6),
        )


def _colour(rng: np.random.Generator) -> Colour:
    hsv = np.array([[[rng.integers(180), rng.integers(60, 230), rng.integers(50, 240)]]], np.uint8)
    red, green, blue = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0].tolist()
    return red, green, blue


def _along(start: Point, angle: float, length: float) -> Point:
    """The point `length` away, in the direction that hangs down at 0 degrees and points to the front at 90."""
    radians = np.deg2rad(angle)
    return start + length * np.array([np.sin(radians), -np.cos(radians)])


def skeleton(body: Body, pose: Pose) -> dict[str, Point]:
    """Where the joints are, in body heights: x to the front, y up, origin on the ground under the standing hip.

    The lower foot stands on the ground, `lift` above it.
    """
    p = dict(zip(JOINTS, pose.tolist(), strict=True))
    hip = np.array([p["shift"], 0.0])
    torso = 0.81 - body.legs
    points = {"hip": hip, "neck": _along(hip, 180.0 - p["lean"], torso)}
    points["head"] = _along(points["neck"], 180.0 - p["lean"] - p["head"], 0.1)
    points["shoulder"] = _along(hip, 180.0 - p["lean"], 0.93 * torso)
    for side in ("", "2"):
        points["elbow" + side] = _along(points["shoulder"], p["arm" + side], 0.165)
        points["hand" + side] = _along(points["elbow" + side], p["arm" + side] + p["elbow" + side], 0.16)
        shin = p["thigh" + side] - p["knee" + side]
        points["knee" + side] = _along(hip, p["thigh" + side], body.legs / 2)
        points["ankle" + side] = _along(points["knee" + side], shin, body.legs / 2)
        points["toe" + side] = _along(points["ankle" + side], shin + 85.0, 0.085)
    ground = min(points[name][1] for name in ("ankle", "ankle2", "toe", "toe2")) - 0.02
    rise = np.array([0.0, p["lift"] - ground])
    return {name: point + rise for name, point in points.items()}


def draw_figure(
    image: NDArray[np.uint8], body: Body, pose: Pose, *, at: tuple[float, float], facing: int, scale: float = 1.0
) -> None:
    """Draws a person into a picture.

    Args:
        image: (H, W, 3) uint8, changed in place.
        body: Who.
        pose: How, see `JOINTS`.
        at: x and y of the ground under the hip, as shares of the picture's width and height.
        facing: 1 looks to the right, -1 to the left.
        scale: Factor on the body height.
    """
    height, width = image.shape[:2]
    unit = body.height * scale * height
    foot = np.array([at[0] * width, at[1] * height])
    place = {k: foot + unit * v * np.array([facing, -1.0]) for k, v in skeleton(body, pose).items()}

    def limb(names: Sequence[str], thickness: float, colour: Colour, shade: float = 1.0) -> None:
        points = np.array([place[name] * 16 for name in names]).round().astype(np.int32)
        paint = tuple(int(shade * c) for c in colour)
        cv2.polylines(image, [points], False, paint, max(1, round(thickness * body.width * unit)), cv2.LINE_AA, 4)

    def disc(centre: Point, radius: float, colour: Colour) -> None:
        x, y = (centre * 16).round().astype(int).tolist()
        cv2.circle(image, (x, y), round(radius * unit * 16), colour, -1, cv2.LINE_AA, 4)

    sleeve = body.shirt if body.sleeves else body.skin

    def arm(side: str, shade: float) -> None:
        limb(("elbow" + side, "hand" + side), 0.048, body.skin, shade)
        limb(("shoulder", "elbow" + side), 0.06, sleeve, shade)

    def leg(side: str, shade: float) -> None:
        limb(("ankle" + side, "toe" + side), 0.055, body.shoes, shade)
        limb(("hip", "knee" + side, "ankle" + side), 0.075, body.trousers, shade)

    arm("2", 0.72)
    leg("2", 0.72)
    leg("", 1.0)
    limb(("neck", "head"), 0.05, body.skin, 0.9)
    limb(("shoulder", "hip"), 0.115, body.shirt)
    forward = place["head"] + unit * np.array([facing * 0.014, 0.004])
    disc(place["head"] - unit * np.array([facing * 0.012, 0.012]), 0.078, body.hair)
    disc(forward, 0.066, body.skin)
    arm("", 1.0)
