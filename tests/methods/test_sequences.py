"""Methods with a student that looks at several moments together: every moment is matched with the teacher's own."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from stillmotion.config import MethodConfig
from stillmotion.methods import build_method
from stillmotion.methods.base import Method
from stillmotion.methods.hallucinate import feature_dim
from stillmotion.models.encoder import StoredFeatures
from stillmotion.models.sequence import FrameSequence
from stillmotion.models.student import HallucinatingStudent
from tests.methods.networks import TASK, random_batch, student_backbone, video_teacher

MOMENTS = 5


def sequence(**options: Any) -> FrameSequence:
    torch.manual_seed(0)
    backbone = student_backbone()
    backbone.views = {"frames": replace(backbone.views["frames"], num_moments=MOMENTS)}
    return FrameSequence(backbone, num_classes=3, **options)


def make(name: str = "hallucinate", student: FrameSequence | None = None, **options: Any) -> Method:
    teacher = video_teacher(width=5 if name in ("mars", "mers") else 7)
    teacher.views = {"frames": replace(teacher.views["frames"], num_moments=MOMENTS)}
    torch.manual_seed(1)
    student = sequence(aggregate="lstm", hidden_dim=6) if student is None else student
    return build_method(MethodConfig(name=name, options=options), student, {"teacher": teacher}, TASK)


def test_every_frame_hallucinates_its_own_clip() -> None:
    """The loss of a loop over samples and moments."""
    method, batch = make(weight=3.0).eval(), random_batch(moments=MOMENTS)
    assert isinstance(method.student, FrameSequence)
    branch, teacher = method.student.backbone, method.encoder("teacher")
    total = 0.0
    with torch.no_grad():
        for number in range(4):
            for moment in range(MOMENTS):
                guess = branch(batch["student/frames"][number, moment][None])["hallucinated"][0]
                clip = batch["teacher/frames"][number, moment][None]
                wanted = teacher(clip)["embedding"][0]
                total += float(((guess.sigmoid() - wanted.sigmoid()) ** 2).mean()) / (4 * MOMENTS)
    out = method(batch)
    assert out["hallucination_loss"].item() == pytest.approx(total, rel=1e-5)
    assert out["hallucinated"].shape == out["hallucination_target"].shape == (4, MOMENTS, 7)
    assert out["loss"].item() == pytest.approx(out["task_loss"].item() + 3.0 * total, rel=1e-5)
    out["loss"].backward()
    assert all(p.grad is not None for k, p in method.student.named_parameters() if "backbone.classifier" not in k)


def test_the_branch_goes_inside_once() -> None:
    student = make().student
    assert isinstance(student, FrameSequence)
    assert isinstance(student.backbone, HallucinatingStudent)
    assert student.settings["aggregate"] == "lstm"
    again = make(student=student).student
    assert again is student, "a student that has a branch stays as it is"
    assert student.get_submodule("classifier").in_features == 6
    assert student.aggregate_moments.lstm.input_size == 5 + 7  # type: ignore[union-attr]
    plain = sequence()
    assert make("supervised", student=plain).student is plain


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("supervised", {}),
        ("logits", {}),
        ("mars", {}),
        ("mers", {}),
        ("d3d", {}),
        ("hallucinate", {"target": "logits"}),
    ],
)
def test_other_methods_take_it(name: str, options: dict[str, Any]) -> None:
    method, batch = make(name, **options), random_batch(moments=MOMENTS)
    out = method(batch)
    assert out["logits"].shape == (4, 3)
    assert out["loss"].item() == pytest.approx(sum(w * out[k].item() for k, w in method.weights().items()), rel=1e-5)
    out["loss"].backward()
    backbone = [p.grad for k, p in method.student.named_parameters() if k.startswith("backbone.first")]
    assert all(g is not None and g.abs().sum() > 0 for g in backbone)


def test_a_sequence_teaches() -> None:
    """Its embeddings moment by moment, and its logits at every moment."""
    teacher = sequence(aggregate="lstm", hidden_dim=6)
    assert (feature_dim(teacher, "embedding"), feature_dim(teacher, "logits")) == (5, 3)
    batch = {"teacher/frames": random_batch(moments=MOMENTS)["student/frames"]}
    outputs = teacher.eval().from_batch(batch, "teacher")
    assert outputs["embedding"].shape == (4, MOMENTS, 5)
    assert torch.equal(outputs["moment_logits"].mean(1).argmax(1), outputs["logits"].argmax(1))


@pytest.mark.parametrize("setting", [{"spacing": 8}, {"lead": 90}, {"jitter": 0}, {"fps": 25.0}, {"outside": False}])
def test_moments_that_do_not_match_are_refused(setting: dict[str, Any]) -> None:
    rule: dict[str, Any] = {"moment": "spaced", "spacing": 16, "lead": 103, "jitter": 3, "outside": True}
    student, teacher = sequence(), video_teacher()
    student.views = {"frames": replace(student.views["frames"], **rule)}
    seen = replace(teacher.views["frames"], num_moments=MOMENTS, **rule)
    stored = StoredFeatures("features", embedding_dim=7, view=seen)
    build_method(MethodConfig(name="hallucinate"), student, {"teacher": stored}, TASK)
    (name,) = setting
    for other in (video_teacher(), StoredFeatures("features", embedding_dim=7)):
        other.views = {
            key: replace(seen, kind=view.kind, source=view.source, **setting) for key, view in other.views.items()
        }
        with pytest.raises(ValueError, match=rf"spaced moments with view\.{name}=.*set teacher\.view\.{name}="):
            build_method(MethodConfig(name="hallucinate"), student, {"teacher": other}, TASK)
    fewer = StoredFeatures("features", embedding_dim=7, view=replace(seen, num_moments=2))
    with pytest.raises(ValueError, match=r"the student sees 5 moments of a video, the teacher 2"):
        build_method(MethodConfig(name="hallucinate"), student, {"teacher": fewer}, TASK)
