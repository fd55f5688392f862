"""Im2Flow as a method: guess the flow from one frame, as a motion network would see it."""

import copy
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from stillmotion.methods.base import Distillation, check_moments
from stillmotion.models.encoder import Batch, Encoder, StoredFeatures, prepare
from stillmotion.models.im2flow import Im2Flow
from stillmotion.tasks import Task


class GuessFlow(Distillation):
    """Task loss + `weight` times the squared distance of the flow + `content_weight` times that of its feature.

    The feature is the teacher's, of the guessed and of the true flow (METHODS 6.6: 50 and 1; there one picture shows
    sine, cosine and size, here u and v of every field that the teacher sees). The student's own motion network starts
    as the teacher and learns with the task, on guessed flow.

    Args:
        encoders: `student`, as `make_student` made it, and `teacher`, a network of flow.
        task: The student's own loss.
        weight: Of the flow.
        content_weight: Of the feature.
        task_weight: Of the task loss.
    """

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        task: Task,
        *,
        weight: float = 50.0,
        content_weight: float = 1.0,
        task_weight: float = 1.0,
    ) -> None:
        idle = not weight and not content_weight
        super().__init__(encoders, task, weight=weight, task_weight=task_weight, idle=idle)
        if content_weight < 0.0:
            raise ValueError(f"content_weight={content_weight}: must not be negative")
        self.content_weight = content_weight
        if not idle:
            check_moments(self.student, self.encoder("teacher"))

    @classmethod
    def make_student(
        cls, backbone: Encoder, teachers: Mapping[str, Encoder], task: Task, *, width: int = 32
    ) -> Encoder:
        if isinstance(backbone, Im2Flow):
            return backbone
        teacher = teachers.get("teacher")
        if teacher is None or isinstance(teacher, StoredFeatures):
            raise ValueError("im2flow needs a teacher, the network that sees flow: name one, not features")
        return Im2Flow(backbone, copy.deepcopy(teacher), num_classes=task.num_outputs, width=width)

    @classmethod
    def needs_live(cls, options: Mapping[str, Any]) -> bool:
        return True

    def teach(self, out: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        if "teacher" not in self.encoders:
            return {}
        teacher = self.encoder("teacher")
        ((name, view),) = teacher.views.items()
        true = prepare(batch[f"teacher/{name}"].flatten(0, 1), view)
        guessed = out["flow"].flatten(0, 1)
        parts = {"flow_loss": F.mse_loss(guessed.float(), true.float())}
        if self.content_weight:
            wanted = self.outputs_of("teacher", batch)["embedding"].flatten(0, 1)
            parts["content_loss"] = F.mse_loss(teacher.forward_views(guessed)["embedding"].float(), wanted.float())
        return parts

    def weights(self) -> dict[str, float]:
        parts = {"task_loss": self.task_weight}
        if "teacher" in self.encoders:
            parts |= {"flow_loss": self.weight}
            parts |= {"content_loss": self.content_weight} if self.content_weight else {}
        return parts
