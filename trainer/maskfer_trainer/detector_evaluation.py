"""How well a detector finds the faces in photographs: recall, false boxes, average precision and time."""

from __future__ import annotations

import csv
import hashlib
import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from maskfer_edge.decoding import read_picture
from maskfer_edge.dependencies import cv2
from maskfer_edge.detector import Detection, Detector
from maskfer_edge.errors import InputError
from maskfer_edge.files import atomic_file, read_bytes

COLUMNS = ("xmin", "ymin", "xmax", "ymax")
# A mask below the nose hides most of what a whole one does.
IS_MASKED = {"with_mask": True, "mask_weared_incorrect": True, "without_mask": False}
# Recall is given for boxes from each of these sizes, in pixels, up to the next; the last has no end.
BINS_PX = (16, 32, 48, 64, 96, 160)


FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.intp]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Photo:
    """A photograph whose faces are known.

    Attributes:
        path: Its file.
        boxes_xyxy: (n, 4) float64 left, top, right, bottom of each face in pixels, within the picture.
        masked: (n,) bool, whether the face wears a mask.
    """

    path: Path
    boxes_xyxy: FloatArray
    masked: BoolArray


@dataclass(frozen=True)
class CurvePoint:
    """What remains when detections below a score are dropped. Shares are from 0 to 1.

    Attributes:
        score: The lowest that counts.
        precision: Share of the detections that are right.
        recall: Share of all faces that are found.
        recall_masked: The same of masked faces; None if there are none.
        recall_bare: The same of bare faces; None if there are none.
        false_boxes: Detections on no face, a picture.
    """

    score: float
    precision: float
    recall: float
    recall_masked: float | None
    recall_bare: float | None
    false_boxes: float


@dataclass(frozen=True)
class SizeFigures:
    """The faces of one size and more. Shares are from 0 to 1.

    Attributes:
        least_px: Shortest length in pixels of a box's longer side.
        masked: How many masked faces there are.
        bare: How many bare ones.
        recall_masked: Share of masked faces that are found; None if there are none.
        recall_bare: The same of bare faces.
        average_precision: Area below the curve, each precision being the best at that recall or more; None if there
            are no faces.
        curve: Its points, from the highest score down.
    """

    least_px: int
    masked: int
    bare: int
    recall_masked: float | None
    recall_bare: float | None
    average_precision: float | None
    curve: tuple[CurvePoint, ...]


@dataclass(frozen=True)
class BinFigures:
    """The faces of one range of sizes.

    Attributes:
        least_px: Shortest length in pixels of a box's longer side.
        below_px: Length that it stays below; None if there is no end.
        masked: How many masked faces there are.
        bare: How many bare ones.
        recall_masked: Share of masked faces that are found, 0 to 1; None if there are none.
        recall_bare: The same of bare faces.
    """

    least_px: int
    below_px: int | None
    masked: int
    bare: int
    recall_masked: float | None
    recall_bare: float | None


@dataclass(frozen=True)
class DetectorEvaluation:
    """A detector on photographs.

    Attributes:
        detector: Its name.
        pictures: How many photographs it has seen.
        iou: Least intersection over union of a detection and the face that it finds.
        false_boxes: Detections that find no face of any size, a picture. A second box on a face is one of them.
        milliseconds_median: Time for a picture, without reading its file, on one thread of OpenCV.
        milliseconds_p95: Time that 95 of 100 pictures stay within.
        sizes: One for each least size asked for.
        bins: By size of the face.
    """

    detector: str
    pictures: int
    iou: float
    false_boxes: float
    milliseconds_median: float
    milliseconds_p95: float
    sizes: tuple[SizeFigures, ...]
    bins: tuple[BinFigures, ...]


@dataclass(frozen=True)
class Found:
    """What a detector gave for one photograph: boxes cut at its edges, (n, 4) and (n,), and the time it took."""

    boxes_xyxy: FloatArray
    scores: FloatArray
    milliseconds: float


def half(name: str) -> Literal["tuning", "testing"]:
    """The half of a set that a photograph belongs to, by the last bit of the sha256 of its file name: 0 is tuning.

    Settings are chosen on the tuning half; what is claimed of them comes from the testing half.
    """
    last = hashlib.sha256(name.encode(errors="surrogateescape")).digest()[-1]
    return "testing" if last % 2 else "tuning"


def tuning_half(photos: Sequence[Photo]) -> list[Photo]:
    """Those of some photographs that settings may be chosen on and networks learn from, see `half`."""
    return [photo for photo in photos if half(photo.path.name) == "tuning"]


def read_photos(folder: Path) -> list[Photo]:
    """Read ``boxes.csv`` and the photographs beside it that it names.

    It has the columns image, xmin, ymin, xmax, ymax in pixels, and either label (with_mask, mask_weared_incorrect,
    without_mask) or score, which means bare faces. Boxes are cut at the picture's edges.

    Returns:
        The photographs in the order in which the file first names them.

    Raises:
        InputError: If the file is missing or lacks a column, or at the first line with a picture that is not there or
            cannot be read, an unknown label, a coordinate that is no number, or a box without area or outside of its
            picture; it names file and line.
    """
    path = folder / "boxes.csv"
    faces: dict[str, list[tuple[FloatArray, bool]]] = {}
    sizes_wh: dict[str, tuple[int, int]] = {}
    for where, row in _rows(path):
        name = row["image"] or ""
        if name not in sizes_wh:
            try:
                height, width = read_picture(folder / name).shape[:2]
            except InputError as error:
                raise InputError(f"{where}: {error}") from None
            sizes_wh[name] = (width, height)
        label = row.get("label", "without_mask")
        if label not in IS_MASKED:
            raise InputError(f"{where}: unknown label {label!r}; known: {', '.join(IS_MASKED)}")
        faces.setdefault(name, []).append((_box(row, sizes_wh[name], where), IS_MASKED[label]))
    if not faces:
        raise InputError(f"{path} lists no faces")
    return [
        Photo(folder / name, np.stack([box for box, _ in of_photo]), np.array([masked for _, masked in of_photo]))
        for name, of_photo in faces.items()
    ]


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str | None]]]:
    """Each row of the file by column, and the words for where it stands."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except InputError as error:
        raise InputError(f"{error}; see docs/detecting.md#photographs") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8: {error.reason} at byte {error.start}") from None
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        columns = reader.fieldnames or ()
        missing = [name for name in ("image", *COLUMNS) if name not in columns]
        if not missing and not {"label", "score"} & set(columns):
            missing = ["label (or score)"]
        if missing:
            raise InputError(
                f"{path}, line 1: columns missing: {', '.join(missing)}; expected image,label,{','.join(COLUMNS)} "
                f"or image,{','.join(COLUMNS)},score"
            )
        for row in reader:
            yield f"{path}, line {reader.line_num}", row
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}") from None


def _box(row: dict[str, str | None], size_wh: tuple[int, int], where: str) -> FloatArray:
    """A row's box, (4,) left, top, right, bottom, cut at the edges of its picture."""
    numbers = []
    for column in COLUMNS:
        try:
            numbers.append(float(row[column] or ""))
        except ValueError:
            raise InputError(f"{where}: {column} is {row[column] or ''!r}; expected a number") from None
    box = np.array(numbers)
    if not np.isfinite(box).all():
        raise InputError(f"{where}: the box {_words(box)} is not finite; expected pixels")
    if not (box[2:] > box[:2]).all():
        raise InputError(f"{where}: the box {_words(box)} has no area; expected xmin < xmax and ymin < ymax")
    cut: FloatArray = np.clip(box, 0, [*size_wh, *size_wh])
    if not (cut[2:] > cut[:2]).all():
        raise InputError(f"{where}: the box {_words(box)} lies outside its picture of {size_wh[0]}x{size_wh[1]} pixels")
    return cut


def _words(box: FloatArray) -> str:
    return ", ".join(f"{number:g}" for number in box)


def evaluate_detector(
    detector: Detector,
    photos: Sequence[Photo],
    least_px: Sequence[int] = (32, 48),
    iou: float = 0.35,
    progress: Progress = lambda done, total: None,
) -> DetectorEvaluation:
    """Let a detector look for faces whose places are known.

    Of each photograph the surest detection chooses first: it finds the face that it overlaps most of those not yet
    found. What finds a face below the least size is neither right nor false. Detections are cut at the edges of the
    photograph as the known boxes are.

    Args:
        detector: Any of the runtime's.
        photos: From `read_photos`.
        least_px: Least sizes to give figures for: the longer side of a box in pixels of the photograph as it is.
        iou: Least intersection over union of a detection and the face that it finds, above 0 and up to 1.
        progress: Takes how many photographs are done, and of how many.

    Raises:
        InputError: If there are no photographs, one cannot be read, or `iou` is out of range.
    """
    if not photos:
        raise InputError("there are no photographs to evaluate on")
    if not 0 < iou <= 1:
        raise InputError(f"iou is {iou}; expected above 0 and up to 1")
    (found,) = search([detector], photos, progress)
    return figures_of(detector.name, found, photos, least_px, iou)


def search(detectors: Sequence[Detector], photos: Sequence[Photo], progress: Progress) -> list[list[Found]]:
    """Let each detector see each photograph, on one thread of OpenCV; one list for each detector.

    They take turns at every photograph, so that what else the machine does slows all of them alike.
    """
    found: list[list[Found]] = [[] for _ in detectors]
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        for done, photo in enumerate(photos, start=1):
            image = read_picture(photo.path)
            for of_detector, detector in zip(found, detectors, strict=True):
                start = time.perf_counter()
                detections = detector(image)
                milliseconds = 1000 * (time.perf_counter() - start)
                of_detector.append(_to_found(detections, image.shape[1::-1], milliseconds))
            progress(done, len(photos))
    finally:
        cv2.setNumThreads(threads)
    return found


def _to_found(detections: Sequence[Detection], size_wh: tuple[int, ...], milliseconds: float) -> Found:
    boxes = np.array([d.box for d in detections], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Found(
        np.clip(boxes, 0, [*size_wh, *size_wh]), np.array([d.score for d in detections], np.float64), milliseconds
    )


def figures_of(
    name: str, found: Sequence[Found], photos: Sequence[Photo], least_px: Sequence[int], iou: float
) -> DetectorEvaluation:
    """All figures of what was found."""
    sides = np.concatenate([_sides(photo) for photo in photos])
    masked = np.concatenate([photo.masked for photo in photos])
    scores = np.concatenate([f.scores for f in found])
    starts = np.cumsum([0, *(len(photo.masked) for photo in photos)])
    # index of the face that each detection finds among all faces, or -1
    matches = np.concatenate(
        [
            np.where(local >= 0, local + start, -1)
            for f, photo, start in zip(found, photos, starts, strict=False)
            for local in [_match(f, photo, iou)]
        ]
    )
    is_found = np.isin(np.arange(len(sides)), matches)
    times = [f.milliseconds for f in found]
    edges = [*BINS_PX, np.inf]
    return DetectorEvaluation(
        detector=name,
        pictures=len(photos),
        iou=iou,
        false_boxes=round(int((matches < 0).sum()) / len(photos), 4),
        milliseconds_median=round(float(np.median(times)), 3),
        milliseconds_p95=round(float(np.percentile(times, 95)), 3),
        sizes=tuple(
            _size_figures(least, sides >= least, masked, is_found, matches, scores, len(photos)) for least in least_px
        ),
        bins=tuple(
            BinFigures(
                least_px=least,
                below_px=None if below == np.inf else int(below),
                masked=int((inside & masked).sum()),
                bare=int((inside & ~masked).sum()),
                recall_masked=_share(is_found, inside & masked),
                recall_bare=_share(is_found, inside & ~masked),
            )
            for least, below in zip(BINS_PX, edges[1:], strict=True)
            for inside in [(sides >= least) & (sides < below)]
        ),
    )


def _sides(photo: Photo) -> FloatArray:
    """(n,) the longer side of each box."""
    sides: FloatArray = (photo.boxes_xyxy[:, 2:] - photo.boxes_xyxy[:, :2]).max(axis=1)
    return sides


def _share(is_found: BoolArray, of: BoolArray) -> float | None:
    return round(float(is_found[of].mean()), 4) if of.any() else None


def _match(found: Found, photo: Photo, iou: float) -> IntArray:
    """(n,) the index of the face that each detection finds, or -1; the surest chooses first."""
    overlaps = _overlaps(found.boxes_xyxy, photo.boxes_xyxy)
    matches = np.full(len(found.scores), -1, np.intp)
    for i in np.argsort(-found.scores, kind="stable"):
        best = int(overlaps[i].argmax())
        if overlaps[i, best] >= iou:
            matches[i] = best
            overlaps[:, best] = 0
    return matches


def _overlaps(a_xyxy: FloatArray, b_xyxy: FloatArray) -> FloatArray:
    """(n, m) intersection over union of (n, 4) and (m, 4) boxes, of which the second have areas."""
    a, b = a_xyxy[:, None], b_xyxy[None]
    shared = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None).prod(axis=-1)
    areas = (a[..., 2:] - a[..., :2]).prod(axis=-1) + (b[..., 2:] - b[..., :2]).prod(axis=-1)
    overlaps: FloatArray = shared / (areas - shared)
    return overlaps


def _size_figures(
    least_px: int,
    counted: BoolArray,
    masked: BoolArray,
    is_found: BoolArray,
    matches: IntArray,
    scores: FloatArray,
    pictures: int,
) -> SizeFigures:
    """The figures of some of the faces.

    Args:
        least_px: Their least size.
        counted: (n,) which of all faces they are.
        masked: (n,) which faces wear a mask.
        is_found: (n,) which are found.
        matches: (m,) index of the face that each detection finds, or -1.
        scores: (m,) of the detections.
        pictures: How many there are.
    """
    kinds = (counted & masked, counted & ~masked)
    correct = [(matches >= 0) & of[matches] for of in kinds]
    curve, average_precision = _curve(
        scores, correct[0], correct[1], matches < 0, [int(k.sum()) for k in kinds], pictures
    )
    return SizeFigures(
        least_px=least_px,
        masked=int(kinds[0].sum()),
        bare=int(kinds[1].sum()),
        recall_masked=_share(is_found, kinds[0]),
        recall_bare=_share(is_found, kinds[1]),
        average_precision=average_precision,
        curve=curve,
    )


def _curve(
    scores: FloatArray,
    correct_masked: BoolArray,
    correct_bare: BoolArray,
    false: BoolArray,
    faces: Sequence[int],
    pictures: int,
) -> tuple[tuple[CurvePoint, ...], float | None]:
    """The precision-recall curve, and the area below it by all-point interpolation (Pascal VOC 2010).

    scikit-learn's average_precision_score knows no faces without a detection, which no score can find.

    Args:
        scores: (m,) of the detections, in any order.
        correct_masked: (m,) which find a masked face.
        correct_bare: (m,) which find a bare one.
        false: (m,) which find none.
        faces: How many are masked, and how many bare.
        pictures: How many there are.
    """
    if not sum(faces):
        return (), None
    order = np.argsort(-scores, kind="stable")
    order = order[(correct_masked | correct_bare | false)[order]]
    # Detections of one score come and go together, whatever their order.
    last = np.flatnonzero(np.diff(scores[order], append=-np.inf))
    n_masked, n_bare, n_false = (which[order].cumsum()[last] for which in (correct_masked, correct_bare, false))
    n_correct = n_masked + n_bare
    precision, recall = n_correct / np.maximum(n_correct + n_false, 1), n_correct / sum(faces)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    points = tuple(
        CurvePoint(
            score=round(float(scores[order[last[i]]]), 6),
            precision=round(float(precision[i]), 4),
            recall=round(float(recall[i]), 4),
            recall_masked=round(int(n_masked[i]) / faces[0], 4) if faces[0] else None,
            recall_bare=round(int(n_bare[i]) / faces[1], 4) if faces[1] else None,
            false_boxes=round(int(n_false[i]) / pictures, 4),
        )
        for i in range(len(last))
    )
    return points, round(float((np.diff(recall, prepend=0) * best).sum()), 4)


def draw_curve(evaluation: DetectorEvaluation, path: Path, overwrite: bool = False) -> None:
    """Draw the precision-recall curves, one for each least size, to a PNG file.

    Raises:
        OutputError: If `path` is there already and `overwrite` is false, or cannot be written.
    """
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    for size in evaluation.sizes:
        area = "no faces" if size.average_precision is None else f"average precision {size.average_precision:.3f}"
        recall, precision = [p.recall for p in size.curve], [p.precision for p in size.curve]
        axes.plot(
            recall, precision, label=f"{size.least_px} px and more: {area}", marker="." if len(recall) < 40 else ""
        )
    axes.set(
        xlim=(0, 1.01),
        ylim=(0, 1.01),
        xlabel="recall",
        ylabel="precision",
        title=f"{evaluation.detector} on {evaluation.pictures} photographs",
    )
    axes.grid(alpha=0.3)
    if evaluation.sizes:
        axes.legend(loc="lower left")
    with atomic_file(path, overwrite) as partial:
        figure.savefig(partial, dpi=100)


def as_text(evaluation: DetectorEvaluation) -> str:
    """The figures as tables for a terminal."""
    lines = [
        f"{evaluation.detector} on {evaluation.pictures} photographs: "
        f"{evaluation.false_boxes:.2f} false boxes a picture, "
        f"{evaluation.milliseconds_median:.1f} ms (95 of 100: {evaluation.milliseconds_p95:.1f} ms)",
        "",
        f"{'faces':14}{'masked':>8}{'found':>8}{'bare':>8}{'found':>8}{'average precision':>20}",
    ]
    for size in evaluation.sizes:
        lines.append(f"{f'{size.least_px} px and more':14}{_counts(size)}{percent(size.average_precision):>20}")
    lines.append("")
    for part in evaluation.bins:
        words = f"{part.least_px} px and more" if part.below_px is None else f"{part.least_px} to {part.below_px} px"
        lines.append(f"{words:14}{_counts(part)}")
    return "\n".join(lines)


def _counts(figures: SizeFigures | BinFigures) -> str:
    return (
        f"{figures.masked:8}{percent(figures.recall_masked):>8}{figures.bare:8}{percent(figures.recall_bare):>8}"
    )  # fmt: skip


def percent(share: float | None) -> str:
    """A share from 0 to 1 in hundredths, or a dash."""
    return "-" if share is None else f"{share:.1%}"
