"""The layout of scenes that `trainer build-scenes` makes, and the F1 score of a detector on them.

    SCENES/scenes.json     settings, counts, hash of the rest, and which scenes are for validation
    SCENES/boxes.csv       image,label,xmin,ymin,xmax,ymax
    SCENES/scenes/*.jpg    grey

It stands in the edge package because trainer and converter both read it and may not import each other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from maskfer_edge.detector import Box, Detection, iou
from maskfer_edge.errors import InputError
from maskfer_edge.files import read_bytes
from maskfer_edge.learned_detector import MIN_FACE_SHARE

# Label of regions that are ignored in evaluation.
IGNORED = "ignore"
# Intersection over union from which a detection matches a face.
MIN_IOU = 0.5


class GroundTruth(NamedTuple):
    """Annotation of a scene.

    Attributes:
        faces: Boxes (left, top, width, height) in pixels.
        ignored: Boxes in which detections are neither true nor false positives.
    """

    faces: list[Box]
    ignored: list[Box]


def scenes_info(scenes: Path) -> dict[str, Any]:
    """The content of ``scenes.json``. Raises InputError if it cannot be read."""
    try:
        info: dict[str, Any] = json.loads(read_bytes(scenes / "scenes.json"))
    except (InputError, ValueError):
        raise InputError(f"{scenes} holds no readable scenes.json; make it with: trainer build-scenes") from None
    validation = info.get("validation", []) if isinstance(info, dict) else None
    if not (isinstance(validation, list) and all(isinstance(name, str) for name in validation)):
        raise InputError(f"{scenes / 'scenes.json'} is damaged; build the scenes again")
    return info


def read_ground_truth(scenes: Path) -> dict[str, GroundTruth]:
    """The annotation of each scene, by its name ``scenes/NUMBER.jpg``, in the names' order.

    Raises:
        InputError: If ``boxes.csv`` is missing or damaged, or names a scene that is not there.
    """
    ground_truths = {f"scenes/{path.name}": GroundTruth([], []) for path in sorted((scenes / "scenes").glob("*.jpg"))}
    try:
        for line in read_bytes(scenes / "boxes.csv").decode().splitlines()[1:]:
            name, label, *sides = line.split(",")
            x0, y0, x1, y1 = map(int, sides)
            faces, ignored = ground_truths[name]
            (ignored if label == IGNORED else faces).append((x0, y0, x1 - x0, y1 - y0))
    except (KeyError, ValueError) as error:  # a row that is cut short or names no scene
        raise InputError(f"{scenes} is damaged ({error}); make it anew with: trainer build-scenes") from error
    return ground_truths


def f1_by_threshold(
    found: Iterable[Sequence[Detection]],
    ground_truths: Iterable[GroundTruth],
    height: int,
    thresholds: Sequence[float] | npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """F1 score (harmonic mean of precision and recall) over the faces of scenes, at each score threshold.

    Faces below the edge's minimum size are ignored.

    Args:
        found: Of each scene, the detections from the lowest threshold on.
        ground_truths: Annotation of each scene.
        height: Of the scenes in pixels.
        thresholds: Scores, 0 to 1.

    Returns:
        (n,) 0 to 1.
    """
    true_positives, false_positives = np.zeros(len(thresholds)), np.zeros(len(thresholds))
    face_count, min_area = 0, (MIN_FACE_SHARE * height) ** 2
    for detections, (all_faces, ignored) in zip(found, ground_truths, strict=True):
        faces = [face for face in all_faces if face[2] * face[3] >= min_area]
        smaller = [face for face in all_faces if face[2] * face[3] < min_area]
        by_score = sorted(detections, key=lambda detection: -detection.score)
        scores = np.array([detection.score for detection in by_score])
        kept = scores[:, None] >= np.asarray(thresholds)
        hits, is_false = match_boxes([detection.box for detection in by_score], faces, [*ignored, *smaller])
        true_positives += kept[hits >= 0].sum(axis=0)
        false_positives += kept[is_false].sum(axis=0)
        face_count += len(faces)
    f1: npt.NDArray[np.float64] = 2 * true_positives / np.maximum(true_positives + false_positives + face_count, 1)
    return f1


def match_boxes(
    boxes: Sequence[Box], faces: Sequence[Box], ignored: Sequence[Box]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Match boxes to faces, the highest score first: the face of each (-1: none), and whether it is a false positive.

    A second box on a face is a false positive; one on an ignored face is neither a true nor a false one.
    """
    hits = np.full(len(boxes), -1, dtype=np.int64)
    is_false = np.ones(len(boxes), dtype=bool)
    for index, box in enumerate(boxes):
        ious = [0.0 if face_index in hits else iou(box, face) for face_index, face in enumerate(faces)]
        if ious and max(ious) >= MIN_IOU:
            hits[index] = int(np.argmax(ious))
        is_false[index] = hits[index] < 0 and not any(centre_within(box, other) for other in ignored)
    return hits, is_false


def centre_within(box: Box, other: Box) -> bool:
    """Whether the centre of a box (left, top, width, height) lies in another one, its edges included."""
    x, y = box[0] + box[2] / 2, box[1] + box[3] / 2
    return other[0] <= x <= other[0] + other[2] and other[1] <= y <= other[1] + other[3]
