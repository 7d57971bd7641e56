from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from maskfer_trainer.networks import ARCHITECTURES, multiply_accumulates

# What int8 TFLite has operators for, and what disappears when a trained network is exported.
KNOWN = (
    layers.InputLayer, layers.Rescaling, layers.Conv2D, layers.BatchNormalization, layers.ReLU, layers.MaxPooling2D,
    layers.Dropout, layers.Flatten, layers.Dense, layers.Add, layers.DepthwiseConv2D,
)  # fmt: skip

every_network = pytest.mark.parametrize("name", ARCHITECTURES)


@pytest.fixture(scope="module")
def networks():
    return {name: make() for name, make in ARCHITECTURES.items()}


@every_network
def test_shapes_keep_the_contract(networks, name):
    assert networks[name].input_shape == (None, 48, 48, 1)
    assert networks[name].output_shape == (None, 7)


@every_network
def test_scores_are_probabilities(networks, name):
    faces = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 1)).astype(np.float32)
    scores = np.asarray(networks[name](faces))
    assert scores.min() >= 0
    assert scores.sum(axis=1) == pytest.approx(1, abs=1e-5)


@every_network
def test_the_network_is_named_as_its_key(networks, name):
    assert networks[name].name == name


@every_network
def test_layers_are_of_known_types(networks, name):
    assert not [layer.name for layer in networks[name].layers if type(layer) not in KNOWN]


def test_the_papers_network_has_the_papers_parameters(networks):
    assert networks["paper"].count_params() == 4_478_727


def test_the_papers_convolutions(networks):
    convolutions = [layer for layer in networks["paper"].layers if isinstance(layer, layers.Conv2D)]
    assert [(layer.filters, layer.kernel_size[0]) for layer in convolutions] == [(64, 3), (128, 5), (512, 3), (512, 3)]


def test_the_papers_dense_layers(networks):
    dense = [layer.units for layer in networks["paper"].layers if isinstance(layer, layers.Dense)]
    assert dense == [256, 512, 7]


@pytest.mark.parametrize(
    ("name", "parameters", "millions"),
    [
        ("paper", 4_478_727, 290.5),
        ("lean", 331_807, 19.5),
        ("lean-small", 158_919, 8.1),
        ("large", 2_808_743, 247.2),
    ],
)
def test_sizes_are_as_documented(networks, name, parameters, millions):
    assert networks[name].count_params() == pytest.approx(parameters, rel=0.002)
    assert multiply_accumulates(networks[name]) / 1e6 == pytest.approx(millions, abs=0.06)


def test_multiply_accumulates_are_counted_by_hand():
    inputs = keras.Input((48, 48, 1))
    x = layers.Conv2D(4, 3, strides=2, padding="same")(inputs)
    x = layers.DepthwiseConv2D(24)(x)
    network = keras.Model(inputs, layers.Dense(7)(layers.Flatten()(x)))
    assert multiply_accumulates(network) == 24 * 24 * 4 * 9 + 24 * 24 * 4 + 4 * 7


def test_lean_starts_from_the_mean_of_its_last_map(networks):
    weights = next(
        layer for layer in networks["lean"].layers if isinstance(layer, layers.DepthwiseConv2D)
    ).get_weights()
    assert np.allclose(weights[0], 1 / 36)
