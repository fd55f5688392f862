"""Fusion of an appearance and a motion network (METHODS 4.5): what joins them learns, they stay as they are."""

from collections.abc import Mapping
from typing import Any

from stillmotion.methods.supervised import Supervised
from stillmotion.models.encoder import Encoder, StoredFeatures
from stillmotion.models.fusion import FusedStreams, FusionKind
from stillmotion.tasks import Task


class Fusion(Supervised):
    """The student and its teacher become one network; the task trains the layers that join them.

    Distilled from a flow network before, the teacher's place is taken by a student of RGB too: MARS + RGB.

    Args:
        encoders: `student`, as `make_student` made it.
        task: Its loss.
        train_streams: Train the two networks as well.
    """

    def __init__(self, encoders: Mapping[str, Encoder], task: Task, *, train_streams: bool = False) -> None:
        super().__init__(encoders, task)
        assert isinstance(self.student, FusedStreams)
        self.train_streams = train_streams
        if not train_streams:
            self.student.streams.requires_grad_(False).eval()

    @classmethod
    def make_student(
        cls,
        backbone: Encoder,
        teachers: Mapping[str, Encoder],
        task: Task,
        *,
        fusion: FusionKind = "attention",
        hidden_dim: int = 128,
        dropout: float = 0.0,
        motion_weight: float = 0.5,
    ) -> Encoder:
        if isinstance(backbone, FusedStreams):
            return backbone
        motion = teachers.get("teacher")
        if motion is None or isinstance(motion, StoredFeatures):
            raise ValueError("fusion needs a teacher, the network that joins the student: name one, not features")
        return FusedStreams(backbone, motion, num_classes=task.num_outputs, fusion=fusion, hidden_dim=hidden_dim,
                            dropout=dropout, motion_weight=motion_weight)  # fmt: skip

    @classmethod
    def needs_live(cls, options: Mapping[str, Any]) -> bool:
        return True

    def train(self, mode: bool = True) -> "Fusion":
        super().train(mode)
        if not self.train_streams:
            self.student.get_submodule("streams").eval()
        return self
