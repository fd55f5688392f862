"""`stillmotion data check`: decodes everything that a table names and says what is wrong, before training finds out.

Exit codes: 0 everything is readable; 1 a file is not, or only in part; 2 the table itself is wrong: it cannot be read,
a file is missing, a range holds no frame, or one group (or one content) is on both sides of a split. 2 goes before 1.
Ranges that end after the video's last frame are reported and cut there; equal contents within a split are reported too.
"""

import json as jsonlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from rich.console import Console
from rich.table import Table as RichTable

from stillmotion.data.cluster import map_apart
from stillmotion.data.examine import Examination, examine
from stillmotion.data.faults import TIMEOUT_SECONDS, VideoError
from stillmotion.data.images import examine_images, is_images
from stillmotion.data.pool import Failure, run_apart
from stillmotion.data.table import Sample, Table, TableError, read_table
from stillmotion.progress import progress_bar

Kind = Literal["missing", "unreadable", "partly readable", "empty range", "leak", "long range", "duplicate"]
EXIT_CODES: dict[Kind, int] = {
    "missing": 2,
    "empty range": 2,
    "leak": 2,
    "unreadable": 1,
    "partly readable": 1,
    "long range": 0,
    "duplicate": 0,
}
MANY_CLASSES = 40


@dataclass(frozen=True)
class Problem:
    """One line of the report.

    Args:
        kind: Decides the exit code (`EXIT_CODES`).
        path: As the table writes it.
        line: In the table's file, 0 if it concerns more than one.
        message: What is wrong, and the remedy where there is one.
    """

    kind: Kind
    path: str
    line: int
    message: str

    def __str__(self) -> str:
        where = f" (line {self.line})" if self.line else ""
        return f"{self.kind}: {self.path}{where}: {self.message}"


@dataclass(frozen=True)
class CheckReport:
    """What `check_table` found.

    Args:
        table: The table.
        files: What decoding showed, by name in the table; None for files of which nothing can be read.
        problems: In the order of severity, then of the table.
    """

    table: Table
    files: dict[str, Examination | None]
    problems: tuple[Problem, ...]

    @property
    def exit_code(self) -> int:
        """0 all readable, 1 something is not, 2 the table itself is wrong."""
        return max((EXIT_CODES[problem.kind] for problem in self.problems), default=0)

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Samples by class and split; `-` stands for no class, `all` for a table without splits."""
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for sample in self.table:
            counts[sample.targets.get("label", "-")][sample.split or "all"] += 1
        return {name: dict(counts[name]) for name in sorted(counts, key=_natural)}

    @property
    def notes(self) -> dict[str, tuple[str, ...]]:
        """What is odd but read correctly, by file."""
        return {name: seen.notes for name, seen in self.files.items() if seen and seen.notes}

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        seen = [file for file in self.files.values() if file]
        kinds = Counter(problem.kind for problem in self.problems)
        return {
            "table": self.table.source,
            "exit_code": self.exit_code,
            "num_samples": len(self.table),
            "num_files": len(self.files),
            "num_readable": sum(file.fault is None for file in seen),
            "num_partly_readable": sum(file.fault is not None for file in seen),
            "num_unreadable": kinds["unreadable"],
            "num_missing": len({p.path for p in self.problems if p.kind == "missing"}),
            "counts": self.counts,
            "frames": _spread([file.num_frames for file in seen]),
            "seconds": _spread([file.num_frames / file.fps for file in seen if file.fps]),
            "fps": _tally(f"{file.fps:.4g}" if file.fps else "none" for file in seen),
            "sizes": _tally(f"{file.size[0]}x{file.size[1]}" for file in seen),
            "problems": [asdict(problem) for problem in self.problems],
            "notes": {name: list(notes) for name, notes in self.notes.items()},
            "files": {name: _file_dict(file) for name, file in self.files.items()},
        }


def check_table(
    table: Table, *, workers: int | None = None, progress: bool = True,
    timeout: float = TIMEOUT_SECONDS, cluster: str | None = None,
) -> CheckReport:  # fmt: skip
    """Decodes every file of a table in worker processes.

    Args:
        table: Read with `check_files=False`, so that missing files are reported and not raised.
        workers: Processes; None: one a core.
        progress: Show a bar on stderr.
        timeout: Seconds for one file, after which it counts as unreadable.
        cluster: Ray cluster that decodes in their place, as in `stillmotion.data.cluster`.
    """
    first = {sample.name: sample for sample in reversed(table.samples)}
    present = [name for name in dict.fromkeys(s.name for s in table) if first[name].path.exists()]
    paths = [str(first[name].path) for name in present]
    answers: dict[str, Examination | str] = {}
    found = (
        run_apart(look, paths, workers=workers or _num_cores(), timeout=timeout)
        if cluster is None
        else map_apart(cluster, look, paths, timeout=timeout, ordered=False)
    )
    with progress_bar(shown=progress) as bar:
        task = bar.add_task("decoding", total=len(paths))
        for position, answer in found:
            answers[present[position]] = answer.reason if isinstance(answer, Failure) else answer
            bar.advance(task)
    files = {name: _found(answers.get(name)) for name in first}
    files = {name: files[name] for name in dict.fromkeys(s.name for s in table)}
    problems = [*_file_problems(table, answers), *_range_problems(table, files), *_leaks(table, files)]
    problems.sort(key=lambda problem: -EXIT_CODES[problem.kind])
    return CheckReport(table, files, tuple(problems))


def look(path: str) -> Examination | str:
    """What a worker does: decodes one file; a string says why nothing can be read."""
    place = Path(path)
    try:
        return examine_images(place) if is_images(place) else examine(place, digest=True)
    except VideoError as error:
        return str(error).removeprefix(f"{place}: ")
    except MemoryError:
        return "not enough memory to decode it"


def check(
    table: str, *, root: str | None = None, json: str | None = None, workers: int | None = None,
    timeout: float = TIMEOUT_SECONDS, cluster: str | None = None,
) -> int:  # fmt: skip
    """Decodes every file of a table and reports what is in it and what is wrong.

    Args:
        table: CSV or Parquet file, or a folder of class folders.
        root: Folder that the table's relative paths start from; default: the folder of the table.
        json: Also write the report to this file.
        workers: Processes; default: one a core.
        timeout: See `check_table`.
        cluster: See `check_table`.

    Returns:
        Exit code: 0 everything is readable, 1 something is not, 2 the table itself is wrong, 130 stopped.
    """
    console = Console(highlight=False)
    if json:
        Path(json).parent.mkdir(parents=True, exist_ok=True)
    try:
        rows = read_table(table, root=root, check_files=False)
        report = check_table(rows, workers=workers, timeout=timeout, cluster=cluster)
    except TableError as error:
        console.print(str(error), markup=False, soft_wrap=True)
        if json:
            failed = {"table": table, "exit_code": 2, "error": str(error), "problems": []}
            Path(json).write_text(jsonlib.dumps(failed, indent=1) + "\n", encoding="utf-8")
        return 2
    except KeyboardInterrupt:
        console.print("stopped; nothing was written")
        return 130
    show(report, console)
    if json:
        Path(json).write_text(jsonlib.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    return report.exit_code


def show(report: CheckReport, console: Console) -> None:
    """Prints the report for a person."""
    counts = report.counts
    splits = list(dict.fromkeys(sample.split or "all" for sample in report.table))
    grid = RichTable("label", *splits, title=f"{report.table.source}: {len(report.table)} samples")
    for name, by_split in list(counts.items())[:MANY_CLASSES]:
        grid.add_row(name, *(str(by_split.get(split, 0)) for split in splits))
    if len(counts) > MANY_CLASSES:
        grid.add_row(f"... {len(counts) - MANY_CLASSES} more")
    grid.add_section()
    totals = Counter(sample.split or "all" for sample in report.table)
    grid.add_row("all", *(str(totals[split]) for split in splits))
    console.print(grid)
    facts = report.to_dict()
    for name, unit in (("frames", ""), ("seconds", " s")):
        spread = facts[name]
        if spread:
            console.print(
                f"{name}: {spread['min']:g} to {spread['max']:g}{unit}, median {spread['median']:g}{unit}, "
                f"{spread['total']:g}{unit} in all"
            )
    for name in ("fps", "sizes"):
        most = list(facts[name].items())[:6]
        more = f", and {len(facts[name]) - len(most)} more" if len(facts[name]) > len(most) else ""
        console.print(f"{name}: " + ", ".join(f"{value} ({count})" for value, count in most) + more)
    for names in _by_note(report).values():
        note, name = names[0]
        console.print(f"note: {len(names)} files such as {name}: {note}", markup=False, soft_wrap=True)
    for problem in report.problems:
        console.print(str(problem), markup=False, soft_wrap=True)
    console.print(
        f"{facts['num_readable']} of {facts['num_files']} files readable, {facts['num_partly_readable']} in part, "
        f"{facts['num_unreadable']} not, {facts['num_missing']} missing"
    )


def _by_note(report: CheckReport) -> dict[str, list[tuple[str, str]]]:
    """Notes and their files, those that differ in numbers only together."""
    alike: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name, notes in report.notes.items():
        for note in notes:
            alike[re.sub(r"\d+", "0", note)].append((note, name))
    return alike


def _file_problems(table: Table, answers: dict[str, Examination | str]) -> Iterator[Problem]:
    """Missing, unreadable and partly readable files; missing ones by row, the others once."""
    told: set[str] = set()
    for sample in table:
        answer = answers.get(sample.name)
        if answer is None:
            message = f"not found at {sample.path}; correct the path, or say with --root where paths start"
            yield Problem("missing", sample.name, sample.line, message)
        elif sample.name not in told:
            told.add(sample.name)
            if isinstance(answer, str):
                yield Problem("unreadable", sample.name, sample.line, answer)
            elif answer.fault:
                yield Problem("partly readable", sample.name, sample.line, answer.fault)


def _range_problems(table: Table, files: dict[str, Examination | None]) -> Iterator[Problem]:
    for sample in table:
        seen = files[sample.name]
        if seen is None:
            continue
        try:
            _, end = sample.frame_range(seen.num_frames, seen.fps)
        except ValueError as error:
            yield Problem("empty range", sample.name, sample.line, str(error).removeprefix(f"{sample.id}: "))
            continue
        asked = _asked_end(sample, seen)
        if asked is not None and asked > end:
            message = f"the range ends at frame {asked}, the video has {seen.num_frames} frames; it is cut there"
            yield Problem("long range", sample.name, sample.line, message)


def _asked_end(sample: Sample, seen: Examination) -> int | None:
    if sample.end is None:
        return None
    return round(sample.end * (seen.fps or 0.0)) if sample.unit == "s" else int(sample.end)


def _leaks(table: Table, files: dict[str, Examination | None]) -> Iterator[Problem]:
    """Groups on both sides of a split, and equal contents (all decoded frames, compared at 64x64)."""
    groups: dict[str, dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    contents: dict[str, dict[str, Sample]] = defaultdict(dict)
    for sample in table:
        if sample.group is not None and sample.split is not None:
            groups[sample.group][sample.split].append(sample)
        seen = files[sample.name]
        if seen and seen.digest:
            contents[seen.digest].setdefault(sample.name, sample)
    for group, splits in groups.items():
        if len(splits) > 1:
            parts = " and ".join(f"{name} ({len(s)} rows, such as {s[0].name})" for name, s in splits.items())
            row = list(splits.values())[1][0]
            message = f"group {group!r} is in {parts}; keep a group on one side of a split"
            yield Problem("leak", row.name, row.line, message)
    for same in contents.values():
        samples = list(same.values())
        if len(samples) > 1:
            names = ", ".join(f"{s.name} (line {s.line})" for s in samples[:-1])
            across = len({s.split for s in samples}) > 1
            message = f"all decoded frames equal those of {names}"
            message += ", which is in another split; remove one" if across else ""
            yield Problem("leak" if across else "duplicate", samples[-1].name, samples[-1].line, message)


def _found(answer: Examination | str | None) -> Examination | None:
    return answer if isinstance(answer, Examination) else None


def _file_dict(file: Examination | None) -> dict[str, Any] | None:
    if file is None:
        return None
    facts = asdict(file)
    facts["damaged"] = len(file.damaged)
    facts["keyframes"] = len(file.keyframes)
    return facts


def _spread(values: list[int] | list[float]) -> dict[str, float]:
    if not values:
        return {}
    found = {"min": min(values), "median": median(values), "max": max(values), "total": sum(values)}
    return {name: round(value, 3) for name, value in found.items()}


def _tally(values: Iterator[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _natural(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdigit() else (-1, name)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
