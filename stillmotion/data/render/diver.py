"""A diver from the side: skeleton, flight under gravity with a fixed angular momentum, drawing.

World: metres, x from the platform's edge out over the pool, y up from the water, z towards the camera. The body has its
own axes: front, up, and the side that is towards the camera when the diver faces the pool.
"""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from stillmotion.data.render.figure import Body, Colour

Floats = NDArray[np.float64]

JOINTS = ("hip", "knee", "arm", "elbow", "arm2", "elbow2", "head", "apart")
"""What a pose holds, in degrees: 0 stretched with the arms hanging down. Hips fold to the front, half by the torso and
half by the legs; knees bend backwards; arms swing to the front, 180 is overhead; `apart` is between the legs."""
PLATFORM, GRAVITY = 10.0, 9.81
EDGE = -0.06
"""Where the feet or hands stand, x."""
CONTACT = 1.05
"""Height of the centre of mass when the outstretched hands reach the water."""
MASS = 60.0
_SEGMENTS = [
    (first, last, share / 2)
    for near, far, share in (
        ("hip", "shoulder", 0.5), ("neck", "head", 0.08), ("shoulder", "elbow", 0.055), ("elbow", "hand", 0.045),
        ("hip", "knee", 0.2), ("knee", "ankle", 0.12),
    )
    for first, last in ((near, far), (near + "2", far + "2"))
]  # fmt: skip
"""Where rods of the body begin and end, and their share of its mass."""


def _pose(**angles: float) -> Floats:
    return np.array([angles.get(name, angles.get(name.removesuffix("2"), 0.0)) for name in JOINTS])


STRETCHED = _pose(arm=176)
HANGING = _pose(arm=8, elbow=6)
CROUCH = _pose(hip=78, knee=84, arm=-40, elbow=10)
LIFTED = _pose(hip=10, knee=14, arm=165)
POSITIONS = {
    "pike": _pose(hip=132, arm=31, elbow=84, head=18),
    "tuck": _pose(hip=132, knee=142, arm=-8, elbow=77, head=22),
    "free": _pose(hip=8, arm=140, elbow=120, arm2=48, elbow2=105, head=4),
}
"""`free` is what one sees of it most: stretched, arms wrapped for the twist."""


@dataclass(frozen=True)
class Swimmer:
    """Proportions and clothes of one diver.

    Args:
        height: Standing, metres.
        width: Thickness of the limbs, 1 is usual.
        skin, hair: Colours, RGB.
        suit, back: Colours of the suit in front and behind, RGB.
        trunks: Whether the suit covers the hips only.
    """

    height: float = 1.66
    width: float = 1.0
    skin: Colour = (224, 172, 138)
    hair: Colour = (60, 40, 30)
    suit: Colour = (200, 40, 40)
    back: Colour = (120, 20, 30)
    trunks: bool = False

    @classmethod
    def of(cls, rng: np.random.Generator) -> "Swimmer":
        """A diver at random."""
        body = Body.of(rng)
        suits = (
            (200, 30, 40), (24, 50, 140), (20, 22, 30), (20, 130, 90), (230, 190, 30), (120, 40, 140), (240, 240, 238),
        )  # fmt: skip
        suit = int(rng.integers(len(suits)))
        back = (suit + 1 + int(rng.integers(len(suits) - 1))) % len(suits)
        return cls(
            height=rng.uniform(1.52, 1.8),
            width=rng.uniform(0.9, 1.15),
            skin=body.skin,
            hair=body.hair,
            suit=suits[suit],
            back=suits[back],
            trunks=bool(rng.random() < 0.5),
        )


def skeleton(pose: Floats, height: float = 1.66) -> dict[str, Floats]:
    """Joints in the body's axes (front, up, side), metres, with the centre of mass at the origin, (3,) each."""
    hip, knee, *arms, head, apart = np.deg2rad(pose)
    unit = height / 1.66
    lean = hip / 2

    def along(start: Floats, angle: float, length: float, side: float) -> Floats:
        return np.array([start[0] + unit * length * np.sin(angle), start[1] - unit * length * np.cos(angle), side])

    points = {"hip": np.zeros(3)}
    points["shoulder"] = along(points["hip"], np.pi - lean, 0.47, 0.0)
    points["neck"] = along(points["hip"], np.pi - lean, 0.52, 0.0)
    points["head"] = along(points["neck"], np.pi - lean - head, 0.15, 0.0)
    for name, side, arm, elbow in (("", 1.0, *arms[:2]), ("2", -1.0, *arms[2:])):
        points["elbow" + name] = along(points["shoulder"], arm - lean, 0.29, 0.2 * side)
        points["hand" + name] = along(points["elbow" + name], arm + elbow - lean, 0.36, 0.07 * side)
        thigh = lean + side * apart / 2
        points["knee" + name] = along(points["hip"], thigh, 0.42, 0.1 * side)
        points["ankle" + name] = along(points["knee" + name], thigh - knee, 0.4, 0.07 * side)
        points["toe" + name] = along(points["ankle" + name], thigh - knee + 0.5, 0.17, 0.07 * side)
    for name in ("hip", "shoulder", "neck", "head"):
        points[name + "2"] = points[name]
    centre = sum(share * (points[first] + points[last]) / 2 for first, last, share in _SEGMENTS)
    return {name: point - centre * np.array([1.0, 1.0, 0.0]) for name, point in points.items()}


def inertia(pose: Floats, height: float = 1.66) -> float:
    """Moment of inertia about the axis of a somersault through the centre of mass, kg m2.

    Every segment is a thin rod; half a kg m2 stands for the thickness of all.
    """
    points = skeleton(pose, height)
    total = 0.5
    for first, last, share in _SEGMENTS:
        start, end = points[first][:2], points[last][:2]
        total += MASS * share * float(start @ start + start @ end + end @ end) / 3
    return total


@dataclass(frozen=True)
class Flight:
    """How a dive goes, with the take-off at 0 seconds.

    Args:
        rotation: `forward`, `back`, `reverse` or `inward`. Forward and reverse begin facing the pool, the others facing
            the platform; forward and inward turn to the front, the others backwards.
        position: `pike`, `tuck` or `free`.
        half_somersaults, half_twists: How many.
        armstand: Begins on the hands.
        over: Degrees turned too far at the entry, negative: too few.
        knees: Degrees that the knees are bent in the air.
        apart: Degrees between the legs in the air.
        distance: Metres from the platform at the entry.
        spring: Speed upwards at the take-off, m/s.
        height: Of the diver, metres.
    """

    rotation: str
    position: str
    half_somersaults: int
    half_twists: int = 0
    armstand: bool = False
    over: float = 0.0
    knees: float = 0.0
    apart: float = 0.0
    distance: float = 1.7
    spring: float = 2.6
    height: float = 1.66

    @cached_property
    def _path(self) -> tuple[Floats, Floats]:
        """Seconds of the flight and radians turned: angular momentum is kept, the pose decides the speed."""
        times = np.linspace(0.0, self.seconds, 121)
        rate = np.array([1 / inertia(self.pose_at(t), self.height) for t in times])
        turned = np.concatenate([[0.0], np.cumsum((rate[1:] + rate[:-1]) / 2)])
        lean = self._lean(0.0)
        total = np.deg2rad(180.0 * self.half_somersaults + self.over)
        return times, lean + (total - lean) * turned / turned[-1]

    @property
    def faces(self) -> int:
        """1: the pool, -1: the platform, at the take-off (on the hands: as if put on the feet by half a turn)."""
        return 1 if self.rotation in ("forward", "reverse") else -1

    @property
    def turns(self) -> int:
        """1: a standing diver's head goes to the pool, -1: to the platform."""
        return 1 if self.rotation in ("forward", "back") else -1

    @cached_property
    def start(self) -> tuple[float, float]:
        """x and y of the centre of mass at the take-off."""
        return self.centre(0.0)

    @cached_property
    def seconds(self) -> float:
        """From take-off to entry."""
        return _air_time(self.spring, self.start[1])

    def turned(self, time: float) -> float:
        """Radians turned in the direction of the somersault since standing upright (on the hands: upside down)."""
        if time <= 0:
            return self._lean(time)
        times, angles = self._path
        late = max(0.0, time - times[-1])
        rate = (angles[-1] - angles[-2]) / (times[-1] - times[-2])
        return float(np.interp(time, times, angles) + rate * 0.06 * (1 - np.exp(-late / 0.06)))

    def twisted(self, time: float) -> float:
        """Radians twisted."""
        begin, end = (0.1, 0.84) if self.position == "free" else (0.06, 0.46)
        return np.pi * self.half_twists * _ease((time / self.seconds - begin) / (end - begin))

    def pose_at(self, time: float) -> Floats:
        """Pose, (8,)."""
        keys = self._keys
        after = next((i for i, (at, _) in enumerate(keys) if at >= time), len(keys) - 1)
        if after == 0 or time >= keys[after][0]:
            pose = keys[after][1].copy()
        else:
            (t0, a), (t1, b) = keys[after - 1], keys[after]
            pose = a + _ease((time - t0) / (t1 - t0)) * (b - a)
        if time > 0:
            shown = _ease(time / 0.25)
            pose[1] = max(pose[1], shown * self.knees)
            pose[7] = shown * self.apart
        elif not self.armstand and self.rotation in ("forward", "reverse") and time < -0.55:  # steps to the edge
            pose[7] = 46 * np.sin(2 * np.pi * (time + 0.55) / 0.75) * _ease((-0.55 - time) / 0.15)
        return pose

    @cached_property
    def _keys(self) -> list[tuple[float, Floats]]:
        if self.armstand:
            keys = [(0.0, STRETCHED)]
        elif self.faces > 0:
            keys = [(-0.75, HANGING), (-0.28, CROUCH), (0.0, STRETCHED)]
        else:
            keys = [(-1.7, HANGING), (-1.05, LIFTED), (-0.7, LIFTED), (-0.28, CROUCH), (0.0, STRETCHED)]
        held = POSITIONS[self.position]
        opened = 0.6 + 0.03 * self.half_somersaults
        shares: list[tuple[float, Floats]]
        if self.half_twists and self.position != "free":
            twist = POSITIONS["free"]
            shares = [(0.1, twist), (0.42, twist), (0.52, held), (0.82, held), (0.95, STRETCHED)]
        elif self.half_twists:
            bend = _pose(hip=70, arm=120, elbow=10)
            shares = [(0.12, held), (0.78, held), (0.86, bend), (0.96, STRETCHED)]
        else:
            shares = [(0.05, STRETCHED), (0.19, held), (min(0.8, opened), held), (min(0.93, opened + 0.16), STRETCHED)]
        time = _air_time(self.spring, PLATFORM + (1.1 if self.armstand else 0.98))
        return keys + [(share * time, pose) for share, pose in shares]

    def _lean(self, time: float) -> float:
        return np.pi / 20 * _ease(1 + time / (0.9 if self.armstand else 0.25))

    def place(self, points: dict[str, Floats], turned: float, twisted: float) -> dict[str, Floats]:
        """Joints in the world's directions (x, y, z) around the centre of mass."""
        angle = self.turns * turned + (np.pi if self.armstand else 0.0)
        front = 0.0 if self.faces > 0 else np.pi
        c, s = np.cos(front + twisted), np.sin(front + twisted)
        ca, sa = np.cos(angle), np.sin(angle)
        about_up = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
        somersault = np.array([[ca, sa, 0], [-sa, ca, 0], [0, 0, 1]])
        turn = somersault @ about_up
        return {name: turn @ point for name, point in points.items()}

    def centre(self, time: float) -> tuple[float, float]:
        """x and y of the centre of mass."""
        if time <= 0:
            pose, lean = self.pose_at(time), self._lean(time)
            placed = self.place(skeleton(pose, self.height), lean, 0.0)
            lowest = min(placed.values(), key=lambda point: point[1])
            x = EDGE - lowest[0]
            if not self.armstand and self.faces > 0 and time < -0.5:
                x += 1.15 * (time + 0.5)
            return float(x), PLATFORM - float(lowest[1])
        begin, air = self.start, self.seconds
        flown, late = min(time, air), max(0.0, time - air)
        x = begin[0] + (self.distance - begin[0]) * flown / air
        y = begin[1] + self.spring * flown - GRAVITY / 2 * flown**2
        speed = GRAVITY * air - self.spring
        return x, y - speed * 0.28 * (1 - np.exp(-late / 0.28))

    def joints(self, time: float) -> dict[str, Floats]:
        """Where the joints are in the world, (3,) each, and the body's own axes as `front` and `side`."""
        points = skeleton(self.pose_at(time), self.height)
        placed = self.place(points, self.turned(time), self.twisted(time))
        axes = {"front": np.array([1.0, 0, 0]), "side": np.array([0, 0, 1.0])}
        lean = np.deg2rad(self.pose_at(time)[0]) / 2
        axes["front"] = np.array([np.cos(lean), -np.sin(lean), 0.0])
        x, y = self.centre(time)
        moved = {name: point + np.array([x, y, 0.0]) for name, point in placed.items()}
        return moved | self.place(axes, self.turned(time), self.twisted(time))


def _air_time(spring: float, start: float) -> float:
    """Seconds from a height to `CONTACT`."""
    return float(spring + np.sqrt(spring**2 + 2 * GRAVITY * (start - CONTACT))) / GRAVITY


def _ease(share: float) -> float:
    share = min(1.0, max(0.0, share))
    return share * share * (3 - 2 * share)


def draw_diver(
    image: NDArray[np.uint8], who: Swimmer, joints: dict[str, Floats], *, corner: tuple[float, float], scale: float
) -> None:
    """Draws a diver into a picture.

    Args:
        image: (H, W, 3) uint8, changed in place.
        who: Body and clothes.
        joints: As `Flight.joints` gives them.
        corner: x and y of the world at the picture's upper left.
        scale: Pixels a metre.
    """
    side, front = joints["side"], joints["front"]

    def pixel(point: Floats) -> Floats:
        return np.array([point[0] - corner[0], corner[1] - point[1]]) * scale

    def limb(points: list[Floats], thickness: float, colour: Colour, shade: float) -> None:
        line = np.array([pixel(point) * 16 for point in points]).round().astype(np.int32)
        paint = tuple(int(shade * c) for c in colour)
        cv2.polylines(image, [line], False, paint, max(1, round(thickness * who.width * scale)), cv2.LINE_AA, 4)

    def panel(half: float, depth: float, low: float, high: float, colour: Colour) -> None:
        """A part of the trunk: its four corners, or all eight where it has depth."""
        up = joints["neck"] - joints["hip"]
        depths = (0.0,) if depth == 0 else (-depth, depth)
        corners = [
            joints["hip"] + share * up + sign * (half - 0.05 * (share < 0.5)) * side + out * front
            for share in (low, high) for sign in (-1, 1) for out in depths
        ]  # fmt: skip
        hull = cv2.convexHull(np.array([pixel(point) * 16 for point in corners]).round().astype(np.int32))
        cv2.fillConvexPoly(image, hull, colour, cv2.LINE_AA, 4)

    near = "" if side[2] >= 0 else "2"
    far = "2" if near == "" else ""
    seen_from_front = front[2] >= 0
    # How far the trunk is turned to the camera: full front or back colour only when it is.
    turned = abs(float(front[2]))
    cloth = who.suit if seen_from_front else who.back
    skin: Colour = who.skin if seen_from_front or turned < 0.3 else _darker(who.skin, 0.86)

    def arm(which: str, shade: float) -> None:
        shoulder = joints["shoulder"] + (0.17 if which == "" else -0.17) * side
        limb([shoulder, joints["elbow" + which], joints["hand" + which]], 0.09, who.skin, shade)

    def leg(which: str, shade: float) -> None:
        hip = joints["hip"] + (0.09 if which == "" else -0.09) * side
        limb([joints["ankle" + which], joints["toe" + which]], 0.07, who.skin, shade)
        limb([joints["knee" + which], joints["ankle" + which]], 0.105, who.skin, shade)
        limb([hip, joints["knee" + which]], 0.145, who.skin, shade)

    arm(far, 0.7)
    leg(far, 0.7)
    if not seen_from_front:
        leg(near, 0.95)
    limb([joints["neck"], joints["head"]], 0.1, who.skin, 0.9)
    panel(0.19, 0.095, 0.0, 1.0, skin if who.trunks else cloth)
    if who.trunks:
        panel(0.2, 0.11, -0.12, 0.3, cloth)
    elif not seen_from_front and turned > 0.3:
        panel(0.1, 0.0, 0.55, 0.98, skin)
    head = pixel(joints["head"] + 0.03 * (joints["head"] - joints["neck"]))
    _disc(image, head, 0.125 * scale, who.hair)
    if seen_from_front or turned < 0.9:
        _disc(image, head + pixel(joints["head"] + 0.05 * front) - pixel(joints["head"]), 0.1 * scale, who.skin)
    if seen_from_front:
        leg(near, 1.0)
    arm(near, 1.0)


def _darker(colour: Colour, share: float) -> Colour:
    red, green, blue = (int(share * c) for c in colour)
    return red, green, blue


def _disc(image: NDArray[np.uint8], centre: Floats, radius: float, colour: Colour) -> None:
    x, y = (centre * 16).round().astype(int).tolist()
    cv2.circle(image, (x, y), round(radius * 16), colour, -1, cv2.LINE_AA, 4)
