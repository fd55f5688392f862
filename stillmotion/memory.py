"""How the C library hands out memory."""

import ctypes
import os
import sys

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
