"""How much of the teacher was learned."""

import math

import numpy as np
import pytest

from stillmotion.metrics import feature_means, hallucination_r2, relative_l2, spearman

RNG = np.random.default_rng(0)
FEATURES = RNG.random((40, 6), dtype=np.float32)
LABELS = np.arange(40) % 4


def scores(hallucinated: np.ndarray, labels: np.ndarray = LABELS) -> tuple[float, float]:
    mean, class_means = feature_means(FEATURES, LABELS, 4)
    found = hallucination_r2(hallucinated, FEATURES, mean=mean, class_means=class_means, labels=labels)
    return found["hallucinated_r2"], found["hallucinated_r2_within_class"]


def test_landmarks_of_the_scale() -> None:
    mean, class_means = feature_means(FEATURES, LABELS, 4)
    assert scores(FEATURES) == (1.0, 1.0)
    assert scores(np.broadcast_to(mean, FEATURES.shape))[0] == pytest.approx(0.0, abs=1e-6)
    overall, within = scores(class_means[LABELS])
    assert within == pytest.approx(0.0, abs=1e-6)
    assert overall > 0.0  # the label alone explains something of the feature


def test_equals_a_loop() -> None:
    hallucinated = (FEATURES + 0.3 * RNG.standard_normal(FEATURES.shape)).astype(np.float32)
    error = overall = within = 0.0
    for guess, truth, label in zip(hallucinated, FEATURES, LABELS, strict=True):
        for d in range(6):
            error += (float(guess[d]) - float(truth[d])) ** 2
            overall += (float(truth[d]) - FEATURES[:, d].astype(float).mean()) ** 2
            within += (float(truth[d]) - FEATURES[label == LABELS, d].astype(float).mean()) ** 2
    assert scores(hallucinated) == pytest.approx((1 - error / overall, 1 - error / within), abs=1e-6)


def test_samples_without_a_known_class_count_in_the_first_number_only() -> None:
    hallucinated = FEATURES.copy()
    hallucinated[3] += 1.0
    labels = LABELS.copy()
    labels[3] = -1
    overall, within = scores(hallucinated, labels)
    assert overall < 1.0
    assert within == 1.0


def test_class_that_training_did_not_have_is_left_out() -> None:
    mean, class_means = feature_means(FEATURES, np.where(LABELS == 2, -1, LABELS), 4)
    assert np.isnan(class_means[2]).all()
    hallucinated = np.where((LABELS == 2)[:, None], FEATURES + 5.0, FEATURES)
    found = hallucination_r2(hallucinated, FEATURES, mean=mean, class_means=class_means, labels=LABELS)
    assert found["hallucinated_r2_within_class"] == 1.0


def test_a_constant_teacher_gives_no_number() -> None:
    same = np.ones((3, 2))
    mean, class_means = feature_means(same, np.zeros(3, int), 1)
    found = hallucination_r2(same, same, mean=mean, class_means=class_means, labels=np.zeros(3, int))
    assert math.isnan(found["hallucinated_r2"])
    with pytest.raises(ValueError, match=r"\(3, 2\), the teacher's \(3, 1\)"):
        hallucination_r2(same, same[:, :1], mean=mean, class_means=class_means, labels=np.zeros(3, int))


def ranks(values: list[float]) -> list[float]:
    """Mean rank of every value, by counting."""
    return [sum(v < w for v in values) + (sum(v == w for v in values) + 1) / 2 for w in values]


def test_spearman_with_ties_equals_a_loop() -> None:
    guesses = RNG.integers(0, 6, 30).astype(float)
    truth = RNG.integers(0, 9, 30).astype(float)
    a, b = ranks(guesses.tolist()), ranks(truth.tolist())
    mean = (30 + 1) / 2
    covariance = sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    expected = covariance / math.sqrt(sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b))
    assert spearman(guesses, truth) == pytest.approx(expected, abs=1e-12)
    assert spearman(guesses, np.exp(guesses)) == pytest.approx(1.0)
    assert spearman(guesses, -truth) == pytest.approx(-expected)


def test_spearman_and_relative_l2_without_anything_to_compare() -> None:
    assert math.isnan(spearman(np.ones(3), np.arange(3.0)))
    assert math.isnan(spearman(np.ones(1), np.ones(1)))
    for wrong in (np.ones(2), np.ones((3, 1))):
        with pytest.raises(ValueError, match=r"both must be \(S,\) with at least one"):
            spearman(wrong, np.ones(3))
        with pytest.raises(ValueError, match=r"both must be \(S,\)"):
            relative_l2(wrong, np.ones(3), score_range=(0.0, 1.0))
    with pytest.raises(ValueError, match=r"score_range=\(5.0, 5.0\): the second number must be the larger"):
        relative_l2(np.ones(3), np.ones(3), score_range=(5.0, 5.0))


def test_relative_l2_is_in_units_of_the_range() -> None:
    guesses, truth = np.array([0.0, 52.25, 104.5]), np.array([104.5, 52.25, 104.5])
    assert relative_l2(guesses, truth, score_range=(0.0, 104.5)) == pytest.approx(100 / 3)
    assert relative_l2(guesses, truth, score_range=(0.0, 209.0)) == pytest.approx(100 / 12)
