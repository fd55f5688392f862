"""Receiving an upload: size, kind and pace are checked while it comes in."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkstemp
from typing import BinaryIO

from fastapi import Request
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from stillmotion.config import LimitConfig
from stillmotion.data.faults import one_line
from stillmotion.serve.kinds import HEAD, NAMES, suffix_of
from stillmotion.serve.refused import Refused

FIELD = "file"
AROUND = 64 * 1024
"""Bytes of the form around the file."""
GONE = 499
"""The client went away; nobody reads this."""


@dataclass(frozen=True)
class Upload:
    """A file that was received.

    Args:
        path: Where it lies, for as long as the request lasts.
        name: As the client calls it.
        size: In bytes.
    """

    path: Path
    name: str
    size: int


@asynccontextmanager
async def received(request: Request, folder: Path, limits: LimitConfig) -> AsyncIterator[Upload]:
    """The file of a form, in a folder; it is gone afterwards, whatever happens.

    Raises:
        Refused: No form with a file (400), too slow (408), too large (413), neither video nor still (415),
            no room (507).
    """
    most = int(limits.max_mib * 2**20)
    form = _Form(_boundary(request), folder, most)
    try:
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > most + AROUND:
            raise form.too_large()
        try:
            await _feed(request, form, limits)
        except ClientDisconnect:
            raise Refused(GONE, "the client went away") from None
        yield form.upload()
    finally:
        form.remove()


async def _feed(request: Request, form: "_Form", limits: LimitConfig) -> None:
    """Passes on what comes in, until the end of the body."""
    clock = asyncio.get_running_loop().time
    end = clock() + limits.upload_seconds
    chunks = request.stream()
    while True:
        stall = clock() + limits.stall_seconds
        try:
            async with asyncio.timeout_at(min(end, stall)):
                chunk = await anext(chunks, None)
        except TimeoutError:
            slow = f"nothing came for {limits.stall_seconds:g} s" if stall < end else (
                f"it was not here within {limits.upload_seconds:g} s")  # fmt: skip
            raise Refused(408, f"the upload is too slow: {slow}") from None
        if chunk is None:
            return
        form.feed(chunk)


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data":
        raise Refused(415, f"send the file as multipart/form-data, in the field {FIELD!r}")
    if not options.get(b"boundary"):
        raise Refused(400, "the form has no boundary")
    return options[b"boundary"]


class _Form:
    """A multipart form, of which the first field `file` is kept.

    Args:
        boundary: Between its parts.
        folder: Where the file goes.
        most: Bytes of the file.
    """

    def __init__(self, boundary: bytes, folder: Path, most: int) -> None:
        self.folder, self.most = folder, most
        self.path: Path | None = None
        self.name, self.size, self._total = "", 0, 0
        self._file: BinaryIO | None = None
        self._head = b""
        self._field = self._header = b""
        self._here = self._done = self._ended = False
        self._parser = MultipartParser(boundary, {
            "on_header_field": self._on_header_field, "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end, "on_part_data": self._on_data, "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        })  # fmt: skip

    def feed(self, chunk: bytes) -> None:
        """Takes the next bytes of the body.

        Raises:
            Refused: See `received`.
        """
        self._total += len(chunk)
        if self._total > self.most + AROUND:
            raise self.too_large()
        try:
            self._parser.write(chunk)
        except MultipartParseError as error:
            raise Refused(400, f"the form cannot be read: {one_line(error)[:120]}") from None
        except OSError as error:
            raise Refused(507, f"the file cannot be stored here: {error.strerror}", retry_after=60) from None

    def upload(self) -> Upload:
        """The file, once the body is at its end."""
        if not self._ended:
            raise Refused(400, "the form ends too early")
        if not self._done:
            raise Refused(400, f"the form has no file in the field {FIELD!r}")
        assert self.path is not None
        return Upload(self.path, self.name, self.size)

    def too_large(self) -> Refused:
        """The error of a file that is."""
        return Refused(413, f"the file is too large: at most {self.most / 2**20:g} MiB are taken")

    def remove(self) -> None:
        """Closes and removes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            _, options = parse_options_header(self._header)
            self._here = not self._done and options.get(b"name") == FIELD.encode()
            if self._here:
                self.name = Path(options.get(b"filename", b"upload").decode(errors="replace")).name[:200]
        self._field = self._header = b""

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if not self._here:
            return
        self.size += end - start
        if self.size > self.most:
            raise self.too_large()
        if self._file is not None:
            self._file.write(data[start:end])
            return
        self._head += data[start:end]
        if len(self._head) >= HEAD:
            self._open()

    def _on_part_end(self) -> None:
        if not self._here:
            return
        if self._file is None:
            self._open()
        assert self._file is not None
        self._file.close()
        self._file, self._here, self._done = None, False, True

    def _on_end(self) -> None:
        self._ended = True

    def _open(self) -> None:
        """Opens the file once its first bytes tell what it is."""
        suffix = suffix_of(self._head)
        if suffix is None:
            what = "empty" if not self._head else "neither a video nor a still that is taken"
            raise Refused(415, f"the file is {what}; taken are {NAMES}")
        number, name = mkstemp(suffix, dir=self.folder)
        self.path, self._file = Path(name), os.fdopen(number, "wb")
        self._file.write(self._head)
