"""Jobs that depend on each other, each in its own process, some side by side.

A process a job keeps the memory of one training from the next, and a job that is killed takes no other with it.
"""

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from stillmotion.data.faults import one_line
from stillmotion.data.pool import end_with_parent
from stillmotion.data.remote import RemoteError
from stillmotion.memory import keep_memory

REASON = 2000
"""Letters of a failure that are passed on; the log has all."""


@dataclass(frozen=True)
class Job:
    """One piece of work.

    Args:
        name: Unique; also the name of its log file.
        function: Of a module (workers import it); its result is discarded, so it writes files.
        arguments: Its keyword arguments; pickled.
        after: Names of jobs that must have succeeded before.
        lock: Jobs with the same one never run side by side; empty: no such rule.
    """

    name: str
    function: Callable[..., object]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    lock: str = ""


Report = Callable[[str, str, str | None], None]


def run_jobs(
    jobs: Sequence[Job],
    *,
    logs: Path,
    workers: int = 1,
    preload: Sequence[str] = (),
    report: Report | None = None,
) -> dict[str, str]:
    """Runs all jobs; a failure stops only the jobs that come after it.

    Args:
        jobs: In the order in which they are tried. Jobs named in `after` that are not here count as done.
        logs: Folder of `<job>.log`, what each job printed (with the traceback of a failure).
        workers: Jobs side by side.
        preload: Modules that every job needs, imported once.
        report: Called with name, `started`/`done`/`failed`, and the reason of a failure.

    Returns:
        Reason in one line by name of every job that failed or could not start.

    Raises:
        KeyboardInterrupt: After Ctrl-C; running jobs are ended first.
    """
    report = report or (lambda name, state, reason: None)
    context = _context(preload)
    waiting, failed = list(jobs), dict[str, str]()
    running: dict[str, tuple[BaseProcess, multiprocessing.connection.Connection]] = {}
    locks: dict[str, str] = {}
    try:
        while waiting or running:
            for job in list(waiting):
                open_names = {j.name for j in waiting} | set(running)
                if broken := next((name for name in job.after if name in failed), None):
                    waiting.remove(job)
                    failed[job.name] = f"not run, as {broken} failed"
                    report(job.name, "failed", failed[job.name])
                elif len(running) < workers and not open_names & set(job.after) and job.lock not in locks.values():
                    waiting.remove(job)
                    locks |= {job.name: job.lock} if job.lock else {}
                    report(job.name, "started", None)
                    running[job.name] = _start(context, job, logs, workers)
            if not running:
                assert not waiting or any(n in failed for j in waiting for n in j.after), "jobs wait for each other"
                continue
            for name in _ended(running):
                process, pipe = running.pop(name)
                locks.pop(name, None)
                if reason := _outcome(process, pipe):
                    failed[name] = reason
                report(name, "failed" if reason else "done", reason)
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.join(10)
            process.kill()
    return failed


def _context(preload: Sequence[str]) -> Any:
    """Processes that start clean, with slow imports done once where the system can fork from a clean server."""
    if sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    return context


def _start(
    context: Any, job: Job, logs: Path, workers: int
) -> tuple[BaseProcess, multiprocessing.connection.Connection]:
    here, there = context.Pipe(duplex=False)
    log = logs / f"{job.name.replace('/', '.')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    # Not a daemon: a job starts loader processes of its own.
    process = context.Process(target=_work, args=(job, log, workers, there), name=job.name)
    process.start()
    there.close()
    return process, here


def _ended(running: Mapping[str, tuple[BaseProcess, multiprocessing.connection.Connection]]) -> list[str]:
    names = {process.sentinel: name for name, (process, _) in running.items()}
    return [names[s] for s in multiprocessing.connection.wait(list(names)) if isinstance(s, int)]


def _outcome(process: BaseProcess, pipe: multiprocessing.connection.Connection) -> str | None:
    process.join()
    code = process.exitcode or 0
    try:
        reason = pipe.recv() if pipe.poll() else None
    except EOFError:
        reason = None
    pipe.close()
    if reason is not None:
        return str(reason)
    if code < 0:
        hint = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{hint}"
    return f"ended with code {code}" if code else None


def _work(job: Job, log: Path, workers: int, pipe: multiprocessing.connection.Connection) -> None:
    """In the worker: output to the log, a share of the processor's threads, one line for a failure."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of the terminal; the parent decides
    signal.signal(signal.SIGTERM, _interrupt)
    threading.Thread(target=end_with_parent, daemon=True).start()
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        _share_threads(workers)
        keep_memory()
        try:
            job.function(**job.arguments)
        except Exception as error:
            traceback.print_exc()
            text = one_line(error)
            known = isinstance(error, ValueError | RemoteError)
            pipe.send((text if known else f"{type(error).__name__}: {text}")[:REASON])  # it is read when we are gone
            sys.exit(1)
        except KeyboardInterrupt:
            sys.exit(130)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _share_threads(workers: int) -> None:
    """Threads of more jobs than cores wait for each other so long that everything takes five times as long."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = os.environ.get("OMP_NUM_THREADS", "")
    threads = max(1, min(count // workers, int(most) if most.isdecimal() else count))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(threads)
