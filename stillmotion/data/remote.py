"""Stores on object storage (S3, GCS, HDFS, ... by fsspec), read by ranges. Local folders do not come here. No torch."""

import io
import os
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from stillmotion.data.faults import one_line

PAUSES = (0.5, 2.0)
"""Seconds before each further try of a request that failed."""
BLOCK, BLOCKS = 2**18, 256
"""Bytes of a block that is read at once, and how many of them a process keeps."""
GAP = 2**16
"""Bytes that are fetched for nothing rather than making another request."""
INSTALL = "pip install 'stillmotion[remote]'"

T = TypeVar("T")


class RemoteError(Exception):
    """A place on object storage cannot be read.

    Not a `ValueError`: those of reading a sample say that it is to be left out, and this is not its fault.
    """

    def __init__(self, text: str) -> None:
        # A loader's process sends its traceback along; what the user is told is its last line.
        super().__init__(text.strip().rpartition("\n")[2].removeprefix(f"{__name__}.RemoteError: "))


def is_remote(folder: str | Path) -> bool:
    """Whether a folder is an address of fsspec's.

    Example:
        >>> is_remote("s3://bucket/packed"), is_remote("data/packed")
        (True, False)
    """
    return "://" in str(folder)


def place_of(folder: "str | Path | RemotePath") -> Any:
    """A folder to read from: a `Path`, or of an address a `RemotePath`, which has those methods that stores need."""
    if isinstance(folder, RemotePath):
        return folder
    return RemotePath(str(folder)) if is_remote(folder) else Path(folder)


def local(folder: str | Path) -> Path:
    """A folder to write to.

    Raises:
        ValueError: It is an address.
    """
    if is_remote(folder):
        raise ValueError(f"{folder}: stores are written to a local folder; name one, and copy it there when it is done")
    return Path(folder)


class RemotePath:
    """A file or folder by its address, read only.

    Args:
        url: `s3://bucket/folder`, `gs://...`, `hdfs://...`, or whatever else fsspec knows.

    Raises:
        RemoteError: From every method: fsspec or what it needs is missing, nothing is there, or it cannot be reached.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._opened: tuple[int, Any] | None = None

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: object) -> Self:
        return type(self)(f"{self.url}/{name}" if str(name) else self.url)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and other.url == self.url

    def __hash__(self) -> int:
        return hash(self.url)

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "_opened": None}

    @property
    def _system(self) -> Any:
        # By process: fsspec's connections do not survive a fork.
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), _system(self.url))
        return self._opened[1]

    def exists(self) -> bool:
        """Whether there is a file; a folder that holds some counts, too."""
        return bool(self._try(lambda: self._system.exists(self.url)))

    def size(self) -> int:
        """Bytes of the file."""
        return int(self._try(lambda: self._system.info(self.url))["size"])

    def read_bytes(self) -> bytes:
        """The whole file."""
        return bytes(self._try(lambda: self._system.cat_file(self.url)))

    def read_text(self, encoding: str = "utf-8") -> str:
        """The whole file, as text."""
        return self.read_bytes().decode(encoding)

    def read_ranges(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """Bytes from (first, end) each, fetched side by side."""
        if not spans:
            return []
        firsts, ends = zip(*spans, strict=True)
        paths = [self.url] * len(spans)
        return [
            bytes(part) for part in self._try(lambda: self._system.cat_ranges(paths, firsts, ends, on_error="raise"))
        ]

    def _try(self, request: Callable[[], T]) -> T:
        for pause in (*PAUSES, None):
            try:
                return request()
            except RemoteError:
                raise
            except FileNotFoundError:
                raise RemoteError(f"{self.url}: there is no such bucket or file; check the address") from None
            except PermissionError as error:
                raise RemoteError(f"{self.url}: not allowed ({one_line(error)}); check the credentials") from None
            except Exception as error:  # every storage has its own
                if "credential" in one_line(error).lower():
                    raise RemoteError(f"{self.url}: {one_line(error)}; give the credentials of the storage") from None
                if pause is None:
                    raise RemoteError(
                        f"{self.url}: cannot be reached ({one_line(error)[:160]}), {len(PAUSES) + 1} tries; check the "
                        "network and the address, then run the same command again"
                    ) from None
                time.sleep(pause)
        raise AssertionError("the last try returns or raises")


def _system(url: str) -> Any:
    """The file system of an address."""
    try:
        import fsspec
    except ImportError:
        raise RemoteError(f"{url}: fsspec is not installed; {INSTALL}") from None
    try:
        return fsspec.core.url_to_fs(url)[0]
    except ImportError as error:
        raise RemoteError(f"{url}: {one_line(error)}; {INSTALL} has that of S3, install that of others") from None
    except ValueError as error:
        raise RemoteError(f"{url}: {one_line(error)}; give an address that fsspec knows") from None


class RemoteData:
    """A large file of which parts are read, by slices as of a `memoryview`.

    Args:
        path: The file.

    Slices come from blocks that are kept, for rows that lie side by side; `ranges` fetches little more than its spans.
    """

    def __init__(self, path: RemotePath) -> None:
        self.path = path
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def __getitem__(self, part: slice) -> bytes:
        numbers = range(part.start // BLOCK, -(-part.stop // BLOCK))
        missing = [n for n in numbers if n not in self._blocks]
        fetched = self.path.read_ranges([(n * BLOCK, (n + 1) * BLOCK) for n in missing])
        self._blocks |= dict(zip(missing, fetched, strict=True))
        out = io.BytesIO()
        for number in numbers:
            self._blocks.move_to_end(number)
            out.write(self._blocks[number])
        while len(self._blocks) > BLOCKS:
            self._blocks.popitem(last=False)
        first = part.start - numbers.start * BLOCK
        return out.getvalue()[first : first + part.stop - part.start]

    def ranges(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """Bytes from (first, end) each; what lies close together comes in one request."""
        joined: list[tuple[int, int]] = []
        for first, end in sorted(spans):
            if joined and first - joined[-1][1] <= GAP:
                joined[-1] = joined[-1][0], max(end, joined[-1][1])
            else:
                joined.append((first, end))
        parts = self.path.read_ranges(joined)
        begins = [first for first, _ in joined]
        found = [bisect_right(begins, first) - 1 for first, _ in spans]
        return [parts[k][a - begins[k] : b - begins[k]] for k, (a, b) in zip(found, spans, strict=True)]
