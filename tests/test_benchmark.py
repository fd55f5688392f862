"""`benchmark`: counts are right, times are those of the runs, and the command takes many models."""

import json
from pathlib import Path

import pytest
import torch

from stillmotion import benchmark as module
from stillmotion.__main__ import main
from stillmotion.benchmark import benchmark, table_rows
from stillmotion.config import ModelConfig
from stillmotion.models import create_model
from stillmotion.models.pretrained import save_pretrained
from stillmotion.tasks import Classification

CLIP = {"size": 48, "num_frames": 16}
SMALL = ModelConfig(name="resnet3d_10", options={"width": 4}, view=CLIP)


@pytest.mark.parametrize("train", [False, True])
def test_counts_and_times(train: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(1000))  # every run takes a second
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(ticks)))
    flat = ModelConfig(name="timm/test_resnet", view={"size": 96})
    threads = torch.get_num_threads()
    clip, frame = benchmark([SMALL, flat], batch_sizes=[2, 1], train=train, rounds=3, num_classes=5,
                            output=tmp_path / "b.json")  # fmt: skip
    assert torch.get_num_threads() == threads
    encoder = create_model("resnet3d_10", num_classes=5, width=4, view=CLIP)
    assert clip.params == sum(p.numel() for p in encoder.parameters())
    assert clip.ms == frame.ms == {1: 1000.0, 2: 1000.0}
    assert clip.gmacs_per_s == pytest.approx(clip.gmacs * 2 * (3 if train else 1))
    assert (clip.frames, clip.size, frame.frames) == (16, (48, 48), 1)
    written = json.loads((tmp_path / "b.json").read_text())
    assert written["train"] is train
    assert [m["name"] for m in written["models"]] == ["resnet3d_10", "timm/test_resnet"]
    heads, rows = table_rows([clip, frame])
    assert all(len(row) == len(heads) for row in rows)
    assert rows[1][-1] == "1.00x"


def test_flow_networks_get_two_channels() -> None:
    flow = ModelConfig(name="p3d_63", options={"width": 2}, view={**CLIP, "kind": "flow"})
    assert benchmark([flow], batch_sizes=[1], rounds=1)[0].frames == 16


def test_the_frames_of_both_streams_are_counted() -> None:
    flow = {"size": 32, "kind": "flow", "num_frames": 3}
    views = {"appearance": {"size": 32}, "motion": flow}
    streams = {name: {"name": "timm/test_resnet", "view": view} for name, view in views.items()}
    (found,) = benchmark([ModelConfig(name="two_stream", options=streams)], batch_sizes=[1], rounds=1)
    assert (found.frames, found.size) == (4, (32, 32))


def test_a_run_folder_keeps_its_classes(tmp_path: Path) -> None:
    encoder = create_model("resnet3d_10", num_classes=2, width=4, view=CLIP)
    save_pretrained(encoder, Classification(("run", "sit")), tmp_path)
    (found,) = benchmark([ModelConfig(name=str(tmp_path))], batch_sizes=[1], rounds=1)
    assert found.params == sum(p.numel() for p in encoder.parameters())


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    view = ["--view", json.dumps(CLIP)]
    assert main(["benchmark", "timm/test_resnet", "--rounds", "1", *view, "timm/test_efficientnet"]) == 0
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == [
        "model", "timm/test_resnet", "timm/test_efficientnet"]  # fmt: skip
    assert main(["benchmark", "student.onnx"]) == 2
    assert "student.onnx: an exported file is measured on videos" in capsys.readouterr().err
    assert main(["benchmark", "no_such_network"]) == 2
    assert main(["benchmark", "timm/test_resnet", "--rounds", "0"]) == 2
    assert "at least 1" in capsys.readouterr().err
