"""HalluciNet: the loss by hand, what it trains, and its controls."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from stillmotion.config import MethodConfig
from stillmotion.methods import build_method
from stillmotion.methods.base import Method
from stillmotion.methods.hallucinate import Hallucinate, feature_dim, feature_of, hallucination_loss, shuffled_order
from stillmotion.methods.supervised import Supervised
from stillmotion.models.encoder import StoredFeatures
from stillmotion.view import View
from tests.methods.networks import TASK, random_batch, student_backbone, video_teacher


def make(teacher: Any = None, **options: Any) -> Method:
    torch.manual_seed(0)
    teachers = {"teacher": video_teacher() if teacher is None else teacher}
    return build_method(MethodConfig(name="hallucinate", options=options), student_backbone(), teachers, TASK)


def test_loss_matches_the_paper() -> None:
    pred, target = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, -1.0]])
    by_hand = (0.5 - 0.7310586) ** 2 + (0.8807971 - 0.2689414) ** 2
    torch.testing.assert_close(hallucination_loss(pred, target), torch.tensor(by_hand / 2))
    torch.testing.assert_close(hallucination_loss(pred, target, reduction="sum"), torch.tensor(by_hand))


def test_other_squashes_by_hand() -> None:
    pred, target = torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0]])
    expected = {"none": (1 + 16) / 2, "l2": (0.4**2 + 0.8**2) / 2, "cosine": 1 - 0.6}
    for squash, value in expected.items():
        assert hallucination_loss(pred, target, squash=squash).item() == pytest.approx(value)  # type: ignore[arg-type]
    assert hallucination_loss(pred, target, squash="l2", reduction="sum").item() == pytest.approx(0.8)
    with pytest.raises(ValueError, match="choose one of sigmoid"):
        hallucination_loss(pred, target, squash="tanh")  # type: ignore[arg-type]


def test_loss_invariants() -> None:
    """Zero only for equal features; at most 0.25 a unit for features >= 0; sum and mean differ by the width."""
    torch.manual_seed(0)
    target = torch.rand(3, 2048) * 50.0
    assert hallucination_loss(target, target).item() == 0.0
    changed = target.clone()
    changed[1, 7] = target[1, 7] + 0.5 if target[1, 7] < 1 else 0.0
    assert hallucination_loss(changed, target).item() > 0.0
    worst = hallucination_loss(torch.zeros(3, 2048), torch.full((3, 2048), 1e6))
    assert worst.item() == pytest.approx(0.25)
    assert hallucination_loss(torch.rand(3, 2048) * 90.0, target).item() < 0.25
    pred = torch.rand(3, 2048)
    ratio = hallucination_loss(pred, target, reduction="sum") / hallucination_loss(pred, target)
    assert ratio.item() == pytest.approx(2048.0)


def test_loss_is_computed_in_float32() -> None:
    pred, target = torch.tensor([[10.0]]).half(), torch.tensor([[9.0]]).half()
    exact = (1 / (1 + math.exp(-10.0)) - 1 / (1 + math.exp(-9.0))) ** 2  # about 6e-9, zero in float16
    loss = hallucination_loss(pred, target)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact, rel=1e-3)
    assert torch.isfinite(hallucination_loss(torch.full((1, 4), 6e4).half(), pred.expand(1, 4), squash="none"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_step_under_autocast(dtype: torch.dtype) -> None:
    method = make()
    with torch.autocast("cpu", dtype=dtype):
        out = method(random_batch())
    out["loss"].backward()
    assert out["hallucination_loss"].dtype == torch.float32
    assert all(torch.isfinite(p.grad).all() for p in method.student.parameters() if p.grad is not None)


def test_loss_is_the_sum_of_its_weighted_parts() -> None:
    for options in ({}, {"weight": 3.0, "task_weight": 0.5}, {"squash": "none", "reduction": "sum"}):
        method, batch = make(**options), random_batch()
        method.eval()
        out, parts = method(batch), method.weights()
        weight, task_weight = options.get("weight", 50.0), options.get("task_weight", 1.0)
        assert parts == {"task_loss": task_weight, "hallucination_loss": weight}
        assert out["loss"].item() == pytest.approx(sum(w * out[name].item() for name, w in parts.items()))
        student = method.student.from_batch(batch, "student")
        frames = batch["teacher/frames"][:, 0]
        expected = hallucination_loss(
            student["hallucinated"][:, 0],
            method.encoder("teacher")(frames)["embedding"],
            squash=options.get("squash", "sigmoid"),  # type: ignore[arg-type]
            reduction=options.get("reduction", "mean"),  # type: ignore[arg-type]
        )
        assert out["hallucination_loss"].item() == pytest.approx(expected.item())


def test_teacher_stays_as_it_is() -> None:
    method = make()
    before = copy.deepcopy(method.encoder("teacher").state_dict())
    seen: list[bool] = []
    method.encoder("teacher").register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    optimiser = torch.optim.SGD((p for p in method.parameters() if p.requires_grad), lr=0.1)
    method.train()
    for seed in range(3):
        optimiser.zero_grad()
        method(random_batch(seed=seed))["loss"].backward()
        optimiser.step()
    after = method.encoder("teacher").state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)  # batch norm statistics among them
    assert all(p.grad is None and not p.requires_grad for p in method.encoder("teacher").parameters())
    assert not method.encoder("teacher").training
    assert seen == [False] * 3


def test_unlabelled_samples_carry_the_hallucination_loss_alone() -> None:
    method, batch = make(), random_batch()
    method.eval()
    full = method(batch)
    bare = method({**batch, "target": torch.full((4,), -1)})
    assert bare["task_loss"].item() == 0.0
    assert bare["hallucination_loss"].item() == pytest.approx(full["hallucination_loss"].item())
    assert bare["loss"].item() == pytest.approx(50.0 * full["hallucination_loss"].item())


def test_hallucination_loss_falls() -> None:
    method, batch = make(weight=50.0, fuse="none"), random_batch(8)
    optimiser = torch.optim.Adam(method.student.parameters(), lr=1e-2)
    losses: list[float] = []
    for _ in range(40):
        optimiser.zero_grad()
        out = method(batch)
        out["loss"].backward()
        optimiser.step()
        losses.append(out["hallucination_loss"].item())
    assert losses[-1] < 0.2 * losses[0]


def test_moments_are_matched_one_by_one() -> None:
    def at(moments: int, **options: Any) -> Any:
        view = View(size=(8, 8), num_moments=moments, moment="uniform", **options)
        return view

    teacher = video_teacher()
    teacher.views = {"frames": at(3, num_frames=4)}
    backbone = student_backbone()
    backbone.views = {"frames": at(3)}
    method = build_method(MethodConfig(name="hallucinate"), backbone, {"teacher": teacher}, TASK).eval()
    out = method(random_batch(2, moments=3))
    assert out["hallucinated"].shape == out["hallucination_target"].shape == (2, 3, 7)
    assert out["logits"].shape == (2, 3)
    teacher.views = {"frames": at(2, num_frames=4)}
    with pytest.raises(ValueError, match=r"3 moments .* teacher 2.*teacher.view.num_moments=3"):
        build_method(MethodConfig(name="hallucinate"), backbone, {"teacher": teacher}, TASK)


# --- what is hallucinated ---


def test_targets_and_their_widths() -> None:
    teacher, batch = video_teacher(taps=("middle",)), random_batch(2)
    teacher.eval()
    outputs = teacher.from_batch(batch, "teacher")
    assert [feature_dim(teacher, t) for t in ("embedding", "logits", "middle")] == [7, 3, 6]
    assert torch.equal(feature_of(outputs, "embedding"), outputs["embedding"])
    assert torch.equal(feature_of(outputs, "logits")[:, 0], teacher(batch["teacher/frames"][:, 0])["logits"])
    pooled = feature_of(outputs, "middle")
    assert pooled.shape == (2, 1, 6)
    torch.testing.assert_close(pooled[1, 0, 5], outputs["middle"][1, 0, 5].mean())
    tokens = torch.rand(2, 1, 9, 6)
    torch.testing.assert_close(feature_of({"tokens": tokens}, "tokens")[1, 0, 5], tokens[1, 0, :, 5].mean())
    assert int(teacher.state_dict()["norm.num_batches_tracked"]) == 0  # finding the width left the teacher as it was


def test_target_that_the_teacher_does_not_give() -> None:
    with pytest.raises(ValueError, match=r"target='layer3': the teacher gives embedding, logits;.*taps=\[LAYER\]"):
        make(target="layer3")


@pytest.mark.parametrize(("target", "relu"), [("embedding", True), ("middle", True), ("logits", False)])
def test_branch_has_a_relu_unless_its_target_has_a_sign(target: str, relu: bool) -> None:
    method = make(video_teacher(taps=("middle",)), target=target).eval()
    hallucinated = method(random_batch(16))["hallucinated"]
    assert (hallucinated.min().item() >= 0.0) == relu


# --- controls ---


def test_weight_zero_is_plain_training_of_the_same_network() -> None:
    plain = Supervised({"student": make(weight=0.0).student}, TASK)
    zero = make(weight=0.0)
    for method in (plain, zero):
        torch.manual_seed(1)
        optimiser = torch.optim.Adam(method.parameters(), lr=1e-2)
        for seed in range(3):
            optimiser.zero_grad()
            method(random_batch(seed=seed))["loss"].backward()
            optimiser.step()
    for name, value in plain.state_dict().items():
        assert torch.equal(value, zero.state_dict()[name]), name
    assert zero.views().keys() == {"student/frames"}  # the loader does not decode the teacher's clip
    assert zero.weights() == {"task_loss": 1.0}
    assert set(zero.encoders) == {"student"}


def test_weight_zero_needs_no_teacher() -> None:
    def alone(**options: Any) -> Method:
        torch.manual_seed(0)
        config = MethodConfig(name="hallucinate", options={"weight": 0.0, **options})
        return build_method(config, student_backbone(), {}, TASK)

    with_teacher, without = make(weight=0.0), alone(hallucinated_dim=7)
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (with_teacher, without)]
    assert shapes[0] == shapes[1]
    with pytest.raises(ValueError, match="hallucinated_dim="):
        alone()


def test_shuffled_order_is_a_cycle_of_the_whole_batch() -> None:
    for size in (2, 3, 8, 25):
        index = torch.arange(size) * 3 + 1
        order, here, seen = shuffled_order(index), 0, set()
        for _ in range(size):
            here = int(order[here])
            seen.add(here)
        assert len(seen) == size
        assert torch.equal(order, shuffled_order(index))
    orders = {tuple(shuffled_order(torch.randperm(6)).tolist()) for _ in range(200)}
    assert len(orders) > 60  # of the 120 cycles of six


def test_shuffled_targets_are_those_of_the_others_and_use_no_randomness() -> None:
    method, batch = make(control="shuffled").eval(), random_batch(5)
    state = torch.get_rng_state()
    out = method(batch)
    assert torch.equal(state, torch.get_rng_state())
    truth: Tensor = out["hallucination_target"]
    order = shuffled_order(batch["index"])
    expected = ((out["hallucinated"].sigmoid() - truth[order].sigmoid()) ** 2).mean()
    assert out["hallucination_loss"].item() == pytest.approx(expected.item())
    assert torch.equal(truth, make().eval()(batch)["hallucination_target"])  # evaluation sees the true ones


def test_shuffled_batch_of_one_has_no_hallucination_loss() -> None:
    out = make(control="shuffled").eval()(random_batch(1))
    assert out["hallucination_loss"].item() == 0.0
    out["loss"].backward()


def test_single_frame_teacher_is_shown_one_frame() -> None:
    views = make(control="single_frame").views()
    assert views["teacher/frames"].stride == 0
    assert views["teacher/frames"].num_frames == 4
    assert views["student/frames"] == make().views()["student/frames"]
    stored = StoredFeatures("features", embedding_dim=7)
    with pytest.raises(ValueError, match=r"teacher\.view\.stride=0"):
        make(stored, control="single_frame")


def test_stored_features_replace_the_teacher() -> None:
    live, batch = make().eval(), random_batch()
    stored = make(StoredFeatures("features", embedding_dim=7)).eval()
    stored.student.load_state_dict(live.student.state_dict())
    assert stored.views()["teacher/embedding"].kind == "feature"
    out = live(batch)
    rows = {k: v for k, v in batch.items() if k != "teacher/frames"}
    cached = stored({**rows, "teacher/embedding": out["hallucination_target"]})
    assert cached["loss"].item() == out["loss"].item()


def test_student_of_a_run_keeps_its_branch() -> None:
    trained = make(fuse="none").student
    again = build_method(MethodConfig(name="hallucinate"), trained, {"teacher": video_teacher()}, TASK)
    assert again.student is trained


def test_widths_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="hallucinates 9 values, the teacher's embedding has 7"):
        make(hallucinated_dim=9)
    with pytest.raises(ValueError, match="needs a student with a hallucination branch"):
        Hallucinate({"student": student_backbone(), "teacher": video_teacher()}, TASK)
    with pytest.raises(ValueError, match="must not be negative"):
        make(weight=-1.0)
