"""How fields of flow lie on disk: one compact file a sample, or the folders of pictures of the papers' tools.

    video        <name>.zip: 000001.jpg, ... (u above v, grey, scaled by the field's own largest motion) and flow.json
    mars         <video>/TVL1jpg_x_00001.jpg, TVL1jpg_y_00001.jpg (craston/MARS, utils1/extract_frames_flows.py)
    two-stream   u/<video>/frame000001.jpg, v/<video>/frame000001.jpg (feichtenhofer/gpu_flow, compute_flow.cpp)

Field i lies between frame i and the one `step` later; pictures count from 1. What is known of a sample (its entry)
stands in flow.json, and in `headers/` beside the folders of pictures. Everything is written under `.parts/` and moved
when it is whole.
"""

import io
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any
from zlib import crc32

import cv2
import numpy as np
from numpy.typing import NDArray

from stillmotion.data.flow import Vectors, from_bytes, to_bytes
from stillmotion.data.journal import Entry, StoreError
from stillmotion.data.remote import is_remote
from stillmotion.data.table import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Sample
from stillmotion.files import write_atomic

Fields = Iterable[tuple[int, Vectors]]
HEADERS, PARTS, ENTRY = "headers", ".parts", "flow.json"
SIDES = {"mars": (("", "TVL1jpg_x_", 5), ("", "TVL1jpg_y_", 5)), "two-stream": (("u", "frame", 6), ("v", "frame", 6))}
"""Folder, name and digits of the pictures of u and of v."""
KINDS = {"id": str, "num_frames": int, "keyframes": list, "damaged": list}
"""Of what an entry says."""
MOST_BYTES = 2**28
"""Of a picture, or of what is known of a sample, unpacked."""
AGAIN = "remove it and run `stillmotion flow` again"


def path_of(sample: Sample, *, suffix: bool) -> PurePosixPath:
    """Where a sample lies below a store's folder: its name in the table, and its range.

    Example:
        >>> path_of(Sample(Path("x"), "../a/clip.mp4", start=2, end=10), suffix=False)
        PurePosixPath('a/clip[2-10]')
    """
    path = PurePosixPath(sample.name.replace("\\", "/"))
    parts = [part for part in path.parts if part.strip("/.")]
    if not suffix and path.suffix.lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES:
        parts[-1] = path.stem
    parts[-1] += sample.id.removeprefix(sample.name).replace(":", "-")
    return PurePosixPath(*parts)


def _encoded(picture: NDArray[np.uint8], quality: int) -> bytes:
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def _decoded(data: bytes, path: Path) -> NDArray[np.uint8]:
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE) if data else None
    if picture is None:
        raise StoreError(f"{path}: not a picture; {AGAIN}")
    return np.asarray(picture, np.uint8)


def _entry(data: bytes, path: Path) -> Entry:
    """What is known of a sample.

    Raises:
        StoreError: It is not known.
    """
    try:
        entry: Entry = json.loads(data)
        if all(isinstance(entry[name], kind) for name, kind in KINDS.items()):
            return {"fps": None, "fault": None, "bytes": None, "size": [], **entry}
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise StoreError(f"{path}: damaged (what it says of its sample); {AGAIN}")


def _part(folder: Path, name: str) -> Path:
    path = folder / PARTS / f"{os.getpid()}-{crc32(name.encode()):08x}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


class OneFile:
    """Layout `video`: a zip file of JPEG pictures, whose checksums are the zip's own.

    Args:
        folder: Of the store.
        bound: Pixels beyond which motion is cut off; None cuts nothing.
        quality: Of JPEG.
    """

    def __init__(self, folder: Path, bound: float | None, quality: int) -> None:
        self.folder, self.bound, self.quality = folder, bound, quality

    def place(self, sample: Sample) -> Path:
        """File that says that a sample is there, whole."""
        return self.folder / f"{path_of(sample, suffix=True)}.zip"

    def write(self, sample: Sample, entry: Entry, fields: Fields) -> Entry:
        """Writes a sample; `size` and what reading needs join its entry."""
        place, part = self.place(sample), _part(self.folder, sample.id)
        entry = {**entry, "scales": {}}
        try:
            with part.open("wb") as file:
                with zipfile.ZipFile(file, "w") as pack:
                    for number, vectors in fields:
                        most = min(float(np.abs(vectors).max()), self.bound or np.inf)
                        scale = float(f"{most:.6g}") or 1.0
                        picture = to_bytes(np.concatenate([vectors[..., 0], vectors[..., 1]]), scale)
                        # ZipInfo without a time: the same flow gives the same bytes.
                        pack.writestr(zipfile.ZipInfo(f"{number + 1:06d}.jpg"), _encoded(picture, self.quality))
                        entry["scales"][str(number)] = scale
                        entry["size"] = list(vectors.shape[:2])
                    pack.writestr(zipfile.ZipInfo(ENTRY), json.dumps(entry))
                file.flush()
                os.fsync(file.fileno())
            place.parent.mkdir(parents=True, exist_ok=True)
            part.replace(place)
        finally:
            part.unlink(missing_ok=True)
        return entry

    def open(self, sample: Sample) -> "OpenFile":
        """A sample that is there.

        Raises:
            StoreError: Its file is damaged.
        """
        return OpenFile(self.place(sample))


class OpenFile:
    """A zip file of fields, and its entry."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._pack = zipfile.ZipFile(io.BytesIO(path.read_bytes()) if is_remote(path) else path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise StoreError(f"{path}: damaged ({error}); {AGAIN}") from None
        self.entry: Entry = _entry(self._bytes(ENTRY), path)

    def _bytes(self, name: str) -> bytes:
        try:
            if self._pack.getinfo(name).file_size > MOST_BYTES:
                raise zipfile.BadZipFile(f"{name} is too large")
            return self._pack.read(name)
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, KeyError, ValueError, RuntimeError) as error:
            raise StoreError(f"{self.path}: damaged ({str(error).strip(chr(34))}); {AGAIN}") from None

    def read(self, number: int) -> Vectors:
        """A field (H, W, 2).

        Raises:
            StoreError: It is damaged.
        """
        picture = _decoded(self._bytes(f"{number + 1:06d}.jpg"), self.path)
        scale = self.entry.get("scales", {}).get(str(number))
        if not isinstance(scale, (int, float)) or len(picture) % 2:
            raise StoreError(f"{self.path}: damaged (field {number}); {AGAIN}")
        u, v = np.split(from_bytes(picture, scale), 2)
        return np.stack([u, v], -1)


class Pictures:
    """Layouts `mars` and `two-stream`: two JPEG pictures a field, that the papers' tools read and write.

    Args:
        folder: Of the store.
        layout: Which of the two.
        bound: Pixels that byte 255 means, and 0 to the other side.
        quality: Of JPEG.
    """

    def __init__(self, folder: Path, layout: str, bound: float, quality: int) -> None:
        self.folder, self.layout, self.bound, self.quality = folder, layout, bound, quality

    def place(self, sample: Sample) -> Path:
        """As `OneFile.place`."""
        return self.folder / HEADERS / f"{self._name(sample)}.json"

    def files(self, sample: Sample, number: int) -> list[Path]:
        """Pictures of u and v of a field."""
        return [
            folder / f"{name}{number + 1:0{digits}d}.jpg"
            for folder, (_, name, digits) in zip(self._folders(sample), SIDES[self.layout], strict=True)
        ]

    def count(self, sample: Sample) -> list[int]:
        """Pictures of u and of v that are there."""
        return [
            len(list(folder.glob(f"{name}*.jpg")))
            for folder, (_, name, _) in zip(self._folders(sample), SIDES[self.layout], strict=True)
        ]

    def _name(self, sample: Sample) -> PurePosixPath:
        """MARS keeps the folders that the videos lie in, the other release does not."""
        path = path_of(sample, suffix=False)
        return path if self.layout == "mars" else PurePosixPath(path.name)

    def _folders(self, sample: Sample) -> list[Path]:
        return [self.folder / side / self._name(sample) for side, _, _ in SIDES[self.layout]]

    def adopt(self, sample: Sample, entry: Entry, count: int) -> Entry:
        """Writes the entry of pictures that another tool wrote."""
        crcs = {}
        for number in range(count):
            u, v = self.files(sample, number)
            try:
                crcs[str(number)] = crc32(v.read_bytes(), crc32(u.read_bytes()))
            except OSError:
                raise StoreError(f"{u}: this picture or its v is missing; pictures count from 1 to {count}") from None
        if count:
            first = self.files(sample, 0)[0]
            entry = {**entry, "size": list(_decoded(first.read_bytes(), first).shape)}
        return self._note(sample, {**entry, "crcs": crcs})

    def _note(self, sample: Sample, entry: Entry) -> Entry:
        place = self.place(sample)
        place.parent.mkdir(parents=True, exist_ok=True)
        part = _part(self.folder, f"header of {sample.id}")  # drafts of killed calls lie where they are cleaned away
        write_atomic(part, json.dumps(entry))
        part.replace(place)
        return entry

    def write(self, sample: Sample, entry: Entry, fields: Fields) -> Entry:
        """As `OneFile.write`."""
        part, crcs = _part(self.folder, sample.id), {}
        shutil.rmtree(part, ignore_errors=True)
        for number, vectors in fields:
            data = [_encoded(self._coded(vectors[..., k]), self.quality) for k in range(2)]
            for (side, _, _), file, content in zip(SIDES[self.layout], self.files(sample, number), data, strict=True):
                (part / side).mkdir(parents=True, exist_ok=True)
                (part / side / file.name).write_bytes(content)
            crcs[str(number)] = crc32(data[1], crc32(data[0]))
            entry = {**entry, "size": list(vectors.shape[:2])}
        # u last, and each at once: where it is found, all is there.
        for (side, _, _), folder in reversed(list(zip(SIDES[self.layout], self._folders(sample), strict=True))):
            _move(part / side, folder)
        shutil.rmtree(part, ignore_errors=True)
        return self._note(sample, {**entry, "crcs": crcs})

    def _coded(self, motion: NDArray[np.float32]) -> NDArray[np.uint8]:
        level = (np.clip(motion, -self.bound, self.bound) + self.bound) * np.float32(255.0 / (2.0 * self.bound))
        return np.asarray(level if self.layout == "mars" else np.rint(level), np.uint8)

    def open(self, sample: Sample) -> "OpenPictures":
        """As `OneFile.open`."""
        return OpenPictures(self, sample)


class OpenPictures:
    """The pictures of a sample, and its entry."""

    def __init__(self, pictures: Pictures, sample: Sample) -> None:
        self._pictures, self._sample, place = pictures, sample, pictures.place(sample)
        try:
            data = place.read_bytes()
        except OSError as error:
            raise StoreError(f"{place}: damaged ({error}); {AGAIN}") from None
        self.entry: Entry = _entry(data, place)
        # MARS cuts fractions off, so that a byte means the middle of its range; the other tool rounds.
        self._offset = 0.5 if pictures.layout == "mars" else 0.0

    def read(self, number: int) -> Vectors:
        """As `OpenFile.read`."""
        paths = self._pictures.files(self._sample, number)
        try:
            u, v = (path.read_bytes() for path in paths)
        except OSError as error:
            raise StoreError(f"{paths[0]}: {error.strerror}; {AGAIN}") from None
        if crc32(v, crc32(u)) != self.entry.get("crcs", {}).get(str(number)):
            raise StoreError(f"{paths[0]}: damaged, or its v (checksum); {AGAIN}, with its header")
        sides = [_decoded(data, path) for data, path in zip((u, v), paths, strict=True)]
        scale = np.float32(2.0 * self._pictures.bound / 255.0)
        return (np.stack(sides, -1).astype(np.float32) + self._offset) * scale - np.float32(self._pictures.bound)


def _move(source: Path, target: Path) -> None:
    """Moves a folder, at once where there is none yet."""
    if not source.is_dir():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        source.replace(target)
    except OSError:
        for file in sorted(source.iterdir()):
            file.replace(target / file.name)


def layout_of(folder: Path, header: Any) -> OneFile | Pictures:
    """The files of a store with these settings (`FlowSettings`)."""
    if header.layout == "video":
        return OneFile(folder, header.bound, header.quality)
    return Pictures(folder, header.layout, header.bound, header.quality)
