"""What a comparison writes: results, differences, predictions, per-class accuracies, confusion matrices, curves."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable

from stillmotion.files import csv_text, write_atomic
from stillmotion.plan import Plan
from stillmotion.report.plots import plot_confusion, plot_curves, plot_series
from stillmotion.report.stages import stage_rows, stages_section
from stillmotion.results import (
    COST_HEADS,
    Row,
    all_metrics,
    format_cost,
    format_metric,
    head_of,
    is_accuracy,
    read_results,
    write_results,
)
from stillmotion.run import Run
from stillmotion.tally import Entry, Tally, load_views
from stillmotion.tasks import metrics_of, task_of
from stillmotion.trials import Trial, label_of

COSTS_FILE = "costs.json"
CURVES = {"hallucination loss": "hallucination_loss", "task loss": "task_loss"}


@dataclass(frozen=True)
class Found:
    """What the jobs left behind.

    Args:
        entries: Rows with at least one seed whose folds are all there.
        incomplete: Seeds that were left out, by row.
    """

    entries: list[Entry]
    incomplete: dict[str, list[int]]

    def cost_arguments(self, plan: Plan) -> dict[str, Any]:
        """For `measure_costs`: the first run of every trained row."""
        first = {t.label: t for t in reversed(plan.trials()) if t.seed in self._seeds(t.label)}
        folds = {fold.name: fold for fold in plan.folds}
        return {
            "runs": {label: plan.run_folder(trial) for label, trial in first.items()},
            "folds": {label: folds[trial.fold] for label, trial in first.items()},
            "target": plan.output / COSTS_FILE,
            "trainer": plan.trainer,
        }

    def _seeds(self, label: str) -> set[int]:
        return next((set(e.seeds) for e in self.entries if e.label == label), set())


def collect(plan: Plan, failed: Mapping[str, str]) -> Found:
    """Reads the predictions of all finished jobs, folds joined."""
    entries: list[Entry] = []
    incomplete: dict[str, list[int]] = {}
    for name in plan.baselines:
        if not any(f"{name}/{fold.name}" in failed for fold in plan.folds):
            entries.append(_baseline(plan, name))
    labels = dict.fromkeys(t.label for t in plan.trials())
    for label in labels:
        entry = Entry(label, tuple(plan.evaluate))
        for seed in plan.seeds:
            trials = [t for t in plan.trials() if (t.label, t.seed) == (label, seed)]
            if any(t.name in failed for t in trials):
                incomplete.setdefault(label, []).append(seed)
            else:
                _add_seed(plan, entry, seed, trials)
        if entry.seeds:
            entries.append(entry)
    return Found(entries, incomplete)


def _baseline(plan: Plan, name: str) -> Entry:
    paths = [plan.baseline_file(name, fold) for fold in plan.folds]
    logits = {k: v for path in paths for k, v in load_views({plan.main: path})[plan.main].items()}
    cost = _facts(paths[0])["cost"]
    return Entry(name, (plan.main,), {plan.seeds[0]: {plan.main: logits}}, cost=cost)


def _facts(path: Path) -> dict[str, Any]:
    with np.load(path) as data:
        facts: dict[str, Any] = json.loads(str(data["facts"]))
    return facts


def _add_seed(plan: Plan, entry: Entry, seed: int, trials: Sequence[Trial]) -> None:
    folders = [plan.run_folder(t) for t in trials]
    parts = [load_views({v: folder / "compare" / f"{v}.npz" for v in plan.evaluate}) for folder in folders]
    entry.seeds[seed] = {v: {k: x for part in parts for k, x in part[v].items()} for v in plan.evaluate}
    # What only the run itself knows: R2 of the hallucinated feature, `top1` of the parts of a network.
    known: dict[str, list[float]] = {}
    own = (*metrics_of(plan.data.targets), "unreadable")
    for folder in folders:
        for name, metric in Run(folder).results()[0]["metrics"].items():
            if metric["mean"] is not None and name not in own:
                known.setdefault(name, []).append(metric["mean"])
    entry.further[seed] = {n: float(np.mean(v)) for n, v in known.items() if len(v) == len(folders)}


def write_comparison(plan: Plan, found: Found, failed: Mapping[str, str]) -> list[Row]:
    """Writes everything into the comparison's folder.

    Returns:
        The rows.
    """
    costs = plan.output / COSTS_FILE
    known = json.loads(costs.read_text()) if costs.exists() else {}
    for entry in found.entries:
        entry.cost = entry.cost or known.get(entry.label, {})
    samples = [s for fold in plan.folds for s in fold.test]
    task = task_of(plan.folds[0].table, plan.folds[0].data).unscaled()
    tally = Tally(found.entries, samples, task, plan.subsets)
    rows, differences, classes = tally.rows(), tally.differences(_pairs(plan, found)), tally.per_class()
    extra = {
        "task": task.to_dict(),
        "classes": list(tally.task.output_names),
        "num_samples": len(tally.samples),
        "unreadable": tally.unreadable,
        "differences": differences,
        "per_class": classes,
        "chosen": {name: {f.name: _facts(plan.baseline_file(name, f))["chosen"] for f in plan.folds}
                   for name in plan.baselines if name in tally.entries},
        "failed": dict(failed),
        "incomplete": found.incomplete,
        "settings": _settings(plan),
    }  # fmt: skip
    stages = stage_rows(plan)
    if stages:
        extra["stages"] = stages
    pictures = _pictures(plan, tally, rows)
    _write_arrays(plan.output / "predictions.npz", tally)
    write_atomic(plan.output / "differences.json", json.dumps(differences, indent=2) + "\n")
    write_atomic(plan.output / "per_class.csv", _per_class_csv(classes))
    sections = [_protocol(plan, tally), _per_class_table(classes)]
    if differences:
        sections.insert(1, "\n".join(["## Paired differences", "", *difference_lines(differences)]))
    sections += [stages_section(plan, stages), _problems(plan, tally, found, failed), pictures]
    write_results(plan.output, rows, extra=extra, sections=[s for s in sections if s])
    return rows


def _pairs(plan: Plan, found: Found) -> list[tuple[str, str]]:
    """Every row with every reference, at the same share of labels; baselines are the same at all shares."""
    there = [e.label for e in found.entries]
    pairs = []
    for fraction in plan.fractions:
        for reference in plan.references:
            other = reference if reference in plan.baselines else label_of(reference, fraction)
            names = [label_of(row, fraction) for row in plan.rows] + [b for b in plan.baselines if fraction == 1.0]
            pairs += [(n, other) for n in names if n != other and n in there and other in there]
    return pairs


def _settings(plan: Plan) -> dict[str, Any]:
    rows = {name: asdict(row) for name, row in plan.rows.items()}
    common = {name: asdict(getattr(plan, name)) for name in ("data", "optim", "trainer")}
    return {"table": plan.table.source, "table_hash": plan.table.hash, "root": plan.root, "splits": plan.splits,
            "seeds": list(plan.seeds), "label_fractions": list(plan.fractions), "evaluate": dict(plan.evaluate),
            "subsets": dict(plan.subsets), "rows": rows, **common}  # fmt: skip


def _write_arrays(path: Path, tally: Tally) -> None:
    out = io.BytesIO()
    named: Any = tally.arrays()
    np.savez_compressed(out, **named)
    write_atomic(path, out.getvalue())


def _per_class_csv(classes: Mapping[str, Mapping[str, float]]) -> str:
    names = list(dict.fromkeys(c for values in classes.values() for c in values))
    return csv_text(["row", *names], ([row, *(values.get(c) for c in names)] for row, values in classes.items()))


def _protocol(plan: Plan, tally: Tally) -> str:
    """What was the same for all rows, and what was not."""
    o, num_groups = plan.optim, len({g for g in tally.groups if g is not None})
    table = Path(plan.table.source).name
    lines = [
        "## Protocol",
        "",
        f"- {len(tally.samples)} test samples in {num_groups} groups of `{table}` (hash `{plan.table.hash}`), splits: "
        f"{plan.splits} ({len(plan.folds)})",
        f"- seeds {', '.join(map(str, plan.seeds))}; {plan.trainer.select} epoch of {o.epochs}, batch "
        f"{o.batch_size}, {o.optimiser} {o.lr:g}, schedule {o.schedule}",
        "- ms / video: from the file to its prediction in a warm process, median of some test samples, one thread",
    ]
    for name, row in plan.rows.items():
        if row.optim:
            changed = ", ".join(f"{k} {v}" for k, v in row.optim.items())
            lines.append(f"- other budget of `{name}`: {changed}")
    lines += [f"- `{name}`: test view with {_shown(view)}" for name, view in plan.evaluate.items() if view]
    lines += [f"- `{name}`: test samples with {_shown(wanted)}" for name, wanted in plan.subsets.items()]
    return "\n".join(lines)


def _shown(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in values.items())


def difference_lines(differences: Sequence[Mapping[str, Any]]) -> list[str]:
    """Paired differences as a Markdown list."""
    lines = []
    for d in differences:
        metric = "" if d["metric"] == "top1" else f" on `{d['metric']}`"
        mark = "" if d["excludes_zero"] else " (includes 0)"
        lines.append(f"- `{d['row']}` minus `{d['reference']}`{metric}: {d['text']}{mark}")
    return lines


def _per_class_table(classes: Mapping[str, Mapping[str, float]]) -> str:
    names = list(dict.fromkeys(c for values in classes.values() for c in values))
    if not names:
        return ""
    if len(names) > 12:
        return "Accuracy by class: `per_class.csv`."
    lines = ["## Accuracy by class (%)", "", "| row | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    for row, values in classes.items():
        lines.append(f"| {row} | " + " | ".join(f"{100 * values[c]:.1f}" if c in values else "–" for c in names) + " |")
    return "\n".join(lines)


def _problems(plan: Plan, tally: Tally, found: Found, failed: Mapping[str, str]) -> str:
    lines = [f"- failed: `{name}`: {reason}" for name, reason in failed.items()]
    for row, seeds in found.incomplete.items():
        lines.append(f"- `{row}` without seed {', '.join(map(str, seeds))}")
    if tally.unreadable:
        shown = ", ".join(f"`{u}`" for u in tally.unreadable[:10]) + (", ..." if len(tally.unreadable) > 10 else "")
        lines.append(f"- {len(tally.unreadable)} test samples are left out, as a row could not read them: {shown}")
    return "\n".join(["## Problems", "", *lines]) if lines else ""


def _pictures(plan: Plan, tally: Tally, rows: Sequence[Row]) -> str:
    """Draws the pictures; returns the paragraph that shows them."""
    shown = ["![accuracy over cost](results.png)"]
    curves: dict[str, list[Path]] = {}
    for trial in plan.trials():
        path = plan.run_folder(trial) / "metrics.csv"  # a mean of networks has learned nothing, and has none
        if trial.label in tally.entries and trial.seed in tally.entries[trial.label].seeds and path.exists():
            curves.setdefault(trial.label, []).append(path)
    seen = [n for n in ("top1", "correct", "mae") if n in (*metrics_of(plan.data.targets), "top1")]
    columns = {**CURVES, **{f"training {n}": n for n in seen[:1]}, f"validation {plan.main}": f"val_{plan.main}"}
    if plot_curves(curves, columns, plan.output / "curves.png"):
        shown.append("![curves](curves.png)")
    by_name = {row["name"]: row["metrics"] for row in rows}
    if len(plan.evaluate) > 1:
        lines = {
            r: {v: _point(by_name[r], v) for v in plan.evaluate if by_name[r][v]["mean"] is not None}
            for r in plan.rows
            if r in by_name
        }
        unit = "%" if all(map(is_accuracy, plan.evaluate)) else "metric (shares in %)"
        plot_series(lines, plan.output / "views.png", xlabel="what is seen of a test video", ylabel=unit)
        shown.append("![views](views.png)")
    if len(plan.fractions) > 1:
        shares = sorted(plan.fractions)
        lines = {
            row: {
                f"{100 * f:g}": _point(by_name[label_of(row, f)], plan.main)
                for f in shares
                if label_of(row, f) in by_name and by_name[label_of(row, f)][plan.main]["mean"] is not None
            }
            for row in plan.rows
            if row not in plan.stages
        }
        plot_series(lines, plan.output / "labels.png", xlabel="share of labels (%)", ylabel=head_of(plan.main))
        shown.append("![labels](labels.png)")
    classes = {part.target: list(part.class_names) for _, part in tally.task.parts}
    drawn = False
    for label in tally.entries:
        for column, matrix in tally.confusion(label).items():
            name = f"{label}.{column}" if len(classes) > 1 else label
            plot_confusion(matrix, classes[column], plan.output / "confusion" / f"{name}.png", title=name)
            text = json.dumps({"classes": classes[column], "matrix": matrix.tolist()})
            write_atomic(plan.output / "confusion" / f"{name}.json", text + "\n")
            drawn = True
    if not drawn:
        return "## Pictures\n\n" + "\n".join(shown)
    return "## Pictures\n\n" + "\n".join([*shown, "", "Confusion matrices: `confusion/`, summed over seeds."])


def _point(metrics: Mapping[str, Any], name: str) -> tuple[float, float | None]:
    scale = 100 if is_accuracy(name) else 1
    mean, std = metrics[name]["mean"], metrics[name]["std"]
    return scale * mean, None if std is None else scale * std


def print_table(output: Path) -> None:
    """Prints what matters most of a comparison to the terminal: accuracies, cost, differences."""
    rows = read_results(output)
    # Of several targets the columns by themselves would not fit into a terminal.
    names = [n for n in all_metrics(rows) if n.startswith(("joint", "correct", "all_correct", "spearman"))]
    names = names or [n for n in all_metrics(rows) if n.startswith("top1")]
    costs = [c for c in ("gmacs", "ms_per_video", "frames") if any(r["cost"][c] is not None for r in rows)]
    table = RichTable()
    table.add_column("row", no_wrap=True)
    for name in [*map(head_of, names), *(COST_HEADS[c] for c in costs)]:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        cells = [format_metric(n, row["metrics"].get(n)) for n in names]
        table.add_row(row["name"], *cells, *(format_cost(c, row["cost"][c]) for c in costs))
    console = Console()
    console.print(table)
    for line in difference_lines(json.loads((output / "differences.json").read_text())):
        console.print(line.removeprefix("- ").replace("`", ""), markup=False, highlight=False, soft_wrap=True)
    console.print(f"all numbers: {output / 'results.md'}", markup=False, highlight=False, soft_wrap=True)
