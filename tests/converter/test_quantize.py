from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from maskfer_converter.quantize import calibration_pictures, load_keras, quantize
from maskfer_edge.classifier import Classifier
from maskfer_edge.contract import LABELS
from maskfer_edge.dataset import read_part
from maskfer_edge.errors import InputError, ModelError, OutputError
from maskfer_edge.model_file import load_model
from maskfer_edge.runtime import open_interpreter


@pytest.fixture(scope="module")
def interpreter(tflite_model):
    return open_interpreter(load_model(tflite_model).flatbuffer)


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


def test_the_file_says_what_it_is(tflite_model):
    info = load_model(tflite_model).info
    assert info.architecture == "tiny"
    assert info.training_data == {"name": "faces", "sha256": "ab" * 32, "pictures": 49}
    assert info.accuracy.keys() == {"masked test", "bare test"}
    assert info.accuracy["bare test"]["pictures"] == 21
    assert "faces" in info.licence_note


def test_the_measured_accuracy_is_that_of_the_written_file(tflite_model, dataset):
    pictures = read_part(dataset, "bare", "test")
    classifier = Classifier(load_model(tflite_model))
    right = np.mean([classifier(face).argmax() for face in pictures.images] == pictures.labels)
    assert load_model(tflite_model).info.accuracy["bare test"]["int8"] == pytest.approx(right, abs=1e-4)
    assert right > 0.8


def test_int8_agrees_with_float(tflite_model):
    assert load_model(tflite_model).info.accuracy["bare test"]["agreement"] > 0.9


def test_the_same_arguments_give_the_same_bytes(tmp_path, keras_model, dataset, tflite_model):
    report = quantize(keras_model, dataset, tmp_path / "again.tflite", per_class=4)
    assert (tmp_path / "again.tflite").read_bytes() == tflite_model.read_bytes()
    assert (report.bytes, report.calibration_pictures) == (tflite_model.stat().st_size, 4 * 7 + 2)


def test_a_network_without_metadata_is_named_after_itself(tmp_path, make_network, dataset):
    make_network().save(tmp_path / "plain.keras")
    quantize(tmp_path / "plain.keras", dataset, tmp_path / "plain.tflite", per_class=4)
    assert load_model(tmp_path / "plain.tflite").info.architecture == "by-brightness"


def test_an_existing_output_is_kept(tmp_path, keras_model, dataset):
    (tmp_path / "out.tflite").write_bytes(b"mine")
    with pytest.raises(OutputError, match="--overwrite"):
        quantize(keras_model, dataset, tmp_path / "out.tflite")
    assert (tmp_path / "out.tflite").read_bytes() == b"mine"


def test_an_existing_output_is_replaced_when_asked(tmp_path, keras_model, dataset):
    (tmp_path / "out.tflite").write_bytes(b"mine")
    quantize(keras_model, dataset, tmp_path / "out.tflite", per_class=4, overwrite=True)
    assert load_model(tmp_path / "out.tflite").info.labels == LABELS


def test_a_network_of_one_class_is_refused_and_nothing_is_written(tmp_path, one_class_model, dataset):
    with pytest.raises(ModelError, match="one class only, Happy"):
        quantize(one_class_model, dataset, tmp_path / "out.tflite", per_class=4)
    assert not list(tmp_path.iterdir())


def test_too_few_calibration_pictures_are_refused(tmp_path, keras_model, dataset):
    with pytest.raises(InputError, match="7 training pictures of Angry; 8 are needed"):
        quantize(keras_model, dataset, tmp_path / "out.tflite", per_class=8)
    assert not list(tmp_path.iterdir())


def test_calibration_pictures_are_of_every_class_and_reach_black_and_white(dataset):
    pictures = calibration_pictures(dataset, 4, 0)
    assert (pictures.shape, pictures.dtype) == ((4 * 7 + 2, 48, 48, 1), np.float32)
    assert (pictures.min(), pictures.max()) == (0, 255)


def test_calibration_pictures_are_masked_and_bare_in_turn(dataset):
    pictures = calibration_pictures(dataset, 2, 0)[:-2, ..., 0]
    for i, picture in enumerate(pictures):
        part = read_part(dataset, ("masked", "bare")[i % 2], "train")
        assert (part.images[part.labels == i // 2] == picture).all(axis=(1, 2)).any()


def test_the_seed_chooses_the_calibration_pictures(dataset):
    assert np.array_equal(calibration_pictures(dataset, 3, 0), calibration_pictures(dataset, 3, 0))
    assert not np.array_equal(calibration_pictures(dataset, 3, 0), calibration_pictures(dataset, 3, 1))


@pytest.mark.parametrize("content", [b"", b"no Keras file", b"\x89HDF\r\n"])
def test_what_is_no_keras_file_is_refused(tmp_path, content):
    (tmp_path / "model.keras").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.keras is not a whole \.keras file"):
        load_keras(tmp_path / "model.keras")


def test_a_keras_file_cut_short_is_refused(tmp_path, keras_model):
    content = keras_model.read_bytes()
    (tmp_path / "cut.keras").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"not a whole \.keras file"):
        load_keras(tmp_path / "cut.keras")


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(InputError, match=r"missing\.keras cannot be read"):
        load_keras(tmp_path / "missing.keras")


def repacked(source: Path, target: Path, **members: bytes) -> Path:
    """A copy of a `.keras` with other members (their names without dots and slashes), deflated."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, members.get(name.partition(".")[0], old.read(name)))
    return target


@pytest.mark.parametrize("said", [b"{", b"[]", b"3", b'"lean"'])
def test_damaged_metadata_is_refused(tmp_path, keras_model, said):
    path = repacked(keras_model, tmp_path / "model.keras", maskfer=said)
    with pytest.raises(InputError, match=r"model\.keras"):
        load_keras(path)


def test_metadata_that_cannot_be_unpacked_is_refused(tmp_path, keras_model):
    path = repacked(keras_model, tmp_path / "model.keras")
    content = bytearray(path.read_bytes())
    start = content.index(b"maskfer.json") + len("maskfer.json")
    content[start : start + 20] = b"\xff" * 20
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"not a whole \.keras file"):
        load_keras(path)


def test_a_damaged_configuration_is_refused(tmp_path, keras_model):
    path = repacked(keras_model, tmp_path / "model.keras", config=b"{}")
    with pytest.raises(InputError, match=r"model\.keras cannot be loaded by Keras"):
        load_keras(path)


@pytest.mark.parametrize(("side", "classes"), [(32, 7), (48, 6)])
def test_other_shapes_are_refused(tmp_path, side, classes):
    import keras

    inputs = keras.Input((side, side, 1))
    keras.Model(inputs, keras.layers.Dense(classes)(keras.layers.Flatten()(inputs))).save(tmp_path / "other.keras")
    with pytest.raises(InputError, match=rf"{side}, {side}, 1\), \(None, {classes}.*expected"):
        load_keras(tmp_path / "other.keras")


def test_a_network_that_was_never_built_is_refused(tmp_path):
    import keras

    with pytest.warns(UserWarning, match="not yet been built"):
        keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(7)]).save(tmp_path / "unbuilt.keras")
    with pytest.raises(InputError, match=r"unbuilt\.keras"):
        load_keras(tmp_path / "unbuilt.keras")


def test_code_inside_a_model_is_not_run(tmp_path):
    import keras

    mark = tmp_path / "ran"
    inputs = keras.Input((48, 48, 1))
    x = keras.layers.Lambda(lambda t, name=str(mark): (open(name, "a").close(), t)[1])(inputs)  # noqa: PTH123
    keras.Model(inputs, keras.layers.Dense(7)(keras.layers.Flatten()(x))).save(tmp_path / "lambda.keras")
    assert mark.exists()  # building the network ran it
    mark.unlink()
    with pytest.raises(InputError, match=r"lambda\.keras cannot be loaded by Keras"):
        load_keras(tmp_path / "lambda.keras")
    assert not mark.exists()


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
