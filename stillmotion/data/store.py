"""What is computed once and read often: packed frames of a table, and stored features of a teacher. No torch."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from stat import S_ISREG
from typing import Any, Literal, Self
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from stillmotion.data.faults import one_line
from stillmotion.data.journal import (
    Entry,
    Journal,
    StoreError,
    first_difference,
    map_data,
    read_entries,
    read_header,
)
from stillmotion.data.remote import RemoteData, place_of
from stillmotion.data.source import Extent
from stillmotion.data.table import Sample, Table

Codec = Literal["raw", "jpeg"]
Frames = NDArray[np.uint8]

PACK_AGAIN = "run `stillmotion pack` on this table into a new folder"
EXTRACT_AGAIN = "run `stillmotion extract` with these settings into a new folder"
FRAME = np.dtype([("size", "<u4"), ("crc", "<u4")])
"""A sample's record is one of these for each frame, then the frames; size 0: damaged in the video."""


class FrameStore:
    """Frames that `stillmotion pack` wrote, as a `FrameSource`. Every frame is checked as it is read.

    Args:
        folder: The store, or its address on object storage (`s3://bucket/packed`).

    Attributes:
        header: Its settings.
        rows: What is known of each sample, by `Sample.id`.

    Raises:
        StoreError: There is no frame store of this format.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = place_of(folder)
        self.header = read_header(self.folder, "frames", PACK_AGAIN)
        self.codec: Codec = self.header.get("codec", "raw")
        self.short_side: int | None = self.header.get("short_side")
        self.rows: dict[str, Entry] = {entry["id"]: entry for entry in read_entries(self.folder)[0]}
        if odd := [name for name, row in self.rows.items() if not _is_record(row)]:
            raise StoreError(f"{self.folder}: damaged (what it says of {odd[0]}); {PACK_AGAIN}")

    @cached_property
    def _data(self) -> memoryview | RemoteData:
        return map_data(self.folder)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]  # a worker opens its own memory map

    @property
    def errors(self) -> dict[str, str]:
        """Samples that could not be read when they were packed, with the reason."""
        return {name: row["error"] for name, row in self.rows.items() if "error" in row}

    def check(self, table: Table, *, short_side: int | None = None) -> None:
        """Refuses a table whose samples are not all here, or have changed since.

        Args:
            table: What is to be read.
            short_side: The frame size that is expected; None takes that of the store.

        Raises:
            StoreError: Saying what differs.
        """
        if short_side not in (None, self.short_side):
            raise StoreError(
                f"{self.folder}: frames are packed with short_side {self.short_side}, not {short_side}; "
                f"set short_side to {self.short_side}, or {PACK_AGAIN}"
            )
        if missing := [s for s in table if s.id not in self.rows]:
            raise StoreError(
                f"{self.folder}: {len(missing)} of the {len(table)} samples of {table.source} are not packed, first "
                f"{missing[0].id}; run `stillmotion pack` again to go on, or {PACK_AGAIN}"
            )
        for sample in table:
            size, packed = file_size(sample.path), self.rows[sample.id]["bytes"]
            if None not in (size, packed) and size != packed:
                raise StoreError(
                    f"{self.folder}: {sample.path} has {size} bytes and had {packed} when it was packed; {PACK_AGAIN}"
                )

    def extent(self, sample: Sample) -> Extent:
        """As `FrameSource.extent`.

        Raises:
            StoreError: The sample could not be read when it was packed.
        """
        row = self.rows[sample.id]
        if "error" in row:
            raise StoreError(row["error"])
        return Extent(row["num_frames"], row["fps"], tuple(row["keyframes"]), row["fault"])

    def read(self, sample: Sample, indices: NDArray[np.int64]) -> Frames:
        """As `FrameSource.read`.

        Raises:
            StoreError: The store is damaged, or a frame was when it was packed.
        """
        row = self.rows[sample.id]
        frames = np.empty((len(indices), row["height"], row["width"], 3), np.uint8)
        for target, index, data in zip(frames, indices, self._records(row, indices), strict=True):
            if data is None:
                raise StoreError(f"{self.folder}: frame {index} of {sample.id} is damaged (checksum); {PACK_AGAIN}")
            if not data:
                raise StoreError(f"frame {index} of {sample.id} is damaged in the video; {row['fault']}")
            pixels = np.frombuffer(data, np.uint8)
            target[...] = _from_jpeg(pixels) if self.codec == "jpeg" else pixels.reshape(target.shape)
        return frames

    def _records(self, row: Entry, indices: NDArray[np.int64]) -> Iterator[memoryview | bytes | None]:
        """Stored bytes of frames; None for one that does not match its checksum."""
        body = row["at"] + row["num_frames"] * FRAME.itemsize
        (first,) = _parts(self._data, [(row["at"], body)])
        head = np.frombuffer(first, FRAME)
        ends = (body + np.cumsum(head["size"], dtype=np.int64)).tolist()
        sizes = head["size"].tolist()
        spans = [(ends[index] - sizes[index], ends[index]) for index in indices.tolist()]
        for index, data in zip(indices, _parts(self._data, spans), strict=True):
            yield data if crc32(data) == head["crc"][index] else None


def _parts(data: memoryview | RemoteData, spans: Sequence[tuple[int, int]]) -> Iterable[memoryview | bytes]:
    """Bytes from (first, end) each; from object storage at once."""
    return data.ranges(spans) if isinstance(data, RemoteData) else (data[first:end] for first, end in spans)


def _is_record(row: Entry) -> bool:
    """Whether everything is there that reading needs."""
    if "error" in row:
        return isinstance(row["error"], str)
    numbers = [row.get(name) for name in ("num_frames", "height", "width")]
    return (
        all(isinstance(n, int) and 0 < n < 2**31 for n in numbers)
        and row["num_frames"] * FRAME.itemsize <= row["size"]
        and max(row["height"], row["width"]) < 2**16
        and isinstance(row.get("keyframes"), list)
        and {"fps", "fault", "bytes"} <= row.keys()
    )


def _from_jpeg(data: Frames) -> Frames:
    import cv2  # the same pixels as Pillow's in a third of the time; not part of the runtime

    image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert image is not None
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def file_size(path: Path) -> int | None:
    """Bytes of a file; None for a folder, or where nothing is."""
    try:
        state = path.stat()
    except OSError:  # gone, or not ours to look at
        return None
    return state.st_size if S_ISREG(state.st_mode) else None


class FeatureStore:
    """Outputs of a teacher by sample and draw: `embedding` (N, D), `logits` (N, K), float32, in one memory map.

    Rows are checked as they are read. `FeatureStore.create` adds some; a process killed meanwhile loses at most the
    batch that it was adding.

    Args:
        folder: The store, or its address on object storage.
        key: What the features must come from (weights, views, table, ...); None accepts whatever is there.

    Attributes:
        key: What the features come from.
        fields: Shape of each field.
        errors: Samples that could not be read, with the reason.

    Raises:
        StoreError: There is no feature store of this format, or it has another key; the message says which part.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp() + "/features"
        >>> with FeatureStore.create(folder, {"weights": "3f"}, {"embedding": (1, 2)}) as store:
        ...     store.add([("a.mp4", 0, {"embedding": np.ones((1, 2))})])
        >>> FeatureStore(folder, {"weights": "3f"}).get("a.mp4", 0, "embedding")
        array([[1., 1.]], dtype=float32)
    """

    def __init__(self, folder: str | Path, key: Mapping[str, Any] | None = None) -> None:
        self.folder = place_of(folder)
        header = read_header(self.folder, "features", EXTRACT_AGAIN)
        self.key: dict[str, Any] = header.get("key", {})
        if key is not None and (difference := first_difference(self.key, _as_json(key))):
            raise StoreError(f"{self.folder}: these features do not match: {difference}; {EXTRACT_AGAIN}")
        self.errors: dict[str, str] = {}
        self._rows: dict[tuple[str, int], tuple[int, int]] = {}
        self._journal: Journal | None = None
        try:
            self.fields = {name: tuple(map(int, shape)) for name, shape in header["fields"].items()}
            self._take(read_entries(self.folder)[0])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreError(f"{self.folder}: damaged ({one_line(error)}); {EXTRACT_AGAIN}") from None

    @classmethod
    def open(cls, folder: str | Path, key: Mapping[str, Any] | None = None) -> Self:
        """For reading; as the constructor."""
        return cls(folder, key)

    @classmethod
    @contextmanager
    def create(cls, folder: str | Path, key: Mapping[str, Any], fields: Mapping[str, Sequence[int]]) -> Iterator[Self]:
        """Starts a store, or goes on with one; one writer at a time.

        Args:
            folder: Where.
            key: What the features come from, JSON data.
            fields: Shape of each field of a row.

        Raises:
            StoreError: The store there has another key or other fields, or another process writes to it.
        """
        header = {"kind": "features", "key": dict(key), "fields": {n: list(s) for n, s in fields.items()}}
        with Journal.open(Path(folder), header, EXTRACT_AGAIN) as journal:
            store = cls(folder)
            store._journal = journal
            try:
                yield store
            finally:
                store._journal = None

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]  # a worker opens its own memory map

    def _take(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            if "error" in entry:
                self.errors[entry["id"]] = entry["error"]
            else:
                self._rows[entry["id"], entry["draw"]] = entry["at"], entry["crc"]
        self.__dict__.pop("_data", None)

    @cached_property
    def _data(self) -> memoryview | RemoteData:
        return map_data(self.folder)

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        """First and last float of each field in a row."""
        ends = np.cumsum([0, *(int(np.prod(shape)) for shape in self.fields.values())]).tolist()
        return {name: (ends[k], ends[k + 1]) for k, name in enumerate(self.fields)}

    def __len__(self) -> int:
        return len(self._rows)

    def has(self, sample: str, draw: int) -> bool:
        """Whether a row is there, or the sample is known to be unreadable."""
        return (sample, draw) in self._rows or sample in self.errors

    def missing(self, samples: Iterable[str], draws: Iterable[int]) -> list[tuple[str, int]]:
        """Sample and draw of the rows that are still to be added."""
        draws = list(draws)
        return [(s, d) for s in samples for d in draws if not self.has(s, d)]

    def get(self, sample: str, draw: int, field: str = "embedding") -> NDArray[np.float32]:
        """One field of a row.

        Args:
            sample: `Sample.id`.
            draw: Number of the draw; -1 is the one without anything random.
            field: Its name.

        Raises:
            StoreError: The sample was unreadable, the row is missing or damaged, or there is no such field.
        """
        if sample in self.errors:
            raise StoreError(self.errors[sample])
        if field not in self.fields:
            raise StoreError(f"{self.folder}: no stored {field!r}, only {', '.join(self.fields)}; {EXTRACT_AGAIN}")
        if (sample, draw) not in self._rows:
            raise StoreError(f"{self.folder}: no features of {sample} draw {draw}; run `stillmotion extract` again")
        at, crc = self._rows[sample, draw]
        row = self._data[at : at + 4 * max(end for _, end in self._places.values())]
        if crc32(row) != crc:
            raise StoreError(f"{self.folder}: features of {sample} are damaged (checksum); {EXTRACT_AGAIN}")
        first, last = self._places[field]
        if len(row) < 4 * last:
            raise StoreError(f"{self.folder}: features of {sample} are damaged (size); {EXTRACT_AGAIN}")
        return np.frombuffer(row[4 * first : 4 * last], "<f4").reshape(self.fields[field]).copy()

    def add(self, rows: Iterable[tuple[str, int, Mapping[str, NDArray[Any]]]]) -> None:
        """Adds a batch of rows: all of it, or if the process is killed meanwhile its first rows.

        Args:
            rows: Sample, draw and the fields, each of its shape.
        """
        records = []
        for sample, draw, arrays in rows:
            assert arrays.keys() == self.fields.keys(), f"fields {', '.join(arrays)} given"
            parts = [np.ascontiguousarray(arrays[name], "<f4") for name in self.fields]
            for part, (name, shape) in zip(parts, self.fields.items(), strict=True):
                assert part.shape == shape, f"{name} {part.shape}, {shape} expected"
            records.append((b"".join(p.tobytes() for p in parts), {"id": sample, "draw": draw}))
        self._append(records)

    def add_errors(self, errors: Iterable[tuple[str, str]]) -> None:
        """Remembers samples that cannot be read, with the reason, so that nobody tries them again."""
        self._append([(b"", {"id": sample, "error": reason}) for sample, reason in errors])

    def _append(self, records: list[tuple[bytes, Entry]]) -> None:
        assert self._journal is not None, "open the store with FeatureStore.create"
        self._take(self._journal.append(records))


def _as_json(value: Mapping[str, Any]) -> Any:
    """As it reads back from JSON (tuples are lists there)."""
    return json.loads(json.dumps(dict(value)))
