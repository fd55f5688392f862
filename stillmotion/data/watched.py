"""A data set whose samples are read in a process that may hang or die: a loader's worker loses the sample, not itself.

A decoder that hangs cannot be interrupted, only ended with its process, and torch's loaders end with the first of
their workers. So each worker has a reader of its own beside it, forked when it is first needed.
"""

import os
import pickle
import signal
from collections.abc import Sized
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Protocol

from torch.utils.data import Dataset, get_worker_info

from stillmotion.data.faults import TIMEOUT_SECONDS
from stillmotion.data.pool import Failure, how_ended

GRACE_SECONDS = 5.0
"""After which a reader whose worker is gone ends itself."""
TRIES = 2
"""Of a sample whose reader dies: it may have been another process that took all memory."""


class Readable(Sized, Protocol):
    """What is read: samples by row, or by a pair of which the row is the second."""

    def __getitem__(self, key: Any, /) -> Any: ...

    def unread(self, row: int, reason: str) -> Any:
        """What stands in the place of a sample that could not be read."""
        ...


class Watched(Dataset[Any]):
    """A data set that answers within a time, in loaders with workers; without workers it is as it was.

    Args:
        dataset: What is read.
        timeout: Seconds for one sample.

    Example:
        >>> class Rows(list):
        ...     def unread(self, row, reason):
        ...         return reason
        >>> Watched(Rows("ab"), 1.0)[1]
        'b'
    """

    def __init__(self, dataset: Readable, timeout: float = TIMEOUT_SECONDS) -> None:
        self.dataset, self.timeout = dataset, timeout
        self._reader: _Reader | None = None
        self._lost: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Any) -> Any:
        if get_worker_info() is None or not hasattr(os, "fork"):
            return self.dataset[key]
        row = int(key[1] if isinstance(key, tuple) else key)
        for _ in range(TRIES):
            if row in self._lost:
                break
            self._reader = self._reader or _Reader(self.dataset)
            answer = self._reader.ask(key, self.timeout)
            if not isinstance(answer, Failure):
                return answer
            self._reader = None
            reason = answer.reason
            if reason.startswith("no answer"):  # a second time would take as long
                self._lost[row] = reason
        else:
            self._lost[row] = reason
        return self.dataset.unread(row, self._lost[row])


class _Reader:
    """A forked copy of this process that reads, and the line to it."""

    def __init__(self, dataset: Readable) -> None:
        self.line, other = Pipe()
        self.pid = os.fork()
        if not self.pid:
            try:
                self.line.close()
                _serve(dataset, other)
            finally:
                os._exit(1)
        other.close()

    def ask(self, key: Any, timeout: float) -> Any:
        """The item; a failure ends the process."""
        try:
            self.line.send((key, timeout))
            if self.line.poll(timeout):
                answer = pickle.loads(self.line.recv_bytes())
                if isinstance(answer, Exception):
                    raise answer
                return answer
            os.kill(self.pid, signal.SIGKILL)
            failure = f"no answer within {timeout:g} s"
        except (EOFError, ConnectionError):
            failure = ""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.line.close()
        return Failure(failure or f"its reader died ({how_ended(code)})")


def _serve(dataset: Readable, line: Connection) -> None:
    """In the reader, until its worker hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    while True:
        try:
            key, timeout = line.recv()
        except (EOFError, OSError):
            os._exit(0)
        signal.setitimer(signal.ITIMER_REAL, timeout + GRACE_SECONDS)  # ends the process, even in C
        try:
            answer: Any = dataset[key]
        except Exception as error:
            answer = error
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        line.send_bytes(pickle.dumps(answer, pickle.HIGHEST_PROTOCOL))
