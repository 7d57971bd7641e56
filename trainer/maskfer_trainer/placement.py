"""Where a mask sits on a face: maps from a picture's pixels to face units (see `masks`)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskfer_edge.dependencies import cv2
from maskfer_edge.errors import InputError
from maskfer_trainer.landmarks import Landmarks
from maskfer_trainer.masks import JAW, NOSE, Points
from maskfer_trainer.reliefs import Field

# Landmark indices of the iBUG 300-W mark-up.
JAW_RIGHT, CHIN, JAW_LEFT = slice(0, 9), 8, slice(8, 17)
NOSE_BRIDGE, NOSE_TIP = 27, 30
EYES, MOUTH = slice(36, 48), slice(48, 68)
# The pivots of the paper's homography: how far down from the bridge to the tip of the nose the first
# lies, and how far down from there to the chin those on the cheeks.
RIDGE, CHEEK_HEIGHT = 0.38, 0.38
# On turned heads the nose leaves the middle of the face; beyond this share of the face's width from
# the nearer cheek the mask would fold over.
NEAREST_CHEEK = 0.12
FITS = ("mesh", "homography")

CANONICAL_JAW: Points = np.array([*((-x, y) for x, y in JAW), *JAW[-2::-1]], dtype=np.float32)
INNER = 0.55


def canonical_landmarks() -> Landmarks:
    """(68, 2) float32 face units of a frontal face; eyes and mouth are points, what masks do not need is 0."""
    landmarks = np.zeros((68, 2), dtype=np.float32)
    landmarks[:17] = CANONICAL_JAW
    landmarks[NOSE_BRIDGE : NOSE_TIP + 1] = NOSE
    landmarks[36:42], landmarks[42:48], landmarks[MOUTH] = (-0.45, 0.05), (0.45, 0.05), (0, 1.1)
    return landmarks


def find_pivots(landmarks: Landmarks) -> Points:
    """The four points of the paper's homography, by ratios of landmarks (own ratios).

    The first lies on the ridge of the nose, `RIDGE` of the way from bridge to tip; the third at the
    chin. The second and fourth lie on the jaw line where it has gone `CHEEK_HEIGHT` of the way from
    the first to the third, measured along that axis, so that they follow roll and pitch.

    Args:
        landmarks: (68, 2) float32 pixels.

    Returns:
        (4, 2) float32 pixels: nose ridge, right of the picture, chin, left of the picture.

    Raises:
        InputError: If the landmarks are implausible: no convex quadrilateral of some size.
    """
    top = landmarks[NOSE_BRIDGE] + RIDGE * (landmarks[NOSE_TIP] - landmarks[NOSE_BRIDGE])
    bottom = landmarks[CHIN]
    axis = bottom - top
    length_squared = float(axis @ axis)
    if length_squared <= 0:
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
    if width_squared <= 0:
        raise InputError("implausible landmarks: the cheeks coincide")
    share = float((top - left) @ across) / width_squared
    top = top + (np.clip(share, NEAREST_CHEEK, 1 - NEAREST_CHEEK) - share) * across
    pivots = np.stack([top, right, bottom, left]).astype(np.float32)
    if not cv2.isContourConvex(pivots.reshape(-1, 1, 2)) or across[0] <= 0:
        raise InputError("implausible landmarks: the mask's four pivots form no convex quadrilateral")
    return pivots


CANONICAL_PIVOTS = find_pivots(canonical_landmarks())
MIN_UNIT_PX = 4.0
# A jaw may lie off the picture by so much of its sides, as in close-ups; and the predictor sometimes crowds
# a nose up between the eyes, which does a mask no harm up to so much of the way to the chin.
JAW_SLACK, NOSE_SLACK = 0.25, 0.04


def check_plausible(landmarks: Landmarks, size_wh: tuple[int, int]) -> Points:
    """Refuse landmarks that no mask can be fitted to.

    Args:
        landmarks: (68, 2) float32 pixels.
        size_wh: Width and height of the picture.

    Returns:
        Their pivots, see `find_pivots`.

    Raises:
        InputError: If they form no face, the face is under 8 pixels wide, or it lies off the picture.
    """
    pivots = find_pivots(landmarks)
    if unit_length(pivots) < MIN_UNIT_PX:
        raise InputError(f"face too small: under {2 * MIN_UNIT_PX:.0f} pixels wide")
    jaw = landmarks[:17]
    slack = JAW_SLACK * np.array(size_wh)
    outside = ((jaw < -slack) | (jaw > np.array(size_wh) + slack)).any(axis=1)
    if outside.mean() > 0.5:
        raise InputError("implausible landmarks: most of the jaw lies off the picture")
    axis = pivots[2] - pivots[0]
    tip = landmarks[NOSE_TIP] + NOSE_SLACK * axis
    eyes, mouth = (float((landmarks[part].mean(axis=0) - tip) @ axis) for part in (EYES, MOUTH))
    if eyes >= 0 or mouth <= 0:
        raise InputError("implausible landmarks: eyes, nose and mouth are out of order")
    return pivots


def unit_length(pivots: Points) -> float:
    """Pixels a face unit: half the face's width, or what its height says where a turn narrows it."""
    width = float(np.linalg.norm(pivots[1] - pivots[3]))
    height = float(np.linalg.norm(pivots[2] - pivots[0]))
    return max(width / 2, height / float(CANONICAL_PIVOTS[2, 1] - CANONICAL_PIVOTS[0, 1]))


def head_turn(landmarks: Landmarks) -> tuple[float, float]:
    """Where the nose points, from ratios of landmarks: (yaw, roll).

    Yaw is -1 to 1, the nose's way from the middle towards a cheek (1: it hides the cheek on the
    right of the picture); roll is in degrees, positive clockwise in the picture.
    """
    left, right = landmarks[2], landmarks[14]
    across = right - left
    share = float((landmarks[NOSE_TIP] - left) @ across) / max(float(across @ across), 1e-6)
    eyes = landmarks[42:48].mean(axis=0) - landmarks[36:42].mean(axis=0)
    return float(np.clip(2 * share - 1, -1, 1)), float(np.degrees(np.arctan2(eyes[1], eyes[0])))


def face_mesh(landmarks: Landmarks, protrusion: float = 0.0) -> tuple[Points, Points]:
    """Points on a mask's surface: in face units, and where they lie in the picture (own method).

    Eight rows run from jaw to jaw. Each one's middle lies on the line that cloth takes: along the
    ridge of the nose, then straight from its tip to the chin. How far that middle has left the middle
    of its row is what the head's yaw and pitch do to a surface that stands off; points between are
    placed as on a round surface turned as much, crowded on the side that turns away.

    Args:
        landmarks: (68, 2) float32 pixels.
        protrusion: How far the mask stands off in front of nose and chin, as a share of that.

    Returns:
        (n, 2) float32 face units and (n, 2) float32 pixels.
    """
    rows = CANONICAL_JAW[:8, 1]
    ridge_y = np.array([*[y for _, y in NOSE], CANONICAL_JAW[CHIN, 1]])
    ridge = landmarks[[*range(NOSE_BRIDGE, NOSE_TIP + 1), CHIN]]
    middle = np.stack([np.interp(rows, ridge_y, ridge[:, k]) for k in (0, 1)], axis=1)
    left, right = landmarks[:8].astype(np.float64), landmarks[16:8:-1].astype(np.float64)
    across = right - left
    centre = (left + right) / 2
    off = (middle - centre) * (1 + protrusion)
    squared = np.maximum((across**2).sum(axis=1), 1e-6)
    along = (off * across).sum(axis=1) / squared
    limit = 0.5 - NEAREST_CHEEK
    off += (np.clip(along, -limit, limit) - along)[:, None] * across
    along = np.clip(along, -limit, limit)[:, None]
    upright = off - along * across  # what pitch does

    units, pixels = [CANONICAL_JAW], [landmarks[:17].astype(np.float64)]
    width = -CANONICAL_JAW[:8, 0]
    for u in (-INNER, 0.0, INNER):
        if u == 0:
            share = along
        else:
            side = 1.0 if u > 0 else -1.0
            room = 0.5 - side * along  # from the middle to this side's edge, share of the width
            far = 1 - (1 - INNER) ** (0.5 / room)
            near = (0.5 * INNER + (room - 0.5) * INNER**2) / room
            share = along + side * room * np.where(room < 0.5, far, near)
        units.append(np.stack([u * width, rows], axis=1))
        pixels.append(centre + share * across + (1 - u * u) * upright)
    return np.concatenate(units).astype(np.float32), np.concatenate(pixels).astype(np.float32)


@dataclass(frozen=True)
class FaceMap:
    """Tells for each pixel of a picture which point of the face it shows.

    Attributes:
        unit_px: Pixels a face unit.
        bounds_px: (2, 2) float32: the smallest and largest x and y of the face below the eyes.
    """

    unit_px: float
    bounds_px: Points
    _centres: Field
    _weights: Field

    def __call__(self, pixels: Points) -> Points:
        """(n, 2) pixels to (n, 2) float32 face units."""
        scaled = pixels.astype(np.float64) / self.unit_px
        n = len(self._centres)
        mapped = _kernel(scaled, self._centres) @ self._weights[:n] + scaled @ self._weights[n + 1 :] + self._weights[n]
        return settled(mapped)


def _kernel(points: Field, centres: Field) -> Field:
    across, down = (np.subtract.outer(points[:, k], centres[:, k]) for k in (0, 1))
    squared = across * across + down * down
    return np.asarray(squared * np.log(np.maximum(squared, 1e-12)))


def settled(places: Field) -> Points:
    """Rounded to a hundred thousandth of a face unit, float32.

    Products of matrices differ in their last bits from one machine, or one place in memory, to another, and
    the same seed must give the same bytes everywhere.
    """
    return np.round(places, 5).astype(np.float32)


SMOOTHING = 0.02


def mesh_map(landmarks: Landmarks, unit_px: float, protrusion: float = 0.0) -> FaceMap:
    """A smooth map that takes the points of `face_mesh` back to face units: a thin-plate spline (Bookstein 1989)."""
    units, pixels = face_mesh(landmarks, protrusion)
    centres = pixels.astype(np.float64) / unit_px
    n = len(centres)
    system = np.zeros((n + 3, n + 3))
    # smoothing, as landmarks of small pictures tremble
    system[:n, :n] = _kernel(centres, centres) + SMOOTHING * np.eye(n)
    system[:n, n], system[:n, n + 1 :] = 1, centres
    system[n:, :n] = system[:n, n:].T
    right_side = np.zeros((n + 3, 2))
    right_side[:n] = units
    weights = np.linalg.solve(system, right_side)
    return FaceMap(unit_px, np.stack([pixels.min(axis=0), pixels.max(axis=0)]), centres, weights)


HORIZON = 0.2


class HomographyMap:
    """The paper's placement: four pivots, getPerspectiveTransform. Called as `FaceMap` is."""

    def __init__(self, landmarks: Landmarks, pivots: Points) -> None:
        self.unit_px = unit_length(pivots)
        self.bounds_px: Points = np.stack([landmarks[:17].min(axis=0), landmarks[:17].max(axis=0)])
        matrix = cv2.getPerspectiveTransform(pivots, CANONICAL_PIVOTS)
        # of the chin, the depth is 1
        self._matrix = matrix / (matrix[2] @ (*pivots[2], 1))

    def __call__(self, pixels: Points) -> Points:
        """(n, 2) pixels to (n, 2) float32 face units."""
        mapped = np.column_stack([pixels, np.ones(len(pixels))]) @ self._matrix.T
        # towards the horizon and beyond it the face would come again, mirrored
        return settled(mapped[:, :2] / np.maximum(mapped[:, 2:], HORIZON))
