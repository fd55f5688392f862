"""Trials: one row of a comparison, on one split, with one seed and share of labels. What a worker does for each."""

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillmotion.config import DataConfig, ModelConfig, OptimConfig, RowConfig, TrainerConfig
from stillmotion.data.split import group_folds, leave_one_group_out
from stillmotion.data.table import Table, TableError
from stillmotion.files import write_atomic
from stillmotion.tasks import make_task, task_of

COLUMN = "column"
FOLD_SEED = 0


@dataclass(frozen=True)
class Fold:
    """One division into training and test samples.

    Args:
        name: Of the folder.
        table: Its splits are those that `data` names.
        data: The comparison's settings, fitting to the table.
    """

    name: str
    table: Table
    data: DataConfig

    @property
    def test(self) -> Table:
        """The samples that count."""
        assert self.data.test is not None, "make_folds sees to it"
        return self.table.select(self.data.test)


def make_folds(table: Table, splits: str, data: DataConfig) -> list[Fold]:
    """Divides a table.

    Args:
        table: All samples.
        splits: `column` takes the table's own splits. `folds:K` and `leave-one-group-out` divide the samples of split
            `data.train` over groups (all samples if none has a split). `column:NAME` takes each value of a column in
            turn as the test; samples without a value are always trained on.
        data: Names the splits; folds call theirs `train` and `test`.

    Raises:
        ValueError: An unknown rule, or one that does not fit the table.
    """
    if splits == COLUMN:
        if data.test is None:
            raise ValueError("data.test is not set: a comparison needs a test split; name it, or give splits=folds:5")
        table.select(data.train), table.select(data.test)
        return [Fold(plain_name(data.test), table, data)]
    fold_data = replace(data, train="train", val=None, test="test")
    inside = table.select(data.train) if table.splits else table
    if match := re.fullmatch(r"folds:(\d+)", splits):
        stratum = make_task(inside, data.targets, score=data.score).stratum
        pairs = list(group_folds(inside, int(match[1]), FOLD_SEED, stratum=stratum))
        names = [f"fold{i}" for i in range(1, len(pairs) + 1)]
    elif splits == "leave-one-group-out":
        pairs = list(leave_one_group_out(inside))
        names = [plain_name(str(test[0].group)) for _, test in pairs]
    elif splits.startswith("column:"):
        pairs, names = _by_column(table, splits.removeprefix("column:"))
    else:
        raise ValueError(f"splits={splits!r}: give column, folds:K, leave-one-group-out or column:NAME")
    return [Fold(name, _joined(train, test), fold_data) for name, (train, test) in zip(names, pairs, strict=True)]


def _by_column(table: Table, column: str) -> tuple[list[tuple[Table, Table]], list[str]]:
    values = table.classes(column)  # raises if no row has one
    if len(values) < 2:
        raise TableError(f"{table.source}: column {column!r} has the one value {values[0]!r}; folds need two")
    pairs = []
    for value in values:
        test = tuple(s for s in table if s.targets.get(column) == value)
        train = tuple(s for s in table if s.targets.get(column) != value)
        pairs.append((replace(table, samples=train), replace(table, samples=test)))
    return pairs, [f"{plain_name(column)}-{plain_name(v)}" for v in values]


def _joined(train: Table, test: Table) -> Table:
    parts = [replace(s, split=name) for name, part in (("train", train), ("test", test)) for s in part]
    return replace(train, samples=tuple(parts))


def plain_name(text: str) -> str:
    """Text that can name a folder."""
    return re.sub(r"[^\w.@%+-]+", "_", text) or "_"


@dataclass(frozen=True)
class Trial:
    """One training of a comparison.

    Args:
        row: Name of the row.
        fraction: Share of the training samples that keep their label.
        fold: Name of the fold.
        seed: Of the training.
    """

    row: str
    fraction: float
    fold: str
    seed: int

    @property
    def label(self) -> str:
        """Name of the row in tables."""
        return label_of(self.row, self.fraction)

    @property
    def name(self) -> str:
        """Name of its job, and place of its run folder under `runs/`."""
        return f"{self.label}/{self.fold}/seed{self.seed}"


def label_of(row: str, fraction: float) -> str:
    """Name of a row in tables.

    Example:
        >>> label_of("plain", 1.0), label_of("plain", 0.25)
        ('plain', 'plain@25%')
    """
    return row if fraction == 1.0 else f"{row}@{100 * fraction:g}%"


def run_trial(
    fold: Fold,
    output: Path,
    row: RowConfig,
    teacher: ModelConfig | None,
    features: Path | None,
    optim: OptimConfig,
    trainer: TrainerConfig,
    seed: int,
    views: Mapping[str, Mapping[str, Any]],
    root: str | None,
    number: int,
) -> None:
    """Trains, then predicts the test samples under every view.

    Args:
        fold: Samples and how they are read.
        output: Run folder.
        row: Network and method.
        teacher: Live teacher; None without one, or with `features`.
        features: Folder of the stored features (see `store_of`).
        optim: Optimiser and schedule.
        trainer: Where it runs.
        seed: Of the training.
        views: Settings of the network's view by name of a metric.
        root: As given to the comparison.
        number: Of the training; several GPUs take turns.
    """
    from stillmotion.train import train

    trainer = replace(trainer, devices=_one_device(trainer, number))
    stored = None if features is None else str(store_of(features, seed))
    run = train(fold.table, output=str(output), student=row.student, method=row.method, teacher=teacher,
                features=stored, data=fold.data, optim=optim, trainer=trainer, seed=seed, root=root)  # fmt: skip
    for name, view in views.items():
        predict_fold(run.path, fold, view, run.path / "compare" / f"{name}.npz", trainer, optim.batch_size)


def _one_device(trainer: TrainerConfig, number: int) -> str | int:
    """Trainings run side by side, so each has one device unless the settings say how many."""
    import torch

    if trainer.devices != "auto" or trainer.accelerator == "cpu" or not torch.cuda.is_available():
        return 1 if trainer.devices == "auto" else trainer.devices
    return f"{number % torch.cuda.device_count()},"


def predict_fold(
    run: Path, fold: Fold, view: Mapping[str, Any], target: Path, trainer: TrainerConfig, batch_size: int
) -> None:
    """Writes a run's logits for the test samples of a fold; nothing if they are there, under the same view."""
    from stillmotion.device import pick_device
    from stillmotion.models.pretrained import load_pretrained
    from stillmotion.predictions import predict_table

    key = json.dumps(dict(view), sort_keys=True)
    if target.exists() and str(np.load(target)["view"]) == key:
        return
    encoder, task, _ = load_pretrained(run, view=view)
    device = pick_device("cpu" if trainer.accelerator == "cpu" else "auto")
    found = predict_table(encoder, fold.test, task, batch_size=batch_size, workers=fold.data.workers, device=device,
                          short_side=fold.data.short_side, packed=fold.data.packed, flow=fold.data.flow)  # fmt: skip
    # Every fold scales its scores by its own training samples.
    write_arrays(target, ids=np.array(found.ids), logits=task.in_units(found.logits), view=np.array(key))


def extract_features(fold: Fold, teacher: ModelConfig, folder: Path, seed: int, accelerator: str) -> None:
    """Stores a teacher's features for the trainings with this seed; once for all seeds if nothing of them is random.

    Args:
        fold: Samples and how they are read.
        teacher: The network.
        folder: Of the stores of this teacher.
        seed: Of the trainings.
        accelerator: As in `TrainerConfig`.
    """
    import torch

    from stillmotion.extract import extract
    from stillmotion.features import is_still
    from stillmotion.models.factory import load_model

    task = task_of(fold.table, fold.data)
    torch.manual_seed(seed + 1)  # as `train` seeds its teacher
    encoder = load_model(teacher, num_classes=task.num_outputs)
    still = is_still(encoder.views, fold.data.augment) and teacher.weights != "random"
    store = folder / ("still" if still else f"seed{seed}")
    extract(fold.table, encoder, store, data=fold.data, seed=seed, device="cpu" if accelerator == "cpu" else "auto")


def store_of(folder: Path, seed: int) -> Path:
    """Where `extract_features` put the features for a seed."""
    return folder / "still" if (folder / "still").exists() else folder / f"seed{seed}"


def run_baseline_fold(name: str, fold: Fold, target: Path, probe: ModelConfig | None, cache: Path, seed: int) -> None:
    """Writes what a row without network training says of the test samples of a fold, its cost and what it chose."""
    from stillmotion.baselines import run_baseline

    if target.exists():
        return
    train = fold.table.select(fold.data.train)
    task = task_of(fold.table, fold.data)
    found = run_baseline(
        name, train, fold.test, task, model=probe, cache=cache, seed=seed, workers=max(1, fold.data.workers)
    )
    facts = {"cost": dict(found.cost), "chosen": found.chosen}
    write_arrays(target, ids=np.array(found.ids), logits=task.in_units(found.logits), facts=np.array(json.dumps(facts)))


def measure_costs(runs: Mapping[str, Path], folds: Mapping[str, Fold], target: Path, trainer: TrainerConfig) -> None:
    """Writes the cost of every row, timed one after the other while no training runs, on one thread of the processor.

    One thread, because with more a neighbour on the machine makes times ten and a hundred times as long.

    Args:
        runs: A run by label of its row.
        folds: Its fold.
        target: JSON file; rows that are in it are not measured again.
        trainer: Where it runs.
    """
    import torch

    from stillmotion.device import pick_device
    from stillmotion.measure import Reading, measure_cost
    from stillmotion.models.pretrained import load_pretrained

    torch.set_num_threads(1)
    known: dict[str, Any] = json.loads(target.read_text()) if target.exists() else {}
    device = pick_device("cpu" if trainer.accelerator == "cpu" else "auto")
    for label, run in runs.items():
        if label not in known:
            data = folds[label].data
            reading = Reading(device=device, short_side=data.short_side, flow=data.flow)  # from videos, as in use
            known[label] = measure_cost(load_pretrained(run)[0], folds[label].test, reading)
            write_atomic(target, json.dumps(known, indent=2))


def write_arrays(path: Path, **arrays: NDArray[Any]) -> None:
    """Writes a `.npz`, whole or not at all."""
    out = io.BytesIO()
    named: Any = arrays  # numpy's stubs take them for its own options
    np.savez_compressed(out, **named)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, out.getvalue())
