"""The networks. Plain Keras 3: any backend trains them.

All take (48, 48, 1) float grey pixels from 0 to 255, so that a quantised model's input is the pixel
itself, and give seven class probabilities.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import Input, Model, initializers, layers

from maskfer_edge.contract import INPUT_SIZE, LABELS


def paper() -> Model:
    """The network of Çelik and Gören (2023): four convolution blocks, two dense layers.

    4.48 M parameters, 290 million multiply-accumulates. The dropout rate is ours; the paper
    gives none.
    """
    inputs = Input((INPUT_SIZE, INPUT_SIZE, 1), name="grey")
    x = layers.Rescaling(1 / 255)(inputs)
    for filters, kernel in ((64, 3), (128, 5), (512, 3), (512, 3)):
        x = layers.Conv2D(filters, kernel, padding="same")(x)
        x = layers.BatchNormalization()(x)
        x = layers.ReLU()(x)
        x = layers.MaxPooling2D()(x)
        x = layers.Dropout(0.25)(x)
    x = layers.Flatten()(x)
    for units in (256, 512):
        x = layers.Dense(units)(x)
        x = layers.BatchNormalization()(x)
        x = layers.ReLU()(x)
        x = layers.Dropout(0.25)(x)
    return Model(inputs, layers.Dense(len(LABELS), activation="softmax", name="scores")(x), name="paper")


def lean() -> Model:
    """The network for a Raspberry Pi 3 and up: 0.33 M parameters, 19.5 million multiply-accumulates (own design)."""
    # inside two blocks the channels that mattered least to the loss were taken out, see docs/experiments.md
    return _residual("lean", stem=((24, 5, 2), (64, 3, 2)), blocks=((64, 1, 48), (96, 2), (96, 1, 64)))


def lean_small() -> Model:
    """The network for a Raspberry Pi Zero 2: 0.16 M parameters, 8 million multiply-accumulates (own design)."""
    return _residual("lean-small", stem=((16, 2, 2), (32, 3, 2)), blocks=((32, 1), (64, 2), (64, 1)))


def huge() -> Model:
    """A teacher for GPUs: 6.3 M parameters, 556 million multiply-accumulates (own design)."""
    blocks = ((96, 1), (96, 1), (192, 2), (192, 1), (384, 2), (384, 1))
    return _residual("huge", stem=((48, 3, 1), (96, 3, 2)), blocks=blocks)


def large() -> Model:
    """The network for a Raspberry Pi 5 or a laptop: 2.8 M parameters, 247 million multiply-accumulates (own design)."""
    blocks = ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1))
    return _residual("large", stem=((32, 3, 1), (64, 3, 2)), blocks=blocks)


def _residual(name: str, stem: tuple[tuple[int, int, int], ...], blocks: tuple[tuple[int, ...], ...]) -> Model:
    """A residual network; the lean ones work at a quarter of the input's side and less.

    Dense convolutions, ReLU and additions only: operators that quantise well and that TFLite runs
    fast on Arm. The last map is summed with weights learned for each place and channel (global
    depthwise convolution, Chen and others, MobileFaceNets, 2018) and not averaged: a face's crop has
    the eyes at the top and the mask at the bottom, so places are worth different things.

    Args:
        name: Of the model.
        stem: Filters, kernel and stride of each convolution before the blocks. With one channel in, an integer
            kernel spends as much on each place as on eight channels, hence the 2×2 of `lean_small` (today the
            converter packs it, see `first_convolution`).
        blocks: Filters and stride of each residual block, and the filters between its convolutions if they are fewer.
    """

    def convolve(x: Any, filters: int, stride: int, kernel: int = 3) -> Any:
        x = layers.Conv2D(filters, kernel, strides=stride, padding="same", use_bias=False)(x)
        return layers.BatchNormalization()(x)

    inputs = Input((INPUT_SIZE, INPUT_SIZE, 1), name="grey")
    x = layers.Rescaling(1 / 255)(inputs)
    for filters, kernel, stride in stem:
        x = layers.ReLU()(convolve(x, filters, stride, kernel))
    for filters, stride, *inner in blocks:
        y = layers.ReLU()(convolve(x, inner[0] if inner else filters, stride))
        y = convolve(y, filters, 1)
        if stride > 1:
            x = convolve(x, filters, stride, kernel=1)
        x = layers.ReLU()(layers.Add()([y, x]))
    side = int(x.shape[1])
    # starts as the plain mean
    mean = initializers.Constant(1 / side**2)
    # whatever precision the rest is computed in, see `together.build_mixed_precision`
    full = "float32"
    x = layers.DepthwiseConv2D(side, depthwise_initializer=mean, use_bias=False, dtype=full)(x)
    x = layers.BatchNormalization(dtype=full)(x)
    x = layers.Dropout(0.3, dtype=full)(layers.Flatten(dtype=full)(x))
    return Model(inputs, layers.Dense(len(LABELS), activation="softmax", name="scores", dtype=full)(x), name=name)


def multiply_accumulates(network: Model) -> int:
    """How many multiply-accumulates one face takes in convolutions and dense layers."""
    total = 0
    for layer in network.layers:
        if isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D):
            height, width = layer.output.shape[1:3]
            total += height * width * int(np.prod(layer.kernel.shape))
        elif isinstance(layer, layers.Dense):
            total += int(np.prod(layer.kernel.shape))
    return total


ARCHITECTURES = {
    "paper": paper,
    "lean": lean,
    "lean-small": lean_small,
    "large": large,
    "huge": huge,
}
