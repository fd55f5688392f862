"""Rows of a comparison that need no network training: how far do chance, the crop, one frame and plain motion go?

Classifier and settings are chosen by cross-validation over the groups of the training samples; the test samples are
only predicted. scikit-learn, OpenCV and torch are imported where a row needs them.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillmotion.baseline_features import (
    Cost,
    Floats,
    Work,
    embed,
    median_of,
    milliseconds,
    read_crop_size,
    read_features,
)
from stillmotion.config import ModelConfig
from stillmotion.data.table import Table, TableError
from stillmotion.protocols.no_pixel import values_of
from stillmotion.tasks import Score, Targets, Task

LARGE = 1000
"""Training samples above which fewer settings are tried, in fewer folds."""


@dataclass(frozen=True)
class BaselineResult:
    """What a row says about the test samples that could be read, in the order of their table.

    Args:
        ids, groups: Of the samples.
        logits: Of the task, (S, num_outputs); of classes the largest is the prediction.
        targets: As the task encodes them, (S, ...).
        cost: `params`, `gmacs`, `ms_per_video`, `frames`; None where it is not known.
        errors: Reason by id of samples that could not be read, of both splits.
        chosen: Settings that cross-validation chose, for people.
    """

    ids: list[str]
    groups: list[str | None]
    logits: Floats
    targets: Targets
    cost: Cost
    errors: dict[str, str] = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)


def run_baseline(
    name: str,
    train: Table,
    test: Table,
    task: Task,
    *,
    model: ModelConfig | None = None,
    cache: Path | None = None,
    seed: int = 0,
    workers: int = 2,
) -> BaselineResult:
    """Fits a row to the training samples and predicts the test samples.

    Args:
        name: One of `BASELINES`; `alike:COLUMN+COLUMN` names its columns.
        train: Samples to learn from; those without a label are passed over.
        test: Samples to predict.
        task: Its classes and scores; of several columns each is learned by itself.
        model: Frozen network of `frame_linear`, with its weights.
        cache: Folder that keeps features by file and settings, so that further folds do not compute them again.
        seed: Of the folds in which settings are chosen.
        workers: Processes that read videos.

    Raises:
        ValueError: An unknown name, a missing model, or too few samples that can be read.
    """
    check_baseline(name, train)
    kind, _, columns = name.partition(":")
    return BASELINES[kind](Work(train, test, task, model, cache, seed, workers, tuple(columns.split("+"))))


def check_baseline(name: str, table: Table) -> None:
    """Raises a ValueError unless the name is a row's and the table has the columns that it names."""
    kind, colon, columns = name.partition(":")
    if kind not in BASELINES or bool(colon) != (kind == "alike"):
        raise ValueError(f"unknown baseline {name!r}; known: {', '.join(written(n) for n in BASELINES)}")
    named = columns.split("+") if colon else []
    if missing := [c for c in named if all(value is None for (value,) in (values_of(s, [c]) for s in table))]:
        raise TableError(f"{table.source}: baseline {name!r} needs column {missing[0]!r}, which no sample has")


def written(name: str) -> str:
    """How a baseline is asked for."""
    return f"{name}:COLUMN+COLUMN" if name == "alike" else name


def majority(work: Work) -> BaselineResult:
    """the most frequent class of the training samples, or the mean of their scores, whatever the video"""
    return _of_alike(work, ())


def alike(work: Work) -> BaselineResult:
    """the same of the training samples with equal values in these columns (`group`: the table's), without a pixel"""
    return _of_alike(work, work.columns)


def _of_alike(work: Work, columns: Sequence[str]) -> BaselineResult:
    """The guess for each test sample from the training samples that are equal in the columns; if none is, from all."""
    places: dict[tuple[str | None, ...], list[int]] = {}
    for place, sample in enumerate(work.train):
        places.setdefault(values_of(sample, columns), []).append(place)
    tested = [values_of(sample, columns) for sample in work.test]
    logits: list[Floats] = []
    for _, part in work.task.parts:
        targets = part.encode_all(work.train)
        known = part.labelled(targets)
        if not known.any():
            raise TableError(f"{work.train.source}: no training sample has a value in column `{part.target}`")
        everything = _most_frequent(targets[known], part)
        equal = {key: targets[chosen][known[chosen]] for key, chosen in places.items()}
        rows = {key: _most_frequent(values, part) for key, values in equal.items() if len(values)}
        logits.append(np.stack([rows.get(key, everything) for key in tested]))
    cost: Cost = {"params": 0, "gmacs": 0.0, "ms_per_video": 0.0, "frames": 0}
    return BaselineResult(
        ids=[s.id for s in work.test],
        groups=[s.group for s in work.test],
        logits=np.concatenate(logits, 1),
        targets=work.task.encode_all(work.test),
        cost=cost,
    )


def _most_frequent(targets: Targets, task: Task) -> Floats:
    """Logits (K,) of one column."""
    if isinstance(task, Score):
        return np.asarray(task.logits_of(targets.mean(keepdims=True))[0])
    counts = np.bincount(targets, minlength=task.num_outputs)
    return np.asarray(np.log((counts + 1e-3) / counts.sum()), np.float32)


def crop_size(work: Work) -> BaselineResult:
    """width and height of the video, without looking into it"""
    cost: Cost = {"gmacs": 0.0, "ms_per_video": milliseconds(read_crop_size, work.test), "frames": 0}
    found, errors = read_features(work, "crop_size", read_crop_size)
    return _learn(work, found, errors, {}, _svms(work), cost)


def frame_linear(work: Work) -> BaselineResult:
    """a frozen network's embedding of the centre frame (or of what its view sees), a linear model"""
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    found, errors, cost = embed(work)
    probes: list[dict[str, Any]] = [
        {"classify": [LogisticRegression(max_iter=1000)], "classify__C": [1e-3, 1e-2, 1e-1]},
        {"classify": [LinearSVC(random_state=work.seed)], "classify__C": [3e-4, 3e-3, 3e-2]},
    ]
    return _learn(work, found, errors, {}, probes, cost)


def flow_histogram(work: Work) -> BaselineResult:
    """histograms of optical flow by place, direction, speed and time, a linear or RBF model"""
    from sklearn.preprocessing import FunctionTransformer

    from stillmotion import flow_histogram as flow

    cost: Cost = {
        "gmacs": None,
        "ms_per_video": milliseconds(flow.read_flow_histogram, work.test),
        "frames": median_of(lambda s: len(np.unique(flow.frame_pairs(s)[0])), work.test),
    }
    found, errors = read_features(work, "flow_histogram", flow.read_flow_histogram)
    pools = [{"segments": s, "speeds": v} for s in (1, 2, 3) for v in ("both", "sum", "fast")]
    steps = {"pool": FunctionTransformer(flow.pool_histogram)}
    return _learn(work, found, errors, steps, _svms(work), cost, {"pool__kw_args": pools})


BASELINES: dict[str, Callable[[Work], BaselineResult]] = {
    "majority": majority,
    "alike": alike,
    "crop_size": crop_size,
    "frame_linear": frame_linear,
    "flow_histogram": flow_histogram,
}


def _svms(work: Work) -> list[dict[str, Any]]:
    from sklearn.svm import SVC, LinearSVC

    linear = {"classify": [LinearSVC(random_state=work.seed)], "classify__C": [1e-3, 1e-2]}
    # With ties broken, the largest score is the prediction that cross-validation judged.
    curved = {"classify": [SVC(break_ties=True)], "classify__C": [1.0, 10.0]}
    return [linear] if len(work.train) > 10 * LARGE else [curved, linear]


def _learn(
    work: Work,
    found: Mapping[str, Floats],
    errors: dict[str, str],
    steps: Mapping[str, Any],
    grid: Sequence[Mapping[str, Any]],
    cost: Cost,
    settings: Mapping[str, Any] | None = None,
) -> BaselineResult:
    """Fits every column by itself, classes with the classifiers of the grid, scores by ridge regression.

    `settings` of the steps are tried with each.
    """
    from sklearn.linear_model import Ridge

    tested = [s for s in work.test if s.id in found]
    several = len(work.task.parts) > 1
    logits: list[Floats] = []
    chosen: dict[str, Any] = {}
    params = cost.get("params") or 0
    for _, part in work.task.parts:
        ridge = [{"classify": [Ridge()], "classify__alpha": [1.0, 10.0, 100.0, 1e3, 1e4]}]
        tried = [{**(settings or {}), **g} for g in (ridge if isinstance(part, Score) else grid)]
        search, x_test = _search(work, part, found, errors, steps, tried)
        fitted = search.best_estimator_
        if isinstance(part, Score):
            logits.append(part.logits_of(fitted.predict(x_test)))
        else:
            logits.append(decision_scores(fitted, x_test, part.num_outputs))
        params += _num_params(fitted["classify"])
        measure = "negative_mse_in_folds" if isinstance(part, Score) else "accuracy_in_folds"
        best: dict[str, Any] = {name: str(value) for name, value in search.best_params_.items()}
        best[measure] = round(float(search.best_score_), 4)
        chosen |= {part.target: best} if several else best
    return BaselineResult(
        ids=[s.id for s in tested],
        groups=[s.group for s in tested],
        logits=np.concatenate(logits, 1),
        targets=work.task.encode_all(tested),
        cost={"params": params, **_without_params(cost)},
        errors=errors,
        chosen=chosen,
    )


def _search(
    work: Work,
    task: Task,
    found: Mapping[str, Floats],
    errors: dict[str, str],
    steps: Mapping[str, Any],
    grid: Sequence[Mapping[str, Any]],
) -> tuple[Any, Floats]:
    """Chooses a setting of the grid over training groups, fits it to all training samples of one column.

    Returns:
        The fitted search, and the features of the test samples.
    """
    from sklearn import config_context
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    known = [s for s in work.train if s.id in found and task.has_label(s)]
    tested = [s for s in work.test if s.id in found]
    y = task.encode_all(known)
    scored = isinstance(task, Score)
    for table, number in ((work.train, len(set(y.tolist())) - 1), (work.test, len(tested))):
        if number < 1:
            first = f"; the first that cannot be read: {next(iter(errors.values()))}" if errors else ""
            what = f"samples of two {'scores' if scored else 'classes'} to train on"
            raise ValueError(f"{table.source}: no {what if table is work.train else 'sample to predict'}{first}")
    x, x_test = (np.stack([found[s.id].ravel() for s in samples]) for samples in (known, tested))
    pipeline = Pipeline([*steps.items(), ("scale", StandardScaler()), ("classify", None)])
    # A score counts as one class: its folds are over groups, with nothing to balance.
    folds = _folds(np.zeros(len(y), np.int64) if scored else y, [s.group or s.id for s in known], work.seed)
    search = GridSearchCV(
        pipeline,
        list(grid),
        scoring="neg_mean_squared_error" if scored else "accuracy",
        cv=folds,
        n_jobs=max(1, work.workers) if len(y) > LARGE else 1,
    )
    # Thousands of small fits: checking their arguments would take longer than they do.
    with warnings.catch_warnings(), config_context(skip_parameter_validation=True, assume_finite=True):
        warnings.simplefilter("ignore")  # of folds that lack a class, and of slow convergence at a poor setting
        search.fit(x, y)
    return search, x_test


def _folds(y: NDArray[np.int64], groups: Sequence[str], seed: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Divisions of the training samples by group, classes in proportion; twice over where samples are few.

    With a single group there is nothing to hold out: samples are divided instead.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    number, repeats = (3, 1) if len(y) > LARGE else (5, 2)
    names = list(groups) if len(set(groups)) > 1 else [str(i) for i in range(len(y))]
    number = min(number, len(set(names)), int(np.bincount(y).max()))
    folds = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes with fewer samples than folds
        for repeat in range(repeats if number > 1 else 0):
            splitter = StratifiedGroupKFold(number, shuffle=True, random_state=seed + repeat)
            least = min(2, len(set(y.tolist())))
            folds += [(a, b) for a, b in splitter.split(y, y, names) if len(b) and len(set(y[a].tolist())) >= least]
    if not folds:
        raise ValueError(f"{len(set(names))} training groups: each class stands in one alone; more groups are needed")
    return folds


def decision_scores(fitted: Any, x: Floats, num_classes: int) -> Floats:
    """Decision values (S, num_classes); a class that training lacked gets less than all others."""
    values = np.asarray(fitted.decision_function(x), np.float32)
    if values.ndim == 1:
        values = np.stack([-values, values], axis=1)
    scores = np.full((len(x), num_classes), values.min() - 1.0, np.float32)
    scores[:, fitted.classes_] = values
    return scores


def _num_params(classifier: Any) -> int:
    """Numbers that the classifier keeps: weights, or support vectors with their factors."""
    names = ("coef_",) if hasattr(classifier, "coef_") else ("support_vectors_", "dual_coef_")
    return int(sum(np.size(getattr(classifier, name)) for name in (*names, "intercept_")))


def _without_params(cost: Cost) -> Cost:
    return {name: value for name, value in cost.items() if name != "params"}
