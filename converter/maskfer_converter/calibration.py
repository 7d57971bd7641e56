"""The pictures that set the ranges of a quantised network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from maskfer_edge.contract import INPUT_SIZE, LABELS
from maskfer_edge.dataset import CLASS_FOLDERS, PARTS, read_pictures, split_records
from maskfer_edge.errors import InputError

# A face spans far more grey levels; less is an empty picture.
MIN_CONTRAST = 16


@dataclass(frozen=True)
class Calibration:
    """What a network was calibrated on.

    Attributes:
        pictures: (n, 48, 48, 1) float32 grey pixels, 0 to 255.
        counts: Label to how many of the pictures are faces of that class.
        seed: Of their choice.
    """

    pictures: npt.NDArray[np.float32]
    counts: dict[str, int]
    seed: int


NO_CALIBRATION = Calibration(np.empty((0, INPUT_SIZE, INPUT_SIZE, 1), dtype=np.float32), {}, 0)


def calibration_pictures(dataset: Path, per_class: int, seed: int) -> Calibration:
    """Choose `per_class` faces of each class from the training split, every other one bare.

    A black and a white picture are added, so that the input covers 0 to 255 and is the pixel itself.

    Raises:
        InputError: If a class has too few, or one of those chosen is empty.
    """
    records = split_records(dataset, "train")
    random = np.random.default_rng(seed)
    chosen = []
    for label, folder in zip(LABELS, CLASS_FOLDERS, strict=True):
        of_class = [record for record in records if record["class"] == folder]
        if len(of_class) < per_class:
            raise InputError(
                f"{dataset} has {len(of_class)} training pictures of {label}; {per_class} are needed: "
                "build a larger data set, or give a smaller --per-class"
            )
        chosen += [of_class[i] for i in random.permutation(len(of_class))[:per_class]]
    faces = np.empty((len(chosen), INPUT_SIZE, INPUT_SIZE), dtype=np.uint8)
    in_class = np.arange(len(chosen)) % per_class
    for offset, part in enumerate(PARTS):
        places = np.flatnonzero(in_class % len(PARTS) == offset)
        if places.size:
            faces[places] = read_pictures(dataset, part, [chosen[i] for i in places]).images
    empty = np.flatnonzero(np.ptp(faces.reshape(len(faces), -1), axis=1) < MIN_CONTRAST)
    if empty.size:
        raise InputError(
            f"{len(empty)} of {len(faces)} calibration pictures are of one grey, one of "
            f"{LABELS[int(empty[0]) // per_class]} first; calibrate on a data set of faces"
        )
    side = (INPUT_SIZE, INPUT_SIZE)
    ends = np.stack([np.zeros(side, dtype=np.uint8), np.full(side, 255, dtype=np.uint8)])
    pictures = np.concatenate([faces, ends])[..., None].astype(np.float32)
    return Calibration(pictures, dict.fromkeys(LABELS, per_class), seed)
