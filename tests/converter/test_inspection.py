from __future__ import annotations

from importlib.resources import as_file, files

import pytest

from maskfer_converter.inspection import inspect
from maskfer_edge.contract import LABELS
from maskfer_edge.errors import InputError, ModelError
from maskfer_edge.learned_detector import DEFAULT_DETECTOR
from maskfer_edge.model_file import load_model


def test_a_model_of_ours_says_what_it_is(tflite_model):
    found = inspect(tflite_model)
    assert found.metadata["labels"] == LABELS
    assert (found.why, found.bytes) == ("", tflite_model.stat().st_size)
    assert found.multiply_accumulates == 48 * 48 * 6 + 6 * 7
    assert 0 < found.weight_bytes < found.bytes


def test_a_model_of_others_is_shown_without_metadata(tmp_path, tflite_model):
    (tmp_path / "other.tflite").write_bytes(load_model(tflite_model).flatbuffer)
    found = inspect(tmp_path / "other.tflite")
    assert found.metadata is None
    assert "lacks maskfer's metadata" in found.why
    assert found.graph == inspect(tflite_model).graph


def test_a_detector_s_second_network_is_shown_too(tflite_model):
    with as_file(files("maskfer_edge") / "data" / DEFAULT_DETECTOR) as bundled:
        found = inspect(bundled)
    assert found.rescorer.operators[-1].name == "QUANTIZE"
    assert 0 < found.rescorer.multiply_accumulates < found.multiply_accumulates / 10
    assert inspect(tflite_model).rescorer is None


def test_a_damaged_detector_is_told_what_ails_it(tmp_path):
    content = (files("maskfer_edge") / "data" / DEFAULT_DETECTOR).read_bytes()
    changed = tmp_path / "changed.tflite"
    changed.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    found = inspect(changed)
    assert found.metadata is None
    assert "expression" not in found.why


def test_what_is_no_model_is_refused(tmp_path):
    (tmp_path / "text.tflite").write_text("no model at all")
    with pytest.raises(ModelError, match=r"text\.tflite is not a TFLite model"):
        inspect(tmp_path / "text.tflite")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"missing\.tflite cannot be read"):
        inspect(tmp_path / "missing.tflite")
