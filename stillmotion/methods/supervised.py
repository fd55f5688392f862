"""Plain training: the student and its task. The row that every distillation is compared with."""

from torch import Tensor

from stillmotion.methods.base import Method
from stillmotion.models.encoder import Batch


class Supervised(Method):
    """The task loss alone."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        out = self.student.from_batch(batch, "student")
        loss = self.task.loss(out["logits"], batch["target"])
        return {"loss": loss, "task_loss": loss, "logits": out["logits"]}
