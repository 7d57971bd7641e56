from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from maskfer_converter.checks import Check, Checked, check_graph, check_runtimes
from maskfer_converter.comparison import same_classes
from maskfer_converter.graph import read_graph
from maskfer_edge.classifier import default_model
from maskfer_edge.contract import INPUT_SIZE
from maskfer_edge.errors import DependencyError


@pytest.fixture(scope="module")
def graph():
    return read_graph(default_model().flatbuffer, "bundled")


def failed(graph, form="int8"):
    return [check.what for check in check_graph(graph, form) if not check.passed]


def with_tensor(graph, index, **changes):
    tensors = list(graph.tensors)
    tensors[index] = replace(tensors[index], **changes)
    return replace(graph, tensors=tuple(tensors))


def first_weights(graph):
    operator = next(operator for operator in graph.operators if operator.name == "CONV_2D")
    return operator.inputs[1]


def test_the_bundled_model_passes(graph):
    assert failed(graph) == []


def test_one_floating_tensor_is_found(graph):
    (check,) = [c for c in check_graph(with_tensor(graph, 3, dtype="FLOAT32"), "int8") if not c.passed]
    assert check.what == "integers throughout"
    assert check.found.startswith("1 with floating point")


def test_another_input_than_the_pixel_is_found(graph):
    assert failed(with_tensor(graph, graph.inputs[0], scales=(1 / 255,))) == ["the input is the grey pixel"]


def test_one_scale_for_all_channels_is_found(graph):
    assert failed(with_tensor(graph, first_weights(graph), scales=(0.01,))) == ["weights per channel"]


@pytest.mark.parametrize("changes", [{"shape": (1, 96, 96, 1)}, {"shape": (8, 48, 48, 1)}])
def test_another_shape_is_found(graph, changes):
    assert failed(with_tensor(graph, graph.inputs[0], **changes)) == [
        "input and outputs of the shapes that the edge expects"
    ]


def test_a_second_output_is_found(graph):
    assert failed(replace(graph, outputs=(*graph.outputs, 3))) == [
        "input and outputs of the shapes that the edge expects"
    ]


def test_a_flex_operator_is_found(graph):
    flex = replace(graph.operators[1], name="FlexErf", custom=True)
    (check,) = [c for c in check_graph(replace(graph, operators=(*graph.operators, flex)), "int8") if not c.passed]
    assert (check.what, check.found) == ("no custom or Flex operator", "FlexErf")


@pytest.mark.parametrize(("version", "found"), [("2.15.0", "since 2.15.0"), ("", "not stated")])
def test_operators_newer_than_the_oldest_runtime_are_found(graph, version, found):
    (check,) = [c for c in check_graph(replace(graph, min_runtime=version), "int8") if not c.passed]
    assert (check.what, check.found) == ("operators that TFLite 2.14 has", found)


def test_a_file_of_another_format_than_it_says_is_found(graph):
    assert failed(graph, "float16") == ["weights are FLOAT16"]


def test_every_runtime_is_tried_or_named(grey_face):
    face = grey_face[:INPUT_SIZE, :INPUT_SIZE]
    checks = {check.what: check for check in check_runtimes(same_classes(default_model(), face[None]))}
    assert set(checks) == {"runs on litert", "runs on litert-builtin", "runs on tflite-runtime"}
    assert checks["runs on litert"].passed
    assert checks["runs on litert"].found == ""


def test_a_runtime_that_is_not_installed_is_neither_good_nor_bad():
    def run(runtime):
        if runtime == "tflite-runtime":
            raise DependencyError("not there")
        return True

    checks = check_runtimes(run)
    assert [check.passed for check in checks] == [True, True, None]
    report = Checked()
    report.checks = [*checks, bad := Check("of NumPy", np.False_)]
    assert report.failed == [bad]


def test_a_model_that_the_runtime_refuses_is_found(grey_face):
    broken = replace(default_model(), flatbuffer=default_model().flatbuffer[:2000])
    checks = check_runtimes(same_classes(broken, grey_face[None, :INPUT_SIZE, :INPUT_SIZE]))
    assert not checks[0].passed
    assert "refused by litert" in checks[0].found


def test_a_runtime_that_gives_other_classes_is_found(monkeypatch, grey_face):
    class Odd:
        def __init__(self, model, runtime):
            self.scores = np.eye(7)[int(runtime == "tflite-runtime")]

        def __call__(self, face):
            return self.scores

    monkeypatch.setattr("maskfer_converter.comparison.Classifier", Odd)
    checks = check_runtimes(same_classes(default_model(), grey_face[None, :INPUT_SIZE, :INPUT_SIZE]))
    assert [(check.passed, check.found) for check in checks] == [(True, ""), (True, ""), (False, "other answers")]
