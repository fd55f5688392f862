"""Several columns at once: each task reads a part of one row of logits."""

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stillmotion.data.table import Sample, Table
from stillmotion.protocols.pooling import Pooling
from stillmotion.tasks.base import UNLABELLED, Answer, Logits, Targets, Task, as_float, as_int, mean_points

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Joint(Task):
    """Several tasks of one network: the sum of their losses, each over the samples with a value in its column.

    Metrics: `joint`, the mean of the parts' main metrics (a Spearman that is not a number counts as 0); where there
    are classes, `correct`, the mean share of a sample's columns that are right, and `all_correct`, the share of samples
    of which all are right, both of the columns with a value; then those of each part as `METRIC.COLUMN`.

    Args:
        tasks: In the order of their logits, each of one column.
        loss_weights: Of their losses.
    """

    tasks: tuple[Task, ...]
    loss_weights: tuple[float, ...]

    kind = "joint"
    class_names = ()
    target_dtype = np.float32  # holds every number of a class that there is

    @property
    def target(self) -> str:  # type: ignore[override]
        return ", ".join(self.columns)

    @property
    def metric_kinds(self) -> tuple[str, ...]:  # type: ignore[override]
        return joint_metrics([(task.target, task.metric_kinds) for task in self.tasks])

    @property
    def output_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(n if t.kind == "score" else f"{t.target}={n}" for t in self.tasks for n in t.output_names)

    @cached_property
    def parts(self) -> tuple[tuple[slice, Task], ...]:
        ends = [0, *accumulate(task.num_outputs for task in self.tasks)]
        return tuple((slice(a, b), task) for (a, b), task in zip(pairwise(ends), self.tasks, strict=True))

    @property
    def weights(self) -> tuple[float, ...]:
        return self.loss_weights

    @property
    def target_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (self._places[-1].stop,)

    @cached_property
    def _places(self) -> tuple[slice, ...]:
        """Where the target of each part stands in a row of targets."""
        ends = [0, *accumulate(int(np.prod(task.target_shape)) for task in self.tasks)]
        return tuple(slice(a, b) for a, b in pairwise(ends))

    def part_targets(self, targets: Targets, number: int) -> Targets:
        part: Targets = self._each(None, targets)[number][2]
        return part

    def _each(self, logits: Any, targets: Any) -> list[tuple[Task, Any, Any]]:
        """The parts with their logits (..., K') and targets (S, ...), arrays or tensors."""
        own = [targets[:, place] if targets.ndim > 1 else targets for place in self._places]
        found = []
        for (place, task), column in zip(self.parts, own, strict=True):
            column = column if task.target_shape or column.ndim < 2 else column[:, 0]
            column = as_int(column) if task.target_dtype is np.int64 else as_float(column)
            found.append((task, None if logits is None else logits[..., place], column))
        return found

    # Samples

    def encode(self, sample: Sample) -> NDArray[np.float32]:
        """All targets in a row."""
        return np.concatenate([np.ravel(task.encode(sample)).astype(np.float32) for task in self.tasks])

    def has_label(self, sample: Sample) -> bool:
        return any(task.has_label(sample) for task in self.tasks)

    def check(self, table: Table) -> None:
        for task in self.tasks:
            task.check(table)

    def strata(self, sample: Sample) -> list[str]:
        return [f"{task.target}={name}" for task in self.tasks for name in task.strata(sample)]

    def labelled(self, targets: Any) -> Any:
        """Samples with a value in any column."""
        known = [task.labelled(column) for task, _, column in self._each(None, targets)]
        result = known[0]
        for part in known[1:]:
            result = result | part
        return result

    def classes_of(self, targets: Targets) -> NDArray[np.int64]:
        """Combinations of classes; of samples that have all of them."""
        if not len(targets):
            return np.empty(0, np.int64)
        each = [t.classes_of(c) for t, _, c in self._each(None, targets) if t.kind != "score"]
        if not each:
            return np.full(len(targets), UNLABELLED, np.int64)
        joined = np.stack(each, 1)
        _, numbers = np.unique(joined, axis=0, return_inverse=True)
        return np.where((joined != UNLABELLED).all(1), numbers.ravel(), UNLABELLED)

    def text(self, target: Any) -> str:
        """As `describe` writes it; `-` in the place of what is missing."""
        texts = [task.text(column[0]) for task, _, column in self._each(None, np.asarray(target)[None])]
        return ", ".join(text or "-" for text in texts) if any(texts) else ""

    # Outputs

    def scores(self, logits: Any) -> Any:
        each = [task.scores(logits[..., place]) for place, task in self.parts]
        if isinstance(logits, np.ndarray):
            return np.concatenate(each, -1)
        import torch

        return torch.cat(each, -1)

    def calibrated(self, logits: Logits) -> Logits:
        return np.concatenate([task.calibrated(logits[..., place]) for place, task in self.parts], -1)

    def pool(self, logits: Logits, pooling: Pooling, weights: NDArray[np.floating] | None = None) -> Logits:
        return np.concatenate([task.pool(logits[..., place], pooling, weights) for place, task in self.parts], -1)

    def answers(self, logits: Logits, *, top: int = 5) -> tuple[Answer, ...]:
        return tuple(answer for place, task in self.parts for answer in task.answers(logits[place], top=top))

    def choices(self, logits: Logits) -> NDArray[np.int64]:
        return np.concatenate([task.choices(logits[:, place]) for place, task in self.parts], 1)

    def unscaled(self) -> "Joint":
        return Joint(tuple(task.unscaled() for task in self.tasks), self.loss_weights)

    def in_units(self, logits: Logits) -> Logits:
        return np.concatenate([task.in_units(logits[:, place]) for place, task in self.parts], 1)

    # Learning and measuring

    def loss(self, logits: "Tensor", targets: "Tensor") -> "Tensor":
        each = [task.loss(x, y) for task, x, y in self._each(logits, targets)]
        total = each[0] * self.loss_weights[0]
        for weight, part in zip(self.loss_weights[1:], each[1:], strict=True):
            total = total + weight * part
        return total

    def points(self, logits: Any, targets: Any) -> dict[str, tuple[Any, Any]]:
        named: dict[str, tuple[Any, Any]] = {}
        right: Any = 0
        number: Any = 0
        for task, x, y in self._each(logits, targets):
            found = task.points(x, y)
            named |= {f"{name}.{task.target}": pair for name, pair in found.items()}
            if "top1" in found:
                values, known = found["top1"]
                right, number = right + values * known, number + as_float(known)
        if isinstance(number, int):
            return named
        known = number > 0
        share = right / number.clip(min=1)
        return {"correct": (share, known), "all_correct": (as_float(share == 1), known), **named}

    def metrics(self, logits: Logits, targets: Targets) -> dict[str, float]:
        named: dict[str, float] = {}
        main: list[float] = []
        for task, x, y in self._each(logits, targets):
            found = task.metrics(x, y)
            kept = ("top1", "mAP", "spearman", "relative_l2", "mae", "mse")
            named |= {f"{name}.{task.target}": found[name] for name in kept if name in found}
            main += [v if np.isfinite(v) else 0.0 for v in list(found.values())[:1]]
        if not main:
            return {}
        shares = mean_points({k: v for k, v in self.points(logits, targets).items() if k in ("correct", "all_correct")})
        return {"joint": float(np.mean(main)), **shares, **named}

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "tasks": [task.to_dict() for task in self.tasks], "weights": list(self.loss_weights)}


def joint_metrics(parts: "list[tuple[str, tuple[str, ...]]]") -> tuple[str, ...]:
    """Metrics of a joint task.

    Args:
        parts: Column and metrics of each part.

    Example:
        >>> joint_metrics([("tuck", ("top1", "top5", "mean_class"))])
        ('joint', 'correct', 'all_correct', 'top1.tuck')
    """
    left_out = ("top5", "mean_class")  # a line of five attributes has enough to read
    named = tuple(f"{kind}.{column}" for column, kinds in parts for kind in kinds if kind not in left_out)
    shares = ("correct", "all_correct") if any("top1" in kinds for _, kinds in parts) else ()
    return ("joint", *shares, *named)
