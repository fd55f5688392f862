"""A folder that grows by appending and survives being killed: data in one file, one line of JSON for each record.

    header.json   what the records are (format, settings); written once
    data.bin      the records' bytes, one after another
    index.jsonl   for each record where it lies, its checksum, and what the owner says about it

A record counts once its line is complete and its bytes are there. What a killed writer left behind that is dropped
on opening, so a second run goes on after the last whole record and ends with the same bytes as an undisturbed one.
"""

import json
import mmap
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from stillmotion.data.remote import RemoteData, RemotePath
from stillmotion.files import write_atomic

FORMAT = 1
HEADER, DATA, INDEX = "header.json", "data.bin", "index.jsonl"

Entry = dict[str, Any]


class StoreError(ValueError):
    """A store cannot be used; the message names the folder, what is wrong and what to do."""


def read_header(folder: Path | RemotePath, kind: str, remedy: str) -> dict[str, Any]:
    """Settings of a store.

    Raises:
        StoreError: There is no such store, or of another kind or format.
        RemoteError: It is on object storage, and not to be read there.
    """
    try:
        header: dict[str, Any] = json.loads((folder / HEADER).read_text(encoding="utf-8"))
        if not isinstance(header, dict):
            raise ValueError
    except (OSError, ValueError, RecursionError):
        raise StoreError(f"{folder}: not a {kind} store (no readable {HEADER}); {remedy}") from None
    if header.get("kind") != kind:
        raise StoreError(f"{folder}: this is a {header.get('kind')} store, not a {kind} store; {remedy}")
    if header.get("format") != FORMAT:
        raise StoreError(f"{folder}: format {header.get('format')} of another version; {remedy}")
    return header


def start_header(folder: Path, header: Mapping[str, Any], remedy: str) -> None:
    """Writes the settings of a store, or compares them with those that are there.

    Raises:
        StoreError: The store there has others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    full = json.loads(json.dumps({"format": FORMAT, **header}))
    if (folder / HEADER).exists():
        found = read_header(folder, str(header["kind"]), remedy)
        if difference := first_difference(found, full):
            raise StoreError(f"{folder}: {difference}; {remedy}")
    else:
        write_atomic(folder / HEADER, json.dumps(full, indent=1) + "\n")


def read_entries(folder: Path | RemotePath) -> tuple[list[Entry], int]:
    """Complete records of a store, in order, and the length of the index that they take."""
    entries: list[Entry] = []
    length = 0
    for line, entry in _lines(folder):
        if entry is None:
            break
        entries.append(entry)
        length += len(line)
    return entries, length


def _lines(folder: Path | RemotePath) -> Iterator[tuple[bytes, Entry | None]]:
    """Lines of the index with their records; None for one that is not whole, or whose bytes are not there."""
    try:
        data = folder / DATA
        size = data.size() if isinstance(data, RemotePath) else data.stat().st_size
        text = (folder / INDEX).read_bytes()
    except FileNotFoundError:
        return
    for line in text.splitlines(keepends=True):
        try:
            entry = json.loads(line) if line.endswith(b"\n") else None
            whole = entry is not None and _is_whole(entry) and entry["at"] + entry["size"] <= size
        except (ValueError, TypeError, KeyError, RecursionError):
            whole = False
        yield line, entry if whole else None


def _is_whole(entry: Entry) -> bool:
    numbers = [entry["at"], entry["size"], entry["crc"]]
    return isinstance(entry["id"], str) and all(isinstance(n, int) and n >= 0 for n in numbers)


def _check_middle(folder: Path, known: int) -> None:
    """A killed writer leaves a bad end; whole lines behind a bad one would be thrown away with their records."""
    if any(entry is not None for _, entry in islice(_lines(folder), known + 1, None)):
        raise StoreError(f"{folder / INDEX} line {known + 1}: damaged, and whole lines follow; restore the file, "
                         "or remove that line, and its record alone is made again")  # fmt: skip


def map_data(folder: Path | RemotePath) -> memoryview | RemoteData:
    """The data file as a read-only memory map; on object storage as ranges that are fetched."""
    path = folder / DATA
    if isinstance(path, RemotePath):
        return RemoteData(path)
    if not path.exists() or not path.stat().st_size:
        return memoryview(b"")
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


class Journal:
    """Writes a store. One writer at a time, from `Journal.open`."""

    def __init__(self, folder: Path, entries: list[Entry], length: int) -> None:
        self.folder, self.entries = folder, entries
        self.position = max((e["at"] + e["size"] for e in entries), default=0)
        self._data, self._index = (folder / DATA).open("ab"), (folder / INDEX).open("ab")
        self._data.truncate(self.position)
        self._index.truncate(length)

    @classmethod
    @contextmanager
    def open(cls, folder: Path, header: Mapping[str, Any], remedy: str) -> Iterator["Journal"]:
        """Starts a store, or goes on with one that has the same header.

        Args:
            folder: Where; made if needed.
            header: `kind` and settings, JSON data.
            remedy: What to do if the store there has another header.

        Raises:
            StoreError: The store there has another header, its index is damaged, or another process writes to it.
        """
        with only_writer(folder):
            start_header(folder, header, remedy)
            entries, length = read_entries(folder)
            if (folder / INDEX).exists() and length < (folder / INDEX).stat().st_size:
                _check_middle(folder, len(entries))
            journal = cls(folder, entries, length)
            try:
                yield journal
            finally:
                journal._data.close()
                journal._index.close()

    def append(self, records: Iterable[tuple[bytes, Entry]]) -> list[Entry]:
        """Adds records: first their bytes, then, when these are on disk, their lines.

        Returns:
            The entries with place, size and checksum.
        """
        entries: list[Entry] = []
        for data, entry in records:
            self._data.write(data)
            entries.append({**entry, "at": self.position, "size": len(data), "crc": zlib.crc32(data)})
            self.position += len(data)
        self._data.flush()
        os.fsync(self._data.fileno())
        self._index.write("".join(json.dumps(e, ensure_ascii=False) + "\n" for e in entries).encode())
        self._index.flush()
        os.fsync(self._index.fileno())
        self.entries += entries
        return entries


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keeps other processes that ask for the same from writing to a folder, which is made if needed.

    Raises:
        StoreError: Another process writes to it.
    """
    import filelock  # only writers need it; it comes with torch

    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise StoreError(f"{folder}: another process is writing to this folder; wait for it, or name another") from None
    try:
        yield
    finally:
        lock.release()


def first_difference(stored: Any, wanted: Any, name: str = "") -> str | None:
    """Where two JSON values differ first, as words; None if they are equal.

    Example:
        >>> first_difference({"view": {"size": [1, 2]}}, {"view": {"size": [1, 3]}})
        'view.size is [1, 2] in the store and [1, 3] here'
    """
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for key in [*stored, *(k for k in wanted if k not in stored)]:
            path = f"{name}.{key}" if name else str(key)
            if difference := first_difference(stored.get(key), wanted.get(key), path):
                return difference
        return None
    return None if stored == wanted else f"{name} is {_short(stored)} in the store and {_short(wanted)} here"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
