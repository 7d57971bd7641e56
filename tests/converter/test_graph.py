from __future__ import annotations

import flatbuffers
import pytest
from ai_edge_litert import schema_py_generated as schema

from maskfer_converter.graph import read_graph
from maskfer_edge.classifier import default_model
from maskfer_edge.errors import ModelError
from maskfer_edge.model_file import load_model


@pytest.fixture(scope="module")
def graph():
    return read_graph(default_model().flatbuffer, "bundled")


def test_operators_stand_in_their_order(graph):
    names = [operator.name for operator in graph.operators]
    assert (names[0], names[-3:]) == ("QUANTIZE", ["FULLY_CONNECTED", "SOFTMAX", "QUANTIZE"])
    assert {"CONV_2D", "DEPTHWISE_CONV_2D", "ADD"} <= set(names)
    assert not any(operator.custom for operator in graph.operators)


def test_the_cost_is_that_of_the_keras_network_with_its_first_convolution_packed(graph):
    from maskfer_trainer.networks import lean, multiply_accumulates

    # 5×5 pixels of one channel as 3×3 squares of four: 24×24 places, 24 filters
    more = (36 - 25) * 24 * 24 * 24
    assert graph.multiply_accumulates == multiply_accumulates(lean()) + more


def test_tensors_have_type_shape_and_quantisation(graph):
    first, last = graph.tensors[graph.inputs[0]], graph.tensors[graph.outputs[0]]
    assert (first.dtype, first.shape, first.scales, first.zero_points) == ("UINT8", (1, 48, 48, 1), (1.0,), (0,))
    assert (last.dtype, last.shape) == ("UINT8", (1, 7))


def test_weights_have_a_scale_a_channel(graph):
    weights = [w for w in map(graph.weights_of, graph.operators) if w is not None]
    assert len(weights) > 5
    assert all(len(w.scales) == w.shape[w.axis] and w.bytes for w in weights)


def test_the_oldest_runtime_stands_in_the_file(graph):
    assert graph.min_runtime == "1.14.0"


def test_names_are_short_for_people(graph):
    assert not any(";" in tensor.short_name for tensor in graph.tensors)


@pytest.mark.parametrize("content", [b"", b"no model", b"\0\0\0\0TFL3"])
def test_what_is_no_model_is_refused(content):
    with pytest.raises(ModelError, match=r"my\.tflite"):
        read_graph(content, "my.tflite")


def test_a_model_cut_short_is_refused(tflite_model):
    content = load_model(tflite_model).flatbuffer
    with pytest.raises(ModelError, match=r"^cut\.tflite is cut short or damaged; copy or convert it again$"):
        read_graph(content[: len(content) // 2], "cut.tflite")


def test_a_model_of_several_subgraphs_is_refused(tflite_model):
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(load_model(tflite_model).flatbuffer, 0))
    model.subgraphs *= 2
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    with pytest.raises(ModelError, match=r"two\.tflite has 2 subgraphs; give a model of one"):
        read_graph(bytes(builder.Output()), "two.tflite")
