"""Prediction: from a file to labels, with a run folder or an exported student.

The same functions choose, decode and resample the frames as in training and evaluation. An exported student
needs no torch.
"""

import csv
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TextIO

import numpy as np
from numpy.typing import NDArray

from stillmotion.data.decode import probe
from stillmotion.data.picture import reduced_size
from stillmotion.data.rows import IMAGE_SUFFIXES, VIDEO_SUFFIXES, is_image_folder, media_files
from stillmotion.data.source import Extent, FrameSource, Videos, show
from stillmotion.data.table import Sample, read_table
from stillmotion.networks import Inputs, Network, load_network
from stillmotion.tasks import Answer, Task, task_from_dict
from stillmotion.view import NO_DRAW, View

TABLE_SUFFIXES = (".csv", ".parquet", ".pq")


@dataclass(frozen=True)
class Prediction:
    """What a model says of one input.

    Args:
        path: The input, as it was named.
        labels: Classes with probabilities, most probable first; empty after an error, and of a network that tells of
            several columns or of a score.
        seconds: From file to labels, decoding included.
        frames: Different frames that were read.
        error: Why nothing was predicted, in one line.
        fault: What is wrong with a file that could be read in part; the prediction is of that part.
        time: In live sources: seconds of the stream up to the last frame seen.
        answers: What the network says of each column; empty after an error.
    """

    path: str
    labels: list[tuple[str, float]]
    seconds: float
    frames: int
    error: str | None = None
    fault: str | None = None
    time: float | None = None
    answers: tuple[Answer, ...] = ()

    @property
    def text(self) -> str:
        """As a person would write it: `forward, 2.5 somersaults, 1 twist, tuck, 68.4`."""
        return ", ".join(answer.text for answer in self.answers)

    @property
    def lines(self) -> list[tuple[str, float | None]]:
        """What a picture shows, with probabilities: the three best classes, or a line for each of several columns."""
        if self.labels:
            return [(name, p) for name, p in self.labels[:3]]
        return [(f"{answer.target}: {answer.text}", answer.probability) for answer in self.answers]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data; `error`, `fault` and `time` only where there is one.

        Of several columns, or a score, `targets` has what is said of each in the place of `labels`.
        """
        data: dict[str, Any] = {"path": self.path, "text": self.text or None, "labels": _listed(self.labels)}
        if self.answers and not self.labels:
            del data["labels"]
            data["targets"] = {a.target: _told(a) for a in self.answers}
        data |= {"seconds": round(self.seconds, 6), "frames": self.frames}
        data |= {"error": self.error, "fault": self.fault, "time": self.time}
        return {k: v for k, v in data.items() if v is not None}


def _told(answer: Answer) -> dict[str, Any]:
    if answer.score is not None:
        return {"value": round(answer.score, 6)}
    return {"value": answer.text, "probability": round(answer.labels[0][1], 6), "labels": _listed(answer.labels)}


def _listed(labels: Iterable[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{"label": name, "probability": round(p, 6)} for name, p in labels]


@dataclass(frozen=True)
class Seen:
    """What the views see of a sample.

    Args:
        inputs: Frames (N, T, C, H, W) by view.
        frames: Numbers of the different frames that were read, from the sample's first.
        fault: What is wrong with a file that can be read in part only.
        seconds: That reading took.
    """

    inputs: Inputs
    frames: NDArray[np.int64]
    fault: str | None
    seconds: float


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


class Predictor:
    """A model with everything that it needs to read a file.

    Args:
        network: From frames (N, T, C, H, W) by view to logits (K,).
        task: What the logits mean.
        views: What the network sees.
        short_side: As in `DataConfig`.
        top: Classes that a prediction names.
        whole_frames: Whether the network resizes and crops the frames itself.

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
        whole_frames: bool = False,
    ) -> None:
        self.network, self.task, self.views = network, task, dict(views)
        self.short_side, self.top, self.whole_frames = short_side, top, whole_frames

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        view: Mapping[str, Any] | None = None,
        device: str = "auto",
        top: int = 5,
        threads: int | None = None,
    ) -> Self:
        """Loads a run folder (or a model of the Hugging Face Hub), or an exported file.

        Args:
            model: Where it is.
            view: Settings of `View` that differ from training (`moment`, `num_moments`).
            device: auto, cpu or cuda.
            top: Classes that a prediction names.
            threads: For computing on the CPU; None leaves it to the library.

        Raises:
            ValueError: In one line: the file, and what is wrong with it.
        """
        network, config = load_network(str(model), device=device, view=view or {}, threads=threads)
        views = {name: View.from_dict(data) for name, data in config["views"].items()}
        if any(v.kind == "feature" for v in views.values()):
            raise ValueError(f"{model}: sees stored features, which no video has; give the network that they came from")
        return cls(network, task_from_dict(config["task"]), views, short_side=config.get("short_side"), top=top,
                   whole_frames=config["preprocess"])  # fmt: skip

    def __call__(self, source: str | Path | Sample) -> Prediction:
        """Predicts one file, folder of numbered images or sample; an unreadable one gives a prediction with `error`."""
        sample = source if isinstance(source, Sample) else Sample(Path(source), str(source))
        return self._answer(sample.id, lambda: self.see(sample))

    def many(self, samples: Iterable[Sample], *, workers: int = 4) -> Iterator[Prediction]:
        """Predicts samples in their order, while further files are read in `workers` threads."""
        with ThreadPoolExecutor(workers) as pool:
            pending: deque[tuple[Sample, Future[Seen]]] = deque()
            source = iter(samples)
            try:
                while True:
                    # Twice as many as workers: none waits for the network, and memory stays small.
                    while len(pending) < 2 * workers and (sample := next(source, None)) is not None:
                        pending.append((sample, pool.submit(self.see, sample)))
                    if not pending:
                        return
                    sample, future = pending.popleft()
                    yield self._answer(sample.id, future.result)
            finally:
                pool.shutdown(cancel_futures=True)

    def say(self, name: str, inputs: Inputs, seconds: float, frames: int, **further: Any) -> Prediction:
        """What the network says of frames (N, T, C, H, W) by view, as the prediction of an input of this name.

        Args:
            name: Of the input.
            inputs: What the network sees.
            seconds: That reading took.
            frames: That were read.
            further: Fields of the prediction.
        """
        began = time.perf_counter()
        answers = self.task.answers(self.network(inputs), top=self.top)
        labels = list(answers[0].labels) if self.task.class_names else []
        return Prediction(name, labels, seconds + time.perf_counter() - began, frames, answers=answers, **further)

    def see(self, sample: Sample) -> Seen:
        """Reads what the network looks at, as evaluation does: nothing is random, one decode serves all views.

        Raises:
            ValueError: In one line: the file, and what is wrong with it.
        """
        began = time.perf_counter()
        source = _Recorded(Videos(self.short_side))
        inputs = show(source, sample, self._shown(sample), NO_DRAW)
        return Seen(inputs, source.frames, source.fault, time.perf_counter() - began)

    def views_of(self, size: tuple[int, int]) -> dict[str, View]:
        """What is done to frames of this height and width before the network sees them."""
        if not self.whole_frames:
            return self.views
        return {name: replace(view, size=size, resize=None) for name, view in self.views.items()}

    def _shown(self, sample: Sample) -> dict[str, View]:
        if not self.whole_frames:
            return self.views
        info = probe(sample.path)
        width, height = reduced_size((info.width, info.height), self.short_side)
        return self.views_of((height, width))

    def _answer(self, name: str, read: Callable[[], Seen]) -> Prediction:
        try:
            seen = read()
        except (ValueError, OSError) as error:
            text = " ".join(str(error).split())
            return Prediction(name, [], 0.0, 0, text or type(error).__name__)
        return self.say(name, seen.inputs, seen.seconds, len(seen.frames), fault=seen.fault)


def is_live(source: str) -> bool:
    """Whether an input is a camera (a number) or a stream (a URL)."""
    return "://" in source or (source.isdigit() and not Path(source).exists())


def find_samples(inputs: Sequence[str], *, root: str | None = None) -> list[Sample]:
    """Samples of files, folders (searched to the bottom) and tables, in their order.

    A path that does not exist is kept: it gives an error of its own, as an unreadable file does.

    Args:
        inputs: Paths.
        root: Folder that a table's relative paths start from.

    Raises:
        ValueError: A table is wrong, or a folder holds no video and no image.
    """
    samples: list[Sample] = []
    for name in inputs:
        path = Path(name)
        if path.suffix.lower() in TABLE_SUFFIXES:
            samples += read_table(path, root=root, check_files=False)
        elif path.is_dir() and not is_image_folder(path):
            found = list(media_files(path))
            if not found:
                kinds = ", ".join(sorted(VIDEO_SUFFIXES | IMAGE_SUFFIXES)[:6])
                raise ValueError(f"{path}: no video and no image in this folder (looked for {kinds}, ...)")
            samples += [Sample(p, str(p)) for p in found]
        else:
            samples.append(Sample(path, name))
    return samples


def predict(
    model: str,
    inputs: list[str],
    *,
    output: str | None = None,
    top: int = 5,
    overlay: str | None = None,
    view: dict[str, Any] | None = None,
    workers: int = 4,
    device: str = "auto",
    interval: int | None = None,
    max_frames: int | None = None,
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
        device: auto, cpu or cuda.
        interval: Live sources: frames between two predictions (default: as many as a clip spans, at least 8).
        max_frames: Live sources: stop after so many frames.
        threads: For computing on the CPU; None leaves it to the library.
        root: Folder that a table's relative paths start from.

    Returns:
        0; 1 if something could not be read (it has a line with `error`).

    Raises:
        ValueError: The model, a table or the name of an output is wrong.
    """
    from stillmotion.live import watch
    from stillmotion.overlay import overlay_paths, write_overlay

    live = [name for name in inputs if is_live(name)]
    samples = find_samples([name for name in inputs if name not in live], root=root)
    targets = overlay_paths(overlay, [s.id for s in samples] + live)
    predictor = Predictor.load(model, view=view, device=device, top=top, threads=threads)
    failed = partly = 0
    with _writer(output, predictor.task, top) as write:
        for sample, prediction in zip(samples, predictor.many(samples, workers=workers), strict=True):
            if sample.id in targets and prediction.error is None:
                prediction = write_overlay(targets[sample.id], sample, prediction, predictor)
            failed += prediction.error is not None
            partly += prediction.error is None and prediction.fault is not None
            write(prediction)
        for name in live:
            target = targets.get(name)
            for prediction in watch(name, predictor, interval=interval, max_frames=max_frames, overlay=target):
                failed += prediction.error is not None
                write(prediction)
    if failed or partly:
        total = len(samples) + len(live)
        print(f"{total} inputs: {failed} could not be read, {partly} only in part", file=sys.stderr)
    return 1 if failed else 0


@contextmanager
def _writer(output: str | None, task: Task, top: int) -> Iterator[Callable[[Prediction], None]]:
    """Writes predictions as they come, so that an interrupted call keeps what it has."""
    suffix = Path(output).suffix.lower() if output else ".jsonl"
    if suffix not in (".jsonl", ".json", ".csv"):
        raise ValueError(f"output={output}: give a name that ends in .jsonl or .csv")
    if output is None:
        yield lambda prediction: _write_json(sys.stdout, prediction)
        return
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        if suffix == ".csv":
            table = csv.writer(file)
            heads = [f"{c}{i}" for i in range(1, top + 1) for c in ("label", "probability")]
            if not task.class_names:
                heads = ["text", *(h for _, p in task.parts for h in _heads(p))]
            table.writerow(["path", *heads, "seconds", "frames", "time", "fault", "error"])
            yield lambda prediction: _write_csv(file, table, prediction, len(heads))
        else:
            yield lambda prediction: _write_json(file, prediction)


def _write_json(file: TextIO, prediction: Prediction) -> None:
    print(json.dumps(prediction.to_dict(), ensure_ascii=False), file=file, flush=True)


def _heads(task: Task) -> list[str]:
    """Columns of a CSV file for a column of the training's table."""
    return [task.target, f"{task.target}_probability"] if task.class_names else [task.target]


def _write_csv(file: TextIO, table: Any, prediction: Prediction, width: int) -> None:
    cells = [cell for name, p in prediction.labels for cell in (name, f"{p:.6f}")]
    if prediction.answers and not prediction.labels:
        cells = [prediction.text]
        for answer in prediction.answers:
            cells += [answer.text, f"{answer.probability:.6f}"] if answer.labels else [f"{answer.score:.6g}"]
    cells += [""] * (width - len(cells))
    table.writerow([prediction.path, *cells, f"{prediction.seconds:.6f}", prediction.frames,
                    prediction.time, prediction.fault, prediction.error])  # fmt: skip
    file.flush()
