"""Cameras and streams: a decision every few frames, smoothed, and what began and ended."""

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillmotion.config import LiveConfig
from stillmotion.data.transforms import render_view
from stillmotion.events import Event, EventList, class_names, class_probabilities
from stillmotion.incremental import moment_cache
from stillmotion.overlay import VideoWriter, draw_overlay
from stillmotion.predict import Predictor
from stillmotion.prediction import Prediction
from stillmotion.stream import Stream, StreamFrame
from stillmotion.tasks import Task
from stillmotion.view import NO_DRAW
from stillmotion.window import Window

Logits = NDArray[np.float32]
WINDOW = "stillmotion"


def watch(
    source: str,
    predictor: Predictor,
    config: LiveConfig | None = None,
    *,
    overlay: Path | None = None,
    on_event: Callable[[Event], None] | None = None,
    stop: threading.Event | None = None,
) -> Generator[Prediction]:
    """Decides what the latest frames of a camera or stream show, again and again; ends with it.

    A decision that is due while the network is still busy is left out, and not made up for. Memory does not grow with
    time. Close the iterator (or let it end) to have the events that last told as ended.

    Args:
        source: A camera's number, or a URL; `file://PATH` is a file that is read as a stream.
        predictor: Its views are laid over the latest frames: the last clip, or moments as far apart as the view says,
            otherwise `interval` frames.
        config: How it is watched.
        overlay: Video of what was seen, with the latest decision drawn in.
        on_event: Called when a class began or ended.
        stop: Set from elsewhere (a signal, another thread), ends the watch.

    Yields:
        A prediction with its `time`, of probabilities that are smoothed; one with `error` if the source cannot be
        opened, breaks, or is lost for too long.

    Raises:
        ValueError: A setting that does not fit the model, or no window can be opened.

    Example:
        for decision in watch("rtsp://camera/1", Predictor.load("student.onnx"), on_event=print):
            print(decision.time, decision.labels[0])
    """
    config = config or LiveConfig()
    events = EventList(source, class_names(predictor.task), config) if _has_classes(predictor.task) else None
    shown = open_window() if config.show else None
    try:
        stream = Stream(source, config, stop)
    except ValueError as error:
        yield Prediction(source, [], 0.0, 0, str(error))
        return
    note = on_event or (lambda event: None)
    with ExitStack() as stack:
        stack.callback(stream.close)
        if events is not None:
            stack.callback(lambda: [note(event) for event in events.close()])
        video = stack.enter_context(VideoWriter(overlay, stream.fps, live=True)) if overlay else None
        decide = _Decisions(source, predictor, config, stream, events, note)
        for batch in stream.batches():
            for frame, prediction in decide(batch):
                if prediction is not None:
                    yield prediction
                if video or shown:
                    picture = draw_overlay(decide.window.picture(frame), decide.lines)
                    if video:
                        video.add(picture)
                    if shown and not shown(picture):
                        return
        if (last := decide.rest()) is not None:
            yield last
        if stream.error is not None:
            yield Prediction(source, [], 0.0, 0, stream.error)


class _Decisions:
    """What is decided from one batch of frames after the other.

    Args:
        source, predictor, config: As in `watch`.
        stream: Where the frames are from.
        events: What began and ended; None of scores.
        note: Takes events.
    """

    def __init__(
        self,
        source: str,
        predictor: Predictor,
        config: LiveConfig,
        stream: Stream,
        events: EventList | None,
        note: Callable[[Event], None],
    ) -> None:
        self.source, self.predictor, self.config, self.stream = source, predictor, config, stream
        self.events, self.note = events, note
        self.window = self._new_window()
        self.lines: list[tuple[str, float | None]] = []
        self.cache = moment_cache(predictor.network)
        count = max(view.num_moments for view in predictor.views.values())
        if self.cache is None and count > 1:
            print(f"{source}: all {count} moments are computed for every decision; those of a run folder of a "
                  "`sequence` whose moments see none that follow would be kept", file=sys.stderr)  # fmt: skip
        self._smooth, self._decided = Smooth(predictor.task, config.smooth), 0
        self._last: StreamFrame | None = None
        self._connection = 1

    def __call__(self, batch: list[StreamFrame]) -> Iterator[tuple[StreamFrame, Prediction | None]]:
        """Each frame, with a decision where one is made: of those that are due only the last, if frames may be late."""
        if not batch:
            self._forget()
            return
        if batch[-1].connection != self._connection:  # nothing of the lost one is of use any more
            batch = [frame for frame in batch if frame.connection == batch[-1].connection]
            self._connection, self.window = batch[-1].connection, self._new_window()
            if self.cache:
                self.cache.clear()
            if self._last is not None and batch[0].time - self._last.time > self.config.gap:
                self._forget()
        self.window.begin(batch[0].number)
        due = [frame.number for frame in batch if self.window.is_due(frame.number)]
        for frame in batch:
            self.window.add(frame)
            decided = frame.number in (due[-1:] if self.stream.drops else due)
            yield frame, self._decide(frame) if decided else None
            self._last = frame

    def rest(self) -> Prediction | None:
        """A decision of what there was, if the source ended before the first one was due."""
        if self._decided or self._last is None or self.stream.error is not None:
            return None
        return self._decide(self._last)

    def _forget(self) -> None:
        """Ends what lasts, as nothing was seen for long."""
        self._smooth.clear()
        for event in self.events.close() if self.events is not None else ():
            self.note(event)

    def _new_window(self) -> Window:
        networks = [self.predictor, *([self.predictor.teacher] if self.predictor.teacher else [])]
        window = Window([n.views for n in networks], [n.short_side for n in networks], self.stream.fps,
                        self.config.interval)  # fmt: skip
        # However late, the newest decision that is due finds all its frames.
        newest = max(window.length + window.interval, round(self.stream.fps))
        self.stream.room = newest if self.stream.drops else window.interval
        return window

    def _decide(self, frame: StreamFrame) -> Prediction:
        began = time.perf_counter()
        logits, numbers = self._look(0, self.predictor, frame.number)
        by: Any = "student" if self.predictor.teacher is not None else None
        if self.predictor.teacher is not None and self.predictor.asks(logits):
            logits, more = self._look(1, self.predictor.teacher, frame.number)
            numbers, by = numbers | more, "teacher"
        logits = self._smooth(logits, frame.time)
        if self.events is not None:
            found = class_probabilities(self.predictor.task, logits)
            for event in self.events.update(found, frame.time, frame.clock):
                self.note(event)
        self._decided += 1
        prediction = self.predictor.say(
            self.source, logits, time.perf_counter() - began, len(numbers), time=round(frame.time, 3), by=by,
            active=self.events.active if self.events is not None else None, dropped=self.stream.dropped or None,
        )  # fmt: skip
        self.lines = prediction.lines
        return prediction

    def _look(self, which: int, predictor: Predictor, number: int) -> tuple[Logits, set[int]]:
        """Logits of the network at a frame, and the frames that they are of."""
        seen = self.window.numbers(which, number)
        frames = {int(n) for rows in seen.values() for n in rows.ravel()}

        def render(places: list[int]) -> dict[str, NDArray[np.uint8]]:
            inputs = {}
            for name, rows in seen.items():
                pictures = self.window.pictures(which, rows[places].ravel())
                height, width = pictures[0].shape[:2]
                view = predictor.views_of((height, width))[name]
                inputs[name] = render_view(pictures, replace(view, num_moments=len(places)), NO_DRAW)
            return inputs

        count = len(next(iter(seen.values())))
        if which == 0 and self.cache is not None:
            moments = [tuple(int(n) for rows in seen.values() for n in rows[k]) for k in range(count)]
            return predictor.task.calibrated(self.cache(moments, render)), frames
        return predictor.logits(render(list(range(count)))), frames


class Smooth:
    """Exponential average of probabilities over time; of scores, of the numbers.

    Args:
        task: What the logits mean.
        seconds: After which what was seen weighs 1/e of what it weighed; 0: no average.
    """

    def __init__(self, task: Task, seconds: float) -> None:
        self.task, self.seconds = task, seconds
        self._mean: Logits | None = None
        self._time = 0.0

    def __call__(self, logits: Logits, time: float) -> Logits:
        """Logits (K,) of the average, at a time in seconds that only grows."""
        passed, self._time = time - self._time, time
        if self._mean is None or not self.seconds:
            self._mean = logits
        else:
            old = math.exp(-passed / self.seconds)
            self._mean = self.task.pool(np.stack([self._mean, logits])[None], "scores", np.array([old, 1.0 - old]))[0]
        return self._mean

    def clear(self) -> None:
        """Starts anew."""
        self._mean = None


def _has_classes(task: Task) -> bool:
    return any(part.class_names for _, part in task.parts)


def open_window() -> Callable[[NDArray[np.uint8]], bool]:
    """Opens a window; gives what shows a picture (H, W, 3) in it, and says whether to go on.

    Raises:
        ValueError: There is no display, or OpenCV has no windows.
    """
    remedy = "leave live.show out, or write a video with --overlay FILE.mp4"
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise ValueError(f"live.show: there is no display here; {remedy}")
    try:
        import cv2

        cv2.namedWindow(WINDOW)
    except ImportError:
        raise ValueError(f"live.show: needs OpenCV (pip install opencv-python); or {remedy}") from None
    except cv2.error:
        raise ValueError(f"live.show: this OpenCV has no windows (headless); {remedy}") from None

    def show(picture: NDArray[np.uint8]) -> bool:
        cv2.imshow(WINDOW, picture[:, :, ::-1])
        return cv2.waitKey(1) not in (27, ord("q"))

    return show
