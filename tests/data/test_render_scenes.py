"""The rendered scenes: the same every time, moving, laid out so that the reader of YUP++ takes them."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from stillmotion.__main__ import main
from stillmotion.data.decode import read_frames
from stillmotion.data.render.scenes import CLOSEST, SCENES, Look, Scene, draw_scene, plan_scenes, render_scenes
from stillmotion.data.sets import SETS
from stillmotion.data.sets.yup_plus_plus import CLASSES
from stillmotion.data.table import read_table
from tests.data.test_render import digest

SMALL = (32, 24)


def test_rendering_is_a_function_of_the_seed(tmp_path: Path) -> None:
    for name, seed, workers in (("a", 1, 1), ("b", 1, 2), ("c", 2, 1)):
        render_scenes(tmp_path / name, num_videos=2, seed=seed, size=SMALL, num_frames=3, workers=workers)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")


def test_the_command_writes_a_table_and_the_layout_of_yup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["render", "scenes", "--output", str(tmp_path), "--num_videos", "3", "--train_share", "0.4"]
    assert main([*command, "--size", "[32, 24]", "--num_frames", "2", "--workers", "1"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/table.csv: 72 samples, 12 classes, 0 groups; train 24, test 48\n"
    table = read_table(tmp_path / "table.csv")
    assert table.classes() == sorted(SCENES)
    cells = Counter((s.targets["label"], s.targets["camera"], s.split) for s in table)
    assert cells == {
        (label, camera, split): n
        for label in SCENES
        for camera in ("static", "moving")
        for split, n in (("train", 1), ("test", 2))
    }
    assert read_frames(table[0].path, [0, 1]).shape == (2, 3, 24, 32)
    read = SETS["yup_plus_plus"](tmp_path, missing="skip")
    known = {(s.name, s.targets["label"], s.targets["camera"]) for s in table if s.targets["label"] in CLASSES}
    assert {(s.name, s.targets["label"], s.targets["camera"]) for s in read} == known
    assert set(SCENES) - set(CLASSES) == {"rain", "smoke"}


@pytest.mark.parametrize("label", SCENES)
def test_something_moves_before_a_still_camera(label: str) -> None:
    frames = draw_scene(Scene(label, "static", 3), size=(64, 48), num_frames=6).astype(float)
    assert frames.shape == (6, 48, 64, 3)
    moved = np.abs(frames[5] - frames[0]).mean(-1)
    assert (moved > 25).mean() > 0.01  # beyond the noise of 2 levels
    assert frames[0].std() > 15  # and there is something to see


@pytest.mark.parametrize("label", ["windmill_farm", "smoke", "snowing"])
def test_the_backdrop_moves_with_a_moving_camera_only(label: str) -> None:
    still, moving = (
        draw_scene(Scene(label, camera, 8), size=(64, 48)).astype(float) for camera in ("static", "moving")
    )
    ground = [np.abs(frames[23] - frames[0])[-16:].mean() for frames in (still, moving)]
    assert ground[1] > 1.5 * ground[0]


def test_every_video_has_its_own_look() -> None:
    assert len({scene.seed for scene in plan_scenes(5, 0)}) == 120
    one, other = (draw_scene(Scene("ocean", "static", seed), size=SMALL, num_frames=1).astype(float) for seed in (1, 2))
    assert np.abs(one - other).mean() > 5


def test_without_variety_a_scene_is_shown_as_it_is() -> None:
    look = Look.draw(Scene("ocean", "static", 1), 0.0)
    assert (look.share, look.colour, look.gains, look.gamma) == (1, 1, (1, 1, 1), 1)
    image = np.random.default_rng(0).uniform(0, 255, (4, 5, 3)).astype(np.float32)
    np.testing.assert_allclose(look.grade(image), image, rtol=1e-4)


def test_with_variety_there_are_close_ups_and_other_colours() -> None:
    looks = [Look.draw(scene, 1.0) for scene in plan_scenes(5, 0)]
    shares = np.array([look.share for look in looks])
    assert CLOSEST <= shares.min() < CLOSEST + 0.05
    assert 0.95 < shares.max() <= 1
    grey = Look(share=1, corner=(0, 0), colour=0, gains=(1, 0.5, 1), gamma=2)
    # 0.299 * 100 + 0.587 * 50 = 59.25 in all channels; half of it in green; then squared as a share of 255.
    by_hand = [59.25**2 / 255, 29.625**2 / 255, 59.25**2 / 255]
    np.testing.assert_allclose(grey.grade(np.array([[[100, 50, 0]]], np.float32))[0, 0], by_hand, rtol=1e-4)
    scene = Scene("windmill_farm", "static", 4)
    assert Look.draw(scene, 1.0).share < 0.9
    whole, close = (draw_scene(scene, size=SMALL, num_frames=2, variety=v) for v in (0.0, 1.0))
    assert whole.shape == close.shape == (2, 24, 32, 3)


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option, value, message in (
        ("--num_videos", "1", "give at least 2 videos"),
        ("--num_frames", "0", "and 1 frame"),
        ("--train_share", "1.0", "give a share between 0 and 1"),
        ("--variety", "2", "variety=2.0: give a number from 0 to 1"),
        ("--size", "[33, 24]", "size=33x24: give two even numbers"),
    ):
        assert main(["render", "scenes", "--output", str(tmp_path / "o"), option, value]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "o").exists()
