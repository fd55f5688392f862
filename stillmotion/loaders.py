"""What the engine trains on: the samples of a table, batch by batch, for one of several processes."""

import math
import signal
from collections.abc import Iterable

from torch.utils.data import DataLoader

from stillmotion.config import DataConfig, OptimConfig
from stillmotion.data.dataset import VideoDataset
from stillmotion.data.loader import EpochBatches, make_loader
from stillmotion.data.table import Table
from stillmotion.models.encoder import Batch
from stillmotion.tasks import Task
from stillmotion.view import View


class VideoLoaders:
    """Training and validation batches of a table.

    Args:
        train: Samples to train on.
        val: Samples to validate on, or None.
        task: Encodes the targets.
        views: What a training batch holds, by `role/view`; of these, validation takes those of the student.
        data: How samples are read and drawn.
        optim: Batch size, accumulation, steps of an epoch.
        seed: Of the order of the samples and of their draws.

    Raises:
        ValueError: `batch_size` is not a multiple of `accumulate`; a view or store does not fit.
    """

    def __init__(
        self,
        train: Table,
        val: Table | None,
        task: Task,
        views: dict[str, View],
        data: DataConfig,
        optim: OptimConfig,
        *,
        seed: int,
    ) -> None:
        if optim.batch_size % optim.accumulate:
            raise ValueError(
                f"optim.batch_size={optim.batch_size} is no multiple of optim.accumulate={optim.accumulate}; it is the "
                "size of the whole step, computed in so many equal parts"
            )
        self._data, self._optim, self._seed = data, optim, seed
        self.train_ids = [s.id for s in train]
        self.val_ids = [s.id for s in val] if val else []
        self._train = VideoDataset(
            train,
            task,
            views,
            seed=seed,
            augment=data.augment,
            random=True,
            num_draws=data.num_draws,
            short_side=data.short_side,
            packed=data.packed,
            flow=data.flow,
            as_read=data.geometry == "device",
        )
        seen = {key: view for key, view in views.items() if key.startswith("student/")}
        self._val = still(val, task, seen, data) if val else None
        self.steps_per_epoch = math.ceil(len(self._batches(0, 1)) / optim.accumulate)

    def _batches(self, rank: int, world_size: int) -> EpochBatches:
        size, part = len(self._train), self._optim.batch_size // self._optim.accumulate
        steps = self._optim.steps_per_epoch
        return EpochBatches(
            size,
            part,
            seed=self._seed,
            # Batch norm cannot learn from a single sample; the order changes, so that it is another every epoch.
            drop_last=size % part < 2,
            steps=steps * self._optim.accumulate if steps else None,
            rank=rank,
            world=world_size,
        )

    def train(self, rank: int, world_size: int) -> tuple[EpochBatches, Iterable[Batch]]:
        """Order and batches of the training samples, for one process."""
        batches = self._batches(rank, world_size)
        return batches, loader(self._train, batches, self._data)

    def val(self, rank: int, world_size: int) -> Iterable[Batch] | None:
        """Batches of the validation samples, for one process; None without validation."""
        if self._val is None:
            return None
        size = max(self._optim.batch_size // self._optim.accumulate, world_size)
        batches = EpochBatches(len(self._val), size, shuffle=False, rank=rank, world=world_size)
        return loader(self._val, batches, self._data)


def still(table: Table, task: Task | None, views: dict[str, View], data: DataConfig) -> VideoDataset:
    """The samples of a table with nothing random, as evaluation sees them."""
    return VideoDataset(table, task, views, short_side=data.short_side, packed=data.packed, flow=data.flow)


def loader(dataset: VideoDataset, batches: EpochBatches, data: DataConfig) -> DataLoader[Batch]:
    """As `make_loader`, with workers that leave Ctrl-C to the main process."""
    made = make_loader(dataset, batches, workers=data.workers, timeout=data.timeout)
    made.worker_init_fn = _ignore_interrupt
    return made


def _ignore_interrupt(_worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
