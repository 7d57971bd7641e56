"""What trained networks say of the training faces, for another one to learn from.

Privileged distillation (after Lopez-Paz and others, 2016; own form): a teacher also sees the bare face under the mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt

from maskfer_edge.contract import INPUT_SIZE, LABELS, FloatArray
from maskfer_edge.dataset import PictureSet
from maskfer_edge.errors import InputError
from maskfer_trainer.checks import TEACHER
from maskfer_trainer.keras_file import load_with_shapes, predict_views, says_of_itself
from maskfer_trainer.settings import left_out


@dataclass(frozen=True)
class Lessons:
    """What teachers say of each training picture.

    Attributes:
        masked: (n, 7) float32 scores, the mean of what they say of the masked and of the bare face; zeros where no
            teacher may speak.
        bare: (n, 7) float32 scores of the bare face alone; zeros where no teacher may speak, or none knows bare faces.
    """

    masked: FloatArray
    bare: FloatArray


def ask(
    teachers: Sequence[Path],
    masked: PictureSet,
    bare: PictureSet,
    faces: npt.NDArray[np.int64],
    folds: Callable[[int], npt.NDArray[np.int64]],
    say: Callable[[str], None] = lambda _: None,
) -> Lessons:
    """Ask teachers about all training pictures and their mirror images.

    A teacher is asked about faces as it knows them: bare ones if it was trained on these alone, masked ones if it
    never saw a bare one, else both. One that left out a part of the faces (`FitSettings.leave_out`) speaks of that
    part alone: it says what it makes of faces whose labels it was never told, and does not repeat their errors.

    Args:
        teachers: `.keras` files.
        masked: The pictures.
        bare: The bare picture of each.
        faces: (n,) which face each picture shows.
        folds: Given a number of parts, returns (n,) int64: in which of them, from 1, each picture is.
        say: Takes what a person at the terminal should know.

    Returns:
        Their scores. A teacher that knows both masked and bare faces counts twice for masked ones.

    Raises:
        InputError: If a teacher cannot be loaded, or is no network of such faces.
    """
    _, first, of_picture = np.unique(faces, return_index=True, return_inverse=True)
    heard: dict[str, list[tuple[FloatArray, npt.NDArray[np.bool_]]]] = {"masked": [], "bare": []}
    for path in teachers:
        settings = says_of_itself(path).get("settings", {})
        part, parts = left_out(settings.get("leave_out", ""))
        may = folds(parts) == part if parts else np.ones(len(masked), dtype=bool)
        bare_share = settings.get("bare_share", 1)
        say(f"asking {path} about {int(may.sum())} pictures")
        network, shapes = load_with_shapes(path, TEACHER)
        if shapes != ((INPUT_SIZE, INPUT_SIZE, 1), (len(LABELS),)):
            raise InputError(f"{path} is no network of faces and expressions; {TEACHER}")
        if bare_share < 1:
            heard["masked"].append((_scores(network, masked, may), may))
        if bare_share > 0:
            heard["bare"].append((_scores(network, bare.take(first), may[first])[of_picture], may))
    return Lessons(_mean(heard["masked"] + heard["bare"], len(masked)), _mean(heard["bare"], len(masked)))


def _scores(network: keras.Model, pictures: PictureSet, chosen: npt.NDArray[np.bool_]) -> FloatArray:
    """(n, 7) float32, mean of each face and its mirror image; zeros where it is not chosen."""
    scores = np.zeros((len(pictures), len(LABELS)), dtype=np.float32)
    if chosen.any():
        scores[chosen] = predict_views(network, pictures.images[chosen]).mean(axis=0).reshape(-1, len(LABELS))
    return scores


def _mean(heard: list[tuple[FloatArray, npt.NDArray[np.bool_]]], count: int) -> FloatArray:
    """(count, 7): the mean over those who speak of a picture."""
    total, speakers = np.zeros((count, len(LABELS)), dtype=np.float32), np.zeros(count, dtype=np.float32)
    for scores, may in heard:
        total += scores
        speakers += may
    return np.asarray(total / np.maximum(speakers, 1)[:, None], dtype=np.float32)
