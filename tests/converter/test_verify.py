from __future__ import annotations

from dataclasses import replace

import pytest

from maskfer_converter.verify import verify
from maskfer_edge.contract import LABELS
from maskfer_edge.errors import InputError, ModelError
from maskfer_edge.model_file import load_model, pack


def altered(path, target, **changes):
    """The model with other metadata."""
    model = load_model(path)
    target.write_bytes(pack(model.flatbuffer, replace(model.info, **changes)))
    return target


def failed(found):
    return [check.what for check in found.failed]


def test_a_good_model_passes(tflite_model, dataset):
    found = verify(tflite_model, dataset)
    assert failed(found) == []
    assert found.same_pictures
    assert found.accuracy["bare test"] == load_model(tflite_model).info.accuracy["bare test"]["int8"]
    assert "masked test: as accurate as the file says" in [check.what for check in found.checks]


def test_a_model_calibrated_on_one_class_is_found(tmp_path, tflite_model, dataset):
    claimed = {**load_model(tflite_model).info.quantization, "calibration": {"Happy": 500}}
    found = verify(altered(tflite_model, tmp_path / "spoiled.tflite", quantization=claimed), dataset)
    assert failed(found) == ["calibrated on every class"]
    assert found.failed[0].found.startswith("none of Angry, Disgust")


def test_figures_that_are_not_true_are_found(tmp_path, tflite_model, dataset):
    claimed = load_model(tflite_model).info.accuracy
    boast = {part: {**row, "int8": row["int8"] - 0.2, "float": row["float"] - 0.2} for part, row in claimed.items()}
    found = verify(altered(tflite_model, tmp_path / "boast.tflite", accuracy=boast), dataset)
    assert failed(found) == ["masked test: as accurate as the file says", "bare test: as accurate as the file says"]


def test_figures_of_other_pictures_are_not_compared(tmp_path, tflite_model, dataset):
    info = load_model(tflite_model).info
    claimed = {part: {**row, "int8": 0.1, "float": 0.1} for part, row in info.accuracy.items()}
    elsewhere = {**info.quantization, "dataset_sha256": "00" * 32}
    found = verify(altered(tflite_model, tmp_path / "m.tflite", accuracy=claimed, quantization=elsewhere), dataset)
    assert (failed(found), found.same_pictures) == ([], False)


@pytest.mark.parametrize("accuracy", [{}, {"masked test": {"int8": 0.5}, "bare test": None}])
def test_a_file_without_figures_is_found(tmp_path, tflite_model, dataset, accuracy):
    found = verify(altered(tflite_model, tmp_path / "m.tflite", accuracy=accuracy), dataset)
    assert failed(found) == [f"{part} test: the file says how accurate it is" for part in ("masked", "bare")]


def test_a_loss_past_the_limit_is_found(tmp_path, tflite_model, dataset):
    claimed = load_model(tflite_model).info.accuracy
    worse = {part: {**row, "float": row["int8"] + 0.006, "agreement": 0.969} for part, row in claimed.items()}
    found = verify(altered(tflite_model, tmp_path / "m.tflite", accuracy=worse), dataset)
    assert failed(found)[:2] == ["masked test: at most 0.5 points lost", "masked test: 97 % agree"]


def test_a_format_that_nobody_knows_is_found(tmp_path, tflite_model, dataset):
    claimed = {"format": "int4"}
    found = verify(altered(tflite_model, tmp_path / "m.tflite", quantization=claimed), dataset)
    assert failed(found)[0] == "of a known format"


def test_another_format_than_it_says_is_found(tmp_path, tflite_model, dataset):
    info = load_model(tflite_model).info
    rows = {part: {**row, "float16": row["int8"]} for part, row in info.accuracy.items()}
    path = altered(tflite_model, tmp_path / "m.tflite", quantization={"format": "float16"}, accuracy=rows)
    assert "weights are FLOAT16" in [check.what for check in verify(path, dataset).checks]


def test_a_file_cut_short_is_refused(tmp_path, tflite_model, dataset):
    (tmp_path / "cut.tflite").write_bytes(tflite_model.read_bytes()[:-10])
    with pytest.raises(ModelError, match=r"cut\.tflite"):
        verify(tmp_path / "cut.tflite", dataset)


def test_a_folder_that_is_no_data_set_is_refused(tmp_path, tflite_model):
    with pytest.raises(InputError, match="build-dataset"):
        verify(tflite_model, tmp_path)


def test_every_label_is_looked_for(tmp_path, tflite_model, dataset):
    counts = {label: 3 for label in LABELS if label != "Fear"}
    claimed = {**load_model(tflite_model).info.quantization, "calibration": counts}
    found = verify(altered(tflite_model, tmp_path / "m.tflite", quantization=claimed), dataset)
    assert found.failed[0].found == "none of Fear"
