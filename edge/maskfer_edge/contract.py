"""What training, conversion and the live runtime agree on: labels, input size and preprocessing.

Every picture that a network ever sees, in training, calibration, evaluation and on a camera,
passes through `preprocess`; nothing else may resize or grey a face.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from maskfer_edge.dependencies import cv2
from maskfer_edge.errors import InputError

LABELS = ("Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")
INPUT_SIZE = 48
# How the boxes of each detector sit on a face, against the framing of FER2013's crops, on which networks are
# trained: the median Haar box is 0.99 of the crop's side, with the same centre (tests/edge/test_framing.py), and so is
# the longer side of the boxes by which the learned detector is trained, which are made as YuNet's are: 1.00.
CROP_MARGINS = {"haar": 0.0, "learned": 0.0, "yunet": 0.0}

UInt8Array = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]
Box = tuple[float, float, float, float]


def preprocess(image: UInt8Array, box_xywh: Box, margin: float = 0.0, size: int = INPUT_SIZE) -> UInt8Array:
    """Cut one face out of a picture, as the network sees it.

    The box is made square about its centre (its longer side counts), widened by `margin` of that
    side on each edge, cut out (pixels beyond the picture repeat its edge), made grey and resized
    by area interpolation; a crop smaller than `size` is enlarged bilinearly, as area
    interpolation would only repeat pixels there.

    Args:
        image: uint8, 0 to 255: (height, width) grey or (height, width, 3) in B,G,R order.
        box_xywh: Left, top, width, height in pixels; may reach beyond the picture.
        margin: Share of the square's side added on each edge; negative cuts tighter.
        size: Side of the result in pixels.

    Returns:
        (size, size) uint8 grey, 0 to 255.

    Raises:
        InputError: If the picture is empty or of another type, or the box has no area.
    """
    if image.dtype != np.uint8 or image.size == 0 or not (image.ndim == 2 or image.shape[2:] == (3,)):
        raise InputError(f"expected a uint8 picture, grey or B,G,R; received {image.dtype} of {image.shape}")
    x, y, w, h = box_xywh
    side = max(w, h) * (1.0 + 2.0 * margin)
    if not (w > 0 and h > 0 and side > 0 and np.isfinite([x, y, side]).all()):
        raise InputError(f"expected a box with an area; received {box_xywh} with margin {margin}")
    side_px = max(1, round(side))
    height, width = image.shape[:2]
    # a box far out shows the edge, as one that touches it does, and takes no more memory
    left = min(max(round(x + w / 2 - side_px / 2), 1 - side_px), width - 1)
    top = min(max(round(y + h / 2 - side_px / 2), 1 - side_px), height - 1)
    x0, y0 = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    x1, y1 = min(max(left + side_px, x0 + 1), width), min(max(top + side_px, y0 + 1), height)
    crop = image[y0:y1, x0:x1]
    if crop.ndim == 3:
        crop = cv2.cvtColor(crop, cv2.COLOR_BGR2GRAY)
    before_x, before_y = max(0, x0 - left), max(0, y0 - top)
    after_x, after_y = max(0, left + side_px - x1), max(0, top + side_px - y1)
    if before_x or before_y or after_x or after_y:
        crop = cv2.copyMakeBorder(crop, before_y, after_y, before_x, after_x, cv2.BORDER_REPLICATE)
    if crop.shape == (size, size):
        return np.array(crop, dtype=np.uint8)  # a copy, never a view of the picture
    interpolation = cv2.INTER_AREA if side_px >= size else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(crop, (size, size), interpolation=interpolation), dtype=np.uint8)


def preprocess_crop(image: UInt8Array, size: int = INPUT_SIZE) -> UInt8Array:
    """`preprocess` for a picture that is a face crop already: the box is the whole picture."""
    height, width = image.shape[:2]
    return preprocess(image, (0, 0, width, height), size=size)
