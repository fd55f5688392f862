"""From clips to videos, and how good the scores of videos are: Hit@k and average precision."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Pooling = Literal["logits", "scores"]
Floats = NDArray[np.float32]
Marks = NDArray[np.bool_]

TINY = 1e-30


def softmax(logits: Floats) -> Floats:
    """Scores that add up to 1 over the last axis.

    Args:
        logits: (..., K).
    """
    exp = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return np.asarray(exp / exp.sum(-1, keepdims=True), np.float32)


def sigmoid(logits: Floats) -> NDArray[np.float64]:
    """Scores that do not exclude each other, in double precision."""
    return np.asarray(1.0 / (1.0 + np.exp(-logits.astype(np.float64))))


def pool_clips(
    logits: Floats, pooling: Pooling, *, exclusive: bool = True, weights: NDArray[np.floating] | None = None
) -> Floats:
    """One row of logits a video from those of its clips and crops.

    Args:
        logits: (S, N, K), N clips times crops.
        pooling: `scores` takes the mean of the clips' scores (softmax), and gives its logarithm. `logits` takes the
            mean of the logits: that of a linear classifier on the mean of the clips' features.
        exclusive: Whether a video has one class. Otherwise the score of a class is a sigmoid, and the result its logit.
        weights: Of the clips, (N,), that add up to 1; None: all alike.

    Returns:
        (S, K).

    Raises:
        ValueError: There is no such pooling.

    Example:
        >>> clips = np.log(np.array([[[0.5, 0.5], [0.1, 0.9]]], np.float32))
        >>> softmax(pool_clips(clips, "scores")).round(3).tolist()
        [[0.30000001192092896, 0.699999988079071]]
    """
    if pooling == "logits":
        return np.asarray(_mean(logits, weights), np.float32)
    if pooling == "scores":
        if not exclusive:
            mean = _mean(sigmoid(logits), weights)
            return np.asarray(np.log(np.maximum(mean, TINY)) - np.log(np.maximum(1.0 - mean, TINY)), np.float32)
        return np.asarray(np.log(np.maximum(_mean(softmax(logits), weights), TINY)), np.float32)
    raise ValueError(f"pooling={pooling!r}: choose logits or scores")


def _mean(values: NDArray[Any], weights: NDArray[np.floating] | None) -> NDArray[Any]:
    return np.asarray(values.mean(1) if weights is None else np.tensordot(values, weights, (1, 0)))


def l2_normalise(x: Floats) -> Floats:
    """Rows divided by their Euclidean length; a row of zeros stays.

    Args:
        x: (S, D).
    """
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / np.where(length > 0.0, length, 1.0), np.float32)


def hit_at_k(scores: Floats, marks: Marks, k: int) -> float:
    """Share of the labelled samples with any of their labels among the k best scores (Karpathy et al. 2014).

    With one label a sample it is the top-k accuracy. Of equal scores the class that stands first is taken.

    Args:
        scores: (S, K).
        marks: True labels, (S, K); samples without any do not count.
        k: How many classes may be named.

    Raises:
        ValueError: No sample has a label.

    Example:
        >>> scores = np.array([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6]], np.float32)
        >>> hit_at_k(scores, np.array([[False, True, True], [True, False, False]]), 2)
        0.5
    """
    known = marks.any(1)
    if not known.any():
        raise ValueError("no sample has a label")
    best = np.argsort(-scores[known], axis=1, kind="stable")[:, :k]
    return float(np.take_along_axis(marks[known], best, axis=1).any(1).mean())


def average_precisions(scores: Floats, marks: Marks) -> NDArray[np.float64]:
    """Average precision of each class, not interpolated: scikit-learn's `average_precision_score`.

    Args:
        scores: (S, K); only their order within a class counts.
        marks: True labels, (S, K).

    Returns:
        (K,), NaN for a class without a sample: there is no precision to speak of (scikit-learn would say 0).

    Example:
        >>> scores, marks = np.array([[3.0], [2.0], [1.0]]), np.array([[False], [True], [True]])
        >>> round(float(average_precisions(scores, marks)[0]), 4)
        0.5833
    """
    from sklearn.metrics import average_precision_score

    found = np.full(marks.shape[1], np.nan)
    for k in np.flatnonzero(marks.any(0)):
        found[k] = average_precision_score(marks[:, k], scores[:, k])
    return found


def mean_average_precision(scores: Floats, marks: Marks) -> float:
    """Mean of `average_precisions` over the classes that have a sample.

    Raises:
        ValueError: No sample has a label.
    """
    if not marks.any():
        raise ValueError("no sample has a label")
    return float(np.nanmean(average_precisions(scores, marks)))
