"""The P3D recipes: the tiny one is the full one made small, and runs."""

import inspect
from pathlib import Path

import pytest

from stillmotion import api
from stillmotion.__main__ import main
from stillmotion.models.p3d import P3DS
from stillmotion.protocols.feature_file import read_features
from stillmotion.results import read_results
from tests.recipes import CONFIGS, commands_of, settings_of

FOLDER = CONFIGS / "p3d"


def test_table1_says_what_the_paper_says() -> None:
    full, tiny = settings_of(FOLDER / "table1_ucf101.yaml"), settings_of(FOLDER / "table1_tiny.yaml")
    orders = {name: row["student"].get("options", {}).get("order") for name, row in full["rows"].items()}
    assert orders == {"resnet50": None, "p3d_a": "A", "p3d_b": "B", "p3d_c": "C", "p3d": "ABC", "p3d_acb": "ACB",
                      "p3d_random": orders["p3d_random"]}  # fmt: skip
    assert len(orders["p3d_random"]) == sum(P3DS["p3d_63"][:3])
    for name, row in full["rows"].items():
        options = row["student"]["options"]
        assert options.get("dropout", options.get("drop_rate")) == 0.9
        assert options.get("freeze_bn", name == "resnet50")
        small = tiny["rows"][name]["student"]
        assert small.get("options", {}).get("order") == orders[name]
    optim = full["optim"]
    steps = -(-9537 // optim["batch_size"])  # 9,537 training videos
    assert (optim["lr"], optim["batch_size"], optim["step_epochs"] * steps, optim["epochs"] * steps) == (
        1e-3, 128, 3000, 7500)  # fmt: skip
    assert {**tiny["optim"], "epochs": 100, "batch_size": 128} == optim


PROTOCOLS = sorted(path for path in FOLDER.glob("table[2-6]*.yaml"))


def test_there_is_one_for_each_table() -> None:
    assert [path.stem[5] for path in PROTOCOLS] == ["2", "3", "4", "5", "6"]


@pytest.mark.parametrize("path", PROTOCOLS, ids=lambda p: p.stem)
def test_recipe_says_what_it_needs(path: Path) -> None:
    text, settings = path.read_text(), settings_of(path)
    command = api.train if "student" in settings else api.features
    assert set(settings) <= set(inspect.signature(command).parameters)
    for word in ("# Data needed:", "# Weights:", "# Published (", "# Hardware and time:", "# Tiny"):
        assert word in text, word
    if command is api.train:
        optim = settings["optim"]
        steps = {name: optim[name] * optim["steps_per_epoch"] for name in ("step_epochs", "epochs")}
        assert steps == {"step_epochs": 60_000, "epochs": 150_000}
        assert (optim["batch_size"], settings["student"]["options"]["dropout"]) == (128, 0.1)
    else:
        assert settings["num_clips"] == 20
        (extract,) = [c for c in commands_of(path) if c[:2] == ["features", "--config"] and "TABLE" not in c]
        readers = [c for c in commands_of(path) if c[0] in ("svm", "aslan")]
        assert extract[2] == f"configs/p3d/{path.name}"
        assert [c[1] for c in readers] == [settings["output"]], "the file that the next command reads"


@pytest.mark.parametrize("path", PROTOCOLS, ids=lambda p: p.stem)
def test_tiny_size_of_a_protocol_runs(
    path: Path, tiny_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny command of the comment, word for word; then the SVM on what it wrote."""
    monkeypatch.chdir(FOLDER.parents[1])
    (command,) = [c for c in commands_of(path) if "TABLE" in c]
    run = tmp_path / "run"
    assert main([str(tiny_table) if word == "TABLE" else word.replace("RUN", str(run)) for word in command]) == 0
    if command[0] == "train":
        assert "top1" in read_results(run)[0]["metrics"]
        return
    found = read_features(run / "features.parquet")
    wide = {"prob": 2, "embedding": 2048, "layer4:map": 2048, "layer3:map": 1024 * 2 * 2}
    assert {tap: x.shape for tap, x in found.arrays.items()} == {
        tap: (7, wide[tap]) for tap in settings_of(path)["taps"]
    }
    assert main(["svm", str(run / "features.parquet"), str(tiny_table), "--tap", "embedding"]) == 0


@pytest.mark.slow
def test_tiny_size_runs(tiny_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER.parents[1])
    run = tmp_path / "run"
    assert main(["compare", "--config", "configs/p3d/table1_tiny.yaml", str(tiny_table), "--output", str(run)]) == 0
    rows = {row["name"]: row for row in read_results(run)}
    assert rows.keys() == settings_of(FOLDER / "table1_ucf101.yaml")["rows"].keys()
    assert all({"top1", "top1_video"} <= row["metrics"].keys() for row in rows.values())
