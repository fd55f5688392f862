"""Fusion as a method: only what joins the streams learns, and the result is a run like any other."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stillmotion.__main__ import main
from stillmotion.config import DataConfig, MethodConfig, ModelConfig, OptimConfig, TrainerConfig
from stillmotion.methods import build_method
from stillmotion.models import create_model
from stillmotion.models.encoder import StoredFeatures
from stillmotion.run import Run
from stillmotion.tasks import Classification
from stillmotion.train import train

pytestmark = pytest.mark.usefixtures("undrawn")

NET: dict[str, Any] = {"name": "resnet3d_10", "options": {"width": 4}}
RGB = ModelConfig(**NET, view={"size": 16, "num_frames": 4})
FLOW = ModelConfig(**NET, view={"kind": "flow", "size": 16, "num_frames": 4})
SETTINGS: dict[str, Any] = {
    "data": DataConfig(workers=0, short_side=24),
    "optim": OptimConfig(epochs=2, batch_size=4, lr=0.01),
    "trainer": TrainerConfig(accelerator="cpu"),
}


def weights(run: Run | Path) -> dict[str, torch.Tensor]:
    return load_file((run if isinstance(run, Path) else run.path) / "model.safetensors")


def logits(run: Path) -> torch.Tensor:
    lines = (run / "predictions.csv").read_text().splitlines()[1:]
    return torch.tensor([[float(x) for x in line.split(",")[-1].split()] for line in lines])


def test_two_runs_become_one(tiny_table: Path, tmp_path: Path) -> None:
    for name, model in (("rgb", RGB), ("flow", FLOW)):
        train(tiny_table, output=tmp_path / name, student=model, **SETTINGS)

    def fuse(name: str, **options: Any) -> Run:
        rgb, flow = (ModelConfig(name=str(tmp_path / run)) for run in ("rgb", "flow"))
        method = MethodConfig(name="fusion", options=options)
        return train(tiny_table, output=tmp_path / name, student=rgb, teacher=flow, method=method, **SETTINGS)

    attention = fuse("attention", fusion="attention", hidden_dim=6)
    kept = weights(attention)
    for stream, source in (("appearance", "rgb"), ("motion", "flow")):
        trained = weights(tmp_path / source)
        assert all(torch.equal(kept[f"streams.{stream}.{n}"], t) for n, t in trained.items()), "batch norms too"
    assert json.loads((attention.path / "report.json").read_text())["steps"] == 2
    assert main(["evaluate", str(attention.path), str(tiny_table), "--device", "cpu", "--workers", "0"]) == 0
    assert main(["predict", str(attention.path), str(tmp_path / "0.mp4"), "--output", str(tmp_path / "p.jsonl")]) == 0
    assert json.loads((tmp_path / "p.jsonl").read_text())["labels"][0]["label"] in "ab"

    mean = fuse("mean", fusion="mean")
    report = json.loads((mean.path / "report.json").read_text())
    assert (report["epochs"], report["steps"]) == (0, 0), "nothing to learn"
    wanted = (logits(tmp_path / "rgb") + logits(tmp_path / "flow")) / 2
    torch.testing.assert_close(logits(mean.path), wanted, atol=1e-4, rtol=1e-4)

    trained = fuse("trained", fusion="mean", train_streams=True)
    name = next(n for n in weights(mean) if n.startswith("streams.motion") and n.endswith("conv1.weight"))
    assert not torch.equal(weights(trained)[name], weights(mean)[name])


@pytest.mark.parametrize("teacher", [None, StoredFeatures("store", embedding_dim=3)])
def test_it_needs_the_other_network_itself(teacher: StoredFeatures | None) -> None:
    rgb = create_model("resnet3d_10", num_classes=2, width=4)
    teachers = {} if teacher is None else {"teacher": teacher}
    with pytest.raises(ValueError, match="name one, not features"):
        build_method(MethodConfig(name="fusion"), rgb, teachers, Classification(("a", "b")))


def test_compare_fuses_its_rows(tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = {"name": "resnet3d_10", "options": {"width": 4}}
    rows = {
        "rgb": {"student": {**student, "view": {"size": 16, "num_frames": 4}}},
        "flow": {"student": {**student, "view": {"kind": "flow", "size": 16, "num_frames": 4}}},
        "both": {"student": {"name": "row:rgb"}, "teacher": {"name": "row:flow"}, "cache": False,
                 "method": {"name": "fusion", "options": {"fusion": "mean"}}},
    }  # fmt: skip
    settings = {"rows": rows, "seeds": [0], "data": {"workers": 0, "num_draws": 2},
                "optim": {"epochs": 1, "batch_size": 4}, "trainer": {"accelerator": "cpu"}}  # fmt: skip
    (tmp_path / "c.yaml").write_text(json.dumps(settings))
    call = ["compare", "--config", str(tmp_path / "c.yaml"), str(tiny_table), "--output", str(tmp_path / "out")]
    assert main(call) == 0, capsys.readouterr()
    costs = {r["name"]: r["cost"] for r in json.loads((tmp_path / "out" / "results.json").read_text())["rows"]}
    assert costs["both"]["gmacs"] == pytest.approx(costs["rgb"]["gmacs"] + costs["flow"]["gmacs"], rel=0.01)
