"""Samples that hang or kill their reader: they are listed, and everything else is as without them."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from stillmotion.data.pack import pack
from stillmotion.data.store import FrameStore
from stillmotion.data.table import read_table
from stillmotion.data.threads import Threads
from stillmotion.data.watched import Watched
from tests.conftest import MakeVideo, write_table

HANGS, DIES, RAISES = 2, 5, 7
ODD = 99
"""An epoch in which a row raises."""


class Rows:
    """Rows that are their number, with a few that do harm."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, key: tuple[int, int]) -> Any:
        row = key[1]
        if row == HANGS:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # as a decoder that hangs in C
            time.sleep(3600.0)
        if row == RAISES and key[0] == ODD:
            raise KeyError(row)
        if row == DIES:
            os.kill(os.getpid(), signal.SIGSEGV)
        return key

    def unread(self, row: int, reason: str) -> Any:
        return row, reason


@pytest.mark.parametrize(("workers", "size"), [(1, 1), (2, 1), (1, 10), (2, 4)])
def test_a_hang_or_a_crash_costs_one_sample(workers: int, size: int) -> None:
    wanted: list[Any] = [(epoch, row) for epoch in (0, 1) for row in range(10)]
    keys = [wanted[first : first + size] for first in range(0, 20, size)]
    began = time.monotonic()
    loader = DataLoader(Watched(Rows(), 1.0), batch_sampler=keys, num_workers=workers, collate_fn=list)
    got = [item for batch in loader for item in batch]
    for place, (_, row) in enumerate(wanted):
        if row in (HANGS, DIES):
            wanted[place] = row, "no answer within 1 s" if row == HANGS else "its reader died (signal SIGSEGV)"
    assert got == wanted
    assert time.monotonic() - began < 60.0


def test_an_error_of_the_program_is_raised_and_no_answer_is_mistaken_for_another() -> None:
    keys = [[(ODD, 6), (ODD, RAISES), (ODD, 8)], [(0, 3), (0, 4)]]
    loader = iter(DataLoader(Watched(Rows(), 60.0), batch_sampler=keys, num_workers=1, collate_fn=list))
    with pytest.raises(KeyError):
        next(loader)
    assert next(loader) == keys[1]


SCRIPT = """
import time
from pathlib import Path
from torch.utils.data import DataLoader
from tests.data.test_watched import Rows, Watched
loader = iter(DataLoader(Watched(Rows(), 60.0), batch_sampler=[[(0, 0)]] * 9, num_workers=1, collate_fn=list))
next(loader)
worker = loader._workers[0].pid
print(Path(f"/proc/{worker}/task/{worker}/children").read_text(), flush=True)
time.sleep(3600.0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_readers_end_with_a_killed_program() -> None:
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        reader = int(process.stdout.readline())
        assert _alive(reader)
        process.kill()
    end = time.monotonic() + 60.0
    while _alive(reader) and time.monotonic() < end:  # workers look every few seconds whether their parent lives
        time.sleep(0.1)
    assert not _alive(reader)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_pack_gives_up_what_hangs_and_goes_on(tmp_path: Path, make_video: MakeVideo) -> None:
    path = write_table(tmp_path, make_video, train=4, test=0, num_frames=4)
    pack(path, tmp_path / "whole", workers=1, progress=False)
    (tmp_path / "1.mp4").unlink()
    os.mkfifo(tmp_path / "1.mp4")  # opening it waits for a writer, in C, for ever
    report = pack(path, tmp_path / "store", workers=1, timeout=2.0, progress=False)
    assert report.errors == {"1.mp4": "no answer within 2 s"}
    whole, store = FrameStore(tmp_path / "whole"), FrameStore(tmp_path / "store")
    for sample in read_table(path):
        if sample.id != "1.mp4":
            assert store.rows[sample.id]["crc"] == whole.rows[sample.id]["crc"]


def test_a_thread_that_hangs_is_replaced() -> None:
    def work(item: float) -> float:
        time.sleep(item)
        return item

    threads = Threads(work, 1, 0.5)
    calls = [threads.submit(item) for item in (0.0, 3600.0, 0.1)]
    assert threads.result(calls[0]) == 0.0
    with pytest.raises(ValueError, match=r"^no answer within 0\.5 s$"):
        threads.result(calls[1])
    assert threads.result(calls[2]) == 0.1
    threads.end()


def test_errors_of_a_thread_are_raised() -> None:
    threads = Threads(int, 1, 10.0)
    with pytest.raises(ValueError, match="invalid literal"):
        threads.result(threads.submit("x"))
    threads.end()


def test_a_program_ends_though_a_thread_hangs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "hangs.mp4")
    script = f"""
from stillmotion.data.decode import timeline
from stillmotion.data.threads import Threads
threads = Threads(timeline, 1, 1.0)
try:
    threads.result(threads.submit({str(tmp_path / "hangs.mp4")!r}))
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "no answer within 1 s\n"), done.stderr


def test_threads_are_over_when_they_are_ended() -> None:
    """One that is left to end by itself can abort the program (seen: 4 of 48 runs of `predict`)."""
    before = set(threading.enumerate())
    threads = Threads(int, 4, 10.0)
    assert [threads.result(threads.submit(text)) for text in "123"] == [1, 2, 3]
    assert len(set(threading.enumerate()) - before) == 4
    threads.end()
    assert not set(threading.enumerate()) - before
