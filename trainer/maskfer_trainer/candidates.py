"""What a detector takes for faces, rightly and wrongly: what its second look learns from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from maskfer_edge.contract import FloatArray, UInt8Array
from maskfer_edge.detector import Box, overlap
from maskfer_edge.learned_detector import LearnedDetector
from maskfer_edge.rescorer import SIDE, surroundings
from maskfer_edge.scenes import centre_within

# A detector's score from which it counts, below that of a second look: more to learn from.
LEAST_SCORE = 0.04
# Of its overlap (intersection over union) with a face: from here on a box is that face, and below, none. What lies
# between is neither.
FACE, NO_FACE = 0.45, 0.25

Marked = tuple[UInt8Array, list[Box], list[Box]]


class Candidates(NamedTuple):
    """Boxes that a detector gave.

    Attributes:
        crops: (n, 48, 48) uint8 grey, see `rescorer.surroundings`.
        scores: (n,) float32 of the detector, 0 to 1.
        faces: (n,) bool, whether it is one.
    """

    crops: UInt8Array
    scores: FloatArray
    faces: npt.NDArray[np.bool_]


def find_candidates(detector: LearnedDetector, pictures: Iterable[Marked]) -> Candidates:
    """Let a detector look at pictures whose faces are known.

    Args:
        detector: Without a rescorer.
        pictures: Each (h, w) uint8 grey, with the boxes of its faces and those in which nothing is judged.

    Returns:
        All boxes but those that are neither a face nor none.
    """
    crops: list[UInt8Array] = []
    scores: list[float] = []
    faces: list[bool] = []
    for image, known, ignored in pictures:
        for found in detector(image):
            shared = max((overlap(found.box, box) for box in known), default=0.0)
            unjudged = any(overlap(found.box, box) >= NO_FACE or centre_within(found.box, box) for box in ignored)
            if shared >= FACE or (shared < NO_FACE and not unjudged):
                crops.append(surroundings(image, found.box))
                scores.append(found.score)
                faces.append(shared >= FACE)
    stacked = np.stack(crops) if crops else np.empty((0, SIDE, SIDE), dtype=np.uint8)
    return Candidates(stacked, np.array(scores, dtype=np.float32), np.array(faces, dtype=bool))
