"""The face detector as TFLite: calibrated on training scenes, compared with the float network on the others."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from maskfer_converter.benchmark import Benchmark, benchmark
from maskfer_converter.checks import Check, Checked, check_graph, check_runtimes
from maskfer_converter.comparison import MIN_RUNTIME_AGREEMENT, Limits, check_limits
from maskfer_converter.convert import FLOAT, INT8, convert
from maskfer_converter.graph import read_graph
from maskfer_converter.keras_model import RESCORER, load_keras, read_metadata
from maskfer_converter.quantize import LATENCY_RUNS, check_request, write_checked
from maskfer_edge.contract import FloatArray, UInt8Array
from maskfer_edge.decoding import read_grey
from maskfer_edge.detector import Detection, iou
from maskfer_edge.errors import InputError
from maskfer_edge.learned_detector import LearnedDetector
from maskfer_edge.model_file import DETECTOR, DetectorInfo, DetectorModel, pack
from maskfer_edge.rescorer import CANDIDATE_SCORE, SIDE, context_crop
from maskfer_edge.runtime import AUTO
from maskfer_edge.scenes import GroundTruth, f1_by_threshold, read_ground_truth, scenes_info

LICENCE_NOTE = (
    "Weights trained on scenes made of pictures of {name}, whose own terms hold; the landmark model that placed the "
    "masks (iBUG 300-W) excludes commercial use. Not for telling who somebody is."
)
# Overlap (intersection over union) from which two boxes are of one face.
SAME_FACE_IOU = 0.5
# On how many scenes runtimes are compared.
RUNTIME_SCENES = 16
# Of scores; with a second stage the lowest is chosen whose F1 is at most so much below the best.
THRESHOLDS = np.arange(0.2, 0.71, 0.02).round(2)
F1_TOLERANCE = 0.003
RESCORER_SHAPES = ((None, SIDE, SIDE, 1), (None, 1))
RESCORER_REMEDY = "give the model.keras of trainer fit-rescorer"


@dataclass(frozen=True)
class DetectorComparison:
    """Float against converted on validation scenes, shares from 0 to 1.

    Attributes:
        float_f1: Harmonic mean of precision and recall of the float network.
        converted_f1: Of the converted one.
        agreement: Share of the boxes of either that the other has as well.
        scenes: How many.
    """

    float_f1: float
    converted_f1: float
    agreement: float
    scenes: int


@dataclass(frozen=True)
class DetectorReport(Checked):
    """The proof of a converted detector; what is written beside it as JSON.

    Attributes:
        model: Path of the file.
        format: Key of `convert.FORMATS`.
        bytes: The file's size.
        sha256: Of the file.
        multiply_accumulates: Of one picture, without the second stage.
        calibration: How many scenes it was calibrated on; 0 where none are needed.
        seed: Of their choice.
        threshold: Score from which it believes a face.
        comparison: Float against converted.
        latency: On one thread, by runtime.
        checks: Everything that was looked at.
    """

    model: str
    format: str
    bytes: int
    sha256: str
    multiply_accumulates: int
    calibration: int
    seed: int
    threshold: float
    comparison: DetectorComparison
    latency: Benchmark
    checks: list[Check]


def quantize_detector(
    keras_path: Path,
    scenes: Path,
    out: Path,
    metadata: dict[str, Any],
    form: str = INT8,
    pictures: int = 504,
    seed: int = 0,
    limits: Limits | None = None,
    *,
    threshold: float | None = None,
    rescorer: Path | None = None,
    force: bool = False,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> DetectorReport:
    """Convert a detector, compare both on validation scenes, and write the file if it passes.

    Args:
        keras_path: A `.keras` of ``trainer fit-detector``.
        scenes: Made by ``trainer build-scenes``; calibration takes training scenes.
        out: `.tflite` to write.
        metadata: Of the `.keras` file, see `keras_model.read_metadata`.
        form: Key of `convert.FORMATS`.
        pictures: Scenes to calibrate on.
        seed: Of their choice.
        limits: How far the file may fall behind the network: F1 in points, boxes of 100 that both have.
        threshold: Score, 0 to 1, from which the file believes a face; None: the one that training chose, and with a
            second stage, which changes the scores, one that is chosen on the validation scenes.
        rescorer: A `.keras` of ``trainer fit-rescorer``, the second stage, which scores each face again.
        force: Whether a file that fails is written all the same.
        overwrite: Whether an existing `out`, and its report, are replaced.
        progress: Takes the name of each step.

    Raises:
        InputError: If the model or the scenes cannot be used.
        OutputError: If `out` or its report is there already or cannot be written.
        RefusedModelError: If a check failed.
    """
    limits = limits or Limits()
    check_request(form, out, overwrite, [keras_path, rescorer])
    try:
        (width, height), stride = metadata["input_size_wh"], int(metadata["stride"])
        trained_threshold = float(metadata["score_threshold"])
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{keras_path} is no whole detector; make it with: trainer fit-detector") from None
    cells = (height // stride, width // stride)
    shapes = {"heat": (None, *cells, 1), "boxes": (None, *cells, 4)}
    remedy = "give the model.keras of trainer fit-detector"
    network, _ = load_keras(keras_path, ((None, height, width, 1), shapes), remedy)
    rescorer_network = None
    if rescorer is not None:
        check_rescorer(rescorer)
        rescorer_network, _ = load_keras(rescorer, RESCORER_SHAPES, RESCORER_REMEDY)
    progress("reading scenes")
    training, validation, ground_truth = _read_scenes(scenes, pictures, seed)
    progress("converting")
    # with a black and a white picture the input covers 0 to 255 and is the pixel itself
    ends = [np.full((height, width), level, dtype=np.uint8) for level in (0, 255)]
    calibration = np.stack([*training, *ends])[..., None].astype(np.float32)
    flatbuffer = convert(network, form, calibration)
    counts = {"scenes": len(training)} if form == INT8 else {}
    training_data = dict(metadata.get("scenes", {}))
    info = DetectorInfo(
        architecture=str(metadata.get("architecture", network.name)),
        input_size_wh=(int(width), int(height)),
        stride=stride,
        score_threshold=trained_threshold if threshold is None else threshold,
        training_data=training_data,
        accuracy={},
        quantization={"format": form, "calibration": counts, "seed": seed},
        licence_note=LICENCE_NOTE.format(name=training_data.get("name", "an unknown set")),
    )
    model = DetectorModel(flatbuffer, info, str(out))
    graph = read_graph(flatbuffer, str(out))
    checks = check_graph(graph, form, ((1, height, width, 1), (1, *cells, 1), (1, *cells, 4)))
    float_model = DetectorModel(convert(network, FLOAT, calibration), info, str(keras_path))
    if rescorer_network is not None:
        crops = _calibration_crops(model, training, rescorer)
        model = replace(model, rescorer=convert(rescorer_network, form, crops))
        float_model = replace(float_model, rescorer=convert(rescorer_network, FLOAT, crops))
        checks += [
            replace(check, what=f"rescorer: {check.what}")
            for check in check_graph(read_graph(model.rescorer, str(out)), form, ((1, SIDE, SIDE, 1), (1, 1)))
        ]
    if rescorer_network is not None and threshold is None:
        progress("choosing the threshold")
        info = replace(info, score_threshold=_nearly_best_threshold(float_model, validation, ground_truth))
        model, float_model = replace(model, info=info), replace(float_model, info=info)
    progress("comparing float and converted")
    compared = _compare(LearnedDetector(float_model), LearnedDetector(model), validation, ground_truth)
    checks += check_runtimes(_same_boxes(model, validation))
    checks.append(Check("finds faces on validation scenes", compared.converted_f1 > 0))
    checks += check_limits("validation scenes", compared.float_f1, compared.converted_f1, compared.agreement, limits)
    accuracy = {"validation scenes": {"float": compared.float_f1, form: compared.converted_f1,
                                      "agreement": compared.agreement, "scenes": compared.scenes}}  # fmt: skip
    content = pack(flatbuffer, replace(info, accuracy=accuracy), model.rescorer)
    progress("timing")
    latency = benchmark({str(out): content}, runs=LATENCY_RUNS)
    report = DetectorReport(
        str(out), form, len(content), hashlib.sha256(content).hexdigest(), graph.multiply_accumulates,
        sum(counts.values()), seed, info.score_threshold, compared, latency, checks,
    )  # fmt: skip
    write_checked(out, content, report, force=force, overwrite=overwrite)
    return report


def is_detector(metadata: dict[str, Any]) -> bool:
    """Whether the metadata of a `.keras` file are those of a detector."""
    return metadata.get("kind") == DETECTOR


def check_rescorer(path: Path) -> None:
    """Refuse a `.keras` file whose metadata is that of another network. Raises InputError."""
    metadata = read_metadata(path)
    if metadata and metadata.get("kind") != RESCORER:
        raise InputError(f"{path} is no rescorer; {RESCORER_REMEDY}")


def _read_scenes(
    scenes: Path, pictures: int, seed: int
) -> tuple[list[UInt8Array], list[UInt8Array], list[GroundTruth]]:
    """Calibration scenes, validation scenes, and what is known of these."""
    held_out = set(scenes_info(scenes).get("validation", []))
    ground_truth = read_ground_truth(scenes)
    names = [name for name in ground_truth if name not in held_out]
    validation = [name for name in ground_truth if name in held_out]
    if not validation:
        raise InputError(f"{scenes} holds no validation scenes, as one in twenty is; build more scenes")
    if len(names) < pictures:
        raise InputError(
            f"{scenes} has {len(names)} training scenes; {pictures} are needed, seven times --per-class: "
            "build more scenes, or give a smaller one"
        )
    chosen = np.random.default_rng(seed).permutation(len(names))[:pictures]
    training = [read_grey(scenes / names[i]) for i in chosen]
    return training, [read_grey(scenes / name) for name in validation], [ground_truth[name] for name in validation]


def _calibration_crops(model: DetectorModel, scenes: list[UInt8Array], rescorer: Path | None) -> FloatArray:
    """What the detector takes for faces on calibration scenes, (n, 48, 48, 1) float32, and a black and a white crop."""
    finder = LearnedDetector(model, score_threshold=CANDIDATE_SCORE)
    crops = [context_crop(scene, found.box) for scene in scenes for found in finder(scene)]
    if not crops:
        raise InputError(f"the detector finds nothing on the calibration scenes that {rescorer} could score again")
    ends = [np.full((SIDE, SIDE), level, dtype=np.uint8) for level in (0, 255)]
    return np.stack([*crops, *ends])[..., None].astype(np.float32)


def _compare(
    float_model: LearnedDetector, converted: LearnedDetector, scenes: list[UInt8Array], ground_truth: list[GroundTruth]
) -> DetectorComparison:
    found = [[detector(scene) for scene in scenes] for detector in (float_model, converted)]
    f1 = [f1_by_threshold(of_one, ground_truth, scenes[0].shape[0], [0.0])[0] for of_one in found]
    matches = sum(
        _count_matches(mine, others) + _count_matches(others, mine) for mine, others in zip(*found, strict=True)
    )
    either = sum(len(faces) for of_one in found for faces in of_one)
    agreement = matches / either if either else 1.0
    return DetectorComparison(round(float(f1[0]), 4), round(float(f1[1]), 4), round(agreement, 4), len(scenes))


def _same_boxes(model: DetectorModel, scenes: list[UInt8Array]) -> Callable[[str], bool]:
    """For `check_runtimes`: whether the boxes on a runtime are those that the usual one gives, but for a few."""
    some = scenes[:RUNTIME_SCENES]

    @cache
    def found_on(runtime: str) -> list[list[Detection]]:
        detector = LearnedDetector(model, runtime)
        return [detector(scene) for scene in some]

    def same(runtime: str) -> bool:
        found = [found_on(AUTO), found_on(runtime)]
        matches = sum(_count_matches(reference, found_here) for reference, found_here in zip(*found, strict=True))
        return matches >= MIN_RUNTIME_AGREEMENT * max(sum(map(len, of_one)) for of_one in found)

    return same


def _nearly_best_threshold(model: DetectorModel, scenes: list[UInt8Array], ground_truth: list[GroundTruth]) -> float:
    """The lowest threshold whose F1 is nearly the best: between equals, a face that is missed weighs more."""
    detector = LearnedDetector(model, score_threshold=float(THRESHOLDS[0]))
    f1 = f1_by_threshold(map(detector, scenes), ground_truth, scenes[0].shape[0], THRESHOLDS)
    return float(THRESHOLDS[np.argmax(f1 >= f1.max() - F1_TOLERANCE)])


def _count_matches(mine: list[Detection], others: list[Detection]) -> int:
    """How many faces of one detector another one has as well."""
    return sum(any(iou(face.box, other.box) >= SAME_FACE_IOU for other in others) for face in mine)
