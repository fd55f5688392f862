"""The table: the only thing that training, evaluation and prediction know of a data set.

One row is one sample: `path`, `label`, optional `split`, `group`, a range (`start_frame`/`end_frame`, 0-based and
half-open, or `start_s`/`end_s` in seconds) and any further columns, which may be targets of other tasks.
"""

import csv
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

VIDEO_SUFFIXES = frozenset(
    [
        ".avi",
        ".mp4",
        ".mkv",
        ".mov",
        ".webm",
        ".mpg",
        ".mpeg",
        ".m4v",
        ".wmv",
        ".flv",
        ".3gp",
        ".ts",
        ".ogv",
        ".mts",
        ".m2ts",
        ".mjpeg",
        ".y4m",
        ".gif",
    ]
)
IMAGE_SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"])
RANGE_COLUMNS = ("start_frame", "end_frame", "start_s", "end_s")
RESERVED_COLUMNS = ("path", "split", "group", *RANGE_COLUMNS)
SPLIT_FOLDERS = ("train", "val", "valid", "validation", "test")


class TableError(ValueError):
    """The table is wrong; the message names file, line and remedy."""


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
        start = "" if self.start is None else f"{self.start:g}{unit}"
        end = "" if self.end is None else f"{self.end:g}{unit}"
        return f"{self.name}[{start}:{end}]"

    def frame_range(self, num_frames: int, fps: float | None) -> tuple[int, int]:
        """First frame and the one after the last, of a video with `num_frames` decodable frames.

        Raises:
            ValueError: The range is empty, or in seconds in a video whose frame rate is unknown.
        """
        bounds = [self.start or 0.0, num_frames if self.end is None else self.end]
        if self.unit == "s":
            if not fps:
                raise ValueError(f"{self.id}: a range in seconds needs a frame rate, and {self.path.name} has none")
            bounds = [round(self.start * fps) if self.start else 0,
                      num_frames if self.end is None else round(self.end * fps)]  # fmt: skip
        start, end = max(0, int(bounds[0])), min(num_frames, int(bounds[1]))
        if start >= end:
            raise ValueError(f"{self.id}: no frame in the range; the video has {num_frames} frames")
        return start, end


@dataclass(frozen=True)
class Table:
    """Samples in the order of their file. Selecting gives a table again.

    Args:
        samples: The rows.
        source: File or folder that they came from, for messages.
    """

    samples: tuple[Sample, ...]
    source: str = "table"

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
                have = ", ".join(self.splits) or "none: add a column `split`"
                raise TableError(f"{self.source}: no sample in split {keep!r}; splits here: {have}")
            raise TableError(f"{self.source}: no sample is left")
        return replace(self, samples=chosen)

    def classes(self, target: str = "label") -> list[str]:
        """Sorted distinct values of a column (numbers by value)."""
        values = {s.targets[target] for s in self.samples if target in s.targets}
        if not values:
            columns = ", ".join(sorted({c for s in self.samples for c in s.targets})) or "none"
            raise TableError(f"{self.source}: no row has a value in column {target!r}; columns here: {columns}")
        if all(v.lstrip("-").isdigit() for v in values):
            return sorted(values, key=int)
        return sorted(values)

    def write(self, path: str | Path, *, root: Path | None = None) -> None:
        """Writes the table as CSV; paths relative to `root` (default: the folder of the CSV) where possible."""
        path = Path(path)
        base = (root or path.parent).resolve()
        extra = list(dict.fromkeys(c for s in self.samples for c in s.targets))
        ranges = [c for c in RANGE_COLUMNS if any(c in _range_cells(s) for s in self.samples)]
        head = ["path", *extra]
        head += [c for c in ("split", "group") if any(getattr(s, c) is not None for s in self.samples)] + ranges
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, head, restval="", extrasaction="ignore")
            writer.writeheader()
            for s in self.samples:
                full = s.path.resolve()
                shown = full.relative_to(base) if full.is_relative_to(base) else full
                cells: dict[str, Any] = {"path": shown.as_posix(), "split": s.split, "group": s.group}
                writer.writerow({**s.targets, **cells, **_range_cells(s)})


def _range_cells(sample: Sample) -> dict[str, str]:
    suffix = "s" if sample.unit == "s" else "frame"
    cells = {f"start_{suffix}": sample.start, f"end_{suffix}": sample.end}
    return {name: f"{value:g}" for name, value in cells.items() if value is not None}


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
    if source.is_dir():
        return _read_folder(source)
    if not source.exists():
        raise TableError(f"{source}: no such file; give a CSV or Parquet table, or a folder of class folders")
    base = Path(root) if root is not None else source.parent
    if source.suffix.lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES:
        raise TableError(f"{source}: this is a video, not a table; write a CSV with the columns path,label")
    rows = _parquet_rows(source) if source.suffix.lower() in (".parquet", ".pq") else _csv_rows(source)
    samples: list[Sample] = []
    seen: dict[str, int] = {}
    for line, row in rows:
        sample = _sample(row, base, f"{source} line {line}", line, check_files)
        if sample.id in seen:
            raise TableError(
                f"{source} line {line}: {sample.id!r} stands already in line {seen[sample.id]}; remove one"
            )
        seen[sample.id] = line
        samples.append(sample)
    if not samples:
        raise TableError(f"{source}: the table has no rows")
    return Table(tuple(samples), str(source))


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            _check_header(path, reader.fieldnames or ())
            for row in reader:
                if None in row or None in row.values():
                    raise TableError(
                        f"{path} line {reader.line_num}: {len(reader.fieldnames or ())} columns expected; "
                        "check for a missing or unquoted comma"
                    )
                yield reader.line_num, row
    except UnicodeDecodeError as error:
        raise TableError(f"{path}: not UTF-8 text (byte {error.start}); save the table as UTF-8 CSV") from None
    except csv.Error as error:
        raise TableError(f"{path}: not a CSV table ({error})") from None


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise TableError(f"{path}: Parquet needs pyarrow; pip install 'stillmotion[train]', or use CSV") from None
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise TableError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from None
    _check_header(path, table.column_names)
    for number, row in enumerate(table.to_pylist(), start=1):
        yield number, {name: _cell(value) for name, value in row.items()}


def _cell(value: Any) -> str:
    if value is None or value != value:
        return ""
    return f"{value:g}" if isinstance(value, float) and value.is_integer() else str(value)


def _check_header(path: Path, columns: Sequence[str]) -> None:
    names = [c.strip() for c in columns]
    if "path" not in names:
        have = ", ".join(names) or "none"
        raise TableError(f"{path} line 1: no column `path` (columns: {have}); rename the column of file names to path")
    if twice := [c for c in names if names.count(c) > 1]:
        raise TableError(f"{path} line 1: column {twice[0]!r} stands twice; rename one")


def _sample(row: dict[str, str], base: Path, where: str, line: int, check_files: bool) -> Sample:
    cells = {name.strip(): value.strip() for name, value in row.items() if value and value.strip()}
    name = cells.get("path")
    if name is None:
        raise TableError(f"{where}: empty path; fill it in or remove the row")
    path = base / name
    if check_files and not path.exists():
        raise TableError(f"{where}: {name!r} not found under {base}; correct the path or pass root=")
    numbers = {c: _number(cells[c], c, where) for c in RANGE_COLUMNS if c in cells}
    frames, seconds = (
        ("start_frame" in numbers or "end_frame" in numbers),
        ("start_s" in numbers or "end_s" in numbers),
    )
    if frames and seconds:
        raise TableError(f"{where}: range in frames and in seconds; keep start_frame/end_frame or start_s/end_s")
    suffix, unit = ("s", "s") if seconds else ("frame", "frame")
    start, end = numbers.get(f"start_{suffix}"), numbers.get(f"end_{suffix}")
    if end is not None and end <= (start or 0.0):
        raise TableError(
            f"{where}: end_{suffix} {end:g} is not after start_{suffix} {start or 0.0:g}; the end is exclusive"
        )
    targets = {c: v for c, v in cells.items() if c not in RESERVED_COLUMNS}
    return Sample(path, name, targets, cells.get("split"), cells.get("group"), start, end, unit, line)


def _number(text: str, column: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    whole = column.endswith("_s") or value == int(value)
    if not 0.0 <= value < float("inf") or not whole:
        kind = "seconds, 0 or more" if column.endswith("_s") else "a frame number, 0 or more"
        raise TableError(f"{where}: {column} is {text!r}; give {kind}")
    return value


def _read_folder(root: Path) -> Table:
    """Class folders: root/[train|val|test/]class/**/video, or image folders and stills in their place."""
    tops = sorted(p for p in root.iterdir() if p.is_dir())
    split_tops = [p for p in tops if p.name.lower() in SPLIT_FOLDERS]
    places: Iterable[tuple[str | None, Path]]
    if split_tops and len(split_tops) == len(tops):
        places = [(top.name.lower(), c) for top in tops for c in sorted(top.iterdir()) if c.is_dir()]
    else:
        places = [(None, top) for top in tops]
    samples: list[Sample] = []
    for split, folder in places:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES:
                targets = {"label": folder.name}
                samples.append(Sample(path, path.relative_to(root).as_posix(), targets, split, line=len(samples) + 1))
    if not samples:
        raise TableError(f"{root}: no videos in class folders; expected {root.name}/CLASS/video.mp4 or a CSV table")
    return Table(tuple(samples), str(root))
