from __future__ import annotations

import json
import zipfile
from dataclasses import replace

import cv2
import numpy as np
import pytest

from maskfer_edge.errors import InputError, OutputError
from maskfer_trainer import fit_detector as module
from maskfer_trainer.detector_network import targets
from maskfer_trainer.fit_detector import DetectorSettings, SceneSet, best_threshold, fit_detector, moved, read_scenes

SHORT = DetectorSettings(epochs=2, batch_size=2)


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
    told = []
    fit_detector(scenes, run, SHORT, say=told.append)
    return run, told


def test_a_run_leaves_model_history_and_curves(run):
    folder, told = run
    assert {path.name for path in folder.iterdir()} == {
        "run.json", "history.csv", "curves.png", "checkpoints", "model.keras",
    }  # fmt: skip
    assert told[0] == "4 scenes to train on; 2 to validate"
    assert sum(line.startswith("epoch") for line in told) == 2


def test_the_model_says_what_a_converter_needs(run):
    with zipfile.ZipFile(run[0] / "model.keras") as archive:
        said = json.loads(archive.read("maskfer.json"))
    assert (said["kind"], said["stride"], said["input_size_wh"]) == ("detector", 8, [320, 240])
    assert 0 < said["score_threshold"] < 1


def test_the_model_has_two_maps(run):
    import keras

    network = keras.models.load_model(run[0] / "model.keras")
    assert set(network.output) == {"heat", "boxes"}


def test_a_run_is_gone_on_with(tmp_path, scenes):
    fit_detector(scenes, tmp_path / "run", SHORT)
    (tmp_path / "run/model.keras").unlink()
    before = (tmp_path / "run/history.csv").read_text()
    fit_detector(scenes, tmp_path / "run", SHORT, resume=True)
    assert (tmp_path / "run/history.csv").read_text() == before
    assert (tmp_path / "run/model.keras").exists()


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


def test_scenes_are_read_with_their_faces(scenes):
    training, validation = read_scenes(scenes, {"scenes/00005.jpg"})
    assert (len(training), len(validation)) == (5, 1)
    assert validation.faces == [[(190, 125, 50, 60)]]
    assert validation.ignored == [[(5, 5, 7, 7)]]


def test_a_moved_scene_s_boxes_lie_on_its_faces(scenes):
    training, _ = read_scenes(scenes, set())
    random = np.random.default_rng(0)
    pictures = set()
    for _ in range(20):
        for number in range(len(training)):
            image, faces, ignored = moved(training.images[number], training.faces[number], [], random)
            pictures.add(image.tobytes())
            bright = image > 180
            if not faces:  # pushed over the edge, mostly or wholly
                assert bright.sum() == 0 or ignored
                continue
            ((x, y, w, h),) = faces
            # an upright box about a square that is turned by up to 8 degrees
            assert bright[y : y + h, x : x + w].mean() > 0.75
            assert bright[y : y + h, x : x + w].sum() > 0.85 * bright.sum()
    assert len(pictures) == 20 * len(training)


def test_a_face_that_is_pushed_out_or_grows_too_small_is_not_judged():
    class Told:
        """Numbers in the order in which they are asked for: scale, turn, move, mirror."""

        def __init__(self, scale, move):
            self.numbers = [np.log(scale), 0.0, np.asarray(move)]

        def uniform(self, *_):
            return self.numbers.pop(0)

        def random(self):
            return 0.9

    image, face = np.zeros((240, 320), np.uint8), (0, 100, 40, 40)
    assert moved(image, [face], [], Told(1.0, (0.0, 0.0)))[1:] == ([face], [])
    # 0.15 of 320 pixels is more than the face is wide
    assert moved(image, [face], [], Told(1.0, (-1.0, 0.0)))[1:] == ([], [])
    assert moved(image, [face], [], Told(1.0, (-0.5, 0.0)))[1:] == ([], [(0, 100, 16, 40)])
    assert moved(image, [(160, 120, 15, 15)], [], Told(0.8, (0.0, 0.0)))[1:] == ([], [(160, 120, 12, 12)])


def test_batches_hold_targets_of_the_moved_faces(scenes):
    training, _ = read_scenes(scenes, set())
    (images, wanted), *_ = module._batches(training, SHORT, 0)
    assert (images.shape, wanted.shape) == ((2, 240, 320, 1), (2, 30, 40, 7))
    (again, _), *_ = module._batches(training, SHORT, 0)
    (other, _), *_ = module._batches(training, SHORT, 1)
    assert (images == again).all() and not (images == other).all()
    for image, maps in zip(images, wanted, strict=True):
        for row, column in np.argwhere(maps[..., 2] > 0):
            here = image[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            assert here.mean() > image.mean() + 20


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
    said = json.loads((tmp_path / "run/run.json").read_text())
    assert len(said["initial_sha256"]) == 64


def test_weights_of_another_network_are_refused(tmp_path, scenes):
    (tmp_path / "other.keras").write_bytes(b"none")
    with pytest.raises(InputError, match=r"other\.keras cannot be started from"):
        fit_detector(scenes, tmp_path / "run", SHORT, initial=tmp_path / "other.keras")
    assert not (tmp_path / "run").exists()


def test_the_threshold_is_where_f1_is_best():
    """Every scene has a sure right box and an unsure false one."""
    face, false = (100, 60, 40, 48), (200, 150, 40, 48)
    maps = targets([face], [])[..., [0, 3, 4, 5, 6]]
    wrong = targets([false], [])
    maps[..., 0] = np.maximum(0.8 * (maps[..., 0] == 1), 0.45 * (wrong[..., 0] == 1))
    maps[..., 1:] += wrong[..., 3:]
    scenes = SceneSet(np.zeros((2, 240, 320), np.uint8), [[face], [face]], [[], []])
    f1, threshold = best_threshold(np.stack([maps, maps]), scenes)
    assert (f1, 0.45 < threshold <= 0.8) == (1.0, True)


def test_what_lies_on_an_ignored_face_is_no_false_box():
    face = (100, 60, 40, 48)
    maps = targets([face], [])[..., [0, 3, 4, 5, 6]]
    nothing = SceneSet(np.zeros((1, 240, 320), np.uint8), [[]], [[face]])
    assert module._match([np.array(face)], [], [face])[1].tolist() == [False]
    assert best_threshold(maps[None], nothing)[0] == 0
