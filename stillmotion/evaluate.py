"""`stillmotion evaluate`: how well a network does on a split, at what cost, and how far it is from its teacher."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from stillmotion.calibration import calibrate, reliabilities, store, write_reliability
from stillmotion.cascade import measure_cascade
from stillmotion.config import ModelConfig
from stillmotion.data.table import Table, read_table
from stillmotion.device import pick_device
from stillmotion.measure import Measured, Reading, distance, measure, predict_with
from stillmotion.models.encoder import Encoder
from stillmotion.models.factory import load_model
from stillmotion.models.pretrained import is_run, read_config
from stillmotion.predictions import Predictions, write_predictions
from stillmotion.protocols.pooling import Pooling, hit_at_k, mean_average_precision
from stillmotion.report.page import report_safely
from stillmotion.report.subject import Limits
from stillmotion.results import Row, write_results
from stillmotion.run import Run
from stillmotion.tasks import CLASSES, Classes, Joint, Score, Task, make_task, split_targets, task_from_dict

Protocol = Literal["own", "static", "clip", "video"]


def evaluate(
    model: str | Path | ModelConfig,
    table: str | Path | Table,
    *,
    split: str | None = "test",
    teacher: str | Path | ModelConfig | None = None,
    calibrate_on: str | None = None,
    cascade_on: str | None = None,
    protocol: Protocol = "own",
    moment: str | None = None,
    num_moments: int | None = None,
    num_crops: int | None = None,
    pooling: Pooling = "logits",
    view: dict[str, Any] | None = None,
    output: str | Path | None = None,
    train_split: str = "train",
    targets: Sequence[str] = (),
    short_side: int | None = None,
    packed: str | None = None,
    flow: str | None = None,
    workers: int = 1,
    batch_size: int = 16,
    device: str = "auto",
    root: str | Path | None = None,
    page: bool = True,
) -> list[Row]:
    """Measures a network on a split of a table.

    Args:
        model: Run folder, or a network by name.
        table: CSV or Parquet file, folder of class folders, or a table already read.
        split: Which samples; None: all.
        teacher: Another network (its run folder): gets a row too, and the first row tells the distance to it.
        calibrate_on: Held-out split on which a temperature is fitted; it is stored with the run, and `predict` uses it.
        cascade_on: Held-out split on which the threshold of a cascade of the model and its teacher is chosen.
        protocol: What is seen of a video: `own` as in training; `static` one frame; `clip` one clip; `video` several
            moments in equal parts (`num_moments`, 10), their logits averaged.
        moment, num_moments, num_crops: Settings of the network's view that differ.
        pooling: How the moments are joined: see `pool_clips`.
        view: Further ones.
        output: Folder for `results.json` (and CSV, Markdown, PNG), `predictions.csv`, `per_class.csv`,
            `confusion.json`, `calibration.json` and `cascade.json` with their pictures, `broken.csv`,
            `report.html`; the teacher's in `teacher/`.
        train_split: Training samples, whose mean features R2 is measured against; without such a split there is none.
        targets: Columns that hold the truth, see `DataConfig`. Empty: as in the run's training, or `label` for a
            network that knows no classes yet.
        short_side: As in `DataConfig`; None: as in the run's training.
        packed: Frame store to read from.
        flow: Flow store that views of flow read from.
        workers, batch_size, device: Where and how it runs; `auto` takes an accelerator if there is one.
        root: Folder that the table's relative paths start from.
        page: Whether `output` gets `report.html`, too.

    Returns:
        A row for the model, one for the teacher, one for their cascade, with the task's metrics and those of the video
        papers: `top3` (of more than three classes), `mAP`, and over clips and crops alone, not joined, `clip_top1`.
        With several labels a sample these are Hit@k. `ece` is the calibration error (15 bins), `ece_calibrated` that at
        the run's temperature. Unreadable samples are counted in the metric `unreadable`.

    Raises:
        ValueError: No such run, split or setting; a label that the network does not know; nothing can be read.
    """
    rows = table if isinstance(table, Table) else read_table(table, root=root)
    used = rows.select(split) if split is not None else rows
    seen = view_settings(protocol, moment, num_moments, num_crops, view)
    encoder, trained, name = open_model(model, rows, targets, seen)
    check_held_out(split, calibrate_on, cascade_on, teacher, targets)
    side = short_side if short_side is not None else encoder.short_side
    reading = Reading(
        batch_size=batch_size, workers=workers, device=pick_device(device), short_side=side, packed=packed, flow=flow
    )
    if calibrate_on is not None:
        trained = _calibrate(name, encoder, rows, calibrate_on, trained, reading, pooling)
    task = asked(trained, targets)
    task.check(used)
    found = [_measure(Path(name).name, encoder, used, task, reading, pooling, trained)]
    if teacher is not None:
        other, other_trained, other_name = open_model(teacher, rows, targets, {})
        if not other_trained.same_as(trained):
            raise ValueError(
                f"{other_name}: its targets or classes are not those of {name}, so the two cannot be compared"
            )
        found.append(_measure(Path(other_name).name, other, used, task, reading, pooling, other_trained))
        train = rows.select(train_split) if train_split in rows.splits else None
        reference = predict_with(other, train, task, reading) if train is not None else None
        found[0].metrics.update(distance(found[0].predictions, found[1].predictions, reference, task))
    if output is not None:
        _write(Path(output), found, task, used)
    result = [m.row() for m in found]
    if cascade_on is not None:
        held = rows.select(cascade_on)
        both = ((encoder, trained), (other, other_trained))
        measured = [measure(name, network, held, task, reading, pooling, own) for network, own in both]
        result.append(
            measure_cascade(found, measured, (task, other_trained), used, (encoder.views, other.views), output)
        )
    if output is not None:
        given = {"model": name, "teacher": None if teacher is None else other_name, "table": rows.source, "root": root,
                 "split": split, "protocol": protocol, "view": seen, "pooling": pooling}  # fmt: skip
        settings = {**given, "data": {"train": train_split, "short_side": side, "packed": packed, "flow": flow}}
        plain = json.loads(json.dumps(settings, default=str))
        write_results(output, result, extra={"task": task.to_dict(), "settings": plain})
        if page:
            report_safely(output, Limits(device=device))
    return result


def check_held_out(
    split: str | None, calibrate_on: str | None, cascade_on: str | None, teacher: object, targets: Sequence[str]
) -> None:
    """Refuses to choose on the samples that are measured, and a cascade of one network.

    Raises:
        ValueError: In one line, what to give instead.
    """
    for name, held in (("calibrate_on", calibrate_on), ("cascade_on", cascade_on)):
        if held is not None and split in (held, None):
            raise ValueError(f"{name}={held}: this is the split that is measured; name a held-out one")
    if cascade_on is not None and teacher is None:
        raise ValueError(f"cascade_on={cascade_on}: a cascade needs a teacher; name its run folder")
    if calibrate_on is not None and targets:
        raise ValueError("calibrate_on: a temperature is fitted on the columns of the training; leave targets out")


def _calibrate(
    name: str, encoder: Encoder, table: Table, split: str, trained: Task, reading: Reading, pooling: Pooling
) -> Task:
    """Fits a temperature and stores it with the run."""
    if not is_run(name):
        raise ValueError(f"calibrate_on={split}: the temperature is stored with the run; {name} is no run folder")
    held = table.select(split)
    trained.check(held)
    seen = measure(name, encoder, held, trained, reading, pooling).predictions
    try:
        fitted = calibrate(trained, seen.logits, seen.targets)
    except ValueError as error:
        raise ValueError(f"calibrate_on={split}: {error}") from None
    errors = {metric: bins.error for metric, bins in reliabilities(fitted, seen.logits, seen.targets).items()}
    store(Path(name), fitted, {"split": split, "samples": int(trained.labelled(seen.targets).sum()), **errors})
    return fitted


def open_model(
    model: str | Path | ModelConfig, table: Table, targets: Sequence[str], view: dict[str, Any]
) -> tuple[Encoder, Task, str]:
    """A network, what it was trained for and its name.

    Args:
        model: Run folder, or a network by name, whose task is then that of the table.
        table: The whole table.
        targets: Columns; a run keeps its own task.
        view: Settings of the view that differ.

    Raises:
        ValueError: There is no such network.
    """
    config = model if isinstance(model, ModelConfig) else ModelConfig(name=str(model))
    if is_run(config.name):
        task = task_from_dict(read_config(Path(config.name))["task"])
    else:
        task = make_task(table, targets or ("label",))
    encoder = load_model(replace(config, view={**config.view, **view}), num_classes=task.num_outputs)
    return encoder.eval(), task, config.name


def asked(trained: Task, targets: Sequence[str]) -> Task:
    """What a network was trained for, with the truth read from other columns, or several classes a sample.

    Raises:
        ValueError: Not as many columns as the network tells of, or a score in the place of classes.
    """
    if not targets:
        return trained
    tasks = [part for _, part in trained.parts]
    given = split_targets(targets)
    kinds = [kind == Score.kind for _, kind in given]
    if kinds != [isinstance(task, Score) for task in tasks]:
        wanted = ", ".join(task.target + (":score" if isinstance(task, Score) else "") for task in tasks)
        raise ValueError(f"targets {', '.join(targets)}: the network was trained for {wanted}; name a column for each, "
                         "in this order and kind, or leave targets out")  # fmt: skip
    found = [
        replace(task, target=column)
        if isinstance(task, Score) or (isinstance(task, Classes) and kind == task.kind)
        else CLASSES[kind](task.class_names, column)
        for task, (column, kind) in zip(tasks, given, strict=True)
    ]
    return found[0] if len(found) == 1 else Joint(tuple(found), trained.weights)


def _measure(
    name: str, encoder: Encoder, table: Table, task: Task, reading: Reading, pooling: Pooling, trained: Task
) -> Measured:
    """As `measure`, with the metrics of the video papers."""
    found = measure(name, encoder, table, task, reading, pooling, trained)
    for metric, value in paper_metrics(found.predictions, task).items():
        found.metrics.setdefault(metric, value)  # the task has some of them itself
    return found


def paper_metrics(predictions: Predictions, task: Task) -> dict[str, float]:
    """`ece` of every column of one class; of one target `top3` of more than three classes, `mAP`, and `clip_top1`."""
    bins = reliabilities(task, predictions.logits, predictions.targets)
    found = {metric: of.error for metric, of in bins.items()}
    if not isinstance(task, Classes):
        return found
    known = task.labelled(predictions.targets)
    marks, logits = task.marks(predictions.targets[known]), predictions.logits[known]
    if not marks.any():
        return found
    if task.num_outputs > 3:
        found["top3"] = hit_at_k(logits, marks, 3)
    # Of probabilities: logits of different samples have no common order.
    found["mAP"] = mean_average_precision(task.scores(logits), marks)
    clips = predictions.outputs.get("moment_logits")
    if clips is not None and clips.shape[1] > 1:
        each = clips[known].reshape(-1, task.num_outputs)
        found["clip_top1"] = hit_at_k(each, marks.repeat(clips.shape[1], 0), 1)
    return found


def view_settings(
    protocol: Protocol,
    moment: str | None,
    num_moments: int | None,
    num_crops: int | None,
    view: dict[str, Any] | None,
) -> dict[str, Any]:
    """Settings of a view that a protocol and its exceptions ask for.

    Raises:
        ValueError: There is no such protocol.

    Example:
        >>> view_settings("video", None, 25, None, None)
        {'moment': 'uniform', 'num_moments': 25}
    """
    settings: dict[str, dict[str, Any]] = {
        "own": {},
        "static": {"num_frames": 1, "num_moments": 1},
        "clip": {"num_moments": 1},
        "video": {"moment": "uniform", "num_moments": 10},
    }
    if protocol not in settings:
        raise ValueError(f"protocol={protocol!r}: choose one of {', '.join(settings)}")
    given = {"moment": moment, "num_moments": num_moments, "num_crops": num_crops}
    return {**settings[protocol], **{k: v for k, v in given.items() if v is not None}, **(view or {})}


def _write(folder: Path, found: Sequence[Measured], task: Task, table: Table) -> None:
    for place, measured in zip((folder, folder / "teacher"), found, strict=False):
        place.mkdir(parents=True, exist_ok=True)
        write_predictions(place, measured.predictions, task)
        if bins := reliabilities(task, measured.predictions.logits, measured.predictions.targets):
            write_reliability(place, bins)
        Run(place).write_broken(table, measured.predictions.errors, measured.predictions.faults)
