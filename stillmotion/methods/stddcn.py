"""STDDCN: two connected streams learn from their own fusion (Hao & Zhang, Pattern Recognition 92, 2019; METHODS 5)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor

from stillmotion.methods.base import Method
from stillmotion.methods.hallucinate import shuffled_order
from stillmotion.methods.logits import task_distillation
from stillmotion.models.encoder import Batch, Encoder, StoredFeatures
from stillmotion.models.fusion import STREAMS
from stillmotion.models.two_stream import Connect, Density, Direction, TwoStream
from stillmotion.tasks import Task

TeacherKind = Literal["fusion_fc", "fusion_mean", "mutual", "none"]


class Stddcn(Method):
    """Task loss of the fusion and of both streams, plus `mu` times the distance of the streams to their teacher.

    The teacher is the network's own fusion, so `student` is the only role. Distillation is over all samples, labelled
    or not.

    Args:
        encoders: `student`, a `TwoStream`.
        task: Of the fusion and of each stream.
        teacher_kind: Whose soft labels the streams learn: `fusion_fc` the classifier of both, `fusion_mean` the mean of
            the streams' logits, `mutual` each the other's; `none` learns the tasks alone.
        temperature: T of `distillation_loss`.
        mu: Of the distillation losses. 0 is `none`.
        teacher_grad: Let the distillation move the teacher as well.
        control: `shuffled` gives every sample the soft labels of another of its batch; a batch of one has none then.

    Raises:
        ValueError: A value out of range, or a student without two streams.
    """

    defaults: ClassVar[Mapping[str, Any]] = {"connect": "sum", "direction": "both", "density": "dense", "dropout": 0.0}

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        task: Task,
        *,
        teacher_kind: TeacherKind = "fusion_fc",
        temperature: float = 4.0,
        mu: float = 1.0,
        teacher_grad: bool = False,
        control: Literal["shuffled"] | None = None,
    ) -> None:
        if temperature <= 0.0:
            raise ValueError(f"temperature={temperature}: must be above 0")
        if mu < 0.0:
            raise ValueError(f"mu={mu}: must not be negative")
        super().__init__(encoders, task)
        if not isinstance(self.student, TwoStream):
            raise ValueError("stddcn trains a student with two streams (create_model('two_stream'))")
        self.teacher_kind, self.temperature, self.teacher_grad, self.control = (
            teacher_kind, temperature, teacher_grad, control)  # fmt: skip
        self.mu = mu if teacher_kind != "none" else 0.0

    @classmethod
    def make_student(
        cls,
        backbone: Encoder,
        teachers: Mapping[str, Encoder],
        task: Task,
        *,
        connect: Connect | None = None,
        direction: Direction | None = None,
        density: Density | None = None,
        stages: list[int] | None = None,
        dropout: float | None = None,
    ) -> Encoder:
        """The two streams, joined (METHODS 5.2).

        Args:
            backbone: The appearance stream, or already a `two_stream`, which stays as it is.
            teachers: `teacher`, the motion stream: both are trained on from what they know.
            task: Gives the width of the logits.
            connect, direction, density, stages, dropout: See `TwoStream`.

        Raises:
            ValueError: There is no motion stream, or options for a student that brings its own connections.
        """
        options = {"connect": connect, "direction": direction, "density": density, "stages": stages, "dropout": dropout}
        given = {name: value for name, value in options.items() if value is not None}
        if isinstance(backbone, TwoStream):
            if given:
                name = next(iter(given))
                raise ValueError(f"{name}: this student brings its own; set student.options.{name} where it is made")
            return backbone
        if isinstance(teachers.get("teacher"), StoredFeatures):
            raise ValueError("stddcn trains both streams, so stored features cannot stand for one; give teacher=, the "
                             "motion stream itself")  # fmt: skip
        if "teacher" not in teachers:
            raise ValueError("stddcn needs two streams: the student is the appearance stream, so name the motion "
                             "stream as teacher; or make the student two_stream")  # fmt: skip
        return TwoStream(backbone, teachers["teacher"], num_classes=task.num_outputs, **given)  # type: ignore[arg-type]

    @classmethod
    def needs_live(cls, options: Mapping[str, Any]) -> bool:
        return True  # the motion stream is trained

    @property
    def learns_unlabelled(self) -> bool:
        return self.mu > 0.0

    def teach(self, out: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        parts = {f"{stream}_loss": self.task.loss(out[f"logits_{stream}"], batch["target"]) for stream in STREAMS}
        if self.mu:
            parts |= {f"{stream}_distillation_loss": self._distillation(stream, out, batch) for stream in STREAMS}
        return parts

    def _distillation(self, stream: str, out: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """How far a stream's soft labels are from its teacher's."""
        other = STREAMS[1 - STREAMS.index(stream)]
        names = {"fusion_fc": "logits", "fusion_mean": "logits_mean", "mutual": f"logits_{other}"}
        mine, taught = out[f"logits_{stream}"], out[names[self.teacher_kind]]
        if self.control == "shuffled":
            if len(batch["index"]) == 1:
                return mine.float().sum() * 0.0
            taught = taught[shuffled_order(batch["index"])]
        return task_distillation(mine, taught, self.task, temperature=self.temperature, teacher_grad=self.teacher_grad)

    def weights(self) -> dict[str, float]:
        parts = {"task_loss": 1.0, **{f"{stream}_loss": 1.0 for stream in STREAMS}}
        return {**parts, **({f"{stream}_distillation_loss": self.mu for stream in STREAMS} if self.mu else {})}
