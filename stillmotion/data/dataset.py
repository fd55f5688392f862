"""Samples of a table as tensors: one decode for all views, a plain dict for every sample and batch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, default_collate

from stillmotion.data import geometry
from stillmotion.data.faults import one_line
from stillmotion.data.flow_store import FlowStore, open_flow
from stillmotion.data.source import FrameSource, Render, Videos, show
from stillmotion.data.store import FeatureStore, FrameStore
from stillmotion.data.table import Table
from stillmotion.data.transforms import render_view
from stillmotion.tasks import UNLABELLED, Task
from stillmotion.view import NO_DRAW, Augment, Draw, View

Item = dict[str, Any]
NO_AUGMENT = Augment()


class VideoDataset(Dataset[Item]):
    """The samples of a table as the views of several models see them.

    Args:
        table: The samples.
        task: Encodes the targets; None leaves every sample without one.
        views: By batch key, `role/view`.
        seed: Seed of the draws.
        augment: How much of a draw is random.
        random: Draw moments, boxes and flips; otherwise nothing is random.
        num_draws: Distinct draws a sample: epoch e shows draw e modulo this. None: a new draw every epoch.
        short_side: Reduce frames to this shorter side before any view's geometry; None keeps the full size, or that
            of `packed`.
        packed: Frame store that the frames are read from instead of the videos.
        flow: Flow store that views of flow read from; what it lacks is computed from the videos and added.
        as_read: Leave box, flip and size of the draws to `render_batch`.

    Raises:
        ValueError: A label is not among the task's classes; a store does not fit the table; a feature is missing.
    """

    def __init__(
        self,
        table: Table,
        task: Task | None,
        views: Mapping[str, View],
        *,
        seed: int = 0,
        augment: Augment = NO_AUGMENT,
        random: bool = False,
        num_draws: int | None = None,
        short_side: int | None = None,
        packed: str | Path | None = None,
        flow: str | Path | None = None,
        as_read: bool = False,
    ) -> None:
        self.render: Render = geometry.as_read if as_read else render_view
        self.table, self.seed, self.augment = table, seed, augment
        self.random, self.num_draws, self.epoch = random, num_draws, 0
        self.targets = [UNLABELLED if task is None else task.encode(s) for s in table]
        self.frame_views = {key: view for key, view in views.items() if view.kind != "feature"}
        self.source: FrameSource = Videos(short_side)
        if packed is not None:
            self.source = FrameStore(packed)
            self.source.check(table, short_side=short_side)
            short_side = self.source.short_side
        self.flow = open_flow(flow, views, short_side)
        if self.flow is not None:
            self.flow.check(table)
        self._check_outside(packed, flow)
        self.feature_views = {key: view for key, view in views.items() if view.kind == "feature"}
        folders = {view.source for view in self.feature_views.values() if view.source}
        self.features = {folder: self._open_features(folder) for folder in sorted(folders)}

    def _open_features(self, folder: str) -> FeatureStore:
        if self.random and self.num_draws is None:
            raise ValueError(
                f"{folder}: stored features hold a fixed number of draws; set data.num_draws to that number"
            )
        store = FeatureStore(folder)
        numbers = range(self.num_draws or 1) if self.random else (-1,)
        if missing := store.missing([s.id for s in self.table], numbers):
            total = len(self.table) * len(numbers)
            raise ValueError(
                f"{folder}: features of {len(missing)} of {total} sample draws are missing, the first of "
                f"{missing[0][0]} draw {missing[0][1]}; run `stillmotion extract` on this table with these draws"
            )
        return store

    def _check_outside(self, packed: str | Path | None, flow: str | Path | None) -> None:
        """Stores hold the ranges of their samples and nothing around them."""
        if all(s.start is None and s.end is None for s in self.table):
            return
        for key, view in self.frame_views.items():
            store = flow if view.kind == "flow" and flow is not None else packed
            if view.outside and store is not None:
                raise ValueError(
                    f"{store}: holds the samples' ranges alone, and {key} looks outside of them; read the videos "
                    "themselves, or set view.outside=false"
                )

    def set_epoch(self, epoch: int) -> None:
        """The epoch of plain integer indices. Pairs (epoch, index), as `EpochBatches` gives them, carry their own."""
        self.epoch = epoch

    def draw_number(self, epoch: int) -> int:
        """Number of the draw that an epoch shows; -1 where nothing is random."""
        if not self.random:
            return -1
        return epoch % self.num_draws if self.num_draws else epoch

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int | tuple[int, int]) -> Item:
        """A sample.

        Args:
            index: Row of the table, or (epoch, row).

        Returns:
            `role/view` uint8 (N, T, C, H, W) (stored features float (N, D)), `target` and `index`; of a sample that
            cannot be read `index` and `error`, in one line. Of a partly readable file also `fault`.
        """
        epoch, row = index if isinstance(index, tuple) else (self.epoch, index)
        sample, number = self.table[row], self.draw_number(epoch)
        draw = NO_DRAW if number < 0 else Draw.of(self.seed, sample.id, number, self.augment)
        item: Item = {"index": row, "target": self.targets[row]}
        try:
            for key, view in self.feature_views.items():
                features = self.features[str(view.source)].get(sample.id, number, view.field)
                item[key] = torch.from_numpy(features)
            if self.frame_views:
                shown = show(self.source, sample, self.frame_views, draw, self.flow, render=self.render)
                item |= {key: torch.from_numpy(frames) for key, frames in shown.items()}
                if self.render is geometry.as_read:
                    for key, view in self.frame_views.items():
                        item |= geometry.weights_of(key, shown[key], view, draw) if geometry.is_deferred(view) else {}
                if fault := self._seen_by().extent(sample).fault:
                    item["fault"] = fault
        except (ValueError, OSError, MemoryError) as error:
            return self.unread(row, one_line(error))
        return item

    def unread(self, row: int, reason: str) -> Item:
        """What stands in the place of a sample that could not be read."""
        return {"index": row, "error": reason}

    def _seen_by(self) -> FrameSource | FlowStore:
        """What knows the frames; where all views see stored flow, no video is opened."""
        live = self.flow is None or any(view.kind != "flow" for view in self.frame_views.values())
        return self.source if live or self.flow is None else self.flow


def collate(items: Sequence[Item]) -> dict[str, Any]:
    """Joins samples to a batch.

    Args:
        items: As `VideoDataset` gives them.

    Returns:
        Tensors with a leading batch axis over the readable samples, `target` and `index` (B,) int64 among them, and
        `errors`, `faults`: (index, reason) of each sample that cannot be read, or only in part. Without any readable
        sample, B is 0 and the views are missing.
    """
    errors = [(item["index"], item["error"]) for item in items if "error" in item]
    faults = [(item["index"], item["fault"]) for item in items if "fault" in item]
    readable = [{k: v for k, v in item.items() if k != "fault"} for item in items if "error" not in item]
    empty = torch.empty(0, dtype=torch.int64)
    batch = default_collate(geometry.pad(readable)) if readable else {"index": empty, "target": empty.clone()}
    return {**batch, "errors": errors, "faults": faults}
