from __future__ import annotations

import json
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from maskfer_converter import quantize_detector as module
from maskfer_converter.checks import RefusedModelError
from maskfer_converter.cli import main
from maskfer_converter.comparison import Limits
from maskfer_converter.inspection import inspect
from maskfer_converter.quantize_detector import quantize_detector
from maskfer_edge.detector import Detection, iou
from maskfer_edge.errors import InputError, ModelError
from maskfer_edge.learned_detector import open_learned_detector
from maskfer_edge.model_file import load_detector_model, load_model
from maskfer_edge.scenes import GroundTruth

pytestmark = pytest.mark.usefixtures("few_runs")

MODELS = Path(__file__).parents[2] / "trainer/models"
SIDE = 56
FACE, AWAY, UNJUDGED, SMALL = (10, 10, 50, 50), (100, 100, 40, 40), (200, 10, 30, 30), (250, 200, 10, 10)
METADATA = {
    "kind": "detector", "architecture": "by-brightness", "stride": 8, "input_size_wh": [320, 240],
    "score_threshold": 0.5, "scenes": {"count": 12, "seed": 0},
}  # fmt: skip


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Twelve scenes of one bright square each; four are for validation, and the square of one of these is ignored."""
    folder = tmp_path_factory.mktemp("detector") / "scenes"
    (folder / "scenes").mkdir(parents=True)
    names, rows = [f"scenes/{number:05}.jpg" for number in range(12)], ["image,label,xmin,ymin,xmax,ymax"]
    for number, name in enumerate(names):
        image = np.full((240, 320), 40, np.uint8)
        x, y = 36 + 16 * number, 28 + 8 * number
        image[y : y + SIDE, x : x + SIDE] = 230
        rows.append(f"{name},{'ignore' if number == 8 else 'with_mask'},{x},{y},{x + SIDE},{y + SIDE}")
        cv2.imwrite(str(folder / name), image)
    (folder / "boxes.csv").write_text("\n".join(rows) + "\n")
    (folder / "scenes.json").write_text(json.dumps({"count": 12, "validation": names[8:]}))
    return folder


@pytest.fixture(scope="module")
def keras_detector(tmp_path_factory):
    """Finds bright squares of `SIDE` pixels."""
    import keras

    from maskfer_trainer.keras_file import embed_metadata

    layers = keras.layers
    inputs = keras.Input((240, 320, 1), name="grey")
    mean = layers.AveragePooling2D(SIDE, 8, padding="same")(layers.Rescaling(1 / 255)(inputs))
    heat = layers.Conv2D(1, 1, activation="sigmoid", name="heat")
    boxes = layers.Conv2D(4, 1, name="boxes")
    network = keras.Model(inputs, {"heat": heat(mean), "boxes": boxes(mean)}, name="by-brightness")
    heat.set_weights([np.full((1, 1, 1, 1), 30.0), np.array([-21.0])])
    boxes.set_weights([np.zeros((1, 1, 1, 4)), np.array([0, 0, np.log(SIDE / 8), np.log(SIDE / 8)])])
    folder = tmp_path_factory.mktemp("keras-detector")
    network.save(folder / "plain.keras")
    embed_metadata(folder / "plain.keras", folder / "model.keras", METADATA)
    return folder / "model.keras"


@pytest.fixture(scope="module")
def quantized(tmp_path_factory, keras_detector, scenes):
    out = tmp_path_factory.mktemp("quantized") / "detector.tflite"
    return out, quantize_detector(keras_detector, scenes, out, METADATA, pictures=8, limits=Limits(5, 90))


def test_the_file_says_what_it_is(quantized):
    info = load_detector_model(quantized[0]).info
    assert (info.architecture, info.input_size_wh, info.stride, info.score_threshold) == (
        "by-brightness", (320, 240), 8, 0.5,
    )  # fmt: skip
    assert info.quantization == {"format": "int8", "calibration": {"scenes": 8}, "seed": 0}
    assert info.accuracy["validation scenes"]["int8"] == quantized[1].comparison.converted_f1


def test_it_finds_what_the_network_was_made_for(quantized, scenes):
    image = cv2.imread(str(scenes / "scenes/00003.jpg"))
    (found,) = open_learned_detector(quantized[0])(image)
    assert iou(found.box, (36 + 48, 28 + 24, SIDE, SIDE)) > 0.6


def test_what_is_ignored_counts_neither_way(quantized):
    """Three of the four validation scenes have a face; the fourth's is found all the same."""
    compared = quantized[1].comparison
    assert (compared.scenes, compared.float_f1, compared.converted_f1) == (4, 1.0, 1.0)


def test_all_checks_pass_and_the_report_lies_beside_it(quantized):
    out, report = quantized
    assert report.failed == []
    info = json.loads(out.with_suffix(".report.json").read_text())
    assert (info["calibration"], info["format"], info["comparison"]["scenes"]) == (8, "int8", 4)


@pytest.mark.usefixtures("anew")
def test_the_same_arguments_give_the_same_bytes(quantized, keras_detector, scenes, tmp_path):
    out = tmp_path / "again.tflite"
    quantize_detector(keras_detector, scenes, out, METADATA, pictures=8, limits=Limits(5, 90))
    assert out.read_bytes() == quantized[0].read_bytes()


def test_a_detector_past_the_limits_is_refused(keras_detector, scenes, tmp_path):
    with pytest.raises(RefusedModelError, match="at most -100 points lost"):
        quantize_detector(keras_detector, scenes, tmp_path / "out.tflite", METADATA, pictures=8, limits=Limits(-100))
    assert not list(tmp_path.iterdir())


def test_a_detector_is_no_expression_model(quantized):
    with pytest.raises(ModelError, match="kind 'detector'"):
        load_model(quantized[0])


def test_inspect_shows_a_detector_s_metadata(quantized):
    found = inspect(quantized[0])
    assert (found.metadata["kind"], found.why) == ("detector", "")


@pytest.mark.parametrize("missing", ["stride", "input_size_wh", "score_threshold"])
def test_what_a_detector_must_say_is_asked_for(keras_detector, scenes, tmp_path, missing):
    metadata = {key: value for key, value in METADATA.items() if key != missing}
    with pytest.raises(InputError, match="is no whole detector; make it with: trainer fit-detector"):
        quantize_detector(keras_detector, scenes, tmp_path / "out.tflite", metadata, pictures=8)


def test_too_few_scenes_are_refused(keras_detector, scenes, tmp_path):
    with pytest.raises(InputError, match="has 8 training scenes; 9 are needed"):
        quantize_detector(keras_detector, scenes, tmp_path / "out.tflite", METADATA, pictures=9)


def test_a_folder_without_scenes_is_refused(keras_detector, tmp_path):
    with pytest.raises(InputError, match="build-scenes"):
        quantize_detector(keras_detector, tmp_path, tmp_path / "out.tflite", METADATA)


def test_a_network_of_other_shapes_is_refused(keras_detector, scenes, tmp_path):
    with pytest.raises(InputError, match="expected"):
        quantize_detector(keras_detector, scenes, tmp_path / "out.tflite", {**METADATA, "stride": 16}, pictures=8)


def test_the_command_tells_a_detector_from_an_expression_network(run_main, keras_detector, scenes, tmp_path):
    out = tmp_path / "model.tflite"
    options = ["--per-class", 1, "--min-agreement", 90, "--threshold", 0.6]
    ran = run_main(main, "quantize", keras_detector, "--calibrate", scenes, "-o", out, *options)
    assert (ran.code, "float F1" in ran.out, "calibrated on 7 pictures" in ran.out) == (0, True, True)
    assert load_detector_model(out).info.score_threshold == 0.6
    with zipfile.ZipFile(out) as archive:
        assert archive.namelist() == ["maskfer.json"]


@pytest.fixture(scope="module")
def keras_rescorer(tmp_path_factory):
    """Finds a crop likely whose middle is bright."""
    import keras

    layers = keras.layers
    inputs = keras.Input((48, 48, 1), name="grey")
    mean = layers.GlobalAveragePooling2D()(layers.Cropping2D(12)(layers.Rescaling(1 / 255)(inputs)))
    likely = layers.Dense(1, activation="sigmoid", name="likely")
    network = keras.Model(inputs, likely(mean), name="rescorer")
    likely.set_weights([np.array([[20.0]]), np.array([-10.0])])
    path = tmp_path_factory.mktemp("keras-rescorer") / "model.keras"
    network.save(path)
    return path


def test_a_second_stage_goes_into_the_file(run_main, keras_detector, keras_rescorer, scenes, tmp_path):
    out = tmp_path / "model.tflite"
    options = ["--per-class", 1, "--min-agreement", 90, "--rescorer", keras_rescorer]
    ran = run_main(main, "quantize", keras_detector, "--calibrate", scenes, "-o", out, *options)
    assert (ran.code, ran.err) == (0, "")
    with zipfile.ZipFile(out) as archive:
        assert archive.namelist() == ["rescorer.tflite", "maskfer.json"]
    report = json.loads(out.with_suffix(".report.json").read_text())
    assert sum(check["what"].startswith("rescorer: ") for check in report["checks"]) >= 4
    scene = np.full((240, 320), 40, np.uint8)
    scene[80 : 80 + SIDE, 100 : 100 + SIDE] = 230
    (found,) = open_learned_detector(out)(scene)
    assert iou(found.box, (100, 80, SIDE, SIDE)) > 0.5


def test_with_a_second_stage_a_threshold_is_chosen_unless_told(keras_detector, keras_rescorer, scenes, tmp_path):
    for name, threshold in (("chosen", None), ("told", 0.33)):
        report = quantize_detector(
            keras_detector, scenes, tmp_path / f"{name}.tflite", METADATA, pictures=8, limits=Limits(5, 90),
            rescorer=keras_rescorer, threshold=threshold,
        )  # fmt: skip
        assert load_detector_model(tmp_path / f"{name}.tflite").info.score_threshold == report.threshold
        # all faces are found and nothing else, so the lowest is as good as any
        assert report.threshold == (threshold or module.THRESHOLDS[0])


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([(FACE, 0.5), (AWAY, 0.3)], 0.32),
        ([(FACE, 0.5), (AWAY, 0.3), (UNJUDGED, 0.4), (SMALL, 0.4)], 0.32),
        ([(FACE, 0.6), (FACE, 0.5), (AWAY, 0.55)], 0.56),
        ([(FACE, 0.9)], 0.2),
    ],
)
def test_the_threshold_is_the_lowest_that_is_nearly_best(monkeypatch, found, expected):
    monkeypatch.setattr(
        module, "LearnedDetector", lambda model, score_threshold: lambda scene: [Detection(*one) for one in found]
    )
    known = GroundTruth([FACE, SMALL], [UNJUDGED])
    scene = np.zeros((240, 320), np.uint8)
    assert module._nearly_best_threshold(None, [scene], [known]) == expected


def test_a_network_that_is_no_rescorer_is_refused(keras_detector, scenes, tmp_path):
    with pytest.raises(InputError, match=r"model\.keras is no rescorer; give the model\.keras of trainer fit-rescorer"):
        quantize_detector(
            keras_detector, scenes, tmp_path / "out.tflite", METADATA, pictures=8, rescorer=keras_detector
        )  # fmt: skip


def test_a_rescorer_of_other_shapes_is_refused(keras_detector, keras_model, scenes, tmp_path):
    repacked(keras_model, tmp_path / "plain.keras", leave_out="maskfer.json")
    with pytest.raises(InputError, match=r"expected .*; give the model\.keras of trainer fit-rescorer"):
        quantize_detector(
            keras_detector, scenes, tmp_path / "out.tflite", METADATA, pictures=8, rescorer=tmp_path / "plain.keras"
        )  # fmt: skip


def repacked(source, target, leave_out):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            if name != leave_out:
                new.writestr(name, old.read(name))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rescorer", "--calibrate", "DATASET"],
         "rescorer.keras is a rescorer; give it by --rescorer, and as MODEL the .keras of trainer fit-detector"),
        (["detector", "--calibrate", "SCENES", "--rescorer", "LEAN"],
         "lean.keras is no rescorer; give the model.keras of trainer fit-rescorer"),
        (["detector", "--calibrate", "DATASET"], "holds no readable scenes.json"),
        (["lean", "--calibrate", "SCENES"], "is no data set"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_tensorflow_is_loaded(
    run_without, scenes, dataset, tmp_path, arguments, message
):
    places = {"SCENES": scenes, "DATASET": dataset, "LEAN": MODELS / "lean.keras"}
    model, *options = [places.get(word, word) for word in arguments]
    ran = run_without("tensorflow", "converter", "quantize", MODELS / f"{model}.keras", *options,
                      "-o", tmp_path / "out.tflite")  # fmt: skip
    assert (ran.code, ran.err.count("\n"), message in ran.err) == (1, 1, True)


def test_a_second_stage_with_nothing_to_score_is_refused(keras_detector, keras_rescorer, scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CANDIDATE_SCORE", 1.1)
    with pytest.raises(InputError, match="finds nothing on the calibration scenes"):
        quantize_detector(
            keras_detector, scenes, tmp_path / "out.tflite", METADATA, pictures=8, rescorer=keras_rescorer
        )  # fmt: skip


@pytest.mark.parametrize("option", [("--threshold", 0.5), ("--rescorer", "any.keras")])
def test_what_is_for_detectors_is_refused_for_others(run_main, keras_rescorer, scenes, tmp_path, option):
    ran = run_main(main, "quantize", keras_rescorer, "--calibrate", scenes, "-o", tmp_path / "out.tflite", *option)
    assert ran.code != 0
    assert "is no detector" in ran.err
