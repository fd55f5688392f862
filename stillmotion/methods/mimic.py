"""Students whose own feature becomes the teacher's: MARS, MERS, D3D, internal relationships.

Crasto et al., CVPR 2019; Stroud et al., arXiv:1812.08249; Lu et al., ICONIP 2020 (METHODS 4 and 6).
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from stillmotion.methods.base import Distillation, check_moments, has_logits
from stillmotion.methods.hallucinate import shuffled_order
from stillmotion.methods.relations import relation_loss
from stillmotion.models.encoder import Batch, Encoder, StoredFeatures
from stillmotion.tasks import Task

Target = Literal["embedding", "logits", "scores"]
Schedule = Literal["constant", "rise", "fall"]
Relation = Literal["none", "gram", "gram_cosine", "position", "sample"]


class Mimic(Distillation):
    """Task loss + `weight` times the mean squared distance to the teacher + `relation_weight` times that of relations.

    Where widths differ, a linear layer that is trained with the student and not delivered leads to the teacher's.

    Args:
        encoders: `student` and `teacher`. With both weights 0 the teacher is dropped.
        task: The student's own loss.
        target: What is matched: the `embedding` (MARS), the `logits`, or the `scores` (their softmax; sigmoid
            where a sample may have several classes; a score as it is learned).
        weight: Of the distance (the papers' alpha).
        task_weight: Of the task loss.
        task_to: What the task loss trains: `all` (MARS), or the `classifier` alone (MERS), whose input is cut off.
        relation: See `relation_loss`; `none` has none.
        relation_weight: Of its loss (beta).
        layers: Taps whose maps are related, one loss each, added up.
        teacher_layers: Theirs in the teacher; None: of the same names.
        schedule: Of both weights over the training: `constant`, `rise` from 0 or `fall` to 0 along half a cosine.
        control: `shuffled` gives every sample the target of another of its batch.

    Raises:
        ValueError: The networks do not fit together.
    """

    defaults: ClassVar[Mapping[str, Any]] = {
        "target": "embedding", "weight": 50.0, "task_to": "all", "relation": "none", "layers": ["layer4"],
    }  # fmt: skip

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        task: Task,
        *,
        target: Target | None = None,
        weight: float | None = None,
        task_weight: float = 1.0,
        task_to: Literal["all", "classifier"] | None = None,
        relation: Relation | None = None,
        relation_weight: float = 50.0,
        layers: list[str] | None = None,
        teacher_layers: list[str] | None = None,
        schedule: Schedule = "constant",
        control: Literal["shuffled"] | None = None,
    ) -> None:
        given = {"target": target, "weight": weight, "task_to": task_to, "relation": relation, "layers": layers}
        chosen = {**self.defaults, **{name: value for name, value in given.items() if value is not None}}
        self.relation_weight = relation_weight if chosen["relation"] != "none" else 0.0
        if self.relation_weight < 0.0:
            raise ValueError(f"relation_weight={relation_weight}: must not be negative")
        super().__init__(encoders, task, weight=chosen["weight"], task_weight=task_weight,
                         idle=not chosen["weight"] and not self.relation_weight)  # fmt: skip
        self.target, self.relation, self.control = chosen["target"], chosen["relation"], control
        self.layers = tuple(chosen["layers"])
        self.teacher_layers = tuple(teacher_layers or self.layers)
        self.schedule = schedule
        self.project: nn.Module = nn.Identity()
        if chosen["task_to"] == "classifier":
            cut_off_classifier(self.student)
        if "teacher" in self.encoders:
            self._check(self.encoder("teacher"))

    def _check(self, teacher: Encoder) -> None:
        check_moments(self.student, teacher)
        if self.weight and self.target == "embedding":
            if self.student.embedding_dim != teacher.embedding_dim:
                self.project = nn.Linear(self.student.embedding_dim, teacher.embedding_dim)
        elif self.weight:
            same = has_logits(teacher) and teacher.num_classes == self.student.num_classes
            if not same:
                raise ValueError(f"target={self.target} needs a teacher that was trained on the same classes")
        if not self.relation_weight:
            return
        if isinstance(teacher, StoredFeatures):
            raise ValueError(
                f"relation={self.relation} needs the teacher's maps, which are not stored; give a live teacher"
            )
        if len(self.layers) != len(self.teacher_layers):
            raise ValueError(
                f"layers and teacher_layers: {len(self.layers)} and {len(self.teacher_layers)}; name pairs"
            )
        for role, encoder, names in (("student", self.student, self.layers), ("teacher", teacher, self.teacher_layers)):
            if missing := [name for name in names if name not in encoder.taps]:
                raise ValueError(f"relation={self.relation} needs maps of the {role}'s {missing[0]}: set "
                                 f"{role}.options.taps=[{', '.join(names)}]")  # fmt: skip

    @classmethod
    def needs_live(cls, options: Mapping[str, Any]) -> bool:
        return bool((options.get("relation") or cls.defaults["relation"]) != "none")

    def teach(self, out: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        if "teacher" not in self.encoders:
            return {}
        taught, parts = self.outputs_of("teacher", batch), dict[str, Tensor]()
        if self.control == "shuffled":
            if len(batch["index"]) == 1:
                return {}
            order = shuffled_order(batch["index"])
            taught = {name: value[order] for name, value in taught.items()}
        if self.weight:
            parts["mimic_loss"] = F.mse_loss(self._guess(out), self._wanted(taught))
        if self.relation_weight:
            maps = [(out[a], taught[b]) for a, b in zip(self.layers, self.teacher_layers, strict=True)]
            each = [relation_loss(s.flatten(0, 1), t.flatten(0, 1), self.relation) for s, t in maps]
            parts["relation_loss"] = sum(each[1:], each[0])
        return parts

    def factor(self) -> float:
        if self.schedule == "constant":
            return 1.0
        fallen = 0.5 - 0.5 * math.cos(math.pi * self.progress)
        return fallen if self.schedule == "rise" else 1.0 - fallen

    def _guess(self, out: Mapping[str, Tensor]) -> Tensor:
        if self.target == "embedding":
            led: Tensor = self.project(out["embedding"])
            return led.float()
        return self._wanted(out)

    def _wanted(self, out: Mapping[str, Tensor]) -> Tensor:
        if self.target == "embedding":
            return out["embedding"].float()
        logits = out["moment_logits"].float()
        if self.target == "logits":
            return logits
        scores: Tensor = self.task.scores(logits)
        return scores

    def weights(self) -> dict[str, float]:
        parts = {"task_loss": self.task_weight}
        if "teacher" in self.encoders:
            parts |= {"mimic_loss": self.weight} if self.weight else {}
            parts |= {"relation_loss": self.relation_weight} if self.relation_weight else {}
        return parts


class Mars(Mimic):
    """Motion-augmented RGB stream: the task and the teacher train the whole network (METHODS 6.1)."""

    imitates = True


class Mers(Mimic):
    """Motion-emulating RGB stream: the teacher trains all but the classifier, the task only that (METHODS 6.1)."""

    imitates = True
    defaults: ClassVar[Mapping[str, Any]] = {**Mimic.defaults, "task_to": "classifier"}


class D3d(Mimic):
    """Distilled 3D network: the student's logits become those of the flow network (METHODS 6.2)."""

    defaults: ClassVar[Mapping[str, Any]] = {**Mimic.defaults, "target": "logits", "weight": 1.0}


class InternalRelation(Mimic):
    """Internal-relationship distillation: MARS, and the Gram matrices of a layer as well (METHODS 4)."""

    imitates = True
    defaults: ClassVar[Mapping[str, Any]] = {**Mimic.defaults, "relation": "gram"}


def cut_off_classifier(encoder: Encoder) -> None:
    """Lets no gradient of the logits into the layers before the classifier; values stay as they are.

    Raises:
        ValueError: It is not one layer.
    """
    layers = {name.rpartition(".")[0] for name in encoder.classifier_names()}
    if len(layers) != 1:
        raise ValueError(f"{encoder.config.get('name')}: its classifier is not one layer, so the task cannot train it "
                         "alone; take another network, or task_to=all")  # fmt: skip
    encoder.get_submodule(layers.pop()).register_forward_pre_hook(_cut_off)


def _cut_off(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0].detach(), *inputs[1:])
