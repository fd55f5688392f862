"""The part of a report about what a network is most confidently wrong about."""

from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from stillmotion.models.pretrained import read_config
from stillmotion.report.clips import Clock, Shelf
from stillmotion.report.html import picture, piece, strip
from stillmotion.report.subject import Missing, Subject
from stillmotion.tasks import Classes, Score, Targets, Task
from stillmotion.view import View, shown_view, visible


def errors(subject: Subject) -> Markup:
    """The most confident mistakes: what was true, what was said, the frame that was seen and the whole video."""
    limits = subject.look()
    row = subject.roles.get("student", subject.rows[0]["name"])
    said = subject.said(row)
    if said is None:
        raise Missing("nothing was tested; train with a test split (`--data.test`), or `stillmotion evaluate`")
    shelf, clock = Shelf.of(subject), Clock(limits.seconds)
    run = subject.run_of("student")
    view = visible(_view_of(run)) if run is not None else None
    parts = subject.task.parts
    items, wrong = list[dict[str, Any]](), 0
    for i, (place, part) in enumerate(parts):
        true, logits = subject.task.part_targets(said.targets, i), said.logits[:, place]
        order = worst(part, logits, true)
        wrong += len(order)
        for number in order[: max(1, limits.errors // len(parts))]:
            sample = subject.samples.get(said.ids[number])
            if sample is None or clock.out:
                continue
            images = []
            if view is not None:
                images.append({"image": picture(shelf.pictures(sample, view)[0, 0], "the frame that was seen first"),
                               "caption": "seen first"})  # fmt: skip
            images.append({"image": strip(shelf.film(sample), "the whole video"), "caption": sample.id})
            items.append({"title": _told(part, logits[number], true[number]), "note": "", "parts": images, "films": []})
    if not wrong:
        return piece("text", lines=[f"{row} makes no mistake on {len(said.ids)} test samples."])
    if not items:
        raise Missing(f"no mistake's video could be shown in {limits.seconds:g} s; `--seconds` gives more time")
    told = f"most confident first; {wrong} mistakes on {len(said.ids)} test samples."
    if not isinstance(parts[0][1], Classes):
        told = "largest errors first."
    return piece("text", lines=[f"Of {row}, {told}"]) + piece("cards", items=items, kind="small")


def worst(task: Task, logits: NDArray[np.float32], targets: Targets) -> list[int]:
    """Places of the labelled samples that a task's answers are wrong about, most confident first; of scores, of all.

    Example:
        >>> from stillmotion.tasks import Classification
        >>> worst(Classification(("a", "b")), np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 5.0]]), np.array([0, 0, 0]))
        [2, 1]
    """
    known = np.asarray(task.labelled(targets))
    if isinstance(task, Classes):
        confidence = task.scores(logits).max(-1)
        wrong = known & ~np.asarray(task.right(logits, targets), bool)
    else:
        assert isinstance(task, Score), "a task of one column"
        confidence = np.abs(task.guess(logits) - np.where(known, targets, 0.0))
        wrong = known
    order = np.argsort(-confidence, kind="stable")
    return [int(i) for i in order if wrong[i]]


def _told(task: Task, logits: NDArray[np.float32], target: Any) -> str:
    (answer,) = task.answers(logits, top=1)
    sure = "" if answer.probability is None else f" {100 * answer.probability:.0f} %"
    return f"{task.text(target)} → {answer.text}{sure}"


def _view_of(run: Path) -> View:
    views = {name: View.from_dict(data) for name, data in read_config(run)["views"].items()}
    return views[shown_view(views)]
