"""A video with its prediction drawn in: labels, probability bars, and which frames the network looked at."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import av
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from stillmotion.data.decode import decode_frames, probe
from stillmotion.data.faults import one_line
from stillmotion.data.table import Sample

if TYPE_CHECKING:
    from stillmotion.predict import Predictor
    from stillmotion.prediction import Prediction

Frame = NDArray[np.uint8]
ACCENT, WHITE, DIM = (86, 180, 233, 255), (255, 255, 255, 255), (255, 255, 255, 70)
CHUNK_BYTES = 2**28


def overlay_paths(overlay: str | None, names: Sequence[str]) -> dict[str, Path]:
    """Where the video of each input goes.

    Args:
        overlay: A `.mp4` (of one input), a folder, or None.
        names: Of the inputs.

    Raises:
        ValueError: One file for several inputs.

    Example:
        >>> overlay_paths("out", ["a/x.avi", "b/x.avi"])
        {'a/x.avi': PosixPath('out/x.mp4'), 'b/x.avi': PosixPath('out/x_2.mp4')}
    """
    if overlay is None:
        return {}
    if Path(overlay).suffix.lower() == ".mp4":
        if len(names) != 1:
            raise ValueError(f"overlay={overlay}: one file for {len(names)} inputs; give a folder")
        return {names[0]: Path(overlay)}
    if Path(overlay).suffix:
        raise ValueError(f"overlay={overlay}: give a name that ends in .mp4, or a folder")
    paths: dict[str, Path] = {}
    for name in names:
        stem = Path(name).stem.replace(":", "-") or "camera"
        count = sum(1 for p in paths.values() if p.stem == stem or p.stem.rpartition("_")[0] == stem)
        paths[name] = Path(overlay) / (f"{stem}_{count + 1}.mp4" if count else f"{stem}.mp4")
    return paths


def write_overlay(target: Path, sample: Sample, prediction: "Prediction", predictor: "Predictor") -> "Prediction":
    """Writes the video of one sample; marks on its time line show the frames that the network saw.

    Returns:
        The prediction, with `error` where the video could not be read to its end.
    """
    try:
        seen = predictor.see(sample).frames
        info = probe(sample.path)
        start, end = sample.frame_range(info.num_frames, info.fps)
        marks = [(i + 0.5) / (end - start) for i in seen if 0 <= i < end - start]
        with VideoWriter(target, info.fps or 25.0) as video:
            for i, frame in enumerate(_frames(sample.path, start, end, info.width * info.height * 3)):
                video.add(draw_overlay(frame, prediction.lines, marks, (i + 1) / (end - start)))
    except (ValueError, OSError) as error:
        return replace(prediction, error=one_line(error))
    return prediction


def _frames(path: Path, start: int, end: int, frame_bytes: int) -> Iterator[Frame]:
    # Whole parts at once: files that cannot be sought are decoded from their start for every part.
    size = max(16, CHUNK_BYTES // frame_bytes)
    for first in range(start, end, size):
        yield from decode_frames(path, np.arange(first, min(end, first + size)))


def draw_overlay(
    frame: Frame, lines: Sequence[tuple[str, float | None]], marks: Sequence[float] = (), now: float | None = None
) -> Frame:
    """Draws lines of text with bars of their probability into a frame, as many as fit, and a time line below.

    Args:
        frame: (H, W, 3) RGB.
        lines: What is said, with its probability, if it has one.
        marks: Places on the time line, 0..1, that the network looked at.
        now: Place of this frame; None draws no time line.

    Returns:
        A new frame of the same size.
    """
    image = Image.fromarray(frame)
    height, width = frame.shape[:2]
    text = max(9, min(width // 22, height // 14))
    font, pad, line = ImageFont.load_default(text), max(2, text // 3), int(1.5 * text)
    shade = Image.new("RGBA", image.size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(shade)
    shown = list(lines[: max(1, (height - pad - max(3, height // 60)) // line)])
    longest = max((draw.textlength(name, font=font) for name, _ in shown), default=0.0)
    # A list of classes keeps its width from frame to frame; lines that name their column may need more.
    named = len(lines) > 3 or any(probability is None for _, probability in lines)
    room = min(width, int(max(text * 15, longest + 4.5 * text if named else 0)))
    if shown:
        draw.rectangle((0, 0, room, pad + line * len(shown)), fill=(0, 0, 0, 150))
    for i, (name, probability) in enumerate(shown):
        top = pad + i * line
        if probability is None:
            draw.text((pad, top - pad // 2), _fitting(name, room - 2 * pad, draw, font), fill=WHITE, font=font)
            continue
        bar = (room - 2 * pad) * probability
        draw.rectangle(
            (pad, top + text + pad // 2, pad + bar, top + line - pad // 2), fill=ACCENT if named or i == 0 else DIM
        )
        percent = f"{100 * probability:.0f} %"
        end = room - pad - draw.textlength(percent, font=font)
        draw.text((pad, top - pad // 2), _fitting(name, end - 2 * pad, draw, font), fill=WHITE, font=font)
        draw.text((end, top - pad // 2), percent, fill=WHITE, font=font)
    if now is not None:
        thick = max(3, height // 60)
        draw.rectangle((0, height - thick, width, height), fill=(0, 0, 0, 150))
        draw.rectangle((0, height - thick, width * now, height), fill=DIM)
        for mark in marks:
            x = width * mark
            draw.rectangle((x - thick / 2, height - 2 * thick, x + thick / 2, height), fill=ACCENT)
    return np.asarray(Image.alpha_composite(image.convert("RGBA"), shade).convert("RGB"))


def _fitting(
    name: str, room: float, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> str:
    while len(name) > 1 and draw.textlength(name, font=font) > room:
        name = name[:-2] + "…"
    return name


class VideoWriter:
    """Encodes frames as H.264 (yuv420p, so that every player shows it); sizes are cropped to even numbers.

    Args:
        path: `.mp4`.
        fps: Frame rate.
        live: Write in parts, each of which can be played whatever happens to the process after it.
    """

    def __init__(self, path: Path, fps: float, *, live: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"} if live else {}
        self._container = av.open(str(path), "w", options=options)
        self._rate = Fraction(fps).limit_denominator(1001)
        self._stream: VideoStream | None = None

    def add(self, frame: Frame) -> None:
        """Appends a frame, (H, W, 3) RGB; the first one decides the size."""
        if self._stream is None:
            self._stream = self._container.add_stream("libx264", rate=self._rate, options={"crf": "20"})
            self._stream.height, self._stream.width = (s - s % 2 for s in frame.shape[:2])
            self._stream.pix_fmt = "yuv420p"
        height, width = self._stream.height, self._stream.width
        if frame.shape[0] - height not in (0, 1) or frame.shape[1] - width not in (0, 1):
            frame = np.asarray(Image.fromarray(frame).resize((width, height)))  # a camera that changed its size
        even = np.ascontiguousarray(frame[:height, :width])
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._container.mux(self._stream.encode())
        self._container.close()
