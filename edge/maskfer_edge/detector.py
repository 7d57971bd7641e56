"""Where the faces are in a frame."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskfer_edge.contract import UInt8Array
from maskfer_edge.dependencies import cv2
from maskfer_edge.errors import DependencyError, InputError

# Frames are searched at no more than this size, unless another is asked for; larger ones are made smaller first.
SEARCH_SIDE = 640
# Near a face that is known: how far around its box, as a share of its side; at what size in pixels; and of what
# sizes, as shares of its own.
AROUND, NEAR_FACE, NEAR_SIZES = 0.35, 56, (0.75, 1.35)
# Boxes that overlap so much are one face.
SAME_FACE = 0.4

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Detection:
    """A face.

    Attributes:
        box: Left, top, width, height in pixels of the frame.
        score: On the detector's own scale; higher is surer.
    """

    box: tuple[int, int, int, int]
    score: float


class Detector(ABC):
    """Finds faces. `name` is the key of its crop margin in the model file."""

    name: str

    @abstractmethod
    def __call__(self, image: UInt8Array, near: Sequence[Box] = ()) -> list[Detection]:
        """Find the faces of a picture.

        Args:
            image: (height, width, 3) uint8, B,G,R, or (height, width) grey.
            near: Boxes where faces are expected: only there need a detector look that has much to gain by it. Empty:
                everywhere.
        """


class FakeDetector(Detector):
    """Finds what it is told, whatever the picture."""

    name = "haar"

    def __init__(self, detections: Sequence[Detection] = ()) -> None:
        self.detections = list(detections)

    def __call__(self, image: UInt8Array, near: Sequence[Box] = ()) -> list[Detection]:
        """The detections that it was made with."""
        return self.detections


class HaarDetector(Detector):
    """OpenCV's frontal face cascade (Viola and Jones 2001), the paper's detector.

    Built for bare faces: it finds about a third of masked ones.
    """

    name = "haar"

    def __init__(
        self, scale_factor: float = 1.1, min_neighbors: int = 3, min_face: int = 40, search_side: int = SEARCH_SIDE
    ) -> None:
        """Load the cascade that comes with OpenCV.

        Args:
            scale_factor: Between one search size and the next.
            min_neighbors: Windows that must agree on a face.
            min_face: Smallest face in pixels of the frame as searched.
            search_side: Longest side in pixels of the frame as searched.

        Raises:
            DependencyError: If this OpenCV ships no cascade (Debian's python3-opencv keeps it apart).
        """
        self.scale_factor, self.min_neighbors, self.min_face = scale_factor, min_neighbors, min_face
        self.search_side = search_side
        folders = [Path(cv2.data.haarcascades)] if hasattr(cv2, "data") else []
        folders.append(Path("/usr/share/opencv4/haarcascades"))
        paths = [folder / "haarcascade_frontalface_default.xml" for folder in folders]
        found = next((path for path in paths if path.is_file()), None)
        self._cascade: Any = cv2.CascadeClassifier(str(found)) if found else None
        if self._cascade is None or self._cascade.empty():
            raise DependencyError("OpenCV's Haar cascade is missing; run: sudo apt install -y opencv-data")

    def __call__(self, image: UInt8Array, near: Sequence[Box] = ()) -> list[Detection]:
        """Find faces; `score` is how many windows agreed."""
        grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if image.ndim == 3 else image
        if not near:
            return self._search(grey, self.search_side, 0, 0)
        found: list[Detection] = []
        for box in near:
            found += [d for d in self._search_near(grey, box) if all(overlap(d.box, f.box) < SAME_FACE for f in found)]
        return found

    def _search_near(self, grey: UInt8Array, box: Box) -> list[Detection]:
        """Look for a face of about that size around a box."""
        x, y, w, h = box
        side = max(w, h)
        left, top = max(0, round(x - side * AROUND)), max(0, round(y - side * AROUND))
        part = grey[top : max(0, round(y + h + side * AROUND)), left : max(0, round(x + w + side * AROUND))]
        if min(part.shape) < 2:
            return []
        # the cascade's own window is 24 pixels; at twice that a face is found as well as at any size
        search_side = min(self.search_side, max(part.shape) * NEAR_FACE / side)
        limits = tuple(side * share for share in NEAR_SIZES)
        found = self._search(part, search_side, *limits)
        return [Detection((d.box[0] + left, d.box[1] + top, *d.box[2:]), d.score) for d in found]

    def _search(self, grey: UInt8Array, search_side: float, least: float, most: float) -> list[Detection]:
        """Faces of a grey picture, between `least` and `most` of its pixels wide; 0: `min_face`, and any."""
        height, width = grey.shape
        shrink = max(1.0, max(height, width) / search_side)
        if shrink > 1:
            size_wh = (max(1, round(width / shrink)), max(1, round(height / shrink)))
            grey = cv2.resize(grey, size_wh, interpolation=cv2.INTER_AREA)
        smallest = round(least / shrink) if least else self.min_face
        largest = round(most / shrink)
        boxes, counts = self._cascade.detectMultiScale2(
            grey,
            scaleFactor=self.scale_factor,
            minNeighbors=self.min_neighbors,
            minSize=(smallest, smallest),
            maxSize=(largest, largest),
        )
        return [
            Detection((int(x), int(y), int(w), int(h)), float(count))
            for (x, y, w, h), count in zip(np.round(np.reshape(boxes, (-1, 4)) * shrink), np.ravel(counts), strict=True)
        ]


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes (left, top, width, height), 0 to 1."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


DETECTORS = {"haar": HaarDetector}


def open_detector(name: str, search_side: int = SEARCH_SIDE) -> Detector:
    """A detector by its name, which looks at pictures of that longest side. Raises InputError if there is none."""
    if name not in DETECTORS:
        raise InputError(f"unknown detector {name!r}; known: {', '.join(DETECTORS)}")
    return DETECTORS[name](search_side=search_side)
