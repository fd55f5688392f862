"""Memory that a step frees serves the next one."""

import platform
import subprocess
import sys

import pytest

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
