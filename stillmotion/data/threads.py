"""Threads that read ahead, any of which may hang in a decoder: it is left behind and another takes its place."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Generic, TypeVar

from stillmotion.data.faults import VideoError

Item = TypeVar("Item")
Result = TypeVar("Result")
LOOK_SECONDS = 1.0
"""How often it is looked whether an item that waits for a thread has got one."""
END_SECONDS = 10.0
"""How long an item that a thread is at when all is over may still take."""


@dataclass
class Call(Generic[Result]):
    """An item that was handed in: what comes of it, since when a thread is at it, and which."""

    future: Future[Result] = field(default_factory=Future)
    since: float | None = None
    thread: threading.Thread | None = None


class Threads(Generic[Item, Result]):
    """A few threads that end with the program, even if they hang.

    Args:
        function: What they run.
        count: How many.
        timeout: Seconds for one item.

    Example:
        >>> threads = Threads(len, 2, 1.0)
        >>> threads.result(threads.submit("abc"))
        3
        >>> threads.end()
    """

    def __init__(self, function: Callable[[Item], Result], count: int, timeout: float) -> None:
        self.function, self.count, self.timeout = function, count, timeout
        self._todo: SimpleQueue[tuple[Item, Call[Result]] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        for _ in range(count):
            self._start()

    def submit(self, item: Item) -> Call[Result]:
        """Hands in an item."""
        call = Call[Result]()
        self._todo.put((item, call))
        return call

    def result(self, call: Call[Result]) -> Result:
        """What came of an item; errors are raised, once.

        Raises:
            VideoError: Nothing within the time.
        """
        while True:
            left = LOOK_SECONDS if call.since is None else call.since + self.timeout - time.monotonic()
            try:
                return call.future.result(max(0.0, left))
            except TimeoutError:
                if call.future.done():
                    raise  # of the function itself
                if call.since is not None and time.monotonic() >= call.since + self.timeout:
                    assert call.thread is not None
                    self._threads.remove(call.thread)
                    self._start()
                    raise VideoError(f"no answer within {self.timeout:g} s") from None
            except BaseException:
                # An error keeps what its traceback saw: the caller, who keeps the call, which must not keep the error.
                call.future = Future()
                raise

    def end(self) -> None:
        """Ends the threads that do not hang, once they are done with their item.

        They are waited for: a thread that is still about to end when Python ends can abort the whole program.
        """
        while not self._todo.empty():
            self._todo.get()
        for _ in range(self.count):
            self._todo.put(None)
        deadline = time.monotonic() + END_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _start(self) -> None:
        self._threads.append(threading.Thread(target=self._run, daemon=True))
        self._threads[-1].start()

    def _run(self) -> None:
        while (given := self._todo.get()) is not None:
            item, call = given
            call.thread, call.since = threading.current_thread(), time.monotonic()
            try:
                call.future.set_result(self.function(item))
            except BaseException as error:
                call.future.set_exception(error)
