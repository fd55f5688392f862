"""Im2Flow: what is guessed, the losses by hand, and who learns from them; then a training from the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stillmotion.__main__ import main
from stillmotion.config import MethodConfig
from stillmotion.methods import build_method
from stillmotion.methods.base import Method
from stillmotion.models import create_model
from stillmotion.models.im2flow import FlowDecoder, Im2Flow
from stillmotion.tasks import Classification

pytestmark = pytest.mark.usefixtures("undrawn")

TASK = Classification(("a", "b"))
FRAME: dict[str, Any] = {"name": "timm/test_resnet", "view": {"size": 64}}
FLOW: dict[str, Any] = {"name": "resnet3d_10", "width": 4, "view": {"kind": "flow", "size": 32, "num_frames": 4}}


def make(**options: Any) -> Method:
    torch.manual_seed(0)
    teacher = create_model(**FLOW, num_classes=2)
    student = create_model(**FRAME, num_classes=2)
    return build_method(MethodConfig(name="im2flow", options=options), student, {"teacher": teacher}, TASK).eval()


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (3, 1, 1, 3, 64, 64), generator=generator, dtype=torch.uint8)
    flow = torch.randint(0, 256, (3, 1, 4, 2, 32, 32), generator=generator, dtype=torch.uint8)
    return {"student/frames": frames, "teacher/clip": flow, "target": torch.tensor([0, 1, 0]), "index": torch.arange(3)}


def test_the_decoder_ends_at_the_size_of_the_flow_within_its_bound() -> None:
    torch.manual_seed(0)
    decoder = FlowDecoder([6, 10, 20], num_fields=5, width=8)
    maps = [torch.randn(2, c, s, s) * 100 for c, s in ((6, 16), (10, 8), (20, 4))]
    flow = decoder(maps, (24, 40))
    assert flow.shape == (2, 5, 2, 24, 40)
    assert flow.abs().max() <= 1.0
    # 20 -> 32; 10 + 32 -> 16; 6 + 16 -> 8; each 3x3 with a batch norm; 8 -> 10 with a bias
    by_hand = 9 * (20 * 32 + 42 * 16 + 22 * 8) + 2 * (32 + 16 + 8) + 9 * 8 * 10 + 10
    assert sum(p.numel() for p in decoder.parameters()) == by_hand


def test_the_losses_by_hand() -> None:
    method, given = make(), batch()
    out = method(given)
    teacher = method.encoder("teacher")
    with torch.no_grad():
        shown = method.student(given["student/frames"][:, 0])
        true = (given["teacher/clip"][:, 0].float() - 128.0) / 127.0
        flow_loss = (shown["flow"] - true).square().mean()
        content = (teacher.forward_views(shown["flow"])["embedding"] - teacher.forward_views(true)["embedding"]) ** 2
        logits = teacher.forward_views(shown["flow"])["logits"]  # the student's motion network starts as the teacher
    torch.testing.assert_close(out["flow_loss"], flow_loss)
    torch.testing.assert_close(out["content_loss"], content.mean())
    torch.testing.assert_close(out["logits"], logits)
    task = F.cross_entropy(logits, given["target"])
    torch.testing.assert_close(out["loss"], task + 50.0 * flow_loss + content.mean())
    assert method.weights() == {"task_loss": 1.0, "flow_loss": 50.0, "content_loss": 1.0}


def test_the_content_teaches_the_decoder_and_leaves_the_teacher() -> None:
    method = make(weight=0.0, task_weight=0.0)
    method(batch())["loss"].backward()
    student = method.student
    assert isinstance(student, Im2Flow)
    assert all(p.grad is None for p in method.encoder("teacher").parameters())
    assert student.decoder.last.weight.grad is not None
    assert student.decoder.last.weight.grad.abs().sum() > 0
    assert all(p.grad is None or not p.grad.any() for p in student.motion.parameters()), "its own network sees the task"


def test_settings_rebuild_it_and_mistakes_are_one_line() -> None:
    student = make(width=8).student
    again = create_model(**student.config)
    again.load_state_dict(student.state_dict())
    frames = batch()["student/frames"][:, 0]
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(frames)["logits"], student(frames)["logits"])
    rgb = {**FLOW, "view": {"size": 32, "num_frames": 4}}
    with pytest.raises(ValueError, match="resnet3d_10 sees something else"):
        create_model("im2flow", num_classes=2, appearance=FRAME, motion=rgb)
    with pytest.raises(ValueError, match="its layers cannot be taken apart"):
        create_model("im2flow", num_classes=2, appearance=rgb, motion=FLOW)
    with pytest.raises(ValueError, match="name one, not features"):
        build_method(MethodConfig(name="im2flow"), create_model(**FRAME, num_classes=2), {}, TASK)


def test_from_the_command_line(tiny_table: Path, tmp_path: Path) -> None:
    common = ["--data.workers", "0", "--optim.epochs", "1", "--optim.batch_size", "4", "--trainer.accelerator", "cpu"]
    view = json.dumps({"kind": "flow", "size": 32, "num_frames": 4})
    flow = ["--student", "resnet3d_10", "--student.options", '{"width": 4}', "--student.view", view]
    assert main(["train", str(tiny_table), "--output", str(tmp_path / "flow"), *flow, *common]) == 0
    rival = ["--student", "timm/test_resnet", "--student.view.size", "64", "--teacher", str(tmp_path / "flow")]
    assert (
        main(["train", str(tiny_table), "--output", str(tmp_path / "im"), "--method", "im2flow", *rival, *common]) == 0
    )
    assert main(["predict", str(tmp_path / "im"), str(tmp_path / "0.mp4"), "--output", str(tmp_path / "p.jsonl")]) == 0
    assert json.loads((tmp_path / "p.jsonl").read_text())["frames"] == 1
    assert main(["export", str(tmp_path / "im"), "--output", str(tmp_path / "im.onnx")]) == 0, "it sees colours only"
