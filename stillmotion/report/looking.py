"""The part of a report that shows where networks look: Grad-CAM beside the optical flow (HalluciNet's Figure 2)."""

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
from markupsafe import Markup
from numpy.typing import NDArray

from stillmotion.data.table import Sample
from stillmotion.models.encoder import Encoder
from stillmotion.report.clips import Clock, Shelf, first_frame, nearest_frame, outputs_of
from stillmotion.report.flow_preview import flow_colours
from stillmotion.report.gradcam import blend, grad_cam, to_bytes
from stillmotion.report.html import Cell, picture, piece, strip, table
from stillmotion.report.subject import ROLES, Missing, Subject, spread
from stillmotion.tasks import Classes, Task
from stillmotion.view import View, shown_view, visible

FASTEST = 0.2
"""Share of the picture that counts as moving."""
NAMES = {"plain": "plain student", "student": "student", "teacher": "teacher"}


@dataclass
class Looker:
    """A network, and how much of its heat lay where something moved, clip by clip."""

    name: str
    encoder: Encoder
    shares: list[float] = field(default_factory=list)

    @property
    def view(self) -> View:
        """What is shown of what it sees."""
        return self.encoder.views[shown_view(self.encoder.views)]


def looking(subject: Subject) -> Markup:
    """Frames under the heat of what speaks for their class, for each network, beside what moves in them."""
    limits, task = subject.look(), subject.task
    lookers, refused = _lookers(subject)
    if not lookers:
        raise Missing("; ".join(refused) or "no network lies here; name one with `--student RUN`")
    shelf, clock = Shelf.of(subject), Clock(limits.seconds)
    items: list[dict[str, Any]] = []
    for sample in spread(subject.tested(), limits.clips, task):
        if items and clock.out:
            break
        items.append(_item(shelf, sample, task, lookers))
    told = "What speaks for the true class (Grad-CAM; bright: much), on the same frame. "
    told += "Motion: mean optical flow of the eight steps that follow; the colour is its direction. "
    told += "Clips were taken class by class in the order of the table, not by result."
    return piece("text", lines=[told, *refused]) + _shares(lookers) + piece("cards", items=items, kind="row")


def _lookers(subject: Subject) -> tuple[list[Looker], list[str]]:
    """The networks of all roles; and one line for each that has no maps."""
    found, refused = [], []
    for role in ROLES:
        encoder = subject.network(role)
        if encoder is not None:
            row = subject.roles[role]
            of_row = subject.kind == "comparison" and row in subject.runs
            found.append(Looker(f"{NAMES[role]} ({row})" if of_row and row != role else NAMES[role], encoder))
    for looker in list(found):
        try:
            blank = {n: torch.zeros(s[1:], dtype=torch.uint8) for n, s in _shapes(looker.encoder).items()}
            grad_cam(looker.encoder, blank, view=shown_view(looker.encoder.views))
        except ValueError as error:
            refused.append(f"{looker.name}: {error}.")
            found.remove(looker)
    return found, refused


def _shapes(encoder: Encoder) -> dict[str, tuple[int, ...]]:
    """Of what the loader gives for one sample, (1, N, T, C, H, W) by view."""
    return {n: (1, v.num_shown, v.num_frames, v.channels, *v.size) for n, v in encoder.views.items()}


def _item(shelf: Shelf, sample: Sample, task: Task, lookers: list[Looker]) -> dict[str, Any]:
    """One clip: the frame, its motion, and every network's heat on it."""
    view = lookers[0].view
    shown = visible(view)
    frame = first_frame(shelf, sample, view)
    flow = shelf.motion(sample, shown)
    speed = np.linalg.norm(flow, axis=-1)
    largest = max(1.0, float(np.quantile(speed, 0.99)))
    parts = [
        {"image": picture(shelf.pictures(sample, shown)[0, 0], "the frame"), "caption": "frame"},
        {
            "image": picture(flow_colours(flow, largest), "optical flow"),
            "caption": f"motion, to {largest:.1f} px a step",
        },
    ]
    films = []
    for looker in lookers:
        inputs = shelf.inputs(sample, looker.encoder)
        name = shown_view(looker.encoder.views)
        heat = grad_cam(looker.encoder, inputs, true_output(task, sample), view=name)
        pictures = shelf.pictures(sample, visible(looker.view))
        moment, place = nearest_frame(shelf, sample, looker.view, frame)
        mean = heat[moment].mean(0)
        parts.append({"image": picture(blend(pictures[moment, place], to_bytes(mean)), f"heat of {looker.name}"),
                      "caption": f"{looker.name}: {answer(looker.encoder, inputs, task)}"})  # fmt: skip
        if looker.view.resize is None and view.resize is None:  # otherwise they see other parts of the picture
            looker.shares.append(share_on_motion(mean, speed))
        if heat.shape[1] > 1:
            every = np.stack([blend(f, h) for f, h in zip(pictures[moment], to_bytes(heat[moment]), strict=True)])
            films.append({"image": strip(every, "frame by frame"), "caption": f"{looker.name}, frame by frame"})
    return {"title": task.text(task.encode(sample)), "note": sample.id, "parts": parts, "films": films}


def true_output(task: Task, sample: Sample) -> int | None:
    """Number of the logit of a sample's class, in the first column that has classes; None: the largest logit."""
    target = task.encode_all([sample])
    for i, (place, part) in enumerate(task.parts):
        if isinstance(part, Classes):
            marks = part.marks(task.part_targets(target, i))[0]
            if marks.any():
                return int(place.start) + int(marks.argmax())
    return None


def answer(encoder: Encoder, inputs: dict[str, Any], task: Task) -> str:
    """What a network says of a sample."""
    logits = outputs_of(encoder, inputs)["logits"][0].float().cpu().numpy()
    said = task.answers(logits, top=1)[0]
    return said.text if said.probability is None else f"{said.text} {100 * said.probability:.0f} %"


def share_on_motion(heat: NDArray[np.float32], speed: NDArray[np.floating]) -> float:
    """Share of the heat that lies on the fifth of the picture that moves fastest; not a number without heat or motion.

    Example:
        >>> heat, speed = np.ones((5, 4), np.float32), np.zeros((5, 4))
        >>> speed[0] = 3.0
        >>> share_on_motion(heat, speed)
        0.2
    """
    heat = np.asarray(cv2.resize(heat, speed.shape[::-1], interpolation=cv2.INTER_LINEAR), np.float64)
    count = max(1, round(FASTEST * speed.size))
    if not heat.sum() > 0 or not speed.max() > 0:
        return float("nan")
    moving = np.argsort(-speed, axis=None, kind="stable")[:count]
    return float(heat.ravel()[moving].sum() / heat.sum())


def _shares(lookers: list[Looker]) -> Markup:
    rows: list[list[Cell | str]] = []
    for looker in lookers:
        known = [share for share in looker.shares if np.isfinite(share)]
        if known:
            mean = float(np.mean(known))
            rows.append([looker.name, Cell(f"{100 * mean:.0f}", mean), Cell(str(len(known)), float(len(known)))])
    if not rows:
        return Markup()
    return table([f"network (chance: {100 * FASTEST:.0f} %)", "heat on the fifth that moves most (%)", "clips"], rows)
