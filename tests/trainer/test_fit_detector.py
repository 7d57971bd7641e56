from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import replace

import cv2
import numpy as np
import pytest

from maskfer_edge.errors import InputError, OutputError
from maskfer_edge.scenes import GroundTruth
from maskfer_trainer import fit_detector as module
from maskfer_trainer.detector_targets import targets
from maskfer_trainer.fit_detector import DetectorSettings, best_threshold, fit_detector
from maskfer_trainer.scene_batches import SceneSet

SHORT = DetectorSettings(epochs=2, batch_size=2)


def tiny_detector():
    """The detector's input and maps, with next to nothing between, which TensorFlow traces ten times as fast."""
    from keras import Input, Model, layers

    inputs = Input((240, 320, 1), name="grey")
    x = layers.Conv2D(4, 8, strides=8)(layers.Rescaling(1 / 127.5, offset=-1.0)(inputs))
    x = layers.ReLU()(layers.BatchNormalization()(x))
    heat, boxes = layers.Conv2D(1, 1, activation="sigmoid", name="heat")(x), layers.Conv2D(4, 1, name="boxes")(x)
    return Model(inputs, {"heat": heat, "boxes": boxes}, name="centre-point")


@pytest.fixture(scope="module", autouse=True)
def tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "build_detector", tiny_detector)
        yield


@pytest.fixture
def eagerly(monkeypatch, run_eagerly):
    run_eagerly(monkeypatch)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Six scenes of one bright square each; the last two are for validation."""
    folder = tmp_path_factory.mktemp("fit") / "scenes"
    (folder / "scenes").mkdir(parents=True)
    rows = ["image,label,xmin,ymin,xmax,ymax"]
    names = [f"scenes/{number:05}.jpg" for number in range(6)]
    for number, name in enumerate(names):
        image = np.full((240, 320), 60, np.uint8)
        x, y = 40 + 30 * number, 50 + 15 * number
        image[y : y + 60, x : x + 50] = 220
        cv2.imwrite(str(folder / name), image)
        rows += [f"{name},with_mask,{x},{y},{x + 50},{y + 60}", f"{name},ignore,5,5,12,12"]
    (folder / "boxes.csv").write_text("\n".join(rows) + "\n")
    (folder / "scenes.json").write_text(json.dumps({"count": 6, "validation": names[4:]}))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, scenes):
    run = tmp_path_factory.mktemp("fit") / "run"
    messages = []
    fit_detector(scenes, run, SHORT, log=messages.append)
    return run, messages


def test_a_run_leaves_model_history_and_curves(run):
    folder, messages = run
    assert {path.name for path in folder.iterdir()} == {
        "run.json", "history.csv", "curves.png", "checkpoints", "model.keras",
    }  # fmt: skip
    assert messages[1] == (
        "4 scenes to train on; 2 to validate, of the same faces and photographs: its figures are too good"
    )
    assert "GPU" in messages[0]
    assert sum(line.startswith("epoch") for line in messages) == 2


def test_the_model_says_what_a_converter_needs(run):
    with zipfile.ZipFile(run[0] / "model.keras") as archive:
        info = json.loads(archive.read("maskfer.json"))
    assert (info["kind"], info["stride"], info["input_size_wh"]) == ("detector", 8, [320, 240])
    assert 0 < info["score_threshold"] < 1


def test_the_model_has_two_maps(run):
    import keras

    network = keras.models.load_model(run[0] / "model.keras")
    assert set(network.output) == {"heat", "boxes"}


def test_a_run_is_gone_on_with(tmp_path, scenes, run):
    shutil.copytree(run[0], tmp_path / "run")
    (tmp_path / "run/model.keras").unlink()
    before = (tmp_path / "run/history.csv").read_text()
    fit_detector(scenes, tmp_path / "run", SHORT, resume=True)
    assert (tmp_path / "run/history.csv").read_text() == before
    assert (tmp_path / "run/model.keras").exists()


def test_what_is_learned_does_not_depend_on_the_processes_that_make_batches(tmp_path, scenes, run):
    fit_detector(scenes, tmp_path / "run", SHORT, workers=2)
    one, other = (
        np.genfromtxt(folder / "history.csv", delimiter=",", skip_header=1) for folder in (tmp_path / "run", run[0])
    )
    assert one == pytest.approx(other, rel=1e-3)  # threads sum in another order


@pytest.mark.usefixtures("eagerly")
def test_a_run_that_was_cut_short_is_gone_on_with(tmp_path, scenes):
    """As after a kill in the second of three epochs: last.keras is of the first."""
    longer, messages = replace(SHORT, epochs=3), []

    class Killed(Exception):
        pass

    def until_second(line):
        messages.append(line)
        if line.startswith("epoch 2"):
            raise Killed

    with pytest.raises(Killed):
        fit_detector(scenes, tmp_path / "run", longer, workers=2, log=until_second)
    assert len((tmp_path / "run/history.csv").read_text().splitlines()) == 2
    fit_detector(scenes, tmp_path / "run", longer, resume=True, log=messages.append)
    epochs = [line.partition(":")[0] for line in messages if line.startswith("epoch")]
    assert epochs == ["epoch 1/3", "epoch 2/3", "epoch 2/3", "epoch 3/3"]
    assert (tmp_path / "run/model.keras").exists()
    fit_detector(scenes, tmp_path / "whole", longer)
    cut, whole = (
        np.genfromtxt(tmp_path / name / "history.csv", delimiter=",", skip_header=1) for name in ("run", "whole")
    )
    assert cut == pytest.approx(whole, rel=1e-3)


@pytest.mark.usefixtures("eagerly")
def test_a_run_at_work_keeps_others_off(tmp_path, scenes):
    def log(message):
        if message.startswith("epoch"):
            with pytest.raises(OutputError, match="another run is writing"):
                fit_detector(scenes, tmp_path / "run", short, resume=True)
            refused.append(message)

    short, refused = replace(SHORT, epochs=1), []
    fit_detector(scenes, tmp_path / "run", short, workers=1, log=log)
    assert refused


def test_a_damaged_run_is_named(tmp_path, scenes, run):
    shutil.copytree(run[0], tmp_path / "run")
    (tmp_path / "run/checkpoints/last.keras").write_bytes(b"damaged")
    with pytest.raises(InputError, match="run cannot be gone on with, it is damaged"):
        fit_detector(scenes, tmp_path / "run", SHORT, resume=True)


def test_an_existing_run_is_kept(run, scenes):
    with pytest.raises(OutputError, match="--resume"):
        fit_detector(scenes, run[0], SHORT)


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_folder_without_scenes_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "scenes.json").write_text(content)
    with pytest.raises(InputError, match=r"scenes\.json"):
        fit_detector(tmp_path, tmp_path / "run", SHORT)


def test_too_few_scenes_are_refused(tmp_path, scenes):
    with pytest.raises(InputError, match="too few scenes for a batch of 64"):
        fit_detector(scenes, tmp_path / "run", DetectorSettings(batch_size=64))


@pytest.mark.parametrize("settings", [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"learning_rate": 2.0}])
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(InputError, match="received"):
        DetectorSettings(**settings)


@pytest.mark.usefixtures("eagerly")
def test_a_run_starts_from_given_weights(tmp_path, scenes, run):
    still = replace(SHORT, epochs=1, learning_rate=1e-9)
    import keras

    model = keras.models.load_model(
        fit_detector(scenes, tmp_path / "run", still, initial=run[0] / "model.keras"), compile=False
    )
    before = keras.models.load_model(run[0] / "model.keras", compile=False)
    kernels = [[w for w in m.get_weights() if w.ndim == 4] for m in (before, model)]
    for old, new in zip(*kernels, strict=True):
        np.testing.assert_allclose(new, old, atol=1e-6)
    info = json.loads((tmp_path / "run/run.json").read_text())
    assert len(info["initial_sha256"]) == 64


def test_scenes_of_other_portraits_are_not_the_same_run(run, scenes, tmp_path):
    others = shutil.copytree(scenes, tmp_path / "others")
    info = json.loads((others / "scenes.json").read_text())
    (others / "scenes.json").write_text(json.dumps({**info, "sha256": "cd" * 32}))
    with pytest.raises(InputError, match="was started otherwise: with scenes"):
        fit_detector(others, run[0], SHORT, resume=True)


def test_weights_of_another_network_are_refused(tmp_path, scenes):
    (tmp_path / "other.keras").write_bytes(b"none")
    with pytest.raises(InputError, match=r"other\.keras cannot be loaded by Keras; start from a whole"):
        fit_detector(scenes, tmp_path / "run", SHORT, initial=tmp_path / "other.keras")
    assert not (tmp_path / "run").exists()


def test_the_threshold_is_where_f1_is_best():
    """Every scene has a sure right box and an unsure false one."""
    face, false = (100, 60, 40, 48), (200, 150, 40, 48)
    maps = targets([face], [])[..., [0, 3, 4, 5, 6]]
    wrong = targets([false], [])
    maps[..., 0] = np.maximum(0.8 * (maps[..., 0] == 1), 0.45 * (wrong[..., 0] == 1))
    maps[..., 1:] += wrong[..., 3:]
    scenes = SceneSet(np.zeros((2, 240, 320), np.uint8), [GroundTruth([face], [])] * 2)
    f1, threshold = best_threshold(np.stack([maps, maps]), scenes)
    assert (f1, 0.45 < threshold <= 0.8) == (1.0, True)


def test_what_lies_on_an_ignored_face_is_no_false_box():
    face = (100, 60, 40, 48)
    maps = targets([face], [])[..., [0, 3, 4, 5, 6]]
    nothing = SceneSet(np.zeros((1, 240, 320), np.uint8), [GroundTruth([], [face])])
    assert best_threshold(maps[None], nothing)[0] == 0


def test_faces_that_the_edge_leaves_out_do_not_count():
    small = (100, 60, 14, 14)
    maps = targets([small], [])[..., [0, 3, 4, 5, 6]]
    assert best_threshold(maps[None], SceneSet(np.zeros((1, 240, 320), np.uint8), [GroundTruth([small], [])]))[0] == 0
