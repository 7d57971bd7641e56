from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from maskfer_edge.contract import LABELS
from maskfer_edge.dataset import PictureSet, manifest, read_part
from maskfer_edge.errors import InputError, OutputError
from maskfer_edge.model_file import load_model, pack
from maskfer_trainer.evaluation import Evaluation, as_text, evaluate, open_model, part_figures

# true label, given label: Angry 3 of 4 right, Disgust 1 of 2, Fear never given, the rest never there
PAIRS = [(0, 0), (0, 0), (0, 0), (0, 1), (1, 1), (1, 0), (2, 0), (2, 1)]


def figures(pairs: list[tuple[int, int]], in_train: set[str] = frozenset(), near_train: set[str] = frozenset()):
    true, given = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    names = tuple(f"{LABELS[k].lower()}/{i}" for i, k in enumerate(true))
    pictures = PictureSet(np.zeros((len(pairs), 48, 48), dtype=np.uint8), true, names)
    return part_figures(pictures, np.eye(7, dtype=np.float32)[given], in_train, near_train)


def test_accuracy_is_the_share_given_their_own_label():
    assert figures(PAIRS).accuracy == 4 / 8


@pytest.mark.parametrize(
    ("label", "accuracy", "precision", "recall", "f1", "pictures"),
    [
        ("Angry", 5 / 8, 3 / 5, 3 / 4, 2 / 3, 4),
        ("Disgust", 5 / 8, 1 / 3, 1 / 2, 2 / 5, 2),
        ("Fear", 6 / 8, 0, 0, 0, 2),
        ("Happy", 1, 0, 0, 0, 0),
    ],
)
def test_class_figures(label, accuracy, precision, recall, f1, pictures):
    found = figures(PAIRS).classes[label]
    assert (found.accuracy, found.precision, found.recall, found.f1) == pytest.approx(
        (accuracy, precision, recall, f1), abs=1e-4
    )
    assert found.pictures == pictures


def test_confusion_has_true_labels_in_rows():
    expected = np.zeros((7, 7), dtype=int)
    for true, given in PAIRS:
        expected[true, given] += 1
    assert figures(PAIRS).confusion == expected.tolist()


def test_accuracy_without_pictures_that_stand_in_train():
    found = figures(PAIRS, {"angry/0", "fear/6"})
    assert (found.duplicates, found.accuracy_without_duplicates) == (2, 0.5)
    assert figures(PAIRS, {"angry/0", "angry/1"}).accuracy_without_duplicates == pytest.approx(2 / 6, abs=1e-4)


def test_accuracy_without_pictures_that_nearly_stand_in_train():
    found = figures(PAIRS, {"angry/0"}, {"angry/0", "fear/6", "fear/7"})
    assert (found.duplicates, found.near, found.accuracy_without_near) == (1, 2, pytest.approx(3 / 5))
    text = as_text(Evaluation("m", True, "d", {"bare": found}))
    assert " right; 42.9% without duplicates of train (1); 60.0% also without near-duplicates of train (2)" in text


def test_clauses_of_no_duplicates_are_left_out():
    assert "of 8 right; expected calib" in as_text(Evaluation("m", True, "d", {"bare": figures(PAIRS)}))
    near = as_text(Evaluation("m", True, "d", {"bare": figures(PAIRS, set(), {"fear/6"})}))
    assert "of 8 right; 57.1% without near-duplicates of train (1); expected" in near


def test_tables_can_be_made_when_every_picture_stands_in_train():
    assert "nothing to count without duplicates of train (1)" in as_text(
        Evaluation("m", True, "d", {"bare": figures([(0, 0)], {"angry/0"})})
    )


def test_figures_are_json_when_every_picture_stands_in_train():
    from dataclasses import asdict

    found = figures([(0, 0)], {"angry/0"})
    assert json.loads(json.dumps(asdict(found), allow_nan=False))["accuracy_without_duplicates"] is None


@pytest.fixture(scope="module")
def evaluation(keras_model, dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation") / "figures"
    return evaluate(keras_model, dataset, out), out


def test_masked_and_bare_test_pictures_are_counted(evaluation):
    assert {part: f.pictures for part, f in evaluation[0].parts.items()} == {"masked": 21, "bare": 21}


def test_duplicates_are_counted(evaluation):
    assert evaluation[0].parts["masked"].duplicates == 1


def test_a_network_of_brightness_knows_bare_faces_of_set_brightness(evaluation):
    assert evaluation[0].parts["bare"].accuracy > 0.9


def test_files_are_written(evaluation):
    found, out = evaluation
    assert (
        json.loads((out / "evaluation.json").read_text())["parts"]["bare"]["accuracy"] == found.parts["bare"].accuracy
    )
    for part in ("masked", "bare"):
        assert cv2.imread(str(out / f"confusion-{part}.png")).std() > 1


def test_tables_hold_every_label_three_times(evaluation):
    lines = as_text(evaluation[0]).splitlines()
    for label in LABELS:
        assert sum(line.startswith(label) for line in lines) == 3


def test_tflite_and_keras_mostly_agree(tflite_model, keras_model, dataset):
    images = read_part(dataset, "bare", "test").images
    given = [open_model(path)[0](images).argmax(axis=1) for path in (tflite_model, keras_model)]
    assert (given[0] == given[1]).mean() > 0.9


def test_a_tflite_file_is_evaluated(tflite_model, dataset):
    assert evaluate(tflite_model, dataset).parts["bare"].accuracy > 0.8


def test_an_existing_output_is_refused(keras_model, dataset, tmp_path):
    with pytest.raises(OutputError, match="already there"):
        evaluate(keras_model, dataset, tmp_path)


def test_an_output_that_cannot_be_made_is_refused_before_the_work(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    with pytest.raises(OutputError, match=r"a/b cannot be made"):
        evaluate(tmp_path / "missing.keras", dataset, tmp_path / "a/b")


def test_an_output_that_cannot_be_finished_leaves_nothing(tflite_model, dataset, tmp_path, monkeypatch):
    def draw(*_):
        raise OutputError("No space left on device")

    monkeypatch.setattr("maskfer_trainer.evaluation.draw_confusion", draw)
    with pytest.raises(OutputError, match="No space left"):
        evaluate(tflite_model, dataset, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["missing.keras", "missing.tflite", "missing.h5"])
def test_a_missing_model_is_named(dataset, tmp_path, name):
    with pytest.raises(InputError, match=name):
        evaluate(tmp_path / name, dataset)


@pytest.mark.parametrize("suffix", [".h5", ".txt", ""])
def test_another_suffix_is_refused(tmp_path, suffix):
    (tmp_path / f"model{suffix}").write_bytes(b"x")
    with pytest.raises(InputError, match=r"neither a \.keras nor a \.tflite"):
        open_model(tmp_path / f"model{suffix}")


@pytest.mark.parametrize("cut", [0, 20, 2000])
def test_a_damaged_keras_file_is_refused(tmp_path, keras_model, cut):
    (tmp_path / "cut.keras").write_bytes(keras_model.read_bytes()[:cut])
    with pytest.raises(InputError, match=r"cut\.keras is no whole \.keras file; give a model\.keras"):
        open_model(tmp_path / "cut.keras")


def save(network, path: Path) -> Path:
    network.save(path)
    return path


def test_other_shapes_are_refused(tmp_path):
    import keras

    inputs = keras.Input((32, 32, 3))
    network = keras.Model(inputs, keras.layers.Dense(7)(keras.layers.GlobalAveragePooling2D()(inputs)))
    with pytest.raises(InputError, match=r"32, 32, 3.*expected \(48, 48, 1\)"):
        open_model(save(network, tmp_path / "other.keras"))


def test_a_network_that_was_never_built_is_refused(tmp_path):
    import keras

    network = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(7)])
    with pytest.warns(UserWarning, match="not yet been built"):
        path = save(network, tmp_path / "unbuilt.keras")
    with pytest.raises(InputError, match=r"unbuilt\.keras"):
        open_model(path)


def test_a_data_set_without_manifest_is_refused(tmp_path, dataset, keras_model):
    copy = shutil.copytree(dataset, tmp_path / "data")
    (copy / "manifest.jsonl").unlink()
    with pytest.raises(InputError, match="manifest"):
        evaluate(keras_model, copy)


def change_records(dataset: Path, copy: Path, change) -> Path:
    """A copy of a data set, each record of its manifest changed."""
    shutil.copytree(dataset, copy)
    records = [change(json.loads(line)) for line in (dataset / "manifest.jsonl").read_text().splitlines()]
    (copy / "manifest.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return copy


def test_a_data_set_without_bare_pictures_says_how_to_get_them(tmp_path, dataset, keras_model):
    def without_bare(record):
        return {key: value for key, value in record.items() if key != "bare"}

    with pytest.raises(InputError, match="--keep-bare"):
        evaluate(keras_model, change_records(dataset, tmp_path / "data", without_bare))


@pytest.mark.parametrize(("mark", "duplicates", "near"), [("in_train", 3, 0), ("near_train", 0, 3)])
def test_only_pixel_for_pixel_copies_count_as_standing_in_train(tmp_path, dataset, keras_model, mark, duplicates, near):
    def marked(record):
        info = {"in_train": "", "near_train": ""}
        if (record["split"], record["class"]) == ("test", "sad"):
            info[mark] = "train/sad/0.png"
        return {**record, **info}

    found = evaluate(keras_model, change_records(dataset, tmp_path / "data", marked)).parts["masked"]
    assert (found.pictures, found.duplicates, found.near) == (21, duplicates, near)


@pytest.mark.parametrize(("mirror", "expected"), [(False, 1), (True, 0)])
def test_the_mirror_image_counts_unless_told_otherwise(tmp_path, mirror, expected):
    import keras

    # sees the left half only: a dark one speaks weakly for class 1, a bright one strongly for class 0
    inputs = keras.Input((48, 48, 1))
    left = keras.layers.Cropping2D(((0, 0), (0, 24)))(inputs)
    dense = keras.layers.Dense(7, activation="softmax")
    network = keras.Model(inputs, dense(keras.layers.GlobalAveragePooling2D()(left)))
    dense.set_weights([np.array([[0.1, 0, 0, 0, 0, 0, 0]]), np.array([0, 0.5, 0, 0, 0, 0, 0])])
    network.save(tmp_path / "left.keras")
    bright_right = np.zeros((1, 48, 48), np.uint8)
    bright_right[:, :, 24:] = 255
    predict, _ = open_model(tmp_path / "left.keras", mirror=mirror)
    assert predict(bright_right).argmax(axis=1).tolist() == [expected]


@pytest.mark.parametrize("absent", ["in_train", "near_train", "mask"])
def test_an_older_data_set_is_refused(tmp_path, keras_model, dataset, absent):
    def older(record):
        return {key: value for key, value in record.items() if key != absent}

    with pytest.raises(InputError, match="was built by an earlier version of maskfer; build it again"):
        evaluate(keras_model, change_records(dataset, tmp_path / "data", older))


def test_confidence_is_held_against_accuracy():
    scores = np.full((4, 7), 0.4 / 6, dtype=np.float32)
    scores[:, 2] = 0.6
    pictures = PictureSet(np.zeros((4, 48, 48), np.uint8), np.array([2, 2, 2, 1]), tuple("abcd"))
    assert part_figures(pictures, scores, set(), set()).calibration_error == pytest.approx(0.15, abs=1e-4)


def test_masked_faces_are_counted_by_kind_of_mask(evaluation, dataset):
    found, kinds = evaluation[0], evaluation[0].kinds
    worn = [r["mask"]["kind"] for r in manifest(dataset) if r["split"] == "test"]
    assert {kind: count for kind, (_, count) in kinds.items()} == Counter(worn)
    right = sum(share * count for share, count in kinds.values())
    assert right == pytest.approx(21 * found.parts["masked"].accuracy, abs=0.01)
    assert f"{worn[0]} {kinds[worn[0]][0]:.1%} of {kinds[worn[0]][1]}" in as_text(found)


@pytest.mark.parametrize("path", ["keras_model", "tflite_model"])
def test_faces_can_be_seen_through_a_detector(request, dataset, path):
    seen = []
    found = evaluate(
        request.getfixturevalue(path), dataset, detector="haar", progress=lambda done, total: seen.append((done, total))
    )
    assert set(found.detected) == {"masked", "bare"}
    assert found.detected["bare"].pictures == 21
    assert 0 < found.detected["bare"].found <= 1
    assert seen[-1] == (21, 21)
    assert f"bare through haar: {found.detected['bare'].found:.1%} of faces found" in as_text(found)


def test_a_detector_is_used_only_if_asked_for(evaluation):
    assert evaluation[0].detected == {}


def test_an_unknown_detector_is_refused(keras_model, dataset):
    with pytest.raises(InputError, match="unknown detector 'eyes'"):
        evaluate(keras_model, dataset, detector="eyes")


def test_a_detector_that_the_model_has_no_margin_for_is_refused(monkeypatch, tmp_path, tflite_model, dataset):
    model = load_model(tflite_model)
    (tmp_path / "other.tflite").write_bytes(pack(model.flatbuffer, replace(model.info, crop_margins={"learned": 0.1})))
    with pytest.raises(InputError, match="no crop margin for detector 'haar'; it names learned"):
        evaluate(tmp_path / "other.tflite", dataset, detector="haar")
