"""From a training to predictions without torch, for every kind of student: trained, exported, quantised, checked."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillmotion.config import DataConfig, MethodConfig, ModelConfig, OptimConfig, TrainerConfig
from stillmotion.data.render.actions import write_video
from stillmotion.export import export, onnx
from stillmotion.export.graph import Network
from stillmotion.predict import Predictor
from stillmotion.train import train

ABSENT = ("torch", "torchvision", "timm", "lightning", "torchmetrics", "onnx", "scipy", "sklearn", "matplotlib",
          "jinja2", "pyarrow", "pandas", "safetensors", "huggingface_hub", "filelock", "tensorboard")  # fmt: skip
"""What the core install does not bring (OpenCV is an extra for flow)."""
FRAME = {"name": "timm/test_resnet", "view": {"size": 32}}
CLIP = {"size": 32, "num_frames": 4, "moment": "first"}
MOMENTS = {"size": 32, "num_moments": 3, "moment": "uniform"}
CLIPS = {"name": "resnet3d_10", "options": {"width": 8}}
TEACHER = ModelConfig(**CLIPS, view=CLIP)


def sequence(**options: Any) -> ModelConfig:
    return ModelConfig(name="sequence", options={"backbone": FRAME, **options}, view=MOMENTS)


def streams(name: str, motion: dict[str, Any], **options: Any) -> ModelConfig:
    return ModelConfig(name=name, options={"appearance": FRAME, "motion": motion, **options})


STUDENTS = {
    "one frame": ModelConfig(**FRAME),
    "distilled": ModelConfig(**FRAME),
    "mean": sequence(aggregate="mean"),
    "lstm": sequence(aggregate="lstm", hidden_dim=16),
    "attention": sequence(aggregate="attention", hidden_dim=8),
    "tsm": sequence(aggregate="mean", shift="both"),
    "clip": ModelConfig(**CLIPS, view=CLIP),
    "differences": ModelConfig(**CLIPS, view={**CLIP, "kind": "difference"}),
    "two streams": streams("two_stream", {**FRAME, "view": {**CLIP, "kind": "flow"}, "stack": True}),
    "attention fusion": streams(
        "fused", {**FRAME, "view": {**CLIP, "kind": "difference"}, "stack": True}, fusion="attention"
    ),
}
CHEAP = "distilled"
"""The kind that every test run tries; the others are slow (about 20 s of CPU time each)."""
PREDICT = (
    "import sys\n"
    "sys.modules.update(dict.fromkeys({absent}))\n"  # None: importing it fails
    "from stillmotion.__main__ import main\n"
    "sys.exit(main(['predict', *sys.argv[1:]]))\n"
)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training and 12 test videos: a bar whose colour is the class moves over grey noise."""
    folder, rng, lines = tmp_path_factory.mktemp("videos"), np.random.default_rng(0), ["path,label,split"]
    for i in range(36):
        frames = rng.integers(60, 100, (8, 48, 64, 3)).astype(np.uint8)
        for t, left in enumerate(range(rng.integers(0, 16), 64, 6)[:8]):
            frames[t, :, left : left + 12] = 30
            frames[t, :, left : left + 12, i % 3] = 230
        write_video(folder / f"{i}.mp4", frames)
        lines.append(f"{i}.mp4,{('red', 'green', 'blue')[i % 3]},{'train' if i < 24 else 'test'}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    return folder / "table.csv"


def trained(kind: str, table: Path, output: Path) -> Path:
    """A run folder of this kind of student."""
    distilled = {"teacher": TEACHER, "method": MethodConfig(name="hallucinate")} if kind == "distilled" else {}
    run = train(
        table,
        output=output,
        student=STUDENTS[kind],
        optim=OptimConfig(lr=3e-3, epochs=12, batch_size=8),
        data=DataConfig(workers=0),
        trainer=TrainerConfig(accelerator="cpu", devices=1),
        **distilled,  # type: ignore[arg-type]
    )
    return run.path


def record_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recording a graph takes seconds, and is the same for every precision."""
    record, recorded = onnx._exported, list[bytes]()

    def recorded_once(network: Network) -> bytes:
        recorded[:] = recorded or [record(network)]
        return recorded[0]

    monkeypatch.setattr(onnx, "_exported", recorded_once)


def predicted_without_torch(model: Path, videos: list[str]) -> list[dict[str, float]]:
    """Probabilities by class, of a process in which nothing of the training can be imported."""
    command = [sys.executable, "-c", PREDICT.format(absent=ABSENT), str(model), *videos, "--workers", "1"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    return [{c["label"]: c["probability"] for c in json.loads(line)["labels"]} for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    "kind", [kind if kind == CHEAP else pytest.param(kind, marks=pytest.mark.slow) for kind in STUDENTS]
)
def test_from_training_to_a_prediction_without_torch(
    kind: str, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(kind, table, tmp_path / "run")
    videos = [str(table.parent / f"{i}.mp4") for i in (24, 25, 26)]
    torch_says = [dict(Predictor.load(run, device="cpu")(video).labels) for video in videos]
    record_once(monkeypatch)
    for precision in ("float32", "int8"):
        path = export(str(run), str(tmp_path / f"{precision}.onnx"), precision=precision)  # type: ignore[arg-type]
        report = json.loads(path.with_name(path.name + ".report.json").read_text())
        assert report["frames"] == "table.csv, split test"
        accuracy = report["accuracy"]
        assert accuracy["samples"] == 12
        assert accuracy["torch"]["top1"] >= 0.75, "three classes in turn: guessing gives 0.33"
        assert accuracy["drop"] <= 1.0
        differences = report["parity"]["largest_difference"]
        assert list(differences) == ["batch size 1", "batch size 2", "batch size 5"]
        given = predicted_without_torch(path, videos)
        if precision == "float32":
            assert max(d["relative"] for d in differences.values()) <= report["parity"]["tolerance"] == 1e-3
            assert accuracy["agreement"] == 1.0
            for ours, theirs in zip(given, torch_says, strict=True):
                assert ours == pytest.approx(theirs, abs=1e-3)
            whole = path.stat().st_size
        else:
            assert differences["batch size 1"]["absolute"] > 0.0, "the weights are rounded"
            assert accuracy["agreement"] >= 0.9
            assert path.stat().st_size < 0.6 * whole
            assert [max(p, key=p.__getitem__) for p in given] == [max(p, key=p.__getitem__) for p in torch_says]
