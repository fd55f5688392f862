"""Rows of a table, as text, out of a CSV file, a Parquet file or class folders.

Each reader yields (line, cells): the line (the row number in Parquet, 0 in folders) and the filled cells of a row.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# fmt: off
VIDEO_SUFFIXES = frozenset([
    ".avi", ".mp4", ".mkv", ".mov", ".webm", ".mpg", ".mpeg", ".m4v", ".wmv", ".flv", ".3gp", ".ts", ".ogv", ".mts",
    ".m2ts", ".mjpeg", ".y4m", ".gif",
])
# fmt: on
IMAGE_SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"])
RANGE_COLUMNS = ("start_frame", "end_frame", "start_s", "end_s")
RESERVED_COLUMNS = ("path", "split", "group", *RANGE_COLUMNS)
SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}

Row = tuple[int, dict[str, str]]

_SYNONYMS = {
    "path": "file filename file_name filepath file_path video video_path video_name videos clip clip_path name",
    "label": "class class_name classname action category labels target y",
    "split": "subset partition set",
    "group": "source subject person",
}
_AMBIGUOUS = {"start": "start", "end": "end", "start_time": "start", "end_time": "end",
              "time_start": "start", "time_end": "end"}  # fmt: skip


class TableError(ValueError):
    """The table is wrong; the message names file, line and remedy."""


def suggest_rename(columns: Sequence[str], wanted: str) -> str | None:
    """The column that probably was meant as `wanted`: another case, or a usual other name.

    Example:
        >>> suggest_rename(["id", "video_path"], "path")
        'video_path'
    """
    names = [wanted, *_SYNONYMS.get(wanted, "").split()]
    by_plain = {c.strip().lower().replace(" ", "_"): c for c in reversed(columns)}
    return next((by_plain[n] for n in names if n in by_plain and by_plain[n] != wanted), None)


def csv_rows(path: Path) -> Iterator[Row]:
    """Rows of a CSV file: UTF-8 (with or without BOM), any line ends, a header; blank rows are passed over.

    Raises:
        TableError: In one line: file, line, what is wrong, what to do.
    """
    line = 1
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header: list[str] = []
            for cells in reader:
                filled = [c.strip() for c in cells]
                if header and any(filled):
                    yield line, _cells(header, filled, f"{path} line {line}")
                elif any(filled):
                    header = filled
                    _check_header(f"{path} line {line}", header)
                line = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise TableError(f"{path}: not UTF-8 text (byte {error.start}); save the table as UTF-8 CSV") from None
    except csv.Error as error:
        raise TableError(f"{path} line {line}: {error}; check the quotes of this row") from None
    if not header:
        raise TableError(f"{path}: the table is empty; its first line names the columns, such as path,label")


def _cells(header: list[str], cells: list[str], where: str) -> dict[str, str]:
    if len(cells) != len(header):
        raise TableError(
            f"{where}: {len(header)} columns expected, {len(cells)} found; check for a missing comma, or quote a cell "
            "that holds one"
        )
    return {name: value for name, value in zip(header, cells, strict=True) if name and value}


def parquet_rows(path: Path) -> Iterator[Row]:
    """Rows of a Parquet file; whole floats lose their `.0`, nulls and NaN are empty.

    Raises:
        TableError: As for CSV.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise TableError(f"{path}: Parquet needs pyarrow; pip install 'stillmotion[train]', or use CSV") from None
    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise TableError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from None
    names = ["" if name.startswith("__index_level_") else name.strip() for name in table.column_names]
    _check_header(str(path), names)
    for number, values in enumerate(zip(*(column.to_pylist() for column in table.columns), strict=True), start=1):
        cells = [_text(value, f"{path} row {number}") for value in values]
        yield number, {name: value for name, value in zip(names, cells, strict=True) if name and value}


def _text(value: Any, where: str) -> str:
    if value is None or value != value:
        return ""
    if isinstance(value, bytes):
        return value.decode(errors="replace").strip()
    if isinstance(value, list | dict):
        raise TableError(f"{where}: a cell holds a {type(value).__name__}; write plain text or numbers")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _check_header(where: str, names: Sequence[str]) -> None:
    have = ", ".join(n for n in names if n) or "none"
    if "path" not in names:
        if len(names) == 1 and (mark := next((m for m in (";", "\t", "|") if m in names[0]), None)):
            raise TableError(f"{where}: columns are separated by {mark!r}; save the table with commas")
        other = suggest_rename(names, "path")
        remedy = f"rename `{other}` to `path`" if other else "name the column of file names `path` in the first line"
        raise TableError(f"{where}: no column `path` (columns: {have}); {remedy}")
    if twice := [n for n in names if n and names.count(n) > 1]:
        raise TableError(f"{where}: column `{twice[0]}` stands twice; rename one")
    for name in names:
        plain = name.lower().replace(" ", "_")
        if plain != name and plain in RESERVED_COLUMNS and plain not in names:
            raise TableError(f"{where}: column `{name}` would be ignored; rename it to `{plain}`")
        if word := _AMBIGUOUS.get(plain):
            raise TableError(f"{where}: frames or seconds? rename `{name}` to `{word}_frame` or `{word}_s`")


def folder_rows(root: Path) -> Iterator[Row]:
    """Rows of class folders: root/[train|val|test/]CLASS/**/video; also stills and folders of numbered images.

    A folder that holds numbered images and nothing else, anywhere below its class folder, is one sample. Images that
    lie in the class folder itself are samples each.

    Raises:
        TableError: Nothing there, a class folder without videos, or videos beside the class folders.
    """
    tops = [p for p in _visible(root) if p.is_dir()]
    splits = [p for p in tops if p.name.lower() in SPLIT_FOLDERS]
    others = [p for p in tops if p not in splits]
    by_split = bool(splits) and not any(True for p in others for _ in media_files(p))
    if by_split and not any(q.is_dir() for p in splits for q in _visible(p)):
        by_split = False
    if splits and others and not by_split:
        raise TableError(
            f"{root}: {splits[0].name!r} beside {others[0].name!r}: split or class? give it split folders only, class "
            "folders only, or write a CSV table"
        )
    places = [(SPLIT_FOLDERS[p.name.lower()], p) for p in splits] if by_split else [("", root)]
    classes = [(split, c) for split, top in places for c in _visible(top) if c.is_dir()]
    if not classes:
        raise TableError(f"{root}: no class folders; expected {root.name}/CLASS/video.mp4, or a CSV table")
    for folder in {root, *(top for _, top in places)}:
        if loose := next((p for p in _visible(folder) if _is_media(p)), None):
            raise TableError(f"{loose}: lies beside the class folders; move it into one, or write a CSV table")
    for split, folder in classes:
        found = False
        for path in media_files(folder):
            found = True
            cells = {"path": path.relative_to(root).as_posix(), "label": folder.name}
            yield 0, {**cells, "split": split} if split else cells
        if not found:
            raise TableError(f"{folder}: a class folder without videos; add some, or remove the folder")


def media_files(folder: Path) -> Iterator[Path]:
    """Videos, stills and folders of numbered images, at any depth of a folder."""
    for path in _visible(folder):
        if path.is_dir():
            if is_image_folder(path):
                yield path
            else:
                yield from media_files(path)
        elif _is_media(path):
            yield path


def is_image_folder(folder: Path) -> bool:
    """Whether a folder holds numbered images and nothing else: the frames of one video."""
    inside = _visible(folder)
    return bool(inside) and all(p.suffix.lower() in IMAGE_SUFFIXES and re.search(r"\d$", p.stem) for p in inside)


def _is_media(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES and path.is_file()


def _visible(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))
