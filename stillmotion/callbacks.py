"""What happens around the steps: checkpoints, logs, early stop, Ctrl-C, the progress bar."""

import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, cast

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import _get_rank, rank_zero_only
from lightning.pytorch.callbacks import Callback, Checkpoint
from rich.progress import TextColumn
from torch.utils.tensorboard import SummaryWriter

from stillmotion.config import OptimConfig, TrainerConfig
from stillmotion.data.faults import one_line
from stillmotion.engine import LOG_EVERY, Engine
from stillmotion.files import csv_text, write_atomic
from stillmotion.processes import placement, whole
from stillmotion.progress import progress_bar
from stillmotion.run import Run

BEST = "best.safetensors"


def is_first_process() -> bool:
    """Whether this process is the one that writes."""
    # Lightning knows it from its trainer on; before, what started the processes says it.
    return bool(getattr(rank_zero_only, "rank", 0) == 0) and not _get_rank()


class Stopped(Exception):
    """Ctrl-C, after the checkpoint was written. Not a KeyboardInterrupt, on which Lightning ends the process."""


class StopSignal:
    """While active, a first Ctrl-C asks for a stop at the end of the step, a second one stops at once.

    So does SIGTERM, with which SLURM, Kubernetes and others announce the end of a job.
    """

    def __init__(self) -> None:
        self.requested = self._own = False

    def __enter__(self) -> "StopSignal":
        self._own = threading.current_thread() is threading.main_thread()
        if self._own:
            self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def take_back(self) -> None:
        """Takes SIGTERM back from Lightning, which would end the training without a checkpoint."""
        if self._own:
            signal.signal(signal.SIGTERM, self._handle)

    def __exit__(self, *_: object) -> None:
        if self._own:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.requested:
            raise Stopped
        self.requested = True


class RunWriter(Checkpoint):
    """Writes `last.ckpt`, `metrics.csv`, TensorBoard events and the best weights; stops early, and on Ctrl-C.

    A checkpoint replaces the one before in one rename, so that a kill leaves one of the two.

    Args:
        run: The folder.
        every: Steps between two checkpoints; there is one at the end of every epoch too.
        early_stop: Epochs without a better validation metric after which the training ends (None: never).
        keep_best: Whether the weights of the best epoch are kept.
        stop: Whether the user wants to stop.
    """

    def __init__(self, run: Run, *, every: int, early_stop: int | None, keep_best: bool, stop: StopSignal) -> None:
        self.run, self.every, self.early_stop, self.keep_best, self.stop = run, every, early_stop, keep_best, stop
        self._step = -1
        self._events: SummaryWriter | None = None

    def on_train_start(self, trainer: L.Trainer, engine: L.LightningModule) -> None:
        self.stop.take_back()

    def on_train_batch_end(self, trainer: L.Trainer, engine: L.LightningModule, *_: Any) -> None:
        assert isinstance(engine, Engine)
        if engine.step == self._step:  # a part of an accumulated batch
            return
        self._step = engine.step
        if engine.step % LOG_EVERY == 0:
            engine.check_finite()
            self._log({f"train/{k}": float(v) for k, v in engine.last.items()}, engine.step)
        if trainer.is_last_batch:  # the epoch's end saves
            return
        stop = self._stop_requested(trainer, engine.step)
        if stop or engine.step % self.every == 0:
            self._save(trainer, engine)
        if stop:
            raise Stopped

    def on_train_epoch_end(self, trainer: L.Trainer, engine: L.LightningModule) -> None:
        # Lightning calls checkpoint callbacks after the module's own `on_train_epoch_end`.
        assert isinstance(engine, Engine)
        if trainer.is_global_zero:
            row = {k: v for k, v in engine.history[-1].items() if k not in ("epoch", "step")}
            tags = {k: f"val/{k[4:]}" if k.startswith("val_") else f"epoch/{k}" for k in row}
            self._log({tags[k]: v for k, v in row.items()}, engine.step)
            names = list(dict.fromkeys(name for r in engine.history for name in r))
            rows = [[r.get(name, "") for name in names] for r in engine.history]
            write_atomic(self.run.path / "metrics.csv", csv_text(names, rows))
        if self.keep_best and engine.bad_epochs == 0:
            save_weights(engine, self.run)
        self._save(trainer, engine)
        if self.early_stop and engine.bad_epochs >= self.early_stop:
            trainer.should_stop = True
        if self._stop_requested(trainer, 0) and not trainer.should_stop and engine.epoch < engine.config.epochs:
            raise Stopped

    def _stop_requested(self, trainer: L.Trainer, step: int) -> bool:
        if trainer.world_size == 1:
            return self.stop.requested
        # All processes must stop at the same step; asking at every step would cost time.
        return step % LOG_EVERY == 0 and trainer.strategy.reduce_boolean_decision(self.stop.requested, all=False)

    def _log(self, values: Mapping[str, float], step: int) -> None:
        if not is_first_process():
            return
        if self._events is None:
            self._events = SummaryWriter(str(self.run.path / "events"))
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def teardown(self, trainer: L.Trainer, engine: L.LightningModule, stage: str) -> None:
        if self._events is not None:
            self._events.close()

    def _save(self, trainer: L.Trainer, engine: Engine) -> None:
        engine.check_finite()
        part = self.run.path / ".last.ckpt.part"
        trainer.save_checkpoint(part)
        if trainer.is_global_zero:
            os.replace(part, self.run.checkpoint)


def save_weights(engine: Engine, run: Run) -> None:
    """Writes the student's weights of the best epoch so far, from one process; all of them put the weights together."""
    from safetensors.torch import save

    tensors = {k: whole(v).detach().cpu().contiguous() for k, v in engine.method.student.state_dict().items()}
    if is_first_process():
        write_atomic(run.path / BEST, save(tensors))


class ProgressBar(Callback):
    """One bar over the whole training; silent where there is no terminal."""

    def __init__(self, engine: Engine) -> None:
        total = engine.config.epochs * engine.loaders.steps_per_epoch
        self._bar = progress_bar(TextColumn("{task.fields[news]}"))
        self._task = self._bar.add_task("training", total=total, news="")

    def on_train_start(self, trainer: L.Trainer, engine: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self._bar.start()

    def on_train_batch_end(self, trainer: L.Trainer, engine: L.LightningModule, *_: Any) -> None:
        assert isinstance(engine, Engine)
        if self._bar.disable:
            return
        self._bar.update(
            self._task,
            completed=engine.step,
            description=f"epoch {engine.epoch + 1}/{engine.config.epochs}",
        )
        if engine.step % LOG_EVERY == 0:
            self._bar.update(self._task, news=self._news(engine))

    def on_train_end(self, trainer: L.Trainer, engine: L.LightningModule) -> None:
        self._bar.stop()

    def on_exception(self, trainer: L.Trainer, engine: L.LightningModule, exception: BaseException) -> None:
        self._bar.stop()

    def _news(self, engine: Engine) -> str:
        parts = [f"loss {float(engine.last['loss']):.3g}"] if "loss" in engine.last else []
        task = engine.method.task
        shown = (f"val_{task.metric_kinds[0]}", "top1", "correct", "mae")
        parts += [f"{k} {v:.3f}" for k, v in (engine.history[-1].items() if engine.history else ()) if k in shown]
        return "  ".join(parts)


def make_trainer(config: TrainerConfig, optim: OptimConfig, callbacks: list[Callback], *, epochs: int) -> L.Trainer:
    """Lightning's trainer for so many epochs; it writes nothing by itself.

    Raises:
        ValueError: It knows no such accelerator or precision, or there is none here.
    """
    try:
        return L.Trainer(
            accelerator=config.accelerator,
            **placement(config),
            precision=cast(Any, config.precision),  # Lightning checks it
            max_epochs=max(0, epochs),
            accumulate_grad_batches=optim.accumulate,
            gradient_clip_val=optim.clip_norm,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
    except MisconfigurationException as error:
        raise ValueError(f"trainer.accelerator={config.accelerator}: {one_line(error)}") from None


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silences what Lightning says of itself: hardware, tips, advice about loaders; errors pass."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
