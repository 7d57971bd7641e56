from __future__ import annotations

import numpy as np
import pytest

from maskfer_converter.convert import FORMATS, convert
from maskfer_converter.graph import read_graph
from maskfer_edge.runtime import open_interpreter


@pytest.fixture(scope="module")
def calibration():
    return np.random.default_rng(0).integers(0, 256, (20, 48, 48, 1)).astype(np.float32)


def network_of(width=32):
    """A convolution and a dense layer, of more weights than what the dynamic-range format leaves alone."""
    import keras

    keras.utils.set_random_seed(0)
    layers = [
        keras.Input((48, 48, 1), name="grey"),
        keras.layers.Rescaling(1 / 255, name="scale"),
        keras.layers.Conv2D(width, 7, strides=4, activation="relu", name="filter"),
        keras.layers.Flatten(name="flat"),
        keras.layers.Dense(7, activation="softmax", name="scores"),
    ]
    return keras.Sequential(layers, name="small")


@pytest.fixture(scope="module")
def converted(calibration):
    return {form: convert(network_of(), form, calibration) for form in FORMATS}


@pytest.mark.parametrize(
    ("form", "weights", "ends"),
    [
        ("int8", "INT8", "UINT8"),
        ("float16", "FLOAT16", "FLOAT32"),
        ("dynamic", "INT8", "FLOAT32"),
        ("float", "FLOAT32", "FLOAT32"),
    ],
)
def test_each_format_stores_its_kind_of_weights(converted, form, weights, ends):
    graph = read_graph(converted[form], form)
    assert max(graph.tensors, key=lambda tensor: tensor.bytes).dtype == weights
    assert {graph.tensors[i].dtype for i in (*graph.inputs, *graph.outputs)} == {ends}


def test_smaller_formats_are_smaller(converted):
    sizes = {form: len(content) for form, content in converted.items()}
    assert sizes["int8"] < 0.5 * sizes["float"]
    assert sizes["dynamic"] < 0.5 * sizes["float"]
    assert sizes["float16"] < 0.7 * sizes["float"]


def test_shapes_are_constants(converted):
    names = {operator.name for operator in read_graph(converted["int8"], "int8").operators}
    assert not names & {"SHAPE", "STRIDED_SLICE", "PACK"}


@pytest.mark.parametrize(("form", "tolerance"), [("int8", 0.05), ("float16", 0.01), ("dynamic", 0.02), ("float", 1e-4)])
def test_every_format_computes_the_same_network(converted, calibration, form, tolerance):
    interpreter = open_interpreter(converted[form])
    first, last = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    expected = network_of().predict(calibration, verbose=0)
    for picture, scores in zip(calibration, expected, strict=True):
        interpreter.set_tensor(first["index"], picture[None].astype(first["dtype"]))
        interpreter.invoke()
        found = interpreter.get_tensor(last["index"])[0].astype(np.float32)
        if form == "int8":
            found = found * last["quantization"][0]
        np.testing.assert_allclose(found, scores, atol=tolerance)


def test_the_same_arguments_give_the_same_bytes(converted, calibration):
    assert convert(network_of(), "int8", calibration) == converted["int8"]
