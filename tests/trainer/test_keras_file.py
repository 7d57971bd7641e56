from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from maskfer_edge.errors import OutputError
from maskfer_trainer.keras_file import embed_metadata


def make_archive(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", b"\x00" * 100)
    return path


def read_archive(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def test_metadata_is_added_and_the_rest_kept(tmp_path):
    old = read_archive(make_archive(tmp_path / "a.keras"))
    embed_metadata(tmp_path / "a.keras", tmp_path / "b.keras", {"architecture": "lean"})
    new = read_archive(tmp_path / "b.keras")
    assert json.loads(new.pop("maskfer.json")) == {"architecture": "lean"}
    assert new == old


def test_older_metadata_is_replaced(tmp_path):
    embed_metadata(make_archive(tmp_path / "a.keras"), tmp_path / "b.keras", {"epoch": 1})
    embed_metadata(tmp_path / "b.keras", tmp_path / "c.keras", {"epoch": 2})
    with zipfile.ZipFile(tmp_path / "c.keras") as archive:
        assert archive.namelist().count("maskfer.json") == 1
        assert json.loads(archive.read("maskfer.json")) == {"epoch": 2}


def test_the_same_metadata_gives_the_same_bytes(tmp_path):
    make_archive(tmp_path / "a.keras")
    for name in ("b", "c"):
        embed_metadata(tmp_path / "a.keras", tmp_path / f"{name}.keras", {"epoch": 1})
    assert (tmp_path / "b.keras").read_bytes() == (tmp_path / "c.keras").read_bytes()


def test_a_network_can_be_loaded_with_its_metadata(keras_model):
    import keras

    assert keras.models.load_model(keras_model).output_shape == (None, 7)


def test_nothing_is_left_of_a_copy_that_failed(tmp_path):
    with pytest.raises(OutputError, match=r"b\.keras"):
        embed_metadata(tmp_path / "missing.keras", tmp_path / "b.keras", {})
    assert not list(tmp_path.iterdir())
