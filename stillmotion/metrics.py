"""Measures that no library has: how much of its teacher a student learned."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


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
