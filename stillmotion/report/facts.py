"""Parts of a report about what went in: samples, broken files, settings, machine."""

import csv
from collections import Counter
from typing import Any

import numpy as np
from markupsafe import Markup

from stillmotion.data.sampling import spread_evenly
from stillmotion.data.table import Sample, split_labels
from stillmotion.report.clips import Clock
from stillmotion.report.html import Cell, facts, piece, table
from stillmotion.report.subject import Missing, Subject
from stillmotion.run import Run, flatten
from stillmotion.tasks import Classes, MultiLabel

MOST_CLASSES = 40
MOST_BROKEN = 20
MOST_OPENED = 200
"""Videos that are opened to tell lengths."""


def data(subject: Subject) -> Markup:
    """Samples by split and class, lengths, broken files."""
    splits = _by_split(list(subject.table))
    head = ["split", "samples", "with a label", "groups"]
    rows: list[list[Cell | str]] = []
    for name, samples in splits.items():
        labelled = sum(subject.task.has_label(s) for s in samples)
        groups = len({s.group for s in samples if s.group is not None})
        rows.append([name, str(len(samples)), str(labelled), str(groups) if groups else "–"])
    body = piece("text", lines=[f"{subject.table.source}"]) + table(head, rows)
    for _, part in subject.task.parts:
        if isinstance(part, Classes):
            body += _classes(part, splits)
    return body + _lengths(subject) + _broken(subject)


def _by_split(samples: list[Sample]) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.split or "no split", []).append(sample)
    return found


def _classes(part: Classes, splits: dict[str, list[Sample]]) -> Markup:
    counts = {name: Counter(_labels(part, samples)) for name, samples in splits.items()}
    title = piece("heading", title=f"Samples by {part.target}")
    if part.num_outputs > MOST_CLASSES:
        numbers = [counts[name][c] for name in counts for c in part.class_names]
        line = f"{part.num_outputs} classes with {min(numbers)} to {max(numbers)} samples in a split."
        return title + piece("text", lines=[line])
    most = max((n for c in counts.values() for n in c.values()), default=1)
    rows: list[list[Cell | str]] = [
        [c, *(Cell(str(counts[s][c]), counts[s][c], counts[s][c] / most) for s in splits)] for c in part.class_names
    ]
    return title + table([part.target, *splits], rows, sortable=True)


def _labels(part: Classes, samples: list[Sample]) -> list[str]:
    texts = [s.targets[part.target] for s in samples if part.target in s.targets]
    return [name for text in texts for name in (split_labels(text) if isinstance(part, MultiLabel) else [text])]


def _lengths(subject: Subject) -> Markup:
    """Of some videos, spread over the table; opening them costs time."""
    if subject.limits is None:
        return piece("text", lines=[f"Lengths: `stillmotion report {subject.folder}` adds them."])
    source, clock = subject.frames(), Clock(subject.limits.seconds / 2)
    samples = list(subject.table)
    chosen = spread_evenly(len(samples), MOST_OPENED).tolist()
    frames, seconds, unread = [], [], 0
    for place in np.random.default_rng(0).permutation(chosen).tolist():
        if clock.out:
            break
        try:
            extent = source.extent(samples[place])
        except ValueError:
            unread += 1
            continue
        frames.append(extent.num_frames)
        seconds += [extent.num_frames / extent.fps] if extent.fps else []
    if not frames:
        return Markup()
    pairs: list[tuple[str, Any]] = [("videos looked into", f"{len(frames)} of {len(samples)}")]
    pairs.append(("frames", _range(frames, "")))
    if seconds:
        pairs.append(("length", _range(seconds, " s")))
    if unread:
        pairs.append(("of them not readable", unread))
    return piece("heading", title="Lengths") + facts(pairs)


def _range(values: list[Any], unit: str) -> str:
    low, middle, high = np.quantile(np.asarray(values, float), [0.0, 0.5, 1.0])
    return f"{low:.3g} to {high:.3g}{unit}, median {middle:.3g}{unit}"


def _broken(subject: Subject) -> Markup:
    path = subject.folder / "broken.csv"
    title = piece("heading", title="Broken files")
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        told = [f"{row['file']} (line {row['line']}, used: {row['used']}): {row['reason']}" for row in lines]
    else:
        told = list(subject.results.get("unreadable", []))
    if not told:
        return title + piece("text", lines=["None."])
    more = [f"{len(told) - MOST_BROKEN} more"] if len(told) > MOST_BROKEN else []
    return title + piece("listed", lines=[*told[:MOST_BROKEN], *more])


def settings(subject: Subject) -> Markup:
    """Every setting, by its first name."""
    if not subject.settings:
        raise Missing("the settings are not noted here; the command that wrote this folder adds them")
    body = Markup()
    plain = {k: v for k, v in subject.settings.items() if not isinstance(v, dict)}
    body += facts([(k, shown(v)) for k, v in plain.items()])
    for name, value in subject.settings.items():
        if isinstance(value, dict) and value:
            flat = [(k, shown(v)) for k, v in flatten(value).items() if v is not None]
            body += piece("more", summary=name, body=facts(flat))
    return body


def shown(value: Any) -> str:
    """A setting for people.

    Example:
        >>> shown([1, 2]), shown(None), shown(True)
        ('1, 2', '–', 'true')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value)) or "–"
    return "–" if value is None else str(value)


def environment(subject: Subject) -> Markup:
    """Machine, versions and commit of the training (of a comparison: of its first run)."""
    places = [subject.folder, *subject.runs.values()]
    place = next((p for p in places if (p / "environment.json").is_file()), None)
    if place is None:
        raise Missing("no run's environment.json is here")
    found = Run(place).read_json("environment.json")
    versions = {k: v for k, v in found.pop("versions", {}).items() if v}
    return facts([(k, shown(v)) for k, v in {**found, **versions}.items()])
