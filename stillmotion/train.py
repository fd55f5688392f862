"""`stillmotion train`: one run, from a table to a folder; it resumes by itself."""

import math
import os
import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from os.path import expandvars
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from stillmotion.callbacks import (
    BEST,
    ProgressBar,
    RunWriter,
    Stopped,
    StopSignal,
    is_first_process,
    make_trainer,
    quiet_lightning,
)
from stillmotion.config import DataConfig, MethodConfig, ModelConfig, OptimConfig, TrainerConfig
from stillmotion.data.faults import one_line
from stillmotion.data.journal import only_writer
from stillmotion.data.split import drop_labels, hold_out
from stillmotion.data.splits import check_classes, check_leaks
from stillmotion.data.store import FrameStore
from stillmotion.data.table import Table, read_table
from stillmotion.engine import Engine
from stillmotion.features import open_features
from stillmotion.loaders import VideoLoaders
from stillmotion.measure import Reading, learned, measure
from stillmotion.memory import keep_memory
from stillmotion.methods import build_method
from stillmotion.methods.base import Method
from stillmotion.models.encoder import Encoder, to_channels_last
from stillmotion.models.factory import load_model
from stillmotion.models.pretrained import save_pretrained
from stillmotion.norms import own_norms
from stillmotion.predictions import write_predictions
from stillmotion.processes import LostError, is_lost, is_sharded
from stillmotion.report.card import write_card
from stillmotion.report.page import report_safely
from stillmotion.results import make_row
from stillmotion.run import Run, fingerprint
from stillmotion.tasks import Classes, Task, comparable, task_of


class Interrupted(KeyboardInterrupt):
    """Ctrl-C; the message is the line for the user."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """The arguments of `train`."""

    table: Table
    run: Run
    student: ModelConfig
    method: MethodConfig
    teacher: ModelConfig | None
    features: str | None
    data: DataConfig
    optim: OptimConfig
    trainer: TrainerConfig
    seed: int

    def settings(self, root: str | None) -> dict[str, Any]:
        """All of them as JSON data, with hashes of the table and of the weights that the networks begin with."""
        given = {name: value for name, value in asdict(self).items() if name not in ("table", "run")}
        models = {"student": self.student, "teacher": self.teacher}
        weights = {role: fingerprint(m.name, m.weights) for role, m in models.items() if m}
        # Networks within networks: the streams of `two_stream`.
        inner = {f"{role}.{part}": net for role, m in models.items() if m for part, net in m.options.items()}
        for part, net in inner.items():
            if isinstance(net, dict) and "name" in net:
                weights[part] = fingerprint(expandvars(net["name"]), expandvars(net.get("weights") or ""))
        return {"table": self.table.source, "table_hash": self.table.hash, "root": root, "weights": weights, **given}


def train(
    table: str | Path | Table,
    *,
    output: str | Path,
    student: ModelConfig,
    method: MethodConfig | None = None,
    teacher: ModelConfig | None = None,
    features: str | None = None,
    data: DataConfig | None = None,
    optim: OptimConfig | None = None,
    trainer: TrainerConfig | None = None,
    seed: int = 0,
    root: str | None = None,
) -> Run:
    """Trains a student, alone or from a teacher, and writes a run folder; continues one that was stopped.

    Args:
        table: CSV or Parquet file, folder of class folders, or a table already read.
        output: Run folder.
        student: The network that is trained and delivered.
        method: How it is trained.
        teacher: The network that it learns from; it sees every draw live.
        features: Instead of a live teacher: the folder of its features that `extract` wrote.
        data: How samples are read and drawn.
        optim: Optimiser and schedule.
        trainer: Where and how it runs.
        seed: Decides weights, order, draws and dropout.
        root: Folder that the table's relative paths start from.

    Returns:
        The run, finished. If it was finished before, nothing is done.

    Raises:
        ValueError: A setting or the table is wrong, or the folder holds a training with other settings.
        Interrupted: Ctrl-C. What was done so far is saved.
    """
    job = Job(
        table=table if isinstance(table, Table) else read_table(table, root=root),
        run=Run(Path(output)),
        student=student,
        method=method or MethodConfig(),
        teacher=teacher,
        features=features,
        data=data or DataConfig(),
        optim=optim or OptimConfig(),
        trainer=trainer or TrainerConfig(),
        seed=seed,
    )
    keep_memory()
    settings = job.settings(root)
    job.run.compare(settings)
    if job.run.finished:
        say(f"{job.run.path}: finished already; {summary(job.run)}")
        return job.run
    engine: Engine | None = None
    try:
        parts, task = split(job)
        engine = prepare(job, parts, task)
        with only_writer(job.run.path) if is_first_process() else nullcontext():
            if is_first_process():
                job.run.begin(settings)
            device, peers = fit(job, engine), engine.peers
            if is_first_process():
                if is_sharded(engine.method):
                    engine = prepare(job, parts, task)  # all weights, from the checkpoint at the end of the last epoch
                deliver(job, engine, parts, task, device)
            peers.wait()  # whoever returns finds the results
    except (KeyboardInterrupt, Stopped):
        raise Interrupted(_stopped_line(job.run, engine)) from None
    except RuntimeError as error:
        if not is_lost(error):
            raise
        raise _lost(job, error) from None
    return job.run


def say(line: str) -> None:
    """One line for the user, from one process."""
    if is_first_process():
        print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Parts:
    """The table as the training uses it."""

    train: Table
    val: Table | None
    test: Table | None


def split(job: Job) -> tuple[Parts, Task]:
    """Chooses the samples to train on, to select on and to test on; says what is doubtful about them.

    Raises:
        ValueError: Nothing to train on, classes that training does not know, or selection on the test split.
    """
    data, table = job.data, job.table
    if data.test is not None and data.val == data.test:
        raise ValueError(f"data.val and data.test are both {data.val!r}: the test split is never selected on; "
                         "leave data.val out to hold out training groups")  # fmt: skip
    used = [name for name in (data.train, data.val, data.test) if name is not None]
    leaks = [f"{table.source}: {leak}" for leak in check_leaks(table, used)]
    train_table = table.select(data.train)
    task = task_of(table, data)
    for _, part in task.parts:
        if isinstance(part, Classes):
            leaks += check_classes(table, data.train, data.test, part.target, part.names)
    for line in leaks:
        say(f"warning: {line}")
    test = table.select(data.test) if data.test is not None else None
    val = table.select(data.val) if data.val is not None else None
    needed = job.trainer.select == "best" or job.trainer.early_stop or job.optim.schedule == "plateau"
    if val is not None:
        task.check(val)
    elif needed:
        train_table, val = hold_out(train_table, data.val_fraction, job.seed, strata=task.strata)
    if data.label_fraction < 1.0:
        train_table = drop_labels(train_table, task.columns, data.label_fraction, job.seed, stratum=task.stratum)
    return Parts(train_table, val, test), task


def build(job: Job, train: Table, task: Task) -> Method:
    """Makes the networks and the method.

    Every network begins from its own seed, so that the same student starts from the same weights in every method.
    """
    torch.manual_seed(job.seed)
    backbone = load_model(job.student, num_classes=task.num_outputs, class_names=task.output_names)
    teachers: dict[str, Encoder] = {}
    if job.teacher is not None:
        torch.manual_seed(job.seed + 1)  # as `extract` seeds it
        teachers["teacher"] = load_model(job.teacher, num_classes=task.num_outputs, class_names=task.output_names)
    if job.features is not None:
        teachers["teacher"] = open_features(job.features, table=train, data=job.data, seed=job.seed,
                                            teacher=teachers.get("teacher"))  # fmt: skip
    torch.manual_seed(job.seed + 2)
    return build_method(job.method, backbone, teachers, task)


def prepare(job: Job, parts: Parts, task: Task) -> Engine:
    """The engine, where the last checkpoint left it."""
    method = build(job, parts.train, task)
    if job.trainer.channels_last:
        to_channels_last(method)
    if job.trainer.compile:
        # Measuring the gradients of the parts goes through the graph more than once.
        torch._functorch.config.donated_buffer = False
        mode = job.trainer.compile
        method.student.compile(mode=mode if isinstance(mode, str) else None)
    train = parts.train
    if not method.learns_unlabelled:
        train = train.select(task.has_label)
    loaders = VideoLoaders(train, parts.val, task, method.views(), job.data, job.optim, seed=job.seed)
    enough = math.ceil(job.optim.min_steps / loaders.steps_per_epoch)
    learns = any(p.requires_grad for p in method.parameters())
    optim = replace(job.optim, epochs=max(job.optim.epochs, enough) if learns else 0)
    engine = Engine(method, optim, loaders, seed=job.seed, sync_norms=job.trainer.sync_batchnorm,
                    timeout=job.trainer.timeout)  # fmt: skip
    if job.run.checkpoint.exists():
        try:
            engine.resume(job.run.read_checkpoint())
        except (KeyError, TypeError, AttributeError, AssertionError, RuntimeError) as error:
            raise ValueError(
                f"{job.run.checkpoint}: damaged ({one_line(error)[:200]}); remove it to train from the start"
            ) from None
    return engine


def fit(job: Job, engine: Engine) -> torch.device:
    """Trains to the end; returns the device that it ran on."""
    config, optim = job.trainer, engine.config
    with quiet_lightning(), StopSignal() as stop:
        writer = RunWriter(job.run, every=config.checkpoint_every, early_stop=config.early_stop,
                           keep_best=config.select == "best", stop=stop)  # fmt: skip
        trainer = make_trainer(config, optim, [writer, ProgressBar(engine)], epochs=optim.epochs - engine.epoch)
        device: torch.device = trainer.strategy.root_device
        stopped_early = bool(config.early_stop) and engine.bad_epochs >= (config.early_stop or 0)
        if engine.epoch < optim.epochs and not stopped_early:
            trainer.fit(engine)
    own_norms(engine.method.student)
    return device


def deliver(job: Job, engine: Engine, parts: Parts, task: Task, device: torch.device) -> None:
    """Writes what the run is for: weights, predictions, curves, results, model card, report."""
    run, student = job.run, engine.method.student
    if job.trainer.select == "best" and engine.epoch:
        student.load_state_dict(load_file(run.path / BEST))
    trained = {"method": job.method.name, "seed": job.seed, "short_side": short_side(job.data)}
    save_pretrained(student, task, run.path, {"trained": trained})
    errors, faults = dict(engine.errors), dict(engine.faults)
    report: dict[str, Any] = {"epochs": engine.epoch, "steps": engine.step, "gradients": engine.gradients}
    metrics, cost = selected(engine, job.trainer.select), None
    if parts.test is not None:
        reading = Reading(batch_size=job.optim.batch_size, workers=job.data.workers, device=device,
                          short_side=job.data.short_side, packed=job.data.packed, flow=job.data.flow,
                          timeout=job.data.timeout)  # fmt: skip
        tested = measure(run.path.name, student, parts.test, task, reading)
        write_predictions(run.path, tested.predictions, task)
        errors |= tested.predictions.errors
        faults |= tested.predictions.faults
        metrics, cost = {**tested.metrics, **metrics}, tested.cost
        metrics |= learned(engine.method, parts.train, parts.test, task, reading)
    run.write_broken(job.table, errors, faults)
    run.write_json("report.json", {**report, "unreadable": len(errors), "partly_readable": len(faults)})
    draw_curves(run, engine)
    counted = {"unreadable": float(len(errors))} if errors else {}
    run.write_results([make_row(run.path.name, {k: [v] for k, v in {**metrics, **counted}.items()}, cost)])
    (run.path / BEST).unlink(missing_ok=True)
    write_card(run.path)
    report_safely(run.path)
    say(f"{run.path}: {engine.epoch} epochs, {engine.step} steps; {summary(run)}")


def short_side(data: DataConfig) -> int | None:
    """To which shorter side frames are reduced; a frame store says it itself."""
    return FrameStore(data.packed).short_side if data.packed is not None else data.short_side


def selected(engine: Engine, select: str) -> dict[str, float]:
    """Validation metrics of the epoch that is delivered."""
    rows = [row for row in engine.history if "val_loss" in row]
    if not rows:
        return {}
    name = next((k for k in rows[0] if k.startswith("val_") and k != "val_loss"), "val_loss")
    row = max(rows, key=lambda r: comparable(r.get(name, math.nan))) if select == "best" else rows[-1]
    return {k: v for k, v in row.items() if k.startswith("val_")}


def draw_curves(run: Run, engine: Engine) -> None:
    """Draws the losses of a distillation over the epochs (as HalluciNet's Figure 5) into `curves.png`."""
    parts = [name for name in engine.method.weights() if name != "task_loss"]
    if parts and engine.history:
        from stillmotion.report.plots import plot_curves

        columns = {name.replace("_", " "): name for name in [*parts, "task_loss"]}
        plot_curves({run.path.name: [run.path / "metrics.csv"]}, columns, run.path / "curves.png")


def summary(run: Run) -> str:
    """What came out, in a few words."""
    metrics = run.results()[0]["metrics"]
    parts = [f"{name} {m['mean']:.3f}" for name, m in metrics.items() if m["mean"] is not None and name != "unreadable"]
    report = run.read_json("report.json")
    for key, words in (("unreadable", "unreadable"), ("partly_readable", "partly readable")):
        if count := report[key]:
            parts.append(f"{count} {words} sample{'s' if count > 1 else ''}")
    if report["unreadable"] or report["partly_readable"]:
        parts.append(f"listed in {run.path / 'broken.csv'}")
    return ", ".join(parts) or "no test split was evaluated"


def _stopped_line(run: Run, engine: Engine | None) -> str:
    if engine is None or not run.checkpoint.exists():
        return "stopped before the first checkpoint; run the same command to start again"
    step = run.read_checkpoint()["stillmotion"]["position"][2]
    return f"stopped at step {step}; run the same command to resume"


def _lost(job: Job, error: RuntimeError) -> LostError:
    """What is said where another process is gone."""
    step = job.run.read_checkpoint()["stillmotion"]["position"][2] if job.run.checkpoint.exists() else 0
    reason = one_line(error).rpartition("cc:")[2].partition("] ")[2] or one_line(error)  # gloo's place in its source
    where = f"the last checkpoint is of step {step}" if step else "there is no checkpoint yet"
    line = (f"{job.run.path}: another process of this training is gone ({reason[:120]}); {where}; run the "
            "same command to go on, on any number of processes")  # fmt: skip
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        # What the GPU still waits for never comes, and an orderly end would wait for it.
        print(f"stillmotion: error: {line}", file=sys.stderr, flush=True)
        os._exit(2)
    return LostError(line)
