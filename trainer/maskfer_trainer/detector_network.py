"""The face detector: a centre-point network, its targets, its loss and what its maps mean.

After CenterNet (Zhou, Wang and Krähenbühl, "Objects as Points", 2019); the network is an own design. Plain Keras 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import Input, Model, initializers, layers, ops

from maskfer_edge.contract import FloatArray
from maskfer_edge.detector import Box
from maskfer_trainer.scenes import SIZE_WH

STRIDE = 8
MAP_WH = (SIZE_WH[0] // STRIDE, SIZE_WH[1] // STRIDE)
# Share of cells that hold a face at the start of training, so that the first steps are not spent on finding that out.
PRIOR = 0.01
# A cell's heat falls off from a face's centre as a normal curve of this share of the face's side.
SPREAD = 0.13
BOX_WEIGHT = 1.0


def build_detector() -> Model:
    """A small feature pyramid: 59 million multiply-accumulates on 320×240 (own design).

    Input: (240, 320, 1) float grey pixels, 0 to 255. Outputs: ``heat`` (30, 40, 1), the probability that a face's
    centre lies in a cell; ``boxes`` (30, 40, 4): the centre's offset from the cell's centre in cells (x, y), and the
    logarithms of the face's width and height in cells.
    """
    inputs = Input((SIZE_WH[1], SIZE_WH[0], 1), name="grey")
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    # by 2×2 first: with one channel in, an integer kernel spends as much on each of 3×3 places as on eight channels
    x = _convolve(_convolve(x, 8, stride=2, kernel=2), 16, stride=2)
    fine = _residual(_convolve(x, 32, stride=2), 32, convolutions=1)
    middle = _residual(_convolve(fine, 48, stride=2), 48, convolutions=2)
    coarse = _residual(_convolve(middle, 64, stride=2), 64, convolutions=2)
    middle = _add_above(middle, coarse, 48)
    fine = _convolve(_add_above(fine, middle, 32), 32)
    heat = layers.Conv2D(
        1, 1, activation="sigmoid", bias_initializer=initializers.Constant(math.log(PRIOR / (1 - PRIOR))), name="heat"
    )(fine)
    boxes = layers.Conv2D(4, 1, name="boxes")(fine)
    return Model(inputs, {"heat": heat, "boxes": boxes}, name="centre-point")


def _convolve(x: Any, filters: int, stride: int = 1, kernel: int = 3, *, activate: bool = True) -> Any:
    x = layers.Conv2D(filters, kernel, stride, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    return layers.ReLU()(x) if activate else x


def _residual(x: Any, filters: int, convolutions: int) -> Any:
    inner = x
    for number in range(convolutions):
        inner = _convolve(inner, filters, activate=number < convolutions - 1)
    return layers.ReLU()(layers.Add()([x, inner]))


def _add_above(x: Any, above: Any, filters: int) -> Any:
    """Add the coarser map, enlarged to the finer one's size."""
    # bilinear is one operator of TFLite's fast kernels, nearest neighbours are three slow ones
    larger = layers.UpSampling2D(2, interpolation="bilinear")(_convolve(above, filters, kernel=1))
    extra = [have - want for have, want in zip(larger.shape[1:3], x.shape[1:3], strict=True)]
    if any(extra):
        larger = layers.Cropping2D(((0, extra[0]), (0, extra[1])))(larger)
    return layers.Add()([x, larger])


def targets(faces: Sequence[Box], ignored: Sequence[Box]) -> FloatArray:
    """What the maps should say of a scene.

    Args:
        faces: Boxes (left, top, width, height) in pixels of the scene.
        ignored: Boxes in which nothing is judged.

    Returns:
        (30, 40, 7) float32: heat 0 to 1, whether the cell's heat is judged, whether it holds a centre, and its four
        numbers of `build_detector`'s boxes.
    """
    width, height = MAP_WH
    found = np.zeros((height, width, 7), dtype=np.float32)
    found[..., 1] = 1
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    for x, y, w, h in ignored:
        inside = (abs(columns - (x + w / 2) / STRIDE) < w / 2 / STRIDE + 0.5) & (
            abs(rows - (y + h / 2) / STRIDE) < h / 2 / STRIDE + 0.5
        )
        found[inside, 1] = 0
    # the smallest last: where two centres share a cell, it is the one that is easier to miss
    for x, y, w, h in sorted(faces, key=lambda box: -box[2] * box[3]):
        centre_x, centre_y = (x + w / 2) / STRIDE, (y + h / 2) / STRIDE
        column, row = min(width - 1, int(centre_x)), min(height - 1, int(centre_y))
        sigma_x, sigma_y = max(0.35, SPREAD * w / STRIDE), max(0.35, SPREAD * h / STRIDE)
        heat = np.exp(-((columns - column - 0.5) ** 2) / (2 * sigma_x**2) - (rows - row - 0.5) ** 2 / (2 * sigma_y**2))
        found[..., 0] = np.maximum(found[..., 0], heat)
        found[row, column] = (
            1, 1, 1, centre_x - column - 0.5, centre_y - row - 0.5, math.log(w / STRIDE), math.log(h / STRIDE),
        )  # fmt: skip
    return found


def loss(wanted: Any, heat: Any, boxes: Any) -> Any:
    """Penalty-reduced focal loss of the heat (CenterNet, equation 1), and absolute differences of the boxes.

    Args:
        wanted: (n, 30, 40, 7) as `targets` gives it.
        heat: (n, 30, 40, 1) probabilities.
        boxes: (n, 30, 40, 4).

    Returns:
        One number: the mean over the faces of the batch.
    """
    p = ops.clip(heat[..., 0], 1e-4, 1 - 1e-4)
    hot, judged, centre = wanted[..., 0], wanted[..., 1], wanted[..., 2]
    faces = ops.maximum(ops.sum(centre), 1.0)
    right = centre * ops.square(1 - p) * ops.log(p)
    wrong = (1 - centre) * judged * ops.power(1 - hot, 4) * ops.square(p) * ops.log(1 - p)
    apart = ops.sum(ops.abs(boxes - wanted[..., 3:]), axis=-1) * centre
    return (ops.sum(apart) * BOX_WEIGHT - ops.sum(right) - ops.sum(wrong)) / faces


class DetectorLoss(keras.losses.Loss):  # type: ignore[misc]
    """`loss` for a network whose maps are joined: heat, then boxes."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Keras calls this with (n, 30, 40, 7) targets and (n, 30, 40, 5) maps."""
        return loss(y_true, y_pred[..., :1], y_pred[..., 1:])


def joined(detector: Model) -> Model:
    """The same network, its two maps as one (n, 30, 40, 5), for training."""
    maps = detector.output
    return Model(detector.input, layers.Concatenate()([maps["heat"], maps["boxes"]]), name=detector.name)
