from __future__ import annotations

import json
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from maskfer_edge.dataset import dataset_info, read_part
from maskfer_edge.errors import InputError, OutputError
from maskfer_trainer.averaging import average
from maskfer_trainer.batches import validation_part
from maskfer_trainer.cli import main
from maskfer_trainer.keras_file import METADATA_NAME, embed_metadata, predict_views

SHARE = 0.3


@pytest.fixture
def save(tmp_path, make_network, dataset):
    """Writes the hand-made network, with its weights multiplied, as `trainer fit` does."""

    def make(name: str, factor: float = 1.0, **changes) -> Path:
        network = make_network()
        network.set_weights([np.float32(factor) * weights for weights in network.get_weights()])
        said = {
            "settings": {"validation_share": SHARE, **changes.pop("settings", {})}, "initial_sha256": "cd",
            "architecture": "tiny", "dataset": "faces", "dataset_sha256": dataset_info(dataset)["sha256"], **changes,
        }  # fmt: skip
        network.save(tmp_path / "bare.keras")
        embed_metadata(tmp_path / "bare.keras", tmp_path / name, said)
        return tmp_path / name

    return make


def metadata(path: Path) -> dict:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(METADATA_NAME))


def test_weights_are_averaged_and_the_temperature_is_folded_in(save, dataset, tmp_path):
    models = [save("a.keras", 0.5), save("b.keras", 2.5)]
    report = average(models, dataset, tmp_path / "mean.keras")
    of_parts = [keras.models.load_model(path, compile=False).get_weights() for path in models]
    found = keras.models.load_model(tmp_path / "mean.keras", compile=False).get_weights()
    for first, second, mean in zip(*of_parts, found, strict=True):
        assert np.allclose(mean * report.temperature, (first + second) / 2, rtol=1e-4, atol=1e-4)


def test_the_report_is_of_validation_pictures(save, dataset, tmp_path):
    model = save("a.keras")
    report = average([model, save("b.keras")], dataset, tmp_path / "mean.keras")
    masked = read_part(dataset, "masked", "train")
    validation = masked.take(validation_part(masked, dataset, SHARE))
    views = predict_views(keras.models.load_model(model, compile=False), validation.images)
    expected = (views[0].argmax(axis=1) == validation.labels).mean()
    assert list(report.each.values()) == pytest.approx([expected] * 2, abs=1e-4)
    assert report.average == pytest.approx(expected, abs=1e-4)


def test_the_average_says_what_it_was_made_of(save, dataset, tmp_path):
    average([save("a.keras"), save("b.keras", 1.5)], dataset, tmp_path / "mean.keras")
    said = metadata(tmp_path / "mean.keras")
    assert said["architecture"] == "tiny"
    assert len(set(said["averaged_sha256"])) == 2
    assert said["temperature"] > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"architecture": "other"}, "architecture: 'other' and 'tiny'"),
     ({"initial_sha256": "ef"}, "initial_sha256: 'ef'"),
     ({"settings": {"epochs": 5}}, "differ in settings"), ({"dataset_sha256": "ab"}, "dataset_sha256: 'ab'")],
)  # fmt: skip
def test_networks_that_do_not_go_together_are_refused(save, dataset, tmp_path, changes, said):
    with pytest.raises(InputError, match=said):
        average([save("a.keras"), save("b.keras", **changes)], dataset, tmp_path / "mean.keras")
    assert not (tmp_path / "mean.keras").exists()


def test_networks_may_differ_in_their_seed(save, dataset, tmp_path):
    models = [save(f"{seed}.keras", settings={"seed": seed}) for seed in (3, 4)]
    assert average(models, dataset, tmp_path / "mean.keras").average > 0


def test_networks_of_other_shapes_are_refused(save, dataset, tmp_path):
    other = keras.Sequential([keras.Input((48, 48, 1)), keras.layers.Flatten(), keras.layers.Dense(7)])
    other.save(tmp_path / "bare.keras")
    embed_metadata(tmp_path / "bare.keras", tmp_path / "other.keras", metadata(save("a.keras")))
    with pytest.raises(InputError, match=r"other\.keras has weights of other shapes"):
        average([tmp_path / "a.keras", tmp_path / "other.keras"], dataset, tmp_path / "mean.keras")


def test_another_data_set_is_refused(save, dataset, tmp_path):
    models = [save(name, dataset_sha256="ab") for name in ("a.keras", "b.keras")]
    with pytest.raises(InputError, match="was not trained on"):
        average(models, dataset, tmp_path / "mean.keras")


def test_one_network_has_no_average(save, dataset, tmp_path):
    with pytest.raises(InputError, match="two or more"):
        average([save("a.keras")], dataset, tmp_path / "mean.keras")


def test_a_file_that_is_no_run_s_network_is_named(save, dataset, tmp_path):
    (tmp_path / "cut.keras").write_bytes(save("a.keras").read_bytes()[:500])
    with pytest.raises(InputError, match=r"cut\.keras is no whole model\.keras"):
        average([tmp_path / "a.keras", tmp_path / "cut.keras"], dataset, tmp_path / "mean.keras")


def test_an_existing_file_is_kept_unless_told_otherwise(save, dataset, tmp_path):
    models = [save("a.keras"), save("b.keras")]
    (tmp_path / "mean.keras").write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        average(models, dataset, tmp_path / "mean.keras")
    assert (tmp_path / "mean.keras").read_text() == "mine"
    average(models, dataset, tmp_path / "mean.keras", overwrite=True)
    assert metadata(tmp_path / "mean.keras")["architecture"] == "tiny"


def test_the_command_prints_each_share(run_main, save, dataset, tmp_path):
    models, out = [save("a.keras"), save("b.keras")], tmp_path / "mean.keras"
    ran = run_main(main, "average", *models, "--dataset", dataset, "--out", out)
    assert ran.code == 0
    assert [line.partition(":")[0] for line in ran.out.splitlines()] == [str(path) for path in (*models, out)]
    again = run_main(main, "average", *models, "--dataset", dataset, "-o", out, "--overwrite", "--json")
    assert json.loads(again.out)["model"] == str(out)
