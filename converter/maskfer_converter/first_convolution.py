"""A network's first convolution in a form that integer kernels compute faster, and that int8 weights hurt less."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

MAX_INT8 = 127


def with_kept_sums(network: Any) -> Any:
    """The network with its first convolution's weights rounded to int8 so that the sum of each filter is kept.

    Next to each other, pixels are nearly the same, so what a filter sees of them is mostly their mean times its sum. If
    each weight goes to the nearest step, as converters round, the errors of a filter add up to several steps; here as
    many are rounded up as keeps the sum, those first that are nearest to it (largest remainders; own). The converter
    finds weights that are whole steps, and keeps them.

    Args:
        network: A `keras.Model` on the TensorFlow backend.

    Returns:
        A new model with other weights, or `network` itself if its input meets no convolution first.
    """
    import keras

    plain = _functional(network)
    first = _first_convolution(plain)
    if first is None:
        return network
    result = keras.models.clone_model(plain)
    result.set_weights(plain.get_weights())
    kernel, *bias = first.get_weights()
    result.get_layer(first.name).set_weights([_round_keeping_sums(kernel), *bias])
    return result


def _round_keeping_sums(kernel: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """A (height, width, channels, filters) kernel in whole steps of each filter, the sum over each channel kept."""
    largest = np.abs(kernel).max(axis=(0, 1, 2))
    scale = np.where(largest > 0, largest, 1) / MAX_INT8
    steps = (kernel.astype(np.float64) / scale).reshape(-1, *kernel.shape[2:])
    low = np.floor(steps)
    rest = steps - low
    place = np.argsort(np.argsort(-rest, axis=0, kind="stable"), axis=0)
    rounded = (low + (place < np.rint(rest.sum(axis=0)))).clip(-MAX_INT8, MAX_INT8)
    kept: npt.NDArray[np.float32] = (rounded * scale).reshape(kernel.shape).astype(np.float32)
    return kept


def with_packed_input(network: Any) -> Any:
    """The same function, whose strided first convolution sees the pixels of a stride's square as channels of one place.

    The kernels of TFLite's integer convolutions take channels by fours or eights, so that one channel costs as much as
    that many. A convolution of stride s over one channel is one of stride 1 over s·s channels: each s×s square of
    pixels becomes a place (space to depth), and the kernel, padded with zeros to whole squares, likewise. It is the
    same function, but for the order in which floats are added (own; known from networks for TPUs).

    Args:
        network: A `keras.Model` on the TensorFlow backend; input (n, height, width, 1).

    Returns:
        A new model with the same weights, or `network` itself if what its input meets is not, but for a `Rescaling`, a
        strided convolution alone with "same" padding whose stride divides height and width.
    """
    import keras

    original, network = network, _functional(network)
    first = _first_convolution(network)
    if first is None or not _can_be_packed(first, network):
        return original
    stride, kernel = first.strides[0], _packed(first.get_weights()[0], first.strides[0])
    packed = keras.layers.Conv2D(
        first.filters,
        kernel.shape[:2],
        padding="same",
        use_bias=first.use_bias,
        activation=first.activation,
        name=first.name,
    )

    # Keras' own names differ from one conversion to the next
    squares = keras.layers.Lambda(_space_to_depth, arguments={"side": stride}, name=f"{first.name}_squares")

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        # before a rescaling, which the converter takes into the weights that follow
        return layer(squares(*args)) if layer.name == network.layers[1].name else layer(*args, **kwargs)

    def clone(layer: Any) -> Any:
        return packed if layer is first else layer.__class__.from_config(layer.get_config())

    result = keras.models.clone_model(network, clone_function=clone, call_function=call)
    for layer in network.layers:
        weights = layer.get_weights()
        if weights:
            result.get_layer(layer.name).set_weights([kernel, *weights[1:]] if layer is first else weights)
    return result


def _functional(network: Any) -> Any:
    """The same layers as a functional network; a Sequential has no input layer, and cannot be cloned so."""
    import keras

    return keras.Model(network.inputs, network.outputs, name=network.name)


def _first_convolution(network: Any) -> Any:
    """The convolution that the input meets, rescaled or not; None if there is none."""
    import keras

    following = [layer for layer in network.layers[1:3] if not isinstance(layer, keras.layers.Rescaling)][:1]
    return following[0] if following and type(following[0]) is keras.layers.Conv2D else None


def _can_be_packed(layer: Any, network: Any) -> bool:
    stride = layer.strides[0]
    height, width, channels = network.input_shape[1:]
    square = layer.strides == (stride, stride) and layer.kernel_size[0] == layer.kernel_size[1]
    plain = layer.padding == "same" and layer.groups == 1 and layer.dilation_rate == (1, 1)
    branches = any(len(before._outbound_nodes) != 1 for before in network.layers[: network.layers.index(layer)])
    whole = height % stride == 0 and width % stride == 0
    return bool(stride > 1 and channels == 1 and square and plain and whole and not branches)


def _packed(kernel: npt.NDArray[np.float32], stride: int) -> npt.NDArray[np.float32]:
    """A (k, k, 1, filters) kernel of a stride as one of stride 1: (squares, squares, stride·stride, filters)."""
    side, filters = kernel.shape[0], kernel.shape[3]
    # "same" pads so many rows above: the kernel's first row lies so far above a square's first
    above = max(side - stride, 0) // 2
    squares_above = -(-above // stride)
    squares = squares_above + 1 + max(side - above - 1, 0) // stride
    whole = np.zeros((squares * stride, squares * stride, filters), dtype=np.float32)
    start = squares_above * stride - above
    whole[start : start + side, start : start + side] = kernel[:, :, 0]
    split = whole.reshape(squares, stride, squares, stride, filters).transpose(0, 2, 1, 3, 4)
    return split.reshape(squares, squares, stride * stride, filters)


def _space_to_depth(pixels: Any, side: int) -> Any:
    import tensorflow as tf

    return tf.nn.space_to_depth(pixels, side)
