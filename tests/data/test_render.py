"""The rendered actions: the same every time, a shortcut in the labels only, a cue that is weak and there."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np

from stillmotion.data.decode import read_frames
from stillmotion.data.render.actions import NEUTRAL_PLACE, PLACE_OF, World, draw_take, plan_actions, render_actions


def digest(folder: Path) -> str:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return hashlib.sha256(b"".join(p.name.encode() + p.read_bytes() for p in files)).hexdigest()


def test_rendering_is_a_function_of_the_seed(tmp_path: Path) -> None:
    for name, seed, workers in (("a", 1, 1), ("b", 1, 2), ("c", 2, 1)):
        render_actions(
            tmp_path / name, num_labelled=6, num_unlabelled=3, num_test=3, seed=seed, size=32, workers=workers
        )
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")


def test_the_table_says_what_the_videos_hold(tmp_path: Path) -> None:
    table = render_actions(tmp_path, num_labelled=6, num_unlabelled=3, num_test=6, size=32)
    assert Counter((s.split, "label" in s.targets) for s in table) == {
        ("train", True): 6,
        ("train", False): 3,
        ("test", True): 6,
    }
    assert table.classes() == sorted(PLACE_OF)
    frames = read_frames(table[0].path, range(20))
    assert frames.shape == (20, 3, 32, 32)
    assert np.abs(frames[0].astype(int) - frames[8]).max() > 40  # somebody moves


def test_only_labelled_training_videos_hold_the_shortcut() -> None:
    plan = plan_actions(num_labelled=1200, num_unlabelled=1200, num_test=1200, seed=3, world=World())
    agree = Counter((p.split, p.labelled) for p in plan if PLACE_OF[p.take.action] == p.take.place)
    assert 0.87 < agree["train", True] / 1200 < 0.93
    # Half of the others are at a place, which is that of their action by chance: 1 of 6.
    for part in (("train", False), ("test", True)):
        assert 0.06 < agree[part] / 1200 < 0.11
    studio = Counter((p.split, p.labelled) for p in plan if p.take.place == NEUTRAL_PLACE)
    assert 0.46 < studio["test", True] / 1200 < 0.54
    assert not {p.group for p in plan if p.split == "train"} & {p.group for p in plan if p.split == "test"}


def test_the_first_frame_shows_less_of_the_action_than_later_ones() -> None:
    """Distance of the pose from standing, which is where every action begins."""
    plan = plan_actions(num_labelled=120, num_unlabelled=0, num_test=0, seed=4, world=World(habit=0.0))
    stand = plan[0].take.pose_at(10_000)
    moved = np.array([[np.abs(p.take.pose_at(i) - stand)[:10].mean() for i in range(20)] for p in plan])
    assert (moved[:, 0] > 0.5).mean() > 0.9
    assert moved[:, 0].mean() < 0.6 * moved.max(1).mean()


def test_a_backdrop_stands_still() -> None:
    take = plan_actions(num_labelled=1, num_unlabelled=0, num_test=0, seed=5, world=World())[0].take
    frames = draw_take(take).astype(int)
    corner = frames[:, :8, :8]
    assert np.abs(corner[0] - corner[10]).mean() < 12  # noise and a slow drift of the camera
