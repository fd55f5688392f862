"""Tasks: which targets, which loss, which metrics, and how a prediction reads to a person.

A task is plain data that imports no torch until a loss is asked for, so that an exported student needs none.
Samples without a value (`UNLABELLED`, or not a number) add nothing to the task loss and still carry a distillation
loss.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from stillmotion.config import DataConfig, ScoreConfig
from stillmotion.data.table import Table
from stillmotion.tasks.base import ANY, UNLABELLED, Answer, Targets, Task, comparable
from stillmotion.tasks.classes import Classes, Classification, MultiLabel
from stillmotion.tasks.joint import Joint, joint_metrics
from stillmotion.tasks.score import Score

__all__ = [
    "ANY",
    "CLASSES",
    "TASKS",
    "UNLABELLED",
    "Answer",
    "Classes",
    "Classification",
    "Joint",
    "MultiLabel",
    "Score",
    "Targets",
    "Task",
    "comparable",
    "make_task",
    "metrics_of",
    "split_targets",
    "task_from_dict",
    "task_of",
]

CLASSES: dict[str, type[Classes]] = {task.kind: task for task in (Classification, MultiLabel)}
TASKS: dict[str, type[Task]] = {**CLASSES, Score.kind: Score}
"""Kinds of a target."""


def make_task(
    table: Table,
    targets: Sequence[str] = ("label",),
    *,
    score: ScoreConfig | None = None,
    weights: Mapping[str, float] | None = None,
    whole: Table | None = None,
) -> Task:
    """The task of some columns.

    Args:
        table: Training samples, whose values name the classes and give the scale of scores.
        targets: Columns, of which each sample has one class; `COLUMN:multilabel` for several classes, with `|` between
            them; `COLUMN:score` for a number.
        score: How scores are learned.
        weights: Of the losses by column, 1 where nothing is said.
        whole: All samples, which give the range of scores; None: the same.

    Raises:
        TableError: No such column, fewer than two classes, or a score that is no number or always the same.
        ValueError: No such kind, or a column twice.
    """
    weights = weights or {}
    tasks: list[Task] = []
    for column, kind in split_targets(targets):
        if kind == Score.kind:
            tasks.append(Score.of(table, column, score or ScoreConfig(), whole))
        else:
            tasks.append(CLASSES[kind].of(table, column))
    columns = [task.target for task in tasks]
    if unknown := [name for name in weights if name not in columns]:
        raise ValueError(f"target_weights: {unknown[0]!r} is no target; targets: {', '.join(columns)}")
    if wrong := [name for name, weight in weights.items() if not weight >= 0.0]:
        raise ValueError(f"target_weights: {wrong[0]} has {weights[wrong[0]]}; give 0 or more")
    if len(tasks) == 1:
        if weights:
            raise ValueError("target_weights: there is one target; weights are for several")
        return tasks[0]
    return Joint(tuple(tasks), tuple(float(weights.get(column, 1.0)) for column in columns))


def task_of(table: Table, data: DataConfig) -> Task:
    """The task of a training: classes and scale of its training split, range of scores of the whole table."""
    train = table.select(data.train)
    return make_task(train, data.targets, score=data.score, weights=data.target_weights, whole=table)


def split_targets(targets: Sequence[str]) -> list[tuple[str, str]]:
    """Columns and kinds of targets.

    Raises:
        ValueError: No such kind, a column twice, or none.

    Example:
        >>> split_targets(["label", "tags:multilabel", "points:score"])
        [('label', 'classification'), ('tags', 'multilabel'), ('points', 'score')]
    """
    found: list[tuple[str, str]] = []
    for target in targets:
        column, _, kind = target.partition(":")
        if kind and kind not in TASKS:
            raise ValueError(f"target {target!r}: unknown kind {kind!r}; known: {', '.join(TASKS)}")
        if not column:
            raise ValueError(f"target {target!r}: names no column; give COLUMN or COLUMN:{kind or 'score'}")
        if column in [name for name, _ in found]:
            raise ValueError(f"targets: column {column!r} stands twice; name each once")
        found.append((column, kind or Classification.kind))
    if not found:
        raise ValueError("targets is empty; name at least one column of the table, such as label")
    return found


def metrics_of(targets: Sequence[str]) -> tuple[str, ...]:
    """Metrics of targets, the main one first, before any table is read."""
    kinds = [(column, TASKS[kind].metric_kinds) for column, kind in split_targets(targets)]
    return kinds[0][1] if len(kinds) == 1 else joint_metrics(kinds)


def task_from_dict(data: Mapping[str, Any]) -> Task:
    """Reads what `Task.to_dict` gave."""
    kind = data.get("kind")
    if kind == Joint.kind:
        return Joint(tuple(task_from_dict(task) for task in data["tasks"]), tuple(data["weights"]))
    if kind == Score.kind:
        return Score(**{name: value for name, value in data.items() if name != "kind"})
    if kind not in CLASSES:
        raise ValueError(f"unknown task kind {kind!r}; known: {', '.join([*TASKS, Joint.kind])}")
    return CLASSES[kind](tuple(data["class_names"]), data["target"], data.get("temperature", 1.0))
