"""How much is tried, the processes that are killed, and the table of what came of it.

`STILLMOTION_FAULTS` is `few`, `default` or `full`; the table goes to
`STILLMOTION_FAULTS_OUTPUT` (the folder `faults`).
"""

import contextlib
import csv
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.conftest import MakeVideo, write_table

AMOUNT = os.environ.get("STILLMOTION_FAULTS", "default")
OUTPUT = Path(os.environ.get("STILLMOTION_FAULTS_OUTPUT", "faults"))
COLUMNS = ("fault", "tries", "survived", "lost", "seconds", "note")
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["stillmotion.__main__", "stillmotion.train",
                               "stillmotion.compare", "stillmotion.extract",
                               "stillmotion.data.pack", "stillmotion.data.compute_flow", "torchvision", "timm",
                               "stillmotion.report.page", "stillmotion.report.plots"])  # fmt: skip


def amount(few: int, default: int, full: int) -> int:
    """How often something is tried."""
    return {"few": few, "default": default, "full": full}[AMOUNT]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All that lies here is a test of faults."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("faults")


@dataclass
class Record:
    """A row of the table while it is being filled; what is lost fails its test."""

    fault: str
    tries: int = 0
    survived: int = 0
    note: str = ""

    def __call__(self, survived: bool) -> None:
        self.tries += 1
        self.survived += survived


@pytest.fixture
def record() -> Iterator[Callable[[str], Record]]:
    """Makes rows of the table; they are written when the test is over, whatever came of it."""
    rows: list[Record] = []
    began = time.monotonic()

    def make(fault: str) -> Record:
        rows.append(Record(fault))
        return rows[-1]

    yield make
    seconds = time.monotonic() - began
    write(rows, seconds / max(1, len(rows)))
    for row in rows:
        assert row.survived == row.tries, row


def write(rows: Sequence[Record], seconds: float) -> None:
    """Adds rows to the table, in the place of those of the same name."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with FileLock(OUTPUT / ".lock"):
        file = OUTPUT / "faults.json"
        known = {row["fault"]: row for row in json.loads(file.read_text())} if file.exists() else {}
        for row in rows:
            lost = row.tries - row.survived
            cells = (row.fault, row.tries, row.survived, lost, round(seconds, 1), row.note)
            known[row.fault] = dict(zip(COLUMNS, cells, strict=True))
        table = sorted(known.values(), key=lambda row: str(row["fault"]))
        file.write_text(json.dumps(table, indent=1) + "\n")
        with (OUTPUT / "faults.csv").open("w", newline="") as out:
            writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)
        head = [f"| {' | '.join(COLUMNS)} |", "| --- | ---: | ---: | ---: | ---: | --- |"]
        lines = [f"| {' | '.join(str(row[name]) for name in COLUMNS)} |" for row in table]
        (OUTPUT / "faults.md").write_text("\n".join([*head, *lines]) + "\n")


@pytest.fixture
def videos(tmp_path: Path, make_video: MakeVideo) -> Path:
    """A table of eight small videos."""
    return write_table(tmp_path / "videos", make_video, train=6, test=2, num_frames=16)


Before = Callable[[], Any]


class Command:
    """The command line in a process of its own, forked from one that has imported everything.

    Args:
        arguments: Of `stillmotion`.
        log: File that takes what it prints.
        before: Called in the process at first; importable by name.
    """

    def __init__(self, arguments: Sequence[str], log: Path, before: Before | None = None) -> None:
        self.log, self.began = log, time.monotonic()
        self.process: ForkServerProcess = SERVER.Process(target=_work, args=([*map(str, arguments)], log, before))
        self.process.start()

    def kill(self) -> bool:
        """Ends it and its children as the system would; false if it was done already."""
        assert self.process.pid is not None
        with contextlib.suppress(ProcessLookupError):  # its group is there once it has begun
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        return self.process.exitcode == -signal.SIGKILL

    def wait(self, seconds: float = 300.0) -> int:
        """Its exit code; a hang fails the test."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.kill()
            pytest.fail(f"hangs: {self.said}")
        self.seconds = time.monotonic() - self.began
        return self.process.exitcode

    @property
    def said(self) -> str:
        """What it printed."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    @property
    def clean(self) -> bool:
        """Whether it ended with a code that is documented, and without a traceback."""
        return self.process.exitcode in (0, 1, 2) and "Traceback" not in self.said


def _work(arguments: list[str], log: Path, before: Before | None) -> None:
    os.setsid()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    import torch

    import stillmotion.jobs
    from stillmotion.__main__ import main

    torch.set_num_threads(1)
    # A server of its own would import everything again.
    stillmotion.jobs._context = lambda preload: multiprocessing.get_context("fork")  # type: ignore[assignment]
    if before is not None:
        before()
    sys.exit(main(arguments))
