"""The system says no: full disks, rights that are gone, files that change, decoders that hang, clocks that jump."""

import contextlib
import ctypes
import os
import random
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from stillmotion.data.decode import decode_frames, timeline
from stillmotion.data.store import FrameStore
from tests.conftest import MakeVideo
from tests.faults.commands import COMMANDS, result
from tests.faults.conftest import Command, Record, amount

# linux/capability.h and linux/prctl.h: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH.
OVERRIDE, CAPABILITY_VERSION, PR_CAPBSET_DROP = (1, 2), 0x20080522, 24
STORES = ("extract", "flow", "pack")
Recorder = Callable[[str], Record]


def _small_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _jumping_clock() -> None:
    """Every look at the clock is up to a day before or after the last."""
    rng = random.Random(0)
    time.time = lambda: 1.7e9 + rng.uniform(-86400.0, 86400.0)


def _without_override() -> None:
    """Root then may no longer read what its mode forbids (another user might not even read this Python)."""
    libc = ctypes.CDLL(None)
    for number in OVERRIDE:
        libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)
    header, sets = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, sets)
    for k in range(3):  # effective, permitted, inheritable; the other three hold numbers from 32 on
        sets[k] &= ~sum(1 << number for number in OVERRIDE)
    libc.capset(header, sets)


def _disturbed(name: str, videos: Path, tmp_path: Path, row: Record, number: int, before: Callable[[], None]) -> None:
    """A command that is disturbed, and the same one again without."""
    out = tmp_path / f"out{number}"
    first = Command(COMMANDS[name](videos, out), tmp_path / "log", before)
    first.wait()
    said, clean = first.said, first.clean
    again = Command(COMMANDS[name](videos, out), tmp_path / "log")
    code = again.wait()
    row(clean and code == 0 and result(name, out) == result(name, tmp_path / "whole"))
    assert row.survived == row.tries, (said, again.said)


@pytest.mark.parametrize("name", ["train", *STORES])
def test_a_file_that_may_not_grow(name: str, videos: Path, tmp_path: Path, record: Recorder) -> None:
    row, rng = record(f"disk full (RLIMIT_FSIZE), {name}"), random.Random(name)
    assert Command(COMMANDS[name](videos, tmp_path / "whole"), tmp_path / "log").wait() == 0
    largest = max(p.stat().st_size for p in (tmp_path / "whole").rglob("*") if p.is_file())
    for number in range(amount(1, 4, 20)):
        size = int(rng.uniform(0.0, 1.0) * largest)
        _disturbed(name, videos, tmp_path, row, number, partial(_small_files, size))


@contextlib.contextmanager
def _tmpfs(folder: Path, options: str) -> Iterator[None]:
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("name", ["train", *STORES])
def test_a_disk_that_is_full(name: str, videos: Path, tmp_path: Path, record: Recorder) -> None:
    row, rng = record(f"disk full (tmpfs), {name}"), random.Random(name)
    assert Command(COMMANDS[name](videos, tmp_path / "whole"), tmp_path / "log").wait() == 0
    total = sum(p.stat().st_size for p in (tmp_path / "whole").rglob("*") if p.is_file())
    with _tmpfs(tmp_path / "disk", f"size={total // 1024 * 4 + 4096}k"):
        room = shutil.disk_usage(tmp_path / "disk").free
        for number in range(amount(1, 3, 15)):
            ballast, out = tmp_path / "disk" / "ballast", tmp_path / "disk" / f"out{number}"
            ballast.write_bytes(bytes(room - int(rng.uniform(0.0, 1.0) * total)))
            first = Command(COMMANDS[name](videos, out), tmp_path / "log")
            first.wait()
            said, clean = first.said, first.clean
            ballast.unlink()
            again = Command(COMMANDS[name](videos, out), tmp_path / "log")
            row(clean and again.wait() == 0 and result(name, out) == result(name, tmp_path / "whole"))
            assert row.survived == row.tries, (said, again.said)
            shutil.rmtree(out)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_that_is_read_only(name: str, videos: Path, tmp_path: Path, record: Recorder) -> None:
    row = record(f"read-only output, {name}")
    arguments = COMMANDS[name](videos, tmp_path / "out")
    arguments[arguments.index("--output") + 1] = str(tmp_path / "disk" / "out")
    with _tmpfs(tmp_path / "disk", "size=1m,ro"):
        command = Command(arguments, tmp_path / "log")
        row(command.wait() == 2 and command.clean and command.said.count("\n") < 4)
        assert row.survived == row.tries, command.said


@pytest.mark.parametrize("name", STORES)
def test_a_video_that_may_not_be_read(name: str, videos: Path, tmp_path: Path, record: Recorder) -> None:
    row = record(f"permission lost, {name}")
    (videos.parent / "3.mp4").chmod(0)
    command = Command(COMMANDS[name](videos, tmp_path / "out"), tmp_path / "log", _without_override)
    code = command.wait()
    row(code == 1 and command.clean and "3.mp4" in command.said + _texts(tmp_path / "out"))
    assert row.survived == row.tries, (code, command.said)


def _texts(folder: Path) -> str:
    return "".join(p.read_text() for p in folder.rglob("*") if p.suffix in (".csv", ".jsonl"))


def test_files_that_vanish_or_change(videos: Path, tmp_path: Path, record: Recorder) -> None:
    row, rng = record("files vanish and change while they are packed"), random.Random(0)
    for number in range(amount(2, 8, 40)):
        folder = tmp_path / f"videos{number}"
        shutil.copytree(videos.parent, folder)
        command = Command(COMMANDS["pack"](folder / "table.csv", tmp_path / f"out{number}"), tmp_path / "log")
        while command.process.exitcode is None and command.process.is_alive():
            one, other = rng.sample(range(8), 2)
            victim = folder / f"{one}.mp4"
            kind = rng.randrange(3)
            with contextlib.suppress(FileNotFoundError):
                if kind == 0:
                    victim.unlink()
                elif kind == 1:
                    victim.write_bytes(victim.read_bytes()[: rng.randrange(3000)])
                else:
                    shutil.copy(folder / f"{other}.mp4", victim)
            time.sleep(rng.uniform(0.0, 0.2))
        command.wait()
        out = tmp_path / f"out{number}"
        rows = FrameStore(out).rows if (out / "header.json").exists() else {}
        # Missing before it began is a mistake in the table; else every file is there, or listed.
        row(command.clean and (len(rows) == 8 or "not found under" in command.said))
        assert row.survived == row.tries, command.said


def test_a_file_that_changes_between_two_looks(tmp_path: Path, make_video: MakeVideo, record: Recorder) -> None:
    row, rng = record("a file changes between check and use"), np.random.default_rng(0)
    kinds, path = [], tmp_path / "clip.mp4"
    for k, num_frames in enumerate((3, 12, 30)):
        frames = np.full((num_frames, 48, 64, 3), 60 * k + 40, np.uint8)
        kinds.append(make_video(tmp_path / f"{k}.mp4", frames).read_bytes())
    kinds += [kinds[2][:900], b"", b"\x00" * 500]
    done = threading.Event()

    def write() -> None:
        order = np.random.default_rng(1)
        while not done.is_set():
            path.write_bytes(kinds[int(order.integers(len(kinds)))])

    path.write_bytes(kinds[0])
    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(amount(50, 300, 5000)):
            try:
                known = timeline(path)
                decode_frames(path, [int(rng.integers(known.num_frames))])
            except (ValueError, OSError) as error:
                row("\n" not in str(error))
            else:
                row(True)
    finally:
        done.set()
        writer.join()


HANGING = {
    "train": ["--data.timeout", "3"], "extract": ["--data.timeout", "3"], "pack": ["--timeout", "3"],
    "flow": ["--timeout", "3", "--workers", "1"],
}  # fmt: skip


@pytest.mark.parametrize("name", HANGING)
def test_a_decoder_that_hangs(name: str, videos: Path, tmp_path: Path, record: Recorder) -> None:
    row = record(f"a decoder that hangs, {name}")
    (videos.parent / "3.mp4").unlink()
    os.mkfifo(videos.parent / "3.mp4")  # opening it waits for a writer, in C, for ever
    command = Command([*COMMANDS[name](videos, tmp_path / "out"), *HANGING[name]], tmp_path / "log")
    code = command.wait()
    listed = command.said + _texts(tmp_path / "out")
    # A training ends well, and lists what it did without.
    row(code == (0 if name == "train" else 1) and command.clean and "3.mp4" in listed and "no answer" in listed)
    assert row.survived == row.tries, (code, listed)


@pytest.mark.parametrize("name", ["train", *STORES])
def test_a_clock_that_jumps(name: str, videos: Path, tmp_path: Path, record: Recorder) -> None:
    row = record(f"a clock that jumps, {name}")
    assert Command(COMMANDS[name](videos, tmp_path / "whole"), tmp_path / "log").wait() == 0
    command = Command(COMMANDS[name](videos, tmp_path / "out"), tmp_path / "log", _jumping_clock)
    row(command.wait() == 0 and result(name, tmp_path / "out") == result(name, tmp_path / "whole"))
    assert row.survived == row.tries, command.said


STARVED = """
import resource, sys
import stillmotion.data.compute_flow, stillmotion.data.pack, torch, cv2
from stillmotion.__main__ import main
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {mib} * 2**20, used + {mib} * 2**20))
sys.exit(main({arguments!r}))
"""


@pytest.mark.parametrize("workers", ["0", "1"])
def test_out_of_memory_is_one_line(workers: str, tmp_path: Path, videos: Path, record: Recorder) -> None:
    """Read in the command's own process, a video may take it along: FFmpeg with 1 MiB left was seen to crash."""
    row = record(f"memory refused (RLIMIT_AS), --workers {workers}")
    for mib in (4, 8, 16, 32, 64) if workers == "0" else (1, 4, 8, 16, 32):
        arguments = [*COMMANDS["flow"](videos, tmp_path / f"out{mib}")[:-1], workers]
        script = STARVED.format(mib=mib, arguments=arguments)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
        row(done.returncode in (0, 1, 2) and "Traceback" not in done.stderr)
        assert row.survived == row.tries, (mib, done.returncode, done.stderr)
