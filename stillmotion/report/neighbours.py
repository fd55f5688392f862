"""The part of a report that shows what a student hallucinates: the training clips that its guess is most like."""

from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from stillmotion.data.table import Sample
from stillmotion.methods import METHODS
from stillmotion.models.encoder import Encoder
from stillmotion.models.pretrained import read_config
from stillmotion.report.clips import Clock, Shelf, labels, outputs_of
from stillmotion.report.html import piece, strip
from stillmotion.report.subject import Missing, Subject, spread

Array = NDArray[np.float32]
POOL = 400
"""Training clips that are searched, at most."""
LEAST = 8
NEAREST = 3


def neighbours(subject: Subject) -> Markup | None:
    """Test clips with the training clips whose true feature is nearest to the student's guess, and to the truth."""
    if not _guesses(subject):
        return None
    limits = subject.look()
    student, teacher = subject.network("student"), subject.network("teacher")
    if student is None:
        return None
    if teacher is None:
        raise Missing(
            f"the teacher's folder is not known; `stillmotion report {subject.folder} --teacher RUN` adds this"
        )
    shelf, clock = Shelf.of(subject), Clock(limits.seconds)
    queries = spread(subject.tested(), limits.clips, subject.task)
    guess = np.stack([_feature(shelf, s, student, ("hallucinated", "embedding")) for s in queries])
    fields = [f for f, dim in (("embedding", teacher.embedding_dim), ("logits", teacher.num_classes))
              if dim == guess.shape[1]]  # fmt: skip
    if not fields:
        raise Missing(f"the student guesses {guess.shape[1]} values, the teacher has {teacher.embedding_dim}")
    true = np.stack([_feature(shelf, s, teacher, fields) for s in queries])
    pool, known = list[Sample](), list[Array]()
    for sample in spread(subject.trained_on(), POOL, subject.task):
        if clock.out and len(pool) >= LEAST:
            break
        pool.append(sample)
        known.append(_feature(shelf, sample, teacher, fields))
    if len(pool) < LEAST:
        raise Missing(f"{len(pool)} training clips are too few to search")
    return _page(subject, shelf, queries, pool, nearest(guess, np.stack(known)), nearest(true, np.stack(known)))


def _guesses(subject: Subject) -> bool:
    """Whether the student says what it takes for its teacher's feature."""
    run = subject.run_of("student")
    if run is None:
        return False
    config = read_config(run)
    model, method = config["model"], config.get("trained", {}).get("method")
    branches = [part for part in (model, model.get("backbone", {})) if "hallucinated_dim" in part]
    return bool(branches) or (method in METHODS and METHODS[method].imitates)


def _feature(shelf: Shelf, sample: Sample, encoder: Encoder, fields: Any) -> Array:
    """The first of some outputs that a network has for a sample, mean over its moments, (D,)."""
    outputs = outputs_of(encoder, shelf.inputs(sample, encoder))
    found = next(outputs[name] for name in fields if name in outputs)[0].float()
    return np.asarray((found.mean(0) if found.ndim > 1 else found).cpu().numpy(), np.float32)


def nearest(queries: Array, known: Array, count: int = NEAREST) -> NDArray[np.int64]:
    """The rows of `known` that point most in the direction of each query, seen from their mean.

    A guess is shorter than the truth where it is unsure, so directions are compared and not distances.

    Args:
        queries: (Q, D).
        known: (P, D).
        count: How many of them.

    Returns:
        (Q, count), nearest first.

    Example:
        >>> nearest(np.array([[2.0, 1.0]]), np.array([[9.0, 1.0], [-9.0, 1.0], [0.0, 1.0]]), 1).tolist()
        [[0]]
    """
    mean = known.mean(0)
    a, b = (x - mean for x in (queries, known))
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9) for x in (a, b))
    return np.asarray(np.argsort(-(a @ b.T), axis=1, kind="stable")[:, :count])


def _page(
    subject: Subject,
    shelf: Shelf,
    queries: list[Sample],
    pool: list[Sample],
    guessed: NDArray[np.int64],
    true: NDArray[np.int64],
) -> Markup:
    column = subject.task.columns[0]
    items = []
    for query, by_guess, by_truth in zip(queries, guessed, true, strict=True):
        parts = [{"image": strip(shelf.film(query), "the test clip"), "caption": "test clip"}]
        for number, (i, j) in enumerate(zip(by_guess, by_truth, strict=True), 1):
            for what, place in (("guess", i), ("true feature", j)):
                sample = pool[int(place)]
                said = f"{number}. by the {what}: {labels([sample], column)[0]}"
                parts.append({"image": strip(shelf.film(sample), said), "caption": said})
        items.append({"title": labels([query], column)[0], "note": query.id, "parts": parts, "films": []})
    told = (
        f"Test clips, and of {len(pool)} training clips the three whose teacher feature is most like what the student "
    )
    told += (
        "guesses from what it sees (left), and like the teacher's own feature of the test clip (right); by the cosine "
    )
    told += f"of features less their mean. {_agreement(queries, pool, guessed, true, column)}"
    return piece("text", lines=[told]) + piece("cards", items=items, kind="pairs")


def _agreement(
    queries: list[Sample], pool: list[Sample], guessed: NDArray[np.int64], true: NDArray[np.int64], column: str
) -> str:
    """How many of the clips found are of the query's class."""
    told = []
    for what, places in (("guess", guessed), ("true feature", true)):
        pairs = [(q.targets.get(column), pool[int(i)].targets.get(column))
                 for q, row in zip(queries, places, strict=True) for i in row]  # fmt: skip
        known = [(a, b) for a, b in pairs if a is not None and b is not None]
        if known:
            told.append(f"{sum(a == b for a, b in known)} of {len(known)} by the {what}")
    return f"Of the same class, where both have a label: {', '.join(told)}." if told else ""
