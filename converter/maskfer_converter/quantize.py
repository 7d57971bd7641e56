"""Keras to TFLite, with the proof that the file is as good as the network before it is written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from maskfer_converter.benchmark import Benchmark, benchmark
from maskfer_converter.calibration import NO_CALIBRATION, calibration_pictures
from maskfer_converter.checks import Check, Checked, RefusedModelError, check_graph, check_runtimes
from maskfer_converter.comparison import (
    Comparison,
    Limits,
    check_classes,
    check_limits,
    classes_by_file,
    classes_by_keras,
    compare,
    same_classes,
    spread_sample,
)
from maskfer_converter.convert import FLOAT, FORMATS, INT8, convert
from maskfer_converter.graph import read_graph
from maskfer_converter.keras_model import load_keras
from maskfer_converter.layer_noise import LayerNoise, layer_noise
from maskfer_edge.classifier import Classifier
from maskfer_edge.contract import CROP_MARGINS
from maskfer_edge.dataset import PARTS, dataset_info, read_pictures, split_records
from maskfer_edge.errors import InputError, OutputError
from maskfer_edge.files import atomic_file, check_writable, write_atomically
from maskfer_edge.model_file import Model, ModelInfo, pack

LICENCE_NOTE = (
    "Weights trained on pictures of {name}, whose own terms hold (FER2013's were scraped, for research); the landmark "
    "model that placed the masks (iBUG 300-W) excludes commercial use. Not for judging what a person feels; not for "
    "use at work or school."
)
# Held-out faces on which the layers are compared; more do not change which are worst.
NOISE_FACES = 32
LATENCY_RUNS = 200


@dataclass(frozen=True)
class QuantizeReport(Checked):
    """The proof of a converted model; what is written beside it as JSON.

    Attributes:
        model: Path of the file.
        format: Key of `convert.FORMATS`.
        bytes: The file's size.
        sha256: Of the file.
        multiply_accumulates: Of one face.
        calibration: Label to how many of the pictures it was calibrated on; empty where none are needed.
        seed: Of their choice.
        comparison: Part of the test split to float against converted.
        layers: All layers' signal to quantisation noise, the worst first; ``int8`` only.
        latency: On one thread, by runtime.
        checks: Everything that was looked at.
    """

    model: str
    format: str
    bytes: int
    sha256: str
    multiply_accumulates: int
    calibration: dict[str, int]
    seed: int
    comparison: dict[str, Comparison]
    layers: list[LayerNoise]
    latency: Benchmark
    checks: list[Check]


def quantize(
    keras_path: Path,
    dataset: Path,
    out: Path,
    form: str = INT8,
    per_class: int = 72,
    seed: int = 0,
    limits: Limits | None = None,
    *,
    force: bool = False,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> QuantizeReport:
    """Convert a trained network, compare both on the test split, and write the file if it passes.

    Calibration pictures come from the training split, as many of each class, masked and bare in
    turn. The figures are measured on the test split as the edge classifies, mirror images included, and
    written into the file; the whole report goes beside it (`report_path`).

    Args:
        keras_path: A `.keras` of ``trainer fit``.
        dataset: Made by ``trainer build-dataset``.
        out: `.tflite` to write.
        form: Key of `convert.FORMATS`.
        per_class: Calibration pictures of each class.
        seed: Of their choice.
        limits: How far the file may fall behind the network.
        force: Whether a file that fails is written all the same.
        overwrite: Whether an existing `out`, and its report, are replaced.
        progress: Takes the name of each step.

    Raises:
        InputError: If the model or data set cannot be used.
        OutputError: If `out` or its report is there already or cannot be written.
        RefusedModelError: If a check failed.
    """
    limits = limits or Limits()
    check_request(form, out, overwrite, [keras_path])
    info = dataset_info(dataset)
    network, metadata = load_keras(keras_path)
    progress("reading pictures")
    # the other forms keep the ranges of floats
    calibration = calibration_pictures(dataset, per_class, seed) if form == INT8 else NO_CALIBRATION
    records = split_records(dataset, "test")
    pictures = {part: read_pictures(dataset, part, records) for part in PARTS}
    progress("converting")
    flatbuffer = convert(network, form, calibration.pictures)
    graph = read_graph(flatbuffer, str(out))
    model_info = ModelInfo(
        architecture=metadata.get("architecture", network.name),
        crop_margins=CROP_MARGINS,
        training_data={
            "name": metadata.get("dataset", info["name"]),
            "sha256": metadata.get("dataset_sha256", "unknown"),
            "pictures": metadata.get("training_pictures", 0),
        },
        accuracy={},
        quantization={
            "format": form,
            "calibration": calibration.counts,
            "seed": seed,
            "dataset_sha256": info["sha256"],
        },
        licence_note=LICENCE_NOTE.format(name=metadata.get("dataset", info["name"])),
    )
    model = Model(flatbuffer, model_info, str(out))
    progress("comparing float and converted")
    classifier = Classifier(model)
    faces = pictures["masked"].images
    comparison, checks = {}, check_graph(graph, form) + check_runtimes(same_classes(model, faces))
    for part, of_part in pictures.items():
        name, predicted = f"{part} test", classes_by_file(classifier, of_part.images)
        compared = comparison[name] = compare(classes_by_keras(network, of_part.images), predicted, of_part)
        checks += check_limits(name, compared.float_accuracy, compared.converted_accuracy, compared.agreement, limits)
        checks.append(check_classes(name, predicted))
    layers = []
    if form == INT8:
        progress("looking for the worst layers")
        sample = spread_sample(faces, NOISE_FACES)
        layers = layer_noise(convert(network, FLOAT, calibration.pictures), flatbuffer, sample)
    content = pack(flatbuffer, replace(model_info, accuracy={p: recorded(c, form) for p, c in comparison.items()}))
    progress("timing")
    latency = benchmark({str(out): content}, runs=LATENCY_RUNS)
    report = QuantizeReport(
        str(out),
        form,
        len(content),
        hashlib.sha256(content).hexdigest(),
        graph.multiply_accumulates,
        calibration.counts,
        seed,
        comparison,
        layers,
        latency,
        checks,
    )
    write_checked(out, content, report, force=force, overwrite=overwrite)
    return report


def check_request(form: str, out: Path, overwrite: bool, networks: Sequence[Path | None]) -> None:
    """Refuse early what could not be written at the end, or must not be.

    Raises:
        InputError: If there is no such format.
        OutputError: If the file or its report is there already or cannot be written, or it is one of the networks
            that are read, or no `.tflite`.
    """
    if form not in FORMATS:
        raise InputError(f"unknown format {form!r}; there are {', '.join(FORMATS)}")
    if out.is_file() and os.path.realpath(out) in {os.path.realpath(path) for path in networks if path is not None}:
        other = "" if out.suffix == ".tflite" else f": -o {out.with_suffix('.tflite')}"
        raise OutputError(f"{out} is the network itself; name another file{other}")
    check_writable(out, overwrite)
    if out.suffix != ".tflite":
        raise OutputError(f"{out} must end in .tflite")
    check_writable(report_path(out), overwrite)


def write_checked(out: Path, content: bytes, report: Any, *, force: bool, overwrite: bool) -> None:
    """Write a model and its report (a dataclass that is `Checked`), the report last.

    Raises:
        RefusedModelError: If a check failed and `force` is not given.
        OutputError: If they cannot be written.
    """
    if report.failed and not force:
        raise RefusedModelError(report)
    # the report is there last: one beside another model, after a power cut, says so by its sha256
    with atomic_file(report_path(out), overwrite) as partial_report:
        partial_report.write_text(json.dumps(asdict(report), indent=2) + "\n")
        write_atomically(out, content, overwrite)


def report_path(out: Path) -> Path:
    """Where the report of a model lies: ``lean.tflite`` has ``lean.report.json``."""
    return out.with_suffix(".report.json")


def recorded(compared: Comparison, form: str) -> dict[str, float | int]:
    """What a model file records of one part of the test split."""
    return {
        "float": compared.float_accuracy,
        form: compared.converted_accuracy,
        "agreement": compared.agreement,
        "pictures": compared.pictures,
    }
