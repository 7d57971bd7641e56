"""Face detection: where the faces are in a frame."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from maskfer_edge.contract import UInt8Array
from maskfer_edge.dependencies import cv2
from maskfer_edge.errors import DependencyError, InputError, ModelError
from maskfer_edge.files import read_bytes
from maskfer_edge.runtime import AUTO

# Frames are searched at no more than this size, unless another is asked for; larger ones are made smaller first.
SEARCH_SIDE = 640
# Region of interest around a known face: its margin as a share of the face's side; the side in pixels to which the face
# is scaled; and the range of sizes that is searched, as shares of its own.
ROI_MARGIN, ROI_FACE_PX, ROI_SCALES = 0.35, 56, (0.75, 1.35)
# Boxes with this intersection over union are one face.
NMS_IOU = 0.4
YUNET_THRESHOLD = 0.6
YUNET_REMEDY = "get face_detection_yunet_2023mar.onnx from OpenCV's model zoo"

Box = tuple[int, int, int, int]
Equalisation = Literal["none", "histogram", "clahe"]


@dataclass(frozen=True)
class Detection:
    """A detected face.

    Attributes:
        box: Left, top, width, height in pixels of the frame.
        score: On the detector's own scale; higher is more confident.
        readable: Whether it is large enough to hold an expression; else it is only to be blurred.
    """

    box: tuple[int, int, int, int]
    score: float
    readable: bool = True


class Detector(ABC):
    """Finds faces. `name` is the key of its crop margin in the model file."""

    name: str

    @abstractmethod
    def __call__(self, image: UInt8Array, near: Sequence[Box] = ()) -> list[Detection]:
        """Find the faces of a picture.

        Args:
            image: (height, width, 3) uint8, B,G,R, or (height, width) grey.
            near: Boxes where faces are expected: a detector that gains much by it may search only there. Empty: search
                everywhere.

        Returns:
            Faces, their boxes in pixels of the picture.
        """

    def detect(self, image: UInt8Array, smaller: UInt8Array, near: Sequence[Box] = ()) -> list[Detection]:
        """Find the faces of a picture of which a smaller copy, which costs less to search, is at hand.

        Args:
            image: (height, width, 3) uint8, B,G,R.
            smaller: The same picture, (h, w) or (h, w, 3) uint8, or `image` itself.
            near: As for a call, in pixels of `image`.

        Returns:
            Faces, their boxes in pixels of `image`.
        """
        scale = image.shape[1] / smaller.shape[1]
        found = self(smaller, [scaled(box, 1 / scale) for box in near])
        return [replace(face, box=scaled(face.box, scale)) for face in found]


class FakeDetector(Detector):
    """Returns given detections, whatever the picture."""

    name = "haar"

    def __init__(self, detections: Sequence[Detection] = ()) -> None:
        self.detections = list(detections)

    def __call__(self, image: UInt8Array, near: Sequence[Box] = ()) -> list[Detection]:
        """The detections that it was made with."""
        return self.detections


class HaarDetector(Detector):
    """OpenCV's frontal face cascades (Viola and Jones 2001); the paper uses the one named ``frontalface_default``.

    Built for bare faces: they find about a third of masked ones. The settings are the best of 108 at that one's speed
    (docs/detecting.md).
    """

    name = "haar"

    def __init__(
        self,
        scale_factor: float = 1.1,
        min_neighbors: int = 2,
        min_face: int = 40,
        search_side: int = SEARCH_SIDE,
        cascade: str = "frontalface_alt2",
        equalisation: Equalisation = "clahe",
    ) -> None:
        """Load a cascade that comes with OpenCV.

        Args:
            scale_factor: Between one search size and the next.
            min_neighbors: Windows that must agree on a face.
            min_face: Smallest face in pixels of the frame as searched.
            search_side: Longest side in pixels of the frame as searched.
            cascade: Name of OpenCV's file, without ``haarcascade_``.
            equalisation: How a picture's contrast is evened out first: ``histogram`` over all of it, ``clahe``
                (limited, over 8 by 8 parts), or ``none``.

        Raises:
            DependencyError: If this OpenCV does not ship the cascade (Debian's python3-opencv keeps it apart).
        """
        self.scale_factor, self.min_neighbors, self.min_face = scale_factor, min_neighbors, min_face
        self.search_side, self.cascade, self.equalisation = search_side, cascade, equalisation
        self._clahe = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8))
        folders = [Path(cv2.data.haarcascades)] if hasattr(cv2, "data") else []
        folders.append(Path("/usr/share/opencv4/haarcascades"))
        paths = [folder / f"haarcascade_{cascade}.xml" for folder in folders]
        found = next((path for path in paths if path.is_file()), None)
        self._cascade: Any = cv2.CascadeClassifier(str(found)) if found else None
        if self._cascade is None or self._cascade.empty():
            raise DependencyError(f"OpenCV's Haar cascade {cascade!r} is missing; run: sudo apt install -y opencv-data")

    def __call__(self, image: UInt8Array, near: Sequence[Box] = ()) -> list[Detection]:
        """Find faces; `score` is how many windows agreed."""
        grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if image.ndim == 3 else image
        grey, shrink = _downscaled(grey, self.search_side)
        if self.equalisation != "none":
            equalised = cv2.equalizeHist(grey) if self.equalisation == "histogram" else self._clahe.apply(grey)
            grey = np.asarray(equalised, dtype=np.uint8)
        if not near:
            found = self._search(grey, self.min_face, 0)
        else:
            found = []
            for x, y, w, h in near:
                for detection in self._search_roi(grey, (x / shrink, y / shrink, w / shrink, h / shrink)):
                    if all(iou(detection.box, other.box) < NMS_IOU for other in found):
                        found.append(detection)
        return [replace(face, box=scaled(face.box, shrink)) for face in found]

    def _search_roi(self, grey: UInt8Array, box: tuple[float, float, float, float]) -> list[Detection]:
        """Look for a face of about that size around a box."""
        x, y, w, h = box
        side = max(w, h)
        left, top = max(0, round(x - side * ROI_MARGIN)), max(0, round(y - side * ROI_MARGIN))
        roi = grey[top : max(0, round(y + h + side * ROI_MARGIN)), left : max(0, round(x + w + side * ROI_MARGIN))]
        if min(roi.shape) < 2:
            return []
        # the cascade's own window is 20 pixels; at twice to thrice that a face is found as well as at any size
        roi, shrink = _downscaled(roi, max(roi.shape) * ROI_FACE_PX / side)
        found = self._search(roi, *(round(side * share / shrink) for share in ROI_SCALES))
        moved = [(*scaled(d.box, shrink), d.score) for d in found]
        return [Detection((x + left, y + top, w, h), score) for x, y, w, h, score in moved]

    def _search(self, grey: UInt8Array, min_side: int, max_side: int) -> list[Detection]:
        """Faces between `min_side` and `max_side` pixels wide; maximum 0: of any size."""
        boxes, counts = self._cascade.detectMultiScale2(
            grey,
            scaleFactor=self.scale_factor,
            minNeighbors=self.min_neighbors,
            minSize=(min_side, min_side),
            maxSize=(max_side, max_side),
        )
        return [
            Detection((int(x), int(y), int(w), int(h)), float(count))
            for (x, y, w, h), count in zip(np.reshape(boxes, (-1, 4)), np.ravel(counts), strict=True)
        ]


def _downscaled(image: UInt8Array, max_side: float) -> tuple[UInt8Array, float]:
    """A picture no longer or wider than `max_side` pixels, and how many times smaller it is than it was."""
    height, width = image.shape[:2]
    shrink = max(1.0, max(height, width) / max_side)
    if shrink > 1:
        size_wh = (max(1, round(width / shrink)), max(1, round(height / shrink)))
        image = cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA)
    return image, shrink


def scaled(box: Box, by: float) -> Box:
    """A box in pixels of a picture that is `by` times as large, rounded."""
    x, y, w, h = (round(side * by) for side in box)
    return x, y, w, h


class YunetDetector(Detector):
    """OpenCV's YuNet (Wu, Peng and Yu, "YuNet: A Tiny Millisecond-level Face Detector", 2023), out of a user's file."""

    name = "yunet"

    def __init__(
        self,
        path: Path,
        search_side: int = SEARCH_SIDE,
        score_threshold: float = YUNET_THRESHOLD,
    ) -> None:
        """Open the network.

        Args:
            path: ONNX file, e.g. ``face_detection_yunet_2023mar.onnx`` of OpenCV's model zoo.
            search_side: Longest side in pixels of the frame as searched.
            score_threshold: Score, 0 to 1, from which a face is accepted.

        Raises:
            DependencyError: If this OpenCV has no FaceDetectorYN.
            InputError: If the file cannot be read; ModelError if OpenCV refuses it.
        """
        if not hasattr(cv2, "FaceDetectorYN"):
            raise DependencyError(
                f"OpenCV {cv2.__version__} has no FaceDetectorYN, which runs YuNet; "
                "run: pip install 'opencv-python>=4.8,<5'"
            )
        read_bytes(path)  # for its one line: OpenCV does not tell a missing file from a damaged one
        if path.suffix.lower() != ".onnx":  # by which OpenCV chooses the reader
            raise ModelError(f"{path} is not YuNet's model (.onnx); {YUNET_REMEDY}")
        self.search_side, self._path = search_side, path
        try:
            self._network: Any = cv2.FaceDetectorYN.create(str(path), "", (320, 320), score_threshold, NMS_IOU)
        except cv2.error as error:
            raise self._refused(error) from error

    def __call__(self, image: UInt8Array, near: Sequence[Box] = ()) -> list[Detection]:
        """Find faces everywhere; `score` is from 0 to 1. Raises ModelError if the file is another network's."""
        smaller, shrink = _downscaled(image, self.search_side)
        try:
            self._network.setInputSize(smaller.shape[1::-1])
            _, found = self._network.detect(cv2.cvtColor(smaller, cv2.COLOR_GRAY2BGR) if smaller.ndim == 2 else smaller)
        except cv2.error as error:
            raise self._refused(error) from error
        if found is None:
            return []
        # a row: left, top, width, height, five landmarks, score
        return [
            Detection((round(x), round(y), max(1, round(w)), max(1, round(h))), score)
            for (x, y, w, h), score in zip((found[:, :4] * shrink).tolist(), found[:, -1].tolist(), strict=True)
        ]

    def _refused(self, error: Exception) -> ModelError:
        return ModelError(
            f"{self._path} is refused by the FaceDetectorYN of OpenCV {cv2.__version__}: "
            f"{' '.join(str(error).split())[:200]}; {YUNET_REMEDY}"
        )


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes (left, top, width, height), 0 to 1."""
    shared = intersection(a, b)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared) if shared else 0.0


def intersection(a: Box, b: Box) -> int:
    """Area that two boxes (left, top, width, height) share, in pixels."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)


def _open_haar(search_side: int, model_path: Path | None, runtime: str, threads: int) -> Detector:
    if model_path is not None:
        raise InputError(f"detector 'haar' takes no model file; leave {model_path} out or name another detector")
    return HaarDetector(search_side=search_side)


def _open_learned(search_side: int, model_path: Path | None, runtime: str, threads: int) -> Detector:
    # imported here, as it imports this module
    from maskfer_edge.learned_detector import open_learned_detector

    return open_learned_detector(model_path, runtime, threads)


def _open_yunet(search_side: int, model_path: Path | None, runtime: str, threads: int) -> Detector:
    if model_path is None:
        raise InputError(
            f"detector 'yunet' needs its model file: {YUNET_REMEDY} and name it with --detector-model FILE"
        )
    return YunetDetector(model_path, search_side)


DETECTORS = {"haar": _open_haar, "learned": _open_learned, "yunet": _open_yunet}


def open_detector(
    name: str,
    search_side: int = SEARCH_SIDE,
    model_path: Path | None = None,
    runtime: str = AUTO,
    threads: int = 1,
) -> Detector:
    """A detector by its name.

    Args:
        name: ``haar``, ``learned`` or ``yunet``.
        search_side: Longest side in pixels at which faces are searched; the learned detector has a size of its own.
        model_path: Its model file: for ``learned`` one of ours (None: the bundled one), for ``yunet`` an ONNX file,
            which must be named; for ``haar`` None.
        runtime: Of the learned detector; see `runtime.open_interpreter`.
        threads: Likewise.

    Raises:
        InputError: If there is no detector of that name, or the model file is missing or unfit.
        DependencyError: If what the detector needs is not installed.
    """
    if name not in DETECTORS:
        raise InputError(f"unknown detector {name!r}; known: {', '.join(DETECTORS)}")
    return DETECTORS[name](search_side, model_path, runtime, threads)
