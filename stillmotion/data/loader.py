"""Which samples stand in which batch, as a function of seed and epoch; and the loader that serves them."""

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from stillmotion.data.dataset import VideoDataset, collate
from stillmotion.data.faults import FLOW_SECONDS, TIMEOUT_SECONDS
from stillmotion.data.watched import Watched

Pair = tuple[int, int]


class EpochBatches(Sampler[list[Pair]]):
    """Batches of (epoch, row) pairs. Workers need no shared state: each pair says which draw it wants.

    The order is a function of seed and epoch alone, so an epoch can be entered at any batch, by any number of
    workers. Processes see disjoint parts of the same batches, however many they are. Of a rest that has not enough
    samples for all (two each, if a full batch has) some get an empty list.

    Args:
        size: Number of samples.
        batch_size: Samples in a batch over all processes.
        seed: Seed of the order.
        shuffle: A new order every epoch, or that of the table.
        drop_last: Leave out a last batch that is not full, unless it is the only one.
        steps: Cut every epoch after so many batches.
        rank, world: This process, and the number of processes.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        steps: int | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if not 1 <= world <= min(size, batch_size):
            raise ValueError(
                f"{size} samples in batches of {batch_size} do not give each of {world} processes one; use fewer"
            )
        self.size, self.batch_size, self.seed, self.shuffle = size, batch_size, seed, shuffle
        self.rank, self.world = rank, world
        full, rest = divmod(size, batch_size)
        bounds = [batch_size * k for k in range(full + 1)]
        if rest and (not full or not drop_last):
            bounds.append(size)
        self.bounds = bounds if steps is None else bounds[: steps + 1]
        self.epoch = self.start = 0

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Chooses the epoch, and the batch it is entered at: the next iteration gives the batches from there on."""
        self.epoch, self.start = epoch, start_batch

    def __len__(self) -> int:
        """Batches of a whole epoch, wherever it is entered."""
        return len(self.bounds) - 1

    def __iter__(self) -> Iterator[list[Pair]]:
        rows = list(range(self.size))
        if self.shuffle:
            random.Random(f"{self.seed}/{self.epoch}").shuffle(rows)
        epoch = self.epoch
        for first, last in list(zip(self.bounds, self.bounds[1:], strict=False))[self.start :]:
            yield [(epoch, row) for row in self._mine(rows[first:last])]

    def _mine(self, batch: list[int]) -> list[int]:
        least = min(2, self.batch_size // self.world)  # batch norm cannot learn from one
        sharers = min(self.world, max(1, len(batch) // least))
        return batch[self.rank :: sharers] if self.rank < sharers else []


def make_loader(
    dataset: VideoDataset, batches: EpochBatches, *, workers: int = 0, timeout: float = TIMEOUT_SECONDS
) -> DataLoader[dict[str, Any]]:
    """A loader whose batches are the same for any number of workers.

    Args:
        dataset: The samples.
        batches: Their order; `batches.set_epoch` before each epoch, also with workers that stay alive.
        workers: Loader processes; 0 loads in this process.
        timeout: Seconds after which a sample is given up; only with workers, and not where flow is added to a store.
    """
    assert batches.size == len(dataset)
    return DataLoader(
        Watched(dataset, timeout if dataset.flow is None else FLOW_SECONDS),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
