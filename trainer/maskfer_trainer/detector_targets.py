"""What the face detector's maps should say of a scene. Without Keras, as processes that make batches import it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from maskfer_edge.contract import FloatArray
from maskfer_edge.detector import Box

# Of a scene, and of what the network sees.
SIZE_WH = (320, 240)
# Faces whose larger side is smaller are ignored.
MIN_FACE_PX = 14.0
STRIDE = 8
MAP_WH = (SIZE_WH[0] // STRIDE, SIZE_WH[1] // STRIDE)
# A cell's heat falls off from a face's centre as a normal curve of this share of the face's side.
SPREAD = 0.13


def targets(faces: Sequence[Box], ignored: Sequence[Box]) -> FloatArray:
    """What the maps should say of a scene.

    Args:
        faces: Boxes (left, top, width, height) in pixels of the scene.
        ignored: Boxes in which nothing counts.

    Returns:
        (30, 40, 7) float32: heat 0 to 1, whether that counts in the loss, whether the cell holds a centre, and its
        four numbers of `detector_network.build_detector`'s boxes.
    """
    width, height = MAP_WH
    maps = np.zeros((height, width, 7), dtype=np.float32)
    maps[..., 1] = 1
    for x, y, w, h in ignored:
        maps[_cells_near(y, h), _cells_near(x, w), 1] = 0
    heat = np.zeros((height, width))
    # the smallest last: where two centres share a cell, it is the one that is easier to miss
    for x, y, w, h in sorted(faces, key=lambda box: -box[2] * box[3]):
        centre_x, centre_y = (x + w / 2) / STRIDE, (y + h / 2) / STRIDE
        column, row = min(width - 1, int(centre_x)), min(height - 1, int(centre_y))
        # the normal curve of two variables is the product of one of each
        np.maximum(heat, np.outer(_normal(row, height, h), _normal(column, width, w)), out=heat)
        maps[row, column, 1:] = (
            1, 1, centre_x - column - 0.5, centre_y - row - 0.5, math.log(w / STRIDE), math.log(h / STRIDE),
        )  # fmt: skip
    maps[..., 0] = heat
    return maps


def _cells_near(start: int, side: int) -> slice:
    """Along one axis, the cells whose centres lie in a box or less than half a cell beyond it."""
    first, end = start / STRIDE - 1, (start + side) / STRIDE
    return slice(max(0, math.floor(first) + 1), max(0, math.ceil(end)))


def _normal(cell: int, cells: int, side: int) -> FloatArray:
    sigma = max(0.35, SPREAD * side / STRIDE)
    return np.asarray(np.exp(-((np.arange(cells) - cell) ** 2) / (2 * sigma**2)))
