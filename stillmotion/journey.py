"""From a file to a prediction, and how long every part of the way takes: the one way to measure it. No torch."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stillmotion.data.decode import forget
from stillmotion.data.source import Extent, FrameSource, show
from stillmotion.data.table import Sample
from stillmotion.networks import Inputs
from stillmotion.stopwatch import Stopwatch
from stillmotion.view import NO_DRAW, View

PARTS = ("decode", "flow", "preprocess", "network")


@dataclass(frozen=True)
class Seen:
    """What the views see of a sample.

    Args:
        inputs: Frames (N, T, C, H, W) by view.
        frames: Numbers of the different frames that were read, from the sample's first.
        fault: What is wrong with a file that can be read in part only.
        seconds: That reading took.
        decoding: Of these, until the frames were there; the rest made them what the network sees.
    """

    inputs: Inputs
    frames: NDArray[np.int64]
    fault: str | None
    seconds: float
    decoding: float


@dataclass(frozen=True, kw_only=True)
class Trip:
    """One sample, from its file to what a network says of it, in seconds.

    Args:
        decode: Opening the file, finding the frames among its packets, decoding them up to the last wanted one.
        flow: Computing optical flow.
        preprocess: Resampling and laying out what the network sees.
        network: The network, and reading its answer.
    """

    decode: float
    flow: float
    preprocess: float
    network: float

    @property
    def total(self) -> float:
        """All parts: nothing lies between them."""
        return self.decode + self.flow + self.preprocess + self.network


class _Recorded:
    """A frame source that notes which frames were read."""

    def __init__(self, source: FrameSource) -> None:
        self.source, self.frames = source, np.empty(0, np.int64)
        self.fault: str | None = None

    def extent(self, sample: Sample) -> Extent:
        extent = self.source.extent(sample)
        self.fault = extent.fault
        return extent

    def read(self, sample: Sample, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        self.frames = indices
        return self.source.read(sample, indices)


def look(source: FrameSource, sample: Sample, views: Mapping[str, View], watch: Stopwatch | None = None) -> Seen:
    """Reads what views see of a sample, as evaluation does: nothing is random, one decode serves all views.

    Args:
        source: Where the frames come from.
        sample: The sample.
        views: By name; frames and flow only.
        watch: Learns how long the parts take.

    Raises:
        ValueError: In one line: the file, and what is wrong with it.
    """
    watch = watch or Stopwatch()
    began, before = time.perf_counter(), watch.seconds.get("decode", 0.0)
    recorded = _Recorded(source)
    inputs = show(recorded, sample, views, NO_DRAW, watch=watch)
    decoding = watch.seconds.get("decode", 0.0) - before
    return Seen(inputs, recorded.frames, recorded.fault, time.perf_counter() - began, decoding)


def travel(
    see: Callable[[Stopwatch], Seen],
    answer: Callable[[Inputs], object],
    sample: Sample,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Trip, Seen]:
    """Takes a sample from its file to its prediction, as if the file were read for the first time in this process.

    Args:
        see: Reads what the network sees of it.
        answer: The network, and what is done with its logits; it waits for its device.
        sample: The sample.
        clock: `time.perf_counter`, or `time.process_time`, which other work on the machine disturbs less.

    Raises:
        ValueError: In one line: the file, and what is wrong with it.
    """
    forget(sample.path)
    watch = Stopwatch(clock)
    with watch.part("see"):
        seen = see(watch)
    with watch.part("network"):
        answer(seen.inputs)
    decode, flow = (watch.seconds.get(name, 0.0) for name in ("decode", "flow"))
    rest = watch.seconds["see"] - decode - flow
    return Trip(decode=decode, flow=flow, preprocess=rest, network=watch.seconds["network"]), seen
