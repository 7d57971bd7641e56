"""The layout of scenes that `trainer build-scenes` makes, and how well a detector finds the faces in them.

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

from maskfer_edge.detector import Box, Detection, overlap
from maskfer_edge.errors import InputError
from maskfer_edge.files import read_bytes
from maskfer_edge.learned_detector import LEAST_SHARE

# Label of boxes in which nothing is judged.
IGNORED = "ignore"
# Overlap (intersection over union) from which a box finds a face.
LEAST_OVERLAP = 0.5


class Marks(NamedTuple):
    """What is known of a scene.

    Attributes:
        faces: Boxes (left, top, width, height) in pixels.
        ignored: Boxes in which nothing is judged.
    """

    faces: list[Box]
    ignored: list[Box]


def scenes_info(scenes: Path) -> dict[str, Any]:
    """What ``scenes.json`` says. Raises InputError if `scenes` are none."""
    try:
        info: dict[str, Any] = json.loads(read_bytes(scenes / "scenes.json"))
    except (InputError, ValueError):
        raise InputError(f"{scenes} holds no readable scenes.json; make it with: trainer build-scenes") from None
    named = info.get("validation", []) if isinstance(info, dict) else None
    if not (isinstance(named, list) and all(isinstance(name, str) for name in named)):
        raise InputError(f"{scenes / 'scenes.json'} is damaged; build the scenes again")
    return info


def read_marks(scenes: Path) -> dict[str, Marks]:
    """What is known of each scene, by its name ``scenes/NUMBER.jpg``, in the names' order.

    Raises:
        InputError: If ``boxes.csv`` is missing or damaged, or names a scene that is not there.
    """
    marks = {f"scenes/{path.name}": Marks([], []) for path in sorted((scenes / "scenes").glob("*.jpg"))}
    try:
        for line in read_bytes(scenes / "boxes.csv").decode().splitlines()[1:]:
            name, label, *sides = line.split(",")
            x0, y0, x1, y1 = map(int, sides)
            faces, ignored = marks[name]
            (ignored if label == IGNORED else faces).append((x0, y0, x1 - x0, y1 - y0))
    except (KeyError, ValueError) as error:  # a row that is cut short or names no scene
        raise InputError(f"{scenes} is damaged ({error}); make it anew with: trainer build-scenes") from error
    return marks


def f1_by_threshold(
    found: Iterable[Sequence[Detection]],
    marks: Iterable[Marks],
    height: int,
    thresholds: Sequence[float] | npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """The harmonic mean of precision and recall over the faces of scenes, at each score threshold.

    Faces below the edge's least size are not judged.

    Args:
        found: Of each scene, what a detector found from the least threshold on.
        marks: Of each scene.
        height: Of the scenes in pixels.
        thresholds: Scores, 0 to 1.

    Returns:
        (n,) 0 to 1.
    """
    right, wrong = np.zeros(len(thresholds)), np.zeros(len(thresholds))
    wanted, least_area = 0, (LEAST_SHARE * height) ** 2
    for detections, (known, ignored) in zip(found, marks, strict=True):
        faces = [face for face in known if face[2] * face[3] >= least_area]
        smaller = [face for face in known if face[2] * face[3] < least_area]
        surest_first = sorted(detections, key=lambda detection: -detection.score)
        scores = np.array([detection.score for detection in surest_first])
        kept = scores[:, None] >= np.asarray(thresholds)
        hits, false = matched([detection.box for detection in surest_first], faces, [*ignored, *smaller])
        right += kept[hits >= 0].sum(axis=0)
        wrong += kept[false].sum(axis=0)
        wanted += len(faces)
    f1: npt.NDArray[np.float64] = 2 * right / np.maximum(right + wrong + wanted, 1)
    return f1


def matched(
    boxes: Sequence[Box], faces: Sequence[Box], ignored: Sequence[Box]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Of each box, the surest first, the face that it finds (-1: none), and whether it is a false one.

    A second box on a face is false; one on a face that is not judged is neither right nor wrong.
    """
    hits = np.full(len(boxes), -1, dtype=np.int64)
    false = np.ones(len(boxes), dtype=bool)
    for place, box in enumerate(boxes):
        shares = [0.0 if number in hits else overlap(box, face) for number, face in enumerate(faces)]
        if shares and max(shares) >= LEAST_OVERLAP:
            hits[place] = int(np.argmax(shares))
        false[place] = hits[place] < 0 and not any(centre_within(box, other) for other in ignored)
    return hits, false


def centre_within(box: Box, other: Box) -> bool:
    """Whether the centre of a box (left, top, width, height) lies in another one, its edges included."""
    x, y = box[0] + box[2] / 2, box[1] + box[3] / 2
    return other[0] <= x <= other[0] + other[2] and other[1] <= y <= other[1] + other[3]
