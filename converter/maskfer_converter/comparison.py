"""Two networks on the same labelled pictures: accuracy of both, agreement, change by class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from maskfer_converter.checks import Check
from maskfer_edge.classifier import Classifier
from maskfer_edge.contract import LABELS, FloatArray, UInt8Array
from maskfer_edge.dataset import PictureSet
from maskfer_edge.model_file import Model
from maskfer_edge.runtime import AUTO

Classes = npt.NDArray[np.int64]
# On how many faces runtimes are compared, and the share on which they must agree.
RUNTIME_FACES, MIN_RUNTIME_AGREEMENT = 64, 0.75


@dataclass(frozen=True)
class Limits:
    """How far a converted model may differ from the float network.

    Attributes:
        max_drop: Accuracy that may be lost, in points of a hundred.
        min_agreement: Pictures that must be given the same class, of a hundred.
    """

    max_drop: float = 0.5
    min_agreement: float = 97.0


@dataclass(frozen=True)
class Comparison:
    """One part of the test split, all shares from 0 to 1.

    Attributes:
        float_accuracy: Of the float network.
        converted_accuracy: Of the converted one.
        agreement: Share of pictures given the same class by both.
        pictures: How many.
        recall: Label to the recall of both; None for a class without pictures.
    """

    float_accuracy: float
    converted_accuracy: float
    agreement: float
    pictures: int
    recall: dict[str, tuple[float, float] | None]


def classes_by_keras(network: Any, images: UInt8Array) -> Classes:
    """Class of each face by a Keras network, the mean with its mirror image."""
    faces = images[..., None].astype(np.float32)
    scores: FloatArray = sum(network.predict(view, batch_size=256, verbose=0) for view in (faces, faces[:, :, ::-1]))
    return np.asarray(scores.argmax(axis=1))


def classes_by_file(classifier: Classifier, images: UInt8Array) -> Classes:
    """Class of each face as the runtime gives it."""
    return np.array([int(classifier(face).argmax()) for face in images], dtype=np.int64)


def spread_sample(images: UInt8Array, max_count: int) -> UInt8Array:
    """So many of (n, 48, 48) uint8 faces, spread over all of them, which come by class; all if they are fewer."""
    sample: UInt8Array = images[np.linspace(0, len(images) - 1, min(max_count, len(images))).astype(int)]
    return sample


def same_classes(model: Model, images: UInt8Array) -> Callable[[str], bool]:
    """For `checks.check_runtimes`: whether a model gives `images` the classes on a runtime that it gives them here.

    A few may differ, as runtimes round differently where two classes are nearly even.
    """
    sample = spread_sample(images, RUNTIME_FACES)

    @cache
    def classes(runtime: str) -> Classes:
        return classes_by_file(Classifier(model, runtime), sample)

    return lambda runtime: bool(np.mean(classes(AUTO) == classes(runtime)) >= MIN_RUNTIME_AGREEMENT)


def compare(by_float: Classes, by_converted: Classes, pictures: PictureSet) -> Comparison:
    """Compare the classes that two networks gave to `pictures`."""
    correct = [by_float == pictures.labels, by_converted == pictures.labels]
    recall: dict[str, tuple[float, float] | None] = {}
    for index, label in enumerate(LABELS):
        of_class = pictures.labels == index
        both = [round(float(of[of_class].mean()), 4) if of_class.any() else 0.0 for of in correct]
        recall[label] = (both[0], both[1]) if of_class.any() else None
    of_float, of_converted, agreement = (round(float(of.mean()), 4) for of in (*correct, by_float == by_converted))
    return Comparison(of_float, of_converted, agreement, len(pictures), recall)


def check_limits(
    part: str, float_accuracy: float, converted_accuracy: float, agreement: float, limits: Limits
) -> list[Check]:
    """Check a converted model's accuracy and agreement (shares from 0 to 1) against the limits."""
    drop, agree = round(100 * (float_accuracy - converted_accuracy), 2), round(100 * agreement, 2)
    lost = f"{abs(drop):.2f} {'gained' if drop < 0 else 'lost'}"
    return [
        Check(f"{part}: at most {limits.max_drop:g} points lost", drop <= limits.max_drop, lost),
        Check(f"{part}: {limits.min_agreement:g} % agree", agree >= limits.min_agreement, f"{agree:.1f} % agree"),
    ]


def check_classes(part: str, predicted: Classes) -> Check:
    """Check that a model does not always predict one class."""
    count = len(np.unique(predicted))
    return Check(f"{part}: more than one class given", count > 1, f"{count} given")
