"""`report.html`: everything about a training, an evaluation or a comparison in one page that needs nothing else.

A part is a function from the `Subject` to HTML, and one line in `PARTS`. It gives None where it does not apply, and
raises `Missing` where its data is not there; the page then says which command adds it.
"""

import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from markupsafe import Markup

from stillmotion.data.faults import one_line
from stillmotion.files import write_atomic
from stillmotion.report import classes, errors, facts, looking, neighbours, numbers
from stillmotion.report.html import page
from stillmotion.report.subject import Limits, Missing, Role, Subject, read_subject
from stillmotion.results import COST_HEADS, Row, format_cost, format_metric, head_of

FILE = "report.html"
Part = Callable[[Subject], Markup | None]


PARTS: dict[str, Part] = {
    "Results": numbers.results,
    "Accuracy over cost": numbers.cost,
    "Training": numbers.curves,
    "By class": classes.by_class,
    "Confusion": classes.confusion,
    "Scores": classes.scores,
    "Where it looks": looking.looking,
    "Confident errors": errors.errors,
    "What it hallucinates": neighbours.neighbours,
    "Data": facts.data,
    "Settings": facts.settings,
    "Environment": facts.environment,
}


def write_report(
    folder: str | Path,
    *,
    table: str | None = None,
    root: str | None = None,
    chosen: Mapping[Role, str | None] | None = None,
    limits: Limits | None = None,
    output: str | Path | None = None,
) -> Path:
    """Writes the page about a folder.

    Args:
        folder: What `train`, `evaluate --output` or `compare` wrote.
        table: The table, where it is not where the settings say.
        root: Folder that its relative paths start from.
        chosen: Rows of the comparison, or run folders, that are the `plain` student, the `student`, the `teacher`;
            None: as the settings tell.
        limits: Of the parts that cost time; None leaves them out.
        output: Where the page goes; default: `report.html` in the folder.

    Returns:
        The page.

    Raises:
        ValueError: The folder holds no results, or a row or table that is asked for is not there.
    """
    given: dict[Role, str] = {role: name for role, name in (chosen or {}).items() if name is not None}
    subject = read_subject(folder, table=table, root=root, chosen=given, limits=limits)
    if table is not None:
        _ = subject.table  # what the user named is read first, and a mistake in it told
    sections, missing = [], []
    for title, make in PARTS.items():
        try:
            body = make(subject)
        except Missing as gap:
            missing.append({"title": title, "reason": markdown_code(str(gap))})
            continue
        except Exception as error:  # one part never costs the others
            reason = one_line(error)
            print(f"warning: {subject.folder}: report without {title!r}: {reason}", file=sys.stderr)
            missing.append({"title": title, "reason": reason})
            continue
        sections.append({"id": title.lower().replace(" ", "-"), "title": title, "body": body})
    target = Path(output) if output is not None else subject.folder / FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    text = page(title=subject.name, kind=subject.kind, lead=_lead(subject), tiles=_tiles(subject), sections=sections,
                missing=missing, time=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", version=_version())  # fmt: skip
    write_atomic(target, text)
    return target


def report_safely(folder: str | Path, limits: Limits | None = None) -> None:
    """As `write_report`, for commands whose work is done: whatever goes wrong is one line."""
    try:
        write_report(folder, limits=limits)
    except Exception as error:
        print(f"warning: {folder}: no report: {one_line(error)}", file=sys.stderr)


def markdown_code(text: str) -> Markup:
    """Text whose `code` becomes HTML.

    Example:
        >>> markdown_code("run `a < b`")
        Markup('run <code>a &lt; b</code>')
    """
    parts = str(Markup.escape(text)).split("`")
    return Markup("".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(parts)))


def _lead(subject: Subject) -> str:
    method = (subject.settings.get("method") or {}).get("name")
    student = (subject.settings.get("student") or {}).get("name")
    if subject.kind == "training" and method:
        return f"{student}, trained by {method} on {Path(str(subject.settings.get('table'))).name}"
    if subject.kind == "comparison":
        samples = subject.results.get("num_samples")
        seeds = len(subject.settings.get("seeds", []))
        table = Path(str(subject.settings.get("table"))).name
        return f"{len(subject.rows)} rows, {seeds} seed{'s' if seeds > 1 else ''}, {samples} test samples of {table}"
    return f"{subject.settings.get('model', subject.rows[0]['name'])} on {subject.settings.get('table', 'a table')}"


def _tiles(subject: Subject) -> list[dict[str, Any]]:
    """The main metric of the rows that matter, and what the student costs."""
    names = list(dict.fromkeys([*subject.roles.values(), *(r["name"] for r in subject.rows)]))
    by_name = {row["name"]: row for row in subject.rows}
    kept = [by_name[name] for name in names if name in by_name][:3]
    tiles = []
    for row in kept:
        main = next((n for n, m in row["metrics"].items() if m["mean"] is not None and n != "unreadable"), None)
        if main is not None:
            tiles.append({"name": row["name"], "value": format_metric(main, row["metrics"][main]).partition(" ±")[0],
                          "note": head_of(main)})  # fmt: skip
    student = by_name.get(subject.roles.get("student", ""), subject.rows[0])
    return [*tiles, *_costs(student)]


def _costs(row: Row) -> list[dict[str, Any]]:
    known = [(name, row["cost"].get(name)) for name in ("gmacs", "ms_per_video", "frames")]
    return [{"name": COST_HEADS[name], "value": format_cost(name, value), "note": row["name"]}
            for name, value in known if value is not None]  # fmt: skip


def _version() -> str:
    try:
        return version("stillmotion")
    except PackageNotFoundError:
        return "from source"
