"""Logit distillation: match the teacher's softened class probabilities (Hinton et al., arXiv:1503.02531)."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from stillmotion.methods.base import Distillation, has_logits
from stillmotion.models.encoder import Batch, Encoder
from stillmotion.tasks import Score, Task


def distillation_loss(
    logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 4.0,
    exclusive: bool = True,
    teacher_grad: bool = False,
) -> Tensor:
    """T^2 KL(teacher || student) of the probabilities softened by T, in float32.

    Args:
        logits: (B, K).
        teacher_logits: (B, K).
        temperature: T; its square keeps the gradient's size when T changes.
        exclusive: One class of K. Otherwise each class is there or not, and their divergences are added.
        teacher_grad: Whether the teacher receives a gradient too.

    Returns:
        Scalar mean over the batch.

    Example:
        >>> import math, torch
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 4.0 * math.log(3.0)]])
        >>> distillation_loss(student, teacher)  # 16 (1/4 ln(1/2) + 3/4 ln(3/2)) = 16 (3/4 ln 3 - ln 2)
        tensor(2.0930)
    """
    teacher_logits = teacher_logits if teacher_grad else teacher_logits.detach()
    soft, target = logits.float() / temperature, teacher_logits.float() / temperature
    if exclusive:
        soft, target = F.log_softmax(soft, dim=-1), F.log_softmax(target, dim=-1)
    else:
        soft, target = (torch.stack([F.logsigmoid(x), F.logsigmoid(-x)], -1) for x in (soft, target))
    return F.kl_div(soft, target, reduction="batchmean", log_target=True) * temperature**2


def task_distillation(
    logits: Tensor, teacher_logits: Tensor, task: Task, *, temperature: float = 4.0, teacher_grad: bool = False
) -> Tensor:
    """`distillation_loss` of every set of classes, squared distance of every score as it is learned, by weight.

    Args:
        logits: (B, K).
        teacher_logits: (B, K), of the same task.
        task: Says which logits belong together.
        temperature, teacher_grad: See `distillation_loss`.

    Returns:
        Scalar mean over the batch.
    """
    parts = []
    for weight, (place, part) in zip(task.weights, task.parts, strict=True):
        mine, taught = logits[:, place], teacher_logits[:, place]
        if isinstance(part, Score) and not part.binned:
            taught = taught if teacher_grad else taught.detach()
            loss = F.mse_loss(mine.float(), taught.float())
        else:
            loss = distillation_loss(mine, taught, temperature=temperature, exclusive=part.exclusive,
                                     teacher_grad=teacher_grad)  # fmt: skip
        parts.append(weight * loss if len(task.parts) > 1 else loss)
    return sum(parts[1:], parts[0])


class LogitDistillation(Distillation):
    """`task_weight` times the task loss plus `weight` times the distillation loss, this over all samples.

    Hinton's alpha is weight = alpha, task_weight = 1 - alpha.

    Args:
        encoders: `student` and `teacher`, with the same classes. With weight 0 the teacher is dropped.
        task: The student's own loss.
        temperature: T of `distillation_loss`.
        weight: Of the distillation loss.
        task_weight: Of the task loss.
    """

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        task: Task,
        *,
        temperature: float = 4.0,
        weight: float = 1.0,
        task_weight: float = 1.0,
    ) -> None:
        if temperature <= 0.0:
            raise ValueError(f"temperature={temperature}: must be above 0")
        super().__init__(encoders, task, weight=weight, task_weight=task_weight)
        self.temperature = temperature
        if weight:
            self._check_classes(self.encoder("teacher"))

    def _check_classes(self, teacher: Encoder) -> None:
        remedy = "logit distillation needs a teacher that was trained on the same classes"
        if not has_logits(teacher):
            report = teacher.weights_report
            reason = f" ({report.source}: {report.classifier})" if report is not None and report.classifier else ""
            raise ValueError(f"the teacher has no trained classifier{reason}; {remedy}")
        if teacher.num_classes != self.student.num_classes:
            raise ValueError(
                f"the teacher gives {teacher.num_classes} logits, the student {self.student.num_classes}; {remedy}"
            )

    def teach(self, out: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        if not self.weight:
            return {}
        taught = self.outputs_of("teacher", batch)["logits"]
        loss = task_distillation(out["logits"], taught, self.task, temperature=self.temperature)
        return {"distillation_loss": loss}

    def weights(self) -> dict[str, float]:
        parts = {"task_loss": self.task_weight}
        return {**parts, "distillation_loss": self.weight} if self.weight else parts
