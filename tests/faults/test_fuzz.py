"""Fuzzing of the readers of tables, settings, checkpoints and features, in processes of their own."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.faults.conftest import Record, amount
from tests.faults.fuzz import MEMORY_MIB, TARGETS


def test_fuzzed(record: Callable[[str], Record]) -> None:
    rows, runs = {target: record(f"fuzzed {target}") for target in TARGETS}, amount(300, 3000, 100_000)
    done = subprocess.run([sys.executable, "-m", "tests.faults.fuzz", str(runs), "1"], capture_output=True,
                          text=True, cwd=Path(__file__).parents[2], timeout=36 * runs)  # fmt: skip
    for line in done.stdout.splitlines():
        if line.startswith('{"target"'):
            told = json.loads(line)
            row = rows.pop(told["target"])
            row.tries = row.survived = told["read"] + told["refused"]
            guided = "guided by coverage" if told["guided"] else "blind: atheris is not installed"
            row.note = f"{told['read']} read, {told['refused']} refused; {guided}; {told['mib']} MiB more"
            assert told["mib"] < MEMORY_MIB
    for row in rows.values():
        row.tries, row.note = 1, "ended early"
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
