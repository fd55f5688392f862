"""The P3D recipes: the tiny one is the full one made small, and runs."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from stillmotion.__main__ import main
from stillmotion.models.p3d import P3DS
from stillmotion.results import read_results

FOLDER = Path(__file__).parents[1] / "configs" / "p3d"


def settings_of(name: str) -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text())
    return settings


def test_table1_says_what_the_paper_says() -> None:
    full, tiny = settings_of("table1_ucf101.yaml"), settings_of("table1_tiny.yaml")
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


def test_tiny_size_runs(tiny_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER.parents[1])
    run = tmp_path / "run"
    assert main(["compare", "--config", "configs/p3d/table1_tiny.yaml", str(tiny_table), "--output", str(run)]) == 0
    rows = {row["name"]: row for row in read_results(run)}
    assert rows.keys() == settings_of("table1_ucf101.yaml")["rows"].keys()
    assert all({"top1", "top1_video"} <= row["metrics"].keys() for row in rows.values())
