"""Memory that a step frees serves the next one."""

import gc
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import av
import numpy as np
import pytest

from stillmotion.data.table import Sample
from stillmotion.predict import Predictor
from stillmotion.tasks import Classification
from stillmotion.view import View
from tests.conftest import DATA, MakeVideo

SCRIPT = """
import resource, sys
from stillmotion.memory import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        bytearray(b"x") * 2**26  # 64 MiB, 16384 pages; below 32 MiB glibc learns to keep them
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def _faults(mode: str, **variables: str) -> int:
    command = [sys.executable, "-c", SCRIPT, mode]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, env=variables).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_not_given_back() -> None:
    left = _faults("leave")
    if left < 4 * 4096:
        pytest.skip("this system keeps the memory by itself (huge pages)")
    assert _faults("keep") < left / 100
    assert _faults("keep", MALLOC_ARENA_MAX="8") > left / 2, "the user's own setting counts"


HOLES = """
from stillmotion.memory import give_back, keep_memory, resident_mib
keep_memory()
pieces = [bytearray(2**20) for _ in range(256)]
pins = pieces[-1:]
del pieces[:-1]
before = resident_mib("now")
give_back()
print(int(before - resident_mib("now")))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_given_back_where_it_is_asked_for() -> None:
    found = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True, env={})
    assert int(found.stdout) > 200, "255 of 256 MiB are free"


@pytest.fixture
def garbage() -> Iterator[list[object]]:
    """What only the garbage collector finds from here on."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def test_no_picture_waits_for_the_garbage_collector(
    tmp_path: Path, make_video: MakeVideo, garbage: list[object]
) -> None:
    """It looks at everything once in thousands of files, and pictures are megabytes: `predict` held a GiB."""
    frames = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), np.uint8)
    good = make_video(tmp_path / "good.mp4", frames)
    (tmp_path / "cut.mp4").write_bytes(good.read_bytes()[:3000])
    (tmp_path / "cut.avi").write_bytes(make_video(tmp_path / "whole.avi", frames, codec="mpeg4").read_bytes()[:9000])
    (tmp_path / "no.mp4").write_bytes(b"no video")
    paths = sorted(tmp_path.glob("*.*")) + (sorted((DATA / "broken").glob("*.*")) if DATA is not None else [])
    predictor = Predictor(lambda inputs: np.zeros(2, np.float32), Classification(("a", "b")), {"clip": View(size=32)})
    answers = list(predictor.many([Sample(path, path.name) for path in paths] * 2))
    assert {answer.error is None for answer in answers} == {True, False}
    gc.collect()
    assert not [thing for thing in garbage if isinstance(thing, av.VideoFrame | np.ndarray | FrameType)]
