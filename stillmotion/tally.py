"""From the predictions of all trials to the tables of a comparison: pooled folds, spread, paired differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillmotion.data.table import Sample
from stillmotion.predictions import confusion
from stillmotion.results import Difference, Row, make_row, paired_bootstrap
from stillmotion.tasks import TASKS, Task

MAIN = "top1"
KINDS = tuple(dict.fromkeys(kind for task in TASKS.values() for kind in task.metric_kinds))

Logits = NDArray[np.float32]
ByView = dict[str, dict[str, Logits]]
"""Logits by sample, by view."""


def kind_of(name: str, kinds: Sequence[str] = KINDS) -> str:
    """Which metric a name such as `top1_first` means.

    Args:
        name: Of the metric.
        kinds: Those that the task gives.

    Raises:
        ValueError: It begins with none of them.

    Example:
        >>> kind_of("top1_first")
        'top1'
    """
    for kind in kinds:
        if name == kind or name.startswith(f"{kind}_"):
            return kind
    raise ValueError(f"metric {name!r}: its name must begin with {', '.join(kinds)}, such as top1_first")


@dataclass
class Entry:
    """What is known of one row: predictions by seed, over all folds.

    Args:
        label: Name of the row.
        views: Names of the views that it was evaluated under.
        seeds: Logits by view and sample, by seed.
        further: Further metrics by seed (mean over folds).
        cost: As in `results.json`.
    """

    label: str
    views: tuple[str, ...]
    seeds: dict[int, ByView] = field(default_factory=dict)
    further: dict[int, dict[str, float]] = field(default_factory=dict)
    cost: dict[str, float | None] = field(default_factory=dict)


class Tally:
    """Metrics of all rows on the same samples.

    A sample counts if it has a label and every row, seed and view could read it.

    Args:
        entries: The rows, with at least one seed each.
        samples: Test samples of all folds.
        task: Their classes.
        subsets: Column values that choose samples, by name of a metric.

    Attributes:
        unreadable: Test samples that some row could not read.
        samples: Those that count.
    """

    def __init__(
        self, entries: Sequence[Entry], samples: Sequence[Sample], task: Task, subsets: Mapping[str, Mapping[str, str]]
    ) -> None:
        labelled = [s for s in samples if task.has_label(s)]
        found = [ids for e in entries for views in e.seeds.values() for ids in views.values()]
        self.samples = [s for s in labelled if all(s.id in ids for ids in found)]
        self.unreadable = sorted({s.id for s in labelled} - {s.id for s in self.samples})
        self.entries, self.task = {e.label: e for e in entries}, task
        self.targets = task.encode_all(self.samples)
        self.groups = [s.group for s in self.samples]
        self.masks = {name: _mask(self.samples, wanted) for name, wanted in subsets.items()}

    def logits(self, label: str, view: str = MAIN) -> Logits:
        """Logits of a row, (seeds, samples, K); seeds in their order."""
        seeds = self.entries[label].seeds
        return np.stack([[seeds[k][view][s.id] for s in self.samples] for k in sorted(seeds)])

    def correct(self, label: str, metric: str) -> NDArray[np.bool_]:
        """Where a row was right under a `top1` metric: (seeds, samples of that metric)."""
        view, mask = (MAIN, self.masks[metric]) if metric in self.masks else (metric, slice(None))
        right: NDArray[np.bool_] = np.stack([self.task.right(x, self.targets) for x in self.logits(label, view)])
        return right[:, mask]

    def rows(self) -> list[Row]:
        """All rows as `results.json` has them."""
        return [make_row(e.label, self._metrics(e), e.cost) for e in self.entries.values()]

    def _metrics(self, entry: Entry) -> dict[str, list[float | None]]:
        metrics: dict[str, list[float | None]] = {}
        for seed_logits in self.logits(entry.label):
            for name, value in self.task.metrics(seed_logits, self.targets).items():
                metrics.setdefault(name, []).append(value)
            for name, mask in self.masks.items():
                inside = self.task.metrics(seed_logits[mask], self.targets[mask])
                metrics.setdefault(name, []).append(inside.get(kind_of(name)))
        for view in entry.views:
            if view != MAIN:
                every = self.logits(entry.label, view)
                metrics[view] = [self.task.metrics(x, self.targets).get(kind_of(view)) for x in every]
        for name in dict.fromkeys(n for values in entry.further.values() for n in values):
            metrics[name] = [entry.further[seed].get(name) for seed in sorted(entry.seeds)]
        return metrics

    def differences(self, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        """Paired differences of every `top1` metric that both rows of a pair have.

        Args:
            pairs: Row and reference.

        Returns:
            `row`, `reference`, `metric` and what `Difference.to_dict` gives, `text` for people.
        """
        result = []
        for row, reference in pairs:
            shared = [v for v in self.entries[row].views if v in self.entries[reference].views]
            for metric in [*shared, *self.masks]:
                if kind_of(metric) == MAIN:
                    difference = self._difference(row, reference, metric)
                    result.append({"row": row, "reference": reference, "metric": metric,
                                   **difference.to_dict(), "text": str(difference)})  # fmt: skip
        return result

    def _difference(self, row: str, reference: str, metric: str) -> Difference:
        mask = self.masks.get(metric, np.arange(len(self.samples)))
        groups = [self.groups[i] for i in mask]
        return paired_bootstrap(self.correct(row, metric), self.correct(reference, metric), groups)

    def per_class(self) -> dict[str, dict[str, float]]:
        """Accuracy by class (mean over seeds), by row; of samples with several classes, those that have this one."""
        marks = self.task.marks(self.targets)
        has = [(name, column) for name, column in zip(self.task.class_names, marks.T, strict=True) if column.any()]
        result = {}
        for label in self.entries:
            right = self.correct(label, MAIN).mean(0)
            result[label] = {name: float(right[column].mean()) for name, column in has}
        return result

    def confusion(self, label: str) -> NDArray[np.int64]:
        """Confusion matrix of a row, summed over seeds."""
        num = self.task.num_outputs
        return sum(
            (confusion(x.argmax(1), self.targets, num) for x in self.logits(label)), np.zeros((num, num), np.int64)
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All predictions, for `predictions.npz`: `<row>/<view>` (seeds, samples, K), `<row>/seeds`."""
        arrays: dict[str, NDArray[Any]] = {
            "ids": np.array([s.id for s in self.samples]),
            "groups": np.array([g or "" for g in self.groups]),
            "targets": self.targets,
            "classes": np.array(self.task.class_names),
        }
        for label, entry in self.entries.items():
            arrays[f"{label}/seeds"] = np.array(sorted(entry.seeds))
            arrays |= {f"{label}/{view}": self.logits(label, view) for view in entry.views}
        return arrays


def _mask(samples: Sequence[Sample], wanted: Mapping[str, str]) -> NDArray[np.int64]:
    rows = [i for i, s in enumerate(samples) if all(s.targets.get(c) == v for c, v in wanted.items())]
    return np.array(rows, np.int64)


def load_views(paths: Mapping[str, Path]) -> ByView:
    """Logits by sample of one trial, by view, from what `predict_fold` wrote."""
    result: ByView = {}
    for view, path in paths.items():
        with np.load(path) as data:
            result[view] = dict(zip(data["ids"].tolist(), data["logits"], strict=True))
    return result
