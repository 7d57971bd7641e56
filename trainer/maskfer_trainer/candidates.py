"""What a detector takes for faces, rightly and wrongly: what its second stage learns from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from maskfer_edge.contract import FloatArray, UInt8Array
from maskfer_edge.detector import Box, iou
from maskfer_edge.learned_detector import LearnedDetector
from maskfer_edge.rescorer import SIDE, context_crop
from maskfer_edge.scenes import centre_within

# A detector's score from which it counts, below that of the second stage: more to learn from.
MIN_SCORE = 0.04
# Intersection over union with a face from which a box is that face, and below which it is background. What lies
# between is neither.
FACE_IOU, BACKGROUND_IOU = 0.45, 0.25

LabelledImage = tuple[UInt8Array, list[Box], list[Box]]


class Candidates(NamedTuple):
    """Boxes that a detector gave.

    Attributes:
        crops: (n, 48, 48) uint8 grey, see `rescorer.context_crop`.
        scores: (n,) float32 of the detector, 0 to 1.
        faces: (n,) bool, whether it is one.
    """

    crops: UInt8Array
    scores: FloatArray
    faces: npt.NDArray[np.bool_]


def find_candidates(detector: LearnedDetector, pictures: Iterable[LabelledImage]) -> Candidates:
    """Let a detector look at pictures whose faces are known.

    Args:
        detector: Without a rescorer.
        pictures: Each (h, w) uint8 grey, with the boxes of its faces and ignored regions.

    Returns:
        All boxes but those that are neither a face nor none.
    """
    crops: list[UInt8Array] = []
    scores: list[float] = []
    faces: list[bool] = []
    for image, known, ignored in pictures:
        for found in detector(image):
            best_iou = max((iou(found.box, box) for box in known), default=0.0)
            is_ignored = any(iou(found.box, box) >= BACKGROUND_IOU or centre_within(found.box, box) for box in ignored)
            if best_iou >= FACE_IOU or (best_iou < BACKGROUND_IOU and not is_ignored):
                crops.append(context_crop(image, found.box))
                scores.append(found.score)
                faces.append(best_iou >= FACE_IOU)
    stacked = np.stack(crops) if crops else np.empty((0, SIDE, SIDE), dtype=np.uint8)
    return Candidates(stacked, np.array(scores, dtype=np.float32), np.array(faces, dtype=bool))
