"""What is lost between a perfect crop and the boxes that a detector really gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from maskfer_edge.contract import FloatArray, UInt8Array, preprocess
from maskfer_edge.dataset import PictureSet
from maskfer_edge.dependencies import cv2
from maskfer_edge.detector import Detector, iou
from maskfer_trainer.draw import drawn_number

PICTURE_WH = (320, 240)
FACE_SIDES = (64, 160)
# Of two boxes that show the same face, as detectors are counted elsewhere in this project.
MIN_IOU = 0.35

BoxInt = tuple[int, int, int, int]


@dataclass(frozen=True)
class DetectorFigures:
    """One part of the test split, seen through a detector. Shares are from 0 to 1.

    Attributes:
        pictures: How many there are.
        found: Share of faces that the detector finds.
        accuracy_perfect: Of the faces found: share right by the data set's own crop.
        accuracy_detected: Of the same faces: share right by the detector's box.
        accuracy_overall: Share of all faces that are found and right.
    """

    pictures: int
    found: float
    accuracy_perfect: float | None
    accuracy_detected: float | None
    accuracy_overall: float


def through_detector(
    pictures: PictureSet,
    predict: Callable[[UInt8Array], FloatArray],
    detector: Detector,
    margin: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> DetectorFigures:
    """Place each face in a larger picture, find it as the runtime does, and classify the crop.

    Args:
        pictures: Faces of the test split.
        predict: From (n, 48, 48) uint8 faces to (n, 7) scores.
        detector: The runtime's.
        margin: Crop margin of its boxes.
        progress: Takes how many are done, and of how many.
    """
    perfect, detected, labels = [], [], []
    for i, (face, name) in enumerate(zip(pictures.images, pictures.names, strict=True)):
        picture, box = place_in_picture(face, name)
        found = max(detector(picture), key=lambda d: iou(d.box, box), default=None)
        if found is not None and iou(found.box, box) >= MIN_IOU:
            perfect.append(face)
            detected.append(preprocess(picture, found.box, margin))
            labels.append(pictures.labels[i])
        progress(i + 1, len(pictures))
    if not labels:
        return DetectorFigures(len(pictures), 0.0, None, None, 0.0)
    correct = [predict(np.stack(faces)).argmax(axis=1) == np.array(labels) for faces in (perfect, detected)]
    return DetectorFigures(
        pictures=len(pictures),
        found=round(len(labels) / len(pictures), 4),
        accuracy_perfect=round(float(correct[0].mean()), 4),
        accuracy_detected=round(float(correct[1].mean()), 4),
        accuracy_overall=round(float(correct[1].sum()) / len(pictures), 4),
    )


def place_in_picture(face: UInt8Array, name: str) -> tuple[UInt8Array, BoxInt]:
    """Enlarge a face and put it somewhere in a picture whose rest continues its edges, blurred (own).

    Args:
        face: (48, 48) uint8 grey.
        name: Place and size depend on it alone.

    Returns:
        (240, 320, 3) uint8 B,G,R, and the face's left, top, width and height in it.
    """
    random = np.random.default_rng(drawn_number("place", 0, name))
    width, height = PICTURE_WH
    side = int(random.integers(FACE_SIDES[0], FACE_SIDES[1] + 1))
    left, top = int(random.integers(0, width - side + 1)), int(random.integers(0, height - side + 1))
    enlarged = cv2.resize(face, (side, side), interpolation=cv2.INTER_CUBIC)
    around = cv2.copyMakeBorder(
        enlarged, top, height - side - top, left, width - side - left, cv2.BORDER_REPLICATE
    )  # fmt: skip
    picture = cv2.GaussianBlur(around, (0, 0), side / 12)
    picture[top : top + side, left : left + side] = enlarged
    return cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR), (left, top, side, side)
