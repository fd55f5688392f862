"""From a name and settings to a method."""

from typing import Any

import pytest

from stillmotion.config import MethodConfig
from stillmotion.methods import METHODS, build_method, method_options
from stillmotion.methods.base import Method
from stillmotion.methods.supervised import Supervised
from stillmotion.models import create_model
from tests.methods.networks import TASK, student_backbone, video_teacher


def build(name: str, **options: Any) -> Method:
    taps: dict[str, Any] = {}
    if name == "relation":
        options, taps = {"layers": ["middle"], **options}, {"taps": ("middle",)}
    config = MethodConfig(name=name, options=options)
    if name in ("stddcn", "im2flow"):  # take networks apart
        views = {"size": 32}, {"size": 32, "kind": "flow", "num_frames": 2}
        one, two = (create_model("timm/test_resnet", num_classes=3, view=view) for view in views)
        return build_method(config, one, {"teacher": two}, TASK)
    width = {"width": 5} if name == "fusion" else {}  # as wide as the student
    return build_method(config, student_backbone(**taps), {"teacher": video_teacher(**taps, **width)}, TASK)


def test_every_method_builds_with_its_defaults() -> None:
    for name, cls in METHODS.items():
        assert type(build(name)) is cls


def test_plain_training_leaves_the_teacher_out() -> None:
    method = build("supervised")
    assert isinstance(method, Supervised)
    assert set(method.views()) == {"student/frames"}


def test_unlabelled_samples_teach_only_beside_a_teacher() -> None:
    learns = {name: build(name).learns_unlabelled for name in METHODS}
    assert learns == {name: name not in ("supervised", "fusion") for name in METHODS}
    assert not build("hallucinate", weight=0.0).learns_unlabelled


def test_options_reach_student_and_method() -> None:
    assert {"fuse", "relu", "target", "weight", "squash", "control"} <= set(method_options("hallucinate"))
    method = build("hallucinate", fuse="none", weight=7, target="logits")
    assert method.weights()["hallucination_loss"] == 7
    assert method.student.hallucinated_dim == 3


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("halucinate", {}, "unknown method 'halucinate'; choose one of supervised, hallucinate, logits"),
        ("supervised", {"weight": 1.0}, "method supervised has no option 'weight'; known: none"),
        ("logits", {"wieght": 1.0}, "no option 'wieght'; known: temperature, weight, task_weight"),
        ("hallucinate", {"squash": "tanh"}, "hallucinate: squash='tanh': give 'sigmoid' or 'none' or 'l2' or 'cos"),
        ("hallucinate", {"weight": "50"}, "hallucinate: weight='50': give float or int"),
        ("hallucinate", {"weight": True}, "hallucinate: weight=True: give float or int"),
        ("hallucinate", {"relu": 1}, "hallucinate: relu=1: give bool or null"),
    ],
)
def test_mistakes_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=name) as error:
        build(name, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_teacher_is_named() -> None:
    with pytest.raises(ValueError, match="LogitDistillation needs a teacher: name a network"):
        build_method(MethodConfig(name="logits"), student_backbone(), {}, TASK)
