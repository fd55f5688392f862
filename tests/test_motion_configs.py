"""The recipes of the motion papers: they parse, say what they must, every row makes a step, and the tiny sizes run."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from stillmotion import api
from stillmotion.__main__ import main
from stillmotion.config import MethodConfig
from stillmotion.methods import build_method
from stillmotion.models import create_model
from stillmotion.results import read_results
from stillmotion.tasks import Classification
from tests.recipes import CONFIGS, settings_of

FULL = [CONFIGS / name / "ucf101.yaml" for name in ("mars", "relation")]
TASK = Classification(("a", "b"))


def rows_of(path: Path) -> dict[str, Any]:
    rows: dict[str, Any] = settings_of(path)["rows"]
    return rows


def network(row: dict[str, Any], role: str, rows: dict[str, Any]) -> Any:
    """A small network that sees what the named one sees."""
    model = row[role]
    while model["name"].startswith("row:"):
        model = rows[model["name"].removeprefix("row:")]["student"]
    flow = model.get("view", {}).get("kind") == "flow"
    view = {"kind": "flow" if flow else "rgb", "size": 16, "num_frames": 4}
    taps = model.get("options", {}).get("taps", [])
    return create_model("resnet3d_10", num_classes=2, width=4, taps=taps, view=view)


@pytest.mark.parametrize("path", FULL, ids=lambda p: p.parent.name)
def test_recipe_says_what_it_needs(path: Path) -> None:
    text, settings = path.read_text(), settings_of(path)
    assert set(settings) <= set(inspect.signature(api.compare).parameters)
    for word in ("# Data needed", "Published", "# Hardware and time:", "# Tiny local size: configs/"):
        assert word in text or word.lower() in text, word
    optim = settings["optim"]
    assert (optim["lr"], optim["momentum"], optim["dampening"], optim["weight_decay"], optim["batch_size"]) == (
        1e-3, 0.9, 0.9, 1e-5, 16)  # fmt: skip
    assert settings["seeds"] == [0, 1, 2]
    assert "shuffled" in settings["reference"], "a control beside every claim"


def test_the_grids_of_the_ablations_are_whole() -> None:
    """METHODS 9."""
    mars, relation = (rows_of(path) for path in FULL)
    options = [row["method"]["options"] for row in mars.values() if row.get("method", {}).get("name") == "mars"]
    assert {o["weight"] for o in options if "control" not in o} == {0, 10, 50, 100}
    assert {"rgb", "flow", "rgb_flow", "mers", "mars_rgb", "mars_rgb_flow", "mars_64"} <= set(mars)
    kinds = [row["method"]["options"] for row in relation.values() if row.get("method", {}).get("name") == "relation"]
    assert {o["relation"] for o in kinds} == {"none", "gram", "gram_cosine", "position", "sample"}
    assert {o["relation_weight"] for o in kinds if o["relation"] == "gram"} == {1, 10, 50, 500}  # 0 is `none`
    fusions = [row["method"]["options"] for row in relation.values() if row.get("method", {}).get("name") == "fusion"]
    assert {o["fusion"] for o in fusions} == {"mean", "sum", "concat", "gate", "attention"}


@pytest.mark.parametrize("path", FULL, ids=lambda p: p.parent.name)
def test_every_row_makes_a_step(path: Path) -> None:
    rows = rows_of(path)
    frames = torch.randint(0, 256, (3, 1, 4, 3, 16, 16), dtype=torch.uint8)
    for row in rows.values():
        student = network(row, "student", rows)
        teachers = {"teacher": network(row, "teacher", rows)} if "teacher" in row else {}
        method = build_method(MethodConfig(**row.get("method", {})), student, teachers, TASK)
        batch = {key: frames[:, :, :, : view.channels] for key, view in method.views().items()}
        out = method({**batch, "target": torch.tensor([0, 1, 0]), "index": torch.arange(3)})
        assert out["loss"].isfinite()
        if any(p.requires_grad for p in method.parameters()):
            out["loss"].backward()


@pytest.mark.parametrize("name", ["mars", "relation"])
def test_tiny_size_has_methods_of_the_full_one(name: str) -> None:
    full, tiny = (rows_of(CONFIGS / name / f"{size}.yaml") for size in ("ucf101", "tiny"))
    for row, settings in tiny.items():
        assert settings.get("method", {}).get("name") == full[row].get("method", {}).get("name")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mars", "relation"])
def test_tiny_size_runs(name: str, tiny_table: Path, tmp_path: Path) -> None:
    path = CONFIGS / name / "tiny.yaml"
    tiny = rows_of(path)
    assert main(["compare", "--config", str(path), str(tiny_table), "--output", str(tmp_path / "run")]) == 0
    assert [row["name"] for row in read_results(tmp_path / "run")] == list(tiny)
