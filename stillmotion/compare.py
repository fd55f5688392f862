"""`stillmotion compare`: methods x seeds x splits on one table, same budget, same rule of selection; one table out."""

import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from stillmotion.config import DataConfig, ModelConfig, OptimConfig, RowConfig, TrainerConfig
from stillmotion.data.journal import only_writer
from stillmotion.data.table import Table, read_table
from stillmotion.jobs import Job, run_jobs
from stillmotion.parts import Part, check_devices, part_of_launch
from stillmotion.plan import Plan, check, read_stages, sources_of
from stillmotion.tasks import metrics_of
from stillmotion.trials import (
    COLUMN,
    Fold,
    Trial,
    extract_features,
    make_folds,
    measure_costs,
    run_baseline_fold,
    run_trial,
)

# Imported once for all jobs; some of them cost seconds.
PRELOAD = ("stillmotion.train", "stillmotion.extract", "timm", "torchvision", "matplotlib.backends.backend_agg",
           "matplotlib.figure")  # fmt: skip


def compare(
    table: str | Path | Table,
    *,
    output: str | Path,
    rows: Mapping[str, RowConfig],
    baselines: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    splits: str = COLUMN,
    evaluate: Mapping[str, Mapping[str, Any]] | None = None,
    subsets: Mapping[str, Mapping[str, str]] | None = None,
    label_fractions: Sequence[float] = (1.0,),
    reference: str | Sequence[str] | None = None,
    data: DataConfig | None = None,
    optim: OptimConfig | None = None,
    trainer: TrainerConfig | None = None,
    probe: ModelConfig | None = None,
    workers: int = 1,
    root: str | None = None,
) -> int:
    """Trains every row with every seed on every split, and writes one table; the entry of `stillmotion compare`.

    What is finished is kept, so the same call goes on where it was stopped. A run that fails is listed and the others
    go on. Rows differ in what `rows` says and in nothing else. Processes that `torchrun` or SLURM started share the
    trainings out; the first of them writes the table.

    Args:
        table: CSV or Parquet file, folder of class folders, or a table already read.
        output: Folder of tables, pictures, predictions and runs (`runs/ROW/SPLIT/seedK`).
        rows: By name. One with a `table` of its own is a stage before others, which start from its run (`row:NAME`).
        baselines: Rows without network training (`stillmotion list baselines`), on all labels, with the first seed.
        seeds: Of the trainings.
        splits: `column` (the table's own), `folds:K` or `leave-one-group-out` (over the groups of the training split),
            `column:NAME` (a column with fold numbers). Folds are pooled before a metric is taken.
        evaluate: Further views of the test videos, by name of the metric: `{"top1_first": {"moment": "first"}}`.
            The main metric alone (`top1`; `spearman` of a score, `joint` of several targets) is the view of the
            training unless given here.
        subsets: Test samples with these column values, by name of the metric:
            `{"top1_no_shortcut": {"backdrop": "plain"}}`.
        label_fractions: Shares of labels; a share below 1 makes rows `NAME@10%`, in which also a teacher `row:NAME`
            saw that share only (`row:NAME@100%` names one that saw all).
        reference: Row, or rows, that all others are compared with, sample by sample.
        data, optim, trainer: Of all trainings.
        probe: Frozen network of the baseline `frame_linear`.
        workers: Trainings side by side; threads are shared out, at most OMP_NUM_THREADS each where that is set.
        root: Folder that the table's relative paths start from.

    Returns:
        0; 1 if a run failed (the last lines say which).

    Raises:
        ValueError: A setting or the table is wrong; nothing was started then.
    """
    data = data or DataConfig()
    read = table if isinstance(table, Table) else read_table(table, root=root)
    plan = Plan(
        table=read,
        output=Path(output),
        rows=rows,
        baselines=baselines,
        seeds=seeds,
        folds=make_folds(read, splits, data),
        splits=splits,
        fractions=label_fractions,
        evaluate={metrics_of(data.targets)[0]: {}, **(evaluate or {})},
        subsets=subsets or {},
        references=[reference] if isinstance(reference, str) else list(reference or ()),
        data=data,
        optim=optim or OptimConfig(),
        trainer=trainer or TrainerConfig(),
        probe=probe,
        workers=workers,
        root=root,
        stages=read_stages(rows, data, root),
    )
    check(plan)
    check_devices(plan.trainer)
    jobs = make_jobs(plan)
    try:
        with part_of_launch() as part, only_writer(plan.output) if part.number == 0 else nullcontext():
            return _run(plan, jobs, part)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; what is finished is kept, run the same command to go on") from None


def _run(plan: Plan, jobs: Sequence[Job], part: Part) -> int:
    from stillmotion.report.comparison import collect, print_table, write_comparison

    own = run_all(part.share(jobs), plan, "training", plan.workers)
    failed = {name: reason for found in part.gather(own) for name, reason in found.items()}
    if part.number:
        part.gather(None)  # whoever returns finds the table
        return 1 if failed else 0
    found = collect(plan, failed)
    if not found.entries:
        name, reason = next(iter(failed.items()))
        raise ValueError(f"every run failed; the first: {name}: {reason} (log: {plan.output / 'logs'})")
    costs = Job("costs", measure_costs, found.cost_arguments(plan))
    failed |= run_all([costs], plan, "measuring costs", 1)
    write_comparison(plan, found, failed)
    page = Job(
        "report", write_page, {"folder": plan.output, "root": plan.root, "accelerator": plan.trainer.accelerator}
    )
    run_all([page], plan, "writing the report", 1)  # whatever it says, the comparison is done
    print_table(plan.output)
    if failed:
        print(f"{len(failed)} of {len(jobs)} jobs failed, {next(iter(failed))} first; "
              f"reasons: {plan.output / 'results.md'}, details: {plan.output / 'logs'}", file=sys.stderr)  # fmt: skip
    part.gather(None)
    return 1 if failed else 0


def write_page(folder: Path, root: str | None, accelerator: str) -> None:
    """Writes `report.html` of a comparison."""
    from stillmotion.report.page import write_report
    from stillmotion.report.subject import Limits

    write_report(folder, root=root, limits=Limits(device="cpu" if accelerator == "cpu" else "auto"))


def make_jobs(plan: Plan) -> list[Job]:
    """All jobs: trainings, the extractions that they need, baselines."""
    jobs: dict[str, Job] = {}
    for number, trial in enumerate([*plan.stage_trials(), *plan.trials()]):
        row, fold = plan.rows[trial.row], plan.fold_of(trial)
        is_stage = trial.row in plan.stages
        after = [s.name for s in sources_of(plan, trial)]
        teacher = plan.resolve(row.teacher, trial, row.teacher_seed) if row.teacher else None
        features = None
        if teacher is not None and row.cache:
            extraction, features = _extraction(plan, trial, row, teacher, fold)
            jobs.setdefault(extraction.name, extraction)
            after, teacher = [*after, extraction.name], None
        arguments = {
            "fold": fold if is_stage else replace(fold, data=replace(fold.data, label_fraction=trial.fraction)),
            "output": plan.run_folder(trial),
            "row": replace(row, student=plan.resolve(row.student, trial)),
            "teacher": teacher,
            "features": features,
            "optim": replace(plan.optim, **row.optim),
            "trainer": plan.trainer,
            "seed": trial.seed,
            "views": {} if is_stage else plan.evaluate,
            "root": plan.root,
            "number": number,
        }
        jobs[trial.name] = Job(trial.name, run_trial, arguments, tuple(after))
    for name in plan.baselines:
        for fold in plan.folds:
            arguments = {"name": name, "fold": fold, "target": plan.baseline_file(name, fold), "probe": plan.probe,
                         "cache": plan.output / "baselines" / "cache", "seed": plan.seeds[0]}  # fmt: skip
            # They share stored features.
            jobs[f"{name}/{fold.name}"] = Job(f"{name}/{fold.name}", run_baseline_fold, arguments, lock="baselines")
    return list(jobs.values())


def _extraction(plan: Plan, trial: Trial, row: RowConfig, teacher: ModelConfig, fold: Fold) -> tuple[Job, Path]:
    """The job that stores a teacher's features for a training, and the folder; the same one for equal teachers."""
    assert row.teacher is not None
    source = plan.source(row.teacher, trial, row.teacher_seed)
    settings = {k: v for k, v in asdict(teacher).items() if k != "name" and v}
    if source is None:
        settings["name"] = teacher.name
    name = source.name if source else f"{_last_part(teacher.name)}/{trial.fold}"
    if source and plan.fold_of(source) != fold:
        name += f"-on-{trial.fold}"
    if row.data:
        settings["data"] = row.data
    if settings:
        name += "-" + hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    folder = plan.output / "features" / name
    arguments = {"fold": fold, "teacher": teacher, "folder": folder, "seed": trial.seed,
                 "accelerator": plan.trainer.accelerator}  # fmt: skip
    after = tuple(s.name for s in plan.sources(row.teacher, trial, row.teacher_seed))
    # One folder may turn out to serve all seeds.
    return Job(f"features/{name}/draws{trial.seed}", extract_features, arguments, after, lock=str(folder)), folder


def _last_part(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]


def run_all(jobs: Sequence[Job], plan: Plan, what: str, workers: int) -> dict[str, str]:
    """Runs jobs with a progress bar, or with a line for each where there is no terminal.

    Returns:
        Reason by name of each that failed.
    """
    console = Console(stderr=True)
    began: dict[str, float] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[now]}"), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=len(jobs), now="")

        def report(name: str, state: str, reason: str | None) -> None:
            if state == "started":
                began[name] = time.monotonic()
            else:
                seconds = time.monotonic() - began.pop(name, time.monotonic())
                bar.advance(task)
                if reason:
                    line = f"failed: {name}: {reason}"
                    console.print(line, style="red", markup=False, highlight=False, soft_wrap=True)
                elif not console.is_terminal:
                    done = f"{int(bar.tasks[0].completed)}/{len(jobs)}"
                    console.print(f"{done} {name} ({seconds:.0f} s)", markup=False, highlight=False, soft_wrap=True)
            bar.update(task, now=", ".join(began))

        return run_jobs(jobs, logs=plan.output / "logs", workers=workers, preload=PRELOAD, report=report)
