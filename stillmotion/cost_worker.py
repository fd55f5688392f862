"""One network of a cost card, in a process of its own: what it holds there is its memory and nobody else's."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stillmotion.config import ModelConfig
from stillmotion.data.decode import forget
from stillmotion.data.faults import one_line
from stillmotion.data.table import Sample
from stillmotion.export.formats import format_of
from stillmotion.journey import Trip, travel
from stillmotion.memory import keep_memory, resident_mib
from stillmotion.networks import TorchNetwork, set_up_torch
from stillmotion.predict import Predictor
from stillmotion.tasks import Classification, Task
from stillmotion.view import View

Clock = Literal["wall", "cpu"]
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
NUM_CLASSES = 400
"""Of networks by name, which have random weights: as many as Kinetics has."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What runs here, and how; as in `cost_card`."""

    model: ModelConfig
    device: str = "cpu"
    threads: int = 1
    clock: Clock = "wall"


@dataclass(frozen=True)
class Loaded:
    """What is known of a network once it is there.

    Args:
        views: What it sees.
        task: What its logits mean; None for random weights.
    """

    views: dict[str, View]
    task: Task | None


@dataclass(frozen=True)
class Answered:
    """A sample that got an answer.

    Args:
        trip: Where its time went.
        frames: Different frames that were read.
        logits: (K,).
        fault: What is wrong with a file that was read in part.
    """

    trip: Trip
    frames: int
    logits: NDArray[np.float32]
    fault: str | None


@dataclass(frozen=True)
class Refused:
    """No answer, and why, in one line."""

    reason: str


def open_predictor(setting: Setting) -> tuple[Predictor, bool]:
    """A network that is ready to predict, and whether it was trained.

    Raises:
        ValueError: In one line: the model, and what is wrong with it.
    """
    config = setting.model
    if format_of(config.name) is not None or _is_trained(config.name):
        found = Predictor.load(config.name, view=config.view, device=setting.device, threads=setting.threads)
        trained = True
    else:
        from stillmotion.models.factory import load_model

        encoder = load_model(config, num_classes=NUM_CLASSES).eval()
        where = set_up_torch(setting.device, setting.threads)
        task = Classification(tuple(f"class {number}" for number in range(NUM_CLASSES)))
        found, trained = Predictor(TorchNetwork(encoder.to(where), where), task, encoder.views), False
    if any(v.kind == "flow" for v in found.views.values()) and find_spec("cv2") is not None:
        import cv2

        cv2.setNumThreads(setting.threads)
    return found, trained


def _is_trained(name: str) -> bool:
    from stillmotion.models.factory import is_trained

    return is_trained(name)


class Here:
    """The network of this process."""

    def __init__(self) -> None:
        self.predictor: Predictor
        self.clock = time.perf_counter

    def load(self, setting: Setting) -> Loaded:
        """Makes it ready."""
        keep_memory()  # as every command does
        self.predictor, trained = open_predictor(setting)
        self.clock = CLOCKS[setting.clock]
        return Loaded(self.predictor.views, self.predictor.task if trained else None)

    def answer(self, sample: Sample) -> Answered:
        """One sample from its file to its prediction."""
        predictor, logits = self.predictor, []

        def answer(inputs: Any) -> None:
            logits.append(predictor.logits(inputs))
            predictor.task.answers(logits[0], top=predictor.top)

        trip, seen = travel(lambda watch: predictor.see(sample, watch), answer, sample, self.clock)
        return Answered(trip, len(np.unique(seen.frames)), logits[0], seen.fault)

    def stream(self, samples: Sequence[Sample]) -> float:
        """Seconds for samples in a row; a second thread reads the next ones while the network looks at one."""
        for sample in samples:
            forget(sample.path)
        began = self.clock()
        for prediction in self.predictor.many(samples, workers=1):
            assert prediction.error is None, prediction
        return self.clock() - began

    def memory(self, _: None) -> float | None:
        """Peak of this process so far, MiB."""
        return resident_mib("peak")


@cache
def _here() -> Here:
    return Here()


def serve(request: tuple[str, Any]) -> Any:
    """Calls the method of `Here` that is asked for; `Refused` where a user's file is at fault."""
    name, value = request
    try:
        return getattr(_here(), name)(value)
    except (ValueError, OSError) as error:
        return Refused(one_line(error))
