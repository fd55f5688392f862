"""What a comparison is to do: its settings, checked before hours are spent, and which training needs which."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from stillmotion.config import DataConfig, ModelConfig, OptimConfig, RowConfig, TrainerConfig
from stillmotion.data.table import Table, TableError
from stillmotion.tally import kind_of
from stillmotion.tasks import metrics_of, split_targets
from stillmotion.trials import Fold, Trial

ROW = "row:"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A comparison with everything checked; the arguments of `compare`."""

    table: Table
    output: Path
    rows: Mapping[str, RowConfig]
    baselines: Sequence[str]
    seeds: Sequence[int]
    folds: Sequence[Fold]
    splits: str
    fractions: Sequence[float]
    evaluate: Mapping[str, Mapping[str, Any]]
    subsets: Mapping[str, Mapping[str, str]]
    references: Sequence[str]
    data: DataConfig
    optim: OptimConfig
    trainer: TrainerConfig
    probe: ModelConfig | None
    workers: int
    root: str | None

    @property
    def main(self) -> str:
        """The main metric, which is also the name of the view of the training."""
        return metrics_of(self.data.targets)[0]

    def trials(self) -> list[Trial]:
        """All trainings, row by row."""
        return [
            Trial(row, fraction, fold.name, seed)
            for fraction in self.fractions
            for row in self.rows
            for fold in self.folds
            for seed in self.seeds
        ]

    def run_folder(self, trial: Trial) -> Path:
        """Where a training writes."""
        return self.output / "runs" / trial.name

    def baseline_file(self, name: str, fold: Fold) -> Path:
        """Where a baseline writes."""
        return self.output / "baselines" / name / f"{fold.name}.npz"

    def source(self, model: ModelConfig, trial: Trial, seed_rule: str = "same") -> Trial | None:
        """The training whose run `row:NAME` means, on the same fold; None for any other name."""
        if not model.name.startswith(ROW):
            return None
        name, _, share = model.name.removeprefix(ROW).partition("@")
        fraction = float(share.removesuffix("%")) / 100 if share else trial.fraction
        return Trial(name, fraction, trial.fold, trial.seed if seed_rule == "same" else self.seeds[0])

    def resolve(self, model: ModelConfig, trial: Trial, seed_rule: str = "same") -> ModelConfig:
        """The model with the run folder in the place of `row:NAME`."""
        source = self.source(model, trial, seed_rule)
        return model if source is None else replace(model, name=str(self.run_folder(source)))


def check(plan: Plan) -> None:
    """Finds mistakes before hours are spent.

    Raises:
        ValueError: In one line: what, and what it could be.
    """
    names = [*plan.rows, *plan.baselines]
    if not names:
        raise ValueError("rows is empty: name at least one row, such as plain")
    if odd := [n for n in names if not re.fullmatch(r"[\w.+-]+", n)]:
        raise ValueError(f"row {odd[0]!r}: use letters, digits and _ . + - in names of rows")
    if twice := [n for n in names if names.count(n) > 1]:
        raise ValueError(f"row {twice[0]!r} stands twice, in rows and baselines; rename one")
    if not plan.seeds or len(set(plan.seeds)) < len(plan.seeds):
        raise ValueError(f"seeds={list(plan.seeds)}: give at least one, each once")
    if wrong := [f for f in plan.fractions if not 0.0 < f <= 1.0]:
        raise ValueError(f"label_fractions={wrong[0]}: must be above 0 and at most 1")
    _check_baselines(plan)
    if unknown := [r for r in plan.references if r not in names]:
        raise ValueError(f"reference {unknown[0]!r} is no row; rows: {', '.join(names)}")
    kinds = metrics_of(plan.data.targets)
    for metric in [*plan.evaluate, *plan.subsets]:
        kind_of(metric, kinds)
    for metric, wanted in plan.subsets.items():
        if not any(all(s.targets.get(c) == v for c, v in wanted.items()) for f in plan.folds for s in f.test):
            shown = ", ".join(f"{c}={v}" for c, v in wanted.items())
            raise TableError(f"{plan.table.source}: subset {metric!r} is empty: no test sample has {shown}")
    for name, row in plan.rows.items():
        _check_row(plan, name, row)


def _check_baselines(plan: Plan) -> None:
    from stillmotion.baselines import BASELINES

    if unknown := [n for n in plan.baselines if n not in BASELINES]:
        raise ValueError(f"unknown baseline {unknown[0]!r}; known: {', '.join(BASELINES)}")
    several = [column for column, kind in split_targets(plan.data.targets) if kind == "multilabel"]
    if plan.baselines and several:
        raise ValueError(f"baselines tell one class a sample, column {several[0]!r} has several; leave baselines out")
    if "frame_linear" in plan.baselines and plan.probe is None:
        raise ValueError("the baseline frame_linear needs probe, its frozen network: name and weights")


def _check_row(plan: Plan, name: str, row: RowConfig) -> None:
    from stillmotion.methods import method_class

    known = [f.name for f in fields(OptimConfig)]
    if unknown := [k for k in row.optim if k not in known]:
        raise ValueError(f"row {name!r}: optim has no {unknown[0]!r}; known: {', '.join(known)}")
    if row.teacher is not None and row.cache and plan.data.num_draws is None:
        raise ValueError(f"row {name!r}: stored teacher features need a fixed number of draws; set data.num_draws, or "
                         f"rows.{name}.cache: false for a live teacher")  # fmt: skip
    if row.teacher is not None and row.cache and method_class(row.method.name).needs_live(row.method.options):
        raise ValueError(f"row {name!r}: {row.method.name} needs the teacher itself, not its stored features; set "
                         f"rows.{name}.cache: false for a live teacher")  # fmt: skip
    trial = Trial(name, plan.fractions[0], plan.folds[0].name, plan.seeds[0])
    seen = {name}
    if sources := [s for s in sources_of(plan, trial) if s.row not in plan.rows or s.fraction not in plan.fractions]:
        others = ", ".join(n for n in plan.rows if n != name)
        raise ValueError(f"row {name!r}: there is no row {sources[0].label!r} here; rows: {others}")
    # A chain of teachers ends, or comes back.
    waiting = sources_of(plan, trial)
    while waiting:
        source = waiting.pop()
        if source.row == name:
            raise ValueError(f"row {name!r} is its own teacher, by way of {', '.join(sorted(seen))}; name another")
        if source.row in plan.rows and source.row not in seen:
            seen.add(source.row)
            waiting += sources_of(plan, source)


def sources_of(plan: Plan, trial: Trial) -> list[Trial]:
    """Trainings whose runs a training starts from."""
    row = plan.rows[trial.row]
    found = [plan.source(row.student, trial)]
    if row.teacher is not None:
        found.append(plan.source(row.teacher, trial, row.teacher_seed))
    return [s for s in found if s is not None]
