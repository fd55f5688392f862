"""What a comparison is to do: its settings, checked before hours are spent, and which training needs which."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from stillmotion.config import DataConfig, ModelConfig, OptimConfig, RowConfig, TrainerConfig
from stillmotion.data.table import Table, TableError, read_table
from stillmotion.tally import kind_of
from stillmotion.tasks import metrics_of, split_targets
from stillmotion.trials import Fold, Trial, plain_name
from stillmotion.view import Augment

ROW = "row:"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A comparison with everything checked; the arguments of `compare`.

    `stages` are the rows with a table of their own, by name.
    """

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
    stages: Mapping[str, Fold] = field(default_factory=dict)

    @property
    def main(self) -> str:
        """The main metric, which is also the name of the view of the training."""
        return metrics_of(self.data.targets)[0]

    def trials(self) -> list[Trial]:
        """All trainings on the comparison's table, row by row."""
        return [
            Trial(row, fraction, fold.name, seed)
            for fraction in self.fractions
            for row in self.rows
            for fold in self.folds
            for seed in self.seeds
            if row not in self.stages
        ]

    def stage_trials(self) -> list[Trial]:
        """All trainings on other tables, row by row."""
        return [Trial(row, 1.0, fold.name, seed) for row, fold in self.stages.items() for seed in self.seeds]

    def fold_of(self, trial: Trial) -> Fold:
        """The samples of a training."""
        return self.stages.get(trial.row) or next(fold for fold in self.folds if fold.name == trial.fold)

    def run_folder(self, trial: Trial) -> Path:
        """Where a training writes."""
        return self.output / "runs" / trial.name

    def baseline_file(self, name: str, fold: Fold) -> Path:
        """Where a baseline writes."""
        return self.output / "baselines" / plain_name(name) / f"{fold.name}.npz"

    def source(self, model: ModelConfig, trial: Trial, seed_rule: str = "same") -> Trial | None:
        """The training whose run `row:NAME` means, on the same fold; None for any other name."""
        return self._meant(model.name, trial, seed_rule)

    def sources(self, model: ModelConfig, trial: Trial, seed_rule: str = "same") -> list[Trial]:
        """As `source`, of the model and of the networks within its options."""
        found = [self._meant(name, trial, seed_rule) for name in (model.name, *_names(model.options))]
        return [source for source in found if source is not None]

    def _meant(self, name: str, trial: Trial, seed_rule: str) -> Trial | None:
        if not name.startswith(ROW):
            return None
        row, _, share = name.removeprefix(ROW).partition("@")
        seed = trial.seed if seed_rule == "same" else self.seeds[0]
        if row in self.stages:
            if share:
                raise ValueError(
                    f"{name}: row {row!r} has a table of its own and sees all its labels; write {ROW}{row}"
                )
            return Trial(row, 1.0, self.stages[row].name, seed)
        fraction = float(share.removesuffix("%")) / 100 if share else trial.fraction
        return Trial(row, fraction, trial.fold, seed)

    def resolve(self, model: ModelConfig, trial: Trial, seed_rule: str = "same") -> ModelConfig:
        """The model with run folders in the place of `row:NAME`."""

        def folder(name: str) -> str:
            source = self._meant(name, trial, seed_rule)
            return name if source is None else str(self.run_folder(source))

        return replace(model, name=folder(model.name), options=_renamed(model.options, folder))


def _names(options: Any) -> Iterator[str]:
    """Names of the networks within a model's options."""
    if isinstance(options, Mapping):
        for key, value in options.items():
            if key == "name" and isinstance(value, str):
                yield value
            yield from _names(value)


def _renamed(options: Any, change: Callable[[str], str]) -> Any:
    if not isinstance(options, Mapping):
        return options
    return {k: change(v) if k == "name" and isinstance(v, str) else _renamed(v, change) for k, v in options.items()}


def read_stages(rows: Mapping[str, RowConfig], data: DataConfig, root: str | None) -> dict[str, Fold]:
    """Samples and settings of the rows with a table of their own; every table is read once.

    Raises:
        ValueError: A table, a split of it or a setting is wrong; in one line, with the row.
    """
    tables: dict[str, Table] = {}
    found = {}
    for name, row in rows.items():
        if row.table is None:
            if row.data:
                raise ValueError(
                    f"row {name!r}: data is for rows with a table of their own; set table, or leave it out"
                )
            continue
        _check_settings(f"row {name!r}: data", row.data, DataConfig)
        changes: dict[str, Any] = {
            k: Augment(**v) if k == "augment" and isinstance(v, Mapping) else v for k, v in row.data.items()
        }
        own = replace(data, **changes)
        try:
            table = tables[row.table] = tables.get(row.table) or read_table(row.table, root=root)
        except TableError as error:
            raise TableError(f"row {name!r}: {error}") from None
        for part, split in (("train", own.train), ("val", own.val), ("test", own.test)):
            if split is not None and split not in table.splits:
                have = ", ".join(table.splits) or "none"
                raise TableError(f"row {name!r}: {row.table}: no sample in split {split!r}; splits here: {have}; set "
                                 f"rows.{name}.data.{part}, to null where there is none")  # fmt: skip
        found[name] = Fold(plain_name(Path(row.table).stem), table, own)
    return found


def _check_settings(where: str, given: Mapping[str, Any], config: type[DataConfig] | type[OptimConfig]) -> None:
    known = [f.name for f in fields(config)]
    if unknown := [k for k in given if k not in known]:
        raise ValueError(f"{where} has no {unknown[0]!r}; known: {', '.join(known)}")


def check(plan: Plan) -> None:
    """Finds mistakes before hours are spent.

    Raises:
        ValueError: In one line: what, and what it could be.
    """
    names = [*plan.rows, *plan.baselines]
    if not names:
        raise ValueError("rows is empty: name at least one row, such as plain")
    if odd := [n for n in plan.rows if not re.fullmatch(r"[\w.+-]+", n)]:
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
    if elsewhere := [r for r in plan.references if r in plan.stages]:
        raise ValueError(f"reference {elsewhere[0]!r} has a table of its own, so nothing can be compared with it")
    if len(plan.stages) == len(names):
        raise ValueError(f"all rows have tables of their own ({', '.join(names)}); name one for the comparison's table")
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
    from stillmotion.baselines import check_baseline

    for name in plan.baselines:
        check_baseline(name, plan.table)
    several = [column for column, kind in split_targets(plan.data.targets) if kind == "multilabel"]
    if plan.baselines and several:
        raise ValueError(f"baselines tell one class a sample, column {several[0]!r} has several; leave baselines out")
    if "frame_linear" in plan.baselines and plan.probe is None:
        raise ValueError("the baseline frame_linear needs probe, its frozen network: name and weights")


def _check_row(plan: Plan, name: str, row: RowConfig) -> None:
    from stillmotion.methods import method_class

    _check_settings(f"row {name!r}: optim", row.optim, OptimConfig)
    data = plan.stages[name].data if name in plan.stages else plan.data
    if row.teacher is not None and row.cache and data.num_draws is None:
        raise ValueError(f"row {name!r}: stored teacher features need a fixed number of draws; set data.num_draws, or "
                         f"rows.{name}.cache: false for a live teacher")  # fmt: skip
    if row.teacher is not None and row.cache and method_class(row.method.name).needs_live(row.method.options):
        raise ValueError(f"row {name!r}: {row.method.name} needs the teacher itself, not its stored features; set "
                         f"rows.{name}.cache: false for a live teacher")  # fmt: skip
    trial = next(t for t in (*plan.stage_trials(), *plan.trials()) if t.row == name)
    seen = {name}
    for source in sources_of(plan, trial):
        if source.row not in plan.rows or (source.row not in plan.stages and source.fraction not in plan.fractions):
            others = ", ".join(n for n in plan.rows if n != name)
            raise ValueError(f"row {name!r}: there is no row {source.label!r} here; rows: {others}")
        if name in plan.stages and source.row not in plan.stages:
            raise ValueError(f"row {name!r} has a table of its own, and starts from row {source.row!r} that has none; "
                             f"set rows.{source.row}.table")  # fmt: skip
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
    found = plan.sources(row.student, trial)
    if row.teacher is not None:
        found += plan.sources(row.teacher, trial, row.teacher_seed)
    return found
