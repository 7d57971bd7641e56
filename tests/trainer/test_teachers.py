from __future__ import annotations

import keras
import numpy as np
import pytest

from maskfer_edge.dataset import read_part
from maskfer_edge.errors import InputError
from maskfer_trainer.keras_file import embed_metadata
from maskfer_trainer.teachers import predict_soft_labels


@pytest.fixture(scope="module")
def parts(dataset):
    return [read_part(dataset, part, "train").take(np.arange(6)) for part in ("masked", "bare")]


@pytest.fixture
def teacher(tmp_path):
    """Makes a network of random weights whose file says that it was trained with these settings."""

    def make(seed: int = 0, **settings):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((48, 48, 1))
        x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
        network = keras.Model(inputs, keras.layers.Dense(7, activation="softmax")(x))
        network.save(tmp_path / "plain.keras")
        path = tmp_path / f"teacher{len(list(tmp_path.iterdir()))}.keras"
        embed_metadata(tmp_path / "plain.keras", path, {"settings": settings} if settings else {})
        return path

    return make


def scores_of(path, pictures):
    network = keras.models.load_model(path, compile=False)
    faces = pictures.images[..., None].astype(np.float32)
    return (network.predict(faces, verbose=0) + network.predict(faces[:, :, ::-1], verbose=0)) / 2


def asked(teachers, parts, faces=None, folds=None):
    masked, bare = parts
    return predict_soft_labels(
        teachers, masked, bare, np.arange(len(masked)) if faces is None else np.array(faces),
        lambda parts: np.ones(len(masked), np.int64) if folds is None else np.array(folds),
    )  # fmt: skip


@pytest.mark.parametrize(("settings", "sees"), [({}, "b"), ({"bare_share": 1.0}, "b"), ({"bare_share": 0.0}, "m"),
                                                ({"bare_share": 0.4}, "mb")])  # fmt: skip
def test_a_teacher_is_asked_about_faces_as_it_knows_them(teacher, parts, settings, sees):
    path, (masked, bare) = teacher(**settings), parts
    soft_labels = asked([path], parts)
    views = [scores_of(path, part) for name, part in (("m", masked), ("b", bare)) if name in sees]
    assert np.allclose(soft_labels.masked, np.mean(views, axis=0), atol=1e-5)
    assert np.allclose(soft_labels.bare, scores_of(path, bare) if "b" in sees else 0, atol=1e-5)


def test_several_teachers_give_their_mean(teacher, parts):
    paths = [teacher(seed) for seed in (1, 2)]
    expected = np.mean([scores_of(path, parts[1]) for path in paths], axis=0)
    assert np.allclose(asked(paths, parts).masked, expected, atol=1e-5)


def test_a_teacher_speaks_only_of_faces_that_it_left_out(teacher, parts):
    first, second = (teacher(seed, bare_share=1.0, leave_out=f"{seed}/3") for seed in (1, 2))
    folds = np.array([1, 2, 3, 1, 2, 3])
    soft_labels = asked([first, second], parts, folds=folds)
    for path, part in ((first, 1), (second, 2)):
        assert np.allclose(soft_labels.bare[folds == part], scores_of(path, parts[1])[folds == part], atol=1e-5)
    assert not soft_labels.bare[folds == 3].any()
    assert not soft_labels.masked[folds == 3].any()


def test_a_checkpoint_speaks_as_its_run_was_set(teacher, parts, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "run.json").write_text('{"settings": {"bare_share": 0, "leave_out": "1/3"}}')
    checkpoint = tmp_path / "run" / "checkpoints" / "best-1.keras"
    teacher().rename(checkpoint)
    folds = np.array([1, 2, 3, 1, 2, 3])
    soft_labels = asked([checkpoint], parts, folds=folds)
    assert np.allclose(soft_labels.masked[folds == 1], scores_of(checkpoint, parts[0])[folds == 1], atol=1e-5)
    assert not soft_labels.masked[folds != 1].any() and not soft_labels.bare.any()


def test_a_teacher_says_the_same_of_all_masks_of_a_bare_face(teacher, parts):
    found = asked([teacher()], parts, faces=[2, 2, 0, 0, 0, 1]).bare
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[2], found[4])
    assert not np.array_equal(found[0], found[2])


def test_a_teacher_that_is_no_network_is_named(dataset, parts):
    with pytest.raises(InputError, match=r"dataset\.json cannot be loaded by Keras; a teacher is a model\.keras"):
        asked([dataset / "dataset.json"], parts)


def test_a_teacher_of_other_pictures_is_named(tmp_path, parts):
    inputs = keras.Input((32, 32, 1))
    keras.Model(inputs, keras.layers.Flatten()(inputs)).save(tmp_path / "other.keras")
    with pytest.raises(InputError, match=r"other\.keras is no network of faces and expressions; a teacher is"):
        asked([tmp_path / "other.keras"], parts)
