"""The STDDCN recipe: it has every ablation of METHODS 9, the tiny one is the full one made small, and runs."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from stillmotion.__main__ import main
from stillmotion.config import MethodConfig, ModelConfig, OptimConfig
from stillmotion.methods import build_method, method_options
from stillmotion.methods.stddcn import Stddcn
from stillmotion.models.encoder import Encoder
from stillmotion.models.factory import load_model
from stillmotion.models.two_stream import TwoStream
from stillmotion.optim import Schedule
from stillmotion.results import read_results
from stillmotion.tasks import Classification
from tests.recipes import CONFIGS, settings_of

FULL, TINY = (CONFIGS / "stddcn" / f"ablation{size}.yaml" for size in ("", "_tiny"))
RUN = ("rgb", "flow", "stddcn", "shuffled")


def options_of(row: dict[str, Any]) -> dict[str, Any]:
    """Of the method, with its defaults."""
    known = {name: Stddcn.defaults.get(name, p.default) for name, p in method_options("stddcn").items()}
    return {**known, **row["method"]["options"]}


def test_the_grid_has_every_value_of_every_axis() -> None:
    named = settings_of(FULL)["rows"].items()
    rows = {name: options_of(row) for name, row in named if row.get("method", {}).get("name") == "stddcn"}
    grid: dict[str, list[Any]] = {
        "connect": ["none", "sum", "concat", "mul"],
        "direction": ["m2a", "a2m", "both"],
        "density": ["adjacent", "dense"],
        "stages": [None, [4], [3, 4], [2, 3, 4], [1, 2], [1]],
        "teacher_kind": ["none", "fusion_fc", "fusion_mean", "mutual"],
        "temperature": [1, 2, 4, 8],
        "mu": [0.5, 1, 2],
        "teacher_grad": [False, True],
        "control": [None, "shuffled"],
    }
    main_row = {**rows["stddcn"]}
    for axis, values in grid.items():
        # Each beside the main row, in nothing but this axis.
        found = [r[axis] for r in rows.values() if {**r, axis: main_row[axis]} == main_row]
        assert all(value in found for value in values), axis
    assert rows["two_stream"] == {**main_row, "connect": "none", "teacher_kind": "none"}
    assert (main_row["temperature"], main_row["mu"], main_row["dropout"]) == (4, 1, 0.8)


def test_the_schedule_is_that_of_the_paper() -> None:
    """1e-3 for ten passes, then 1e-4 and 1e-5 for five each (METHODS 5.4)."""
    settings = settings_of(FULL)
    optim = OptimConfig(**settings["optim"])
    rates = [optim.lr * Schedule(optim, 10).factor(10 * epoch + 9) for epoch in range(optim.epochs)]
    assert rates == pytest.approx([1e-3] * 10 + [1e-4] * 5 + [1e-5] * 5)
    flow = settings["rows"]["flow"]["student"]
    assert (flow["view"]["num_frames"], flow["view"]["flow"]) == (10, {"method": "tvl1", "bound": 20 * 224 / 256})
    assert flow["options"] == {"drop_rate": 0.8}


def test_the_tiny_recipe_differs_in_sizes_only() -> None:
    full, tiny = settings_of(FULL), settings_of(TINY)
    assert full["rows"].keys() == tiny["rows"].keys()
    for name, row in full["rows"].items():
        small = tiny["rows"][name]
        for key in ("method", "teacher", "cache", "optim"):
            assert row.get(key) == small.get(key), name
        assert row["student"].get("options") == small["student"].get("options")
    assert {**tiny["optim"], "epochs": 20, "batch_size": 128} == full["optim"]


def test_every_row_can_be_built() -> None:
    rows, task = settings_of(TINY)["rows"], Classification(("a", "b"))

    def network(model: dict[str, Any]) -> Encoder:
        named = rows[model["name"].removeprefix("row:")]["student"] if model["name"].startswith("row:") else model
        return load_model(ModelConfig(**named), num_classes=2)

    for name, row in rows.items():
        teachers = {"teacher": network(row["teacher"])} if "teacher" in row else {}
        method = MethodConfig(**row.get("method", {"name": "supervised"}))
        built = build_method(method, network(row["student"]), teachers, task)
        assert isinstance(built.student, TwoStream) == (method.name == "stddcn"), name


def test_tiny_size_runs(tiny_table: Path, tmp_path: Path) -> None:
    """Some of its rows; the others, which take a minute, are built above."""
    settings = settings_of(TINY)
    settings["rows"] = {name: settings["rows"][name] for name in RUN}
    settings["reference"] = ["rgb", "shuffled"]
    (tmp_path / "some.yaml").write_text(yaml.safe_dump(settings))
    run = tmp_path / "run"
    command = ["compare", "--config", str(tmp_path / "some.yaml"), str(tiny_table), "--output", str(run)]
    assert main([*command, "--workers", "2"]) == 0
    rows = {row["name"]: row["metrics"] for row in read_results(run)}
    assert rows.keys() == set(RUN)
    parts = {"top1_appearance", "top1_motion", "top1_mean"}
    for name, metrics in rows.items():
        assert {"top1", "top1_25"} <= metrics.keys()
        assert parts & metrics.keys() == (set() if name in ("rgb", "flow") else parts)
