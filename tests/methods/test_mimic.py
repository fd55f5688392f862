"""MARS, MERS, D3D and relations: losses by hand, gradients where they must be and nowhere else."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillmotion.config import MethodConfig, ModelConfig
from stillmotion.methods import METHODS, build_method
from stillmotion.methods.mimic import Mimic
from stillmotion.methods.relations import RELATIONS, relation_loss
from stillmotion.models import create_model
from stillmotion.models.encoder import StoredFeatures
from stillmotion.models.factory import load_model
from stillmotion.models.pretrained import save_pretrained
from tests.methods.networks import TASK, random_batch, student_backbone, video_teacher

MIDDLE = {"layers": ["middle"]}


def make(
    name: str, *, student: dict[str, Any] | None = None, teacher: dict[str, Any] | None = None, **options: Any
) -> Mimic:
    torch.manual_seed(0)
    backbone = student_backbone(**(student or {}))
    method = build_method(
        MethodConfig(name=name, options=options), backbone, {"teacher": video_teacher(**(teacher or {}))}, TASK
    )
    assert isinstance(method, Mimic)
    return method.eval()


def gradients(method: Mimic, loss: Tensor) -> dict[str, Tensor]:
    method.zero_grad()
    loss.backward()
    return {n: p.grad for n, p in method.student.named_parameters() if p.grad is not None}


def test_mars_is_the_task_and_the_distance_of_the_features() -> None:
    method, batch = make("mars", teacher={"width": 5}), random_batch()
    assert isinstance(method.project, nn.Identity), "equal widths need no layer between"
    out = method(batch)
    mine = method.student(batch["student/frames"][:, 0])["embedding"]
    theirs = method.encoder("teacher")(batch["teacher/frames"][:, 0])["embedding"]
    slow = (
        sum((a - b) ** 2 for a, b in zip(mine.flatten().tolist(), theirs.flatten().tolist(), strict=True))
        / mine.numel()
    )
    assert out["mimic_loss"].item() == pytest.approx(slow, rel=1e-4)
    torch.testing.assert_close(out["loss"], out["task_loss"] + 50.0 * out["mimic_loss"])
    assert method.weights() == {"task_loss": 1.0, "mimic_loss": 50.0}
    assert all(p.grad is None for p in method.encoder("teacher").parameters())


@pytest.mark.parametrize(("schedule", "factors"), [("rise", (0.0, 0.5, 1.0)), ("fall", (1.0, 0.5, 0.0))])
def test_weights_follow_their_schedule(schedule: str, factors: tuple[float, ...]) -> None:
    method, batch = make("mars", teacher={"width": 5}, schedule=schedule), random_batch()
    for progress, factor in zip((0.0, 0.5, 1.0), factors, strict=True):
        method.progress = progress
        out = method(batch)
        torch.testing.assert_close(out["loss"], out["task_loss"] + factor * 50.0 * out["mimic_loss"])


def test_mars_without_its_weight_is_plain_training() -> None:
    """METHODS 12.7."""
    batch = random_batch()
    mars = make("mars", weight=0.0)
    torch.manual_seed(0)
    backbone = student_backbone()
    supervised = build_method(MethodConfig(name="supervised"), backbone, {}, TASK).eval()
    assert mars.roles == ("student",)
    out, expected = mars(batch), supervised(batch)
    torch.testing.assert_close(out["loss"], expected["loss"])
    found = gradients(mars, out["loss"])
    expected["loss"].backward()
    for name, parameter in backbone.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


def test_the_task_of_mers_trains_the_classifier_alone() -> None:
    """METHODS 12.7: the gradient of the task with respect to the backbone is exactly zero."""
    mers, mars, batch = make("mers"), make("mars"), random_batch()
    out = mers(batch)
    torch.testing.assert_close(out["logits"], mars(batch)["logits"])
    found = gradients(mers, out["task_loss"])
    backbone = [n for n, _ in mers.student.named_parameters() if not n.startswith("classifier")]
    assert {n for n in found if n.startswith("classifier")} == {"classifier.weight", "classifier.bias"}
    assert all(n not in found or not found[n].any() for n in backbone)
    everything = gradients(mers, mers(batch)["loss"])
    matched = gradients(mars, 50.0 * mars(batch)["mimic_loss"])
    for name in backbone:
        torch.testing.assert_close(everything[name], matched[name])
    assert set(gradients(mars, mars(batch)["task_loss"])) >= set(backbone)


@pytest.mark.parametrize("name", ["resnet3d_10", "timm/mobilenetv3_small_050", "torchvision/resnet18", "p3d_63"])
def test_mers_knows_the_classifier_of_real_networks(name: str) -> None:
    options = {"width": 4} if name in ("resnet3d_10", "p3d_63") else {}
    frames = 1 if "/" in name else 4
    student = create_model(name, num_classes=3, view={"size": 32, "num_frames": frames}, **options)
    method = build_method(MethodConfig(name="mers", options={"weight": 0.0}), student, {}, TASK).eval()
    view = next(iter(student.views))
    batch = {f"student/{view}": torch.randint(0, 256, (2, 1, frames, 3, 32, 32), dtype=torch.uint8),
             "target": torch.tensor([0, 1])}  # fmt: skip
    method(batch)["loss"].backward()
    trained = {n for n, p in student.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == student.classifier_names()


def test_d3d_matches_logits_or_scores() -> None:
    batch = random_batch()
    method = make("d3d")
    out = method(batch)
    theirs = method.encoder("teacher")(batch["teacher/frames"][:, 0])["logits"]
    torch.testing.assert_close(out["mimic_loss"], (out["logits"] - theirs).square().mean())
    assert method.weights() == {"task_loss": 1.0, "mimic_loss": 1.0}
    scores = make("d3d", target="scores")(batch)["mimic_loss"]
    torch.testing.assert_close(scores, (out["logits"].softmax(1) - theirs.softmax(1)).square().mean())
    with pytest.raises(ValueError, match="target=logits needs a teacher that was trained on the same classes"):
        make("d3d", teacher={"num_classes": 4})


def test_other_widths_are_led_to_the_teachers() -> None:
    method, batch = make("mars"), random_batch()
    assert isinstance(method.project, nn.Linear)
    assert (method.project.in_features, method.project.out_features) == (5, 7)
    method(batch)["loss"].backward()
    assert method.project.weight.grad is not None
    assert not any("project" in name for name in method.student.state_dict()), "not delivered"


def test_shuffled_targets_belong_to_others() -> None:
    batch = random_batch()
    straight, shuffled = make("mars"), make("mars", control="shuffled")
    a, b = straight(batch)["mimic_loss"], shuffled(batch)["mimic_loss"]
    assert a.item() != pytest.approx(b.item())
    alone = {name: value[:1] for name, value in batch.items()}
    assert "mimic_loss" not in shuffled(alone)


def slow_relation(s: Tensor, t: Tensor, relation: str) -> float:
    """Element by element in float64."""
    s, t = s.double().flatten(2), t.double().flatten(2)
    total = 0.0
    if relation == "sample":
        rows = [[x.flatten() / x.norm() for x in maps] for maps in (s, t)]
        n = len(s)
        for i in range(n):
            for j in range(n):
                total += float(rows[0][i] @ rows[0][j] - rows[1][i] @ rows[1][j]) ** 2 / n**2
        return total
    for a, b in zip(s, t, strict=True):
        relations = []
        for m in (a, b):
            if relation == "gram":
                relations.append([[float(x @ y) / m.numel() for x in m] for y in m])
            elif relation == "gram_cosine":
                relations.append([[float(F.cosine_similarity(x, y, dim=0)) for x in m] for y in m])
            else:
                relations.append([[float(F.cosine_similarity(x, y, dim=0)) for x in m.T] for y in m.T])
        size = len(relations[0])
        squares = [(relations[0][i][j] - relations[1][i][j]) ** 2 for i in range(size) for j in range(size)]
        total += sum(squares) / (1 if relation == "gram" else size**2) / len(s)
    return total


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("shape", [(3, 4, 2, 3, 3), (3, 20, 1, 2, 2)], ids=["more positions", "more channels"])
def test_relations_match_a_loop(relation: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    s, t = torch.randn(shape).relu(), torch.randn(shape).relu() * 2.0
    found = relation_loss(s, t, relation)
    assert found.item() == pytest.approx(slow_relation(s, t, relation), rel=1e-4)
    assert relation_loss(s, s, relation).item() == pytest.approx(0.0, abs=1e-9)
    s.requires_grad_(), t.requires_grad_()
    relation_loss(s, t, relation).backward()
    assert s.grad is not None
    assert t.grad is None, "the teacher learns nothing"


@pytest.mark.parametrize("shape", [(2, 4, 2, 3, 3), (2, 20, 1, 2, 2)])
def test_gram_knows_channels_and_no_positions(shape: tuple[int, ...]) -> None:
    """METHODS 12.8."""
    torch.manual_seed(0)
    s, t = torch.randn(shape), torch.randn(shape)
    order = torch.randperm(s[0, 0].numel())
    moved = s.flatten(2)[:, :, order].reshape(shape)
    torch.testing.assert_close(relation_loss(moved, t), relation_loss(s, t))
    torch.testing.assert_close(relation_loss(moved, s), torch.tensor(0.0), atol=1e-6, rtol=0.0)
    assert relation_loss(s.roll(1, 1), s).item() > 1e-3
    torch.testing.assert_close(relation_loss(5.0 * s, t, "gram_cosine"), relation_loss(s, t, "gram_cosine"))


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("shape", [(2, 4, 2, 3, 3), (2, 20, 1, 2, 2)])
def test_mixed_precision_leaves_relations_alone(relation: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    t = torch.randn(shape).relu()
    s = t * (1.0 + 0.01 * torch.randn(shape))  # nearly equal: differences of large numbers
    with torch.autocast("cpu", torch.bfloat16):
        found = relation_loss(s, t, relation)
    torch.testing.assert_close(found, relation_loss(s, t, relation))
    assert found.dtype == torch.float32


def test_a_trained_teacher_shows_its_maps(tmp_path: Path) -> None:
    net = create_model("resnet3d_10", num_classes=3, width=4, view={"size": 16, "num_frames": 4})
    run = save_pretrained(net, TASK, tmp_path / "run")
    teacher = load_model(ModelConfig(name=str(run), options={"taps": ["layer4"]}), num_classes=3)
    student = create_model("resnet3d_10", num_classes=3, width=4, taps=["layer4"], view={"size": 16, "num_frames": 4})
    method = build_method(MethodConfig(name="relation"), student, {"teacher": teacher}, TASK)
    clip = torch.randint(0, 256, (2, 1, 4, 3, 16, 16), dtype=torch.uint8)
    batch = {"student/clip": clip, "teacher/clip": clip, "target": torch.tensor([0, 1]), "index": torch.tensor([0, 1])}
    assert method(batch)["relation_loss"].item() > 0.0
    with pytest.raises(ValueError, match="option 'width' cannot change a trained network"):
        load_model(ModelConfig(name=str(run), options={"width": 8}), num_classes=3)


def test_maps_are_not_cached() -> None:
    assert METHODS["relation"].needs_live({})
    assert METHODS["mars"].needs_live({"relation": "position"})
    assert not METHODS["relation"].needs_live({"relation": "none"})
    assert not METHODS["hallucinate"].needs_live({})


def test_maps_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="relation=gram compares channels: the student's map has 4, the teacher's 5"):
        relation_loss(torch.ones(2, 4, 3), torch.ones(2, 5, 3))
    with pytest.raises(
        ValueError, match="relation=position compares positions: the student's map has 3, the teacher's 6"
    ):
        relation_loss(torch.ones(2, 4, 3), torch.ones(2, 4, 6), "position")
    assert relation_loss(torch.ones(2, 4, 3), torch.ones(2, 5, 6), "sample").item() == pytest.approx(0.0)
    with pytest.raises(ValueError, match="relation='color': choose one of gram, gram_cosine, position, sample"):
        relation_loss(torch.ones(2, 4, 3), torch.ones(2, 4, 3), "color")


def test_relations_in_a_step() -> None:
    taps = {"taps": ("middle",)}
    method, batch = make("relation", student=taps, teacher=taps, relation_weight=2.0, **MIDDLE), random_batch()
    out = method(batch)
    assert method.weights() == {"task_loss": 1.0, "mimic_loss": 50.0, "relation_loss": 2.0}
    expected = out["task_loss"] + 50.0 * out["mimic_loss"] + 2.0 * out["relation_loss"]
    torch.testing.assert_close(out["loss"], expected)
    mine = method.student(batch["student/frames"][:, 0])["middle"]
    theirs = method.encoder("teacher")(batch["teacher/frames"][:, 0])["middle"]
    torch.testing.assert_close(out["relation_loss"], relation_loss(mine, theirs))
    alone = make("relation", student=taps, teacher=taps, weight=0.0, **MIDDLE)
    assert alone.weights() == {"task_loss": 1.0, "relation_loss": 50.0}
    two = make("relation", student=taps, teacher=taps, relation_weight=1.0, layers=["middle", "middle"])
    torch.testing.assert_close(two(batch)["relation_loss"], 2.0 * out["relation_loss"])


def test_what_a_relation_needs_is_named() -> None:
    taps = {"taps": ("middle",)}
    with pytest.raises(
        ValueError, match=r"relation=gram needs maps of the student's layer4: set student.options.taps="
    ):
        make("relation", teacher=taps)
    with pytest.raises(ValueError, match=r"needs maps of the teacher's middle: set teacher.options.taps=\[middle\]"):
        make("relation", student=taps, **MIDDLE)
    with pytest.raises(ValueError, match="layers and teacher_layers: 1 and 2; name pairs"):
        make("relation", student=taps, teacher=taps, teacher_layers=["middle", "middle"], **MIDDLE)
    stored = StoredFeatures("somewhere", embedding_dim=5)
    with pytest.raises(ValueError, match=r"needs the teacher's maps, which are not stored; give a live teacher"):
        build_method(MethodConfig(name="relation", options=MIDDLE), student_backbone(taps=("middle",)),
                     {"teacher": stored}, TASK)  # fmt: skip
    with pytest.raises(ValueError, match=r"relation_weight=-1.0: must not be negative"):
        make("relation", relation_weight=-1.0)
