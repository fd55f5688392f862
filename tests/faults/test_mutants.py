"""Videos with mutated bits, headers and ends: each is read, read in part, or refused in one line, within bounds."""

import os
import resource
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from stillmotion.__main__ import main
from stillmotion.data.decode import decode_frames, forget, probe
from stillmotion.data.examine import examine
from stillmotion.data.pool import Failure, run_apart
from stillmotion.data.store import FrameStore
from tests.conftest import DATA, MakeVideo
from tests.faults.conftest import Record, amount

MEMORY_MIB = 1024
"""Beyond what the process had before the first video."""
SECONDS = 60.0
CODECS = {"a.mp4": "libx264", "b.avi": "mpeg4", "c.mkv": "libx264", "d.avi": "mjpeg", "e.mpg": "mpeg2video",
          "f.webm": "libvpx", "g.mov": "mpeg4", "h.gif": "gif"}  # fmt: skip
KINDS = (".avi", ".mp4", ".mkv")
LARGEST = 400_000
"""Bytes of a shared clip that is mutated."""


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Bits flipped, the end cut off, fields of the header or of the index at the end overwritten, blocks moved."""
    copy, size = bytearray(data), len(data)
    kind = rng.integers(4)
    if kind == 0:
        for at in rng.integers(0, size, int(rng.integers(1, 100))):
            copy[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        del copy[int(rng.integers(1, size)) :]
    elif kind == 2:
        for _ in range(int(rng.integers(1, 8))):
            near = int(rng.integers(0, min(size, 2048)))
            at = near if rng.integers(2) else max(0, size - 1 - near)
            copy[at : at + 4] = [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4), rng.bytes(4)][int(rng.integers(4))]
    else:
        a, b, length = *rng.integers(0, size, 2), int(rng.integers(1, 2000))
        copy[a : a + length] = copy[b : b + length]
    return bytes(copy)


def look(sources: list[str], number: int) -> tuple[str, int]:
    """What reading a mutant in every way comes to, and the memory at its most in MiB."""
    rng = np.random.default_rng(number)
    source = Path(sources[number % len(sources)])
    path = source.with_name(f"mutant{os.getpid()}{source.suffix}")
    path.write_bytes(mutated(source.read_bytes(), rng))
    forget()
    try:
        seen = examine(path)
        info = probe(path)
        decode_frames(path, [0, info.num_frames - 1], short_side=32)
        answer = "read in part" if seen.fault or seen.damaged or info.fault else "read"
    except (ValueError, OSError) as error:
        answer = "refused" if str(error).strip() and "\n" not in str(error) else f"not one line: {error!r}"
    except BaseException:
        answer = traceback.format_exc()
    return answer, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


@pytest.fixture
def sources(tmp_path: Path, make_video: MakeVideo) -> list[str]:
    """Small clips of every container, and the shared ones."""
    paths = []
    for name, codec in CODECS.items():
        try:
            paths.append(make_video(tmp_path / "sources" / name, _frames(), codec=codec))
        except (ValueError, OSError):  # an encoder that is not in this build, or another pixel format
            continue
    if DATA is not None:
        shared = sorted(
            p for p in DATA.rglob("*") if p.suffix in (".avi", ".mp4", ".mkv") and p.stat().st_size < LARGEST
        )
        for number, path in enumerate(shared[:: max(1, len(shared) // 24)]):
            copy = tmp_path / "sources" / f"s{number}{path.suffix}"
            copy.write_bytes(path.read_bytes())
            paths.append(copy)
    return [str(path) for path in paths]


def _frames() -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (20, 6, 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)


def test_mutated_videos(sources: list[str], record: Callable[[str], Record]) -> None:
    row, count = record("mutated videos"), amount(100, 600, 10_000)
    numbers = list(range(count))
    answers = dict(run_apart(partial(look, sources), numbers, workers=min(2, os.cpu_count() or 1), timeout=SECONDS))
    kinds: Counter[str] = Counter()
    memory, bad = [], []
    for number in numbers:
        answer = answers[number]
        text, most = ("" if isinstance(answer, Failure) else answer[0]), 0 if isinstance(answer, Failure) else answer[1]
        known = text in ("read", "read in part", "refused")
        row(known)
        kinds[text if known else "lost"] += 1
        memory.append(most)
        bad += [] if known else [(number, answer)]
    grown = max(memory) - min(m for m in memory if m)
    came = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
    row.note = f"{len(sources)} clips; {came}; {grown} MiB more"
    assert not bad, bad[:3]
    assert grown < MEMORY_MIB


def test_every_mutant_is_accounted_for(sources: list[str], tmp_path: Path, record: Callable[[str], Record]) -> None:
    row, count = record("mutated videos, `pack`: in the store or listed"), amount(30, 100, 1000)
    folder, lines = tmp_path / "mutants", ["path,label"]
    folder.mkdir()
    for number in range(count):
        source = Path(sources[number % len(sources)])
        data = mutated(source.read_bytes(), np.random.default_rng(10**6 + number))
        (folder / f"{number}{source.suffix}").write_bytes(data)
        lines.append(f"{number}{source.suffix},x")
    (folder / "table.csv").write_text("\n".join(lines))
    code = main(["pack", str(folder / "table.csv"), "--output", str(tmp_path / "store"), "--workers", "1",
                 "--short_side", "32", "--timeout", "60"])  # fmt: skip
    store = FrameStore(tmp_path / "store")
    for line in lines[1:]:
        known = store.rows.get(line.removesuffix(",x"))
        row(known is not None and ("error" in known or known["num_frames"] > 0))
    row.note = f"{len(store.errors)} listed, {count - len(store.errors)} packed"
    assert code == (1 if store.errors else 0)
