"""Cameras and streams: a prediction every few frames, until the stream ends."""

import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from numpy.typing import NDArray

from stillmotion.data.sampling import frame_indices
from stillmotion.data.transforms import render_view
from stillmotion.overlay import VideoWriter, draw_overlay
from stillmotion.predict import Prediction, Predictor
from stillmotion.view import NO_DRAW, Clip, Moment, View

MIN_INTERVAL = 8


def watch(
    source: str,
    predictor: Predictor,
    *,
    interval: int | None = None,
    max_frames: int | None = None,
    overlay: Path | None = None,
) -> Iterator[Prediction]:
    """Predicts the latest frames of a camera or stream, again and again; ends with it, or with Ctrl-C.

    Args:
        source: A camera's number, or a URL.
        predictor: Its views are laid over the latest frames: the last clip, moments that are as far apart as the view
            says, or moments spread over the last interval.
        interval: Frames between two predictions.
        max_frames: Stop after so many frames.
        overlay: Video of what was seen, with the latest prediction drawn in.

    Yields:
        A prediction with its `time`; one with `error` if the source cannot be opened or breaks.
    """
    try:
        file, format = _address(source)
        with av.open(file, format=format, timeout=10.0) as container:
            if not container.streams.video:
                yield Prediction(source, [], 0.0, 0, f"{source}: no video in this stream")
                return
            yield from _predictions(container, source, predictor, interval, max_frames, overlay)
    except (av.FFmpegError, OSError, ValueError) as error:
        yield Prediction(source, [], 0.0, 0, f"{source}: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        return


def _address(source: str) -> tuple[str, str | None]:
    """File and format for `av.open`: a URL as it is, or the system's camera."""
    if not source.isdigit():
        return source, None
    if sys.platform == "darwin":
        return source, "avfoundation"
    if sys.platform == "win32":
        return f"video={source}", "dshow"
    return f"/dev/video{source}", "v4l2"


def _predictions(
    container: InputContainer,
    source: str,
    predictor: Predictor,
    interval: int | None,
    max_frames: int | None,
    overlay: Path | None,
) -> Iterator[Prediction]:
    stream = container.streams.video[0]
    stream.thread_type = "SLICE"  # frame threads would hold back as many frames as there are threads
    fps = float(stream.average_rate or stream.guessed_rate or 25)
    span = max(_span(view, fps) for view in predictor.views.values())
    interval = interval or max(MIN_INTERVAL, span)
    latest: deque[NDArray[np.uint8]] = deque(maxlen=max(span, interval))
    lines: list[tuple[str, float | None]] = []
    with ExitStack() as stack:
        video = stack.enter_context(VideoWriter(overlay, fps)) if overlay else None
        for number, frame in enumerate(container.decode(stream), 1):
            latest.append(np.asarray(frame.to_ndarray(format="rgb24"), np.uint8))
            # The first one as soon as a clip is there, so that a short stream has one too.
            if number >= span and (number - span) % interval == 0:
                prediction = _predict(source, predictor, latest, fps)
                lines = prediction.lines
                yield replace(prediction, time=round(frame.time if frame.time is not None else number / fps, 3))
            if video:
                video.add(draw_overlay(latest[-1], lines))
            if number == max_frames:
                break


def _span(view: View, fps: float) -> int:
    """Frames of the stream from the first to the last that a view sees."""
    rate = fps / view.fps if view.fps else 1.0
    step = 1.0 if view.clip == "whole" else view.stride * rate
    apart = (view.num_moments - 1) * view.spacing * rate if view.moment == "spaced" else 0.0
    return 1 + round(apart + (view.num_frames - 1) * step) + (view.flow.step if view.kind == "flow" else 0)


def _latest(view: View) -> View:
    """The view of the latest frames; spaced moments end with the last clip's last frame."""
    if view.moment == "spaced" and view.clip != "whole":
        lead = (view.num_moments - 1) * view.spacing + (view.num_frames - 1) * view.stride + 1
        return replace(view, lead=lead, jitter=0, outside=False, clip="start", end="shift")
    moment: Moment = "last" if view.num_moments == 1 else "uniform"
    clip: Clip = "whole" if view.clip == "whole" else "end"
    return replace(view, moment=moment, clip=clip, end="shift")


def _predict(source: str, predictor: Predictor, latest: deque[NDArray[np.uint8]], fps: float) -> Prediction:
    began = time.perf_counter()
    inputs, seen = {}, set[int]()
    height, width = latest[0].shape[:2]
    for name, view in predictor.views_of((height, width)).items():
        view = _latest(view)
        indices = frame_indices(view, len(latest), fps, NO_DRAW)
        seen |= set(indices.ravel().tolist())
        inputs[name] = render_view([latest[i] for i in indices.ravel()], view, NO_DRAW)
    return predictor.say(source, inputs, time.perf_counter() - began, len(seen))
