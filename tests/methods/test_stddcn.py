"""STDDCN: its loss by hand, where its gradients go, what its student is made of, and the way through the commands."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stillmotion.__main__ import main
from stillmotion.config import MethodConfig
from stillmotion.methods import build_method
from stillmotion.methods.stddcn import Stddcn
from stillmotion.models import create_model
from stillmotion.models.encoder import Encoder, StoredFeatures
from stillmotion.models.two_stream import TwoStream
from stillmotion.results import read_results
from stillmotion.tasks import UNLABELLED, Classification, MultiLabel, Task

TASK = Classification(("a", "b", "c"))
FLOW = {"kind": "flow", "num_frames": 3, "size": 32}


def streams(num_classes: int = 3) -> tuple[Encoder, Encoder]:
    torch.manual_seed(0)
    appearance = create_model("timm/test_resnet", num_classes=num_classes, view={"size": 32})
    return appearance, create_model("timm/test_resnet", num_classes=num_classes, view=FLOW)


def make(task: Task = TASK, **options: Any) -> Stddcn:
    appearance, motion = streams(task.num_outputs)
    method = build_method(MethodConfig(name="stddcn", options=options), appearance, {"teacher": motion}, task)
    assert isinstance(method, Stddcn)
    return method.eval()


def batch(targets: Tensor | None = None) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"student/appearance": (4, 2, 1, 3, 32, 32), "student/motion": (4, 2, 3, 2, 32, 32)}
    views = {k: torch.randint(0, 256, s, generator=generator, dtype=torch.uint8) for k, s in shapes.items()}
    return {**views, "target": torch.tensor([0, 1, 2, 0]) if targets is None else targets, "index": torch.arange(4)}


def fix(method: Stddcn, **logits: list[list[float]]) -> dict[str, Tensor]:
    """Makes the student say these logits; gives them, as leaves."""
    given = {name: torch.tensor(value, requires_grad=True) for name, value in logits.items()}
    given["logits_mean"] = (given["logits_appearance"] + given["logits_motion"]) / 2
    method.student.from_batch = lambda batch, role: given  # type: ignore[method-assign]
    return given


def test_the_loss_is_that_of_the_paper_by_hand() -> None:
    """One sample, two classes, T = 4: p_f = (1/4, 3/4) and p_a = p_m = (1/2, 1/2) when softened."""
    method = make(Classification(("a", "b")), mu=2.0)
    fix(method, logits=[[0.0, 4 * math.log(3)]], logits_appearance=[[0.0, 0.0]], logits_motion=[[0.0, 0.0]])
    out = method({"target": torch.tensor([1]), "index": torch.tensor([0])})
    kl = 16 * (0.25 * math.log(0.5) + 0.75 * math.log(1.5))  # T^2 KL(p_f || p_a)
    assert out["task_loss"].item() == pytest.approx(math.log(82 / 81), rel=1e-5)
    assert out["appearance_loss"].item() == pytest.approx(math.log(2))
    assert out["motion_distillation_loss"].item() == pytest.approx(kl, rel=1e-5)
    by_hand = math.log(82 / 81) + 2 * math.log(2) + 2.0 * 2 * kl
    assert out["loss"].item() == pytest.approx(by_hand, rel=1e-5)
    assert method.weights() == {"task_loss": 1.0, "appearance_loss": 1.0, "motion_loss": 1.0,
                                "appearance_distillation_loss": 2.0, "motion_distillation_loss": 2.0}  # fmt: skip


def slow_kl(teacher: Tensor, student: Tensor, temperature: float) -> float:
    """T^2 KL, number by number, mean over samples."""
    total = 0.0
    for t, s in zip(teacher.tolist(), student.tolist(), strict=True):
        p, q = ([math.exp(x / temperature) for x in row] for row in (t, s))
        p, q = ([x / sum(row) for x in row] for row in (p, q))
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / len(teacher)


@pytest.mark.parametrize("kind", ["fusion_fc", "fusion_mean", "mutual"])
def test_each_kind_of_teacher(kind: str) -> None:
    method = make(teacher_kind=kind, temperature=2.0)
    torch.manual_seed(1)
    rows = {n: torch.randn(4, 3).tolist() for n in ("logits", "logits_appearance", "logits_motion")}
    given = fix(method, **rows)
    out = method(batch())
    f, a, m = given["logits"], given["logits_appearance"], given["logits_motion"]
    teachers = {"fusion_fc": (f, f), "fusion_mean": ((a + m) / 2, (a + m) / 2), "mutual": (m, a)}[kind]
    for stream, mine, taught in zip(("appearance", "motion"), (a, m), teachers, strict=True):
        slow = slow_kl(taught.detach(), mine.detach(), 2.0)
        assert out[f"{stream}_distillation_loss"].item() == pytest.approx(slow, rel=1e-4)
    parts = {n: v for n, v in out.items() if n.endswith("_loss")}
    torch.testing.assert_close(out["loss"], sum(parts.values()))  # type: ignore[arg-type]
    assert len(parts) == 5


@pytest.mark.parametrize("teacher_grad", [False, True])
def test_distillation_moves_the_teacher_only_if_asked(teacher_grad: bool) -> None:
    """METHODS 12.9: W_f is free of the gradient of KL while the teacher is detached."""
    method = make(teacher_grad=teacher_grad)
    out = method(batch())
    (out["appearance_distillation_loss"] + out["motion_distillation_loss"]).backward()
    moved = {n for n, p in method.student.named_parameters() if p.grad is not None and p.grad.any()}
    assert ("classifiers.fusion.weight" in moved) is teacher_grad
    assert {"classifiers.appearance.weight", "classifiers.motion.weight", "appearance.net.conv1.0.weight"} <= moved


def test_every_parameter_learns_with_every_teacher() -> None:
    """Or several processes could not train it together."""
    for kind in ("fusion_fc", "fusion_mean", "mutual", "none"):
        method = make(teacher_kind=kind).train()
        method(batch())["loss"].backward()
        assert all(p.grad is not None for p in method.parameters())


def test_without_distillation_the_three_tasks_are_left() -> None:
    for options in ({"teacher_kind": "none"}, {"mu": 0.0}):
        method = make(**options)
        out = method(batch())
        tasks = out["task_loss"] + out["appearance_loss"] + out["motion_loss"]
        torch.testing.assert_close(out["loss"], tasks)
        assert set(method.weights()) == {"task_loss", "appearance_loss", "motion_loss"}
        assert not method.learns_unlabelled
    assert make().learns_unlabelled


def test_unlabelled_samples_carry_the_distillation_alone() -> None:
    out = make()(batch(torch.full((4,), UNLABELLED)))
    assert (out["task_loss"], out["appearance_loss"], out["motion_loss"]) == (0.0, 0.0, 0.0)
    distilled = out["appearance_distillation_loss"] + out["motion_distillation_loss"]
    torch.testing.assert_close(out["loss"], distilled)
    assert distilled > 0.0


def test_several_labels_a_sample() -> None:
    method = make(MultiLabel(("a", "b", "c")), temperature=1.0)
    given = fix(method, logits=[[2.0, 0.0, 0.0]], logits_appearance=[[0.0] * 3], logits_motion=[[0.0] * 3])
    out = method({"target": torch.tensor([[1, 0, 1]]), "index": torch.tensor([0])})
    p = 1 / (1 + math.exp(-2.0))
    kl = p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5)  # the other classes agree
    assert out["appearance_distillation_loss"].item() == pytest.approx(kl, rel=1e-5)
    torch.testing.assert_close(out["task_loss"], method.task.loss(given["logits"], torch.tensor([[1, 0, 1]])))


def test_shuffled_labels_belong_to_others() -> None:
    torch.manual_seed(1)
    rows = {n: torch.randn(2, 3).tolist() for n in ("logits", "logits_appearance", "logits_motion")}
    method = make(control="shuffled")
    given, two = fix(method, **rows), {"target": torch.tensor([0, 1]), "index": torch.tensor([5, 9])}
    exchanged = slow_kl(given["logits"].flip(0), given["logits_appearance"], 4.0)
    assert method(two)["appearance_distillation_loss"].item() == pytest.approx(exchanged, rel=1e-4)
    fix(method, **{name: row[:1] for name, row in rows.items()})
    alone = method({name: value[:1] for name, value in two.items()})
    assert alone["motion_distillation_loss"] == 0.0


def test_the_student_is_made_of_two_runs_or_brings_both_streams() -> None:
    method = make(connect="concat", direction="m2a", density="adjacent", stages=[3, 4], dropout=0.2)
    assert method.roles == ("student",)
    assert set(method.views()) == {"student/appearance", "student/motion"}
    wanted = {"connect": "concat", "direction": "m2a", "density": "adjacent", "stages": [3, 4], "dropout": 0.2}
    assert wanted.items() <= method.student.config.items()
    both = TwoStream(*streams(), num_classes=3, connect="mul")
    config = MethodConfig(name="stddcn")
    assert build_method(config, both, {}, TASK).student is both
    assert Stddcn.needs_live({})


def test_mistakes_are_named() -> None:
    appearance, motion = streams()

    def build(student: Encoder, teacher: Encoder | None, **options: Any) -> None:
        teachers = {} if teacher is None else {"teacher": teacher}
        build_method(MethodConfig(name="stddcn", options=options), student, teachers, TASK)

    with pytest.raises(ValueError, match="stddcn needs two streams: the student is the appearance stream, so name"):
        build(appearance, None)
    with pytest.raises(ValueError, match="stored features cannot stand for one; give teacher="):
        build(appearance, StoredFeatures("folder", embedding_dim=4))
    with pytest.raises(ValueError, match=r"connect: this student brings its own; set student\.options\.connect"):
        build(TwoStream(*streams(), num_classes=3), None, connect="sum")
    with pytest.raises(ValueError, match=r"connect='add': give 'none' or 'sum' or 'concat' or 'mul' or null"):
        build(appearance, motion, connect="add")
    with pytest.raises(ValueError, match=r"temperature=0: must be above 0"):
        build(*streams(), temperature=0)
    with pytest.raises(ValueError, match=r"mu=-1: must not be negative"):
        build(*streams(), mu=-1)


JOINT = """
optim: {epochs: 1, batch_size: 3, lr: 1.0e-3}
data: {workers: 0, augment: {flip: 0.5}}
"""


@pytest.mark.parametrize(
    "view", [FLOW, {"kind": "difference", "num_frames": 3, "size": 32}], ids=["flow", "difference"]
)
def test_streams_alone_then_together_then_in_use(
    view: dict[str, Any], tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "joint.yaml").write_text(JOINT)
    table, config = str(tiny_table), ["--config", str(tmp_path / "joint.yaml")]

    def train(name: str, *arguments: str) -> int:
        return main(["train", table, *config, "--output", str(tmp_path / name), *arguments])

    resnet = ("--student", "timm/test_resnet", "--student.view.size", "32")
    assert train("rgb", *resnet) == 0
    motion = json.dumps({"name": "timm/test_resnet", "view": view, "options": {"stack": True}})
    assert train("motion", "--student", motion) == 0
    streams = ("--student", str(tmp_path / "rgb"), "--teacher", str(tmp_path / "motion"), "--method", "stddcn")
    assert train("both", *streams, "--method.options.connect", "concat") == 0
    (row,) = read_results(tmp_path / "both")
    assert {"top1", "top1_appearance", "top1_motion", "top1_mean"} <= row["metrics"].keys()
    curve = (tmp_path / "both" / "metrics.csv").read_text()
    assert "appearance_distillation_loss" in curve.splitlines()[0]
    given = json.loads((tmp_path / "both" / "settings.json").read_text())["weights"]
    assert all(given[role] is not None for role in ("student", "teacher"))

    again = ["evaluate", str(tmp_path / "both"), table, "--num_moments", "2", "--moment", "uniform", "--workers", "0"]
    assert main([*again, "--pooling", "scores", "--output", str(tmp_path / "eval")]) == 0
    (row,) = read_results(tmp_path / "eval")
    assert {"top1", "top1_appearance", "top1_motion", "top1_mean"} <= row["metrics"].keys()
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "both"), str(tiny_table.parent / "0.mp4")]) == 0
    assert {x["label"] for x in json.loads(capsys.readouterr().out)["labels"]} == {"a", "b"}

    assert train("no", *streams[:2], "--method", "stddcn") == 2
    assert train("no", *streams, "--method.options.stages", "[7]") == 2
    error = capsys.readouterr().err
    assert "stddcn needs two streams" in error
    assert "stages=[7]: give some of [1, 2, 3, 4], each once" in error
    assert "Traceback" not in error


def test_a_comparison_wants_the_motion_stream_live(
    tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = "{name: timm/test_resnet, view: {size: 32}}"
    (tmp_path / "rows.yaml").write_text(
        f"data: {{num_draws: 1}}\nrows:\n  rgb: {{student: {small}}}\n  both:\n    student: {{name: 'row:rgb'}}\n"
        "    teacher: {name: 'row:rgb'}\n    method: {name: stddcn}\n"
    )
    command = ["compare", str(tiny_table), "--config", str(tmp_path / "rows.yaml"), "--output", str(tmp_path / "run")]
    assert main(command) == 2
    assert "row 'both': stddcn needs the teacher itself, not its stored features; set rows.both.cache: false" in (
        capsys.readouterr().err
    )
