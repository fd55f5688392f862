"""Work on many videos over a Ray cluster: `--cluster` of `extract`, `flow`, `pack`, `predict` and `data check`.

Every core has a worker (an actor of Ray) that gets one item after the other. What is done with an item, in which
process it is read, and what is written of it, is the commands' own: results come here in the order of the items, and
one writer stores them as on one machine. Ray's actors and not Ray Data: that keeps no account of an item whose worker
is lost again and again, wants all items in its memory at once, and takes pandas along.
"""

import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from typing import Any, TypeVar

from stillmotion.data.faults import one_line
from stillmotion.data.pool import Apart, Failure

Item = TypeVar("Item")
Result = TypeVar("Result")
LOSSES = 8
"""Times that an item may lose its worker (with its machine, or for want of memory) before it is given up."""
AHEAD = 4
"""Items for each worker that may be under way or done before their turn: more are not handed out, so that neither a
slow item nor a slow disk lets results pile up."""
WORKERS_A_GPU = 4
"""Each with its own copy of the network: while one reads, another computes."""
CONNECT_SECONDS = 20.0
LOOK_SECONDS = 5.0
"""How often it is looked whether the cluster has grown."""
PARENT_BYTES = 107 - len("/stillmotion-ray-12345678/session_2026-11-22_10-00-00_123456_1234567/sockets/plasma_store")
"""Of a folder below which Ray's sockets can lie: the system allows 107 in all."""
LOG_SECONDS = 60.0
"""Between lines on what is done, where no terminal shows a bar."""
WAIT_SECONDS = 30.0
"""Without any worker, after which it is said that no core is free."""

TOKEN_HINT = "where it asks for a token: RAY_AUTH_MODE=token and the same ~/.ray/auth_token on every machine"


def map_apart(
    address: str, function: Callable[[Item], Result], items: Sequence[Item], *, timeout: float, gpu: bool = False,
    ordered: bool = True,
) -> Iterator[tuple[int, Result | Failure]]:  # fmt: skip
    """`pool.run_apart` over a cluster: yields each item's position with its result.

    Args:
        address: See `map_items`.
        function: Importable by name, or pickled; it runs in processes beside the workers.
        items: What to call it with.
        timeout: Seconds after which an item is given up and its process is ended.
        gpu: See `map_items`.
        ordered: See `map_items`.
    """
    return map_items(address, partial(Apart, function, timeout), items, gpu=gpu, ordered=ordered)


def map_items(
    address: str, make: Callable[[], Callable[[Item], Result]], items: Sequence[Item], *, gpu: bool = False,
    ordered: bool = True,
) -> Iterator[tuple[int, Result | Failure]]:  # fmt: skip
    """Yields each item's position with its result; every core of the cluster has a worker.

    Args:
        address: `local` starts Ray on this machine for as long as this takes; HOST:PORT is the head of a cluster that
            this machine belongs to. Where Ray is connected already, that is taken.
        make: Called once by each worker, in this process's folder; gives what is called with the items. Pickled.
        items: Pickled.
        gpu: Whether workers take a share of a GPU where the cluster has some.
        ordered: Whether results come in the order of the items. Then one that hangs lets the others go on only a
            little further; without, only what it occupies itself stands still.

    Raises:
        ValueError: Ray is missing or does not answer, or `make` or what it gave raised an error.
    """
    if not items:
        return
    with connected(address) as ray, closing(_Crew(ray, make, items, gpu, ordered).answers()) as answers:
        yield from answers


class _Crew:
    """The workers, seen from here: who is at what, and what is to be done again."""

    def __init__(
        self, ray: Any, make: Callable[[], Any], items: Sequence[Any], gpu: bool, ordered: bool = True
    ) -> None:
        self.ray, self.items, self.gpu, self.ordered = ray, items, gpu, ordered
        self.make = ray.put(make)
        self.losses: Counter[int] = Counter()
        self.again: list[int] = []  # a heap
        self.handed = 0
        self.starting: dict[Any, Any] = {}  # worker by what it answers when it is there
        self.busy: dict[Any, dict[Any, int]] = {}  # positions that a worker has, by what they will be, oldest first
        self.false_starts = 0
        self.looked = float("-inf")

    def answers(self) -> Generator[tuple[int, Any], None, None]:
        """Positions and results."""
        done: dict[int, Any] = {}
        notes = _Notes(len(self.items))
        try:
            for count in range(len(self.items)):
                while count not in done if self.ordered else not done:
                    if time.monotonic() >= self.looked + LOOK_SECONDS:
                        self._start()
                    self._hand_out(count)
                    done |= self._collect()
                    notes.say(count, len(self.busy))
                position = count if self.ordered else next(iter(done))
                answer = done.pop(position)
                if isinstance(answer, _Broken):
                    raise ValueError(f"on a machine of the cluster: {answer.reason}")
                yield position, answer
        finally:
            for worker in [*self.busy, *self.starting.values()]:
                self.ray.kill(worker)

    def _start(self) -> None:
        """Starts workers where the cluster has room for them."""
        self.looked = time.monotonic()
        have = self.ray.cluster_resources()
        most, gpus = int(have.get("CPU", 0)), have.get("GPU", 0) if self.gpu else 0
        most = min(most, int(gpus * WORKERS_A_GPU) if gpus else most, len(self.items))
        remote = self.ray.remote(num_cpus=1, num_gpus=1 / WORKERS_A_GPU if gpus else 0)(_Worker)
        while len(self.starting) + len(self.busy) < most:
            worker = remote.remote(self.make, os.getcwd())
            self.starting[worker.ready.remote()] = worker

    def _hand_out(self, given: int) -> None:
        """Gives every worker something to do and something to do next; results of `given` items are given away."""
        for held in (0, 1):
            for worker, orders in self.busy.items():
                if len(orders) > held:
                    continue
                if self.again:
                    number = heappop(self.again)
                elif self.handed < min(len(self.items), given + AHEAD * len(self.busy)):
                    number, self.handed = self.handed, self.handed + 1
                else:
                    return
                orders[worker.answer.remote(self.items[number])] = number

    def _collect(self) -> dict[int, Any]:
        """Answers by position, as soon as there are some; takes note of workers that came and went."""
        waiting = [*self.starting, *(order for orders in self.busy.values() for order in orders)]
        if not waiting:
            time.sleep(LOOK_SECONDS)
            return {}
        found: dict[int, Any] = {}
        for order in self.ray.wait(waiting, num_returns=1, timeout=LOOK_SECONDS)[0]:
            if order in self.starting:
                self._greet(self.starting.pop(order), order)
                continue
            worker = next(worker for worker, orders in self.busy.items() if order in orders)
            try:
                answer = self.ray.get(order)
            except self.ray.exceptions.RayError:
                found |= self._lose(worker)
            else:
                found[self.busy[worker].pop(order)] = answer
        return found

    def _greet(self, worker: Any, order: Any) -> None:
        try:
            self.ray.get(order)
        except self.ray.exceptions.RayError as error:
            self.false_starts += 1
            if self.false_starts >= LOSSES:
                raise ValueError(f"cluster: workers do not start ({one_line(error)[-300:]})") from None
        else:
            self.false_starts = 0
            self.busy[worker] = {}

    def _lose(self, worker: Any) -> dict[int, Failure]:
        """Has others do what a lost worker had. The oldest is what it was at; only that may have been the reason."""
        numbers = list(self.busy.pop(worker).values())
        self.ray.kill(worker)  # it may be there still, and have had no answer that can be sent
        self.losses[numbers[0]] += 1
        if self.losses[numbers[0]] < LOSSES:
            heappush(self.again, numbers[0])
        for number in numbers[1:]:
            heappush(self.again, number)
        given_up = self.losses[numbers[0]] >= LOSSES
        return {numbers[0]: Failure(f"its worker was lost {LOSSES} times")} if given_up else {}


@dataclass(frozen=True)
class _Broken:
    """The work itself cannot be done there, whatever the item."""

    reason: str


class _Worker:
    """What a worker keeps: the function, and with it the network and the process that reads.

    Args:
        make: Gives the function.
        folder: In which relative paths are meant.
    """

    def __init__(self, make: Callable[[], Callable[[Any], Any]], folder: str) -> None:
        self.make, self.folder = make, folder
        self.function: Callable[[Any], Any] | None = None
        # Processes that are started from here would import Ray's own program first.
        vars(sys.modules["__main__"]).pop("__file__", None)

    def ready(self) -> None:
        """Answers when the worker is there."""

    def answer(self, item: Any) -> Any:
        """The function's result."""
        try:
            if self.function is None:
                os.chdir(self.folder)
                self.function = self.make()
            return self.function(item)
        except FileNotFoundError as error:
            return _Broken(f"{one_line(error)}; all its machines must see the same files under the same names")
        except Exception as error:
            return _Broken(f"{type(error).__name__}: {one_line(error)}")


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """The module `ray`, connected; what was not before is disconnected (and ended, if started here) afterwards.

    Raises:
        ValueError: In one line: Ray is not installed, or does not answer.
    """
    # Read by what Ray starts. Its watch over memory ends whole workers; the system ends the process that took it.
    for name, value in (("RAY_USAGE_STATS_ENABLED", "0"), ("RAY_memory_monitor_refresh_ms", "0")):
        os.environ.setdefault(name, value)
    if address == "local":
        _take_own_token()
    try:
        import ray
    except ModuleNotFoundError:
        raise ValueError(f"cluster={address}: Ray is not installed; pip install 'stillmotion[cluster]'") from None
    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL, "configure_logging": True}
    if address != "local":
        _check_answers(address)
    with ExitStack() as afterwards:
        is_main = threading.current_thread() is threading.main_thread()
        if is_main:
            before = signal.getsignal(signal.SIGTERM)
            afterwards.callback(signal.signal, signal.SIGTERM, signal.SIG_DFL if before is None else before)
        if address == "local":
            quiet["include_dashboard"] = False
            quiet |= {"_temp_dir": folder} if (folder := _own_folder(afterwards)) else {}
        afterwards.callback(ray.shutdown)
        try:
            ray.init(address, **quiet)
        except SystemExit:  # Ray's own answer to SIGTERM
            raise KeyboardInterrupt from None
        except Exception as error:  # Ray raises that itself where its processes do not come up
            hint = "" if address == "local" else f"; {TOKEN_HINT}"
            raise ValueError(f"cluster={address}: Ray does not answer ({one_line(error)[:200]}{hint})") from None
        if is_main:
            signal.signal(signal.SIGTERM, _interrupt)  # Ray's own would end it in pages of its stack
        yield ray


def _interrupt(number: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one shall not leave Ray's processes behind
    raise KeyboardInterrupt


def _own_folder(afterwards: ExitStack) -> str | None:
    """A folder for what Ray writes, logs and spilled results, that is removed afterwards; Ray itself leaves it.

    None where sockets in it would have names that are too long for the system: then Ray must take its own.
    """
    parent = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if len(os.fsencode(parent)) > PARENT_BYTES:
        return None
    # Processes that Ray has only just ended may still write.
    folder = tempfile.TemporaryDirectory(prefix="stillmotion-ray-", dir=parent, ignore_cleanup_errors=True)
    return afterwards.enter_context(folder)


def _take_own_token() -> None:
    """A Ray that is started here takes orders from this process alone, and leaves no token behind.

    Without one of its own it would write `~/.ray/auth_token`, after which every `ray start --head` asks for it.
    """
    if "RAY_AUTH_MODE" in os.environ:
        return
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    if "ray" not in sys.modules:  # an imported Ray has read it, and sets it itself when it starts
        os.environ["RAY_AUTH_MODE"] = "token"


def _check_answers(address: str) -> None:
    """Ray itself tries for minutes, and writes pages about it."""
    host, colon, port = address.rpartition(":")
    if "/" in host or not (host and colon and port.isdigit()):
        raise ValueError(f"cluster={address}: give local, or HOST:PORT of `ray start --head`")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"cluster={address}: nothing answers there ({one_line(error)}); start it with `ray start --head`"
        ) from None


class _Notes:
    """Says from time to time how far it is, where no bar is shown, also while nothing gets done; and why that may be.

    Args:
        total: Number of items.
    """

    def __init__(self, total: int) -> None:
        self.total, self.start = total, time.monotonic()
        self.noted = self.manned = self.start
        self.told = False

    def say(self, done: int, workers: int) -> None:
        """To be called often, with the number of items that are done and of the workers that are there."""
        now = time.monotonic()
        self.manned = now if workers else self.manned
        if now - self.manned > WAIT_SECONDS and not self.told:
            print("stillmotion: no free core in the cluster yet; waiting", file=sys.stderr, flush=True)
            self.told = True
        if now - self.noted > LOG_SECONDS and not sys.stderr.isatty():
            rate = done / (now - self.start)
            print(f"stillmotion: {done} of {self.total}, {rate:.3g} a second", file=sys.stderr, flush=True)
            self.noted = now
