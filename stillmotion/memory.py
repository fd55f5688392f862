"""How the C library hands out memory, and how much of it a process holds."""

import ctypes
import os
import sys
from pathlib import Path
from typing import Literal

STATUS = Path("/proc/self/status")
# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_memory() -> None:
    """Has this process keep the memory that it frees, instead of giving it back to the system after every layer.

    A network's maps are larger than glibc's limit for memory of its own, so that each of them would be fetched from the
    system anew and every page of it touched for the first time, in every step: a third of the time of a pseudo-3D
    MobileNetV2's training step on a CPU. It stays as large as it was at its largest moment, or a little larger.
    This goes for the whole process and cannot be taken back.
    Nothing is changed where a variable of glibc's is set (`MALLOC_...`, `GLIBC_TUNABLES`), or in other C libraries.
    """
    own = any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ
    if sys.platform != "linux" or own:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def give_back() -> None:
    """Gives the system what this process has freed; takes some hundredths of a second.

    Frames of many sizes in several threads leave holes all over the memory, which would grow with every thousand files.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def resident_mib(which: Literal["now", "peak"]) -> float | None:
    """Memory that this process holds, or has held at most; None where the system does not tell (Linux does)."""
    try:
        lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
        return int(lines["VmHWM" if which == "peak" else "VmRSS"].split()[0]) / 1024
    except (OSError, KeyError):
        return None
