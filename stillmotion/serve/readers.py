"""Processes that read uploads; one that is lost to a file is replaced by another."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from stillmotion.data.pool import START_SECONDS, Failure, Process
from stillmotion.serve.counters import Counters
from stillmotion.serve.reader import Order, Reader, Reading, Unreadable
from stillmotion.serve.refused import Refused

RESTART_SECONDS = 2.0
"""Pause after a process that could not be started."""


class Readers:
    """A few warm processes, each of which reads one upload after the other.

    Args:
        reader: What runs in them.
        count: How many.
        seconds: For one upload; then its process is ended.
        counters: Counts the processes that were lost.
    """

    def __init__(self, reader: Reader, count: int, seconds: float, counters: Counters) -> None:
        self.reader, self.count, self.seconds, self.counters = reader, count, seconds, counters
        self.alive: set[Process[Order, Reading | Unreadable | None]] = set()
        self._idle: asyncio.Queue[Process[Order, Reading | Unreadable | None]] = asyncio.Queue()
        self._threads = ThreadPoolExecutor(2 * count, "reader")
        self._closed = False

    async def start(self) -> None:
        """Starts all of them.

        Raises:
            RuntimeError: One does not start.
        """
        await asyncio.gather(*(self._start() for _ in range(self.count)))

    async def read(self, order: Order, deadline: float) -> Reading:
        """What is ordered of a file.

        Args:
            order: With a path.
            deadline: Of the event loop's clock.

        Raises:
            Refused: The file cannot be read, or not in time.
        """
        try:
            async with asyncio.timeout_at(deadline):
                process = await self._idle.get()
        except TimeoutError:
            raise Refused(504, "no reader was free in time; send it again later", retry_after=5) from None
        loop = asyncio.get_running_loop()
        seconds = min(self.seconds, deadline - loop.time())
        call = loop.run_in_executor(self._threads, process.call, order, seconds)
        # Whoever waits may be cancelled; the process is taken back all the same.
        task = asyncio.ensure_future(self._after(process, call))
        found = await asyncio.shield(task)
        if isinstance(found, Failure) and "no answer" in found.reason:
            raise Refused(504, f"the file could not be read within {seconds:.0f} s")
        if isinstance(found, Failure):
            raise Refused(422, f"the file cannot be read: {found.reason}")
        if isinstance(found, Unreadable):
            raise Refused(found.status, found.reason)
        assert found is not None
        return found

    def close(self) -> None:
        """Ends all processes."""
        self._closed = True
        for process in self.alive:
            process.end()
        self._threads.shutdown(cancel_futures=True)

    async def _after(
        self,
        process: Process[Order, Reading | Unreadable | None],
        call: "asyncio.Future[Reading | Unreadable | Failure | None]",
    ) -> Reading | Unreadable | Failure | None:
        found = await call
        if isinstance(found, Failure):
            self.alive.discard(process)
            self.counters.readers_lost.inc()
            self._again = asyncio.ensure_future(self._replace())
        else:
            self._idle.put_nowait(process)
        return found

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        process = await loop.run_in_executor(self._threads, Process[Order, Reading | Unreadable | None], self.reader)
        self.alive.add(process)
        if isinstance(found := await loop.run_in_executor(self._threads, process.call, Order(None), START_SECONDS),
                      Failure):  # fmt: skip
            self.alive.discard(process)
            raise RuntimeError(f"a reader does not start: {found.reason}")
        self._idle.put_nowait(process)

    async def _replace(self) -> None:
        while not self._closed:
            try:
                return await self._start()
            except RuntimeError:
                await asyncio.sleep(RESTART_SECONDS)
