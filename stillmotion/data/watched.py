"""A data set whose samples are read in a process that may hang or die: a loader's worker loses the sample, not itself.

A decoder that hangs cannot be interrupted, only ended with its process, and torch's loaders end with the first of
their workers. So each worker has a reader of its own beside it, forked when it is first needed.
"""

import io
import os
import pickle
import signal
from collections import Counter
from collections.abc import Iterator, Sequence, Sized
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Protocol

import torch
from torch.utils.data import Dataset, get_worker_info

from stillmotion.data.faults import TIMEOUT_SECONDS
from stillmotion.data.pool import GRACE_SECONDS, TRIES, Failure, how_ended


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
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Any]) -> list[Any]:
        """The samples of a batch: the reader is at the next one while this process unpacks the last."""
        if get_worker_info() is None or not hasattr(os, "fork"):
            return [self.dataset[key] for key in keys]
        rows = [int(key[1] if isinstance(key, tuple) else key) for key in keys]
        answers: dict[int, Any] = {}
        tries: Counter[int] = Counter()
        while todo := [k for k, row in enumerate(rows) if k not in answers and row not in self._lost]:
            reader = self._reader = self._reader or _Reader(self.dataset)
            for k, answer in zip(todo, reader.ask([keys[k] for k in todo], self.timeout), strict=False):
                if isinstance(answer, Failure):
                    self._reader = None
                    tries[k] += 1
                    # A second wait would take as long.
                    if answer.reason.startswith("no answer") or tries[k] == TRIES:
                        self._lost[rows[k]] = answer.reason
                elif isinstance(answer, Exception):
                    reader.end()
                    self._reader = None
                    raise answer
                else:
                    answers[k] = answer
        return [answers[k] if k in answers else self.dataset.unread(r, self._lost[r]) for k, r in enumerate(rows)]


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

    def ask(self, keys: Sequence[Any], timeout: float) -> Iterator[Any]:
        """The samples one after another, an exception in the place of one; a failure is the last, and ends the process.

        Args:
            keys: What to read.
            timeout: Seconds for each.
        """
        try:
            self.line.send((keys, timeout))
            for _ in keys:
                if not self.line.poll(timeout):
                    self.end()
                    yield Failure(f"no answer within {timeout:g} s")
                    return
                yield pickle.loads(self.line.recv_bytes())
        except (EOFError, ConnectionError):
            yield Failure(f"its reader died ({how_ended(self._wait())})")

    def end(self) -> None:
        """Ends the process."""
        os.kill(self.pid, signal.SIGKILL)
        self._wait()

    def _wait(self) -> int:
        self.line.close()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _serve(dataset: Readable, line: Connection) -> None:
    """In the reader, until its worker hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    while True:
        try:
            keys, timeout = line.recv()
            for key in keys:
                signal.setitimer(signal.ITIMER_REAL, timeout + GRACE_SECONDS)  # ends the process, even in C
                try:
                    answer: Any = dataset[key]
                except Exception as error:
                    answer = error
                signal.setitimer(signal.ITIMER_REAL, 0.0)
                packed = io.BytesIO()
                _Pickler(packed, pickle.HIGHEST_PROTOCOL).dump(answer)
                line.send_bytes(packed.getbuffer())
        except (EOFError, OSError):
            os._exit(0)


class _Pickler(pickle.Pickler):
    """Packs tensors as arrays, in a tenth of the time."""

    def reducer_override(self, value: Any) -> Any:
        return (torch.from_numpy, (value.numpy(),)) if isinstance(value, torch.Tensor) else NotImplemented
