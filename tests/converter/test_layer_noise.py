from __future__ import annotations

import numpy as np
import pytest

from maskfer_converter.convert import convert
from maskfer_converter.layer_noise import layer_noise


def network_of(gain):
    """Two convolutions, the first of which has one channel `gain` times as loud as the others."""
    import keras

    keras.utils.set_random_seed(0)
    inputs = keras.Input((48, 48, 1))
    x = keras.layers.Conv2D(8, 5, strides=4, activation="relu", name="first")(keras.layers.Rescaling(1 / 255)(inputs))
    x = keras.layers.Conv2D(8, 3, activation="relu", name="second")(x)
    outputs = keras.layers.Dense(7, activation="softmax", name="scores")(keras.layers.Flatten()(x))
    network = keras.Model(inputs, outputs)
    kernel, bias = network.get_layer("first").get_weights()
    kernel = np.abs(kernel)
    kernel[..., 0] *= gain
    network.get_layer("first").set_weights([kernel, bias])
    kernel, bias = network.get_layer("second").get_weights()
    kernel[:, :, 0] = 0  # the loud channel itself does not go on
    network.get_layer("second").set_weights([kernel, bias])
    return network


@pytest.fixture(scope="module")
def faces():
    return np.random.default_rng(0).integers(0, 256, (8, 48, 48)).astype(np.uint8)


def noise_of(network, faces):
    calibration = faces[..., None].astype(np.float32)
    models = [convert(network, form, calibration) for form in ("float", "int8")]
    return layer_noise(*models, faces)


def test_layers_come_worst_first(faces):
    found = noise_of(network_of(1), faces)
    assert len(found) >= 3
    assert [layer.sqnr_db for layer in found] == sorted(layer.sqnr_db for layer in found)
    assert all(15 < layer.sqnr_db < 80 for layer in found)


def test_a_channel_too_loud_spoils_the_layer_after(faces):
    """All channels of a layer's output share one scale, so that the quiet ones are left with few steps."""
    quiet, loud = (
        {layer.layer.split("/")[0]: layer.sqnr_db for layer in noise_of(network_of(gain), faces)} for gain in (1, 200)
    )
    second = next(name for name in quiet if name.startswith("second"))
    assert loud[second] < quiet[second] - 10


def test_a_layer_without_any_difference_has_a_finite_figure(faces):
    import keras

    inputs = keras.Input((48, 48, 1))
    outputs = keras.layers.Dense(7, kernel_initializer="zeros", activation="softmax")(keras.layers.Flatten()(inputs))
    assert all(np.isfinite(layer.sqnr_db) for layer in noise_of(keras.Model(inputs, outputs), faces))
