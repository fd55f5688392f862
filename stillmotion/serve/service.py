"""From an upload to its answer: the readers, the networks, and what is made of what they say."""

import asyncio
import base64
import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stillmotion import __version__
from stillmotion.config import LimitConfig
from stillmotion.journey import Seen
from stillmotion.networks import Inputs, TorchNetwork
from stillmotion.predict import Predictor, Sight
from stillmotion.serve.answers import Answer, Cost, Looked, Model, Network, Said, Series
from stillmotion.serve.batcher import Batcher, Ran
from stillmotion.serve.counters import Counters
from stillmotion.serve.reader import Order, Pictures, Reader, Reading
from stillmotion.serve.readers import Readers
from stillmotion.serve.refused import Refused
from stillmotion.serve.upload import Upload
from stillmotion.tasks import Task
from stillmotion.view import View, shown_view
from stillmotion.window import span

MOST_NAMES = 5
"""Classes of a timeline."""
NO_HEAT = "an exported file has no Grad-CAM: serve its run folder"


@dataclass(frozen=True)
class Asked:
    """What a client wants to know. Args: see the parameters of `POST /predict`."""

    timeline: int = 0
    pictures: int = 0
    heat: bool = False
    teacher: bool = True


class Service:
    """The networks and their readers.

    Args:
        student: Answers.
        teacher: Answers beside it; None: there is none.
        names: Of both.
        limits: See `LimitConfig`.

    Attributes:
        open: Uploads that are received or worked on.
        stopping: No more of them are taken.
    """

    def __init__(
        self, student: Predictor, teacher: Predictor | None, names: tuple[str, str | None], limits: LimitConfig
    ) -> None:
        self.predictors = [student] if teacher is None else [student, teacher]
        self.names, self.limits, self.counters = names, limits, Counters()
        sights = [Sight.of(predictor) for predictor in self.predictors]
        reader = Reader(sights, max_seconds=limits.max_seconds, seconds=limits.reader_seconds + 5.0,
                        mib=limits.reader_mib)  # fmt: skip
        self.readers = Readers(reader, limits.readers, limits.reader_seconds, self.counters)
        self.batchers: list[Batcher] = []
        self.open, self.stopping = 0, False

    @property
    def ready(self) -> bool:
        """Whether an upload would be read and answered."""
        return bool(self.batchers and self.readers.alive) and not self.stopping

    @contextmanager
    def taken(self) -> Iterator[None]:
        """While a request is worked on."""
        self.open += 1
        self.counters.open.set(self.open)
        try:
            yield
        finally:
            self.open -= 1
            self.counters.open.set(self.open)

    async def start(self) -> None:
        """Starts the readers and runs each network once.

        Raises:
            RuntimeError: A reader does not start.
        """
        await self.readers.start()
        batchers = [Batcher(p, self.limits.batch, self.limits.batch_ms / 1e3, self.counters) for p in self.predictors]
        for predictor, batcher in zip(self.predictors, batchers, strict=True):
            await batcher(_blank(predictor))
        self.batchers = batchers

    def close(self) -> None:
        """Ends the readers and the networks' threads."""
        self.stopping = True
        self.readers.close()
        for batcher in self.batchers:
            batcher.close()

    def model(self) -> Model:
        """What is served."""
        networks = [self._network(i) for i in range(len(self.predictors))]
        task, views = self.predictors[0].task, self.predictors[0].views.values()
        clip = max(span(view, 30.0) for view in views)
        several = clip > 1 or any(view.num_moments > 1 for view in views)
        return Model(version=__version__, student=networks[0], teacher=networks[1] if networks[1:] else None,
                     targets=[part.target for _, part in task.parts], classes=list(task.class_names),
                     live="clip" if several else "frame", clip_seconds=round(max(1.0, clip / 30.0), 2),
                     max_mib=self.limits.max_mib, max_seconds=self.limits.max_seconds)  # fmt: skip

    async def answer(self, upload: Upload, asked: Asked) -> Answer:
        """Reads an upload and says what the networks say of it.

        Raises:
            Refused: It cannot be read, or not in time.
        """
        deadline = asyncio.get_running_loop().time() + self.limits.answer_seconds
        try:
            async with asyncio.timeout_at(deadline):
                return await self._answer(upload, asked, deadline)
        except TimeoutError:
            raise Refused(504, f"no answer within {self.limits.answer_seconds:g} s", retry_after=5) from None

    async def _answer(self, upload: Upload, asked: Asked, deadline: float) -> Answer:
        began = time.perf_counter()
        count = len(self.batchers) if asked.teacher else 1
        order = Order(upload.path, tuple(range(count)), asked.timeline, asked.pictures)
        for batcher in self.batchers[:count]:
            batcher.coming += 1
        try:
            reading = await self.readers.read(order, deadline)
        finally:
            for batcher in self.batchers[:count]:
                batcher.coming -= 1
        self.counters.seconds.labels("read").observe(time.perf_counter() - began)
        ran = await asyncio.gather(*(b(s.inputs) for b, s in zip(self.batchers, reading.seen, strict=False)))
        parts = await asyncio.gather(*(self.batchers[0](inputs) for _, inputs in reading.parts))
        notes: list[str] = []
        said = [await self._said(i, reading, run, asked, notes) for i, run in enumerate(ran)]
        series = None
        if parts:
            series = timeline(self.predictors[0].task, [at for at, _ in reading.parts],
                              np.stack([part.logits for part in parts]))  # fmt: skip
        seconds = time.perf_counter() - began
        self.counters.seconds.labels("network").observe(ran[0].seconds)
        self.counters.seconds.labels("total").observe(seconds)
        fault = next((seen.fault for seen in reading.seen if seen.fault), None)
        return Answer(**said[0].__dict__, path=upload.name, seconds=round(seconds, 6), fault=fault,
                      bytes=upload.size, num_frames=reading.num_frames, fps=reading.fps, timeline=series,
                      teacher=said[1] if said[1:] else None, notes=notes or None)  # fmt: skip

    async def _said(self, number: int, reading: Reading, ran: Ran, asked: Asked, notes: list[str]) -> Said:
        """What one network says, with the pictures that it looked at."""
        predictor, seen = self.predictors[number], reading.seen[number]
        told = predictor.say("", ran.logits, 0.0, len(set(seen.frames.tolist()))).to_dict()
        cost = Cost(decode_ms=_ms(seen.decoding), preprocess_ms=_ms(seen.seconds - seen.decoding),
                    network_ms=_ms(ran.seconds), batch=ran.batch, gmacs=self._gmacs(number, seen.inputs))  # fmt: skip
        looked = None
        if reading.pictures:
            heat = None
            if asked.heat and isinstance(predictor.network, TorchNetwork):
                try:
                    heat = await self.batchers[number].run(lambda: _heat(predictor, seen, ran.logits))
                except ValueError as error:
                    notes.append(f"{self.names[number]}: {error}")
            elif asked.heat:
                notes.append(f"{self.names[number]}: {NO_HEAT}")
            looked = await asyncio.get_running_loop().run_in_executor(None, _looked, reading.pictures[number], heat)
        return Said(
            text=told.get("text", ""),
            labels=told.get("labels"),
            targets=told.get("targets"),
            frames=told["frames"],
            cost=cost,
            looked_at=looked,
        )

    def _network(self, number: int) -> Network:
        predictor, name = self.predictors[number], self.names[number]
        assert name is not None
        once: Any = getattr(predictor.network, "gmacs", None)
        return Network(name=name, sees="; ".join(_words(view) for view in predictor.views.values()),
                       gmacs=None if once is None else round(once, 4),
                       grad_cam=isinstance(predictor.network, TorchNetwork))  # fmt: skip

    def _gmacs(self, number: int, inputs: Inputs) -> float | None:
        """Of one upload: a network that does not join moments runs at each of them."""
        network: Any = self.predictors[number].network
        once = getattr(network, "gmacs", None)
        if once is None:
            return None
        joins = network.encoder.joins_moments if isinstance(network, TorchNetwork) else network.joins
        times = 1 if joins else len(next(iter(inputs.values())))
        return round(times * float(once), 4)


def timeline(task: Task, times: list[float], logits: NDArray[np.float32]) -> list[Series]:
    """What is said over time, column by column.

    Args:
        task: What the logits mean.
        times: Seconds (P,).
        logits: Calibrated (P, K).
    """
    found = []
    for place, part in task.parts:
        names: tuple[str, ...] = part.class_names or (part.target,)
        if part.class_names:
            scores = np.asarray(part.scores(logits[:, place]))
        else:
            scores = np.array([[part.answers(row)[0].score] for row in logits[:, place]])
        kept = np.argsort(-scores.max(axis=0), kind="stable")[:MOST_NAMES]
        found.append(Series(target=part.target, kind="classes" if part.class_names else "score",
                            names=[names[i] for i in kept], times=[round(t, 3) for t in times],
                            values=[np.round(scores[:, i].astype(float), 4).tolist() for i in kept]))  # fmt: skip
    return found


def _heat(predictor: Predictor, seen: Seen, logits: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Grad-CAM of the first class of the first column that has classes, (N, T, H, W)."""
    import torch

    from stillmotion.report.gradcam import grad_cam, to_bytes

    assert isinstance(predictor.network, TorchNetwork)
    place = next((place for place, part in predictor.task.parts if part.class_names), slice(None))
    output = int(np.arange(len(logits))[place][np.argmax(logits[place])])
    inputs = {name: torch.from_numpy(x) for name, x in seen.inputs.items()}
    return to_bytes(grad_cam(predictor.network.encoder, inputs, output, view=shown_view(predictor.views)))


def _looked(pictures: Pictures, heat: NDArray[np.uint8] | None) -> list[Looked]:
    found = []
    for (moment, place), at, image in zip(pictures.places, pictures.times, pictures.images, strict=True):
        hot = None
        if heat is not None:
            from stillmotion.report.gradcam import blend

            hot = _jpeg(blend(image, heat[moment, place]))
        found.append(Looked(time=at, image=_jpeg(image), heat=hot))
    return found


def _jpeg(image: NDArray[np.uint8]) -> str:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "jpeg", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def _blank(predictor: Predictor) -> Inputs:
    """Black frames."""
    size = (256, 256) if predictor.whole_frames else None
    views = predictor.views_of(size) if size else predictor.views
    return {n: np.zeros((v.num_shown, v.num_frames, v.channels, *v.size), np.uint8) for n, v in views.items()}


def _words(view: View) -> str:
    """What a view sees, for people."""
    what = {"rgb": "frame", "difference": "frame", "flow": "field of flow"}[view.kind]
    height, width = view.size
    text = f"{view.num_frames} {what}{'s' if view.num_frames > 1 else ''} of {width} × {height} pixels"
    if view.kind == "difference":
        text += ", as differences"
    return f"{view.num_moments} times {text}" if view.num_moments > 1 else text


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 3)


def name_of(model: str) -> str:
    """A network's name for people: the last part of its path; of a comparison's runs, row, split and seed.

    Example:
        >>> name_of("runs/student.onnx"), name_of("comparison/runs/plain/fold-0/seed0")
        ('student.onnx', 'plain/fold-0/seed0')
    """
    parts = Path(model).absolute().parts
    return "/".join(parts[-3:] if parts[-1].startswith("seed") else parts[-1:]) or model
