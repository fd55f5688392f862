"""Parts of a report that are numbers: the table, differences, accuracy over cost, curves."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from stillmotion.report import plots
from stillmotion.report.html import Cell, chart, piece, table
from stillmotion.report.subject import Missing, Subject
from stillmotion.results import (
    COST_HEADS,
    COSTS,
    all_metrics,
    format_cost,
    format_metric,
    head_of,
    is_accuracy,
)

COLUMNS = {"loss": "training loss", "task_loss": "task loss", "top1": "training top1", "correct": "training correct",
           "mae": "training mae"}  # fmt: skip
"""Of `metrics.csv`, before the losses of a method and what was validated."""


def results(subject: Subject) -> Markup:
    """All metrics and costs, and what rows differ by."""
    names = all_metrics(subject.rows)
    costs = [c for c in COSTS if any(row["cost"].get(c) is not None for row in subject.rows)]
    lines: list[list[Cell | str]] = []
    for row in subject.rows:
        metrics = [(n, row["metrics"].get(n)) for n in names]
        cells: list[Cell | str] = [row["name"]]
        cells += [Cell(format_metric(n, m), m["mean"] if m else None) for n, m in metrics]
        cells += [Cell(format_cost(c, row["cost"].get(c)), row["cost"].get(c)) for c in costs]
        lines.append(cells)
    body = table(["row", *map(head_of, names), *(COST_HEADS[c] for c in costs)], lines, sortable=len(lines) > 1)
    counts = sorted({len(m["values"]) for row in subject.rows for m in row["metrics"].values()})
    if counts and counts[-1] > 1:
        body += piece("text", lines=[f"Mean ± standard deviation over {counts[-1]} seeds."])
    return body + _differences(subject)


def _differences(subject: Subject) -> Markup:
    """Paired differences with their intervals as bars about zero, in the main metric of each pair."""
    found: Sequence[Mapping[str, Any]] = subject.results.get("differences", [])
    if not found:
        return Markup()
    main = found[0]["metric"]
    shown = [d for d in found if d["metric"] == main]
    ends = [abs(v) for d in shown for v in (d["mean"], d["low"], d["high"]) if v is not None]
    reach = 1.05 * max(ends) if any(ends) else 1.0
    body = piece("heading", title=f"Differences on the same test samples ({main})")
    for reference in dict.fromkeys(d["reference"] for d in shown):
        rows = []
        for d in (d for d in shown if d["reference"] == reference):
            sure = "" if d["excludes_zero"] else " unsure"
            low, high = (None if v is None else _place(v, reach) for v in (d["low"], d["high"]))
            value = d["text"].partition("]")[0] + ("]" if "]" in d["text"] else "")
            kind = f"point {'good' if d['mean'] > 0 else 'bad'}{sure}"
            rows.append({"name": f"{d['row']} − {reference}", "zero": 50.0, "low": low, "high": high, "kind": kind,
                         "start": _place(d["mean"], reach), "width": 0.0, "text": value})  # fmt: skip
        body += piece("bars", rows=rows, unit="")
    told = "A dot is the mean, the bar its 95 % interval (paired bootstrap over test groups); grey dots: the interval "
    body += piece("text", lines=[f"{told}includes 0."])
    rest = [f"{d['row']} − {d['reference']}, {d['metric']}: {d['text']}" for d in found if d["metric"] != main]
    return body + (piece("more", summary="Other metrics", body=piece("listed", lines=rest)) if rest else "")


def _place(value: float, reach: float) -> float:
    """Percent of the way from -reach to reach."""
    return 50.0 + 50.0 * value / reach


def cost(subject: Subject) -> Markup | None:
    """Accuracy over GMACs and milliseconds; of several rows only."""
    if len(subject.rows) < 2:
        return None
    kinds = [k for k in ("gmacs", "ms_per_video") if any((r["cost"].get(k) or 0) > 0 for r in subject.rows)]
    if not kinds:
        raise Missing("no row's cost was measured")
    main = all_metrics(subject.rows)[0]
    drawn = [chart(partial(plots.plot_cost, subject.rows, metric=main, kinds=[kind])) for kind in kinds]
    told = "ms / video: from the file to its prediction, decoding included. Up and to the left is better."
    return piece("charts", parts=drawn) + piece("text", lines=[told])


def curves(subject: Subject) -> Markup | None:
    """Losses and metrics over the epochs, the seeds' range as a band."""
    if subject.kind == "evaluation":
        return None
    files: dict[str, list[Path]] = {}
    if subject.kind == "training":
        files[subject.name] = [subject.folder / "metrics.csv"]
    else:
        for row in subject.rows:
            files[row["name"]] = sorted(subject.folder.glob(f"runs/{row['name']}/*/seed*/metrics.csv"))
    files = {name: kept for name, paths in files.items() if (kept := [p for p in paths if p.is_file()])}
    if not files:
        raise Missing("no training left its metrics.csv here")
    drawn = [chart(partial(plots.plot_curves, files, {title: column})) for column, title in _columns(files).items()]
    return piece("charts", parts=[part for part in drawn if part])


def _columns(files: Mapping[str, Sequence[Path]]) -> dict[str, str]:
    """Columns of the files that are drawn, with the titles of their panels."""
    heads: dict[str, None] = {}
    for paths in files.values():
        with paths[0].open(encoding="utf-8") as file:
            heads |= dict.fromkeys(file.readline().strip().split(","))
    chosen = {name: title for name, title in COLUMNS.items() if name in heads}
    chosen |= {n: n.replace("_", " ") for n in heads if n.endswith("_loss") and n not in chosen}
    return {name: title.replace("val ", "validation ") for name, title in chosen.items()} | {
        name: f"validation {name.removeprefix('val_')}" for name in heads if name.startswith("val_") and is_main(name)
    }


def is_main(name: str) -> bool:
    """Whether a validated metric gets a panel: losses and shares, not every column of many."""
    metric = name.removeprefix("val_")
    return metric == "loss" or ("." not in metric and (is_accuracy(metric) or metric == "spearman"))
