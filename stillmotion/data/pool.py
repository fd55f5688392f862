"""Runs a function over many items in worker processes, any of which may die or hang on an item."""

import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Generic, TypeVar

from stillmotion.data.faults import one_line

Item = TypeVar("Item")
Result = TypeVar("Result")
START_SECONDS = 600.0
"""How long a new process may take to import what it needs."""
TRIES = 2
"""Of an item whose process dies: it may have been another process that took all memory."""
GRACE_SECONDS = 5.0
"""How much longer than its parent waits for it a process waits for itself."""
END_SECONDS = 30.0
"""How long a process that has closed its line may take to be gone, on a busy machine."""


@dataclass(frozen=True)
class Failure:
    """No result for an item, and why."""

    reason: str


def run_apart(
    function: Callable[[Item], Result], items: Sequence[Item], *, workers: int, timeout: float
) -> Iterator[tuple[int, Result | Failure]]:
    """Yields each item's position with its result, as they come.

    Args:
        function: Importable by name; it runs in processes that share nothing with this one.
        items: What to call it with.
        workers: Number of processes, each with a thread here that tends it.
        timeout: Seconds after which an item is given up and its process is ended.

    Raises:
        RuntimeError: Processes do not even start.
    """
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, Result | Failure] | RuntimeError] = queue.SimpleQueue()
    for position in range(len(items)):
        todo.put(position)
    crew = [_Tender(function, items, todo, done, timeout) for _ in range(min(workers, len(items)))]
    try:
        for tender in crew:
            tender.start()
        for _ in items:
            result = done.get()
            if isinstance(result, RuntimeError):
                raise result
            yield result
    finally:
        for tender in crew:
            tender.end()


class _Tender(threading.Thread, Generic[Item, Result]):
    """Feeds one process, and starts another when it is lost."""

    def __init__(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        todo: "queue.SimpleQueue[int]",
        done: "queue.SimpleQueue[tuple[int, Result | Failure] | RuntimeError]",
        timeout: float,
    ):
        super().__init__(daemon=True)
        self.items, self.todo, self.done = items, todo, done
        self.reader = Apart(function, timeout)
        self.ended = False

    def run(self) -> None:
        try:
            while not self.ended:
                position = self.todo.get_nowait()
                self.done.put((position, self.reader(self.items[position])))
        except queue.Empty:
            pass
        except RuntimeError as error:
            self.done.put(error)

    def end(self) -> None:
        self.ended = True
        self.reader.end()


class Apart(Generic[Item, Result]):
    """A function that is called in a process beside this one, and in another where that is lost.

    Args:
        function: As of `Process`.
        timeout: Seconds after which an item is given up.

    Raises:
        RuntimeError: Processes do not even start.
    """

    def __init__(self, function: Callable[[Item], Result], timeout: float) -> None:
        self.function, self.timeout = function, timeout
        self.process: Process[Item, Result] | None = None
        self.ended = False

    def __call__(self, item: Item) -> Result | Failure:
        for _ in range(TRIES):
            self.process = self.process or Process(self.function)
            result = self.process.call(item, self.timeout)
            if not isinstance(result, Failure):
                break
            self.process = None
            if self.ended or result.reason.startswith("no answer"):  # a second time would take as long
                break
        return result

    def end(self) -> None:
        """Ends the process."""
        self.ended = True
        if self.process is not None:
            self.process.end()


class Process(Generic[Item, Result]):
    """A process that shares nothing with this one, and the line to it.

    Args:
        function: Importable by name (or pickled); what it remembers stays in that process.

    Raises:
        RuntimeError: It does not even start.
    """

    def __init__(self, function: Callable[[Item], Result]):
        context = multiprocessing.get_context("spawn")
        self.line, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(function, other), daemon=True)
        self.process.start()
        other.close()
        try:
            ready = self.line.poll(START_SECONDS) and self.line.recv() == "ready"
        except (EOFError, OSError):
            ready = False
        if not ready:
            self.end()
            raise RuntimeError("worker processes do not start: the system has no memory for them, or a program of "
                               "your own does not call this below `if __name__ == '__main__':`")  # fmt: skip

    def call(self, item: Item, timeout: float) -> Result | Failure:
        """The function's result; a failure ends the process."""
        try:
            self.line.send((item, timeout))
            if self.line.poll(timeout):
                result: Result | Failure = self.line.recv()
                if not isinstance(result, Failure):
                    return result
                failure = result
            else:
                failure = Failure(f"no answer within {timeout:g} s")
        except (EOFError, OSError):
            self.process.join(END_SECONDS)
            failure = Failure(f"its reader died ({how_ended(self.process.exitcode)})")
        self.end()
        return failure

    def end(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.join()


def how_ended(code: int | None) -> str:
    """How a process ended, from its exit code.

    Example:
        >>> how_ended(-9), how_ended(1)
        ('signal SIGKILL', 'exit code 1')
    """
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"


def _serve(function: Callable[[Item], Result], line: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    threading.Thread(target=end_with_parent, daemon=True).start()
    line.send("ready")
    while True:
        try:
            item, timeout = line.recv()
        except EOFError:
            return
        _end_after(timeout + GRACE_SECONDS)
        result: Result | Failure
        try:
            result = function(item)
        except Exception as error:
            result = Failure(f"{type(error).__name__}: {one_line(error)}")
        _end_after(0.0)
        line.send(result)


def end_with_parent() -> None:
    """Ends this process when its parent is gone (SIGKILL): nobody waits for it, and a second call may come."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "this runs in a process of its own"
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _end_after(seconds: float) -> None:
    """Has the system end this process, even in C; 0: not any more."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)
