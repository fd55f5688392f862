"""`stillmotion features`: what a network's layers say of the videos of a table, in one file for other tools.

Videos are read, and a stopped call goes on, as in `stillmotion extract`: until all rows are there, they grow in
`OUTPUT.part`.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from stillmotion.config import DataConfig
from stillmotion.data.store import EXTRACT_AGAIN, FeatureStore
from stillmotion.data.table import Table, read_table
from stillmotion.extract import NO_DRAW_NUMBER, extract
from stillmotion.methods.base import has_logits
from stillmotion.models.encoder import Encoder
from stillmotion.models.factory import create_model
from stillmotion.models.pretrained import is_run, read_config
from stillmotion.protocols.feature_file import VideoFeatures, check_output, write_features
from stillmotion.protocols.pooling import softmax
from stillmotion.run import BROKEN
from stillmotion.tasks import task_from_dict

Level = Literal["video", "clip"]
OUTPUTS = ("embedding", "logits", "prob")
"""Taps that every network has; others are names of its layers."""


@dataclass(frozen=True)
class Written:
    """What `extract_features` did.

    Args:
        path: The file.
        videos: Videos in it.
        unreadable: Reason by sample.
        broken: The list of these, if there are any.
    """

    path: Path
    videos: int
    unreadable: dict[str, str]
    broken: Path

    def summary(self) -> str:
        """One line."""
        text = f"{self.path}: {self.videos} videos"
        return text + (f"; {len(self.unreadable)} unreadable, listed in {self.broken}" if self.unreadable else "")


def extract_features(
    model: str,
    table: str | Path | Table,
    output: str | Path,
    *,
    taps: Sequence[str] = ("embedding",),
    num_clips: int = 20,
    level: Level = "video",
    weights: str | None = None,
    num_classes: int | None = None,
    view: dict[str, Any] | None = None,
    split: str | None = None,
    short_side: int | None = None,
    packed: str | None = None,
    flow: str | None = None,
    workers: int = 1,
    batch_size: int = 1,
    device: str = "auto",
    seed: int = 0,
    root: str | Path | None = None,
) -> Written:
    """Writes the features of every video of a table.

    Args:
        model: Run folder, or a network by name.
        table: CSV or Parquet file, folder of class folders, or a table already read.
        output: `.parquet` or `.npz`; replaced if it is there.
        taps: `embedding`, `logits`, `prob` (their softmax, clip by clip), or layers by name, whose maps are averaged
            over time and place (`LAYER:map`: all of their values in a row).
        num_clips: Clips of a video, in the middles of as many equal parts (the paper draws 20 at random).
        level: `video` writes the mean over the clips, `clip` one row a clip.
        weights: As in `ModelConfig`.
        num_classes: Of the classifier that the weights bring; for `logits` and `prob`. A run knows it.
        view: Settings of the network's view that differ.
        split: Only these samples.
        short_side, packed, flow: As in `DataConfig`.
        workers, batch_size, device: Where and how it runs; the batch counts videos.
        seed: Of a network without weights.
        root: Folder that the table's relative paths start from.

    Raises:
        ValueError: A wrong setting; an interrupted call with other settings is in the way; nothing can be read.
    """
    path, taps = Path(output), list(dict.fromkeys(taps))
    check_output(path, taps)
    rows = table if isinstance(table, Table) else read_table(table, root=root)
    used = rows.select(split) if split is not None else rows
    torch.manual_seed(seed)
    seen = {"moment": "uniform", "num_moments": num_clips, **(view or {})}
    encoder = _open(model, taps, weights, num_classes, seen)
    side = short_side if short_side is not None else encoder.short_side
    # One split of all samples, and no draw: everything is seen once, with nothing random.
    data = DataConfig(
        train="all", val=None, test=None, num_draws=0, short_side=side, packed=packed, flow=flow, workers=workers
    )
    everything = replace(used, samples=tuple(replace(s, split="all") for s in used))
    part = path.with_name(f"{path.name}.part")
    try:
        extract(everything, encoder, part, data=data, batch_size=batch_size, device=device)
    except ValueError as error:
        raise ValueError(str(error).replace(EXTRACT_AGAIN, f"delete {part}, or name another output")) from None
    store = FeatureStore(part)
    ids = [s.id for s in used if s.id not in store.errors]
    if not ids:
        name, reason = next(iter(store.errors.items()))
        raise ValueError(f"{rows.source}: none of {len(used)} samples can be read; the first: {name}: {reason}")
    info = {"model": model, "weights": weights, "level": level, "views": store.key["views"]}
    write_features(path, _gather(store, ids, taps, level, info))
    broken = path.with_name(f"{path.stem}_{BROKEN}")
    broken.unlink(missing_ok=True)
    if store.errors:
        os.replace(part / BROKEN, broken)
    shutil.rmtree(part)
    return Written(path, len(ids), dict(store.errors), broken)


def _open(
    model: str, taps: Sequence[str], weights: str | None, num_classes: int | None, view: dict[str, Any]
) -> Encoder:
    """The network with the layers watched.

    Raises:
        ValueError: There is no such network or layer, or no classifier where one is asked for.
    """
    wanted = [tap for tap in taps if tap in ("logits", "prob")]
    if is_run(model):
        num_classes = task_from_dict(read_config(Path(model))["task"]).num_outputs
    layers = [tap for tap in taps if tap not in OUTPUTS]
    encoder = create_model(model, num_classes=num_classes or 0, weights=weights, taps=layers, view=view)
    if wanted and not has_logits(encoder):
        raise ValueError(f"taps: {wanted[0]!r} needs the classifier of {model}; pass num_classes=, as its weights have")
    return encoder.eval()


def _gather(
    store: FeatureStore, ids: list[str], taps: Sequence[str], level: Level, info: dict[str, Any]
) -> VideoFeatures:
    """Rows out of the store, which holds (N, D) a video."""

    def rows(tap: str) -> NDArray[np.float32]:
        parts = []
        for name in ids:
            clips = store.get(name, NO_DRAW_NUMBER, "logits" if tap == "prob" else tap)
            clips = softmax(clips) if tap == "prob" else clips
            parts.append(clips.mean(0, keepdims=True) if level == "video" else clips)
        return np.concatenate(parts)

    arrays = {tap: rows(tap) for tap in taps}
    if level == "video":
        return VideoFeatures(ids, arrays, None, info)
    count = store.fields["embedding"][0]
    numbers = np.tile(np.arange(count, dtype=np.int64), len(ids))
    return VideoFeatures([name for name in ids for _ in range(count)], arrays, numbers, info)
