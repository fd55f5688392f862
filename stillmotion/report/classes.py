"""Parts of a report about classes and scores: confusion, gains by class, guessed over true scores."""

import csv
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from stillmotion.report import plots
from stillmotion.report.html import Cell, chart, piece, table
from stillmotion.report.subject import Subject
from stillmotion.tasks import Score

MOST_CELLS = 20
"""Classes of a confusion matrix that is shown in full."""
MOST_BARS = 30


def confusion(subject: Subject) -> Markup | None:
    """Confusion matrices; of a comparison first those of the rows that play a role."""
    found = _matrices(subject)
    if not found:
        return None
    first = [n for n in found if n.partition(".")[0] in subject.roles.values()] or list(found)[:3]
    shown = [_matrix(name, found[name]) for name in found if name in first]
    rest = [_matrix(name, found[name]) for name in found if name not in first]
    return _beside(shown) + (piece("more", summary="Further rows", body=_beside(rest)) if rest else "")


def _beside(matrices: Sequence[Markup]) -> Markup:
    return Markup('<div class="confusions">') + Markup("").join(matrices) + Markup("</div>")


def _ends(items: list[Any]) -> list[Any]:
    """All of a few, or the first and the last ones."""
    return items if len(items) <= MOST_BARS else [*items[: MOST_BARS // 2], *items[-MOST_BARS // 2 :]]


def _matrices(subject: Subject) -> dict[str, Mapping[str, Any]]:
    """Content of the files by name of the row (and column)."""
    if subject.kind == "comparison":
        files = {path.stem: path for path in sorted((subject.folder / "confusion").glob("*.json"))}
        names = [row["name"] for row in subject.rows]  # in the order of the table
        files = dict(sorted(files.items(), key=lambda item: _order(item[0], names)))
    else:
        places = {row["name"]: folder for row, folder in zip(subject.rows, _folders(subject), strict=False)}
        files = {name + path.stem.removeprefix("confusion"): path
                 for name, folder in places.items() for path in sorted(folder.glob("confusion*.json"))}  # fmt: skip
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in files.items()}


def _order(name: str, rows: Sequence[str]) -> int:
    fitting = [i for i, row in enumerate(rows) if name == row or name.startswith(f"{row}.")]
    return fitting[0] if fitting else len(rows)


def _folders(subject: Subject) -> list[Path]:
    return [subject.folder, subject.folder / "teacher"]


def _matrix(title: str, found: Mapping[str, Any]) -> Markup:
    names, matrix = list(found["classes"]), np.asarray(found["matrix"])
    right = f"{100 * np.trace(matrix) / max(1, matrix.sum()):.1f} % of {matrix.sum()} right"
    if len(names) > MOST_CELLS:
        drawn = chart(partial(plots.plot_confusion, matrix, names, title=title))
        return drawn + piece("text", lines=["Most frequent: " + ", ".join(_mistakes(matrix, names))])
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    rows = [{"name": name, "place": i, "cells": [{"count": int(n), "share": s} for n, s in zip(matrix[i], share[i],
             strict=True)]} for i, name in enumerate(names)]  # fmt: skip
    return piece("confusion", title=title, names=names, rows=rows, note=right)


def _mistakes(matrix: NDArray[np.integer[Any]], names: Sequence[str], most: int = 8) -> list[str]:
    """What is most often taken for what."""
    wrong = matrix * (1 - np.eye(len(names), dtype=int))
    places = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [divmod(int(place), len(names)) for place in places]
    return [f"{names[i]} as {names[j]} ({wrong[i, j]})" for i, j in pairs if wrong[i, j]]


def by_class(subject: Subject) -> Markup | None:
    """Accuracy by class: what the student gains over the plain one, or of one network the accuracies themselves."""
    if subject.kind != "comparison":
        return _accuracies(subject)
    values: Mapping[str, Mapping[str, float]] = subject.results.get("per_class", {})
    names = list(dict.fromkeys(c for row in values.values() for c in row))
    if not names:
        return None
    plain, student = (values.get(subject.roles.get(role, ""), {}) for role in ("plain", "student"))
    body = Markup()
    both = [name for name in names if name in plain and name in student]
    if both and subject.roles["plain"] != subject.roles["student"]:
        body += _gains(subject, both, plain, student)
    if len(names) <= MOST_CELLS:
        rows: list[list[Cell | str]] = [
            [row, *(Cell(f"{100 * v[c]:.1f}", v[c], v[c]) if c in v else Cell("–") for c in names)]
            for row, v in values.items()
        ]
        body += piece("heading", title="All rows (%)") + table(["row", *names], rows, sortable=True)
    return body


def _gains(subject: Subject, names: list[str], plain: Mapping[str, float], student: Mapping[str, float]) -> Markup:
    gains = sorted(((student[c] - plain[c], c) for c in names), reverse=True)
    kept = _ends(gains)
    reach = max(max(abs(g) for g, _ in gains), 1e-9)
    rows = []
    for gain, name in kept:
        width = 50.0 * abs(gain) / reach
        text = f"{100 * gain:+.1f} ({100 * plain[name]:.0f} → {100 * student[name]:.0f})"
        rows.append({"name": name, "zero": 50.0, "low": None, "high": None, "kind": "good" if gain >= 0 else "bad",
                     "start": 50.0 if gain >= 0 else 50.0 - width, "width": width, "text": text})  # fmt: skip
    title = f"Gain of {subject.roles['student']} over {subject.roles['plain']} (points)"
    body = piece("heading", title=title) + piece("bars", rows=rows, unit="points")
    if len(kept) < len(gains):
        body += piece("text", lines=[f"The {len(kept)} largest gains and losses of {len(gains)} classes; all: "
                                     "per_class.csv."])  # fmt: skip
    return body


def _accuracies(subject: Subject) -> Markup | None:
    body = Markup()
    for path in sorted(subject.folder.glob("per_class*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        column = "average_precision" if lines and "average_precision" in lines[0] else "accuracy"
        known = sorted(((float(r[column]), r) for r in lines if r.get(column)), key=lambda x: -x[0])
        if not known:
            continue
        kept = _ends(known)
        rows = [{"name": r["class"], "zero": 0.0, "low": None, "high": None, "kind": "plain", "start": 0.0,
                 "width": 100 * v, "text": f"{100 * v:.1f} % of {r['samples']}"} for v, r in kept]  # fmt: skip
        suffix = path.stem.removeprefix("per_class").removeprefix(".")
        title = f"{column.replace('_', ' ').capitalize()}{f' of {suffix}' if suffix else ''} by class"
        if len(kept) < len(known):
            title += f", the best and worst {len(kept)} of {len(known)}"
        body += piece("heading", title=title) + piece("bars", rows=rows, unit="%")
    return body or None


def scores(subject: Subject) -> Markup | None:
    """Guessed over true scores, of the rows that play a role."""
    parts = [(i, place, part) for i, (place, part) in enumerate(subject.task.parts) if isinstance(part, Score)]
    if not parts:
        return None
    names = list(dict.fromkeys(subject.roles.values())) or [row["name"] for row in subject.rows][:3]
    drawn = []
    for name in names:
        said = subject.said(name)
        if said is None:
            continue
        for i, place, part in parts:
            true = subject.task.part_targets(said.targets, i)
            known = part.labelled(true)
            if known.any():
                guesses = part.guess(said.logits[known][:, place])
                drawn.append(chart(partial(plots.plot_scores, guesses, true[known], part.target), caption=name))
    return piece("charts", parts=drawn) if drawn else None
