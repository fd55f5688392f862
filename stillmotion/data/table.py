"""The table: the only thing that training, evaluation and prediction know of a data set.

One row is one sample: `path`, `label`, optional `split`, `group`, a range (`start_frame`/`end_frame`, 0-based and
half-open, or `start_s`/`end_s` in seconds) and any further columns, which may be targets of other tasks.
"""

import csv
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from stillmotion.data.rows import (
    IMAGE_SUFFIXES,
    RANGE_COLUMNS,
    RESERVED_COLUMNS,
    VIDEO_SUFFIXES,
    Row,
    TableError,
    csv_rows,
    folder_rows,
    parquet_rows,
    suggest_rename,
)

__all__ = [
    "IMAGE_SUFFIXES",
    "RANGE_COLUMNS",
    "RESERVED_COLUMNS",
    "VIDEO_SUFFIXES",
    "Sample",
    "Table",
    "TableError",
    "read_table",
    "split_labels",
]

SEPARATOR = "|"
"""Between the labels of a sample that has several."""


def comma_list(names: Sequence[str], most: int = 8) -> str:
    """The first of many names.

    >>> comma_list(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def split_labels(value: str) -> list[str]:
    """Labels in a cell of a table.

    Example:
        >>> split_labels("run|jump")
        ['run', 'jump']
    """
    return [name.strip() for name in value.split(SEPARATOR) if name.strip()]


@dataclass(frozen=True)
class Sample:
    """One row of a table.

    Args:
        path: The file or folder of images, ready to open.
        name: The path as the table writes it; with the range it identifies the sample (`id`).
        targets: Text of every column that is not path, split, group or range; empty cells are left out.
        split: `train`, `val`, `test`, or any name.
        group: Samples of one group (a person, a scene, a source video) must not be on both sides of a split.
        start, end: Range, half-open; frames if `unit` is `frame`, seconds if `s`. None: from the start, to the end.
        line: Line in the table's file, for messages.
    """

    path: Path
    name: str
    targets: dict[str, str] = field(default_factory=dict, hash=False)
    split: str | None = None
    group: str | None = None
    start: float | None = None
    end: float | None = None
    unit: str = "frame"
    line: int = 0

    @property
    def id(self) -> str:
        """Identity: the name, and the range where there is one."""
        if self.start is None and self.end is None:
            return self.name
        unit = "s" if self.unit == "s" else ""
        start = "" if self.start is None else f"{_plain(self.start)}{unit}"
        end = "" if self.end is None else f"{_plain(self.end)}{unit}"
        return f"{self.name}[{start}:{end}]"

    @property
    def where(self) -> str:
        """Where a message says that the sample stands: its line, or its name where there is no line."""
        return f"line {self.line} ({self.name})" if self.line else self.name

    def frame_range(self, num_frames: int, fps: float | None) -> tuple[int, int]:
        """First frame and the one after the last, of a video with `num_frames` decodable frames.

        Bounds in seconds go to the nearest frame boundary (halves up), so that ranges that meet in time share no frame
        and lose none. What lies beyond the video's end is cut off.

        Raises:
            ValueError: The range is empty, or in seconds in a video whose frame rate is unknown.
        """
        scale = 1.0
        if self.unit == "s" and not (self.start is None and self.end is None):
            if not fps:
                raise ValueError(f"{self.id}: a range in seconds needs a frame rate, and {self.path.name} has none")
            scale = fps
        start = math.floor((self.start or 0.0) * scale + 0.5)
        end = num_frames if self.end is None else min(num_frames, math.floor(self.end * scale + 0.5))
        if start >= num_frames:
            raise ValueError(f"{self.id}: the range starts at frame {start}; the video has {num_frames} frames")
        if start >= end:
            rate = f" at {fps:g} frames a second" if fps else ""
            raise ValueError(f"{self.id}: the range holds no frame{rate}; make it longer")
        return start, end


@dataclass(frozen=True)
class Table:
    """Samples in the order of their file. Selecting gives a table again.

    Args:
        samples: The rows.
        source: File or folder that they came from, for messages.
        notes: What its reader wants a person to know; not written to the file.
    """

    samples: tuple[Sample, ...]
    source: str = "table"
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    @cached_property
    def hash(self) -> str:
        """SHA-256 (16 digits) of everything that identifies the rows: id, targets, split, group."""
        rows = [[s.id, sorted(s.targets.items()), s.split, s.group] for s in self.samples]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]

    @property
    def splits(self) -> list[str]:
        """Names of the splits in the order of appearance."""
        return list(dict.fromkeys(s.split for s in self.samples if s.split is not None))

    @property
    def groups(self) -> list[str]:
        """Names of the groups in the order of appearance."""
        return list(dict.fromkeys(s.group for s in self.samples if s.group is not None))

    def select(self, keep: str | Callable[[Sample], bool]) -> Self:
        """Rows of one split (a name), or those for which `keep` is true.

        Raises:
            TableError: No row is left.
        """
        chosen = tuple(s for s in self.samples if (s.split == keep if isinstance(keep, str) else keep(s)))
        if not chosen:
            if isinstance(keep, str):
                have = ", ".join(self.splits) or "none: add a column `split`, as `stillmotion data split` does"
                raise TableError(f"{self.source}: no sample in split {keep!r}; splits here: {have}")
            raise TableError(f"{self.source}: no sample is left")
        return replace(self, samples=chosen)

    def classes(self, target: str = "label") -> list[str]:
        """Sorted distinct values of a column (numbers by value)."""
        values = {s.targets[target] for s in self.samples if target in s.targets}
        if not values:
            columns = sorted({c for s in self.samples for c in s.targets})
            other = suggest_rename(columns, target)
            remedy = f"; rename `{other}` to `{target}`, or pass targets={other}" if other else "; add the column"
            have = ", ".join(columns) or "none"
            raise TableError(
                f"{self.source}: no row has a value in column `{target}` (further columns: {have}){remedy}"
            )
        if all(re.fullmatch("-?[0-9]+", v) for v in values):
            return sorted(values, key=int)
        return sorted(values)

    def write(self, path: str | Path, *, root: Path | None = None) -> None:
        """Writes the table as CSV; paths relative to `root` (default: the folder of the CSV) where possible."""
        path = Path(path)
        base = Path(os.path.abspath(root or path.parent))
        extra = list(dict.fromkeys(c for s in self.samples for c in s.targets))
        ranges = [c for c in RANGE_COLUMNS if any(c in _range_cells(s) for s in self.samples)]
        head = ["path", *extra]
        head += [c for c in ("split", "group") if any(getattr(s, c) is not None for s in self.samples)] + ranges
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, head, restval="", lineterminator="\n")
            writer.writeheader()
            for s in self.samples:
                # Not `resolve`: a link's own place counts, not what it points to.
                full = Path(os.path.abspath(s.path))
                shown = full.relative_to(base) if full.is_relative_to(base) else full
                cells: dict[str, Any] = {"path": shown.as_posix(), "split": s.split, "group": s.group}
                cells = {name: value for name, value in cells.items() if name in head}
                writer.writerow({**s.targets, **cells, **_range_cells(s)})


def _plain(value: float) -> str:
    """Every digit, and no `.0`: `:g` would round 1234567 to 1.23457e+06."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _range_cells(sample: Sample) -> dict[str, str]:
    suffix = "s" if sample.unit == "s" else "frame"
    cells = {f"start_{suffix}": sample.start, f"end_{suffix}": sample.end}
    return {name: _plain(value) for name, value in cells.items() if value is not None}


def read_table(source: str | Path, *, root: str | Path | None = None, check_files: bool = True) -> Table:
    """Reads a CSV or Parquet table, or a folder of class folders (optionally below train/val/test folders).

    Args:
        source: The file, or the folder.
        root: Folder that relative paths start from. Default: the folder of the table.
        check_files: Refuse rows whose file does not exist.

    Raises:
        TableError: In one line: file, line, what is wrong, what to do.
    """
    source = Path(source)
    if not source.exists():
        raise TableError(f"{source}: no such file; give a CSV or Parquet table, or a folder of class folders")
    base = Path(root) if root is not None else source if source.is_dir() else source.parent
    rows, unit = _rows(source)
    samples: list[Sample] = []
    seen: dict[str, Sample] = {}
    missing: list[Sample] = []
    for line, cells in rows:
        sample = _sample(cells, base, f"{source} {unit} {line}", line)
        key = sample.id.replace(sample.name, os.path.normpath(sample.name), 1)
        if key in seen:
            raise TableError(
                f"{source} {unit} {line}: {sample.id!r} stands already in {unit} {seen[key].line}; remove one"
            )
        seen[key] = sample
        samples.append(sample)
        if check_files and not sample.path.exists():
            missing.append(sample)
    if missing:
        raise TableError(f"{source} {unit} {missing[0].line}: {_not_found(missing, len(samples), base)}")
    if not samples:
        raise TableError(f"{source}: the table has a header and no rows; add one row for each video")
    return Table(tuple(samples), str(source))


def _rows(source: Path) -> tuple[Iterator[Row], str]:
    suffix = source.suffix.lower()
    if source.is_dir():
        return folder_rows(source), "line"
    if suffix in VIDEO_SUFFIXES | IMAGE_SUFFIXES:
        raise TableError(f"{source}: this is a video, not a table; write a CSV with the columns path,label")
    return (parquet_rows(source), "row") if suffix in (".parquet", ".pq") else (csv_rows(source), "line")


def _not_found(missing: Sequence[Sample], total: int, base: Path) -> str:
    first = missing[0]
    more = f" ({len(missing)} of {total} files are missing)" if len(missing) > 1 else ""
    if "\\" in first.name and (base / first.name.replace("\\", "/")).exists():
        return f"{first.name!r} not found{more}; write / instead of \\ in paths"
    return f"{first.name!r} not found under {base}{more}; correct the path, or say with --root where paths start"


def _sample(cells: dict[str, str], base: Path, where: str, line: int) -> Sample:
    if "path" not in cells:
        raise TableError(f"{where}: empty path; fill it in or remove the row")
    numbers = {c: _number(cells[c], c, where) for c in RANGE_COLUMNS if c in cells}
    seconds = any(c.endswith("_s") for c in numbers)
    if seconds and any(c.endswith("_frame") for c in numbers):
        raise TableError(f"{where}: range in frames and in seconds; keep start_frame/end_frame or start_s/end_s")
    suffix, unit = ("s", "s") if seconds else ("frame", "frame")
    start, end = numbers.get(f"start_{suffix}"), numbers.get(f"end_{suffix}")
    if end is not None and end <= (start or 0.0):
        raise TableError(
            f"{where}: end_{suffix} {end:g} is not after start_{suffix} {start or 0.0:g}; the end is exclusive"
        )
    targets = {c: v for c, v in cells.items() if c not in RESERVED_COLUMNS}
    name = cells["path"]
    return Sample(base / name, name, targets, cells.get("split"), cells.get("group"), start, end, unit, line)


def _number(text: str, column: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    seconds = column.endswith("_s")
    if not (math.isfinite(value) and value >= 0.0 and (seconds or value.is_integer())):
        kind = "seconds, 0 or more" if seconds else "a whole frame number, 0 or more"
        raise TableError(f"{where}: {column} is {text!r}; give {kind}")
    return value
