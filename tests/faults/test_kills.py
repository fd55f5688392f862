"""SIGKILL at random moments: what is resumed ends as what was never disturbed."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.commands import COMMANDS, result
from tests.faults.conftest import Command, Record, amount


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_any_moment(name: str, videos: Path, tmp_path: Path, record: Callable[[str], Record]) -> None:
    row, rng, tries = record(f"SIGKILL, {name}"), random.Random(name), amount(2, 10, 40)
    Command(COMMANDS[name](videos, tmp_path / "warm"), tmp_path / "log").wait()
    whole = Command(COMMANDS[name](videos, tmp_path / "whole"), tmp_path / "log")
    assert whole.wait() == 0, whole.said
    wanted, late = result(name, tmp_path / "whole"), 0
    assert wanted
    while row.tries < tries and late < 5 * tries:
        out = tmp_path / f"try{row.tries + late}"
        command = Command(COMMANDS[name](videos, out), tmp_path / "log")
        time.sleep(rng.uniform(0.02, 1.0) * whole.seconds)
        if not command.kill():
            late += 1
            continue
        resumed = Command(COMMANDS[name](videos, out), tmp_path / "log")
        code = resumed.wait()
        row(code == 0 and result(name, out) == wanted)
        assert row.survived == row.tries, (out, resumed.said)
    row.note = "compared to the byte" if name in ("extract", "flow", "pack") else "weights to the byte, results"
    assert row.tries == tries, f"{late} of {late + row.tries} were over before they were killed"
