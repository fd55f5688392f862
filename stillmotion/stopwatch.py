"""Where time goes. Imports nothing of the package, so that every part of it can be watched."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stopwatch:
    """Seconds by the name of a part; one that runs several times adds up.

    Args:
        clock: Gives seconds; `time.process_time` counts those in which the processor works for this process.

    Example:
        >>> ticks = iter([0.0, 2.0, 5.0, 6.0])
        >>> watch = Stopwatch(lambda: next(ticks))
        >>> for _ in range(2):
        ...     with watch.part("decode"):
        ...         pass
        >>> watch.seconds
        {'decode': 3.0}
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts what runs inside."""
        began = self.clock()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + self.clock() - began
