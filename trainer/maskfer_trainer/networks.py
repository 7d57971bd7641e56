"""The networks. Plain Keras 3: any backend trains them.

All take (48, 48, 1) float grey pixels from 0 to 255, so that a quantised model's input is the pixel
itself, and give seven class probabilities.
"""

from __future__ import annotations

from typing import Any

from keras import Input, Model, layers

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
    """A residual network for the edge: 0.61 M parameters, 38 million multiply-accumulates (own design).

    3×3 convolutions, ReLU, additions and one mean only: operators that quantise well and that
    TFLite runs fast on Arm.
    """

    def convolve(x: Any, filters: int, stride: int, kernel: int = 3) -> Any:
        x = layers.Conv2D(filters, kernel, strides=stride, padding="same", use_bias=False)(x)
        return layers.BatchNormalization()(x)

    def block(x: Any, filters: int, stride: int) -> Any:
        y = layers.ReLU()(convolve(x, filters, stride))
        y = convolve(y, filters, 1)
        if stride > 1:
            x = convolve(x, filters, stride, kernel=1)
        return layers.ReLU()(layers.Add()([y, x]))

    inputs = Input((INPUT_SIZE, INPUT_SIZE, 1), name="grey")
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.ReLU()(convolve(x, 32, 1))
    for filters, stride in ((32, 2), (64, 2), (128, 2), (128, 1)):
        x = block(x, filters, stride)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.3)(x)
    return Model(inputs, layers.Dense(len(LABELS), activation="softmax", name="scores")(x), name="lean")


ARCHITECTURES = {"paper": paper, "lean": lean}
