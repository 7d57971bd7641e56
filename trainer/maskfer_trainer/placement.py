"""Where a mask sits on a face, and the picture of the face wearing it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from maskfer_edge.contract import UInt8Array
from maskfer_edge.dependencies import cv2
from maskfer_edge.errors import InputError
from maskfer_trainer.landmarks import Landmarks
from maskfer_trainer.masks import CHEEK_HEIGHT, MaskTemplate, Points

# Landmark indices of the iBUG 300-W mark-up.
JAW_RIGHT, CHIN, JAW_LEFT = slice(0, 9), 8, slice(8, 17)
NOSE_BRIDGE, NOSE_TIP = 27, 30
# On turned heads the nose leaves the middle of the face; beyond this share of the face's width
# from the nearer cheek a homography would fold the mask over.
NEAREST_CHEEK = 0.12


@dataclass(frozen=True)
class Wearing:
    """How one mask is worn.

    Attributes:
        ridge: How far down from between the eyes (0) to the tip of the nose (1) the mask begins.
        brightness: Factor on the mask's colours.
    """

    ridge: float = 0.35
    brightness: float = 1.0


def find_pivots(landmarks: Landmarks, ridge: float = 0.35) -> Points:
    """The four points that a mask's anchors are mapped to, by ratios of landmarks (own ratios).

    The first lies on the ridge of the nose, `ridge` of the way from bridge to tip; the third at the
    chin. The second and fourth lie on the jaw line where it has gone `CHEEK_HEIGHT` of the way from
    the first to the third, measured along that axis, so that they follow roll and pitch.

    Args:
        landmarks: (68, 2) float32 pixels.
        ridge: 0 to 1.

    Returns:
        (4, 2) float32 pixels: nose ridge, right of the picture, chin, left of the picture.

    Raises:
        InputError: If the landmarks are implausible: no convex quadrilateral of some size.
    """
    top = landmarks[NOSE_BRIDGE] + ridge * (landmarks[NOSE_TIP] - landmarks[NOSE_BRIDGE])
    # a little below the chin, which the cloth wraps
    bottom = landmarks[CHIN] + 0.03 * (landmarks[CHIN] - top)
    axis = bottom - top
    length_squared = float(axis @ axis)
    if length_squared < 9.0:
        raise InputError("implausible landmarks: nose and chin coincide")
    heights = (landmarks - top) @ axis / length_squared

    def on_jaw(points: Points, along: Points) -> Points:
        # from the chin upwards; np.interp clamps at the top of the jaw line
        along = np.maximum.accumulate(-along)
        return np.array([np.interp(-CHEEK_HEIGHT, along, points[:, k]) for k in (0, 1)], dtype=np.float32)

    left = on_jaw(landmarks[JAW_RIGHT][::-1], heights[JAW_RIGHT][::-1])
    right = on_jaw(landmarks[JAW_LEFT], heights[JAW_LEFT])

    across = right - left
    width_squared = float(across @ across)
    if width_squared < 9.0:
        raise InputError("implausible landmarks: the cheeks coincide")
    share = float((top - left) @ across) / width_squared
    top = top + (np.clip(share, NEAREST_CHEEK, 1 - NEAREST_CHEEK) - share) * across
    pivots = np.stack([top, right, bottom, left]).astype(np.float32)
    if not cv2.isContourConvex(pivots.reshape(-1, 1, 2)) or across[0] <= 0:
        raise InputError("implausible landmarks: the mask's four pivots form no convex quadrilateral")
    return pivots


def put_on(image: UInt8Array, landmarks: Landmarks, template: MaskTemplate, wearing: Wearing) -> UInt8Array:
    """Put a mask on a face: homography from anchors to pivots, composited with Pillow.

    Args:
        image: (h, w) uint8 grey or (h, w, 3) uint8 B,G,R; not changed.
        landmarks: (68, 2) float32 pixels of `image`.
        template: The mask.
        wearing: How it is worn.

    Returns:
        A new picture of the same shape, dtype and colour order.

    Raises:
        InputError: If the landmarks are implausible (see `find_pivots`) or the mask lies outside.
    """
    pivots = find_pivots(landmarks, wearing.ridge)
    homography = cv2.getPerspectiveTransform(template.anchors, pivots)
    outline = cv2.perspectiveTransform(template.outline[None], homography)[0]
    height, width = image.shape[:2]
    loops = 0.3 * np.abs(np.ptp(pivots[:, 0]))
    x0, y0 = np.floor(np.maximum(outline.min(0) - np.array((loops, 2)), 0)).astype(int)
    x1, y1 = np.ceil(np.minimum(outline.max(0) + np.array((loops + 1, 2)), (width, height))).astype(int)
    if x1 - x0 < 3 or y1 - y0 < 3:
        raise InputError("implausible landmarks: the mask lies outside the picture")

    # Sample finer than the picture and average, so that edges are smooth at 48 pixels too.
    finer = int(np.clip(round(400 / (x1 - x0)), 1, 4))
    scale = float(np.ptp(pivots[:, 0]) * finer / np.ptp(template.anchors[:, 0]))
    level = int(np.clip(np.floor(-np.log2(max(scale, 1e-6))), 0, len(template.levels) - 1))
    shrink = 0.5**level
    centre = 0.5 * (shrink - 1)  # pixel centres, not corners, keep their place between levels
    from_level = np.array([[shrink, 0, centre], [0, shrink, centre], [0, 0, 1]], dtype=np.float64)
    to_region = np.array(
        [[finer, 0, (0.5 - x0) * finer - 0.5], [0, finer, (0.5 - y0) * finer - 0.5], [0, 0, 1]],
        dtype=np.float64,
    )
    warped = cv2.warpPerspective(
        template.levels[level],
        to_region @ homography @ np.linalg.inv(from_level),
        (int(x1 - x0) * finer, int(y1 - y0) * finer),
        flags=cv2.INTER_LINEAR,
    )
    if finer > 1:
        warped = cv2.resize(warped, (int(x1 - x0), int(y1 - y0)), interpolation=cv2.INTER_AREA)
    alpha = warped[..., 3:]
    colours = warped[..., :3] / np.maximum(alpha, 1e-3) * wearing.brightness * _light_on(image, outline)
    rgba = np.round(np.clip(np.dstack([colours, alpha]), 0, 1) * 255).astype(np.uint8)

    overlay = Image.fromarray(rgba)
    position = (int(x0), int(y0))
    if image.ndim == 2:
        face = Image.fromarray(image)
        face.paste(overlay.convert("L"), position, overlay.getchannel("A"))
        return np.asarray(face, dtype=np.uint8).copy()
    face = Image.fromarray(np.ascontiguousarray(image[..., ::-1]))
    face.paste(overlay.convert("RGB"), position, overlay.getchannel("A"))
    return np.ascontiguousarray(np.asarray(face, dtype=np.uint8)[..., ::-1])


def _light_on(image: UInt8Array, outline: Points) -> float:
    """How brightly the face under the mask is lit, about 1; a dim face wears a dim mask."""
    inside = np.zeros(image.shape[:2], dtype=np.uint8)
    cv2.fillConvexPoly(inside, np.round(outline).astype(np.int32), 255)
    mean = float(np.mean(cv2.mean(image, mask=inside)[: 1 if image.ndim == 2 else 3]))
    return float(0.55 + 0.45 * np.clip(mean / 120.0, 0.1, 1.2))
