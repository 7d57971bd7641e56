from __future__ import annotations

import json
import shutil
import zipfile
from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np
import pytest

from maskfer_edge.decoding import read_grey
from maskfer_edge.detector import Detection
from maskfer_edge.errors import InputError, OutputError
from maskfer_edge.learned_detector import DEFAULT_DETECTOR
from maskfer_edge.rescorer import SIDE
from maskfer_trainer import fit_rescorer as module
from maskfer_trainer.candidates import find_candidates
from maskfer_trainer.cutouts import PHOTOGRAPH, held_out
from maskfer_trainer.detector_evaluation import half
from maskfer_trainer.fit_rescorer import RescorerSettings, fit_rescorer

DETECTOR = Path(str(files("maskfer_edge") / "data" / DEFAULT_DETECTOR))
SHORT = RescorerSettings(draws=2, epochs=2, steps=3, batch_size=8, learning_rate=1e-2)
FACE = (100, 80, 60, 60)


class Finder:
    """Takes what is bright for a face, and with less certainty a place where nothing is."""

    def __init__(self, model, score_threshold):
        assert not model.rescorer

    def __call__(self, image):
        rows, columns = np.nonzero(image > 180)
        if len(rows) < 100:
            return []
        x, y = int(columns.min()), int(rows.min())
        w, h = int(columns.max()) - x + 1, int(rows.max()) - y + 1
        return [Detection((x, y, w, h), 0.8), Detection(((x + 160) % 280, (y + 120) % 200, 40, 40), 0.1)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight scenes of a bright square each, the last two for validation, and photographs of both halves."""
    folder = tmp_path_factory.mktemp("rescorer")
    scenes, photos = folder / "scenes", folder / "photos"
    (scenes / "scenes").mkdir(parents=True)
    photos.mkdir()
    rows = ["image,label,xmin,ymin,xmax,ymax"]
    names = [f"scenes/{number:05}.jpg" for number in range(8)]
    for number, name in enumerate(names):
        image = np.full((240, 320), 60, np.uint8)
        x, y = 40 + 25 * number, 50 + 10 * number
        image[y : y + 60, x : x + 60] = 230
        cv2.imwrite(str(scenes / name), image)
        rows.append(f"{name},without_mask,{x},{y},{x + 60},{y + 60}")
    (scenes / "boxes.csv").write_text("\n".join(rows) + "\n")
    (scenes / "scenes.json").write_text(json.dumps({"count": 8, "validation": names[6:]}))
    halves = {half(f"{number}.png"): f"{number}.png" for number in range(20)}
    rows = ["image,label,xmin,ymin,xmax,ymax"]
    for name in halves.values():
        image = np.full((240, 320), 60, np.uint8)
        image[80:140, 100:160] = 230
        cv2.imwrite(str(photos / name), image)
        rows.append(f"{name},with_mask,100,80,160,140")
    (photos / "boxes.csv").write_text("\n".join(rows) + "\n")
    return scenes, photos, halves


def tiny_rescorer():
    """The rescorer's input and output and its dropout, with next to nothing between."""
    from keras import Input, Model, layers

    inputs = Input((SIDE, SIDE, 1), name="grey")
    x = layers.Conv2D(4, 8, strides=8, use_bias=False)(layers.Rescaling(1 / 255)(inputs))
    x = layers.Dropout(0.3)(layers.Flatten()(layers.BatchNormalization()(x)))
    return Model(inputs, layers.Dense(1, activation="sigmoid", name="likely")(x), name="rescorer")


@pytest.fixture(scope="module", autouse=True)
def stand_in():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LearnedDetector", Finder)
        patch.setattr(module, "build_rescorer", tiny_rescorer)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory, data):
    out, messages = tmp_path_factory.mktemp("rescorer-run") / "run", []
    fit_rescorer(DETECTOR, data[0], data[1], out, SHORT, log=messages.append)
    return out, messages


def find(image, boxes, faces=(), ignored=()):
    return find_candidates(lambda _: [Detection(box, 0.5) for box in boxes], [(image, list(faces), list(ignored))])


def test_candidates_are_told_apart_by_their_overlap():
    image = np.random.default_rng(0).integers(0, 256, (240, 320), dtype=np.uint8)
    right, half_right, wrong = FACE, (130, 80, 60, 60), (230, 150, 50, 50)
    found = find(image, [right, half_right, wrong], [FACE])
    assert found.faces.tolist() == [True, False]
    assert (found.crops.shape, found.crops.dtype, found.scores.tolist()) == ((2, SIDE, SIDE), np.uint8, [0.5, 0.5])
    assert not np.array_equal(found.crops[0], found.crops[1])


@pytest.mark.parametrize("ignored", [FACE, (90, 70, 160, 160)])
def test_what_is_not_judged_is_no_candidate(ignored):
    assert len(find(np.zeros((240, 320), np.uint8), [FACE], ignored=[ignored]).faces) == 0


def test_no_pictures_give_no_candidates():
    assert find_candidates(lambda _: [], []).crops.shape == (0, SIDE, SIDE)


def test_a_run_leaves_model_history_and_curves(run):
    out, messages = run
    assert {path.name for path in out.iterdir()} == {
        "run.json", "history.csv", "curves.png", "checkpoints", "model.keras",
    }  # fmt: skip
    assert len((out / "history.csv").read_text().splitlines()) == 1 + SHORT.epochs
    assert "GPU" in messages[0]
    assert messages[2] == "4 candidates to validate, 2 of them faces"


@pytest.fixture
def learned_from(tmp_path, monkeypatch):
    """Tells which photographs a run reads."""
    read = []

    class Read(Exception):
        pass

    def stop(message):
        if "candidates" in message:
            raise Read

    monkeypatch.setattr(module, "read_grey", lambda path: read.append(path.name) or read_grey(path))

    def tell(scenes, photos):
        with pytest.raises(Read):
            fit_rescorer(DETECTOR, scenes, photos, tmp_path / "run", RescorerSettings(1, 1, 1, batch_size=4), log=stop)
        return read

    return tell


def test_only_the_tuning_half_of_the_photographs_is_learned_from(data, learned_from):
    scenes, photos, halves = data
    assert learned_from(scenes, photos) == [halves["tuning"]]


@pytest.mark.parametrize("apart", [True, False])
def test_photographs_of_validation_scenes_alone_are_not_learned_from(data, tmp_path, learned_from, apart):
    scenes = Path(shutil.copytree(data[0], tmp_path / "scenes"))
    info = json.loads((scenes / "scenes.json").read_text())
    (scenes / "scenes.json").write_text(json.dumps({**info, "validation_apart": apart}))
    of_tuning = [f"{number}.png" for number in range(200) if half(f"{number}.png") == "tuning"]
    names = {held_out(PHOTOGRAPH, name): name for name in of_tuning}
    rows = ["image,label,xmin,ymin,xmax,ymax"]
    for name in names.values():
        shutil.copy(data[1] / data[2]["tuning"], tmp_path / name)
        rows.append(f"{name},with_mask,100,80,160,140")
    (tmp_path / "boxes.csv").write_text("\n".join(rows) + "\n")
    assert set(learned_from(scenes, tmp_path)) == ({names[False]} if apart else set(names.values()))


def test_the_model_says_what_it_is_and_was_made_of(run):
    with zipfile.ZipFile(run[0] / "model.keras") as archive:
        info = json.loads(archive.read("maskfer.json"))
    assert (info["kind"], info["architecture"], info["scenes"]) == ("rescorer", "rescorer", {"count": 8})
    assert 0 <= info["validation_accuracy"] <= 1


def test_a_killed_run_ends_with_the_same_weights(run, data, tmp_path, monkeypatch):
    import keras

    class Killed(Exception):
        pass

    def kill(self, epoch, logs=None):
        original(self, epoch, logs)
        if epoch == 0:
            raise Killed

    original = module.RunFolder.on_epoch_end
    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(module.RunFolder, "on_epoch_end", kill)
        fit_rescorer(DETECTOR, data[0], data[1], out, SHORT)
    fit_rescorer(DETECTOR, data[0], data[1], out, SHORT, resume=True)
    ended, whole = (keras.models.load_model(folder / "model.keras") for folder in (out, run[0]))
    for one, other in zip(ended.get_weights(), whole.get_weights(), strict=True):
        assert np.allclose(one, other, rtol=1e-3, atol=1e-4)


def test_a_run_at_work_keeps_others_off(data, tmp_path):
    def log(message):
        if message.startswith("right on"):
            with pytest.raises(OutputError, match="another run is writing"):
                fit_rescorer(DETECTOR, data[0], data[1], tmp_path / "run", short, resume=True)
            refused.append(message)

    short, refused = RescorerSettings(draws=1, epochs=1, steps=1, batch_size=8), []
    fit_rescorer(DETECTOR, data[0], data[1], tmp_path / "run", short, log=log)
    assert refused


def test_a_finished_run_that_is_gone_on_with_looks_for_no_candidates(run, data, tmp_path, monkeypatch):
    shutil.copytree(run[0], tmp_path / "run")
    (tmp_path / "run/model.keras").unlink()
    monkeypatch.delattr(module, "find_candidates")
    fit_rescorer(DETECTOR, data[0], data[1], tmp_path / "run", SHORT, resume=True)
    assert (tmp_path / "run/model.keras").exists()


def test_a_damaged_run_is_named(run, data, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    (tmp_path / "run/checkpoints/last.keras").write_bytes(b"damaged")
    with pytest.raises(InputError, match="run cannot be gone on with, it is damaged"):
        fit_rescorer(DETECTOR, data[0], data[1], tmp_path / "run", SHORT, resume=True)


def test_a_run_that_is_there_is_not_overwritten(run, data):
    with pytest.raises(OutputError, match="already there; give --resume to go on with it"):
        fit_rescorer(DETECTOR, data[0], data[1], run[0], SHORT)


def test_a_run_of_other_settings_is_not_gone_on_with(run, data):
    with pytest.raises(InputError, match="draws 2, not 3"):
        fit_rescorer(DETECTOR, data[0], data[1], run[0], RescorerSettings(draws=3, epochs=2, steps=3), resume=True)


def test_a_run_of_other_photographs_is_not_gone_on_with(run, data, tmp_path):
    shutil.copytree(data[1], tmp_path / "photos")
    with (tmp_path / "photos/boxes.csv").open("a") as file:
        file.write("\n")
    with pytest.raises(InputError, match="photos_sha256"):
        fit_rescorer(DETECTOR, data[0], tmp_path / "photos", run[0], SHORT, resume=True)


def test_a_detector_that_finds_nothing_teaches_nothing(data, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LearnedDetector", lambda *_, **__: lambda image: [])
    with pytest.raises(InputError, match="finds no faces"):
        fit_rescorer(DETECTOR, data[0], data[1], tmp_path / "run", SHORT)
    assert not (tmp_path / "run").exists()


def test_what_are_no_scenes_is_refused(data, tmp_path):
    with pytest.raises(InputError, match="build-scenes"):
        fit_rescorer(DETECTOR, tmp_path, data[1], tmp_path / "run", SHORT)


@pytest.mark.parametrize("odd", [{"draws": 0}, {"epochs": 0}, {"steps": 0}, {"batch_size": 0}, {"learning_rate": 0.0}])
def test_settings_that_make_no_sense_are_refused(odd):
    with pytest.raises(InputError, match="at least 1"):
        RescorerSettings(**odd)
