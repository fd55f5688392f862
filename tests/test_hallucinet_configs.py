"""The HalluciNet recipes for single frames: they parse, say what they must, and their tiny size runs."""

import inspect
from pathlib import Path

import pytest

from stillmotion import api
from stillmotion.__main__ import main
from stillmotion.models.resnext3d import VIEW
from stillmotion.results import read_results
from stillmotion.view import View
from tests.recipes import CONFIGS, commands_of, settings_of

FOLDER = CONFIGS / "hallucinet"
RECIPES = sorted(FOLDER.glob("*_static*.yaml"))


def test_the_five_recipes_are_there() -> None:
    names = {path.stem for path in RECIPES}
    assert names == {f"{s}_static{v}" for s in ("ucf", "hmdb") for v in ("", "_official_code")} | {
        "ucf_static_resnet50_25frames"
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipe_says_what_it_needs(path: Path) -> None:
    text, settings = path.read_text(), settings_of(path)
    assert set(settings) <= set(inspect.signature(api.train).parameters)
    for word in ("# Data needed:", "# Published", "# Hardware and time:", "# Teacher:", "# Student:", "# Tiny"):
        assert word in text, word
    train = [c for c in commands_of(path) if c[:2] == ["train", "--config"]]
    assert [c[2] for c in train] == [f"configs/hallucinet/{path.name}"] * 2
    assert settings["optim"] | {"steps_per_epoch": None} == {
        "optimiser": "adam", "lr": 1e-4, "epochs": 50, "batch_size": 25,
        "schedule": "step", "step_epochs": 30, "gamma": 0.1, "steps_per_epoch": None,
    }  # fmt: skip
    assert settings["method"]["options"]["weight"] == 50


def test_official_code_reading() -> None:
    for path in RECIPES:
        settings, official = settings_of(path), "official_code" in path.stem
        assert settings["optim"].get("steps_per_epoch") == (101 if official else None)
        assert settings["method"]["options"]["fuse"] == ("none" if official else "concat")
        assert "augment" not in settings["data"]  # no flip, no box
        if official:
            student = View(**settings["student"]["view"])
            teacher = View(**{**VIEW.to_dict(), **settings["teacher"]["view"]})
            assert (student.resize, student.size, student.interpolation) == ((240, 320), (227, 227), "random")
            assert (teacher.resize, teacher.size, teacher.interpolation) == ((128, 171), (112, 112), "random")
            assert (teacher.end, teacher.num_frames, teacher.clip) == ("hallucinet", 16, "start")


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_tiny_size_runs(path: Path, tiny_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny command of the comment, word for word."""
    monkeypatch.chdir(FOLDER.parents[1])
    (command,) = [c for c in commands_of(path) if "TABLE" in c]
    places = {"TABLE": str(tiny_table), "RUN": str(tmp_path / "run")}
    assert main([places.get(word, word) for word in command]) == 0
    (row,) = read_results(tmp_path / "run")
    assert {"top1", "hallucinated_r2"} <= row["metrics"].keys()
