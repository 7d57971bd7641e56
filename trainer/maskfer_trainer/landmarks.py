"""The 68 facial landmarks of dlib."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from maskfer_edge.contract import UInt8Array
from maskfer_edge.dependencies import cv2, extra
from maskfer_edge.errors import DependencyError

PREDICTOR_FILE = "shape_predictor_68_face_landmarks.dat"
# The predictor was trained on faces of about this size; 48-pixel crops are enlarged to it.
MIN_SIDE_PX = 144

Landmarks = npt.NDArray[np.float32]


def find_predictor() -> Path:
    """Where the 68-point model lies: inside the package ``face-recognition-models``.

    The package is found, not imported (its ``__init__`` needs pkg_resources). Its training data
    (iBUG 300-W) excludes commercial use.

    Raises:
        DependencyError: If the package is not installed.
    """
    spec = importlib.util.find_spec("face_recognition_models")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "models" / PREDICTOR_FILE
        if path.is_file():
            return path
    raise DependencyError(f"{PREDICTOR_FILE} is not installed; run: pip install 'maskfer[trainer]'")


def check_installed() -> None:
    """Find out before long work, and before worker processes start, whether landmarks can be found.

    Raises:
        DependencyError: If dlib or the 68-point model is not installed.
    """
    with extra("trainer"):
        import dlib  # noqa: F401
    find_predictor()


class LandmarkPredictor:
    """Finds 68 landmarks on a face."""

    def __init__(self, path: Path | None = None) -> None:
        with extra("trainer"):
            import dlib
        self._rectangle = dlib.rectangle
        self._predictor = dlib.shape_predictor(str(path or find_predictor()))

    def __call__(self, grey: UInt8Array, box_xywh: tuple[float, float, float, float] | None = None) -> Landmarks:
        """Find the landmarks.

        Args:
            grey: (height, width) uint8.
            box_xywh: The face in pixels, as dlib's detector frames faces; None for the whole
                picture, as that detector misses about 30 % of 48-pixel crops.

        Returns:
            (68, 2) float32, x and y in pixels of `grey`, in the order of the iBUG 300-W mark-up.
        """
        height, width = grey.shape
        x, y, w, h = box_xywh or (0, 0, width, height)
        scale = max(1.0, MIN_SIDE_PX / min(w, h))
        # of a large picture, only the face and its surroundings are enlarged
        x0, y0 = max(0, math.floor(x - w / 2)), max(0, math.floor(y - h / 2))
        x1, y1 = min(width, math.ceil(x + 1.5 * w)), min(height, math.ceil(y + 1.5 * h))
        part = np.ascontiguousarray(grey[y0:y1, x0:x1])
        if scale > 1:
            part = np.asarray(cv2.resize(part, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC), dtype=np.uint8)
        left, top = (x - x0) * scale, (y - y0) * scale
        rectangle = self._rectangle(
            round(left), round(top), round(left + w * scale) - 1, round(top + h * scale) - 1
        )  # both corners belong to it
        shape = self._predictor(part, rectangle)
        points = np.array([(point.x, point.y) for point in shape.parts()], dtype=np.float32)
        return np.asarray((points + 0.5) / scale - 0.5 + (x0, y0), dtype=np.float32)
