from __future__ import annotations

import json
import shutil
from dataclasses import asdict

import numpy as np
import pytest

from maskfer_converter import quantize as quantize_module
from maskfer_converter.checks import RefusedModelError
from maskfer_converter.comparison import Limits
from maskfer_converter.quantize import quantize, report_path
from maskfer_edge.classifier import Classifier
from maskfer_edge.contract import LABELS
from maskfer_edge.dataset import dataset_info, read_part
from maskfer_edge.errors import InputError, OutputError
from maskfer_edge.model_file import load_model
from maskfer_edge.runtime import open_interpreter

pytestmark = pytest.mark.usefixtures("few_runs")


@pytest.fixture(scope="module")
def interpreter(tflite_model):
    return open_interpreter(load_model(tflite_model).flatbuffer)


@pytest.fixture(scope="module")
def report(tflite_model):
    return json.loads(report_path(tflite_model).read_text())


def test_all_tensors_are_integers(interpreter):
    kinds = {np.dtype(detail["dtype"]) for detail in interpreter.get_tensor_details()}
    assert kinds
    assert all(np.issubdtype(kind, np.integer) for kind in kinds)


def test_the_input_is_the_pixel_itself(interpreter):
    (detail,) = interpreter.get_input_details()
    assert (detail["dtype"], detail["quantization"]) == (np.uint8, (1.0, 0))
    assert detail["shape"].tolist() == [1, 48, 48, 1]


def test_the_output_is_seven_bytes(interpreter):
    (detail,) = interpreter.get_output_details()
    assert (detail["dtype"], detail["shape"].tolist()) == (np.uint8, [1, len(LABELS)])


def test_the_file_says_what_it_is(tflite_model, dataset):
    info = load_model(tflite_model).info
    assert info.architecture == "tiny"
    assert info.training_data == {"name": "faces", "sha256": "ab" * 32, "pictures": 49}
    assert info.accuracy.keys() == {"masked test", "bare test"}
    assert info.accuracy["bare test"]["pictures"] == 21
    assert info.quantization == {
        "format": "int8",
        "calibration": dict.fromkeys(LABELS, 4),
        "seed": 0,
        "dataset_sha256": dataset_info(dataset)["sha256"],
    }
    assert "faces" in info.licence_note


def test_the_measured_accuracy_is_that_of_the_written_file(tflite_model, dataset):
    pictures = read_part(dataset, "bare", "test")
    classifier = Classifier(load_model(tflite_model))
    right = np.mean([classifier(face).argmax() for face in pictures.images] == pictures.labels)
    assert load_model(tflite_model).info.accuracy["bare test"]["int8"] == pytest.approx(right, abs=1e-4)
    assert right > 0.8


def test_int8_agrees_with_float(tflite_model):
    assert load_model(tflite_model).info.accuracy["bare test"]["agreement"] > 0.9


def test_the_report_lies_beside_the_model(tflite_model, report):
    assert report_path(tflite_model).name == "model.report.json"
    assert (report["model"], report["format"], report["bytes"]) == (
        str(tflite_model),
        "int8",
        tflite_model.stat().st_size,
    )
    assert report["comparison"]["bare test"]["recall"].keys() == set(LABELS)
    assert all(check["passed"] for check in report["checks"] if check["what"] != "runs on tflite-runtime")
    assert not any(check["passed"] is False for check in report["checks"])


def test_the_report_names_layers_worst_first(report):
    noise = [layer["sqnr_db"] for layer in report["layers"]]
    assert noise
    assert noise == sorted(noise)


def test_the_report_has_the_latency_of_each_runtime(report):
    timed = {timing["runtime"] for timing in report["latency"]["timings"]}
    assert {"litert", "litert-builtin"} <= timed
    assert all(timing["median_ms"] > 0 for timing in report["latency"]["timings"])


@pytest.mark.usefixtures("anew")
def test_the_same_arguments_give_the_same_bytes(tmp_path, keras_model, dataset, tflite_model):
    report = quantize(keras_model, dataset, tmp_path / "again.tflite", per_class=4)
    assert (tmp_path / "again.tflite").read_bytes() == tflite_model.read_bytes()
    assert (report.bytes, report.calibration) == (tflite_model.stat().st_size, dict.fromkeys(LABELS, 4))


@pytest.mark.parametrize("form", ["float16", "dynamic", "float"])
def test_the_other_formats_say_what_they_are_and_run(tmp_path, keras_model, dataset, form):
    report = quantize(keras_model, dataset, tmp_path / "model.tflite", form, per_class=10**6, force=True)
    # TFLite's own kernels for dynamic ranges may be lost with a network of so few and so large weights
    assert {check.what for check in report.failed} <= ({"runs on litert-builtin"} if form == "dynamic" else set())
    model = load_model(tmp_path / "model.tflite")
    assert (model.info.quantization["format"], model.info.quantization["calibration"]) == (form, {})
    assert model.info.accuracy["bare test"][form] == report.comparison["bare test"].converted_accuracy > 0.8
    assert report.layers == []
    assert Classifier(model)(read_part(dataset, "bare", "test").images[0]).sum() == pytest.approx(1)


def test_an_unknown_format_is_refused(tmp_path, keras_model, dataset):
    with pytest.raises(InputError, match="unknown format 'int4'; there are int8, float16, dynamic, float"):
        quantize(keras_model, dataset, tmp_path / "out.tflite", "int4")


def test_a_network_without_metadata_is_named_after_itself(tmp_path, make_network, dataset):
    make_network().save(tmp_path / "plain.keras")
    quantize(tmp_path / "plain.keras", dataset, tmp_path / "plain.tflite", per_class=4)
    assert load_model(tmp_path / "plain.tflite").info.architecture == "by-brightness"


@pytest.mark.parametrize("existing", ["out.tflite", "out.report.json"])
def test_an_existing_output_is_kept(tmp_path, keras_model, dataset, existing):
    (tmp_path / existing).write_bytes(b"mine")
    with pytest.raises(OutputError, match=f"{existing}.*--overwrite"):
        quantize(keras_model, dataset, tmp_path / "out.tflite")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(existing, b"mine")]


def test_an_existing_output_is_replaced_when_asked(tmp_path, keras_model, dataset):
    for name in ("out.tflite", "out.report.json"):
        (tmp_path / name).write_bytes(b"mine")
    report = quantize(keras_model, dataset, tmp_path / "out.tflite", per_class=4, overwrite=True)
    assert load_model(tmp_path / "out.tflite").info.labels == LABELS
    assert json.loads((tmp_path / "out.report.json").read_text()) == json.loads(json.dumps(asdict(report)))


def test_a_network_of_one_class_is_refused_and_nothing_is_written(tmp_path, one_class_model, dataset):
    with pytest.raises(RefusedModelError, match=r"not written: masked test: more than one class given: 1 given"):
        quantize(one_class_model, dataset, tmp_path / "out.tflite", per_class=4)
    assert not list(tmp_path.iterdir())


def test_it_is_written_when_forced(tmp_path, one_class_model, dataset):
    report = quantize(one_class_model, dataset, tmp_path / "out.tflite", per_class=4, force=True)
    assert [check.what for check in report.failed] == [
        "masked test: more than one class given",
        "bare test: more than one class given",
    ]
    assert load_model(tmp_path / "out.tflite").info.accuracy["masked test"]["int8"] == pytest.approx(1 / 7, abs=1e-4)


@pytest.mark.parametrize("spoil", ["black pictures", "one class"])
def test_a_model_calibrated_on_the_wrong_pictures_is_refused(tmp_path, monkeypatch, keras_model, dataset, spoil):
    def spoiled(*arguments):
        good = calibration_pictures(*arguments)
        pictures = good.pictures * 0 if spoil == "black pictures" else good.pictures[:4] * 0.1
        return type(good)(pictures, good.counts, good.seed)

    calibration_pictures = quantize_module.calibration_pictures
    monkeypatch.setattr(quantize_module, "calibration_pictures", spoiled)
    with pytest.raises(RefusedModelError, match=r"the input is the grey pixel.*points lost"):
        quantize(keras_model, dataset, tmp_path / "out.tflite", per_class=4)
    assert not list(tmp_path.iterdir())


def test_limits_that_cannot_be_kept_refuse_any_model(tmp_path, keras_model, dataset):
    with pytest.raises(RefusedModelError, match="at most -100 points lost") as refused:
        quantize(keras_model, dataset, tmp_path / "out.tflite", per_class=4, limits=Limits(max_drop=-100))
    assert refused.value.report.failed[0].what == "masked test: at most -100 points lost"


def test_a_folder_that_is_no_data_set_is_refused(tmp_path, keras_model):
    with pytest.raises(InputError, match="build-dataset"):
        quantize(keras_model, tmp_path, tmp_path / "out.tflite")


def test_a_data_set_without_bare_pictures_is_refused(tmp_path, keras_model, dataset):
    copy = shutil.copytree(dataset, tmp_path / "data", ignore=shutil.ignore_patterns("bare"))
    records = [json.loads(line) for line in (copy / "manifest.jsonl").read_text().splitlines()]
    for record in records:
        del record["bare"]
    (copy / "manifest.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(InputError, match=r"holds no bare pictures.*--keep-bare"):
        quantize(keras_model, copy, tmp_path / "out.tflite", per_class=4)
