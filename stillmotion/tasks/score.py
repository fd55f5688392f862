"""Scores: a number for a sample, such as the points of a dive."""

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from stillmotion.config import Criterion, ScoreConfig
from stillmotion.data.table import Sample, Table, TableError
from stillmotion.metrics import relative_l2, spearman
from stillmotion.protocols.pooling import Pooling, pool_clips, softmax
from stillmotion.tasks.base import UNLABELLED, Answer, Logits, Targets, Task, mean_points

if TYPE_CHECKING:
    from torch import Tensor

MISSING = np.float32("nan")


@dataclass(frozen=True)
class Score(Task):
    """A number; `spearman`, `relative_l2`, `mae`, `mse`.

    The network learns (score - offset) / scale by the criterion `mse` or `mse_l1` (METHODS 6.7). By `usdl` (Tang et
    al., CVPR 2020) it learns the distribution of the score over bins between `low` and `high`: a Gaussian about the
    true score, whose divergence from the softmax is the loss; the guess is the expectation (the paper takes the
    likeliest bin). A Gaussian that is cut off at the range's end pulls guesses there a little to its middle.

    Args:
        target: Column of the table.
        low, high: Lowest and highest score of the set, for R-l2 and for the bins.
        offset, scale: See above; of no meaning with bins.
        criterion: mse, mse_l1 or usdl.
        bins: Number of bins.
        sigma: Standard deviation of the Gaussian, in bins.
    """

    target: str
    low: float
    high: float
    offset: float = 0.0
    scale: float = 1.0
    criterion: Criterion = "mse"
    bins: int = 101
    sigma: float = 5.0

    kind = "score"
    class_names = ()
    metric_kinds = ("spearman", "relative_l2", "mae", "mse")
    target_dtype = np.float32

    @classmethod
    def of(cls, table: Table, target: str, config: ScoreConfig, whole: Table | None = None) -> Self:
        """The task of a table: offset and scale are mean and standard deviation of its scores.

        Args:
            table: Training samples.
            target: Column.
            config: What differs.
            whole: All samples, which give the range; None: the same.

        Raises:
            TableError: A score is no number, or all are the same.
        """
        values = [v for v in _numbers(table, target) if v is not None]
        if not values:
            table.classes(target)  # says which columns there are
        if min(values) == max(values):
            raise TableError(
                f"{table.source}: column {target!r} has the one score {values[0]:g} in all training samples; there is "
                "nothing to learn, leave it out of the targets"
            )
        all_values = [v for v in _numbers(whole or table, target) if v is not None]
        low = min(all_values) if config.low is None else config.low
        high = max(all_values) if config.high is None else config.high
        if not high > low:
            raise ValueError(f"column {target!r}: the range of scores {low:g} to {high:g} is empty; correct score.low "
                             "and score.high")  # fmt: skip
        return cls(
            target,
            low=low,
            high=high,
            offset=float(np.mean(values)) if config.offset is None else config.offset,
            scale=float(np.std(values)) if config.scale is None else config.scale,
            criterion=config.loss,
            bins=config.bins,
            sigma=config.sigma,
        )

    @property
    def binned(self) -> bool:
        """Whether the logits are those of bins."""
        return self.criterion == "usdl"

    @property
    def centres(self) -> NDArray[np.float32]:
        """Scores of the bins."""
        return np.linspace(self.low, self.high, self.bins, dtype=np.float32)

    @property
    def output_names(self) -> tuple[str, ...]:  # type: ignore[override]
        if self.binned:
            return tuple(f"{self.target}={centre:g}" for centre in self.centres)
        return (f"{self.target} in units of {self.scale:g} from {self.offset:g}",)

    # Samples

    def encode(self, sample: Sample) -> np.float32:
        value = _number(sample, self.target, "")
        return MISSING if value is None else np.float32(value)

    def has_label(self, sample: Sample) -> bool:
        return self.target in sample.targets

    def check(self, table: Table) -> None:
        _numbers(table, self.target)

    def labelled(self, targets: Any) -> Any:
        return targets == targets  # all but what is not a number

    def classes_of(self, targets: Targets) -> NDArray[np.int64]:
        return np.full(len(targets), UNLABELLED, np.int64)

    def text(self, target: Any) -> str:
        return "" if np.isnan(target) else f"{target:g}"

    # Outputs

    def guess(self, logits: Any) -> Any:
        """Scores (...) from logits (..., K), arrays or tensors."""
        if not self.binned:
            return logits[..., 0] * self.scale + self.offset
        if isinstance(logits, np.ndarray):
            return softmax(logits) @ self.centres
        return logits.float().softmax(-1) @ logits.new_tensor(self.centres.tolist()).float()

    def logits_of(self, values: NDArray[np.floating]) -> Logits:
        """Logits (S, K) that guess these scores (S,), cut off at the ends of the range if there are bins."""
        if not self.binned:
            return np.asarray((values[:, None] - self.offset) / self.scale, np.float32)
        places = (np.clip(values, self.low, self.high) - self.low) / (self.high - self.low) * (self.bins - 1)
        shares = np.maximum(1.0 - np.abs(places[:, None] - np.arange(self.bins)), 1e-30)
        return np.asarray(np.log(shares), np.float32)

    def scores(self, logits: Any) -> Any:
        """As they are; with bins their probabilities."""
        if not self.binned:
            return logits
        return softmax(logits) if isinstance(logits, np.ndarray) else logits.softmax(-1)

    def pool(self, logits: Logits, pooling: Pooling, weights: NDArray[np.floating] | None = None) -> Logits:
        return pool_clips(logits, pooling if self.binned else "logits", weights=weights)

    def answers(self, logits: Logits, *, top: int = 5) -> tuple[Answer, ...]:
        """A number with about as many digits as a thousandth of the range needs.

        Example:
            >>> Score("points", 0.0, 104.5, scale=17.0).answers(np.array([4.0211], np.float32))[0].text
            '68.4'
        """
        value = float(self.guess(logits))
        digits = max(0, 1 - math.floor(math.log10((self.high - self.low) / 100.0)))
        return (Answer(self.target, f"{value:.{digits}f}", score=value),)

    def unscaled(self) -> "Score":
        return self if self.binned else Score(self.target, self.low, self.high)

    def in_units(self, logits: Logits) -> Logits:
        return logits if self.binned else np.asarray(self.guess(logits)[:, None], np.float32)

    # Learning and measuring

    def loss(self, logits: "Tensor", targets: "Tensor") -> "Tensor":
        import torch
        import torch.nn.functional as F

        known = self.labelled(targets)
        true = torch.where(known, targets, self.offset).float()  # what is not a number spoils gradients, even times 0
        if self.binned:
            wanted = self.distribution(true)
            each = F.kl_div(logits.float().log_softmax(-1), wanted, reduction="none").sum(-1)
        else:
            error = logits.float()[..., 0] - (true - self.offset) / self.scale
            each = error.square() + (error.abs() if self.criterion == "mse_l1" else 0.0)
        total: Tensor = (each * known).sum() / known.sum().clamp(min=1)
        return total

    def distribution(self, scores: "Tensor") -> "Tensor":
        """Probabilities of the bins (B, bins): Gaussians about the scores (B,), normalised to 1."""
        import torch

        places = (scores.clamp(self.low, self.high) - self.low) / (self.high - self.low) * (self.bins - 1)
        away = torch.arange(self.bins, device=scores.device) - places[:, None]
        return (-0.5 * (away / self.sigma).square()).softmax(-1)

    def points(self, logits: Any, targets: Any) -> dict[str, tuple[Any, Any]]:
        error, known = self.guess(logits) - targets, self.labelled(targets)
        return {"mae": (abs(error), known), "mse": (error * error, known)}

    def metrics(self, logits: Logits, targets: Targets) -> dict[str, float]:
        """`spearman` (not a number where all guesses are equal), `relative_l2`, `mae`, `mse`, in units of the table.

        Example:
            >>> task = Score("points", low=0.0, high=20.0)
            >>> found = task.metrics(np.array([[1.0], [7.0], [5.0]], np.float32), np.array([2.0, 5.0, 9.0]))
            >>> {name: round(value, 4) for name, value in found.items()}
            {'spearman': 0.5, 'relative_l2': 1.75, 'mae': 2.3333, 'mse': 7.0}
        """
        known = self.labelled(targets)
        if not known.any():
            return {}
        guesses, true = self.guess(logits[known]), targets[known]
        return {
            "spearman": spearman(guesses, true),
            "relative_l2": relative_l2(guesses, true, score_range=(self.low, self.high)),
            **mean_points(self.points(logits, targets)),
        }

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, **asdict(self)}


def _numbers(table: Table, column: str) -> list[float | None]:
    return [_number(sample, column, f"{table.source} ") for sample in table]


def _number(sample: Sample, column: str, source: str) -> float | None:
    text = sample.targets.get(column)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or "_" in text:  # Python's 1_000
        raise TableError(
            f"{source}{sample.where}: {column} is {text!r}, no number; correct the score, or leave it empty for an "
            "unlabelled sample"
        )
    return value
