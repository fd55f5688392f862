"""The engine on tensors made up here: learning rates, sums, resuming, what is trained and what is saved."""

import copy
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from stillmotion.callbacks import RunWriter, Stopped, StopSignal, make_trainer, quiet_lightning
from stillmotion.config import OptimConfig, TrainerConfig
from stillmotion.engine import Engine, means
from stillmotion.methods.base import Method
from stillmotion.methods.supervised import Supervised
from stillmotion.models.encoder import Batch, Encoder
from stillmotion.optim import Schedule, gradient_norms, make_optimiser
from stillmotion.run import Run
from stillmotion.tasks import Classification
from stillmotion.view import View

TASK = Classification(("a", "b", "c"))


class Tiny(Encoder):
    """Batch norm and dropout, so that a resumed run has something to get wrong."""

    def __init__(self, norm: bool = True, dropout: float = 0.3) -> None:
        super().__init__()
        self.views = {"frames": View(size=(4, 4))}
        self.embedding_dim, self.num_classes = 6, 3
        self.stem = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(6, 3)

    def forward_views(self, *inputs: Tensor) -> dict[str, Tensor]:
        x = self.norm(self.stem(inputs[0][:, 0])).relu().mean((2, 3))
        return {"embedding": x, "logits": self.head(self.dropout(x))}


class Mimic(Method):
    """Task loss, plus the distance to a frozen teacher's embedding."""

    roles = ("student", "teacher")
    frozen = ("teacher",)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        out = self.student.from_batch(batch, "student")
        with torch.no_grad():
            target = self.encoder("teacher").from_batch(batch, "teacher")["embedding"]
        task_loss = self.task.loss(out["logits"], batch["target"])
        feature_loss = (out["embedding"] - target).pow(2).mean()
        loss = task_loss + 2.0 * feature_loss
        return {"loss": loss, "task_loss": task_loss, "feature_loss": feature_loss, "logits": out["logits"]}

    def weights(self) -> dict[str, float]:
        return {"task_loss": 1.0, "feature_loss": 2.0}


class Order:
    """Batches of a seeded order."""

    def __init__(self, data: "Tensors") -> None:
        self.data, self.epoch, self.start = data, 0, 0

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        self.epoch, self.start = epoch, start_batch

    def __iter__(self) -> Iterator[Batch]:
        rows = np.random.default_rng(self.epoch).permutation(len(self.data.x))
        parts = [rows[i : i + self.data.size] for i in range(0, len(rows), self.data.size)]
        return iter([self.data.batch(part) for part in parts[self.start : self.data.steps]])


class Tensors:
    """Loaders over random frames; samples in `broken` cannot be read."""

    def __init__(
        self,
        num: int = 20,
        size: int = 4,
        val: int = 0,
        broken: Iterable[int] = (),
        accumulate: int = 1,
        steps: int | None = None,
    ) -> None:
        rng = np.random.default_rng(0)
        self.x = torch.from_numpy(rng.normal(size=(num, 1, 1, 3, 4, 4)).astype(np.float32))
        self.y = torch.from_numpy(rng.integers(0, 3, num))
        self.size, self.broken, self.num_val = size, {int(i) for i in broken}, val
        self.steps = steps
        self.steps_per_epoch = math.ceil(math.ceil(num / size) / accumulate)
        self.train_ids = self.val_ids = [f"clip{i}" for i in range(num)]

    def batch(self, rows: np.ndarray) -> Batch:
        keep = torch.tensor([int(r) for r in rows if r not in self.broken], dtype=torch.int64)
        errors = [(int(r), "no frames") for r in rows if r in self.broken]
        faults = [(int(r), "cut off") for r in keep if r == 2]
        batch: dict[str, Any] = {"index": keep, "target": self.y[keep], "errors": errors, "faults": faults}
        if len(keep):
            batch |= {"student/frames": self.x[keep], "teacher/frames": self.x[keep] * 0.5}
        return batch

    def train(self, rank: int, world_size: int) -> tuple[Order, Order]:
        order = Order(self)
        return order, order

    def val(self, rank: int, world_size: int) -> list[Batch] | None:
        return [self.batch(np.arange(self.num_val))] if self.num_val else None


def mimic() -> Mimic:
    torch.manual_seed(0)
    return Mimic({"student": Tiny(), "teacher": Tiny()}, TASK)


def supervised(**settings: Any) -> Supervised:
    torch.manual_seed(0)
    return Supervised({"student": Tiny(**settings)}, TASK)


def fit(engine: Engine, folder: Path, *callbacks: Callback, **trainer: Any) -> L.Trainer:
    """Trains to the end on the CPU; resumes if the folder holds a checkpoint."""
    folder.mkdir(exist_ok=True)
    run = Run(folder)
    if run.checkpoint.exists():
        engine.resume(run.read_checkpoint())
    config = TrainerConfig(accelerator="cpu", devices=1, **trainer)
    writer = RunWriter(run, every=config.checkpoint_every, early_stop=config.early_stop,
                       keep_best=config.select == "best", stop=StopSignal())  # fmt: skip
    with quiet_lightning():
        made = make_trainer(config, engine.config, [*callbacks, writer], epochs=engine.config.epochs - engine.epoch)
        made.fit(engine)
    return made


class Kill(Callback):
    """Ends the training after some batches, as a kill would: nothing is written any more."""

    def __init__(self, after: int) -> None:
        self.left = after

    def on_train_batch_start(self, *_: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise Stopped


def weights(engine: Engine) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in engine.method.student.state_dict().items()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize(
    ("after", "every", "accumulate"), [(0, 1, 1), (2, 1, 1), (5, 3, 1), (6, 1, 2), (9, 3, 1), (10, 1, 1), (13, 1, 2)]
)
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, after: int, every: int, accumulate: int
) -> None:
    optim = OptimConfig(epochs=3, lr=0.05, accumulate=accumulate, schedule="cosine", warmup_steps=3, clip_norm=0.5)

    def make() -> Engine:
        return Engine(mimic(), optim, Tensors(val=6, accumulate=accumulate), seed=3)

    whole = make()
    fit(whole, tmp_path / "whole", checkpoint_every=every)
    with pytest.raises(Stopped):
        fit(make(), tmp_path / "killed", Kill(after), checkpoint_every=every)
    torch.manual_seed(99)  # another process, another state
    resumed = make()
    fit(resumed, tmp_path / "killed", checkpoint_every=every)
    assert_same(weights(resumed), weights(whole))
    assert resumed.step == whole.step == 3 * math.ceil(5 / accumulate)
    for a, b in zip(resumed.history, whole.history, strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}
    assert resumed.gradients == whole.gradients


def test_dropout_falls_differently_at_every_step_and_with_every_seed(tmp_path: Path) -> None:
    ends = []
    for seed in (0, 1):
        engine = Engine(supervised(), OptimConfig(epochs=1, lr=0.05), Tensors(), seed=seed)
        fit(engine, tmp_path / str(seed))
        ends.append(weights(engine)["head.weight"])
    assert not torch.equal(*ends)


def test_frozen_networks_stay_and_are_not_in_the_checkpoint(tmp_path: Path) -> None:
    method = mimic()
    before = copy.deepcopy(method.encoder("teacher").state_dict())
    engine = Engine(method, OptimConfig(epochs=1, lr=0.1), Tensors())
    fit(engine, tmp_path / "run")
    assert_same(method.encoder("teacher").state_dict(), before)
    saved = Run(tmp_path / "run").read_checkpoint()
    assert not any("teacher" in name for name in saved["state_dict"])
    assert any("student" in name for name in saved["state_dict"])


def test_accumulated_parts_make_the_step_of_the_whole_batch(tmp_path: Path) -> None:
    # Without batch norm and dropout, the mean of equal parts is the whole.
    ends = []
    for accumulate in (1, 2):
        optim = OptimConfig(epochs=1, optimiser="sgd", lr=0.1, accumulate=accumulate)
        loaders = Tensors(num=16, size=8 // accumulate, accumulate=accumulate)
        engine = Engine(supervised(norm=False, dropout=0.0), optim, loaders)
        fit(engine, tmp_path / str(accumulate))
        assert engine.step == 2
        ends.append(weights(engine))
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name])


def test_a_kill_while_writing_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = L.Trainer.save_checkpoint

    def half(trainer: L.Trainer, path: Path, *args: Any, **settings: Any) -> None:
        save(trainer, path, *args, **settings)
        if trainer.lightning_module.step == 3:
            path.write_bytes(path.read_bytes()[:1000])
            raise Stopped

    monkeypatch.setattr(L.Trainer, "save_checkpoint", half)
    with pytest.raises(Stopped):
        fit(Engine(supervised(), OptimConfig(epochs=1), Tensors()), tmp_path / "run", checkpoint_every=1)
    assert Run(tmp_path / "run").read_checkpoint()["stillmotion"]["position"] == [0, 2, 2]


def test_one_step_of_sgd_by_hand(tmp_path: Path) -> None:
    method = supervised(norm=False, dropout=0.0)
    twin = copy.deepcopy(method)
    loaders = Tensors(num=4)
    fit(Engine(method, OptimConfig(epochs=1, optimiser="sgd", lr=0.5, weight_decay=0.1, schedule="constant"), loaders),
        tmp_path / "run")  # fmt: skip
    torch.autograd.backward(twin(loaders.batch(np.arange(4)))["loss"])
    weight = twin.student.get_parameter("head.weight")
    assert weight.grad is not None
    by_hand = weight - 0.5 * (weight.grad + 0.1 * weight)
    torch.testing.assert_close(method.student.get_parameter("head.weight"), by_hand)


def test_unreadable_samples_are_noted_and_an_unreadable_batch_moves_nothing(tmp_path: Path) -> None:
    optim = OptimConfig(epochs=1, lr=0.1, weight_decay=0.1, schedule="constant")
    second = np.random.default_rng(0).permutation(8)[4:]
    holed = Engine(supervised(), optim, Tensors(num=8, broken=second))
    short = Engine(supervised(), optim, Tensors(num=8, steps=1))
    fit(holed, tmp_path / "holed")
    fit(short, tmp_path / "short")
    assert_same(weights(holed), weights(short))
    assert holed.errors == {f"clip{i}": "no frames" for i in second}
    with pytest.raises(ValueError, match=r"none of 4 training samples can be read; the first: clip\d: no frames"):
        fit(Engine(supervised(), optim, Tensors(num=4, broken=range(4))), tmp_path / "all")

    some = Engine(supervised(), OptimConfig(epochs=1, lr=0.1), Tensors(broken=[7]))
    fit(some, tmp_path / "some")
    assert some.errors == {"clip7": "no frames"}
    assert some.faults == {"clip2": "cut off"}
    assert some.totals() == {}


def test_patterns_choose_what_learns_and_how_fast(tmp_path: Path) -> None:
    optim = OptimConfig(epochs=1, lr=0.1, trainable=["head.*", "norm.*"], lr_factors={"norm.*": 0.0})
    engine = Engine(supervised(), optim, Tensors())
    before = weights(engine)
    fit(engine, tmp_path / "run")
    moved = {name for name, value in weights(engine).items() if not torch.equal(value, before[name])}
    # Fixed weights, but the batch norm still counts.
    assert moved == {"head.weight", "head.bias", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    with pytest.raises(ValueError, match=r"no parameter of the student matches 'haed\.\*'; its names are like stem"):
        make_optimiser(supervised(), OptimConfig(trainable=["haed.*"]))


def test_fixed_norms_keep_their_statistics(tmp_path: Path) -> None:
    engine = Engine(supervised(), OptimConfig(epochs=1, lr=0.1, fixed_norms=["n*"]), Tensors())
    before = weights(engine)
    fit(engine, tmp_path / "run")
    kept = {name for name, value in weights(engine).items() if torch.equal(value, before[name])}
    assert kept == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    with pytest.raises(ValueError, match=r"no batch norm of the student matches 'bn\*'; names: norm"):
        Engine(supervised(), OptimConfig(fixed_norms=["bn*"]), Tensors())


def test_learning_rates_of_every_step(tmp_path: Path) -> None:
    seen: list[tuple[float, float]] = []
    progress: list[float] = []

    class Spy(Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            progress.append(engine.method.progress)
            head, rest = (g["lr"] for g in sorted(trainer.optimizers[0].param_groups, key=lambda g: -g["lr"]))
            seen.append((head, rest))

    optim = OptimConfig(epochs=3, lr=0.1, schedule="step", step_epochs=1, warmup_steps=2, lr_factors={"stem.*": 0.5})
    engine = Engine(supervised(), optim, Tensors(num=12))
    fit(engine, tmp_path / "run", Spy())
    rates = [0.05, 0.1, 0.1, 0.01, 0.01, 0.01, 0.001, 0.001, 0.001]
    assert seen == [pytest.approx((rate, rate / 2)) for rate in rates]
    assert progress == pytest.approx([k / 9 for k in range(9)])


def test_plateau_drops_when_torch_drops() -> None:
    losses = [1.0, 0.9, 0.95, 0.89999, 0.91, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8]
    ours = Schedule(OptimConfig(schedule="plateau", gamma=0.1, patience=1), 10)
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, factor=0.1, patience=1, eps=0.0)
    for loss in losses:
        ours.end_epoch(loss)
        theirs.step(loss)
        assert ours.factor(0) == pytest.approx(optimiser.param_groups[0]["lr"])
    assert ours.drops == 3


def test_cosine_is_that_of_torch() -> None:
    ours = Schedule(OptimConfig(schedule="cosine", epochs=2), 5)
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 10)
    for step in range(10):
        assert ours.factor(step) == pytest.approx(optimiser.param_groups[0]["lr"])
        optimiser.step()
        theirs.step()


def test_early_stop_and_best_weights(tmp_path: Path) -> None:
    # The rate is 0, so the first epoch stays the best one.
    engine = Engine(supervised(norm=False), OptimConfig(epochs=9, lr=0.0), Tensors(val=6))
    fit(engine, tmp_path / "run", early_stop=2, select="best")
    assert engine.epoch == 3
    assert (tmp_path / "run" / "best.safetensors").exists()
    assert engine.bad_epochs == 2
    assert engine.best == engine.history[0]["val_top1"]


def test_validation_numbers(tmp_path: Path) -> None:
    engine = Engine(supervised(norm=False, dropout=0.0), OptimConfig(epochs=1, lr=0.01), loaders := Tensors(val=7))
    fit(engine, tmp_path / "run")
    batch = loaders.batch(np.arange(7))
    logits = engine.method.student(batch["student/frames"].flatten(0, 1))["logits"].detach()
    row = engine.history[0]
    assert row["val_top1"] == pytest.approx((logits.argmax(1) == batch["target"]).float().mean().item())
    assert row["val_loss"] == pytest.approx(nn.functional.cross_entropy(logits, batch["target"]).item(), abs=1e-6)
    lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert lines[0].split(",")[:5] == ["epoch", "step", "lr", "loss", "task_loss"]
    assert len(lines) == 2


def test_a_loss_that_is_no_number_ends_the_training_in_one_line(tmp_path: Path) -> None:
    engine = Engine(supervised(), OptimConfig(epochs=50, optimiser="sgd", lr=1e30, schedule="constant"), Tensors())
    with pytest.raises(ValueError, match=r"the loss is no finite number at step \d+; lower optim\.lr"):
        fit(engine, tmp_path / "run", checkpoint_every=1)


def test_gradient_norms_by_hand() -> None:
    shared, own = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor([3.0]))
    out = {"task_loss": (shared * torch.tensor([3.0, 4.0])).sum() + own.sum(), "feature_loss": shared.sum() * 2.0}
    result = gradient_norms(out, {"task_loss": 1.0, "feature_loss": 10.0, "off_loss": 0.0}, [shared, own])
    # |(3, 4)| = 5 and 10 * 2 * |(1, 1)|; `own` belongs to one part alone.
    assert result["norms"] == pytest.approx({"task_loss": 5.0, "feature_loss": 20.0 * 2**0.5})
    assert result["ratios"] == pytest.approx({"task_loss": 1.0, "feature_loss": 4.0 * 2**0.5})
    assert result["shared_parameters"] == 2
    torch.autograd.backward(out["task_loss"])  # the graph is still there


def test_means_are_over_samples() -> None:
    totals = {"loss": 6.0, "task_loss": 3.0, "samples": 4.0, "sum of top1": 1.0, "number of top1": 2.0}
    assert means(totals) == {"loss": 1.5, "task_loss": 0.75, "top1": 0.5}
    assert means({}) == {}
