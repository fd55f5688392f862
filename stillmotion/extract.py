"""`stillmotion extract`: what a teacher makes of the videos of a table, stored so that trainings need not run it.

Rows are stored by sample and draw; `features.py` says what they are valid for.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from stillmotion.config import DataConfig, ModelConfig
from stillmotion.data.cluster import map_items
from stillmotion.data.dataset import Item, VideoDataset, collate
from stillmotion.data.faults import FLOW_SECONDS
from stillmotion.data.pool import Apart, Failure
from stillmotion.data.remote import local
from stillmotion.data.store import FeatureStore
from stillmotion.data.table import Sample, Table, read_table
from stillmotion.data.watched import Watched
from stillmotion.device import pick_device
from stillmotion.features import feature_fields, is_still, make_key, note_sizes
from stillmotion.methods.hallucinate import feature_of
from stillmotion.models.encoder import Encoder
from stillmotion.models.factory import load_model
from stillmotion.progress import progress_bar
from stillmotion.run import BROKEN, Run
from stillmotion.tasks import UNLABELLED, task_of
from stillmotion.view import View

NO_DRAW_NUMBER = -1


@dataclass(frozen=True)
class Extraction:
    """What `extract` did.

    Args:
        folder: The store.
        rows: Rows that it holds.
        added: Rows of this call.
        unreadable: Reason by sample; also in `broken.csv` of the folder.
        seconds: Time of this call.
    """

    folder: Path
    rows: int
    added: int
    unreadable: dict[str, str]
    seconds: float

    def summary(self) -> str:
        """One line."""
        text = f"{self.folder}: {self.rows} rows, {self.added} of them new, in {self.seconds:.1f} s"
        if self.unreadable:
            text += f"; {len(self.unreadable)} unreadable, listed in {self.folder / BROKEN}"
        return text


def extract(
    table: str | Path | Table,
    teacher: ModelConfig | Encoder,
    output: str | Path,
    *,
    data: DataConfig,
    seed: int = 0,
    batch_size: int = 8,
    device: str = "auto",
    cluster: str | None = None,
    root: str | Path | None = None,
) -> Extraction:
    """Stores a teacher's embedding, logits and taps for every draw that a training with the same settings shows.

    Training samples get the rows of draw 0 to `data.num_draws` - 1; these and the samples of the other splits get one
    in which nothing is random, for evaluation. The same call goes on where it was stopped, and the store is then byte
    for byte that of an undisturbed call. A sample that cannot be read is listed and left out.

    Args:
        table: CSV or Parquet file, folder of class folders, or a table already read.
        teacher: By name or run folder, or ready. A classifier that is not trained for these classes is left out.
        output: Folder of the store.
        data: As the training will have it: splits, `num_draws`, augmentation, frame size, workers.
        seed: Seed of the training; decides the draws (and the weights of a random teacher).
        batch_size: Videos at once.
        device: `cpu`, `cuda`, ...; `auto` takes an accelerator if there is one.
        cluster: Ray cluster that reads and computes in place of this process and its loader, as in
            `stillmotion.data.cluster`.
        root: Folder that the table's relative paths start from.

    Raises:
        ValueError: A setting or the table is wrong, or the folder holds features that come from something else.
    """
    start = time.monotonic()
    rows = table if isinstance(table, Table) else read_table(table, root=root)
    if data.num_draws is None:
        raise ValueError("data.num_draws is not set: stored features hold a fixed number of draws; give it here and to "
                         "the training (1 if nothing is random)")  # fmt: skip
    splits = [split for split in (data.train, data.val, data.test) if split is not None]
    for split in splits:
        rows.select(split)  # says which splits there are
    used = rows.select(lambda sample: sample.split in splits)
    if isinstance(teacher, ModelConfig):
        task = task_of(rows, data)
        torch.manual_seed(seed + 1)  # as `train` seeds its teacher
        teacher = load_model(teacher, num_classes=task.num_outputs, class_names=task.output_names)
    if any(view.kind == "feature" for view in teacher.views.values()):
        raise ValueError("the teacher is itself a store of features; name the network")
    folder, key = local(output), make_key(teacher, data, seed)
    with FeatureStore.create(folder, key, feature_fields(teacher)) as store:
        note_sizes(folder, used)
        before = len(store)
        _fill(store, teacher, used, data, seed, batch_size, device, cluster)
        Run(folder).write_broken(used, store.errors, {})
        return Extraction(folder, len(store), len(store) - before, dict(store.errors), time.monotonic() - start)


class _Draws(Dataset[Item]):
    """Items by (draw number, row); number -1 is the draw without anything random."""

    def __init__(self, table: Table, views: dict[str, View], data: DataConfig, seed: int) -> None:
        options: dict[str, Any] = {
            "seed": seed,
            "augment": data.augment,
            "short_side": data.short_side,
            "packed": data.packed,
            "flow": data.flow,
        }
        self.still = VideoDataset(table, None, views, **options)
        self.drawn = VideoDataset(table, None, views, random=True, **options)

    def __len__(self) -> int:
        return len(self.still)

    def unread(self, row: int, reason: str) -> Item:
        """As `VideoDataset.unread`."""
        return self.still.unread(row, reason)

    def __getitem__(self, pair: tuple[int, int]) -> Item:
        number, row = pair
        return self.still[row] if number == NO_DRAW_NUMBER else self.drawn[number, row]

    def bare(self) -> "_Draws":
        """The same without its table: for processes that are told sample by sample what to read."""
        bare = copy(self)
        bare.still, bare.drawn = copy(self.still), copy(self.drawn)
        return bare.show(Table((), self.still.table.source))

    def show(self, table: Table) -> "_Draws":
        """Takes another table."""
        for dataset in (self.still, self.drawn):
            dataset.table, dataset.targets = table, [UNLABELLED] * len(table)
        return self


Chunk = list[tuple[int, int]]
"""Draw number and row of the samples of a batch; one number for all."""


def _chunks(store: FeatureStore, table: Table, numbers: dict[int, list[int]], size: int) -> Iterator[Chunk]:
    """Batches with something to do, of the rows of the table that each draw number needs.

    Their bounds do not depend on what is done, so that a resumed call computes every row in the same company, and so
    to the same bits, as an undisturbed one.
    """
    for number, rows in numbers.items():
        for first in range(0, len(rows), size):
            part = rows[first : first + size]
            if store.missing((table[row].id for row in part), [number]):
                yield [(number, row) for row in part]


def _fill(
    store: FeatureStore, teacher: Encoder, table: Table, data: DataConfig, seed: int, batch_size: int, device: str,
    cluster: str | None,
) -> None:  # fmt: skip
    """Computes and adds what is missing."""
    training = [row for row, sample in enumerate(table) if sample.split == data.train]
    plain, drawn = {NO_DRAW_NUMBER: list(range(len(table)))}, {n: training for n in range(data.num_draws or 0)}
    still = is_still(teacher.views, data.augment)
    chunks = list(_chunks(store, table, plain if still else plain | drawn, batch_size))
    views = {f"teacher/{name}": view for name, view in teacher.views.items()}
    draws, timeout = _Draws(table, views, data, seed), data.timeout if data.flow is None else FLOW_SECONDS
    if cluster is None:
        network = _Network(teacher, tuple(store.fields), device)
        items = DataLoader(Watched(draws, timeout), batch_sampler=chunks, num_workers=data.workers, collate_fn=collate)
        computed: Iterable[_Rows | Failure] = map(network, items)
    else:
        make = partial(_Worker, teacher.cpu(), tuple(store.fields), device, draws.bare(), timeout)
        orders = [[(number, row, table[row]) for number, row in chunk] for chunk in chunks]
        computed = (answer for _, answer in map_items(cluster, make, orders, gpu=device != "cpu"))
    with progress_bar() as bar:
        task = bar.add_task("extracting", total=sum(map(len, chunks)))
        for chunk, rows in zip(chunks, computed, strict=True):
            _add(store, table, chunk, rows)
            bar.advance(task, len(chunk))
    if still:
        for chunk in _chunks(store, table, drawn, batch_size):
            _repeat(store, table, chunk)


@dataclass(frozen=True)
class _Rows:
    """What came of a batch: the rows of the table that could be read, their outputs (B, N, D), and the others."""

    rows: list[int]
    outputs: dict[str, Any]
    errors: list[tuple[int, str]]


class _Network:
    """A teacher where it computes: batches in, stored fields out."""

    def __init__(self, teacher: Encoder, fields: Sequence[str], device: str) -> None:
        self.device = pick_device(device)
        self.teacher, self.fields = teacher.to(self.device).eval(), fields

    @torch.inference_mode()
    def __call__(self, batch: dict[str, Any]) -> _Rows:
        rows = batch["index"].tolist()
        if not rows:
            return _Rows([], {}, batch["errors"])
        moved = {k: v.to(self.device) for k, v in batch.items() if isinstance(v, Tensor)}
        outputs = self.teacher.from_batch(moved, "teacher")
        found = {name: feature_of(outputs, name).float().cpu().numpy() for name in self.fields}
        return _Rows(rows, found, batch["errors"])


Order = tuple[int, int, Sample]
"""Draw number, row and sample: what a worker of a cluster, which has no table, must know."""


class _Worker:
    """What a worker of a cluster keeps: the network, and beside it the process that reads."""

    def __init__(self, teacher: Encoder, fields: Sequence[str], device: str, draws: _Draws, timeout: float) -> None:
        self.network = _Network(teacher, fields, device)
        self.read = Apart(partial(_read, draws), timeout)
        self.lost: dict[int, str] = {}

    def __call__(self, orders: list[Order]) -> _Rows:
        return self.network(collate([self._item(order) for order in orders]))

    def _item(self, order: Order) -> Item:
        row = order[1]
        answer = Failure(self.lost[row]) if row in self.lost else self.read(order)
        if isinstance(answer, Failure):
            self.lost[row] = answer.reason  # its other draws would end no better
            return {"index": row, "error": answer.reason}
        if isinstance(answer, Exception):
            raise answer
        return {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in answer.items()}


def _read(draws: _Draws, order: Order) -> Item | Exception:
    """An item with NumPy's arrays: tensors would come with open files. An error is not the sample's fault."""
    number, row, sample = order
    try:
        item = draws.show(Table((sample,), draws.still.table.source))[number, 0]
    except Exception as error:
        return error
    return {k: v.numpy() if isinstance(v, Tensor) else v for k, v in item.items()} | {"index": row}


def _add(store: FeatureStore, table: Table, chunk: Chunk, batch: _Rows | Failure) -> None:
    """Adds the missing rows of a batch, and what could not be read."""
    if isinstance(batch, Failure):
        batch = _Rows([], {}, [(row, batch.reason) for _, row in chunk])
    number = chunk[0][0]
    errors = [(table[row].id, reason) for row, reason in batch.errors]
    if errors := [(name, reason) for name, reason in errors if name not in store.errors]:
        store.add_errors(errors)
    samples = [(k, table[row].id) for k, row in enumerate(batch.rows)]
    store.add((s, number, {f: v[k] for f, v in batch.outputs.items()}) for k, s in samples if not store.has(s, number))


def _repeat(store: FeatureStore, table: Table, chunk: Chunk) -> None:
    """Rows of a draw that looks like the one without anything random."""
    missing = store.missing((table[row].id for _, row in chunk), [chunk[0][0]])
    store.add((s, number, {f: store.get(s, NO_DRAW_NUMBER, f) for f in store.fields}) for s, number in missing)
