"""Results: one schema everywhere, written as JSON, CSV, Markdown and a picture; and the paired difference of two rows.

`results.json` is `{"rows": [{"name", "metrics": {metric: {"mean", "std", "values"}}, "cost": {...}}]}`, a run's file a
table of one row. Accuracies are fractions in 0..1. `values` holds one number a seed; `std` is the sample standard
deviation (divisor n - 1) and null for a single value: one run says nothing about spread. A value that is not a finite
number is null, and so is a mean over it. Costs that nobody measured are null.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stillmotion.files import csv_text, write_atomic

COSTS = ("params", "gmacs", "ms_per_video", "frames")
COST_HEADS = {"params": "params", "gmacs": "GMACs", "ms_per_video": "ms / video", "frames": "frames"}
ACCURACIES = ("top1", "top3", "top5", "mean_class", "agreement", "accuracy", "auc", "mAP", "correct", "all_correct")


class Metric(TypedDict):
    """One metric of a row: mean and spread over seeds."""

    mean: float | None
    std: float | None
    values: list[float | None]


class Row(TypedDict):
    """One line of a table of results."""

    name: str
    metrics: dict[str, Metric]
    cost: dict[str, float | None]


def make_row(
    name: str, metrics: Mapping[str, Sequence[float | None]], cost: Mapping[str, float | None] | None = None
) -> Row:
    """A row of results from the values of every seed.

    Args:
        name: Of the row.
        metrics: Values by metric, one a seed; accuracies as fractions.
        cost: Any of `params`, `gmacs`, `ms_per_video`, `frames` (read from a video); the others become null.

    Raises:
        ValueError: An unknown cost, or a metric without a value.

    Example:
        >>> make_row("plain", {"top1": [0.5, 0.75]}, {"frames": 1})["metrics"]["top1"]["mean"]
        0.625
    """
    cost = cost or {}
    if unknown := sorted(set(cost) - set(COSTS)):
        raise ValueError(f"row {name!r}: unknown cost {unknown[0]!r}; known: {', '.join(COSTS)}")
    return {
        "name": name,
        "metrics": {key: _metric(values, f"row {name!r}: {key}") for key, values in metrics.items()},
        "cost": {key: _finite(cost.get(key)) for key in COSTS},
    }


def _metric(values: Sequence[float | None], where: str) -> Metric:
    if not values:
        raise ValueError(f"{where}: no value; give one a seed")
    kept = [_finite(v) for v in values]
    known = [v for v in kept if v is not None]
    if len(known) < len(kept):
        return {"mean": None, "std": None, "values": kept}
    return {"mean": fmean(known), "std": stdev(known) if len(known) > 1 else None, "values": kept}


def _finite(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return int(value) if isinstance(value, int | np.integer) else float(value)


def write_results(
    folder: str | Path, rows: Iterable[Row], *, extra: Mapping[str, Any] | None = None, sections: Sequence[str] = ()
) -> Path:
    """Writes `results.json`, `results.csv`, `results.md` and `results.png` (accuracy over cost) into a folder.

    Args:
        folder: Made if missing. Every file appears whole or not at all.
        rows: As `make_row` gives them.
        extra: Further top-level keys of `results.json`.
        sections: Markdown paragraphs below the table of `results.md`.

    Returns:
        The path of `results.json`.
    """
    from stillmotion.report.plots import plot_cost

    folder, rows = Path(folder), list(rows)
    folder.mkdir(parents=True, exist_ok=True)
    taken = {"rows"} & set(extra or {})
    assert not taken, "rows are given as rows"
    write_atomic(folder / "results.csv", _csv_text(rows))
    write_atomic(folder / "results.md", "\n\n".join([markdown_table(rows), *sections]) + "\n")
    plot_cost(rows, folder / "results.png")
    text = json.dumps({"rows": rows, **(extra or {})}, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(folder / "results.json", text + "\n")
    return folder / "results.json"


def read_results(path: str | Path) -> list[Row]:
    """Reads the rows of a `results.json`, or of a folder that holds one, and checks them.

    Raises:
        ValueError: In one line: the file, and what does not fit the schema.
    """
    path = Path(path)
    path = path / "results.json" if path.is_dir() else path
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; give a folder that holds results.json") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error}); write it again") from None
    if not isinstance(data, dict) or not isinstance(data.get("rows"), list):
        raise ValueError(f'{path}: no results; expected {{"rows": [...]}}')
    return [_checked(row, f"{path} row {number}") for number, row in enumerate(data["rows"], 1)]


def _checked(row: Any, where: str) -> Row:
    if not isinstance(row, dict) or not isinstance(row.get("name"), str) or not isinstance(row.get("metrics"), dict):
        raise ValueError(f"{where}: expected an object with name, metrics and cost")
    for key, metric in row["metrics"].items():
        values = metric.get("values") if isinstance(metric, dict) else None
        if not isinstance(values, list) or not all(_is_number(v) for v in [metric.get("mean"), *values]):
            raise ValueError(f"{where} ({row['name']}): metric {key!r} is not mean, std and values")
    cost = row.get("cost", {})
    if not isinstance(cost, dict) or not all(_is_number(v) for v in cost.values()):
        raise ValueError(f"{where} ({row['name']}): cost is not an object of numbers")
    return make_row(row["name"], {k: m["values"] for k, m in row["metrics"].items()}, cost)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def all_metrics(rows: Sequence[Row]) -> list[str]:
    """Names of the metrics of all rows, in the order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row["metrics"]))


def is_accuracy(metric: str) -> bool:
    """Whether a metric is shown in percent: a share of samples, or a measure that papers print so."""
    return metric.startswith(ACCURACIES)


def head_of(metric: str) -> str:
    """Name of a metric with its unit."""
    return f"{metric} (%)" if is_accuracy(metric) else metric


def format_metric(name: str, metric: Metric | None) -> str:
    """A metric as people read it: accuracies in percent with one decimal, others with three, spread if known.

    Example:
        >>> format_metric("top1", {"mean": 0.625, "std": 0.1, "values": [0.55, 0.7]})
        '62.5 ± 10.0'
    """
    if metric is None or metric["mean"] is None:
        return "–"
    scale, digits = (100, 1) if is_accuracy(name) else (1, 3)
    text = f"{scale * metric['mean']:.{digits}f}"
    return text if metric["std"] is None else f"{text} ± {scale * metric['std']:.{digits}f}"


def format_cost(name: str, value: float | None) -> str:
    """A cost as people read it.

    Example:
        >>> format_cost("params", 2_200_000), format_cost("gmacs", 0.3), format_cost("frames", 1)
        ('2.20 M', '0.300', '1')
    """
    if value is None:
        return "–"
    if name == "params":
        return f"{value / 1e6:.2f} M" if value >= 1e5 else f"{value:.0f}"
    if name == "frames":
        return f"{value:.0f}" if value == int(value) else f"{value:.1f}"
    return f"{value:.3f}" if 0 < value < 1 else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def markdown_table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table; metrics and costs that no row has are left out."""
    names = all_metrics(rows)
    costs = [c for c in COSTS if any(row["cost"].get(c) is not None for row in rows)]
    heads = ["row", *map(head_of, names), *(COST_HEADS[c] for c in costs)]
    lines = ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
    for row in rows:
        cells = [row["name"].replace("|", "\\|"), *(format_metric(n, row["metrics"].get(n)) for n in names)]
        cells += [format_cost(c, row["cost"].get(c)) for c in costs]
        lines.append("| " + " | ".join(cells) + " |")
    numbers = sorted({len(m["values"]) for row in rows for m in row["metrics"].values()})
    if several := [str(n) for n in numbers if n > 1]:
        single = "; numbers without ± are single values" if numbers[0] == 1 else ""
        lines += ["", f"Mean ± standard deviation over {' or '.join(several)} seeds{single}."]
    return "\n".join(lines)


def _csv_text(rows: Sequence[Row]) -> str:
    names = all_metrics(rows)
    head = ["name", *(f"{n}_{part}" for n in names for part in ("mean", "std")), *COSTS]
    lines = []
    for row in rows:
        cells: list[Any] = [row["name"]]
        for name in names:
            metric = row["metrics"].get(name)
            cells += [metric["mean"], metric["std"]] if metric else [None, None]
        lines.append(cells + [row["cost"].get(c) for c in COSTS])
    return csv_text(head, lines)


@dataclass(frozen=True)
class Difference:
    """Accuracy of one row minus that of another on the same test samples.

    Args:
        mean: Of the difference, as a fraction.
        low, high: 95 % interval; None with fewer than two groups, which say nothing about spread.
        num_groups: Groups that were resampled.
        num_seeds: Seeds averaged in the first and in the second row.
        share: Whether it is of shares, which people read in percent.
    """

    mean: float
    low: float | None
    high: float | None
    num_groups: int
    num_seeds: tuple[int, int]
    share: bool = True

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        data = {**asdict(self), "num_seeds": list(self.num_seeds), "excludes_zero": self.excludes_zero}
        return {name: value for name, value in data.items() if name != "share"}

    def __str__(self) -> str:
        mean, low, high = (None if v is None else self._shown(v) for v in (self.mean, self.low, self.high))
        unit = " points" if self.share else ""
        if low is None:
            return f"{mean}{unit} (no interval: {self.num_groups} test group)"
        a, b = self.num_seeds
        seeds = f"{a} seed{'s averaged' if a > 1 else ''}" if a == b else f"{a} and {b} seeds averaged"
        interval = f"[{low}, {high}]"
        groups = f"95 % paired bootstrap over {self.num_groups} test groups"
        return f"{mean}{unit} {interval} {groups}, {seeds}"

    def _shown(self, value: float) -> str:
        return f"{100 * value:+.1f}" if self.share else f"{value:+.3f}"


def paired_bootstrap(
    correct_a: ArrayLike,
    correct_b: ArrayLike,
    groups: Sequence[str | None],
    *,
    share: bool = True,
    num: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Difference of two accuracies (or other means) on the same samples, with a 95 % percentile interval.

    Seeds are averaged first, so the interval is about test samples, not about seeds. Then whole groups are drawn with
    replacement, as samples of one group (a scene, a person) are not independent.

    Args:
        correct_a, correct_b: (seeds, samples), 1 where the row was right. The rows may differ in seeds.
        groups: Group of each sample; None: a group of its own.
        share: Whether they are shares of samples, not some other mean.
        num: Resamples.
        seed: Of the resampling.

    Raises:
        ValueError: Different numbers of samples, or none.

    Example:
        >>> d = paired_bootstrap([[1, 1, 0, 1]], [[0, 1, 0, 0]], ["x", "x", "y", "y"])
        >>> d.mean, d.low, d.high, d.num_groups
        (0.5, 0.5, 0.5, 2)
    """
    a, b = np.atleast_2d(np.asarray(correct_a, float)), np.atleast_2d(np.asarray(correct_b, float))
    if not a.shape[1] == b.shape[1] == len(groups) or not len(groups):
        raise ValueError(f"{a.shape[1]} and {b.shape[1]} samples in {len(groups)} groups: pair the same samples")
    sums, sizes = _group_sums(a.mean(0) - b.mean(0), groups)
    mean, seeds = float(sums.sum() / sizes.sum()), (len(a), len(b))
    if len(sums) < 2:
        return Difference(mean, None, None, len(sums), seeds, share)
    rng = np.random.default_rng(seed)
    means = np.empty(num)
    for start in range(0, num, 500):  # in parts: thousands of groups would not fit into memory at once
        picks = rng.integers(len(sums), size=(min(500, num - start), len(sums)))
        means[start : start + len(picks)] = sums[picks].sum(1) / sizes[picks].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Difference(mean, float(low), float(high), len(sums), seeds, share)


def paired_spearman(
    guesses_a: ArrayLike,
    guesses_b: ArrayLike,
    scores: ArrayLike,
    groups: Sequence[str | None],
    *,
    num: int = 2000,
    seed: int = 0,
) -> Difference | None:
    """Difference of two rank correlations on the same samples, as `paired_bootstrap` takes that of two accuracies.

    The correlations of the seeds are averaged, in every resample of the groups anew.

    Args:
        guesses_a, guesses_b: (seeds, samples). The rows may differ in seeds.
        scores: True ones, (samples,).
        groups: Group of each sample; None: a group of its own.
        num: Resamples; those in which a row has no correlation do not count.
        seed: Of the resampling.

    Returns:
        None if a row has no correlation, as all its guesses are equal.
    """
    from scipy.stats import rankdata

    a, b, true = np.atleast_2d(guesses_a), np.atleast_2d(guesses_b), np.asarray(scores, float)
    rows = np.concatenate([a, b, true[None]]).astype(float)

    def difference(picked: NDArray[np.int64]) -> float:
        ranks = rankdata(rows[:, picked], axis=1) - (len(picked) + 1) / 2
        spread = np.sqrt((ranks**2).sum(1))
        if not spread.all():
            return math.nan
        found = (ranks[:-1] @ ranks[-1]) / (spread[:-1] * spread[-1])
        return float(found[: len(a)].mean() - found[len(a) :].mean())

    mean, seeds = difference(np.arange(len(true))), (len(a), len(b))
    if math.isnan(mean):
        return None
    dense = _group_numbers(groups)
    members = [np.flatnonzero(dense == g) for g in range(dense.max() + 1)]
    if len(members) < 2:
        return Difference(mean, None, None, len(members), seeds, share=False)
    rng = np.random.default_rng(seed)
    picks = rng.integers(len(members), size=(num, len(members)))
    found = [difference(np.concatenate([members[g] for g in row])) for row in picks]
    low, high = np.nanquantile(found, [0.025, 0.975])
    return Difference(mean, float(low), float(high), len(members), seeds, share=False)


def _group_numbers(groups: Sequence[str | None]) -> NDArray[np.int64]:
    keys = {group: i for i, group in enumerate(dict.fromkeys(g for g in groups if g is not None))}
    indices = [keys[g] if g is not None else len(keys) + i for i, g in enumerate(groups)]
    return np.asarray(np.unique(indices, return_inverse=True)[1], np.int64)


def _group_sums(
    values: NDArray[np.float64], groups: Sequence[str | None]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    dense = _group_numbers(groups)
    sums: NDArray[np.float64] = np.bincount(dense, values).astype(np.float64)
    return sums, np.bincount(dense).astype(np.float64)
