"""The LightningModule: steps, learning rate, what is summed and saved. Knows no method by name.

A run resumes by its own position (epoch, batches of it, optimiser steps) and not by Lightning's loop counters: batches
are a function of the epoch, draws of the sample, dropout of the position. So a killed run ends with the weights of an
uninterrupted one.
"""

import hashlib
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import lightning as L
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from stillmotion.config import OptimConfig
from stillmotion.data.geometry import render_batch
from stillmotion.methods.base import Method
from stillmotion.models.encoder import Batch
from stillmotion.norms import join_norms
from stillmotion.optim import Schedule, find_norms, gradient_norms, make_optimiser
from stillmotion.processes import Peers, divided, is_sharded
from stillmotion.tasks import comparable

LOG_EVERY = 10
KEY = "stillmotion"
POINTS, COUNT = "sum of ", "number of "
"""Before the name of a metric, among the sums of an epoch."""


class TrainBatches(Protocol):
    """Order of the training batches: a function of the epoch."""

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Chooses the epoch, and how many of its batches are left out because they were seen."""


class Loaders(Protocol):
    """What the engine asks of the data: batches for one of several processes."""

    steps_per_epoch: int
    train_ids: list[str]
    val_ids: list[str]

    def train(self, rank: int, world_size: int) -> tuple[TrainBatches, Iterable[Batch]]:
        """Order and batches of the training samples."""

    def val(self, rank: int, world_size: int) -> Iterable[Batch] | None:
        """Batches of the validation samples; None without validation."""


class Engine(L.LightningModule):
    """Trains a method.

    Args:
        method: Networks and losses.
        config: Optimiser and schedule.
        loaders: Where batches come from.
        seed: Of dropout and whatever else a network draws.
        sync_norms: Whether batch norms see the batch of all processes; None: on several GPUs.
        timeout: Seconds that one of several processes waits for another.

    Attributes:
        epoch, batch, step: Position: epochs done, batches of the next one done, optimiser steps done.
        history: One row an epoch, as in `metrics.csv`.
        errors, faults: Reason by id of every sample that could not be read, or only in part.
        gradients: See `gradient_norms`; of the first step.
        last: Losses of the last batch.
        best, bad_epochs: Best validation metric so far, epochs since.
        peers: All processes of the training.
    """

    def __init__(
        self,
        method: Method,
        config: OptimConfig,
        loaders: Loaders,
        *,
        seed: int = 0,
        sync_norms: bool | None = None,
        timeout: float = 1800.0,
    ) -> None:
        super().__init__()
        self.strict_loading = False  # frozen networks are not in the checkpoint
        self.method, self.config, self.loaders, self.seed = method, config, loaders, seed
        method.fixed_norms = find_norms(method.student, config.fixed_norms)
        self.schedule = Schedule(config, loaders.steps_per_epoch)
        self.epoch = self.batch = self.step = 0
        self.history: list[dict[str, float]] = []
        self.errors: dict[str, str] = {}
        self.faults: dict[str, str] = {}
        self.gradients: dict[str, Any] = {}
        self.best, self.bad_epochs = -math.inf, 0
        self.last: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._val: list[tuple[Tensor, Tensor]] = []
        self._val_row: dict[str, float] = {}
        self._resumed: dict[str, Any] | None = None
        self._sync_norms, self._timeout = sync_norms, timeout
        self._unused: list[torch.nn.Parameter] | None = None
        self._learned = False  # whether any process has a sample for the next step of the optimiser
        self.peers = Peers()
        self._began = time.monotonic()

    # Data

    def train_dataloader(self) -> Iterable[Batch]:
        self._batches, loader = self.loaders.train(self.global_rank, self.trainer.world_size)
        self._batches.set_epoch(self.epoch, self.batch)
        return _Unsized(loader)

    def val_dataloader(self) -> Iterable[Batch]:
        loader = self.loaders.val(self.global_rank, self.trainer.world_size)
        return [] if loader is None else _Unsized(loader)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        return render_batch(batch)

    def on_train_epoch_start(self) -> None:
        self._began = time.monotonic()
        if self.batch == 0:
            self._batches.set_epoch(self.epoch)

    # Steps

    def configure_model(self) -> None:
        self.peers = Peers.join(self.trainer.world_size, self._timeout)
        on_gpus = self.trainer.strategy.root_device.type == "cuda"
        if self._sync_norms and not on_gpus:
            raise ValueError("trainer.sync_batchnorm=true: torch joins batch norms on GPUs only; leave it out")
        if self.peers.world > 1 and on_gpus and self._sync_norms is not False:
            join_norms(self.method)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        unfit = self.config.optimiser == "sgd" and is_sharded(self.method)  # torch has no fused one for these
        return make_optimiser(self.method, self.config, fused=self.trainer.precision != "16-mixed" and not unfit)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        torch.manual_seed(position_seed(self.seed, self.epoch, self.batch, self.global_rank))
        optimiser = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimiser, torch.optim.Optimizer)
        for group in optimiser.param_groups:
            group["lr"] = self.config.step_lr * self.schedule.factor(self.step) * group["lr_factor"]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        self.batch += 1
        self._note_faults(batch, self.loaders.train_ids)
        count = len(batch["target"])
        seen, weight = self.peers.complete(batch, holed=bool(batch.get("errors")))
        self._learned = self._learned or seen is not None
        if seen is None:
            # Several processes step together, so that one of them cannot leave the step out.
            return None if self.peers.world == 1 else _zero(self.method)
        self.method.progress = self.step / (self.config.epochs * self.loaders.steps_per_epoch)
        out = self.method(seen)
        if count:
            if not self.gradients and not is_sharded(self.method):
                self.gradients = gradient_norms(out, self.method.weights(), list(self.method.student.parameters()))
            self._add(out, seen["target"])
        loss: Tensor = out["loss"]
        return loss if self.peers.world == 1 else self._with_unused(loss) * weight

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if not self._learned:  # one process would have no gradient either
            optimizer.zero_grad(set_to_none=True)
        for parameter in self._unused or ():
            parameter.grad = None
        self._learned = False

    def _with_unused(self, loss: Tensor) -> Tensor:
        """A loss that depends on all that learns, as DDP wants it; a method need not use all of its networks."""
        if self._unused is None:
            learning = [p for p in self.method.parameters() if p.requires_grad and not is_sharded(self.method)]
            grads = torch.autograd.grad(loss, learning, retain_graph=True, allow_unused=True) if learning else ()
            self._unused = [p for p, grad in zip(learning, grads, strict=True) if grad is None]
        return torch.stack([loss, *(p.sum() * 0.0 for p in self._unused)]).sum()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.step += 1

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._note_faults(batch, self.loaders.val_ids)
        count = len(batch["target"])
        # Where weights are divided, all processes run the network, or none.
        seen = self.peers.complete(batch)[0] if is_sharded(self.method) else (batch if count else None)
        if seen is None:
            return
        logits = self.method.student.from_batch(seen, "student")["logits"]
        if count:
            self._val.append((logits.float().cpu(), batch["target"].cpu()))

    def on_validation_epoch_start(self) -> None:
        if isinstance(self.method, FSDPModule):
            self.method.unshard()  # validation runs the student, not the method

    def on_validation_epoch_end(self) -> None:
        if isinstance(self.method, FSDPModule):
            self.method.reshard()
        pairs = [pair for part in self.gather(self._val) for pair in part]
        self._val, self._val_row = [], {}
        if not pairs:
            return
        logits, targets = torch.cat([p[0] for p in pairs]), torch.cat([p[1] for p in pairs])
        metrics = self.method.task.metrics(logits.numpy(), targets.numpy())
        loss = float(self.method.task.loss(logits, targets))
        self._val_row = {"val_loss": loss, **{f"val_{name}": value for name, value in metrics.items()}}

    def on_train_epoch_end(self) -> None:
        self.check_finite()
        row: dict[str, float] = {"epoch": self.epoch, "step": self.step}
        row["lr"] = self.config.step_lr * self.schedule.factor(max(0, self.step - 1))
        self.errors, self.faults = self._joined(self.errors), self._joined(self.faults)
        totals = self.totals()
        if not totals and len(self.errors) >= len(self.loaders.train_ids):
            name, reason = next(iter(self.errors.items()))
            raise ValueError(f"none of {len(self.errors)} training samples can be read; the first: {name}: {reason}")
        row |= means(totals) | self._val_row
        row["seconds"] = round(time.monotonic() - self._began, 3)
        self.history.append(row)
        self.schedule.end_epoch(self._val_row.get("val_loss"))
        self._judge()
        self.epoch, self.batch, self._sums = self.epoch + 1, 0, {}

    def _judge(self) -> None:
        """Compares the validation metric (the task's first) with the best so far."""
        value = next((v for k, v in self._val_row.items() if k != "val_loss"), None)
        if value is not None and comparable(value) > self.best:
            self.best, self.bad_epochs = comparable(value), 0
        elif value is not None:
            self.bad_epochs += 1

    # Sums

    def _note_faults(self, batch: Batch, ids: Sequence[str]) -> None:
        self.errors |= {ids[index]: reason for index, reason in batch.get("errors", ())}
        self.faults |= {ids[index]: reason for index, reason in batch.get("faults", ())}

    def _add(self, out: Mapping[str, Tensor], targets: Tensor) -> None:
        task = self.method.task
        size = torch.tensor(float(len(targets)), device=targets.device)
        self.last = {k: v.detach().float() for k, v in out.items() if k == "loss" or k.endswith("_loss")}
        parts = {name: value * size for name, value in self.last.items()}
        for name, (values, known) in task.points(out["logits"].detach(), targets).items():
            parts[f"{POINTS}{name}"] = torch.where(known, values, 0.0).sum()
            parts[f"{COUNT}{name}"] = known.sum()
        for name, value in {**parts, "samples": size}.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def totals(self) -> dict[str, float]:
        """Sums since the epoch began, over all processes."""
        result: dict[str, float] = {}
        for part in self.gather({name: float(value) for name, value in self._sums.items()}):
            for name, value in part.items():
                result[name] = result.get(name, 0.0) + value
        return result

    def check_finite(self) -> None:
        """Refuses to go on with, or to save, a training that has diverged.

        Raises:
            ValueError: A loss of this epoch is not a number.
        """
        if "loss" in self._sums and not math.isfinite(float(self._sums["loss"])):
            raise ValueError(
                f"the loss is no finite number at step {self.step}; lower optim.lr, set optim.clip_norm, or train in "
                "trainer.precision 32-true"
            )

    def gather(self, item: Any) -> list[Any]:
        """The item of every process."""
        return self.peers.gather(item)

    def _joined(self, notes: dict[str, str]) -> dict[str, str]:
        return {name: reason for part in self.gather(notes) for name, reason in part.items()}

    # Checkpoint

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        frozen = tuple(f"method.encoders.{role}." for role in self.method.frozen)
        states = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in states.items() if not k.startswith(frozen)} if frozen else states
        checkpoint[KEY] = {
            "position": [self.epoch, self.batch, self.step],
            "sums": self.totals(),
            "schedule": self.schedule.state_dict(),
            "history": self.history,
            "errors": self.errors,
            "faults": self.faults,
            "gradients": self.gradients,
            "best": [self.best, self.bad_epochs],
        }

    def resume(self, checkpoint: dict[str, Any]) -> None:
        """Continues where a checkpoint was written. Call before `fit`."""
        own = checkpoint[KEY]
        missing, unexpected = self.load_state_dict(checkpoint["state_dict"], strict=False)
        frozen = tuple(f"method.encoders.{role}." for role in self.method.frozen)
        assert not unexpected, "settings are equal, so networks are"
        assert all(name.startswith(frozen) for name in missing), "only frozen networks are left out"
        self.epoch, self.batch, self.step = own["position"]
        self.schedule.load_state_dict(own["schedule"])
        self.history, self.gradients = own["history"], own["gradients"]
        self.errors, self.faults = own["errors"], own["faults"]
        self.best, self.bad_epochs = own["best"]
        self._resumed = checkpoint

    def on_fit_start(self) -> None:
        self.method.train()
        places = self.gather([self.epoch, self.batch, self.step])
        if any(place != places[0] for place in places):
            raise ValueError(
                f"the processes begin at different steps ({', '.join(str(p[2]) for p in places)}): the run folder must "
                "be the same for all; put --output on a file system that all machines share"
            )
        if self._resumed is None:
            return
        if self.global_rank == 0:  # the sums are of all processes
            sums = self._resumed[KEY]["sums"]
            self._sums = {name: torch.tensor(value, device=self.device) for name, value in sums.items()}
        optimiser = self.trainer.optimizers[0]
        optimiser.load_state_dict(divided(self._resumed["optimizer_states"][0], optimiser))
        plugin = self.trainer.precision_plugin
        if scaler := self._resumed.get(type(plugin).__qualname__):
            plugin.load_state_dict(scaler)
        self._resumed = None


class _Unsized:
    """Hides a loader's length from Lightning, which takes it once; a resumed epoch is shorter than those after it."""

    def __init__(self, loader: Iterable[Batch]) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._loader)


def means(totals: Mapping[str, float]) -> dict[str, float]:
    """Mean losses, and the metrics that are means over samples, from sums.

    Example:
        >>> means({"loss": 3.0, "samples": 2.0, "sum of top1": 1.0, "number of top1": 1.0})
        {'loss': 1.5, 'top1': 1.0}
    """
    row: dict[str, float] = {}
    for name, value in totals.items():
        metric = name.removeprefix(POINTS)
        if metric != name:
            if number := totals[f"{COUNT}{metric}"]:
                row[metric] = value / number
        elif name != "samples" and not name.startswith(COUNT):
            row[name] = value / totals["samples"]
    return row


def position_seed(seed: int, epoch: int, batch: int, rank: int) -> int:
    """Seed of what networks draw in one batch."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{batch}/{rank}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


def _zero(method: Method) -> Tensor:
    """A loss that moves nothing and depends on everything."""
    return torch.stack([p.sum() * 0.0 for p in method.parameters() if p.requires_grad]).sum()
