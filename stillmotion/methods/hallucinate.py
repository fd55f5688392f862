"""HalluciNet: guess a video teacher's clip feature from one frame (Parmar & Morris, arXiv:1912.04430)."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stillmotion.methods.base import Distillation, check_moments, has_logits
from stillmotion.models.encoder import MAP, Batch, Encoder, StoredFeatures
from stillmotion.models.sequence import FrameSequence
from stillmotion.models.student import Fusion, HallucinatingStudent, Tap
from stillmotion.tasks import Task
from stillmotion.view import View

Squash = Literal["sigmoid", "none", "l2", "cosine"]
Reduction = Literal["mean", "sum"]
Control = Literal["none", "shuffled", "single_frame"]


def hallucination_loss(
    hallucinated: Tensor, target: Tensor, *, squash: Squash = "sigmoid", reduction: Reduction = "mean"
) -> Tensor:
    """Squared distance between squashed features, in float32.

    Args:
        hallucinated: Student's guess of the teacher's feature, (..., D).
        target: Feature of the teacher, (..., D). Receives no gradient.
        squash: `sigmoid` (paper); `none`; `l2` divides both by their norm; `cosine` is 1 - cosine similarity.
        reduction: Over the D units: `mean` as the official code, `sum` as the paper's formula (D times as large; one
            and the same for `cosine`). Over samples it is always the mean.

    Returns:
        Scalar.

    Example:
        >>> x = torch.zeros(2, 4)
        >>> hallucination_loss(x, x)
        tensor(0.)
        >>> hallucination_loss(x, x + 100.0, reduction="sum")
        tensor(1.)
    """
    hallucinated, target = hallucinated.float(), target.detach().float()
    match squash:
        case "cosine":
            return (1.0 - F.cosine_similarity(hallucinated, target, dim=-1)).mean()
        case "sigmoid":
            hallucinated, target = hallucinated.sigmoid(), target.sigmoid()
        case "l2":
            hallucinated, target = F.normalize(hallucinated, dim=-1), F.normalize(target, dim=-1)
        case "none":
            pass
        case _:
            raise ValueError(f"squash={squash!r}: choose one of sigmoid, none, l2, cosine")
    loss = F.mse_loss(hallucinated, target)
    return loss * target.shape[-1] if reduction == "sum" else loss


def shuffled_order(index: Tensor) -> Tensor:
    """Which sample of the batch lends its target to which: one random cycle, so that nobody keeps its own.

    The order is a function of the indices alone. It therefore consumes no randomness (dropout falls as in the
    unshuffled run), and live, cached and resumed trainings see the same.

    Args:
        index: (B,) samples of the batch.

    Returns:
        (B,) positions in the batch.

    Example:
        >>> shuffled_order(torch.tensor([7, 4]))
        tensor([1, 0])
    """
    digest = hashlib.sha256(index.cpu().numpy().tobytes()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    cycle = torch.randperm(len(index), generator=generator)
    order = torch.empty_like(cycle)
    order[cycle] = cycle.roll(1)
    return order.to(index.device)


def feature_of(outputs: Mapping[str, Tensor], target: str) -> Tensor:
    """The teacher's feature that is hallucinated, moment by moment.

    Args:
        outputs: Of `Encoder.from_batch`.
        target: `embedding`, `logits` (those of each moment), or a tap, whose positions are averaged: a map
            (B, N, D, ...) over all axes behind D, tokens (B, N, L, D) over L. `LAYER:map` keeps all of them, in a row.

    Returns:
        (B, N, D).
    """
    if target == "logits":
        return outputs["moment_logits"]
    feature = outputs[target]
    if target.endswith(MAP):
        return feature.flatten(2)
    if feature.ndim == 4:
        return feature.mean(2)
    return feature.flatten(3).mean(3) if feature.ndim > 4 else feature


def feature_dim(teacher: Encoder, target: str) -> int:
    """Width of `feature_of` this teacher.

    Raises:
        ValueError: The teacher does not give it.
    """
    if target == "embedding":
        return teacher.embedding_dim
    if target == "logits" and has_logits(teacher):
        return teacher.num_classes
    if isinstance(teacher, StoredFeatures) and target in teacher.taps:
        return teacher.tap_dims[target]
    if target not in teacher.taps:
        have = ", ".join(["embedding", *(["logits"] if has_logits(teacher) else []), *teacher.taps])
        raise ValueError(
            f"target={target!r}: the teacher gives {have}; name one of these, or let the teacher give a further "
            "layer with teacher.options.taps=[LAYER]"
        )
    views = {f"teacher/{name}": view for name, view in teacher.views.items()}
    device = next(teacher.parameters()).device
    batch = {
        n: torch.zeros(1, v.num_crops, v.num_frames, v.channels, *v.size, dtype=torch.uint8, device=device)
        for n, v in views.items()
    }
    was_training = teacher.training
    with torch.no_grad():
        outputs = teacher.eval().from_batch(batch, "teacher")
    teacher.train(was_training)
    return feature_of(outputs, target).shape[-1]


class Hallucinate(Distillation):
    """Task loss plus `weight` times the hallucination loss (METHODS 2.3).

    The hallucination loss is over all samples, labelled or not. Student and teacher are matched moment by moment; where
    the clip lies around the student's frame is the teacher view's `clip`.

    Args:
        encoders: `student` (with a hallucination branch) and `teacher`. With weight 0 the teacher is dropped.
        task: The student's own loss.
        weight: Of the hallucination loss: lambda; 50 in the paper, 1 for its scenes. 0 trains the same network, branch
            included, without its teacher: the control for the branch's capacity.
        task_weight: Of the task loss; 0 is pre-training by hallucination alone.
        squash, reduction: See `hallucination_loss`.
        target: What is hallucinated: the teacher's `embedding` (paper), its `logits`, or one of its taps.
        control: `shuffled` gives every sample the target of another of its batch, changing from step to step: the same
            loss with targets of the same distribution that tell nothing of the sample, not even its class. (A fixed
            exchange over the training set could be learned by heart, and a live teacher would have to decode
            another video.) A batch of one sample then has no hallucination loss. `single_frame` shows the
            teacher one frame as often as its clip is long; for stored features, extract them with
            `teacher.view.stride=0` instead.
    """

    hallucinates = True

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        task: Task,
        *,
        weight: float = 50.0,
        task_weight: float = 1.0,
        squash: Squash = "sigmoid",
        reduction: Reduction = "mean",
        target: str = "embedding",
        control: Control = "none",
    ) -> None:
        super().__init__(encoders, task, weight=weight, task_weight=task_weight)
        self.squash, self.reduction, self.target, self.control = squash, reduction, target, control
        if weight:
            self._check_pair(self.student, self.encoder("teacher"))

    def _check_pair(self, student: Encoder, teacher: Encoder) -> None:
        check_moments(student, teacher)
        branch = student.backbone if isinstance(student, FrameSequence) else student
        if not isinstance(branch, HallucinatingStudent):
            raise ValueError("hallucinate needs a student with a hallucination branch (create_model('hallucinating'))")
        width = feature_dim(teacher, self.target)
        if branch.hallucinated_dim != width:
            raise ValueError(
                f"the student hallucinates {branch.hallucinated_dim} values, the teacher's {self.target} has {width}; "
                "leave hallucinated_dim out to take the teacher's"
            )
        if self.control == "single_frame" and isinstance(teacher, StoredFeatures):
            raise ValueError(
                "control='single_frame' needs a live teacher; for stored features, extract them with "
                "teacher.view.stride=0 and leave control out"
            )

    @classmethod
    def make_student(
        cls,
        backbone: Encoder,
        teachers: Mapping[str, Encoder],
        task: Task,
        *,
        target: str = "embedding",
        hallucinated_dim: int | None = None,
        fuse: Fusion = "concat",
        relu: bool | None = None,
        tap: Tap | None = None,
        dropout: float = 0.5,
        init_fc6: Literal["imagenet"] | None = None,
    ) -> Encoder:
        """The backbone with a hallucination branch (METHODS 2.2).

        Args:
            backbone: A network that looks at frames, or already a student with a branch (of a run), which stays. The
                network inside a `sequence` gets the branch, so that each of its frames hallucinates its own clip.
            teachers: `teacher`, if it is to give the branch its width.
            task: Gives the width of the logits.
            target: See the class.
            hallucinated_dim: Width of the branch; by default the teacher's. With weight 0 no teacher is needed then.
            fuse: Classify from `concat` ([x, hallucinated], paper's text), `none` (x; the official script) or
                `direct` (hallucinated alone).
            relu: ReLU on the branch (official code). By default on, except for logits, which have a sign.
            tap, dropout, init_fc6: Of VGG students: see `HallucinatingStudent`.
        """
        branch = backbone.backbone if isinstance(backbone, FrameSequence) else backbone
        if isinstance(branch, HallucinatingStudent):
            return backbone
        if hallucinated_dim is None:
            if "teacher" not in teachers:
                raise ValueError("hallucinate needs a teacher, or with weight 0 the option hallucinated_dim=")
            hallucinated_dim = feature_dim(teachers["teacher"], target)
        relu = target != "logits" if relu is None else relu
        student = HallucinatingStudent(
            branch,
            num_classes=task.num_outputs,
            hallucinated_dim=hallucinated_dim,
            fuse=fuse,
            relu=relu,
            tap=tap,
            dropout=dropout,
            init_fc6=init_fc6,
        )
        return backbone.around(student) if isinstance(backbone, FrameSequence) else student

    def views(self) -> dict[str, View]:
        views = super().views()
        if self.control != "single_frame":
            return views
        return {k: replace(v, stride=0) if k.startswith("teacher/") else v for k, v in views.items()}

    def teach(self, out: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """As `Method.teach`; also `hallucinated` and the teacher's `hallucination_target`, (B, N, D), detached."""
        if not self.weight:
            return {}
        target = feature_of(self.outputs_of("teacher", batch), self.target)
        return {
            "hallucination_loss": self._feature_loss(out["hallucinated"], target, batch["index"]),
            "hallucinated": out["hallucinated"].detach(),
            "hallucination_target": target,
        }

    def _feature_loss(self, hallucinated: Tensor, target: Tensor, index: Tensor) -> Tensor:
        if self.control == "shuffled":
            if len(index) == 1:
                return hallucinated.float().sum() * 0.0
            target = target[shuffled_order(index)]
        return hallucination_loss(hallucinated, target, squash=self.squash, reduction=self.reduction)

    def weights(self) -> dict[str, float]:
        parts = {"task_loss": self.task_weight}
        return {**parts, "hallucination_loss": self.weight} if self.weight else parts
