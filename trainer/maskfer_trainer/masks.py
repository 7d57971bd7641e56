"""Mask pictures with an alpha channel, drawn here (own drawings, no photographs).

A template is drawn in face units: x runs from -1 (the wearer's right cheek, left in the picture)
to 1, y from 0 (the ridge of the nose) to 1 (the chin). Its four anchors are the four pivots that
`placement.find_pivots` finds on a face.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from maskfer_edge.contract import FloatArray
from maskfer_edge.dependencies import cv2

# How far down the way from nose ridge to chin the two cheek anchors lie.
CHEEK_HEIGHT = 0.38
UNIT_PX = 360
ORIGIN_UNITS = (1.45, 0.2)
CANVAS_UNITS = (2.9, 1.45)
OVERSAMPLE = 2

Points = npt.NDArray[np.float32]
Colour = tuple[int, int, int]

# Right halves of the outlines, from the ridge of the nose down to the chin. They follow the
# median jaw line of dlib's landmarks on FER2013 training faces, a little outside of it.
OUTLINES: dict[str, tuple[tuple[float, float], ...]] = {
    "surgical": (
        (0.0, -0.02), (0.14, 0.0), (0.28, 0.08), (0.52, 0.15), (0.8, 0.18), (1.03, 0.2),
        (1.01, 0.36), (0.95, 0.52), (0.84, 0.68), (0.7, 0.83), (0.5, 0.95), (0.25, 1.04), (0.0, 1.07),
    ),
    "kn95": (
        (0.0, -0.06), (0.1, -0.03), (0.26, 0.1), (0.5, 0.22), (0.8, 0.28), (1.0, 0.3),
        (0.98, 0.42), (0.88, 0.6), (0.72, 0.8), (0.48, 0.96), (0.22, 1.08), (0.0, 1.12),
    ),
    "cloth": (
        (0.0, 0.02), (0.16, 0.03), (0.34, 0.06), (0.6, 0.1), (0.86, 0.16), (1.03, 0.26),
        (0.99, 0.42), (0.9, 0.6), (0.74, 0.78), (0.54, 0.92), (0.28, 1.02), (0.0, 1.05),
    ),
}  # fmt: skip

# name: (shape, cloth colour R,G,B, loop colour R,G,B)
KINDS: dict[str, tuple[str, Colour, Colour]] = {
    "surgical-blue": ("surgical", (142, 190, 216), (238, 240, 242)),
    "surgical-white": ("surgical", (236, 238, 238), (244, 244, 244)),
    "surgical-black": ("surgical", (38, 38, 42), (30, 30, 32)),
    "kn95-white": ("kn95", (242, 241, 236), (240, 240, 240)),
    "cloth-black": ("cloth", (30, 29, 31), (24, 24, 26)),
    "cloth-red": ("cloth", (148, 46, 52), (120, 36, 42)),
}


@dataclass(frozen=True)
class MaskTemplate:
    """One mask picture, ready to be warped onto faces.

    Attributes:
        name: A key of `KINDS`.
        levels: The picture at full, half, quarter… size: (h, w, 4) float32, R,G,B,A in 0 to 1,
            colours multiplied by alpha so that interpolation leaves no fringe.
        anchors: (4, 2) float32 pixels of level 0: nose ridge, left-of-face cheek (x = 1), chin,
            right-of-face cheek (x = -1).
        outline: (n, 2) float32 pixels of level 0: the cloth's closed outline.
    """

    name: str
    levels: tuple[FloatArray, ...]
    anchors: Points
    outline: Points


def to_canvas(points: Points, unit: float = UNIT_PX) -> Points:
    """Face units to canvas pixels."""
    return np.asarray((points + np.array(ORIGIN_UNITS)) * unit, dtype=np.float32)


def smooth_outline(half: tuple[tuple[float, float], ...]) -> Points:
    """Close a half outline by mirroring and round its corners (Chaikin's corner cutting, own)."""
    right = np.array(half, dtype=np.float32)
    left = right[-2:0:-1] * np.array((-1, 1))
    points = np.concatenate([right, left])
    for _ in range(3):
        following = np.roll(points, -1, axis=0)
        points = np.stack([0.75 * points + 0.25 * following, 0.25 * points + 0.75 * following], axis=1)
        points = points.reshape(-1, 2)
    return np.asarray(points, dtype=np.float32)


@lru_cache(maxsize=len(KINDS))
def draw_mask(name: str) -> MaskTemplate:
    """Draw a mask.

    Args:
        name: A key of `KINDS`; anything else is a KeyError.
    """
    shape, cloth_rgb, loop_rgb = KINDS[name]
    unit = UNIT_PX * OVERSAMPLE
    size_wh = (round(CANVAS_UNITS[0] * unit), round(CANVAS_UNITS[1] * unit))
    outline = smooth_outline(OUTLINES[shape])

    cloth = np.zeros(size_wh[::-1], dtype=np.uint8)
    cv2.fillPoly(cloth, [np.round(to_canvas(outline, unit)).astype(np.int32)], 255)
    light = _cloth_light(shape, size_wh, unit)
    loops = _draw_loops(shape, size_wh, unit)

    alpha = np.maximum(cloth, loops).astype(np.float32) / 255
    is_cloth = (cloth > 0)[..., None]
    colour = np.where(is_cloth, np.array(cloth_rgb) * light[..., None], np.array(loop_rgb)) / 255
    rgba = np.dstack([np.clip(colour, 0, 1) * alpha[..., None], alpha]).astype(np.float32)

    levels = [_halve(rgba)]
    while min(levels[-1].shape[:2]) > 40:
        levels.append(_halve(levels[-1]))
    anchors = np.array([(0, 0), (1, CHEEK_HEIGHT), (0, 1), (-1, CHEEK_HEIGHT)], dtype=np.float32)
    return MaskTemplate(name, tuple(levels), to_canvas(anchors), to_canvas(outline))


def _halve(picture: FloatArray) -> FloatArray:
    height, width = picture.shape[:2]
    halved = cv2.resize(picture, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    return np.asarray(halved, dtype=np.float32)


def _cloth_light(shape: str, size_wh: tuple[int, int], unit: float) -> FloatArray:
    """How bright each pixel of the cloth is, about 1: rounding towards the sides, folds, nose wire."""
    x, y = np.meshgrid(
        np.arange(size_wh[0], dtype=np.float32) / unit - ORIGIN_UNITS[0],
        np.arange(size_wh[1], dtype=np.float32) / unit - ORIGIN_UNITS[1],
    )
    light = 1.06 - 0.22 * x**2 - 0.12 * (y - 0.35) ** 2

    def fold(distance: FloatArray, width: float, depth: float) -> FloatArray:
        # a lit ridge beside a dark crease
        ridge, crease = np.exp(-(((distance + width) / width) ** 2)), np.exp(-((distance / width) ** 2))
        return np.asarray(depth * (ridge - 1.6 * crease), dtype=np.float32)

    if shape == "surgical":
        for level in (0.36, 0.54, 0.72):
            sag = level + 0.06 * (1 - x**2)
            light += fold((y - sag).astype(np.float32), 0.018, 0.10)
        light += fold((y - 0.06 - 0.12 * np.minimum(np.abs(x) / 0.5, 1) ** 2).astype(np.float32), 0.012, 0.06)
    elif shape == "kn95":
        light -= 0.10 * np.minimum(np.abs(x) / 0.6, 1)
        light += fold(x.astype(np.float32), 0.014, 0.14)
        light += fold((y - 0.1 - 0.28 * np.abs(x)).astype(np.float32), 0.012, 0.05)
    else:
        weave = np.sin(x * 240) * np.sin(y * 240)
        light += 0.015 * weave
        light += fold((np.abs(x) - 0.9 + 0.25 * (y - 0.3) ** 2).astype(np.float32), 0.012, 0.08)
        light += fold(x.astype(np.float32), 0.01, 0.05)
    return np.asarray(light, dtype=np.float32)


def _draw_loops(shape: str, size_wh: tuple[int, int], unit: float) -> npt.NDArray[np.uint8]:
    """Alpha of the ear loops, 0 to 255."""
    loops = np.zeros(size_wh[::-1], dtype=np.uint8)
    top = OUTLINES[shape][5]
    for side in (-1, 1):
        for start, end in ((top, (1.3, 0.02)), ((0.9, 0.6), (1.28, 0.3))):
            line = to_canvas(np.array([start, end], dtype=np.float32) * np.array((side, 1)), unit)
            a, b = (tuple(int(v) for v in np.round(point)) for point in line)
            cv2.line(loops, a, b, 255, round(0.022 * unit), cv2.LINE_AA)
    return loops
