"""How far a network's confidence can be believed, and the one number that mends most of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

from maskfer_edge.contract import FloatArray

BINS = 15
TEMPERATURES = (0.25, 4.0)
# By which a class is lifted at a time, in logarithms of its score.
LIFT_STEP = 0.02


def calibration_error(scores: FloatArray, labels: npt.NDArray[np.int64]) -> float:
    """Expected calibration error (Guo and others, On Calibration of Modern Neural Networks, 2017, equation 3).

    Faces are sorted into 15 bins of equal width by their highest score; the error is the mean, over
    all faces, of the gap between a bin's mean score and its share of right answers.

    Args:
        scores: (n, classes) float32, rows summing to 1.
        labels: (n,) indices of the true classes.

    Returns:
        0 (70 % sure is right in 7 of 10 cases) to 1.
    """
    confidence = scores.max(axis=1)
    correct = scores.argmax(axis=1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [abs(float((correct[bins == k] - confidence[bins == k]).sum())) for k in range(BINS)]
    return sum(gaps) / max(1, len(labels))


def best_temperature(views: FloatArray, labels: npt.NDArray[np.int64]) -> float:
    """The temperature that makes the true classes likeliest (Guo and others, 2017, section 4.2).

    Args:
        views: (views, n, classes) float32: scores of each face and, as the runtime averages both,
            of its mirror image; the scores that count are the mean of the views.
        labels: (n,) indices of the true classes.

    Returns:
        By which logits are divided: above 1 if the network is too sure of itself, within `TEMPERATURES`.
    """
    logits = np.log(np.maximum(views.astype(np.float64), 1e-12))

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        scaled = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
        scores = (scaled / scaled.sum(axis=-1, keepdims=True)).mean(axis=0)
        return float(-np.log(scores[np.arange(len(labels)), labels]).mean())

    bounds = tuple(np.log(TEMPERATURES))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))


def lift(
    views: FloatArray, labels: npt.NDArray[np.int64], least_recall: float, counts: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """By how much to lift the classes that are given too seldom (own; after Menon and others, logit adjustment, 2021).

    The class of the lowest recall is lifted step by step until all have the least recall or may not be lifted further:
    none by more than half of what would make up for how rare it is in training, as a class of a few validation
    faces should not be lifted without end for their sake.

    Args:
        views: (views, n, classes) float32, as `best_temperature` takes them.
        labels: (n,) indices of the true classes.
        least_recall: 0 to 1.
        counts: (classes,) training pictures of each class.

    Returns:
        (classes,) float64 to add to the logarithms of the scores; zeros if nothing is to be lifted.
    """
    logits = np.log(np.maximum(views.astype(np.float64), 1e-12))
    max_lift = np.log(counts.max() / np.maximum(counts, 1)) / 2
    pictures = np.bincount(labels, minlength=len(counts))
    lifted = np.zeros(len(counts))
    while True:
        scores = np.exp(logits + lifted)
        predicted = (scores / scores.sum(axis=-1, keepdims=True)).mean(axis=0).argmax(axis=1)
        recall = np.bincount(labels[predicted == labels], minlength=len(counts)) / np.maximum(pictures, 1)
        below_target = np.flatnonzero((recall < least_recall) & (pictures > 0) & (lifted + LIFT_STEP <= max_lift))
        if not len(below_target):
            return lifted
        lifted[below_target[recall[below_target].argmin()]] += LIFT_STEP


def fold_lift(network: Any, lifted: npt.NDArray[np.float64]) -> None:
    """Add what `lift` gives, (classes,), to the last layer's biases."""
    last = network.layers[-1]
    kernel, bias = last.get_weights()
    last.set_weights([kernel, bias + lifted])


def fold_temperature(network: Any, temperature: float) -> None:
    """Divide the last layer's weights by `temperature`, so that no one who runs the network needs to know it."""
    last = network.layers[-1]
    last.set_weights([weights / temperature for weights in last.get_weights()])
