"""`stillmotion flow`: the optical flow of every sample of a table, computed once into a flow store."""

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from stillmotion.data.cluster import map_apart
from stillmotion.data.faults import FLOW_SECONDS, one_line
from stillmotion.data.flow import RAFT
from stillmotion.data.flow_files import PARTS
from stillmotion.data.flow_store import FlowSettings, FlowStore
from stillmotion.data.journal import StoreError
from stillmotion.data.pool import Failure, run_apart
from stillmotion.data.table import Sample, Table, read_table
from stillmotion.progress import progress_bar
from stillmotion.run import BROKEN, Run

STALE_SECONDS = 3600.0


@dataclass(frozen=True)
class FlowReport:
    """What `compute_flow` did.

    Args:
        folder: The store.
        samples: In the table.
        added: Of this call.
        errors: Samples that cannot be read, with the reason.
        faults: Those that can be in part only.
        seconds: Time of this call.
    """

    folder: Path
    samples: int
    added: int
    errors: dict[str, str]
    faults: dict[str, str]
    seconds: float

    def __str__(self) -> str:
        stored = self.samples - len(self.errors)
        text = f"{self.folder}: {stored} samples, {self.added} of them new, in {self.seconds:.1f} s"
        broken = len(self.errors) + len(self.faults)
        return text + (f"; {broken} unreadable or only in part, listed in {self.folder / BROKEN}" if broken else "")


def compute_flow(
    table: str | Path | Table,
    output: str | Path,
    settings: FlowSettings = FlowSettings(),
    *,
    weights: str | None = None,
    device: str = "auto",
    workers: int = 2,
    cluster: str | None = None,
    timeout: float = FLOW_SECONDS,
    root: str | Path | None = None,
    progress: bool = True,
) -> FlowReport:
    """Adds the flow of all samples that a store does not have yet; a stopped call goes on.

    Args:
        table: The samples, of all splits.
        output: Folder of the store.
        settings: How the flow is made and stored.
        weights: Of RAFT: a file with torchvision's state dict, or `default`.
        device: Where RAFT computes.
        workers: Processes, each on one thread; 0 computes in this process.
        cluster: Ray cluster that computes in their place, as in `stillmotion.data.cluster`.
        timeout: Seconds after which a sample is given up; needs a worker. TV-L1 takes a second for a pair of frames.
        root: Folder that the table's relative paths start from; None: that of the table.
        progress: Show a progress bar.

    Raises:
        ValueError: The table or a setting is wrong, or the store there has other settings.
    """
    start = time.monotonic()
    table = table if isinstance(table, Table) else read_table(table, root=root)
    if settings.method in RAFT:
        from stillmotion.data.raft import raft_function, weights_name

        settings = replace(settings, weights=weights_name(weights))
        # Says what is wrong with them; a cluster may have a GPU that is not here.
        raft_function(settings.method, weights, device if cluster is None else "cpu")
    store = FlowStore.create(output, settings, weights=weights, device=device)
    store.check(table)
    _clean(store.folder / PARTS)
    todo = [sample for sample in table if not store.has(sample)]
    left = {sample.id for sample in todo}
    errors, faults = _known(store, [sample for sample in table if sample.id not in left])
    with progress_bar(shown=progress) as bar:
        task = bar.add_task("flow", total=len(table), completed=len(table) - len(todo))
        for position, answer in _answers(store, todo, cluster, workers, timeout):
            error, fault = (answer.reason, None) if isinstance(answer, Failure) else answer
            errors |= {todo[position].id: error} if error else {}
            faults |= {todo[position].id: fault} if fault else {}
            bar.advance(task)
    Run(store.folder).write_broken(table, errors, faults)
    return FlowReport(store.folder, len(table), len(todo) - len(errors), errors, faults, time.monotonic() - start)


Answer = tuple[str | None, str | None]
"""Why a sample cannot be read, and what is wrong with one that can be in part."""


def _answers(
    store: FlowStore, todo: list[Sample], cluster: str | None, workers: int, timeout: float
) -> Iterator[tuple[int, Answer | Failure]]:
    """Position and answer of each sample, as they come."""
    if cluster is not None:
        gpu = store.settings.method in RAFT and store.device != "cpu"
        return map_apart(cluster, partial(_work, store), todo, timeout=timeout, gpu=gpu, ordered=False)
    if workers:
        return run_apart(partial(_work, store), todo, workers=workers, timeout=timeout)
    return ((position, _add(store, sample)) for position, sample in enumerate(todo))


def _work(store: FlowStore, sample: Sample) -> Answer:
    """What a worker does, on one thread: the others have theirs."""
    import cv2

    cv2.setNumThreads(1)
    if store.settings.method in RAFT:
        import torch

        torch.set_num_threads(1)
    return _add(store, sample)


def _add(store: FlowStore, sample: Sample) -> Answer:
    try:
        return None, store.add(sample)["fault"]
    except (ValueError, OSError, MemoryError) as error:
        return one_line(error), None


def _known(store: FlowStore, samples: list[Sample]) -> tuple[dict[str, str], dict[str, str]]:
    """Of stored samples, damaged ones and those that could be read in part; the list may be that of a killed call."""
    errors: dict[str, str] = {}
    faults: dict[str, str] = {}
    for sample in samples:
        try:
            fault = store.layout.open(sample).entry["fault"]
        except StoreError as error:
            errors[sample.id] = one_line(error)
        else:
            faults |= {sample.id: fault} if fault else {}
    return errors, faults


def _clean(parts: Path) -> None:
    """Removes what killed calls left half done, and not what a training is just adding."""
    for path in parts.iterdir() if parts.is_dir() else ():
        pid = path.name.lstrip(".").partition("-")[0]  # a draft of a draft has a dot before
        # The clock may have jumped, and processes of other machines are not seen here: both must say that it is left.
        if not _runs(pid) and time.time() - path.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True)


def _runs(pid: str) -> bool:
    """Whether a process of this number runs here."""
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
