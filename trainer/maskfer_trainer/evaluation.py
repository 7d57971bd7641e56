"""How well a network does on the test split: confusion matrices and per-class figures, masked and bare."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix, precision_recall_fscore_support

from maskfer_edge.contract import CROP_MARGINS, INPUT_SIZE, LABELS, FloatArray, UInt8Array
from maskfer_edge.dataset import PARTS, PictureSet, read_pictures, record_name, split_records
from maskfer_edge.dependencies import extra
from maskfer_edge.detector import open_detector
from maskfer_edge.errors import InputError, OutputError
from maskfer_edge.files import atomic_file, atomic_folder, check_creatable, write_atomically
from maskfer_edge.quiet import quiet_native_libraries
from maskfer_trainer.calibration import calibration_error
from maskfer_trainer.checks import check_network
from maskfer_trainer.keras_file import load_with_shapes, predict_views
from maskfer_trainer.through_detector import DetectorFigures, through_detector

Predict = Callable[[UInt8Array], FloatArray]


@dataclass(frozen=True)
class ClassFigures:
    """One class against the rest, shares from 0 to 1.

    Attributes:
        accuracy: (TP + TN) / all.
        precision: TP / (TP + FP); 0 where the class is never given. The paper's equation 2 repeats
            accuracy under this name.
        recall: TP / (TP + FN).
        f1: Harmonic mean of precision and recall.
        pictures: How many the class has.
    """

    accuracy: float
    precision: float
    recall: float
    f1: float
    pictures: int


@dataclass(frozen=True)
class PartFigures:
    """One part of the test split.

    Attributes:
        accuracy: Share of pictures given their own label.
        accuracy_without_duplicates: The same without pictures whose pixels are in train as well; None if all do.
        accuracy_without_near: Without those, and without pictures that are nearly the same as one in train.
        pictures: How many there are.
        duplicates: How many of them are in train as well.
        near: How many more nearly do.
        calibration_error: Expected calibration error, see `calibration.calibration_error`.
        confusion: 7 rows (true label) of 7 counts (given label).
        classes: By label.
    """

    accuracy: float
    accuracy_without_duplicates: float | None
    accuracy_without_near: float | None
    pictures: int
    duplicates: int
    near: int
    calibration_error: float
    confusion: list[list[int]]
    classes: dict[str, ClassFigures]


@dataclass(frozen=True)
class Evaluation:
    """A network on a data set's test split.

    Attributes:
        model: Its path.
        mirror: Whether the mirror images were scored as well.
        dataset: Path of the data set.
        parts: ``masked`` and ``bare`` to their figures.
        kinds: Kind of mask to the share of its faces that are right, and how many there are.
        detected: ``masked`` and ``bare`` to their figures through the detector; empty if not asked for.
        detector: Its name, or "".
    """

    model: str
    mirror: bool
    dataset: str
    parts: dict[str, PartFigures]
    kinds: dict[str, tuple[float, int]] = field(default_factory=dict)
    detected: dict[str, DetectorFigures] = field(default_factory=dict)
    detector: str = ""


def evaluate(
    model: Path,
    dataset: Path,
    out: Path | None = None,
    *,
    mirror: bool = True,
    detector: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Evaluate a `.keras` or a `.tflite` on the test split, masked and bare.

    Args:
        model: The network.
        dataset: Made by ``trainer build-dataset``.
        out: Folder to make, whole or not at all, for evaluation.json and the confusion matrices as pictures.
        mirror: Whether the mirror image is scored as well, as the runtime does unless told otherwise.
        detector: Name of a detector of the runtime through which to see the faces as well; "" for none.
        progress: Takes how many faces the detector has seen, and of how many.

    Raises:
        InputError: If model, data set or detector cannot be used.
        OutputError: If `out` is there already or cannot be written.
    """
    if out is not None:
        if out.exists():
            raise OutputError(f"{out} is already there; name another folder")
        check_creatable(out)
    with quiet_native_libraries():
        finder = open_detector(detector) if detector else None
        predict, margins = open_model(model, mirror=mirror)
    if detector and detector not in margins:
        raise InputError(f"{model} names no crop margin for detector {detector!r}; it names {', '.join(margins)}")
    records = split_records(dataset, "test", "in_train", "near_train", "mask")
    in_train, near_train = ({record_name(r) for r in records if r[key]} for key in ("in_train", "near_train"))
    pictures = {part: read_pictures(dataset, part, records) for part in PARTS}
    scores = {part: predict(of_part.images) for part, of_part in pictures.items()}
    correct = scores["masked"].argmax(axis=1) == pictures["masked"].labels
    kinds = np.array([record["mask"]["kind"] for record in records])
    evaluation = Evaluation(
        str(model),
        mirror,
        str(dataset),
        {part: part_figures(pictures[part], scores[part], in_train, near_train) for part in PARTS},
        {str(k): (round(float(correct[kinds == k].mean()), 4), int((kinds == k).sum())) for k in np.unique(kinds)},
        {part: through_detector(pictures[part], predict, finder, margins[detector], progress) for part in PARTS}
        if finder
        else {},
        detector,
    )
    if out is not None:
        with atomic_folder(out) as folder:
            write_atomically(folder / "evaluation.json", json.dumps(asdict(evaluation), indent=2) + "\n")
            for part, figures in evaluation.parts.items():
                draw_confusion(figures, f"{model.name} on {part} test faces", folder / f"confusion-{part}.png")
    return evaluation


def open_model(path: Path, *, mirror: bool = True) -> tuple[Predict, Mapping[str, float]]:
    """Open a `.keras` or `.tflite` file.

    Returns:
        A function from (n, 48, 48) uint8 faces to (n, 7) float32 scores, and the crop margin of each detector.
    """
    if path.suffix == ".tflite":
        from maskfer_edge.classifier import open_classifier

        classifier = open_classifier(path, mirror=mirror)
        margins = classifier.model.info.crop_margins
        return lambda images: np.stack([classifier(face) for face in images]), margins
    if path.suffix != ".keras":
        raise InputError(f"{path} is neither a .keras nor a .tflite file")
    remedy = "give a model.keras of trainer fit or a .tflite of converter quantize"
    check_network(path, remedy)
    with extra("trainer"):
        network, shapes = load_with_shapes(path, remedy)
    if shapes != ((INPUT_SIZE, INPUT_SIZE, 1), (len(LABELS),)):
        raise InputError(f"{path} has input and output of shapes {shapes}; expected (48, 48, 1) and (7,)")

    return lambda images: predict_views(network, images, mirror=mirror).mean(axis=0), CROP_MARGINS


def part_figures(pictures: PictureSet, scores: FloatArray, in_train: set[str], near_train: set[str]) -> PartFigures:
    """All figures of one part.

    Args:
        pictures: Of the part.
        scores: (n, 7) of the network.
        in_train: Names of pictures that are in train as well.
        near_train: Names of others that nearly do.
    """
    predicted = scores.argmax(axis=1)
    correct = predicted == pictures.labels
    not_duplicated = np.array([name not in in_train for name in pictures.names])
    not_near = np.array([name not in near_train for name in pictures.names]) & not_duplicated
    indices = list(range(len(LABELS)))
    confusion = confusion_matrix(pictures.labels, predicted, labels=indices)
    precision, recall, f1, support = precision_recall_fscore_support(
        pictures.labels, predicted, labels=indices, zero_division=0
    )
    classes = {
        label: ClassFigures(
            accuracy=round(float(((predicted == k) == (pictures.labels == k)).mean()), 4),
            precision=round(float(precision[k]), 4),
            recall=round(float(recall[k]), 4),
            f1=round(float(f1[k]), 4),
            pictures=int(support[k]),
        )
        for k, label in enumerate(LABELS)
    }
    return PartFigures(
        accuracy=round(float(correct.mean()), 4),
        accuracy_without_duplicates=round(float(correct[not_duplicated].mean()), 4) if not_duplicated.any() else None,
        accuracy_without_near=round(float(correct[not_near].mean()), 4) if not_near.any() else None,
        pictures=len(pictures),
        duplicates=int((~not_duplicated).sum()),
        near=int((not_duplicated & ~not_near).sum()),
        calibration_error=round(calibration_error(scores, pictures.labels), 4),
        confusion=confusion.tolist(),
        classes=classes,
    )


def draw_confusion(figures: PartFigures, title: str, path: Path) -> None:
    """Draw a confusion matrix in shares of each true label, with counts in the title, to a PNG file."""
    counts = np.array(figures.confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(7, 6.2), layout="constrained")
    axes = figure.subplots()
    display = ConfusionMatrixDisplay(shares, display_labels=LABELS)
    display.plot(ax=axes, cmap="Blues", values_format=".0%", colorbar=False, im_kw={"vmin": 0, "vmax": 1})
    axes.set(xlabel="given", ylabel="true", title=f"{title}\n{figures.accuracy:.1%} of {figures.pictures} right")
    axes.tick_params(axis="x", rotation=45)
    with atomic_file(path) as partial:
        figure.savefig(partial, dpi=110)


def as_text(evaluation: Evaluation) -> str:
    """The figures as tables for a terminal: a class table with masked and bare side by side, then the matrices."""
    parts = evaluation.parts
    lines = [f"{evaluation.model} on {evaluation.dataset}", ""]
    lines += [f"{part:8} {_accuracies(figures)}" for part, figures in parts.items()]
    names = ("accuracy", "precision", "recall", "f1")
    lines += ["", f"{'':10}" + "".join(f"| {part:^42}" for part in parts)]
    lines += [f"{'':10}" + "".join("| " + "".join(f"{name:>10}" for name in names) + "  " for _ in parts)]
    for label in LABELS:
        cells = ["| " + "".join(f"{getattr(f.classes[label], n):10.1%}" for n in names) + "  " for f in parts.values()]
        lines.append(f"{label:10}" + "".join(cells))
    lines.append("accuracy: of one class against the rest; recall: the share of its faces that are right")
    if evaluation.kinds:
        lines += ["", "right by kind of mask: "]
        lines[-1] += ", ".join(f"{kind} {share:.1%} of {count}" for kind, (share, count) in evaluation.kinds.items())
    for part, seen in evaluation.detected.items():
        lines += [
            "",
            f"{part} through {evaluation.detector}: {seen.found:.1%} of faces found; of those, "
            f"{_percent(seen.accuracy_detected)} right by the detector's box, {_percent(seen.accuracy_perfect)} by a "
            f"perfect one; {seen.accuracy_overall:.1%} of all found and right",
        ]
    for part, figures in parts.items():
        lines += ["", f"confusion matrix, {part} (rows: true, columns: given)"]
        lines.append(f"{'':10}" + "".join(f"{label:>9}" for label in LABELS))
        for label, row in zip(LABELS, figures.confusion, strict=True):
            lines.append(f"{label:10}" + "".join(f"{count:9d}" for count in row))
    return "\n".join(lines)


def _accuracies(figures: PartFigures) -> str:
    """The accuracy of a part, with and without its duplicates, as far as there are any."""
    clauses = [f"{figures.accuracy:6.1%} of {figures.pictures} right"]
    if figures.duplicates:
        clauses.append(
            f"{_percent(figures.accuracy_without_duplicates)} without duplicates of train ({figures.duplicates})"
        )
    if figures.near:
        also = "also " if figures.duplicates else ""
        clauses.append(
            f"{_percent(figures.accuracy_without_near)} {also}without near-duplicates of train ({figures.near})"
        )
    return "; ".join([*clauses, f"expected calibration error {figures.calibration_error:.1%}"])


def _percent(share: float | None) -> str:
    return "nothing to count" if share is None else f"{share:.1%}"
