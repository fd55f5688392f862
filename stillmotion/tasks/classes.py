"""Classes: one of several for a sample, or any number of them."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from stillmotion.data.splits import check_labels
from stillmotion.data.table import Sample, Table, TableError, comma_list, split_labels
from stillmotion.protocols.pooling import Pooling, hit_at_k, mean_average_precision, pool_clips, sigmoid, softmax
from stillmotion.tasks.base import UNLABELLED, Answer, Logits, Targets, Task, as_float

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Classes(Task):
    """A task whose logits are those of classes.

    Args:
        class_names: In the order of the logits.
        target: Column of the table.
        temperature: What logits are divided by in use, so that probabilities are right as often as they say
            (Guo et al., arXiv:1706.04599). Training, and whoever compares networks, reads the logits as they are.
    """

    class_names: tuple[str, ...]
    target: str = "label"
    temperature: float = field(default=1.0, compare=False)

    @classmethod
    def of(cls, table: Table, target: str = "label") -> Self:
        """The task of a table: its classes, sorted.

        Raises:
            TableError: Fewer than two classes.
        """
        names = cls.names(table.classes(target))
        if len(names) < 2:
            one = f"the one class {names[0]!r}" if names else "no class"
            remedy = "label samples of another one, or leave the column out of the targets"
            raise TableError(f"{table.source}: column {target!r} has {one}; a classifier needs two: {remedy}")
        return cls(names, target)

    @staticmethod
    def names(values: Sequence[str]) -> tuple[str, ...]:
        """Classes that the values of a column speak of."""
        return tuple(values)

    @property
    def output_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.class_names

    def has_label(self, sample: Sample) -> bool:
        return bool(self.names([v for v in [sample.targets.get(self.target)] if v is not None]))

    def check(self, table: Table) -> None:
        check_labels(table, self.class_names, self.target, self.names)

    @abstractmethod
    def marks(self, targets: Targets) -> NDArray[np.bool_]:
        """True classes of every sample, (S, K); none without a label."""

    @abstractmethod
    def right(self, logits: Any, targets: Any) -> Any:
        """Where the first guess is right, (S,) bool: its mean is `top1`. Takes and gives arrays or tensors."""

    def points(self, logits: Any, targets: Any) -> dict[str, tuple[Any, Any]]:
        return {"top1": (as_float(self.right(logits, targets)), self.labelled(targets))}

    def scores(self, logits: Any) -> Any:
        """Probabilities of the classes, (..., K)."""
        if isinstance(logits, np.ndarray):
            return softmax(logits) if self.exclusive else np.asarray(sigmoid(logits), np.float32)
        return logits.softmax(-1) if self.exclusive else logits.sigmoid()

    def calibrated(self, logits: Logits) -> Logits:
        return logits if self.temperature == 1.0 else logits / np.float32(self.temperature)

    def pool(self, logits: Logits, pooling: Pooling, weights: NDArray[np.floating] | None = None) -> Logits:
        return pool_clips(logits, pooling, exclusive=self.exclusive, weights=weights)

    def choices(self, logits: Logits) -> NDArray[np.int64]:
        return np.asarray(logits.argmax(1)[:, None], np.int64)

    @abstractmethod
    def read(self, logits: Logits, *, top: int = 5) -> list[tuple[str, float]]:
        """The `top` classes with their probabilities, most probable first."""

    def to_dict(self) -> dict[str, Any]:
        data = {"kind": self.kind, **asdict(self), "class_names": list(self.class_names)}
        if self.temperature == 1.0:
            del data["temperature"]
        return data

    def _index(self, name: str, sample: Sample) -> int:
        try:
            return self.class_names.index(name)
        except ValueError:
            raise TableError(
                f"line {sample.line} ({sample.name}): unknown {self.target} {name!r}; classes: "
                f"{comma_list(self.class_names)}; correct the label, or leave it empty for an unlabelled sample"
            ) from None


@dataclass(frozen=True)
class Classification(Classes):
    """One class of several: cross-entropy; `top1`, `top5`, `mean_class`."""

    kind = "classification"
    metric_kinds = ("top1", "top5", "mean_class")

    def encode(self, sample: Sample) -> int:
        value = sample.targets.get(self.target)
        return UNLABELLED if value is None else self._index(value, sample)

    def stratum(self, sample: Sample) -> str | None:
        return sample.targets.get(self.target)

    def labelled(self, targets: Any) -> Any:
        return targets != UNLABELLED

    def marks(self, targets: Targets) -> NDArray[np.bool_]:
        return np.asarray(targets[:, None] == np.arange(self.num_outputs))

    def classes_of(self, targets: Targets) -> NDArray[np.int64]:
        return np.asarray(targets, np.int64)

    def right(self, logits: Any, targets: Any) -> Any:
        return logits.argmax(-1) == targets

    def loss(self, logits: "Tensor", targets: "Tensor") -> "Tensor":
        import torch.nn.functional as F

        total = F.cross_entropy(logits.float(), targets, ignore_index=UNLABELLED, reduction="sum")
        return total / (targets != UNLABELLED).sum().clamp(min=1)

    def metrics(self, logits: Logits, targets: Targets) -> dict[str, float]:
        """`top1`, `top5` (with more than five classes) and `mean_class`, as fractions of the labelled samples.

        Example:
            >>> task = Classification(("a", "b"))
            >>> task.metrics(np.array([[2.0, 1.0], [2.0, 1.0]]), np.array([0, 1]))
            {'top1': 0.5, 'mean_class': 0.5}
        """
        known = targets != UNLABELLED
        logits, targets = logits[known], targets[known]
        if not len(targets):
            return {}
        right = logits.argmax(axis=1) == targets
        result = {"top1": float(right.mean())}
        if self.num_outputs > 5:
            best = np.argsort(-logits, axis=1, kind="stable")[:, :5]
            result["top5"] = float((best == targets[:, None]).any(axis=1).mean())
        result["mean_class"] = float(np.mean([right[targets == c].mean() for c in np.unique(targets)]))
        return result

    def read(self, logits: Logits, *, top: int = 5) -> list[tuple[str, float]]:
        """The `top` classes with their probabilities, most probable first.

        Example:
            >>> Classification(("jump", "sit")).read(np.array([0.0, 0.0], np.float32), top=1)
            [('jump', 0.5)]
        """
        exp = np.exp(logits.astype(np.float64) - logits.max())
        order = np.argsort(-logits, kind="stable")[:top]
        return [(self.class_names[i], float(exp[i] / exp.sum())) for i in order]

    def answers(self, logits: Logits, *, top: int = 5) -> tuple[Answer, ...]:
        labels = tuple(self.read(logits, top=max(1, top)))
        return (Answer(self.target, labels[0][0], labels),)

    def text(self, target: Any) -> str:
        return "" if target == UNLABELLED else self.class_names[int(target)]


@dataclass(frozen=True)
class MultiLabel(Classes):
    """Any number of classes at once, `run|jump` in the table: binary cross-entropy; `top1`, `top5`, `mAP`.

    `top1` and `top5` are Hit@1 and Hit@5: whether one of the sample's labels is among the first guesses.
    """

    kind = "multilabel"
    exclusive = False
    metric_kinds = ("top1", "top5", "mAP")

    @staticmethod
    def names(values: Sequence[str]) -> tuple[str, ...]:
        return tuple(sorted({name for value in values for name in split_labels(value)}))

    @property
    def target_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (self.num_outputs,)

    def encode(self, sample: Sample) -> NDArray[np.int64]:
        """(K,) of 0 and 1."""
        names = split_labels(sample.targets.get(self.target, ""))
        if not names:
            return np.full(self.num_outputs, UNLABELLED, np.int64)
        marks = np.zeros(self.num_outputs, np.int64)
        marks[[self._index(name, sample) for name in names]] = 1
        return marks

    def labelled(self, targets: Any) -> Any:
        # A batch without any readable sample has targets (0,).
        return (targets if targets.ndim == 1 else targets[:, 0]) != UNLABELLED

    def marks(self, targets: Targets) -> NDArray[np.bool_]:
        return targets > 0

    def classes_of(self, targets: Targets) -> NDArray[np.int64]:
        _, numbers = np.unique(targets, axis=0, return_inverse=True)
        return np.where(self.labelled(targets), numbers.ravel(), UNLABELLED)

    def right(self, logits: Any, targets: Any) -> Any:
        return targets[list(range(len(targets))), logits.argmax(-1)] > 0

    def loss(self, logits: "Tensor", targets: "Tensor") -> "Tensor":
        import torch.nn.functional as F

        known = self.labelled(targets)
        each = F.binary_cross_entropy_with_logits(logits.float(), targets.clamp(min=0).float(), reduction="none")
        total: Tensor = (each.mean(1) * known).sum() / known.sum().clamp(min=1)
        return total

    def metrics(self, logits: Logits, targets: Targets) -> dict[str, float]:
        """`top1`, `top5` (with more than five classes) and `mAP`, the mean average precision over the classes.

        Example:
            >>> task = MultiLabel(("a", "b"))
            >>> task.metrics(np.array([[2.0, 1.0], [2.0, 1.0]]), np.array([[1, 1], [0, 1]]))
            {'top1': 0.5, 'mAP': 0.75}
        """
        known = self.labelled(targets)
        logits, marks = logits[known], self.marks(targets[known])
        if not marks.any():
            return {}
        result = {"top1": hit_at_k(logits, marks, 1)}
        if self.num_outputs > 5:
            result["top5"] = hit_at_k(logits, marks, 5)
        return {**result, "mAP": mean_average_precision(logits, marks)}

    def read(self, logits: Logits, *, top: int = 5) -> list[tuple[str, float]]:
        """The `top` classes, each with its own probability (they do not add up to 1)."""
        scores = self.scores(logits)
        return [(self.class_names[i], float(scores[i])) for i in np.argsort(-logits, kind="stable")[:top]]

    def answers(self, logits: Logits, *, top: int = 5) -> tuple[Answer, ...]:
        """In the text all classes that are more likely than not; the likeliest if there is none."""
        ranked = self.read(logits, top=self.num_outputs)
        text = " and ".join(name for i, (name, p) in enumerate(ranked) if i == 0 or p > 0.5)
        return (Answer(self.target, text, tuple(ranked[: max(1, top)])),)

    def text(self, target: Any) -> str:
        return "|".join(name for name, mark in zip(self.class_names, target, strict=True) if mark > 0)
