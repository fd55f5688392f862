"""`stillmotion svm`: a linear SVM on stored features, as the papers measure a representation (METHODS 3.5)."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stillmotion.baselines import decision_scores
from stillmotion.data.split import group_folds, leave_one_group_out
from stillmotion.data.splits import check_classes
from stillmotion.data.table import Table, TableError, read_table
from stillmotion.predictions import Predictions, write_predictions
from stillmotion.protocols.feature_file import VideoFeatures, read_features
from stillmotion.protocols.pooling import hit_at_k, l2_normalise, mean_average_precision
from stillmotion.results import Row, make_row, write_results
from stillmotion.run import Run
from stillmotion.tasks import Classification

Normalise = Literal["l2", "none"]
PROTOCOLS = "column, leave-one-out, leave-one-group-out, folds:K"


def svm(
    features: str | Path | VideoFeatures,
    table: str | Path | Table,
    *,
    protocol: str = "column",
    output: str | Path | None = None,
    tap: str | None = None,
    target: str = "label",
    train: str = "train",
    test: str = "test",
    c: float = 1.0,
    normalise: Normalise = "l2",
    seed: int = 0,
    root: str | Path | None = None,
) -> Row:
    """Trains and tests a linear SVM, one class against the rest (scikit-learn's `LinearSVC`).

    The papers state neither C nor, for P3D, the scale of the features. C is 1, the default of LIBLINEAR; features are
    the mean over the clips of a video, divided by their length, as in C3D.

    Args:
        features: What `stillmotion features` wrote; rows of clips are averaged.
        table: The samples, with their labels.
        protocol: `column` (the table's own splits); `leave-one-out` (every video once: the scene sets);
            `leave-one-group-out`; `folds:K` over groups. Folds are pooled before a metric is taken.
        output: Folder for results.json (and CSV, Markdown, PNG), predictions.csv, per_class.csv, the confusion matrix
            and broken.csv. None writes nothing.
        tap: Which of the file's features; None takes the only one, or `embedding`.
        target: Column of the class.
        train, test: Splits of the protocol `column`.
        c: Cost of a mistake.
        normalise: `l2`, or `none`.
        seed: Of the folds and of the solver.
        root: Folder that the table's relative paths start from.

    Returns:
        A row with `top1`, `top3` and `top5` (with more classes than that), `mean_class`; with one classifier for all
        test samples (`column`) also `mAP`. Samples of the table without features are the metric `unreadable`.

    Raises:
        ValueError: A wrong setting, or samples that leave nothing to train on or to test.
    """
    found = (features if isinstance(features, VideoFeatures) else read_features(features)).videos()
    tap = found.pick(tap)
    rows = table if isinstance(table, Table) else read_table(table, root=root, check_files=False)
    if protocol == "column":
        rows = rows.select(lambda s: s.split in (train, test))
    places = {name: i for i, name in enumerate(found.ids)}
    errors = {s.id: f"no features in {found.source}" for s in rows if s.id not in places}
    if len(errors) == len(rows):
        raise ValueError(f"{found.source}: has features of none of the samples of {rows.source}, such as {rows[0].id}")
    used = rows.select(lambda s: s.id in places and target in s.targets)
    task = Classification.of(used, target)
    x = found.arrays[tap][[places[s.id] for s in used]]
    x = l2_normalise(x) if normalise == "l2" else x
    predictions, folds = _predict(x, used, task, _divide(used, protocol, train, test, seed, task), c, seed)
    predictions = replace(predictions, errors=errors)
    metrics = _metrics(predictions, task, ranked=protocol == "column")
    metrics |= {"unreadable": float(len(errors))} if errors else {}
    row = make_row(f"{Path(found.source).stem}/{tap}", {k: [v] for k, v in metrics.items()},
                   {"params": task.num_outputs * (x.shape[1] + 1)})  # fmt: skip
    if output is not None:
        settings = {"protocol": protocol, "tap": tap, "c": c, "normalise": normalise, "seed": seed}
        _write(Path(output), row, predictions, task, rows, {"settings": settings, "folds": folds})
    return row


def _divide(
    table: Table, protocol: str, train: str, test: str, seed: int, task: Classification
) -> Iterator[tuple[Table, Table]]:
    """Samples to train on and to test with, fold by fold.

    Raises:
        ValueError: There is no such protocol, or the table does not allow it.
    """
    if protocol == "column":
        check_classes(table, train, test, task.target)
        return iter([(table.select(train), table.select(test))])
    if protocol == "leave-one-out":
        return ((_only(table, lambda i, k=k: i != k), _only(table, lambda i, k=k: i == k)) for k in range(len(table)))
    if protocol == "leave-one-group-out":
        return leave_one_group_out(table)
    if match := re.fullmatch(r"folds:(\d+)", protocol):
        return group_folds(table, int(match[1]), seed, stratum=task.stratum)
    raise ValueError(f"protocol={protocol!r}: choose one of {PROTOCOLS}")


def _only(table: Table, keep: Any) -> Table:
    return replace(table, samples=tuple(s for i, s in enumerate(table) if keep(i)))


def _predict(
    x: NDArray[np.float32],
    table: Table,
    task: Classification,
    folds: Iterator[tuple[Table, Table]],
    c: float,
    seed: int,
) -> tuple[Predictions, list[dict[str, Any]]]:
    """Decision values of all test samples, fold after fold, and how each fold went."""
    from sklearn.svm import LinearSVC

    rows = {s.id: i for i, s in enumerate(table)}
    y = task.encode_all(table)
    ids: list[str] = []
    parts, notes = [], []
    for train, test in folds:
        fit, ask = [rows[s.id] for s in train], [rows[s.id] for s in test]
        if len(set(y[fit].tolist())) < 2:
            raise TableError(f"{table.source}: only the class {task.class_names[y[fit[0]]]!r} is left to train on")
        model = LinearSVC(C=c, random_state=seed, max_iter=10_000).fit(x[fit], y[fit])
        parts.append(decision_scores(model, x[ask], task.num_outputs))
        right = parts[-1].argmax(1) == y[ask]
        notes.append({"train": len(fit), "test": len(ask), "top1": float(right.mean())})
        ids += [s.id for s in test]
    tested = [table[rows[name]] for name in ids]
    targets = y[[rows[name] for name in ids]]
    return Predictions(ids, [s.group for s in tested], np.concatenate(parts), targets), notes


def _metrics(predictions: Predictions, task: Classification, *, ranked: bool) -> dict[str, float]:
    marks = task.marks(predictions.targets)
    metrics = task.metrics(predictions.logits, predictions.targets)
    if task.num_outputs > 3:
        metrics = {"top1": metrics.pop("top1"), "top3": hit_at_k(predictions.logits, marks, 3), **metrics}
    # Decision values of different classifiers have no common order.
    return {**metrics, "mAP": mean_average_precision(predictions.logits, marks)} if ranked else metrics


def _write(
    folder: Path, row: Row, predictions: Predictions, task: Classification, table: Table, extra: Mapping[str, Any]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_predictions(folder, predictions, task)
    Run(folder).write_broken(table, predictions.errors, {})
    write_results(folder, [row], extra=extra)
