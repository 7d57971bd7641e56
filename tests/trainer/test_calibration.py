from __future__ import annotations

import keras
import numpy as np
import pytest

from maskfer_trainer.calibration import best_temperature, calibration_error, fold_temperature


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
