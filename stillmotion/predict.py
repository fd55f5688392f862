"""Prediction: from a file to labels, with a run folder or an exported student.

The same functions choose, decode and resample the frames as in training and evaluation. An exported student
needs no torch.
"""

import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from stillmotion.calibration import check_cascade, confidence
from stillmotion.config import LiveConfig
from stillmotion.data.decode import forget, probe
from stillmotion.data.faults import TIMEOUT_SECONDS, one_line
from stillmotion.data.picture import reduced_size
from stillmotion.data.source import FrameSource, Videos
from stillmotion.data.table import Sample
from stillmotion.data.threads import Call, Threads
from stillmotion.inputs import find_samples, is_live
from stillmotion.journey import Seen, look
from stillmotion.memory import give_back
from stillmotion.networks import Inputs, Network, load_network
from stillmotion.prediction import Prediction, Unfinished, prediction_writer
from stillmotion.stopwatch import Stopwatch
from stillmotion.tasks import Task, task_from_dict
from stillmotion.view import View

GIVE_BACK_EVERY = 128
"""Files between two times that freed memory is given back to the system."""


class Predictor:
    """A model with everything that it needs to read a file.

    Args:
        network: From frames (N, T, C, H, W) by view to logits (K,).
        task: What the logits mean.
        views: What the network sees.
        short_side: As in `DataConfig`.
        top: Classes that a prediction names.
        reject: Answers that are less probable than this are `unsure`.
        teacher: Answers in its place where it is no surer than `threshold`.
        threshold: Probability of the first class, 0..1.
        whole_frames: Whether the network resizes and crops the frames itself.

    Raises:
        ValueError: A number out of its range, networks that tell of other things, or of none that one can be sure of.

    Example:
        predictor = Predictor.load("runs/hallucinet")
        print(predictor("cooking.mp4").labels[0])
    """

    def __init__(
        self,
        network: Network,
        task: Task,
        views: Mapping[str, View],
        *,
        short_side: int | None = None,
        top: int = 5,
        reject: float | None = None,
        teacher: "Predictor | None" = None,
        threshold: float | None = None,
        whole_frames: bool = False,
    ) -> None:
        self.network, self.task, self.views = network, task, dict(views)
        self.short_side, self.top, self.whole_frames = short_side, top, whole_frames
        self.reject, self.teacher, self.threshold = reject, teacher, threshold
        for name, value in (("reject", reject), ("threshold", threshold)):
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"{name}={value}: a probability, from 0 to 1, is wanted")
        if (teacher is None) != (threshold is None):
            missing = "threshold" if threshold is None else "teacher"
            raise ValueError(f"{missing} is missing: a cascade has a teacher and a threshold, which "
                             "`stillmotion evaluate --cascade_on SPLIT` chooses")  # fmt: skip
        if teacher is not None:
            check_cascade(task, teacher.task)
        if reject is not None:
            confidence(task, np.zeros(task.num_outputs, np.float32))  # refuses what has no classes

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        view: Mapping[str, Any] | None = None,
        device: str = "auto",
        top: int = 5,
        reject: float | None = None,
        teacher: str | Path | None = None,
        threshold: float | None = None,
        threads: int | None = None,
    ) -> Self:
        """Loads a run folder (or a model of the Hugging Face Hub), or an exported file.

        Args:
            model: Where it is.
            view: Settings of `View` that differ from training (`moment`, `num_moments`).
            device: auto, cpu or cuda.
            top: Classes that a prediction names.
            reject: See `Predictor`.
            teacher: Where the teacher of a cascade is.
            threshold: See `Predictor`.
            threads: For computing on the CPU; None leaves it to the library.

        Raises:
            ValueError: In one line: the file, and what is wrong with it.
        """
        network, config = load_network(str(model), device=device, view=view or {}, threads=threads)
        views = {name: View.from_dict(data) for name, data in config["views"].items()}
        if any(v.kind == "feature" for v in views.values()):
            raise ValueError(f"{model}: sees stored features, which no video has; give the network that they came from")
        other = cls.load(teacher, device=device, top=top, threads=threads) if teacher is not None else None
        return cls(network, task_from_dict(config["task"]), views, short_side=config.get("short_side"), top=top,
                   reject=reject, teacher=other, threshold=threshold, whole_frames=config["preprocess"])  # fmt: skip

    def __call__(self, source: str | Path | Sample) -> Prediction:
        """Predicts one file, folder of numbered images or sample; an unreadable one gives a prediction with `error`."""
        sample = source if isinstance(source, Sample) else Sample(Path(source), str(source))
        return self.answer(sample, lambda predictor: predictor.see(sample))

    def many(
        self, samples: Iterable[Sample], *, workers: int = 4, timeout: float = TIMEOUT_SECONDS
    ) -> Iterator[Prediction]:
        """Predicts samples in their order, while further files are read in threads.

        Args:
            samples: What to predict.
            workers: Number of threads.
            timeout: Seconds after which a file that is being read is given up, and its thread replaced.
        """
        pool = Threads(self.see, workers, timeout)
        pending: deque[tuple[Sample, Call[Seen]]] = deque()
        source = iter(samples)
        done = 0
        try:
            while True:
                # Twice as many as workers: none waits for the network, and memory stays small.
                while len(pending) < 2 * workers and (sample := next(source, None)) is not None:
                    pending.append((sample, pool.submit(sample)))
                if not pending:
                    return
                sample, call = pending.popleft()
                yield self.answer(sample, partial(self._seen_by, sample, partial(pool.result, call)))
                forget(sample.path)
                done += 1
                if done % GIVE_BACK_EVERY == 0:
                    give_back()
        finally:
            pool.end()

    def _seen_by(self, sample: Sample, mine: Callable[[], Seen], predictor: "Predictor") -> Seen:
        return mine() if predictor is self else predictor.see(sample)

    def logits(self, inputs: Inputs) -> NDArray[np.float32]:
        """Calibrated logits (K,) of frames (N, T, C, H, W) by view."""
        return self.task.calibrated(self.network(inputs))

    def asks(self, logits: NDArray[np.float32]) -> bool:
        """Whether the teacher should answer in place of these logits."""
        return self.threshold is not None and bool(confidence(self.task, logits) <= self.threshold)

    def say(self, name: str, logits: NDArray[np.float32], seconds: float, frames: int, **further: Any) -> Prediction:
        """Calibrated logits (K,) as the prediction of an input of this name.

        Args:
            name: Of the input.
            logits: See `logits`.
            seconds: That it took.
            frames: That were read.
            further: Fields of the prediction.
        """
        answers = self.task.answers(logits, top=self.top)
        labels = list(answers[0].labels) if self.task.class_names else []
        unsure = self.reject is not None and bool(confidence(self.task, logits) < self.reject)
        return Prediction(name, labels, seconds, frames, answers=answers, unsure=unsure, **further)

    def see(self, sample: Sample, watch: Stopwatch | None = None, *, frames: FrameSource | None = None) -> Seen:
        """Reads what the network looks at, as evaluation does: nothing is random, one decode serves all views.

        Args:
            sample: The sample.
            watch: Learns how long the parts of it take.
            frames: Where its frames come from; None decodes its file.

        Raises:
            ValueError: In one line: the file, and what is wrong with it.
        """
        watch = watch or Stopwatch()
        with watch.part("decode"):  # whole frames are as large as the video
            views = self.shown(sample)
        return look(frames or Videos(self.short_side), sample, views, watch)

    def views_of(self, size: tuple[int, int]) -> dict[str, View]:
        """What is done to frames of this height and width before the network sees them."""
        if not self.whole_frames:
            return self.views
        return {name: replace(view, size=size, resize=None) for name, view in self.views.items()}

    def shown(self, sample: Sample) -> dict[str, View]:
        """What is done to the frames of a sample before the network sees them."""
        if not self.whole_frames:
            return self.views
        info = probe(sample.path)
        width, height = reduced_size((info.width, info.height), self.short_side)
        return self.views_of((height, width))

    def answer(self, sample: Sample, see: Callable[["Predictor"], Seen]) -> Prediction:
        """Predicts a sample; what cannot be read gives a prediction with `error`.

        Args:
            sample: The sample.
            see: Gives what this one sees of it and, in a cascade, what the teacher sees.
        """
        try:
            seen = see(self)
        except (ValueError, OSError, MemoryError) as error:
            return unreadable(sample, error)
        began = time.perf_counter()
        logits, frames = self.logits(seen.inputs), set(seen.frames.tolist())
        by: Any = "student" if self.teacher is not None else None
        if self.teacher is not None and self.asks(logits):
            try:
                more = see(self.teacher)
            except (ValueError, OSError, MemoryError) as error:
                return unreadable(sample, error)
            logits, frames, by = self.teacher.logits(more.inputs), frames | set(more.frames.tolist()), "teacher"
        seconds = seen.seconds + time.perf_counter() - began
        return self.say(sample.id, logits, seconds, len(frames), fault=seen.fault, by=by)


@dataclass(frozen=True)
class Sight:
    """What of a network a process must know that only reads. Args: as in `Predictor`, but the task is JSON data."""

    task: dict[str, Any]
    views: dict[str, View]
    short_side: int | None
    whole_frames: bool

    @classmethod
    def of(cls, predictor: Predictor) -> "Sight":
        """What a predictor sees."""
        return cls(predictor.task.to_dict(), predictor.views, predictor.short_side, predictor.whole_frames)

    def predictor(self) -> Predictor:
        """One that sees, and has no network."""
        return Predictor(_no_network, task_from_dict(self.task), self.views, short_side=self.short_side,
                         whole_frames=self.whole_frames)  # fmt: skip


def _no_network(inputs: Inputs) -> NDArray[np.float32]:
    raise AssertionError("this process only reads")


def unreadable(sample: Sample, error: Exception) -> Prediction:
    """The prediction of what cannot be read."""
    return Prediction(sample.id, [], 0.0, 0, one_line(error))


def predict(
    model: str,
    inputs: list[str],
    *,
    output: str | None = None,
    top: int = 5,
    overlay: str | None = None,
    view: dict[str, Any] | None = None,
    workers: int = 4,
    cluster: str | None = None,
    timeout: float = TIMEOUT_SECONDS,
    device: str = "auto",
    reject: float | None = None,
    teacher: str | None = None,
    threshold: float | None = None,
    live: LiveConfig | None = None,
    events: str | None = None,
    threads: int | None = None,
    root: str | None = None,
) -> int:
    """Predicts files, folders, tables, cameras and streams; the entry of `stillmotion predict`.

    Args:
        model: Run folder, or exported file.
        inputs: Files, folders, tables, a camera's number, a stream's URL.
        output: `.jsonl` or `.csv`; None prints JSON lines.
        top: Classes that are named.
        overlay: `.mp4` with the prediction drawn in (one input), or a folder for one video an input.
        view: Settings of `View` that differ from training, such as `{"moment": "keyframe"}` or `{"num_moments": 8}`.
        workers: Threads that read files.
        cluster: Ray cluster that reads and computes in their place, as in `stillmotion.data.cluster`.
        timeout: Seconds after which a file is given up.
        device: auto, cpu or cuda.
        reject: Answers that are less probable than this are `unsure`.
        teacher: Run folder or exported file of a teacher that answers where the model is no surer than `threshold`.
        threshold: See `teacher`.
        live: How cameras and streams are watched.
        events: `.jsonl` or `.csv` for what began and ended in cameras and streams.
        threads: For computing on the CPU; None leaves it to the library.
        root: Folder that a table's relative paths start from.

    Returns:
        0; 1 if something could not be read (it has a line with `error`).

    Raises:
        ValueError: The model, a table or the name of an output is wrong, or a cluster is asked for what it cannot do.
    """
    from stillmotion.events import event_writer
    from stillmotion.overlay import overlay_paths, write_overlay

    streams = [name for name in inputs if is_live(name)]
    samples = find_samples([name for name in inputs if name not in streams], root=root)
    if events is not None and not streams:
        raise ValueError(f"events={events}: only of cameras and streams; file://PATH watches a file as one")
    targets = overlay_paths(overlay, [s.id for s in samples] + streams)
    settings: dict[str, Any] = {"model": model, "view": view, "top": top, "reject": reject, "teacher": teacher,
                                "threshold": threshold}  # fmt: skip
    if cluster is None:
        predictor = Predictor.load(**settings, device=device, threads=threads)
    elif streams or overlay:
        raise ValueError("cluster: files alone, without overlay, are predicted there; leave out "
                         + (f"overlay={overlay}" if overlay else streams[0]))  # fmt: skip
    else:
        predictor = Predictor.load(**settings, device="cpu")  # says what is wrong with it, and how a prediction reads
    keep = output is not None and not streams and overlay is None
    begun = Unfinished(output, settings, [s.id for s in samples]) if output is not None and keep else None
    done, failed, partly = begun.take_up() if begun else (0, 0, 0)
    samples = samples[done:]
    if cluster is None:
        answers = predictor.many(samples, workers=workers, timeout=timeout)
    else:
        settings |= {"device": device, "threads": threads or 1}
        from stillmotion.predict_on_cluster import predict_on_cluster  # imports more than a light prediction should

        answers = predict_on_cluster(cluster, settings, samples, timeout, shown=output is not None)
    # What a watch of a camera has written stays: whatever starts it again goes on with the file.
    watched = bool(streams) and output is not None and Path(output).is_file() and Path(output).stat().st_size > 0
    with (
        prediction_writer(output, predictor.task, top, append=done > 0 or watched) as write,
        event_writer(events) as note,
    ):
        for sample, prediction in zip(samples, answers, strict=True):
            if sample.id in targets and prediction.error is None:
                prediction = write_overlay(targets[sample.id], sample, prediction, predictor)
            failed += prediction.error is not None
            partly += prediction.error is None and prediction.fault is not None
            write(prediction)
        with stop_signal() if streams else nullcontext() as stop:
            for name in streams:
                from stillmotion.live import watch  # not needed for files, which are to be answered at once

                decisions = watch(name, predictor, live, overlay=targets.get(name), on_event=note, stop=stop)
                with closing(decisions):  # on Ctrl-C too, so that what lasts is written
                    for prediction in decisions:
                        failed += prediction.error is not None
                        write(prediction)
    if begun is not None:
        begun.finish()
    if failed or partly:
        total = done + len(samples) + len(streams)
        print(f"{total} inputs: {failed} could not be read, {partly} only in part", file=sys.stderr)
    return 1 if failed else 0


@contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """Set by SIGTERM, with which services are stopped: what is being watched then ends as if its source had ended."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
