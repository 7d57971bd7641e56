"""A model file verified once more, by itself and on pictures: no float network is needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskfer_converter.checks import Check, Checked, check_graph, check_runtimes
from maskfer_converter.comparison import Limits, check_classes, check_limits, classes_by_file, same_classes
from maskfer_converter.convert import FORMATS, INT8
from maskfer_converter.graph import read_graph
from maskfer_edge.classifier import Classifier
from maskfer_edge.contract import LABELS
from maskfer_edge.dataset import PARTS, dataset_info, read_pictures, split_records
from maskfer_edge.model_file import ModelInfo, load_model


@dataclass(frozen=True)
class Verification(Checked):
    """What was found.

    Attributes:
        model: Path of the file.
        accuracy: Part of the test split to the share that is right, 0 to 1.
        same_pictures: Whether they are those on which the file's own figures were measured.
        checks: Everything that was looked at.
    """

    model: str
    accuracy: dict[str, float]
    same_pictures: bool
    checks: list[Check]


def verify(path: Path, dataset: Path, limits: Limits | None = None) -> Verification:
    """Check a model file: whole, of its format, runs, as accurate as its metadata claim.

    Args:
        path: A `.tflite` of ``converter quantize``.
        dataset: Made by ``trainer build-dataset``; its test split is classified.
        limits: How far the file may fall behind the float network by its own figures, and behind those figures here.

    Raises:
        InputError: If the data set cannot be used.
        ModelError: If the file is no whole model file.
    """
    limits = limits or Limits()
    model = load_model(path)
    info = dataset_info(dataset)
    model_info, form = model.info, str(model.info.quantization.get("format"))
    checks = [Check("whole, and says what it is", True)]
    if form not in FORMATS:
        checks.append(Check("of a known format", False, form))
    else:
        checks += check_graph(read_graph(model.flatbuffer, model.name), form)
    if form == INT8:
        checks.append(_calibration_check(model_info))
    same_data = model_info.quantization.get("dataset_sha256") == info.get("sha256")
    records = split_records(dataset, "test")
    pictures = {part: read_pictures(dataset, part, records) for part in PARTS}
    checks += check_runtimes(same_classes(model, pictures["masked"].images))
    classifier, accuracy = Classifier(model), {}
    for part, of_part in pictures.items():
        name, predicted = f"{part} test", classes_by_file(classifier, of_part.images)
        accuracy[name] = round(float((predicted == of_part.labels).mean()), 4)
        checks.append(check_classes(name, predicted))
        checks += _figure_checks(name, model_info, form, accuracy[name] if same_data else None, limits)
    return Verification(str(path), accuracy, same_data, checks)


def _calibration_check(model_info: ModelInfo) -> Check:
    counts = model_info.quantization.get("calibration")
    counts = counts if isinstance(counts, dict) else {}
    without = [label for label in LABELS if not counts.get(label)]
    found = f"none of {', '.join(without)}" if without else f"{min(counts.values())} of each"
    return Check("calibrated on every class", not without, found)


def _figure_checks(name: str, model_info: ModelInfo, form: str, measured: float | None, limits: Limits) -> list[Check]:
    """The file's own figures against the limits and, on the pictures that they were measured on, against what is."""
    row: Any = model_info.accuracy.get(name)
    if not isinstance(row, dict) or not all(isinstance(row.get(k), int | float) for k in ("float", form, "agreement")):
        return [Check(f"{name}: the file says how accurate it is", False, "nothing")]
    checks = check_limits(name, row["float"], row[form], row["agreement"], limits)
    if measured is not None:
        difference = 100 * abs(measured - row[form])
        found = f"{measured:.1%} here, {row[form]:.1%} in the file"
        checks.append(Check(f"{name}: as accurate as the file says", difference <= limits.max_drop, found))
    return checks
