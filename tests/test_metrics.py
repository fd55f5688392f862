"""How much of the teacher was learned."""

import math

import numpy as np
import pytest

from stillmotion.metrics import feature_means, hallucination_r2

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
