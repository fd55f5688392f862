"""`stillmotion evaluate --fuse`: the mean of what several networks say, weighted alike or by a held-out split."""

import itertools
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillmotion.data.table import Table, read_table
from stillmotion.evaluate import asked, evaluate, paper_metrics
from stillmotion.files import write_atomic
from stillmotion.predictions import Predictions, read_predictions, write_predictions
from stillmotion.report.page import report_safely
from stillmotion.report.subject import Limits
from stillmotion.results import Row, make_row, write_results
from stillmotion.tasks import Task, comparable

Array = NDArray[np.float32]
FILES = (".csv", ".json")
MOST = 5
"""Networks whose weights are chosen: all combinations are tried."""


def evaluate_fused(
    sources: Sequence[str],
    table: str | Path,
    *,
    split: str = "test",
    weights_on: str | None = None,
    output: str | Path | None = None,
    targets: Sequence[str] = (),
    root: str | Path | None = None,
    **settings: Any,
) -> tuple[list[Row], dict[str, float]]:
    """Late fusion: averages the probabilities that networks give (Simonyan & Zisserman, arXiv:1406.2199).

    Args:
        sources: Run folders, which are evaluated first, or a file (`predictions.csv`, `results.json`) out of the folder
            that an earlier `evaluate --output` or a training wrote.
        table: As for `evaluate`.
        split: Samples that are measured.
        weights_on: Split on which weights are chosen, in steps of 0.05 (0.1 from four networks on), equal ones where
            nothing is better; None: all alike. Files must hold its samples too.
        output: As for `evaluate`; runs write into folders of their name in it; `fusion.json` has the weights.
        targets: Columns that hold the truth, as for `evaluate`.
        root: Folder that the table's relative paths start from.
        settings: Further ones for `evaluate`.

    Returns:
        Rows `fused` and of every source by itself; and the weights.

    Raises:
        ValueError: A source does not know all samples or other classes; too few or too many sources; the split of the
            weights is that which is measured.
    """
    if weights_on == split:
        raise ValueError(f"weights_on={weights_on}: this is the split that is measured; name a held-out one")
    if weights_on is not None and len(sources) > MOST:
        raise ValueError(f"{len(sources)} networks: weights are chosen for at most {MOST}; leave weights_on out")
    rows = read_table(table, root=root)
    names = _names(sources)
    with tempfile.TemporaryDirectory() as temporary:

        def read(part: str) -> "_Scores":
            folders = []
            for name, source in zip(names, sources, strict=True):
                folder = Path(source).parent
                if Path(source).suffix not in FILES:
                    folder = Path(output or temporary) / name / ("" if part == split else part)
                    evaluate(source, rows, split=part, output=folder, targets=targets, root=root,
                             page=output is not None, **settings)  # fmt: skip
                folders.append(folder)
            return _read(folders, rows.select(part), targets)

        scores = read(split)
        equal = np.full(len(sources), 1.0 / len(sources))
        weights = equal if weights_on is None else choose_weights(read(weights_on))
    fused = scores.predictions(scores.join(weights))
    found = {"fused": fused, **{n: scores.predictions(x) for n, x in zip(names, scores.each, strict=True)}}
    result = [make_row(n, {k: [v] for k, v in _metrics(p, scores.task).items()}) for n, p in found.items()]
    chosen = dict(zip(names, weights.tolist(), strict=True))
    if output is not None:
        Path(output).mkdir(parents=True, exist_ok=True)
        write_predictions(Path(output), fused, scores.task)
        given = {"model": "late fusion of " + ", ".join(names), "table": str(table),
                 "root": None if root is None else str(root), "split": split}  # fmt: skip
        write_results(Path(output), result, extra={"task": scores.task.to_dict(), "settings": given})
        report_safely(output, Limits())
        facts = {"weights": chosen, "chosen_on": weights_on}
        write_atomic(Path(output) / "fusion.json", json.dumps(facts, indent=2) + "\n")
    return result, chosen


@dataclass(frozen=True)
class _Scores:
    """Logits of several networks for the same samples, each (S, K)."""

    table: Table
    task: Task
    each: list[Array]

    def join(self, weights: NDArray[np.float64]) -> Array:
        """Logits of the weighted mean of their probabilities; of scores the mean itself."""
        return self.task.pool(np.stack(self.each, 1), "scores", weights)

    def predictions(self, logits: Array) -> Predictions:
        """As a network would give them."""
        samples = list(self.table)
        return Predictions(
            ids=[s.id for s in samples],
            groups=[s.group for s in samples],
            logits=logits,
            targets=self.task.encode_all(samples),
        )


def choose_weights(scores: _Scores) -> NDArray[np.float64]:
    """Weights of the best main metric; of several the ones that are most alike."""
    count = len(scores.each)
    equal = np.full(count, 1.0 / count)

    def rank(weights: NDArray[np.float64]) -> tuple[float, float]:
        found = scores.predictions(scores.join(weights))
        metrics = scores.task.metrics(found.logits, found.targets)
        if not metrics:
            raise ValueError(f"{scores.table.source}: no sample has a label to choose weights by; name another split")
        return comparable(next(iter(metrics.values()))), -float(np.square(weights - equal).sum())

    return max([equal, *simplex(count, 20 if count < 4 else 10)], key=rank)


def simplex(count: int, steps: int) -> Iterator[NDArray[np.float64]]:
    """All weights of `count` networks in steps of 1 / `steps` that add up to 1.

    Example:
        >>> [w.tolist() for w in simplex(2, 2)]
        [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]
    """
    for parts in itertools.product(range(steps + 1), repeat=count - 1):
        if sum(parts) <= steps:
            yield np.array([*parts, steps - sum(parts)]) / steps


def _names(sources: Sequence[str]) -> list[str]:
    """Short names of sources, each once."""
    places = [Path(s).resolve() for s in sources]
    folders = [p.parent if p.suffix in FILES else p for p in places]
    if len(set(folders)) < len(folders):
        raise ValueError("fuse: a network stands twice; name each once")
    for depth in range(1, max(len(f.parts) for f in folders)):
        names = ["_".join(f.parts[-depth:]) for f in folders]
        if len({*names, "fused"}) == len(names) + 1:
            return names
    raise AssertionError("different folders have different names")


def _read(folders: Sequence[Path], used: Table, targets: Sequence[str]) -> _Scores:
    first: Task | None = None
    each = []
    for folder in folders:
        task, logits = read_predictions(folder)
        first = first or task
        if sorted(task.class_names) != sorted(first.class_names) or len(task.parts) != len(first.parts):
            odd = sorted(set(task.class_names) ^ set(first.class_names))[:1] or [task.target]
            raise ValueError(f"{folder}: its classes differ from those of {folders[0]} ({odd[0]!r}); fuse networks of "
                             "the same classes")  # fmt: skip
        if not task.class_names and not task.same_as(first):
            raise ValueError(f"{folder}: its targets or classes differ from those of {folders[0]}; fuse networks of "
                             "the same targets")  # fmt: skip
        if missing := [s for s in used if s.id not in logits]:
            raise ValueError(f"{folder}: no scores of {len(missing)} of {len(used)} samples of {used.source}, first "
                             f"{missing[0].id}; evaluate it on them, or name its run folder")  # fmt: skip
        rows = task.in_units(np.stack([logits[s.id] for s in used]))
        if task.class_names:
            rows = rows[:, [task.class_names.index(name) for name in first.class_names]]
        each.append(rows)
    assert first is not None
    truth = asked(first.unscaled(), targets)
    truth.check(used)
    return _Scores(used, truth, each)


def _metrics(predictions: Predictions, task: Task) -> dict[str, float]:
    own = task.metrics(predictions.logits, predictions.targets)
    return {**own, **{k: v for k, v in paper_metrics(predictions, task).items() if k not in own}}
