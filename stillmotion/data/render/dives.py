"""Videos of dives from the ten-metre platform, with the columns of MTL-AQA, so that its recipes run without its videos.

A dive follows its number: where the diver faces, which way and how often the body turns and twists, in which position.
What is done badly (`Faults`) is seen in the video and decides what seven judges give. Venue, camera and light belong to
the event. A result on these videos says nothing about real diving.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from stillmotion.data.journal import start_header, write_atomically
from stillmotion.data.pool import Failure, run_apart
from stillmotion.data.render.actions import write_video
from stillmotion.data.render.diver import Flight, Swimmer, draw_diver
from stillmotion.data.render.figure import Body
from stillmotion.data.render.painting import Rng
from stillmotion.data.render.poolside import BOTTOM, LEFT, RIGHT, TOP, Pool, Venue, paint_venue
from stillmotion.data.sets.mtl_aqa import WINDOW, frame_window
from stillmotion.data.table import SEPARATOR, Table, read_table

FPS = 25
DIFFICULTY = {
    "101B": 1.5, "103B": 1.6, "103C": 1.5, "105B": 2.3, "105C": 2.1, "107B": 3.0, "107C": 2.7, "109C": 3.7,
    "201B": 1.8, "203B": 2.2, "203C": 1.9, "205B": 2.9, "205C": 2.7, "207B": 3.6, "207C": 3.3,
    "301B": 1.9, "303B": 2.3, "303C": 2.0, "305B": 2.9, "305C": 2.7, "307C": 3.4,
    "403B": 2.0, "403C": 1.8, "405B": 2.8, "405C": 2.5, "407B": 3.5, "407C": 3.2, "409C": 4.1,
    "5132D": 2.1, "5134D": 2.5, "5152B": 2.9, "5154B": 3.3, "5156B": 3.8,
    "5231D": 2.0, "5233D": 2.4, "5235D": 2.8, "5237D": 3.3, "5251B": 2.6, "5253B": 3.2, "5255B": 3.6,
    "5331D": 2.1, "5333D": 2.5, "5335D": 2.9, "5337D": 3.4, "5353B": 3.3, "5355B": 3.7,
    "612B": 1.9, "614B": 2.4, "6142D": 3.1, "6241B": 2.7, "6243D": 3.2, "6245D": 3.6,
    "626B": 3.5, "626C": 3.3, "636C": 3.4,
}  # fmt: skip
"""Dives and their degree of difficulty from ten metres (FINA, tables from 2009 to 2021).

The values are those of MTL-AQA's platform events where it has the dive; the others (103C, 105C, 203B, 203C, 205C, 303B,
303C, 403C, 405C, 5134D, 5333D) are the sum of FINA's components and were not checked against its table.
"""
_DIRECTIONS = {"1": "forward", "2": "back", "3": "reverse", "4": "inward"}
_POSITIONS = {"B": "pike", "C": "tuck", "D": "free"}
IDEAL = 1.7
"""Metres from the platform at which a dive should enter the water."""


@dataclass(frozen=True)
class Faults:
    """What goes wrong in a dive.

    Args:
        over: Degrees turned too far at the entry, negative: too few.
        knees: Degrees that the knees are bent in the air.
        apart: Degrees between the legs in the air.
        distance: Metres from the platform at the entry; `IDEAL` is right.
        splash: 0 (none) to 1 (huge).
    """

    over: float
    knees: float
    apart: float
    distance: float
    splash: float

    @classmethod
    def of(cls, rng: Rng, ability: float) -> "Faults":
        """Faults at random; an `ability` above 0 makes more of them."""
        amount = np.exp(rng.normal(ability, 0.5))
        over, knees, apart, away, spill = amount * rng.normal(size=5) * (12, 16, 11, 0.35, 0.2)
        over, away = np.clip(over, -48, 48), np.clip(away, -0.9, 1.4)
        splash = min(1.0, 0.1 + 0.016 * abs(over) + abs(spill))
        return cls(*(round(float(v), 2) for v in (over, min(75, abs(knees)), min(50, abs(apart)), IDEAL + away, splash)))

    @property
    def deduction(self) -> float:
        """Points that a judge takes from ten."""
        away = max(0.0, abs(self.distance - IDEAL) - 0.2)
        return 0.085 * abs(self.over) + 0.04 * self.knees + 0.05 * self.apart + 1.6 * away + 2.2 * self.splash


@dataclass(frozen=True)
class Dive:
    """One video to be.

    Args:
        number: One of `DIFFICULTY`.
        venue: Where.
        who: Body and clothes.
        faults: How.
        num_frames: Frames of the video, at `FPS`.
        entry: Frame of the entry.
        spring: Speed upwards at the take-off, m/s.
        seed: Decides what the judges think and the details of the picture.
    """

    number: str
    venue: Venue
    who: Swimmer
    faults: Faults
    num_frames: int
    entry: float
    spring: float
    seed: int

    @classmethod
    def of(cls, number: str, venue: Venue, seed: int) -> "Dive":
        """A dive with everything else at random."""
        rng = np.random.default_rng([seed, 6])
        num_frames = int(rng.integers(WINDOW + 1, 113))
        spring = rng.uniform(0.5, 0.9) if number[0] == "6" else rng.uniform(2.4, 3.0)
        entry = num_frames - rng.uniform(14, 24)
        return cls(number, venue, _swimmer(rng), Faults.of(rng, venue.ability), num_frames, entry, spring, seed)

    @property
    def flight(self) -> Flight:
        """How it goes."""
        words, f = attributes(self.number), self.faults
        return Flight(
            words["rotation_type"], words["position"], int(words["ss_no"]), int(words["tw_no"]),
            words["armstand"] == "yes", over=f.over, knees=f.knees, apart=f.apart, distance=f.distance,
            spring=self.spring, height=self.who.height,
        )  # fmt: skip

    def judge_scores(self) -> list[float]:
        """What seven judges give: halves of points, 0 to 10."""
        rng = np.random.default_rng([self.seed, 7])
        seen = 10 - self.faults.deduction + rng.normal(0, 0.4, 7)
        return [float(v) for v in (np.round(2 * seen) / 2).clip(0, 10)]


def attributes(number: str) -> dict[str, str]:
    """What the number of a dive says, in the words of MTL-AQA.

    Example:
        >>> attributes("6243D")
        {'position': 'free', 'armstand': 'yes', 'rotation_type': 'back', 'ss_no': '4', 'tw_no': '3'}
    """
    group, digits = number[0], number[1:-1]
    direction, turns = (digits[0], digits[1:]) if group in "56" else (group, digits[1:])
    return {
        "position": _POSITIONS[number[-1]],
        "armstand": "yes" if group == "6" else "no",
        "rotation_type": _DIRECTIONS[direction],
        "ss_no": turns[0],
        "tw_no": turns[1:] or "0",
    }


def final_score(difficulty: float, judges: Sequence[float]) -> float:
    """Difficulty times the sum of the middle three of seven scores.

    Example:
        >>> final_score(3.2, [8.0, 7.5, 8.5, 8.0, 7.0, 9.0, 8.0])
        76.8
    """
    return round(difficulty * sum(sorted(judges)[2:5]), 2)


def _swimmer(rng: Rng) -> Swimmer:
    body = Body.of(rng)
    suits = ((200, 30, 40), (24, 50, 140), (20, 22, 30), (20, 130, 90), (230, 190, 30), (120, 40, 140), (240, 240, 238))
    suit = suits[rng.integers(len(suits))]
    back = suits[(suits.index(suit) + 1 + rng.integers(len(suits) - 1)) % len(suits)]
    trunks = bool(rng.random() < 0.5)
    return Swimmer(rng.uniform(1.52, 1.8), rng.uniform(0.9, 1.15), body.skin, body.hair, suit, back, trunks)


def draw_dive(dive: Dive, *, size: tuple[int, int] = (160, 120), detail: int = 3) -> NDArray[np.uint8]:
    """Draws the frames of a dive.

    Args:
        dive: What is seen.
        size: Width and height in pixels.
        detail: Pixels that are painted for one of the video, in each direction.

    Returns:
        (T, H, W, 3) uint8, RGB.
    """
    rng = np.random.default_rng([dive.seed, 8])
    venue, flight = dive.venue, dive.flight
    width, height = (detail * side for side in size)
    scale = height / venue.view
    backdrop = paint_venue(venue, scale)
    entry = flight.seconds
    pool = Pool(rng, size=dive.faults.splash, where=dive.faults.distance, entry=entry)
    times = entry + (np.arange(dive.num_frames) - dive.entry) / FPS
    looks = _camera(venue, flight, times, width / scale, rng)
    colour = (venue.light * np.array(venue.tint)).astype(np.float32)
    frames = np.empty((dive.num_frames, size[1], size[0], 3), np.uint8)
    for i, time in enumerate(times.tolist()):
        corner = float(looks[i, 0] - width / scale / 2), float(looks[i, 1] + venue.view / 2)
        shift = np.array([[1, 0, (LEFT - corner[0]) * scale], [0, 1, (corner[1] - TOP) * scale]])
        before = cv2.warpAffine(backdrop, shift, (width, height), borderMode=cv2.BORDER_REPLICATE)
        pool.ripple(before, time, corner, scale)
        image = before.copy()
        draw_diver(image, dive.who, flight.joints(time), corner=corner, scale=scale)
        pool.cover(image, before, corner, scale)
        pool.splash(image, time, corner, scale)
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) * colour
        frames[i] = (small + rng.normal(0, venue.grain, small.shape)).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(frames[:, :, ::-1]) if venue.mirrored else frames


def _camera(venue: Venue, flight: Flight, times: NDArray[np.float64], width: float, rng: Rng) -> NDArray[np.float64]:
    """Where it looks in every frame, (T, 2): after the diver, late, and not under the water."""
    lead = np.arange(times[0] - 1, times[-1], 1 / 100)
    centre = np.array([flight.centre(float(t)) for t in lead])
    seen, late = centre.copy(), 1 - np.exp(-0.01 / venue.lag)
    for k in range(1, len(seen)):
        seen[k] = seen[k - 1] + late * (centre[k] - seen[k - 1])
    looks = np.stack([np.interp(times, lead, seen[:, axis]) for axis in (0, 1)], 1) + venue.aim
    shake = rng.uniform(0, 2 * np.pi, (2, 2))
    for axis in (0, 1):
        waves = [np.sin(shake[axis, k] + rate * times) for k, rate in enumerate((2.1, 5.3))]
        looks[:, axis] += 0.03 * np.sum(waves, axis=0)
    looks[:, 1] = np.maximum(looks[:, 1], venue.view / 2 - 1.25)
    low, high = (LEFT + width / 2, BOTTOM + venue.view / 2), (RIGHT - width / 2, TOP - venue.view / 2)
    return looks.clip(low, high)
