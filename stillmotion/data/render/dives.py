"""Videos of dives from the ten-metre platform, with the columns of MTL-AQA, so that its recipes run without its videos.

A dive follows its number: where the diver faces, which way and how often the body turns and twists, in which position.
What is done badly (`Faults`) is seen in the video and decides what seven judges give. Venue, camera and light belong to
the event. A result on these videos says nothing about real diving.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from stillmotion.data.journal import start_header
from stillmotion.data.pool import Failure, run_apart
from stillmotion.data.render.actions import write_video
from stillmotion.data.render.diver import Flight, Swimmer, draw_diver
from stillmotion.data.render.painting import Rng
from stillmotion.data.render.poolside import LEFT, TOP, Pool, Venue, follow, paint_venue
from stillmotion.data.sets.mtl_aqa import NAMES, WINDOW, frame_window, turns
from stillmotion.data.table import SEPARATOR, Table, read_table
from stillmotion.files import csv_text, write_atomic

FPS = 25
DETAIL = 3
"""Pixels that are painted for one of the video, in each direction."""
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
303C, 403C, 405C, 5134D, 5333D) are sums of FINA's components, which were not checked against its table.
"""
_DIRECTIONS = {"1": "forward", "2": "back", "3": "reverse", "4": "inward"}
_POSITIONS = {"B": "pike", "C": "tuck", "D": "free"}
HARDNESS_NOISE = 0.8
"""How loosely an event's hardness follows its divers; 0.8 lets the event alone rank scores as it does in MTL-AQA."""
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
        amount = np.exp(rng.normal(ability, 0.42))
        over, knees, apart, away, spill = amount * rng.normal(size=5) * (12, 16, 11, 0.35, 0.2)
        over, away = np.clip(over, -48, 48), np.clip(away, -0.9, 1.4)
        splash = min(1.0, 0.1 + 0.016 * abs(over) + abs(spill))
        return cls(
            *(round(float(v), 2) for v in (over, min(75, abs(knees)), min(50, abs(apart)), IDEAL + away, splash))
        )

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
        return cls(number, venue, Swimmer.of(rng), Faults.of(rng, venue.ability), num_frames, entry, spring, seed)

    @property
    def flight(self) -> Flight:
        """How it goes."""
        words, f = attributes(self.number), self.faults
        return Flight(
            words["rotation_type"], words["position"], *half_turns(self.number), self.number[0] == "6",
            over=f.over, knees=f.knees, apart=f.apart, distance=f.distance,
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
        >>> ", ".join(attributes("6243D").values())
        'free, armstand, back, 2 somersaults, 1.5 twists'
    """
    somersaults, twists = half_turns(number)
    return {
        "position": _POSITIONS[number[-1]],
        "armstand": NAMES["armstand"][number[0] == "6"],
        "rotation_type": _DIRECTIONS[number[1] if number[0] in "56" else number[0]],
        "ss_no": turns("ss_no", somersaults),
        "tw_no": turns("tw_no", twists),
    }


def half_turns(number: str) -> tuple[int, int]:
    """Half somersaults and half twists of a dive.

    Example:
        >>> half_turns("107B"), half_turns("6243D")
        ((7, 0), (4, 3))
    """
    digits = number[2:-1]
    return int(digits[0]), int(digits[1:] or 0)


def final_score(difficulty: float, judges: Sequence[float]) -> float:
    """Difficulty times the sum of the middle three of seven scores.

    Example:
        >>> final_score(3.2, [8.0, 7.5, 8.5, 8.0, 7.0, 9.0, 8.0])
        76.8
    """
    return round(difficulty * sum(sorted(judges)[2:5]), 2)


@dataclass(frozen=True)
class Planned:
    """A video to be, with what the table will say of it: event, number in it, split by dive and by event."""

    event: int
    place: int
    split: str
    split_by_event: str
    dive: Dive

    @property
    def path(self) -> str:
        """Of the video, in the folder."""
        return f"event{self.event:02d}/dive{self.place:03d}.mp4"

    def row(self) -> dict[str, str]:
        """Cells of the table."""
        dive, difficulty = self.dive, DIFFICULTY[self.dive.number]
        judges = dive.judge_scores()
        start, end = frame_window(1, dive.num_frames, "official")
        return {
            "path": self.path,
            "dive": str(self.place),
            **attributes(dive.number),
            "difficulty": f"{difficulty:g}",
            "final_score": f"{final_score(difficulty, judges):g}",
            "dive_number": dive.number,
            "judge_scores": SEPARATOR.join(f"{score:g}" for score in judges),
            **{f"fault_{name}": f"{value:g}" for name, value in asdict(dive.faults).items()},
            "split": self.split,
            "split_by_event": self.split_by_event,
            "group": f"event{self.event:02d}",
            "start_frame": str(start),
            "end_frame": str(end),
        }


def plan_dives(num_dives: int, num_events: int, *, test_share: float = 0.25, seed: int = 0) -> list[Planned]:
    """Which dives are dived where; all numbers about equally often, events in turn.

    Better divers dive the harder dives, so that the event tells something of the score, as in MTL-AQA.

    Args:
        num_dives: In all events, two or more in each.
        num_events: Two or more.
        test_share: Share for the test: of every event's dives, and of the events; one at least and not all.
        seed: Decides everything.
    """
    rng = np.random.default_rng([seed, 9])
    venues = [Venue.of(rng) for _ in range(num_events)]
    numbers = [str(n) for _ in range(num_dives // len(DIFFICULTY) + 1) for n in rng.permutation(list(DIFFICULTY))]
    tested = _share(rng, num_events, test_share)
    parts = [_share(rng, len(range(e, num_dives, num_events)), test_share) for e in range(num_events)]
    ranks = np.argsort([venue.ability for venue in venues])
    for start in range(0, num_dives - num_events + 1, num_events):
        tried = sorted(numbers[start : start + num_events], key=lambda n: rng.normal(-DIFFICULTY[n], HARDNESS_NOISE))
        for number, event in zip(tried, ranks, strict=True):
            numbers[start + event] = number
    plan = []
    for i in range(num_dives):
        place, event = divmod(i, num_events)
        split, by_event = ("test" if chosen else "train" for chosen in (place in parts[event], event in tested))
        dive = Dive.of(numbers[i], venues[event], int(rng.integers(2**31)))
        plan.append(Planned(event + 1, place + 1, split, by_event, dive))
    return plan


def _share(rng: Rng, number: int, share: float) -> set[int]:
    """A share of the numbers below `number`: one at least, and not all."""
    return set(rng.permutation(number)[: min(number - 1, max(1, round(share * number)))].tolist())


def draw_dive(dive: Dive, *, size: tuple[int, int] = (160, 120)) -> NDArray[np.uint8]:
    """Draws the frames of a dive.

    Args:
        dive: What is seen.
        size: Width and height in pixels.

    Returns:
        (T, H, W, 3) uint8, RGB.
    """
    rng = np.random.default_rng([dive.seed, 8])
    venue, flight = dive.venue, dive.flight
    width, height = (DETAIL * side for side in size)
    scale = height / venue.view
    backdrop = paint_venue(venue, scale)
    entry = flight.seconds
    pool = Pool(
        np.random.default_rng([dive.seed, 10]), size=dive.faults.splash, where=dive.faults.distance, entry=entry
    )
    times = entry + (np.arange(dive.num_frames) - dive.entry) / FPS
    centres = np.array([flight.centre(time) for time in times.tolist()])
    looks = follow(venue, centres, times, width / scale, rng)
    colour = (venue.light * np.array(venue.tint)).astype(np.float32)
    frames = np.empty((dive.num_frames, size[1], size[0], 3), np.uint8)
    for i, time in enumerate(times.tolist()):
        left, top = round((looks[i, 0] - LEFT) * scale - width / 2), round((TOP - looks[i, 1]) * scale - height / 2)
        corner = LEFT + left / scale, TOP - top / scale
        before = backdrop[top : top + height, left : left + width].copy()
        pool.ripple(before, time, corner, scale)
        image = before.copy()
        draw_diver(image, dive.who, flight.joints(time), corner=corner, scale=scale)
        pool.cover(image, before, corner, scale)
        pool.splash(image, time, corner, scale)
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) * colour
        frames[i] = (small + rng.normal(0, venue.grain, small.shape)).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(frames[:, :, ::-1]) if venue.mirrored else frames


def render_dives(
    folder: str | Path,
    *,
    num_dives: int = 240,
    num_events: int = 8,
    test_share: float = 0.25,
    seed: int = 0,
    size: tuple[int, int] = (160, 120),
    workers: int = 1,
    progress: bool = False,
) -> Table:
    """Renders a set of dives and its table; goes on where it was stopped.

    Args:
        folder: Gets `table.csv`, `table_by_event.csv` (whose `split` is that by event), `header.json` (the settings)
            and a folder of videos for every event.
        num_dives: In all events, two or more in each.
        num_events: Venues, two or more.
        test_share: Share for the test: of every event's dives (`split`), and of the events (`split_by_event`).
        seed: Decides everything.
        size: Width and height in pixels, both even.
        workers: Processes that draw.
        progress: Show a bar.

    Returns:
        The table: the columns of `stillmotion data table mtl_aqa`, further `split_by_event` and what went wrong
        (`fault_over`, `fault_knees`, `fault_apart`, `fault_distance`, `fault_splash`).

    Raises:
        ValueError: Too few dives or events, a share outside 0 to 1, a bad size, or a folder of other settings.
    """
    if num_events < 2 or num_dives < 2 * num_events:
        raise ValueError(f"dives={num_dives}, events={num_events}: give 2 events or more, and 2 dives or more in each")
    if not 0 < test_share < 1:
        raise ValueError(f"test_share={test_share}: give a share between 0 and 1")
    if min(size) < 32 or any(side % 2 for side in size) or not 0.75 <= size[0] / size[1] <= 2:
        raise ValueError(f"size={size[0]}x{size[1]}: give two even numbers, 32 or more, of a shape from 3:4 to 2:1")
    if workers < 1:
        raise ValueError(f"workers={workers}: give 1 or more")
    folder = Path(folder)
    settings = {"num_dives": num_dives, "num_events": num_events, "test_share": test_share, "seed": seed, "size": size}
    start_header(folder, {"kind": "dives", **settings}, "pass another output folder, or the same settings")
    plan = plan_dives(num_dives, num_events, test_share=test_share, seed=seed)
    for event in range(num_events):
        (folder / f"event{event + 1:02d}").mkdir(exist_ok=True)
    todo = [(folder / p.path, p.dive) for p in plan if not (folder / p.path).exists()]
    done = run_apart(partial(_render, size=size), todo, workers=workers, timeout=300)
    bar = track(done, "rendering", total=len(todo), disable=not progress, console=Console(stderr=True))
    for position, result in bar:
        if isinstance(result, Failure):
            raise RuntimeError(f"{todo[position][0]}: {result.reason}")
    rows = [p.row() for p in plan]
    _write(folder / "table.csv", rows)
    _write(folder / "table_by_event.csv", [{**row, "split": row["split_by_event"]} for row in rows])
    return read_table(folder / "table.csv")


def _write(path: Path, rows: Sequence[dict[str, str]]) -> None:
    write_atomic(path, csv_text(rows[0], (row.values() for row in rows)))


def _render(job: tuple[Path, Dive], *, size: tuple[int, int]) -> None:
    path, dive = job
    cv2.setNumThreads(1)
    draft = path.with_suffix(".part.mp4")
    write_video(draft, draw_dive(dive, size=size), fps=FPS)
    draft.replace(path)
