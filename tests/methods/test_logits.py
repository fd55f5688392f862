"""Logit distillation: the loss by hand, and what it trains."""

import math
from pathlib import Path

import pytest
import torch

from stillmotion.config import MethodConfig, ModelConfig
from stillmotion.methods import build_method
from stillmotion.methods.base import Method
from stillmotion.methods.logits import distillation_loss
from stillmotion.models.factory import create_model, load_model
from stillmotion.models.pretrained import save_pretrained
from stillmotion.tasks import Classification
from tests.methods.networks import TASK, random_batch, student_backbone, video_teacher


def make(**options: float) -> Method:
    torch.manual_seed(0)
    teachers = {"teacher": video_teacher()}
    return build_method(MethodConfig(name="logits", options=options), student_backbone(), teachers, TASK)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_loss_matches_a_loop(temperature: float) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 5) * 3, torch.randn(3, 5) * 3
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p = [math.exp(v / temperature) / sum(math.exp(w / temperature) for w in t) for v in t]
        q = [math.exp(v / temperature) / sum(math.exp(w / temperature) for w in s) for v in s]
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 3
    assert distillation_loss(student, teacher, temperature=temperature).item() == pytest.approx(
        total * temperature**2, rel=1e-5
    )
    assert distillation_loss(teacher + 7.0, teacher).item() == pytest.approx(0.0, abs=1e-5)


def test_step_in_parts() -> None:
    method, batch = make(temperature=2.0, weight=0.7, task_weight=0.3).eval(), random_batch()
    out = method(batch)
    teacher_logits = method.encoder("teacher")(batch["teacher/frames"][:, 0])["logits"]
    expected = distillation_loss(out["logits"], teacher_logits, temperature=2.0)
    assert out["distillation_loss"].item() == pytest.approx(expected.item())
    assert out["loss"].item() == pytest.approx(0.3 * out["task_loss"].item() + 0.7 * expected.item())
    assert method.weights() == {"task_loss": 0.3, "distillation_loss": 0.7}
    out["loss"].backward()
    assert all(p.grad is None for p in method.encoder("teacher").parameters())


def test_unlabelled_samples_carry_the_distillation_loss_alone() -> None:
    method = make().eval()
    out = method({**random_batch(), "target": torch.full((4,), -1)})
    assert out["loss"].item() == out["distillation_loss"].item() > 0.0


def test_weight_zero_needs_no_teacher() -> None:
    method = build_method(MethodConfig(name="logits", options={"weight": 0.0}), student_backbone(), {}, TASK)
    out = method(random_batch())
    assert out["loss"].item() == out["task_loss"].item()
    assert set(method.views()) == {"student/frames"}


def test_teacher_of_other_classes_is_refused() -> None:
    teachers = {"teacher": video_teacher(num_classes=400)}
    with pytest.raises(ValueError, match="gives 400 logits, the student 3"):
        build_method(MethodConfig(name="logits"), student_backbone(), teachers, TASK)
    with pytest.raises(ValueError, match=r"temperature=0\.0"):
        make(temperature=0.0)


def test_teacher_without_a_trained_classifier_is_refused(tmp_path: Path) -> None:
    """A run of other classes keeps its backbone; its classifier would start at random."""
    save_pretrained(create_model("resnet3d_10", num_classes=5, width=4), Classification(tuple("abcde")), tmp_path)
    teacher = load_model(ModelConfig(name=str(tmp_path)), num_classes=3)
    with pytest.raises(ValueError, match=r"no trained classifier .*: classifier of 5 classes, here 3"):
        build_method(MethodConfig(name="logits"), student_backbone(), {"teacher": teacher}, TASK)
    config = MethodConfig(name="hallucinate", options={"target": "logits"})
    with pytest.raises(ValueError, match="target='logits': the teacher gives embedding;"):
        build_method(config, student_backbone(), {"teacher": teacher}, TASK)
    random = load_model(ModelConfig(name=str(tmp_path), weights="random"), num_classes=3)  # a control, and meant
    assert build_method(MethodConfig(name="logits"), student_backbone(), {"teacher": random}, TASK)
