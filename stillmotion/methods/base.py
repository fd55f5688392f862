"""The contract of every method: encoders by role and a task in, a dict of losses out."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stillmotion.models.encoder import Batch, Encoder
from stillmotion.tasks import Task
from stillmotion.view import View


def has_logits(encoder: Encoder) -> bool:
    """Whether a network's logits mean something: not without a classifier, nor with one that its weights left out.

    A network whose weights are all random passes: that is a control, and meant.
    """
    report = encoder.weights_report
    left_out = report is not None and (report.classifier or encoder.classifier_names() & set(report.missing))
    return encoder.num_classes > 0 and not left_out


def check_moments(student: Encoder, teacher: Encoder) -> None:
    """Refuses a pair whose moments cannot be matched one by one.

    Raises:
        ValueError: They see different numbers of moments, or moments at another distance.
    """
    for setting, what in (("num_moments", "moments of a video"), ("num_crops", "crops of a frame")):
        seen, shown = ({getattr(v, setting) for v in encoder.views.values()} for encoder in (student, teacher))
        if seen != shown:
            raise ValueError(
                f"the student sees {max(seen)} {what}, the teacher {max(shown)}; they are matched one by one: set "
                f"teacher.view.{setting}={max(seen)}"
            )
    one, other = (next(iter(encoder.views.values())) for encoder in (student, teacher))
    if "spaced" not in (one.moment, other.moment):
        return
    for setting in ("moment", "spacing", "lead", "jitter", "fps", "outside"):
        seen, shown = (getattr(view, setting) for view in (one, other))
        if seen != shown:
            raise ValueError(
                f"the student sees spaced moments with view.{setting}={seen}, the teacher with {shown}; they are "
                f"matched one by one: set teacher.view.{setting}={seen}"
            )


class Method(nn.Module):
    """A way to train a student. Subclasses write `forward` and name their roles.

    Args:
        encoders: Networks by role. `student` is always there and is what a run delivers.
        task: Its loss is the student's own.

    Attributes:
        roles: Roles that the method needs.
        frozen: Roles that get no gradient, stay in `eval()` and out of checkpoints.
        defaults: Of options whose own default is None, where methods of one class differ in them.
        progress: Share of the training that is done; the engine sets it before every step.
        hallucinates: Whether the losses come with `hallucinated` and `hallucination_target`.
        imitates: Whether the student's embedding becomes that of its teacher; the report then searches with it.
    """

    roles: tuple[str, ...] = ("student",)
    frozen: tuple[str, ...] = ()
    hallucinates: bool = False
    imitates: bool = False
    defaults: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, encoders: Mapping[str, Encoder], task: Task) -> None:
        super().__init__()
        if missing := [role for role in self.roles if role not in encoders]:
            raise ValueError(f"{type(self).__name__} needs a {missing[0]}: name a network or run folder for it")
        assert set(encoders) == set(self.roles), f"unused: {set(encoders) - set(self.roles)}"
        self.encoders = nn.ModuleDict(dict(encoders))
        self.task = task
        self.fixed_norms: list[nn.Module] = []
        self.progress = 0.0
        for role in self.frozen:
            self.encoders[role].requires_grad_(False).eval()

    @classmethod
    def make_student(cls, backbone: Encoder, teachers: Mapping[str, Encoder], task: Task) -> Encoder:
        """The network that is trained and delivered. Methods whose student is more than its backbone override this.

        Args:
            backbone: The student as the user named it.
            teachers: Networks of the other roles, to take widths from.
            task: What the student will tell.

        Keyword-only arguments of an override are options of the method.
        """
        return backbone

    @classmethod
    def needs_live(cls, options: Mapping[str, Any]) -> bool:
        """Whether a method with these options needs more of its teacher than what `extract` stores."""
        return False

    @property
    def learns_unlabelled(self) -> bool:
        """Whether a sample without a label teaches anything; without a second role it does not."""
        return len(self.roles) > 1

    @property
    def student(self) -> Encoder:
        """The network that the run delivers."""
        encoder = self.encoders["student"]
        assert isinstance(encoder, Encoder)
        return encoder

    def encoder(self, role: str) -> Encoder:
        """The network of a role."""
        encoder = self.encoders[role]
        assert isinstance(encoder, Encoder)
        return encoder

    def outputs_of(self, role: str, batch: Batch) -> dict[str, Tensor]:
        """What a frozen role makes of a batch, computed without a graph."""
        assert role in self.frozen, f"{role} is trained"
        with torch.no_grad():
            return self.encoder(role).from_batch(batch, role)

    def views(self) -> dict[str, View]:
        """What the loader must put into a batch, by `role/view`."""
        return {f"{r}/{n}": v for r in self.roles for n, v in self.encoder(r).views.items()}

    def train(self, mode: bool = True) -> "Method":
        """As `nn.Module.train`, but frozen roles and fixed norms stay in `eval()`."""
        super().train(mode)
        for role in self.frozen:
            self.encoders[role].eval()
        for module in self.fixed_norms:
            module.eval()
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            batch: `role/view` tensors (B, N, ...), `target` (B,), `index` (B,).

        Returns:
            `loss` (scalar, for the optimiser), the parts of `teach` and `task_loss` *before* their weights, and the
            student's `logits` (B, num_classes).
        """
        out = self.student.from_batch(batch, "student")
        parts = {"task_loss": self.task.loss(out["logits"], batch["target"]), **self.teach(out, batch)}
        scales = {name: weight if name == "task_loss" else self.factor() * weight
                  for name, weight in self.weights().items()}  # fmt: skip
        weighted = [scale * parts[name] for name, scale in scales.items() if name in parts]
        return {"loss": sum(weighted[1:], weighted[0]), **parts, "logits": out["logits"]}

    def teach(self, out: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """What a method adds to the task: every part as `<part>_loss`; nothing for a batch that teaches nothing.

        Args:
            out: Of the student.
            batch: As of `forward`.
        """
        return {}

    def weights(self) -> dict[str, float]:
        """Weight of every `<part>_loss` in `loss`."""
        return {"task_loss": 1.0}

    def factor(self) -> float:
        """By how much a schedule lowers the weights of all parts but the task now."""
        return 1.0


class Distillation(Method):
    """A method whose student learns from a frozen teacher, beside its task.

    Args:
        encoders: `student` and `teacher`. With weight 0 the teacher is dropped.
        task: The student's own loss.
        weight: Of the distillation loss.
        task_weight: Of the task loss.
        idle: Whether nothing asks for the teacher; by default if `weight` is 0.

    Raises:
        ValueError: A negative weight.
    """

    roles: tuple[str, ...] = ("student", "teacher")
    frozen: tuple[str, ...] = ("teacher",)

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        task: Task,
        *,
        weight: float,
        task_weight: float,
        idle: bool | None = None,
    ) -> None:
        if weight < 0.0 or task_weight < 0.0:
            raise ValueError(f"weight={weight}, task_weight={task_weight}: must not be negative")
        if weight == 0.0 if idle is None else idle:
            self.roles, self.frozen = ("student",), ()
            encoders = {"student": encoders["student"]}
        super().__init__(encoders, task)
        self.weight, self.task_weight = weight, task_weight
