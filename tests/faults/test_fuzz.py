"""Fuzzing of the readers of tables, settings, checkpoints and features, in processes of their own."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import Record, amount
from tests.faults.fuzz import MEMORY_MIB, TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_fuzzed(target: str, record: Callable[[str], Record]) -> None:
    row, runs = record(f"fuzzed {target}"), amount(300, 3000, 100_000)
    slow = 20 if target in ("config.yaml", "config.json") else 1  # a parser or a network is built every time
    runs //= slow
    done = subprocess.run([sys.executable, "-m", "tests.faults.fuzz", target, str(runs), "1"], capture_output=True,
                          text=True, cwd=Path(__file__).parents[2], timeout=3600)  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    row.tries = row.survived = told["read"] + told["refused"]
    guided = "guided by coverage" if told["guided"] else "blind: atheris is not installed"
    row.note = f"{told['read']} read, {told['refused']} refused; {guided}; {told['mib']} MiB more"
    assert row.tries >= runs
    assert told["mib"] < MEMORY_MIB
