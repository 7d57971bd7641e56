"""The faces of a picture: their frames and landmarks."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock

import numpy as np

from maskfer_edge.contract import UInt8Array
from maskfer_edge.dependencies import cv2, extra
from maskfer_edge.errors import InputError
from maskfer_trainer.landmarks import LandmarkPredictor, Landmarks
from maskfer_trainer.placement import check_plausible, unit_length

PROTOCOLS = ("all", "detected")
FACES = ("largest", "all")
# A picture whose grey levels vary less than this (standard deviation) shows no face.
MIN_CONTRAST = 3.0
MIN_SIDE_PX = 24
# dlib's detector was trained on faces of 80 pixels; smaller pictures are enlarged for it, up to three
# times, and larger ones reduced.
DETECTOR_MIN_SIDE_PX, DETECTOR_MAX_SIDE_PX = 300, 2560
# Below it dlib takes cloth and leaves for faces.
MIN_SCORE = 0.1
# FER2013's crops: medians over its training part, in face units.
FRAME_SIDE, FRAME_UP = 2.4, 0.23


@dataclass(frozen=True)
class Face:
    """One face of a picture.

    Attributes:
        box: Left, top, width, height in pixels: the crop that shows it as FER2013 shows faces; the
            whole picture if that is a crop already. May reach beyond the picture.
        landmarks: (68, 2) float32 pixels.
        score: The detector's, or None if none was run.
    """

    box: tuple[int, int, int, int]
    landmarks: Landmarks
    score: float | None = None


class FaceFinder:
    """Finds the faces of pictures. Several threads may share one.

    Args:
        protocol: ``all``: each picture is a face crop, no detector is run. ``detected``: dlib's
            frontal detector says where faces are (the paper's way).
        faces: ``largest`` or ``all`` of those detected.
    """

    def __init__(self, protocol: str = "all", faces: str = "largest") -> None:
        self.protocol, self.faces = protocol, faces
        self._predictor = LandmarkPredictor()
        if protocol == "detected":
            with extra("trainer"):
                import dlib
            self._detector = dlib.get_frontal_face_detector()
            # it keeps the picture it looks at, and Python's other threads run meanwhile
            self._one_at_a_time = Lock()

    def __call__(self, grey: UInt8Array) -> list[Face]:
        """Find faces, the largest first.

        Args:
            grey: (height, width) uint8.

        Raises:
            InputError: If there is none, or the landmarks of all of them are implausible.
        """
        height, width = grey.shape
        if min(grey.shape) < MIN_SIDE_PX:
            raise InputError(f"too small: under {MIN_SIDE_PX} pixels")
        if float(grey.std()) < MIN_CONTRAST:
            raise InputError("blank: no contrast")
        if self.protocol == "all":
            landmarks = self._predictor(grey)
            check_plausible(landmarks, (width, height))
            return [Face((0, 0, width, height), landmarks)]
        found: list[Face] = []
        refusal = InputError("no face detected")
        for box, score in self._detect(grey):
            landmarks = self._predictor(grey, box)
            try:
                pivots = check_plausible(landmarks, (width, height))
            except InputError as error:
                refusal = error
                continue
            found.append(Face(_frame(landmarks, unit_length(pivots)), landmarks, score))
        if not found:
            raise refusal
        found.sort(key=lambda face: (-face.box[2], face.box))
        return found if self.faces == "all" else found[:1]

    def _detect(self, grey: UInt8Array) -> list[tuple[tuple[float, float, float, float], float]]:
        scale = min(3.0, max(1.0, DETECTOR_MIN_SIDE_PX / min(grey.shape)), DETECTOR_MAX_SIDE_PX / max(grey.shape))
        sized = grey
        if scale != 1:
            how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
            sized = np.asarray(cv2.resize(grey, None, fx=scale, fy=scale, interpolation=how), dtype=np.uint8)
        with self._one_at_a_time:
            boxes, scores, _ = self._detector.run(sized, 0, MIN_SCORE)
        return [
            ((b.left() / scale, b.top() / scale, b.width() / scale, b.height() / scale), round(float(score), 3))
            for b, score in zip(boxes, scores, strict=True)
        ]


def _frame(landmarks: Landmarks, unit: float) -> tuple[int, int, int, int]:
    """The square that shows a face as FER2013 does."""
    # landmarks count from pixels' middles, boxes from edges
    x, y = landmarks[[0, 16, 8]].mean(axis=0) + 0.5 - np.array((0, FRAME_UP * unit))
    side = max(1, round(FRAME_SIDE * unit))
    return round(float(x) - side / 2), round(float(y) - side / 2), side, side
