from __future__ import annotations

import keras
import numpy as np
import pytest

from maskfer_trainer.calibration import best_temperature, calibration_error, fold_lift, fold_temperature, lift


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def honest() -> tuple[np.ndarray, np.ndarray]:
    """Logits of faces whose labels are drawn with just the probabilities that the logits state."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 1.5, (20_000, 7))
    labels = (softmax(logits).cumsum(axis=1) > random.random((20_000, 1))).argmax(axis=1)
    return logits, labels


def test_honest_scores_have_no_calibration_error(honest):
    logits, labels = honest
    assert calibration_error(softmax(logits), labels) < 0.012


def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy():
    scores = np.full((10, 7), 0.2 / 6, np.float32)
    scores[:, 0] = 0.8
    assert calibration_error(scores, np.array([0] * 6 + [1] * 4)) == pytest.approx(0.2, abs=1e-6)


def test_gaps_of_two_bins_do_not_cancel():
    scores = np.zeros((4, 7), np.float32)
    scores[:2, :2], scores[2:, :2] = (0.9, 0.1), (0.6, 0.4)
    # 0.9 sure and never right, 0.6 sure and always right
    assert calibration_error(scores, np.array([1, 1, 0, 0])) == pytest.approx((0.9 + 0.4) / 2, abs=1e-6)


def test_being_wholly_sure_falls_into_the_last_bin():
    assert calibration_error(np.eye(7, dtype=np.float32), np.arange(7)) == 0


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0, 3.0])
def test_the_temperature_undoes_a_factor(honest, factor):
    logits, labels = honest
    assert best_temperature(softmax(factor * logits)[None], labels) == pytest.approx(factor, rel=0.05)


def test_the_temperature_suits_the_mean_of_the_views(honest):
    logits, labels = honest
    views = softmax(2.5 * np.stack([logits, logits[:, ::-1]]))
    found = best_temperature(views, labels)

    def loss(temperature: float) -> float:
        scores = softmax(np.log(np.maximum(views, 1e-12)) / temperature).mean(axis=0)
        return float(-np.log(scores[np.arange(len(labels)), labels]).mean())

    assert loss(found) <= min(loss(0.9 * found), loss(1.1 * found))


def test_a_folded_temperature_divides_the_logits():
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(7, activation="softmax")])
    faces = np.random.default_rng(1).normal(0, 3, (5, 4)).astype(np.float32)
    before = np.log(network.predict(faces, verbose=0))
    fold_temperature(network, 2.0)
    assert network.predict(faces, verbose=0) == pytest.approx(softmax(before / 2), abs=1e-5)


COMMON, RARE = 0, 1


@pytest.fixture(scope="module")
def shy(honest) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Views of honest logits, labels, and class counts; class `RARE` is given less often than it is true."""
    logits, labels = honest
    shifted = logits.copy()
    shifted[:, RARE] -= 1.5
    counts = np.full(7, 1000)
    counts[RARE] = 10
    return softmax(np.stack([shifted, shifted])), labels, counts


def recalls(views, labels, lifted) -> np.ndarray:
    given = softmax(np.log(np.maximum(views, 1e-12)) + lifted).mean(axis=0).argmax(axis=1)
    return np.array([(given[labels == k] == k).mean() for k in range(7)])


def test_a_class_given_too_seldom_is_lifted_as_far_as_it_must_be(shy):
    views, labels, counts = shy
    before = recalls(views, labels, 0)
    lifted = lift(views, labels, 0.4, counts)
    assert before[RARE] < 0.3
    assert before[[0, 2, 3, 4, 5, 6]].min() > 0.45
    assert np.flatnonzero(lifted).tolist() == [RARE]
    assert 0.4 <= recalls(views, labels, lifted)[RARE] < 0.42


def test_no_class_is_lifted_beyond_half_of_its_rarity(shy):
    views, labels, counts = shy
    lifted = lift(views, labels, 0.99, counts)
    assert lifted[RARE] == pytest.approx(np.log(1000 / 10) / 2, abs=0.02)
    assert lifted[COMMON] == 0  # as common as any


def test_nothing_is_lifted_unless_it_is_asked_for(shy):
    views, labels, counts = shy
    assert not lift(views, labels, 0.0, counts).any()


def test_a_class_that_validation_does_not_show_is_left_alone(shy):
    views, labels, counts = shy
    others = labels != RARE
    assert not lift(views[:, others], labels[others], 0.4, counts).any()


def test_a_folded_lift_adds_to_the_logits():
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(7, activation="softmax")])
    faces = np.random.default_rng(1).normal(0, 3, (5, 4)).astype(np.float32)
    before, lifted = np.log(network.predict(faces, verbose=0)), np.arange(7) / 5
    fold_lift(network, lifted)
    assert network.predict(faces, verbose=0) == pytest.approx(softmax(before + lifted), abs=1e-5)
