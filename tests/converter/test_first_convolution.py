"""The first convolution: packed it is the same function, and the same bits as integers; rounded it keeps its sums."""

import keras
import numpy as np
import pytest

from maskfer_converter import convert as convert_module
from maskfer_converter.convert import FLOAT, INT8, convert
from maskfer_converter.first_convolution import with_kept_sums, with_packed_input
from maskfer_converter.graph import read_graph
from maskfer_edge.runtime import open_interpreter


def network(kernel, stride, side=24, rescaled=True, **options):
    keras.utils.set_random_seed(3)
    inputs = keras.Input((side, side, 1))
    x = keras.layers.Rescaling(1 / 255, offset=0.1)(inputs) if rescaled else inputs
    x = keras.layers.Conv2D(5, kernel, strides=stride, padding=options.pop("padding", "same"), **options)(x)
    x = keras.layers.BatchNormalization()(x)
    return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(x)))


def conv(stride):
    return keras.layers.Conv2D(4, 3, stride, padding="same")


def branched():
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    joined = keras.layers.Concatenate()([keras.layers.Flatten()(conv(2)(x)), keras.layers.Flatten()(x)])
    return keras.Model(inputs, keras.layers.Dense(3)(joined))


def faces(count=4, side=24):
    return np.random.default_rng(5).integers(0, 256, (count, side, side, 1)).astype(np.float32)


@pytest.mark.parametrize(("kernel", "stride"), [(1, 2), (2, 2), (3, 2), (5, 2), (7, 2), (3, 4), (4, 4), (7, 4), (6, 3)])
def test_it_is_the_same_function(kernel, stride):
    plain = network(kernel, stride, use_bias=True, activation="relu")
    plain.layers[2].set_weights([plain.layers[2].get_weights()[0], np.arange(5) / 3])
    packed = with_packed_input(plain)

    assert any(layer.name.endswith("_squares") for layer in packed.layers)
    np.testing.assert_allclose(packed.predict(faces(), verbose=0), plain.predict(faces(), verbose=0), atol=2e-5)


def test_a_sequential_network_is_packed_as_well():
    layers = [keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(4, 3, 2, padding="same"), keras.layers.Flatten()]
    plain = keras.Sequential([keras.Input((24, 24, 1)), *layers])
    packed = with_packed_input(plain)

    assert packed is not plain
    np.testing.assert_allclose(packed.predict(faces(), verbose=0), plain.predict(faces(), verbose=0), atol=1e-5)


def test_it_needs_no_rescaling():
    plain = network(3, 2, rescaled=False)
    packed = with_packed_input(plain)

    assert packed is not plain
    np.testing.assert_allclose(packed.predict(faces(), verbose=0), plain.predict(faces(), verbose=0), atol=0.02)


@pytest.mark.parametrize(
    "plain",
    [
        pytest.param(lambda: network(3, 1), id="stride of 1"),
        pytest.param(lambda: network(3, 2, side=25), id="side that the stride does not divide"),
        pytest.param(lambda: network(3, 2, padding="valid"), id="no padding"),
        pytest.param(lambda: network((3, 5), 2), id="kernel that is not square"),
        pytest.param(lambda: network(3, (2, 1)), id="strides that differ"),
        pytest.param(branched, id="two branches"),
        pytest.param(lambda: keras.Sequential([keras.Input((8, 8, 1)), conv(1), conv(2)]), id="second convolution"),
        pytest.param(lambda: keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3, 2)]), id="colours"),
        pytest.param(lambda: keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()]), id="no convolution"),
    ],
)
def test_other_networks_are_left_as_they_are(plain):
    model = plain()

    assert with_packed_input(model) is model


def test_integers_are_the_same_to_the_bit(monkeypatch):
    plain, pictures = network(5, 2), faces(40)
    packed = convert(plain, INT8, pictures)
    monkeypatch.setattr(convert_module, "with_packed_input", lambda model: model)
    as_it_was = convert(plain, INT8, pictures)

    operators = [[operator.name for operator in read_graph(model, "m").operators] for model in (as_it_was, packed)]
    assert "SPACE_TO_DEPTH" in operators[1]
    # nothing else is there that was not there before, above all no rescaling of its own
    assert [name for name in operators[1] if name != "SPACE_TO_DEPTH"] == operators[0]
    np.testing.assert_array_equal(answers(packed, pictures), answers(as_it_was, pictures))


def test_the_same_network_gives_the_same_bytes():
    plain, pictures = network(3, 2), faces()

    assert convert(plain, INT8, pictures) == convert(plain, INT8, pictures)


def test_floats_are_packed_too_so_that_layers_can_be_compared():
    assert "SPACE_TO_DEPTH" in [op.name for op in read_graph(convert(network(5, 2), FLOAT, faces()), "m").operators]


def kernel_of(model):
    return next(layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)).get_weights()[0]


@pytest.mark.parametrize("stride", [1, 2])
def test_weights_are_rounded_to_whole_steps_that_keep_the_sum(stride):
    plain = network(5, stride, use_bias=True)
    before, after = kernel_of(plain), kernel_of(with_kept_sums(plain))

    step = np.abs(before).max(axis=(0, 1, 2)) / 127
    np.testing.assert_allclose(after / step, (after / step).round(), atol=1e-3)
    assert (np.abs(after - before) < step).all()
    assert (np.abs((after - before).sum(axis=(0, 1, 2))) <= 0.501 * step).all()
    nearest = (before / step).round() * step
    assert np.abs((nearest - before).sum(axis=(0, 1, 2)) / step).max() > 1


def test_all_other_weights_are_kept_and_so_are_those_of_the_network_itself():
    plain = network(3, 2)
    before = [weights.copy() for weights in plain.get_weights()]
    after = with_kept_sums(plain).get_weights()

    assert [np.array_equal(a, b) for a, b in zip(after, before, strict=True)].count(False) == 1
    assert all(np.array_equal(a, b) for a, b in zip(plain.get_weights(), before, strict=True))


def test_rounded_weights_stay_as_they_are():
    once = with_kept_sums(network(5, 2))

    np.testing.assert_allclose(kernel_of(with_kept_sums(once)), kernel_of(once), rtol=1e-5)


def test_colours_keep_their_own_sums_and_zeros_stay():
    plain = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3, 2)])
    kernel = np.random.default_rng(1).normal(size=(3, 3, 3, 2)).astype(np.float32)
    kernel[..., 1] = 0
    plain.layers[0].set_weights([kernel, np.ones(2)])
    after = kernel_of(with_kept_sums(plain))

    difference = np.abs((after - kernel).sum(axis=(0, 1)))
    assert (difference <= 0.501 * np.abs(kernel).max() / 127).all()
    assert not after[..., 1].any()


def test_a_network_without_a_convolution_first_is_left_as_it_is():
    plain = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])

    assert with_kept_sums(plain) is plain


def test_filters_of_contrast_do_not_answer_to_brightness(monkeypatch):
    random = np.random.default_rng(2)
    kernel = random.normal(size=(5, 5, 1, 4))
    plain = keras.Sequential([keras.Input((24, 24, 1)), keras.layers.Conv2D(4, 5, 2)])  # padding would be an edge
    plain.layers[0].set_weights([kernel - kernel.mean(axis=(0, 1)), np.zeros(4)])
    even = np.linspace(0, 255, 16).astype(int)[:, None, None, None] * np.ones((1, 24, 24, 1), int)
    pictures = (even + random.integers(0, 5, even.shape)).clip(0, 255).astype(np.float32)
    exact = answers(convert(plain, FLOAT, pictures), pictures)

    def error():
        model = convert(plain, INT8, pictures)
        detail = open_interpreter(model).get_output_details()[0]["quantization_parameters"]
        found = (answers(model, pictures) - detail["zero_points"].astype(float)) * detail["scales"]
        return np.abs(found - exact).mean()

    kept = error()
    monkeypatch.setattr(convert_module, "with_kept_sums", lambda model: model)
    assert kept < 0.5 * error()


def answers(model, pictures):
    interpreter = open_interpreter(model)
    (asked,), (answer,) = interpreter.get_input_details(), interpreter.get_output_details()
    found = []
    for picture in pictures:
        interpreter.set_tensor(asked["index"], picture[None].astype(asked["dtype"]))
        interpreter.invoke()
        found.append(interpreter.get_tensor(answer["index"]).copy())
    return np.stack(found)
