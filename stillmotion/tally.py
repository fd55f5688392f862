"""From the predictions of all trials to the tables of a comparison: pooled folds, spread, paired differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillmotion.data.table import Sample
from stillmotion.predictions import confusion
from stillmotion.results import Difference, Row, make_row, paired_bootstrap, paired_spearman
from stillmotion.tasks import CLASSES, Classes, Classification, Score, Task

KINDS = tuple(dict.fromkeys(kind for task in CLASSES.values() for kind in task.metric_kinds))

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
    for kind in sorted(kinds, key=len, reverse=True):  # a column's name may begin with that of another
        if name == kind or name.startswith(f"{kind}_"):
            return kind
    raise ValueError(f"metric {name!r}: its name must begin with {', '.join(kinds)}, such as {kinds[0]}_first")


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
        task: What they are asked.
        subsets: Column values that choose samples, by name of a metric.

    Attributes:
        main: The task's main metric, which is also the name of the view of the training.
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
        self.main = task.metric_kinds[0]
        self.targets = task.encode_all(self.samples)
        self.groups = [s.group for s in self.samples]
        self.masks = {name: _mask(self.samples, wanted) for name, wanted in subsets.items()}

    def logits(self, label: str, view: str | None = None) -> Logits:
        """Logits of a row under a view (None: the training's), (seeds, samples, K); seeds in their order."""
        seeds = self.entries[label].seeds
        return np.stack([[seeds[k][view or self.main][s.id] for s in self.samples] for k in sorted(seeds)])

    def points(self, label: str, metric: str, view: str | None = None) -> NDArray[np.float64]:
        """What each sample adds to a metric, (seeds, samples); not a number where it does not count."""
        found = [self.task.points(x, self.targets)[metric] for x in self.logits(label, view)]
        return np.stack([np.where(known, values, np.nan) for values, known in found]).astype(np.float64)

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
                metrics.setdefault(name, []).append(inside.get(self._kind(name)))
        for view in entry.views:
            if view != self.main:
                every = self.logits(entry.label, view)
                metrics[view] = [self.task.metrics(x, self.targets).get(self._kind(view)) for x in every]
        for name in dict.fromkeys(n for values in entry.further.values() for n in values):
            metrics[name] = [entry.further[seed].get(name) for seed in sorted(entry.seeds)]
        return metrics

    def differences(self, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        """Paired differences of every metric that both rows of a pair have and that can be taken sample by sample.

        These are `top1`, the shares of right columns, the squared error of a score; and its rank correlation. Where a
        view or a subset is named after the main metric of several columns (`joint_first`), all of them are compared.

        Args:
            pairs: Row and reference.

        Returns:
            `row`, `reference`, `metric` and what `Difference.to_dict` gives, `text` for people.
        """
        result = []
        compared = self._compared()
        for row, reference in pairs:
            shared = [v for v in self.entries[row].views if v in self.entries[reference].views]
            for name in [*shared, *self.masks]:
                kind = self._kind(name)
                for metric in compared if kind == self.main else [k for k in compared if k == kind]:
                    difference = self._difference(row, reference, metric, name)
                    if difference is not None:
                        result.append({"row": row, "reference": reference, "metric": metric + name[len(kind) :],
                                       **difference.to_dict(), "text": str(difference)})  # fmt: skip
        return result

    def _kind(self, name: str) -> str:
        return kind_of(name, self.task.metric_kinds)

    def _named(self, metric: str, part: Task) -> str:
        """Name of a part's metric."""
        return f"{metric}.{part.target}" if len(self.task.parts) > 1 else metric

    def _compared(self) -> list[str]:
        names = [self._named("spearman", part) for _, part in self.task.parts if isinstance(part, Score)]
        points = self.task.points(self.logits(next(iter(self.entries)))[0], self.targets)
        return [*names, *(name for name in points if not name.startswith("mae"))]  # which says what the square says

    def _difference(self, row: str, reference: str, metric: str, name: str) -> Difference | None:
        """Of a metric under the view, or on the subset, of this name; None where it is no number."""
        view, mask = (None, self.masks[name]) if name in self.masks else (name, np.arange(len(self.samples)))
        for i, (place, part) in enumerate(self.task.parts):
            if isinstance(part, Score) and metric == self._named("spearman", part):
                true = self.task.part_targets(self.targets, i)
                mask = mask[part.labelled(true)[mask]]
                a, b = (part.guess(self.logits(r, view)[:, mask, place]) for r in (row, reference))
                return paired_spearman(a, b, true[mask], [self.groups[j] for j in mask]) if len(mask) else None
        values = [self.points(r, metric, view) for r in (row, reference)]
        mask = mask[~np.isnan(values[0][0][mask])]
        share = not metric.startswith("mse")
        groups = [self.groups[j] for j in mask]
        return paired_bootstrap(values[0][:, mask], values[1][:, mask], groups, share=share) if len(mask) else None

    def per_class(self) -> dict[str, dict[str, float]]:
        """Accuracy by class (mean over seeds), by row; of samples with several classes, those that have this one."""
        result: dict[str, dict[str, float]] = {label: {} for label in self.entries}
        for i, (_, part) in enumerate(self.task.parts):
            if not isinstance(part, Classes):
                continue
            marks = part.marks(self.task.part_targets(self.targets, i))
            before = f"{part.target}=" if len(self.task.parts) > 1 else ""
            for label in self.entries:
                right = self.points(label, self._named("top1", part)).mean(0)
                found = zip(part.class_names, marks.T, strict=True)
                result[label] |= {before + name: float(right[c].mean()) for name, c in found if c.any()}
        return result

    def confusion(self, label: str) -> dict[str, NDArray[np.int64]]:
        """Confusion matrix of a row for every column with one class a sample, summed over seeds."""
        result: dict[str, NDArray[np.int64]] = {}
        for i, (place, part) in enumerate(self.task.parts):
            if isinstance(part, Classification):
                num, true = part.num_outputs, self.task.part_targets(self.targets, i)
                every = self.logits(label)[..., place].argmax(-1)
                result[part.target] = sum((confusion(x, true, num) for x in every), np.zeros((num, num), np.int64))
        return result

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All predictions, for `predictions.npz`: `<row>/<view>` (seeds, samples, K), `<row>/seeds`."""
        arrays: dict[str, NDArray[Any]] = {
            "ids": np.array([s.id for s in self.samples]),
            "groups": np.array([g or "" for g in self.groups]),
            "targets": self.targets,
            "classes": np.array(self.task.output_names),
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
