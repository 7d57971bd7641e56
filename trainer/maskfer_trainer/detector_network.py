"""The face detector: a centre-point network, its loss, what its maps mean, and the network of its second stage.

After CenterNet (Zhou, Wang and Krähenbühl, "Objects as Points", 2019); the network is an own design. Plain Keras 3.
"""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import Input, Model, initializers, layers, ops

from maskfer_edge.rescorer import SIDE
from maskfer_trainer.detector_targets import SIZE_WH

# Share of cells that hold a face at the start of training, so that the first steps are not spent on finding that out.
PRIOR = 0.01
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


def build_rescorer() -> Model:
    """The detector's second stage: 4 million multiply-accumulates (own design).

    Input: (48, 48, 1) float grey pixels, 0 to 255, see `rescorer.context_crop`. Output: (1,), the probability that
    they show a face.
    """
    inputs = Input((SIDE, SIDE, 1), name="grey")
    x = layers.Rescaling(1 / 255)(inputs)
    x = _convolve(_convolve(x, 16, stride=2), 24, stride=2)
    x = _residual(x, 24, convolutions=2)
    x = _residual(_convolve(x, 48, stride=2), 48, convolutions=2)
    # each place has a worth of its own, as in the networks of expressions
    x = layers.DepthwiseConv2D(x.shape[1], use_bias=False)(x)
    x = layers.Dropout(0.3)(layers.Flatten()(layers.BatchNormalization()(x)))
    return Model(inputs, layers.Dense(1, activation="sigmoid", name="likely")(x), name="rescorer")


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


def loss(targets: Any, heat: Any, boxes: Any) -> Any:
    """Penalty-reduced focal loss of the heat (CenterNet, equation 1), and absolute differences of the boxes.

    Args:
        targets: (n, 30, 40, 7) as `detector_targets.targets` gives it.
        heat: (n, 30, 40, 1) probabilities.
        boxes: (n, 30, 40, 4).

    Returns:
        One number: the mean over the faces of the batch.
    """
    p = ops.clip(heat[..., 0], 1e-4, 1 - 1e-4)
    heat_target, valid, centre = targets[..., 0], targets[..., 1], targets[..., 2]
    faces = ops.maximum(ops.sum(centre), 1.0)
    positive = centre * ops.square(1 - p) * ops.log(p)
    negative = (1 - centre) * valid * ops.power(1 - heat_target, 4) * ops.square(p) * ops.log(1 - p)
    box_loss = ops.sum(ops.abs(boxes - targets[..., 3:]), axis=-1) * centre
    return (ops.sum(box_loss) * BOX_WEIGHT - ops.sum(positive) - ops.sum(negative)) / faces


class DetectorLoss(keras.losses.Loss):  # type: ignore[misc]
    """`loss` for a network whose maps are joined: heat, then boxes."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Keras calls this with (n, 30, 40, 7) targets and (n, 30, 40, 5) maps."""
        return loss(y_true, y_pred[..., :1], y_pred[..., 1:])


def concatenate_outputs(detector: Model) -> Model:
    """The same network, its two maps as one (n, 30, 40, 5), for training."""
    maps = detector.output
    return Model(detector.input, layers.Concatenate()([maps["heat"], maps["boxes"]]), name=detector.name)
