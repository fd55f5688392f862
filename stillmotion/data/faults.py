"""What is wrong with a file, in one line a person can act on: read from its first bytes and its declared sizes."""

import string
from pathlib import Path
from typing import BinaryIO

MP4_BOXES = frozenset([b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"moof", b"sidx", b"pnot"])
PRINTABLE = frozenset(string.printable.encode())

TIMEOUT_SECONDS = 600.0
"""For one sample, where nothing else is said."""
FLOW_SECONDS = 24 * 3600.0
"""For the flow of one sample: TV-L1 takes a second for a pair of frames."""


class VideoError(ValueError):
    """A video, image folder or still image cannot be read as asked; one line names the file and what is wrong."""


def one_line(error: BaseException) -> str:
    """What an error says, in one line; its type if it says nothing.

    >>> one_line(ValueError("a.mp4:\\n  cut short")), one_line(MemoryError())
    ('a.mp4: cut short', 'MemoryError')
    """
    return " ".join(str(error).split()) or type(error).__name__


def missing_bytes(path: Path) -> tuple[int, int] | None:
    """Present and declared size in bytes of a file that was cut short, or None if nothing says so.

    AVI, MP4/MOV and Matroska declare their own size; other containers are taken as they are.
    """
    present = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] == b"RIFF":
            declared = 8 + int.from_bytes(head[4:8], "little")
        elif head[:4] == b"\x1a\x45\xdf\xa3":
            declared = _matroska_size(file)
        elif head[4:8] in MP4_BOXES:
            declared = _mp4_size(file, present)
        else:
            declared = present
    return (present, declared) if present < declared else None


def cut_text(path: Path) -> str:
    """` (149504 of 298916 bytes are there)` for a file that was cut short, otherwise nothing."""
    cut = missing_bytes(path)
    return f" ({cut[0]} of {cut[1]} bytes are there)" if cut else ""


def why_not_open(path: Path, error: Exception) -> str:
    """Why a file cannot be opened as a video at all."""
    if isinstance(error, PermissionError):
        return "permission denied"
    size = path.stat().st_size
    if size == 0:
        return "empty file (0 bytes)"
    with path.open("rb") as file:
        head = file.read(4096)
    if head[4:8] in MP4_BOXES:
        cut = missing_bytes(path)
        if cut:
            return f"cut short after {cut[0]} of at least {cut[1]} bytes, and its index (moov) at the end is lost"
        return "an MP4 file without an index (moov)"
    if all(byte in PRINTABLE for byte in head):
        text = head.lstrip().lower()
        kind = "HTML text" if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")) else "plain text"
        return f"not a video: {kind}"
    if not any(head):
        return "not a video: it begins with zeros"
    return f"not a video that can be opened ({reason(error)})"


def reason(error: Exception) -> str:
    """The decoder's own words, without numbers and file names."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _mp4_size(file: BinaryIO, present: int) -> int:
    """Where the last top-level box ends; boxes that are not known end the walk (trailing junk is harmless)."""
    offset = 0
    while offset < present:
        file.seek(offset)
        head = file.read(16)
        if len(head) < 8 or head[4:8] not in MP4_BOXES | {b"udta", b"uuid", b"meta", b"mfra", b"emsg"}:
            break
        size = int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        if size == 0:  # to the end of the file
            return present
        if size < 8:
            break
        offset += size
    return offset


def _matroska_size(file: BinaryIO) -> int:
    """Where the segment ends, 0 if the file does not say (live recordings)."""
    file.seek(4)
    header, _ = _vint(file)
    file.seek(header, 1)
    if file.read(4) != b"\x18\x53\x80\x67":
        return 0
    size, unknown = _vint(file)
    return 0 if unknown else file.tell() + size


def _vint(file: BinaryIO) -> tuple[int, bool]:
    """An EBML length, and whether it is the code for `unknown`."""
    first = file.read(1)
    if not first or first[0] == 0:
        return 0, True
    extra = 8 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & ((1 << (7 - extra)) - 1)]) + file.read(extra), "big")
    return value, value == (1 << (7 * (extra + 1))) - 1
