"""Measures of how much of its teacher a student learned, and of how well scores are guessed."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def relative_l2(guesses: Array, scores: Array, *, score_range: tuple[float, float]) -> float:
    """R-l2 x 100 of action quality assessment (Yu et al. 2021): mean squared error in units of the range of scores.

    Numbers of different ranges do not compare: name the range beside them.

    Args:
        guesses: Guessed scores, (S,).
        scores: True scores, (S,).
        score_range: Lowest and highest score that the data set has, such as (0, 104.5) for MTL-AQA.

    Raises:
        ValueError: Not as many guesses as scores, none, or a range without extent.

    Example:
        Errors of 4 and 2 points on a scale of 16: 100 * (1 / 16 + 1 / 64) / 2.

        >>> relative_l2(np.array([9.0, 10.0]), np.array([5.0, 12.0]), score_range=(4.0, 20.0))
        3.90625
    """
    lowest, highest = score_range
    if not highest > lowest:
        raise ValueError(f"score_range={score_range}: the second number must be the larger")
    guesses, scores = _pairs(guesses, scores)
    return float(100.0 * (((guesses - scores) / (highest - lowest)) ** 2).mean())


def spearman(guesses: Array, scores: Array) -> float:
    """Spearman's rank correlation, ties sharing their mean rank; NaN where all guesses or all scores are equal.

    Args:
        guesses: Guessed scores, (S,).
        scores: True scores, (S,).

    Raises:
        ValueError: Not as many guesses as scores, or none.

    Example:
        Ranks 1, 2, 3, 4 against 1, 3, 2, 4: 1 - 6 * 2 / (4 * 15).

        >>> round(spearman(np.array([1.0, 2.0, 3.0, 9.0]), np.array([10.0, 30.0, 20.0, 40.0])), 6)
        0.8
    """
    from scipy.stats import rankdata

    guesses, scores = _pairs(guesses, scores)
    ranks = [rankdata(values) - (len(values) + 1) / 2 for values in (guesses, scores)]
    spread = float(np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    return float((ranks[0] * ranks[1]).sum()) / spread if spread > 0.0 else float("nan")


def _pairs(guesses: Array, scores: Array) -> tuple[Array, Array]:
    guesses, scores = np.asarray(guesses, np.float64), np.asarray(scores, np.float64)
    if guesses.shape != scores.shape or guesses.ndim != 1 or not len(scores):
        raise ValueError(f"guesses are {guesses.shape}, scores {scores.shape}; both must be (S,) with at least one")
    return guesses, scores


def feature_means(features: Array, labels: NDArray[np.integer], num_classes: int) -> tuple[Array, Array]:
    """The two guesses that need no picture: the mean feature, and the mean feature of each class.

    Args:
        features: Teacher features of the training samples, (S, D).
        labels: Their classes, (S,); negative without a label.
        num_classes: K.

    Returns:
        Mean (D,) over all samples, and class means (K, D), NaN for a class without a sample. Both float64.

    Example:
        >>> mean, class_means = feature_means(np.array([[0.0], [2.0], [7.0]]), np.array([0, 0, -1]), 2)
        >>> mean.tolist(), class_means.tolist()
        ([3.0], [[1.0], [nan]])
    """
    features = features.astype(np.float64)
    class_means = np.full((num_classes, features.shape[1]), np.nan)
    for label in np.unique(labels[labels >= 0]):
        class_means[label] = features[labels == label].mean(axis=0)
    return features.mean(axis=0), class_means


def hallucination_r2(
    hallucinated: Array, target: Array, *, mean: Array, class_means: Array, labels: NDArray[np.integer]
) -> dict[str, float]:
    """How much of the teacher's feature was learned: 1 - SSE / SSE of a guess without the picture.

    `hallucinated_r2` is against the mean feature of training. `hallucinated_r2_within_class` is against the mean
    feature of the sample's class, as training had it: at 0 or below, the student may have learned the label alone;
    above 0 it learned what sets this video apart from others of its class.

    Args:
        hallucinated: Student's guesses, (S, D).
        target: Teacher's features of the same samples, (S, D).
        mean, class_means: Of the teacher's features in training, (D,) and (K, D): see `feature_means`.
        labels: Classes, (S,). A sample without label (negative), or whose class was not in training, counts in the
            first number only.

    Returns:
        `hallucinated_r2` and `hallucinated_r2_within_class`, each 1 for a perfect student; NaN where the reference
        has no error to explain.

    Example:
        Squared errors: student 1 + 1 + 0; mean feature 4 + 1 + 9 = 14; class means (1, 7) 1 + 0 + 4 = 5.

        >>> r2 = hallucination_r2(
        ...     np.array([[1.0], [2.0], [5.0]]),
        ...     np.array([[0.0], [1.0], [5.0]]),
        ...     mean=np.array([2.0]),
        ...     class_means=np.array([[1.0], [7.0]]),
        ...     labels=np.array([0, 0, 1]),
        ... )
        >>> {name: round(value, 4) for name, value in r2.items()}
        {'hallucinated_r2': 0.8571, 'hallucinated_r2_within_class': 0.6}
    """
    if hallucinated.shape != target.shape:
        raise ValueError(f"hallucinated features are {hallucinated.shape}, the teacher's {target.shape}")
    target = target.astype(np.float64)
    error = ((hallucinated - target) ** 2).sum(axis=1)
    # An unlabelled sample has no row here; it takes the first and is masked below.
    reference = class_means.take(np.maximum(labels, 0), axis=0)
    known = (labels >= 0) & np.isfinite(reference).all(axis=1)
    return {
        "hallucinated_r2": _explained(error, ((target - mean) ** 2).sum(axis=1)),
        "hallucinated_r2_within_class": _explained(error[known], ((target - reference) ** 2).sum(axis=1)[known]),
    }


def _explained(error: Array, reference: Array) -> float:
    total = float(reference.sum())
    return 1.0 - float(error.sum()) / total if total > 0.0 else float("nan")
