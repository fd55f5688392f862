"""Tasks: which target, which loss, which metrics, and how a prediction reads to a person.

A task is plain data that imports no torch until a loss is asked for, so that an exported student needs none.
Unlabelled samples carry the value `UNLABELLED`: they add nothing to the task loss and still carry a distillation loss.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from stillmotion.data.table import Sample, Table, TableError, split_labels
from stillmotion.protocols.pooling import hit_at_k, mean_average_precision, sigmoid, softmax

if TYPE_CHECKING:
    from torch import Tensor

UNLABELLED = -1
Targets = NDArray[Any]
"""Of S samples, (S,) or (S, ...), as the task's `encode` gives them."""


@dataclass(frozen=True)
class Task(ABC):
    """What a network is to tell of a sample.

    Args:
        class_names: In the order of the logits.
        target: Column of the table.
    """

    class_names: tuple[str, ...]
    target: str = "label"
    kind: ClassVar[str]
    exclusive: ClassVar[bool]
    """Whether a sample has one class: probabilities are then a softmax, otherwise a sigmoid each."""
    metric_kinds: ClassVar[tuple[str, ...]]
    """What `metrics` may give."""

    @classmethod
    def of(cls, table: Table, target: str = "label") -> Self:
        """The task of a table: its classes, sorted.

        Raises:
            TableError: Fewer than two classes.
        """
        names = cls.names(table.classes(target))
        if len(names) < 2:
            one = f"the one class {names[0]!r}" if names else "no class"
            raise TableError(f"{table.source}: column {target!r} has {one}; a classifier needs two")
        return cls(names, target)

    @staticmethod
    def names(values: Sequence[str]) -> tuple[str, ...]:
        """Classes that the values of a column speak of."""
        return tuple(values)

    @property
    def num_outputs(self) -> int:
        """Width of the logits."""
        return len(self.class_names)

    @abstractmethod
    def encode(self, sample: Sample) -> Any:
        """Target of a sample, a number or an array of the same shape for all; `UNLABELLED` without a label.

        Raises:
            TableError: The label is not among the classes.
        """

    def has_label(self, sample: Sample) -> bool:
        """Whether the table names a class of a sample."""
        return bool(self.names([v for v in [sample.targets.get(self.target)] if v is not None]))

    @abstractmethod
    def marks(self, targets: Targets) -> NDArray[np.bool_]:
        """True classes of every sample, (S, K); none without a label."""

    def encode_all(self, samples: Iterable[Sample]) -> Targets:
        """Targets of samples, (S, ...)."""
        rows = [self.encode(s) for s in samples]
        return np.array(rows, np.int64) if rows or self.exclusive else np.empty((0, self.num_outputs), np.int64)

    def labelled(self, targets: Any) -> Any:
        """Which samples have a label, (S,) bool; takes and gives arrays or tensors."""
        return (targets if targets.ndim == 1 else targets[:, 0]) != UNLABELLED

    def scores(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities of the classes, (..., K)."""
        return softmax(logits) if self.exclusive else np.asarray(sigmoid(logits), np.float32)

    @abstractmethod
    def right(self, logits: Any, targets: Any) -> Any:
        """Where the first guess is right, (S,) bool: its mean is `top1`. Takes and gives arrays or tensors."""

    @abstractmethod
    def loss(self, logits: "Tensor", targets: "Tensor") -> "Tensor":
        """Mean over the labelled samples of a batch; 0 (with gradient 0) if there is none.

        Args:
            logits: (B, num_outputs).
            targets: (B, ...), as `encode` gives them.
        """

    @abstractmethod
    def metrics(self, logits: NDArray[np.float32], targets: Targets) -> dict[str, float]:
        """Metrics of the labelled samples as fractions, the main one first; empty without any."""

    @abstractmethod
    def read(self, logits: NDArray[np.float32], *, top: int = 5) -> list[tuple[str, float]]:
        """The `top` classes with their probabilities, most probable first."""

    def text(self, target: Any) -> str:
        """A target as the table has it; empty without a label."""
        return "" if target == UNLABELLED else self.class_names[int(target)]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data; `task_from_dict` reads it back."""
        return {"kind": self.kind, **asdict(self), "class_names": list(self.class_names)}

    def _index(self, name: str, sample: Sample) -> int:
        try:
            return self.class_names.index(name)
        except ValueError:
            known = ", ".join(self.class_names[:8]) + (", ..." if len(self.class_names) > 8 else "")
            raise TableError(
                f"line {sample.line} ({sample.name}): unknown {self.target} {name!r}; classes: {known}; correct the "
                "label, or leave it empty for an unlabelled sample"
            ) from None


@dataclass(frozen=True)
class Classification(Task):
    """One class of several: cross-entropy; `top1`, `top5`, `mean_class`."""

    kind = "classification"
    exclusive = True
    metric_kinds = ("top1", "top5", "mean_class")

    def encode(self, sample: Sample) -> int:
        value = sample.targets.get(self.target)
        return UNLABELLED if value is None else self._index(value, sample)

    def marks(self, targets: Targets) -> NDArray[np.bool_]:
        return np.asarray(targets[:, None] == np.arange(self.num_outputs))

    def right(self, logits: Any, targets: Any) -> Any:
        return logits.argmax(-1) == targets

    def loss(self, logits: "Tensor", targets: "Tensor") -> "Tensor":
        import torch.nn.functional as F

        total = F.cross_entropy(logits.float(), targets, ignore_index=UNLABELLED, reduction="sum")
        return total / (targets != UNLABELLED).sum().clamp(min=1)

    def metrics(self, logits: NDArray[np.float32], targets: Targets) -> dict[str, float]:
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

    def read(self, logits: NDArray[np.float32], *, top: int = 5) -> list[tuple[str, float]]:
        """The `top` classes with their probabilities, most probable first.

        Example:
            >>> Classification(("jump", "sit")).read(np.array([0.0, 0.0], np.float32), top=1)
            [('jump', 0.5)]
        """
        exp = np.exp(logits.astype(np.float64) - logits.max())
        order = np.argsort(-logits, kind="stable")[:top]
        return [(self.class_names[i], float(exp[i] / exp.sum())) for i in order]


@dataclass(frozen=True)
class MultiLabel(Task):
    """Any number of classes at once, `run|jump` in the table: binary cross-entropy; `top1`, `top5`, `mAP`.

    `top1` and `top5` are Hit@1 and Hit@5: whether one of the sample's labels is among the first guesses.
    """

    kind = "multilabel"
    exclusive = False
    metric_kinds = ("top1", "top5", "mAP")

    @staticmethod
    def names(values: Sequence[str]) -> tuple[str, ...]:
        return tuple(sorted({name for value in values for name in split_labels(value)}))

    def encode(self, sample: Sample) -> NDArray[np.int64]:
        """(K,) of 0 and 1."""
        names = split_labels(sample.targets.get(self.target, ""))
        if not names:
            return np.full(self.num_outputs, UNLABELLED, np.int64)
        marks = np.zeros(self.num_outputs, np.int64)
        marks[[self._index(name, sample) for name in names]] = 1
        return marks

    def marks(self, targets: Targets) -> NDArray[np.bool_]:
        return targets > 0

    def right(self, logits: Any, targets: Any) -> Any:
        return targets[list(range(len(targets))), logits.argmax(-1)] > 0

    def loss(self, logits: "Tensor", targets: "Tensor") -> "Tensor":
        import torch.nn.functional as F

        known = self.labelled(targets)
        each = F.binary_cross_entropy_with_logits(logits.float(), targets.clamp(min=0).float(), reduction="none")
        total: Tensor = (each.mean(1) * known).sum() / known.sum().clamp(min=1)
        return total

    def metrics(self, logits: NDArray[np.float32], targets: Targets) -> dict[str, float]:
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

    def read(self, logits: NDArray[np.float32], *, top: int = 5) -> list[tuple[str, float]]:
        """The `top` classes, each with its own probability (they do not add up to 1)."""
        scores = self.scores(logits)
        return [(self.class_names[i], float(scores[i])) for i in np.argsort(-logits, kind="stable")[:top]]

    def text(self, target: Any) -> str:
        return "|".join(name for name, mark in zip(self.class_names, target, strict=True) if mark > 0)


TASKS: dict[str, type[Task]] = {task.kind: task for task in (Classification, MultiLabel)}


def make_task(table: Table, target: str = "label") -> Task:
    """The task of a column.

    Args:
        table: Its values name the classes.
        target: Column, of which each sample has one class; `COLUMN:multilabel` for several, with `|` between them.

    Raises:
        TableError: No such column, or fewer than two classes.
        ValueError: No such kind.
    """
    column, kind = split_target(target)
    return TASKS[kind].of(table, column)


def split_target(target: str) -> tuple[str, str]:
    """Column and kind of a target.

    Raises:
        ValueError: No such kind.

    Example:
        >>> split_target("label"), split_target("tags:multilabel")
        (('label', 'classification'), ('tags', 'multilabel'))
    """
    column, _, kind = target.partition(":")
    if kind and kind not in TASKS:
        raise ValueError(f"target {target!r}: unknown kind {kind!r}; known: {', '.join(TASKS)}")
    return column, kind or Classification.kind


def task_from_dict(data: dict[str, Any]) -> Task:
    """Reads what `Task.to_dict` gave."""
    kind = data.get("kind")
    if kind not in TASKS:
        raise ValueError(f"unknown task kind {kind!r}; known: {', '.join(TASKS)}")
    return TASKS[kind](tuple(data["class_names"]), data["target"])
