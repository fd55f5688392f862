"""What every task is asked: one class, several labels, a score, or several of these at once."""

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from stillmotion.data.table import Sample, Table
from stillmotion.protocols.pooling import Pooling

if TYPE_CHECKING:
    from torch import Tensor

UNLABELLED = -1
"""In the place of a class; a score that is missing is not a number."""
ANY = "any"
"""Stratum of samples whose values are no classes."""
Targets = NDArray[Any]
"""Of S samples, (S,) or (S, ...), as the task's `encode` gives them."""
Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Answer:
    """What a network says of one column of the table.

    Args:
        target: The column.
        text: As a person would write it.
        labels: Classes with probabilities, most probable first; none of a score.
        score: The number, of a score.
    """

    target: str
    text: str
    labels: tuple[tuple[str, float], ...] = ()
    score: float | None = None

    @property
    def probability(self) -> float | None:
        """Of the first class; None for a score."""
        return self.labels[0][1] if self.labels else None


class Task(ABC):
    """What a network is to tell of a sample. Callers ask the task, and need not know its kind.

    Attributes:
        kind: As `to_dict` names it, and after the colon of a target.
        exclusive: Whether probabilities are those of one class out of several; otherwise each class has its own.
        metric_kinds: What `metrics` may give; the first is the main one, and of it more is better.
        target: Column of the table; of several, for people.
        class_names: In the order of the logits, where these are of one set of classes; otherwise empty.
        output_names: What each logit tells. Networks whose names differ have classifiers that do not fit each other.
        target_shape, target_dtype: Of an encoded target.
    """

    kind: ClassVar[str]
    exclusive: ClassVar[bool] = True
    metric_kinds: tuple[str, ...]
    target: str
    class_names: tuple[str, ...]
    output_names: tuple[str, ...]
    target_shape: tuple[int, ...] = ()
    target_dtype: ClassVar[type] = np.int64

    @property
    def num_outputs(self) -> int:
        """Width of the logits."""
        return len(self.output_names)

    @property
    def parts(self) -> "tuple[tuple[slice, Task], ...]":
        """Tasks of one column each, with their place among the logits."""
        return ((slice(0, self.num_outputs), self),)

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the parts in the loss."""
        return (1.0,)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the table that it reads."""
        return tuple(part.target for _, part in self.parts)

    def part_targets(self, targets: Targets, number: int) -> Targets:
        """Encoded targets of one of the `parts`."""
        return targets

    # Samples

    @abstractmethod
    def encode(self, sample: Sample) -> Any:
        """Target of a sample, a number or an array of the same shape for all.

        Raises:
            TableError: The value is none that the task knows.
        """

    @abstractmethod
    def has_label(self, sample: Sample) -> bool:
        """Whether the table says anything of a sample."""

    @abstractmethod
    def check(self, table: Table) -> None:
        """Refuses values that the task does not know; samples without one pass.

        Raises:
            TableError: Naming file, lines and value.
        """

    def stratum(self, sample: Sample) -> str | None:
        """The class to be drawn from in proportion; `ANY` where values are no classes, None without a label."""
        return ANY if self.has_label(sample) else None

    def strata(self, sample: Sample) -> list[str]:
        """All classes to be held out in proportion."""
        return [name for name in [self.stratum(sample)] if name is not None]

    def encode_all(self, samples: Iterable[Sample]) -> Targets:
        """Targets of samples, (S, ...)."""
        rows = [self.encode(s) for s in samples]
        return np.array(rows, self.target_dtype).reshape(len(rows), *self.target_shape)

    @abstractmethod
    def labelled(self, targets: Any) -> Any:
        """Which samples have a label, (S,) bool; takes and gives arrays or tensors."""

    @abstractmethod
    def classes_of(self, targets: Targets) -> NDArray[np.int64]:
        """A number for the class, or the combination of classes, of every sample, (S,); `UNLABELLED` without one."""

    @abstractmethod
    def text(self, target: Any) -> str:
        """A target as the table has it; empty without a label."""

    # Outputs

    @abstractmethod
    def scores(self, logits: Any) -> Any:
        """Probabilities of classes, guesses of scores, in the place of the logits, (..., K); arrays or tensors."""

    def calibrated(self, logits: Logits) -> Logits:
        """Logits (..., K) whose probabilities are those that are told in use; see `Classes.temperature`."""
        return logits

    @abstractmethod
    def pool(self, logits: Logits, pooling: Pooling, weights: NDArray[np.floating] | None = None) -> Logits:
        """One row of logits from those of several moments or networks.

        Args:
            logits: (S, N, K).
            pooling: See `pool_clips`. Guesses of scores are averaged either way.
            weights: (N,) that add up to 1; None: all alike.
        """

    @abstractmethod
    def answers(self, logits: Logits, *, top: int = 5) -> tuple[Answer, ...]:
        """What a row of logits (K,) says of every column."""

    def choices(self, logits: Logits) -> NDArray[np.int64]:
        """First guess of every set of classes, (S, number of such parts)."""
        return np.empty((len(logits), 0), np.int64)

    def describe(self, logits: Logits) -> str:
        """A row of logits (K,) in the words of the table."""
        return ", ".join(answer.text for answer in self.answers(logits, top=1))

    def unscaled(self) -> "Task":
        """The same task with logits as `in_units` gives them."""
        return self

    def in_units(self, logits: Logits) -> Logits:
        """Logits (S, K) that do not depend on how training scaled its scores, so that networks can be compared."""
        return logits

    def same_as(self, other: "Task") -> bool:
        """Whether another task tells the same, column by column, however columns are called and scores are scaled."""
        mine, theirs = ([(p.kind == "score", p.class_names) for _, p in t.parts] for t in (self, other))
        return mine == theirs

    # Learning and measuring

    @abstractmethod
    def loss(self, logits: "Tensor", targets: "Tensor") -> "Tensor":
        """Mean over the labelled samples of a batch; 0 (with gradient 0) if there is none.

        Args:
            logits: (B, num_outputs).
            targets: (B, ...), as `encode` gives them.
        """

    @abstractmethod
    def points(self, logits: Any, targets: Any) -> dict[str, tuple[Any, Any]]:
        """What each sample adds to a metric that is a mean over samples.

        Args:
            logits: (S, K), array or tensor.
            targets: (S, ...), likewise.

        Returns:
            By metric the values (S,) and which of them count (S,).
        """

    @abstractmethod
    def metrics(self, logits: Logits, targets: Targets) -> dict[str, float]:
        """Metrics of the labelled samples, the main one first; shares as fractions; empty without any sample."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data; `task_from_dict` reads it back."""


def mean_points(points: dict[str, tuple[Any, Any]]) -> dict[str, float]:
    """Mean of `Task.points` over the samples that count; metrics without any are left out."""
    found = {name: np.asarray(values, np.float64)[known] for name, (values, known) in points.items()}
    return {name: float(values.mean()) for name, values in found.items() if len(values)}


def comparable(value: float) -> float:
    """A main metric as selection compares it: what is no number (as Spearman of equal guesses) is the worst of all."""
    return value if math.isfinite(value) else -sys.float_info.max


def as_int(values: Any) -> Any:
    """Numbers as int64, array or tensor."""
    return values.astype(np.int64) if isinstance(values, np.ndarray) else values.long()


def as_float(values: Any) -> Any:
    """Numbers as float32, array or tensor."""
    return values.astype(np.float32) if isinstance(values, np.ndarray) else values.float()
