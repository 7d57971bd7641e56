"""Soft labels: the scores of trained networks for the training faces, for another one to learn from.

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
from maskfer_trainer.keras_file import load_with_shapes, predict_views, settings_of
from maskfer_trainer.settings import parse_fold


@dataclass(frozen=True)
class SoftLabels:
    """The teachers' scores of each training picture.

    Attributes:
        masked: (n, 7) float32 scores, the mean of those of the masked and of the bare face; zeros where no teacher may
            score.
        bare: (n, 7) float32 scores of the bare face alone; zeros where no teacher may score, or none knows bare faces.
    """

    masked: FloatArray
    bare: FloatArray


def predict_soft_labels(
    teachers: Sequence[Path],
    masked: PictureSet,
    bare: PictureSet,
    faces: npt.NDArray[np.int64],
    fold_of: Callable[[int], npt.NDArray[np.int64]],
    log: Callable[[str], None] = lambda _: None,
) -> SoftLabels:
    """Let teachers score all training pictures and their mirror images.

    A teacher scores faces as it knows them: bare ones if it was trained on these alone, masked ones if it never
    saw a bare one, else both. One that left out a fold of the faces (`FitSettings.leave_out`) scores that fold alone:
    out-of-fold predictions, which do not repeat the errors of labels that it was trained on.

    Args:
        teachers: `.keras` files.
        masked: The pictures.
        bare: The bare picture of each.
        faces: (n,) which face each picture shows.
        fold_of: Given a number of folds, returns (n,) int64: in which of them, from 1, each picture is.
        log: Takes messages for the terminal.

    Returns:
        Their scores. A teacher that knows both masked and bare faces counts twice for masked ones.

    Raises:
        InputError: If a teacher cannot be loaded, or is no network of such faces.
    """
    _, first, inverse = np.unique(faces, return_index=True, return_inverse=True)
    predictions: dict[str, list[tuple[FloatArray, npt.NDArray[np.bool_]]]] = {"masked": [], "bare": []}
    for path in teachers:
        settings = settings_of(path)
        fold, folds = parse_fold(settings.get("leave_out", ""))
        allowed = fold_of(folds) == fold if folds else np.ones(len(masked), dtype=bool)
        bare_share = settings.get("bare_share", 1)
        log(f"asking {path} about {int(allowed.sum())} pictures")
        network, shapes = load_with_shapes(path, TEACHER)
        if shapes != ((INPUT_SIZE, INPUT_SIZE, 1), (len(LABELS),)):
            raise InputError(f"{path} is no network of faces and expressions; {TEACHER}")
        if bare_share < 1:
            predictions["masked"].append((_scores(network, masked, allowed), allowed))
        if bare_share > 0:
            predictions["bare"].append((_scores(network, bare.take(first), allowed[first])[inverse], allowed))
    return SoftLabels(
        _mean(predictions["masked"] + predictions["bare"], len(masked)), _mean(predictions["bare"], len(masked))
    )


def _scores(network: keras.Model, pictures: PictureSet, chosen: npt.NDArray[np.bool_]) -> FloatArray:
    """(n, 7) float32, mean of each face and its mirror image; zeros where it is not chosen."""
    scores = np.zeros((len(pictures), len(LABELS)), dtype=np.float32)
    if chosen.any():
        scores[chosen] = predict_views(network, pictures.images[chosen]).mean(axis=0).reshape(-1, len(LABELS))
    return scores


def _mean(predictions: list[tuple[FloatArray, npt.NDArray[np.bool_]]], count: int) -> FloatArray:
    """(count, 7): the mean over the teachers that score a picture."""
    total, counts = np.zeros((count, len(LABELS)), dtype=np.float32), np.zeros(count, dtype=np.float32)
    for scores, allowed in predictions:
        total += scores
        counts += allowed
    return np.asarray(total / np.maximum(counts, 1)[:, None], dtype=np.float32)
