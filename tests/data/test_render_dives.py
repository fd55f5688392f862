"""The rendered dives: numbers obeyed, official scores, the table of MTL-AQA, the same every time, and resumable."""

from collections import Counter, defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from stillmotion.__main__ import main
from stillmotion.data.decode import read_frames
from stillmotion.data.render import dives as module
from stillmotion.data.render.diver import GRAVITY, POSITIONS, STRETCHED, Flight, inertia, skeleton
from stillmotion.data.render.dives import (
    DIFFICULTY,
    Dive,
    Faults,
    attributes,
    draw_dive,
    final_score,
    plan_dives,
    render_dives,
)
from stillmotion.data.render.poolside import Venue
from stillmotion.data.sets import SETS
from stillmotion.data.sets.mtl_aqa import COUNTS, NAMES
from stillmotion.data.table import read_table
from tests.data.test_render import digest
from tests.data.test_sets_dives import DIVE, OFFICIAL, halves, release, save

UNKNOWN = {"103C", "105C", "203B", "203C", "303B", "303C", "403C", "5134D", "5333D"}
"""Dives that MTL-AQA does not have."""
SMALL = (40, 32)
CLEAN = Faults(over=0.0, knees=0.0, apart=0.0, distance=1.7, splash=0.1)


def flight(number: str, **faults: float) -> Flight:
    words = attributes(number)
    return Flight(
        words["rotation_type"],
        words["position"],
        halves(words["ss_no"]),
        halves(words["tw_no"]),
        words["armstand"] == "armstand",
        spring=0.7 if number[0] == "6" else 2.6,
        **faults,
    )


def venue(seed: int = 0) -> Venue:
    return replace(Venue.of(np.random.default_rng(seed)), mirrored=False, grain=0.0)


def trunk_angles(held: Flight, times: np.ndarray) -> np.ndarray:
    """Degrees by which the trunk, seen by the camera, is turned to the right from upright; without jumps."""
    joints = [held.joints(float(t)) for t in times]
    ways = np.array([j["neck"][:2] - j["hip"][:2] for j in joints])
    return np.rad2deg(np.unwrap(np.arctan2(ways[:, 0], ways[:, 1])))


@pytest.mark.parametrize("number", DIFFICULTY)
def test_the_drawn_trunk_turns_as_often_and_in_the_direction_as_the_number_says(number: str) -> None:
    words, held = attributes(number), flight(number, over=8.0)
    angles = trunk_angles(held, np.linspace(-2.0, held.seconds, 160))
    sense = 1 if words["rotation_type"] in ("forward", "back") else -1  # clockwise, when the pool is on the right
    turned = sense * (angles[-1] - angles[0])
    assert turned == pytest.approx(180 * halves(words["ss_no"]) + 8, abs=1.5)
    assert np.cos(np.deg2rad(angles[0])) == pytest.approx(-1 if words["armstand"] == "armstand" else 1, abs=0.01)
    assert np.cos(np.deg2rad(angles[-1])) < -0.98  # all of these dives end head first
    # On the feet, the knees point to the pool or to the platform; on the hands as after half a somersault.
    faces = 1 if words["rotation_type"] in ("forward", "reverse") else -1
    crouch = held.joints(-0.3)
    if words["armstand"] == "standing":
        assert np.sign(crouch["knee"][0] - crouch["ankle"][0]) == faces
    assert np.sign(crouch["front"][0]) == (-faces if words["armstand"] == "armstand" else faces)


@pytest.mark.parametrize(("number", "twists"), [("107B", 0), ("5231D", 1), ("5253B", 3), ("6245D", 5), ("5337D", 7)])
def test_half_twists_turn_the_side_of_the_body_away_so_often(number: str, twists: int) -> None:
    held = flight(number)
    side = np.array([held.joints(float(t))["side"][2] for t in np.linspace(0, held.seconds, 400)])
    assert sum(a * b < 0 for a, b in pairwise(side)) == twists


def test_a_tuck_turns_faster_than_a_pike_and_a_pike_than_a_stretched_body() -> None:
    tuck, pike, stretched = (inertia(p) for p in (POSITIONS["tuck"], POSITIONS["pike"], STRETCHED))
    assert tuck < pike < stretched
    assert 10 < stretched < 25  # kg m2, arms overhead; measured divers: about 15 to 20
    assert 3 < stretched / tuck < 6
    held = flight("305C")
    times = np.linspace(0, held.seconds, 121)
    momentum = [
        (held.turned(t + 1e-3) - held.turned(t - 1e-3)) / 2e-3 * inertia(held.pose_at(t)) for t in times[5:-5:10]
    ]
    np.testing.assert_allclose(momentum, momentum[0], rtol=0.05)


@pytest.mark.parametrize("position", POSITIONS)
def test_inertia_is_that_of_many_points_along_the_segments(position: str) -> None:
    parts = {("hip", "shoulder"): 30.0, ("neck", "head"): 4.8, ("shoulder", "elbow"): 3.3, ("elbow", "hand"): 2.7,
             ("hip", "knee"): 12.0, ("knee", "ankle"): 7.2}  # fmt: skip
    points = skeleton(POSITIONS[position])
    places, masses = [], []
    for (first, last), kilograms in parts.items():
        for side in ("", "2"):
            for share in (np.arange(200) + 0.5) / 200:
                places.append((1 - share) * points[first + side][:2] + share * points[last + side][:2])
                masses.append(kilograms / 400)
    assert sum(masses) == pytest.approx(60)
    np.testing.assert_allclose(np.array(masses) @ np.array(places), 0, atol=1e-9)  # around the centre of mass
    by_points = np.array(masses) @ np.square(places).sum(1)
    assert inertia(POSITIONS[position]) == pytest.approx(by_points + 0.5, rel=1e-4)


def test_the_flight_is_a_parabola_that_ends_where_it_should() -> None:
    held = flight("205B", distance=2.3)
    times = np.linspace(0.05, held.seconds, 60)
    x, y = np.array([held.centre(float(t)) for t in times]).T
    np.testing.assert_allclose(np.diff(y, 2) / np.diff(times)[0] ** 2, -GRAVITY, rtol=1e-6)
    np.testing.assert_allclose(np.diff(x, 2), 0, atol=1e-9)
    assert (x[-1], y[-1]) == (pytest.approx(2.3), pytest.approx(1.05))
    hands = [held.joints(held.seconds)[name][1] for name in ("hand", "hand2")]
    assert np.abs(hands).max() < 0.25  # they reach the water
    feet = [held.joints(-0.5)[name][1] for name in ("toe", "toe2", "ankle", "ankle2")]
    assert min(feet) == pytest.approx(10.0)


def test_the_score_is_difficulty_times_the_middle_three_of_seven() -> None:
    # 6.5 7 [7.5 7.5 8] 8 9.5 -> 23; 3.0 x 23 = 69
    assert final_score(3.0, [9.5, 7.5, 6.5, 8.0, 7.5, 7.0, 8.0]) == 69.0
    plan = plan_dives(300, 5, seed=2)
    for planned in plan[:40]:
        row = planned.row()
        judges = sorted(float(v) for v in row["judge_scores"].split("|"))
        assert len(judges) == 7
        assert all(0 <= v <= 10 and 2 * v == int(2 * v) for v in judges)
        assert float(row["final_score"]) == pytest.approx(float(row["difficulty"]) * sum(judges[2:5]))
    means = [np.mean(p.dive.judge_scores()) for p in plan]
    assert 6.5 < np.median(means) < 8.5
    assert np.corrcoef(means, [p.dive.faults.deduction for p in plan])[0, 1] < -0.9


def test_difficulty_rises_with_somersaults_and_twists() -> None:
    assert 1.5 == min(DIFFICULTY.values()) < max(DIFFICULTY.values()) == 4.1
    assert len({tuple(attributes(n).values()) for n in DIFFICULTY}) == len(DIFFICULTY)
    for rising, kept in (("ss_no", "tw_no"), ("tw_no", "ss_no")):
        chains = defaultdict(list)
        for number, value in DIFFICULTY.items():
            if rising == "tw_no" and number[0] not in "56":
                continue  # 205B is officially harder than 5251B
            words = attributes(number)
            same = (words["rotation_type"], words["armstand"], words["position"], words[kept])
            chains[same].append((halves(words[rising]), value))
        assert max(len(chain) for chain in chains.values()) >= 4
        for chain in chains.values():
            values = [value for _, value in sorted(chain)]
            assert all(a < b for a, b in pairwise(values)), chain


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="needs the annotations of MTL-AQA")
def test_difficulties_are_those_of_mtl_aqa() -> None:
    given: dict[str, set[float]] = defaultdict(set)
    for sample in SETS["mtl_aqa"](OFFICIAL, missing="keep"):
        number = sample.targets["dive_number"]
        half = f"{number[0]}01{number[-1]}"  # the release writes 101B as 100B, with no somersault
        given[half if number[1:-1] == "00" else number].add(float(sample.targets["difficulty"]))
    known = {n: value for n, value in DIFFICULTY.items() if n in given}
    assert len(known) == len(DIFFICULTY) - len(UNKNOWN)
    # MTL-AQA has these two from the springboard only.
    assert {n for n, value in known.items() if value not in given[n]} == {"205C", "405C"}


def test_every_fault_is_seen() -> None:
    clean = Dive.of("305B", venue(), 5)
    clean = replace(clean, faults=CLEAN)
    whole = draw_dive(clean, size=(64, 48)).astype(float)
    for name, value in {"over": 30.0, "knees": 50.0, "apart": 40.0, "distance": 2.8, "splash": 0.9}.items():
        frames = draw_dive(replace(clean, faults=replace(CLEAN, **{name: value})), size=(64, 48)).astype(float)
        assert (np.abs(frames - whole).max((0, 3)) > 40).sum() > 20, name
    late, early = (slice(round(clean.entry) + 3, None), slice(0, 40))
    splashed = draw_dive(replace(clean, faults=replace(CLEAN, splash=0.9)), size=(64, 48)).astype(float)
    assert (splashed[late] > 225).all(-1).sum() > 2 * (whole[late] > 225).all(-1).sum()
    np.testing.assert_array_equal(splashed[early], whole[early])


def test_rendering_is_a_function_of_the_seed_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seed, workers in (("a", 1, 2), ("c", 2, 1)):
        render_dives(tmp_path / name, num_dives=4, num_events=2, seed=seed, size=SMALL, workers=workers)
    before = digest(tmp_path / "a")
    assert before != digest(tmp_path / "c")
    kept, gone = sorted((tmp_path / "a").rglob("*.mp4"))[:2]
    time = kept.stat().st_mtime_ns
    gone.unlink()
    (tmp_path / "a" / "table.csv").unlink()
    gone.with_suffix(".part.mp4").write_bytes(b"killed while writing")
    render_dives(tmp_path / "a", num_dives=4, num_events=2, seed=1, size=SMALL)
    assert digest(tmp_path / "a") == before
    assert kept.stat().st_mtime_ns == time


def test_the_command_writes_the_columns_of_mtl_aqa(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["render", "dives", "--output", str(tmp_path / "o"), "--dives", "5", "--events", "2", "--seed", "3"]
    assert main([*command, "--size", "[40, 32]", "--workers", "1"]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}/o/table.csv: 5 samples")
    table = read_table(tmp_path / "o" / "table.csv")
    folder = release(tmp_path / "r")
    judged = {(1, 1): DIVE | {"judge_scores": np.array([9.5] * 7), "dive_number": "307B"}}
    save(folder / "final_annotations_dict_with_dive_number.pkl", judged, 4)
    official = next(s for s in SETS["mtl_aqa"](tmp_path / "r", missing="keep") if "judge_scores" in s.targets)
    own = {"split_by_event", *(f"fault_{name}" for name in ("over", "knees", "apart", "distance", "splash"))}
    assert {frozenset(s.targets) for s in table} == {frozenset(official.targets) | own}
    assert table.groups == ["event01", "event02"]
    for sample in table:
        assert sample.targets["position"] in NAMES["position"]
        assert halves(sample.targets["ss_no"]) <= COUNTS["ss_no"]
        assert (sample.start is not None, sample.end - sample.start) == (True, 96)  # type: ignore[operator]
        assert read_frames(sample.path, [0, int(sample.end) + 6]).shape == (2, 3, 32, 40)  # type: ignore[arg-type]
    by_event = read_table(tmp_path / "o" / "table_by_event.csv")
    assert [s.split for s in by_event] == [s.targets["split_by_event"] for s in table]


def test_splits_by_dive_and_by_event() -> None:
    plan = plan_dives(220, 8, test_share=0.25, seed=4)
    by_dive = Counter((p.event, p.split) for p in plan)
    assert all(by_dive[event, "test"] == 7 for event in range(1, 9))  # of 27 or 28
    by_event = defaultdict(set)
    for p in plan:
        by_event[p.event].add(p.split_by_event)
    assert Counter(tuple(v) for v in by_event.values()) == {("train",): 6, ("test",): 2}
    assert len({p.dive.venue for p in plan}) == 8
    assert set(Counter(p.dive.number for p in plan).values()) == {4}  # 55 numbers
    assert len({p.dive.seed for p in plan}) == 220
    windows = [(p.dive.num_frames, int(p.row()["start_frame"]), int(p.row()["end_frame"])) for p in plan]
    assert all(n - 103 == start >= 0 and end == start + 96 for n, start, end in windows)
    # The official window sees the take-off and, at its end, the entry.
    assert all(
        start < p.dive.entry - 25 * p.dive.flight.seconds for p, (_, start, _) in zip(plan, windows, strict=True)
    )
    assert all(p.dive.entry < end for p, (_, _, end) in zip(plan, windows, strict=True))


def test_the_event_tells_something_of_the_score() -> None:
    """As in MTL-AQA, where the mean of its event alone ranks the test dives with 0.64."""
    found = []
    for seed in range(3):
        plan = plan_dives(600, 12, seed=seed)
        scores: dict[int, list[float]] = defaultdict(list)
        for p in plan:
            if p.split == "train":
                scores[p.event].append(float(p.row()["final_score"]))
        tested = [(np.mean(scores[p.event]), float(p.row()["final_score"])) for p in plan if p.split == "test"]
        found.append(spearmanr(*zip(*tested, strict=True)).statistic)
        hardness = [
            np.mean([DIFFICULTY[p.dive.number] for p in plan if p.event == event])
            for event, _ in sorted({(p.event, p.dive.venue.ability) for p in plan}, key=lambda pair: pair[1])
        ]
        assert hardness[0] > hardness[-1] + 0.2  # an ability above 0 is worse
    assert 0.5 < np.mean(found) < 0.75


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["render", "dives", "--output", str(tmp_path / "o"), "--dives", "4", "--events", "2"]
    for option, value, message in (
        ("--events", "1", "dives=4, events=1: give 2 events or more"),
        ("--dives", "3", "dives=3, events=2"),
        ("--test_share", "1.0", "give a share between 0 and 1"),
        ("--size", "[41, 32]", "size=41x32: give two even numbers"),
        ("--size", "[320, 32]", "of a shape from 3:4 to 2:1"),
        ("--workers", "0", "workers=0: give 1 or more"),
    ):
        assert main([*output, option, value]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "o").exists()
    module.start_header(tmp_path / "o", {"kind": "dives", "num_dives": 9}, "x")
    assert main([*output, "--workers", "1"]) == 2
    error = capsys.readouterr().err
    assert "num_dives is 9 in the store and 4 here; pass another output folder" in error
    assert len(error.strip().splitlines()) == 1
