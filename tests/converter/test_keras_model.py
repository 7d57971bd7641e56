from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from maskfer_converter.keras_model import load_keras
from maskfer_edge.errors import InputError


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


def test_what_is_converted_already_is_said_to_be(tflite_model):
    with pytest.raises(InputError, match=r"model\.tflite is a TFLite file already; give the model\.keras of tr"):
        load_keras(tflite_model)


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(InputError, match=r"missing\.keras cannot be read"):
        load_keras(tmp_path / "missing.keras")


def repacked(source: Path, target: Path, **members: bytes) -> Path:
    """A copy of a `.keras` with other members (their names without dots and slashes), deflated."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, members.get(name.partition(".")[0], old.read(name)))
    return target


@pytest.mark.parametrize("content", [b"{", b"[]", b"3", b'"lean"'])
def test_damaged_metadata_is_refused(tmp_path, keras_model, content):
    path = repacked(keras_model, tmp_path / "model.keras", maskfer=content)
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
