"""Samples as a report shows them: what a network sees of one, its film strip, its motion."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from stillmotion.data.flow import Vectors, grey_frames, optical_flow
from stillmotion.data.flow_store import FlowStore
from stillmotion.data.sampling import spread_evenly
from stillmotion.data.source import FrameSource, show
from stillmotion.data.table import Sample
from stillmotion.models.encoder import Encoder
from stillmotion.report.html import MOST_STRIP
from stillmotion.report.subject import Subject
from stillmotion.view import NO_DRAW, View, visible

Frames = NDArray[np.uint8]
STEPS = 8
"""Steps from frame to frame over which motion is taken."""


@dataclass
class Clock:
    """Whether the time for a part of a report is used up."""

    seconds: float
    began: float = field(default_factory=time.monotonic)

    @property
    def out(self) -> bool:
        """Whether no time is left."""
        return time.monotonic() - self.began > self.seconds


@dataclass(frozen=True)
class Shelf:
    """Where the frames of samples come from.

    Args:
        source: Of frames.
        flow: Of stored flow; None computes it from the frames.
    """

    source: FrameSource
    flow: FlowStore | None = None

    @classmethod
    def of(cls, subject: Subject) -> "Shelf":
        """What the subject's networks were trained from."""
        flow = subject.data.get("flow")
        return cls(subject.frames(), FlowStore(flow) if flow and Path(flow).is_dir() else None)

    def inputs(self, sample: Sample, encoder: Encoder) -> dict[str, torch.Tensor]:
        """What a network's views show of a sample, (N, T, C, H, W) by name, nothing random."""
        shown = show(self.source, sample, encoder.views, NO_DRAW, self.flow)
        return {name: torch.from_numpy(frames) for name, frames in shown.items()}

    def pictures(self, sample: Sample, view: View) -> Frames:
        """Frames (N, T, H, W, 3) of a view of colours."""
        return show(self.source, sample, {"view": view}, NO_DRAW)["view"].transpose(0, 1, 3, 4, 2)

    def film(self, sample: Sample) -> Frames:
        """Some frames of the whole sample, (T, H, W, 3), in the order of time."""
        return self.source.read(sample, spread_evenly(self.source.extent(sample).num_frames, MOST_STRIP))

    def motion(self, sample: Sample, view: View) -> Vectors:
        """Mean speed of every pixel, in its main direction, in the steps that follow the first moment; (H, W, 2).

        Farnebäck's flow, as it finds no motion where the picture has no detail.
        """
        seen = replace(view, num_moments=1, num_frames=STEPS + 1, stride=1, fps=None, clip="start")
        grey = grey_frames(list(self.pictures(sample, seen)[0]), stretch=False)
        fields = np.stack(optical_flow(list(pairwise(grey)), "farneback"))
        mean, speed = fields.mean(0), np.linalg.norm(fields, axis=-1).mean(0)
        scale = speed / np.maximum(np.linalg.norm(mean, axis=-1), 1e-6)
        return np.asarray(mean * scale[..., None], np.float32)


def nearest_frame(shelf: Shelf, sample: Sample, view: View, frame: int) -> tuple[int, int]:
    """Moment (its first crop) and place in the clip of the frame of a view that is nearest to one of the sample."""
    indices = shelf.source.extent(sample).frames_of(visible(view), NO_DRAW)
    moment, place = np.unravel_index(np.abs(indices - frame).argmin(), indices.shape)
    return int(moment) * view.num_crops, int(place)


def first_frame(shelf: Shelf, sample: Sample, view: View) -> int:
    """The frame of the sample that a view's first moment shows first."""
    return int(shelf.source.extent(sample).frames_of(visible(view), NO_DRAW)[0, 0])


@torch.inference_mode()
def outputs_of(encoder: Encoder, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a network gives for one sample, of `Shelf.inputs`; a batch of one."""
    device = next(encoder.parameters()).device
    return encoder.from_batch({f"student/{name}": x[None].to(device) for name, x in inputs.items()}, "student")


def labels(samples: Sequence[Sample], column: str) -> list[str]:
    """What the table says of samples."""
    return [sample.targets.get(column, "no label") for sample in samples]
