"""The real frames that an export is calibrated and checked with."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from stillmotion.data.faults import one_line
from stillmotion.data.flow import RAFT
from stillmotion.data.sampling import spread_evenly
from stillmotion.data.table import Sample, Table, read_table
from stillmotion.export.formats import Arrays
from stillmotion.models.encoder import Encoder
from stillmotion.networks import Inputs, TorchNetwork
from stillmotion.predict import Predictor
from stillmotion.progress import progress_bar
from stillmotion.run import Run
from stillmotion.tasks import Task


@dataclass(frozen=True)
class Frames:
    """Samples of a table as a network sees them.

    Args:
        predictor: Of the network in torch.
        valid: Samples to compare on; None where there is no table.
        train: Samples to calibrate with.
        where: The first, in words.
    """

    predictor: Predictor
    valid: Table | None
    train: Table | None
    where: str

    @classmethod
    def find(
        cls,
        folder: Path,
        encoder: Encoder,
        task: Task,
        *,
        table: str | None,
        split: str | None,
        root: str | None,
        max_samples: int | None,
    ) -> Self:
        """The table that is given, or that of the training if its file is there still.

        Raises:
            ValueError: The table is wrong.
        """
        predictor = Predictor(TorchNetwork(encoder.eval(), "cpu"), task, encoder.views, short_side=encoder.short_side)
        settings = Run(folder).settings if (folder / "settings.json").is_file() else {}
        known = settings.get("table")
        if table is None and known and Path(known).exists():
            table, root = known, root or settings.get("root")
        gone = f" (its training's table {known} is not here; give --table)" if table is None and known else ""
        if table is None or any(v.kind == "flow" and v.flow.method in RAFT for v in encoder.views.values()):
            return cls(predictor, None, None, f"random frames{gone}")
        rows, data = read_table(table, root=root), settings.get("data", {})
        names = [split] if split else [data.get("val"), "val", data.get("test"), "test"]
        chosen = split or next((name for name in names if name in rows.splits), None)
        valid = rows.select(chosen) if chosen is not None else rows
        task.check(valid)
        train = data.get("train", "train")
        where = f"{Path(rows.source).name}, {f'split {chosen}' if chosen else 'all samples'}"
        return cls(predictor, _spread(valid, max_samples), rows.select(train) if train in rows.splits else rows, where)

    def calibration(self, count: int, facts: Mapping[str, Any]) -> list[Arrays]:
        """Inputs of a network with these facts, from `count` training samples.

        Raises:
            ValueError: There is no table, or nothing in it can be read.
        """
        if self.train is None:
            raise ValueError("precision=int8 is calibrated with frames of the training: give its table as --table")
        seer = replace_frames(self.predictor, facts["preprocess"])
        found = [rows_of(inputs, facts["joins_moments"])
                 for _, inputs in self.read(seer, _spread(self.train, count), {})]  # fmt: skip
        if not found:
            raise ValueError(f"{self.train.source}: none of its samples can be read")
        return found

    @staticmethod
    def read(predictor: Predictor, table: Table, errors: dict[str, str]) -> Iterator[tuple[Sample, Inputs]]:
        """What a network sees of the samples that can be read; the others are noted in `errors`."""
        with progress_bar() as bar:
            for sample in bar.track(table, len(table), description="reading"):
                try:
                    seen = predictor.see(sample)
                except (ValueError, OSError) as error:
                    errors[sample.id] = one_line(error)
                    continue
                yield sample, seen.inputs


def replace_frames(predictor: Predictor, whole_frames: bool) -> Predictor:
    """The same that sees whole frames, or not."""
    return Predictor(predictor.network, predictor.task, predictor.views, short_side=predictor.short_side,
                     whole_frames=whole_frames)  # fmt: skip


def rows_of(inputs: Inputs, joins_moments: bool) -> Arrays:
    """(N, T, C, H, W) of a sample as a batch: of N rows, or of one row with N moments."""
    return {name: np.ascontiguousarray(x[None] if joins_moments else x) for name, x in inputs.items()}


def _spread(table: Table, count: int | None) -> Table:
    if count is None or count >= len(table):
        return table
    return replace(table, samples=tuple(table.samples[row] for row in spread_evenly(len(table), count)))
