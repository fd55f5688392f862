"""Predictions by the workers of a Ray cluster: each keeps the networks, and beside them a process that reads."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from stillmotion.data.cluster import map_items
from stillmotion.data.decode import forget
from stillmotion.data.faults import VideoError, one_line
from stillmotion.data.pool import Apart, Failure
from stillmotion.data.table import Sample
from stillmotion.journey import Seen
from stillmotion.predict import Predictor, Sight, unreadable
from stillmotion.prediction import Prediction
from stillmotion.progress import progress_bar


def predict_on_cluster(
    cluster: str, settings: Mapping[str, Any], samples: Sequence[Sample], timeout: float, *, shown: bool
) -> Iterator[Prediction]:
    """Predictions of samples, in their order.

    Args:
        cluster: See `map_items`.
        settings: Of `Predictor.load`.
        samples: What to predict.
        timeout: Seconds after which a file is given up.
        shown: Whether a bar is.

    Raises:
        ValueError: The cluster does not answer, or has not what the network needs.
    """
    found = map_items(cluster, partial(_Worker, settings, timeout), samples, gpu=settings["device"] != "cpu")
    with progress_bar(shown=shown) as bar:
        task = bar.add_task("predicting", total=len(samples))
        for position, answer in found:
            bar.advance(task)
            yield unreadable(samples[position], VideoError(answer.reason)) if isinstance(answer, Failure) else answer


class _Worker:
    """What a worker of a cluster keeps: the networks, and beside them the process that reads.

    Args:
        settings: Of `Predictor.load`.
        timeout: Seconds after which a file is given up.
    """

    def __init__(self, settings: Mapping[str, Any], timeout: float) -> None:
        self.predictor = Predictor.load(**settings)
        both = [p for p in (self.predictor, self.predictor.teacher) if p is not None]
        self.read = Apart(partial(_read, [Sight.of(p) for p in both]), timeout)

    def __call__(self, sample: Sample) -> Prediction:
        return self.predictor.answer(sample, lambda predictor: self._see(sample, predictor is not self.predictor))

    def _see(self, sample: Sample, teacher: bool) -> Seen:
        answer = self.read((int(teacher), sample))
        if isinstance(answer, Failure):
            raise VideoError(answer.reason)
        if isinstance(answer, Exception):
            raise answer
        return answer


def _read(sights: list[Sight], order: tuple[int, Sample]) -> Seen | Exception:
    """What one of the networks sees of a sample, or why there is nothing to see."""
    number, sample = order
    try:
        return sights[number].predictor().see(sample)
    except (ValueError, OSError, MemoryError) as error:
        return VideoError(one_line(error))  # which others can always be unpickled is not known
    finally:
        forget(sample.path)
