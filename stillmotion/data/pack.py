"""`stillmotion pack`: decode every frame of a table once, small, into a frame store."""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stillmotion.data.cluster import map_apart
from stillmotion.data.faults import TIMEOUT_SECONDS, one_line
from stillmotion.data.journal import Entry, Journal, StoreError
from stillmotion.data.pool import Failure
from stillmotion.data.remote import local
from stillmotion.data.source import Extent, Videos, damaged_frames
from stillmotion.data.store import FRAME, PACK_AGAIN, Codec, file_size
from stillmotion.data.table import Sample, Table, read_table
from stillmotion.progress import progress_bar

CHUNK = 256
"""Frames decoded at a time: a long video need not fit into memory before it is small."""


@dataclass(frozen=True)
class PackReport:
    """What a frame store holds.

    Args:
        samples: Number of samples, those that could not be read among them.
        frames: Number of frames.
        size: Bytes.
        errors: Samples that could not be read, with the reason.
    """

    samples: int
    frames: int
    size: int
    errors: dict[str, str]

    def __str__(self) -> str:
        text = f"{self.frames} frames of {self.samples} samples, {self.size / 2**20:.0f} MiB"
        return text + "".join(f"\n{name}: {reason}" for name, reason in self.errors.items())


def pack(
    table: str | Path | Table,
    output: str | Path,
    *,
    root: str | Path | None = None,
    short_side: int | None = 128,
    codec: Codec = "jpeg",
    quality: int = 95,
    workers: int = 2,
    cluster: str | None = None,
    timeout: float = TIMEOUT_SECONDS,
    progress: bool = True,
) -> PackReport:
    """Writes a frame store, or goes on with one that was interrupted; the result is the same.

    Args:
        table: The samples, of all splits.
        output: Folder of the store.
        root: Folder that the table's relative paths start from; None: that of the table.
        short_side: Reduce frames to this shorter side; None keeps their size.
        codec: `raw` keeps every bit; `jpeg` takes a fifth of the space or less.
        quality: Of JPEG, 1 to 95.
        workers: Processes that decode.
        cluster: Ray cluster that decodes in their place, as in `stillmotion.data.cluster`.
        timeout: Seconds after which a sample is given up; needs a worker.
        progress: Show a progress bar.

    Raises:
        ValueError: The table is wrong, or the store there has other settings or other samples.
    """
    if not 1 <= quality <= 95:
        raise ValueError(f"quality={quality}: give 1 to 95, or codec raw")
    table = table if isinstance(table, Table) else read_table(table, root=root)
    header = {"kind": "frames", "short_side": short_side, "codec": codec}
    header |= {"quality": quality} if codec == "jpeg" else {}
    with Journal.open(local(output), header, PACK_AGAIN) as journal:
        done = len(journal.entries)
        if [e["id"] for e in journal.entries] != [s.id for s in table.samples[:done]]:
            raise StoreError(f"{output}: the store holds other samples than {table.source}; {PACK_AGAIN}")
        packer, todo = Packer(short_side, codec, quality), table.samples[done:]
        with progress_bar(shown=progress) as bar:
            task = bar.add_task("packing", total=len(table), completed=done)
            for record in _records(packer, todo, cluster, workers, timeout):
                journal.append([record])
                bar.advance(task)
        entries = journal.entries
    errors = {e["id"]: e["error"] for e in entries if "error" in e}
    frames = sum(e.get("num_frames", 0) for e in entries)
    return PackReport(len(entries), frames, sum(e["size"] for e in entries), errors)


Record = tuple[bytes, Entry]


class Packer:
    """Makes the records of samples. Args: as of `pack`."""

    def __init__(self, short_side: int | None, codec: Codec, quality: int) -> None:
        self.videos, self.codec, self.quality = Videos(short_side), codec, quality

    def __call__(self, sample: Sample) -> Record:
        """The record of a sample."""
        known: Entry = {"id": sample.id, "bytes": file_size(sample.path)}
        try:
            extent = self.videos.extent(sample)
            try:
                return self._record(sample, extent, known, frozenset())
            except ValueError:
                # Decoding has shown what is damaged, and where the readable part ends.
                extent = self.videos.extent(sample)
                return self._record(sample, extent, known, damaged_frames(self.videos, sample, extent))
        except (ValueError, OSError, MemoryError) as error:
            return unread(sample, one_line(error))

    def _record(self, sample: Sample, extent: Extent, known: Entry, damaged: frozenset[int]) -> Record:
        size: list[int] = []

        def frames() -> Iterator[NDArray[np.uint8] | None]:
            for first in range(0, extent.num_frames, CHUNK):
                numbers = range(first, min(first + CHUNK, extent.num_frames))
                whole = [number for number in numbers if number not in damaged]
                chunk = self.videos.read(sample, np.array(whole)) if whole else np.empty((0, 0, 0, 3), np.uint8)
                size[:] = chunk.shape[1:3] if whole else size
                read = iter(chunk)
                yield from (None if number in damaged else next(read) for number in numbers)

        data = _encode(frames(), self.codec, self.quality)
        if not size:
            raise ValueError(f"{sample.path}: every frame is damaged; {extent.fault}")
        entry = {"num_frames": extent.num_frames, "fps": extent.fps, "keyframes": list(extent.keyframes)}
        return data, {**known, **entry, "fault": extent.fault, "height": size[0], "width": size[1]}


class _Records:
    """Records as a data set that loader processes can share."""

    def __init__(self, packer: Packer, samples: tuple[Sample, ...]) -> None:
        self.packer, self.samples = packer, samples

    def __len__(self) -> int:
        return len(self.samples)

    def unread(self, row: int, reason: str) -> Record:
        """As `unread` of the sample."""
        return unread(self.samples[row], reason)

    def __getitem__(self, row: int) -> Record:
        return self.packer(self.samples[row])


def unread(sample: Sample, reason: str) -> Record:
    """The record of a sample that could not be read."""
    return b"", {"id": sample.id, "bytes": file_size(sample.path), "error": reason}


def _encode(frames: Iterable[NDArray[np.uint8] | None], codec: Codec, quality: int) -> bytes:
    """The record of a sample: size and checksum of each frame, then the frames.

    Args:
        frames: Each (H, W, 3); None for one that is damaged in the video.
        codec: `raw` keeps every bit; `jpeg` takes a fifth of that or less.
        quality: Of JPEG, up to 95.
    """
    parts = []
    for frame in frames:
        if frame is None:
            parts.append(b"")
        elif codec == "jpeg":
            file = io.BytesIO()
            # Reduced frames have used up the video's coarser chroma: subsampling once more would show.
            Image.fromarray(frame).save(file, "JPEG", quality=quality, subsampling=0)
            parts.append(file.getvalue())
        else:
            parts.append(frame.tobytes())
    head = np.array([(len(p), crc32(p)) for p in parts], FRAME)
    return b"".join([head.tobytes(), *parts])


def _records(
    packer: Packer, samples: tuple[Sample, ...], cluster: str | None, workers: int, timeout: float
) -> Iterator[Record]:
    """In the order of the samples."""
    if cluster is not None:
        for position, answer in map_apart(cluster, packer, samples, timeout=timeout):
            yield unread(samples[position], answer.reason) if isinstance(answer, Failure) else answer
        return
    from torch.utils.data import DataLoader

    from stillmotion.data.watched import Watched

    # A loader's processes keep the order, run only a little ahead, and end when this process is killed.
    records = Watched(_Records(packer, samples), timeout)
    yield from DataLoader(records, batch_size=None, num_workers=workers, collate_fn=_unchanged)


def _unchanged(record: Any) -> Any:
    return record
