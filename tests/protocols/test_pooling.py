"""Hit@k, average precision and pooling against numbers worked out here and against scikit-learn."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, top_k_accuracy_score

from stillmotion.data.table import Sample
from stillmotion.protocols.pooling import (
    average_precisions,
    hit_at_k,
    l2_normalise,
    mean_average_precision,
    pool_clips,
    softmax,
)
from stillmotion.tasks import MultiLabel


def marks_of(classes: str, values: list[str]) -> NDArray[np.bool_]:
    task = MultiLabel(tuple(classes))
    return task.marks(task.encode_all([Sample(Path("x"), "x", {"label": v} if v else {}) for v in values]))


def test_mean_of_scores_and_of_logits_differ() -> None:
    clips = np.array([[[0.0, 0.0], [4.0, 0.0], [-3.0, 0.0]]], np.float32)
    mean = (0.5 + 1 / (1 + np.exp(-4.0)) + 1 / (1 + np.exp(3.0))) / 3  # of the first class
    assert softmax(pool_clips(clips, "scores"))[0, 0] == pytest.approx(mean, abs=1e-6)
    assert pool_clips(clips, "logits").tolist() == pytest.approx(np.array([[1 / 3, 0.0]]))
    sure = np.array([[[0.0, 200.0], [0.0, 200.0]]], np.float32)
    assert np.isfinite(pool_clips(sure, "scores")).all()
    with pytest.raises(ValueError, match="pooling='max': choose logits or scores"):
        pool_clips(clips, "max")  # type: ignore[arg-type]


def test_mean_of_logits_is_a_linear_classifier_on_the_mean_feature() -> None:
    rng = np.random.default_rng(0)
    features, weights = rng.normal(size=(5, 4, 8)), rng.normal(size=(8, 3))
    pooled = pool_clips((features @ weights).astype(np.float32), "logits")
    np.testing.assert_allclose(pooled, features.mean(1) @ weights, rtol=1e-4, atol=1e-5)


def test_hit_at_k_by_hand() -> None:
    scores = np.array([[0.9, 0.1, 0.0, 0.5], [0.1, 0.2, 0.3, 0.4], [0.3, 0.3, 0.2, 0.2], [1, 0, 0, 0]], np.float32)
    marks = marks_of("abcd", ["b|d", "c", "b", ""])
    # Ranks: a d b c; d c b a; a b c d (equal scores as they stand). The last sample has no label.
    assert hit_at_k(scores, marks, 1) == 0.0
    assert hit_at_k(scores, marks, 2) == 1.0
    assert hit_at_k(scores[1:3], marks[1:3], 1) == 0.0
    assert hit_at_k(scores, marks_of("abcd", ["a|c", "d", "b", ""]), 1) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="no sample has a label"):
        hit_at_k(scores[3:], marks[3:], 1)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_with_one_label_hit_at_k_is_the_top_k_accuracy(k: int) -> None:
    rng = np.random.default_rng(k)
    scores, y = rng.normal(size=(60, 7)).astype(np.float32), rng.integers(0, 7, 60)
    expected = top_k_accuracy_score(y, scores, k=k, labels=range(7))
    assert hit_at_k(scores, np.eye(7, dtype=bool)[y], k) == pytest.approx(expected)


def test_average_precision_by_hand() -> None:
    scores = np.array([[4.0], [3.0], [2.0], [1.0]], np.float32)
    marks = np.array([[True], [False], [True], [True]])
    # Precision at the true ones: 1, 2/3, 3/4.
    assert average_precisions(scores, marks)[0] == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)


def test_map_is_that_of_scikit_learn_over_the_classes_with_samples() -> None:
    rng = np.random.default_rng(1)
    scores, marks = rng.normal(size=(40, 6)).astype(np.float32), rng.random((40, 6)) < 0.3
    assert mean_average_precision(scores, marks) == pytest.approx(average_precision_score(marks, scores))
    marks[:, 2] = False
    kept = [0, 1, 3, 4, 5]
    assert np.isnan(average_precisions(scores, marks)[2])
    assert mean_average_precision(scores, marks) == pytest.approx(
        average_precision_score(marks[:, kept], scores[:, kept])
    )
    with pytest.raises(ValueError, match="no sample has a label"):
        mean_average_precision(scores, np.zeros_like(marks))


def test_lengths() -> None:
    assert l2_normalise(np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)).tolist() == pytest.approx(
        np.array([[0.6, 0.8], [0.0, 0.0]])
    )
