"""Tasks: which target, which loss, which metrics, and how a prediction reads to a person.

A task is plain data that imports no torch until a loss is asked for, so that an exported student needs none.
Unlabelled samples carry the value `UNLABELLED`: they add nothing to the task loss and still carry a distillation loss.
"""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stillmotion.data.table import Sample, Table, TableError

if TYPE_CHECKING:
    from torch import Tensor

UNLABELLED = -1


@dataclass(frozen=True)
class Classification:
    """One class of several: cross-entropy; `top1`, `top5`.

    Args:
        class_names: In the order of the logits.
        target: Column of the table.
    """

    class_names: tuple[str, ...]
    target: str = "label"

    @classmethod
    def of(cls, table: Table, target: str = "label") -> "Classification":
        """The task of a table: its classes, sorted.

        Raises:
            TableError: Fewer than two classes.
        """
        names = tuple(table.classes(target))
        if len(names) < 2:
            raise TableError(
                f"{table.source}: column {target!r} has the one class {names[0]!r}; a classifier needs two"
            )
        return cls(names, target)

    @property
    def num_outputs(self) -> int:
        """Width of the logits."""
        return len(self.class_names)

    def encode(self, sample: Sample) -> int:
        """Class index of a sample, `UNLABELLED` without a label.

        Raises:
            TableError: The label is not among the classes.
        """
        value = sample.targets.get(self.target)
        if value is None:
            return UNLABELLED
        try:
            return self.class_names.index(value)
        except ValueError:
            known = ", ".join(self.class_names[:8]) + (", ..." if len(self.class_names) > 8 else "")
            raise TableError(
                f"line {sample.line} ({sample.name}): unknown {self.target} {value!r}; classes: {known}; correct the "
                "label, or leave it empty for an unlabelled sample"
            ) from None

    def loss(self, logits: "Tensor", targets: "Tensor") -> "Tensor":
        """Cross-entropy over the labelled samples of a batch; 0 (with gradient 0) if there is none.

        Args:
            logits: (B, num_classes).
            targets: (B,) class indices, `UNLABELLED` where there is no label.
        """
        import torch.nn.functional as F

        total = F.cross_entropy(logits.float(), targets, ignore_index=UNLABELLED, reduction="sum")
        return total / (targets != UNLABELLED).sum().clamp(min=1)

    def metrics(self, logits: NDArray[np.float32], targets: NDArray[np.int64]) -> dict[str, float]:
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

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data; `task_from_dict` reads it back."""
        return {"kind": "classification", **asdict(self), "class_names": list(self.class_names)}


Task = Classification


def task_from_dict(data: dict[str, Any]) -> Task:
    """Reads what `Task.to_dict` gave."""
    if data.get("kind") != "classification":
        raise ValueError(f"unknown task kind {data.get('kind')!r}; known: classification")
    return Classification(tuple(data["class_names"]), data["target"])
