"""Batches of faces for training, and the validation part that is cut from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from maskfer_edge.contract import LABELS, FloatArray
from maskfer_edge.dataset import PictureSet
from maskfer_trainer.augment import augment, cut_out, mix_up
from maskfer_trainer.draw import drawn_share
from maskfer_trainer.settings import FitSettings
from maskfer_trainer.teachers import SoftLabels


class FaceBatches:
    """Batches of faces, in an order and with changes that depend on seed and epoch alone.

    Each face comes once an epoch, in one of its masks drawn anew, or without one. Batches are whole: the
    few faces that fill none are others each epoch.
    """

    def __init__(
        self,
        masked: PictureSet,
        bare: PictureSet | None,
        faces: npt.NDArray[np.int64],
        settings: FitSettings,
        soft_labels: SoftLabels | None = None,
    ) -> None:
        """Take the training part.

        Args:
            masked: All masked pictures.
            bare: The bare picture of each, or None if none are to be shown.
            faces: (n,) which face each picture shows, see `face_ids`.
            settings: How to train.
            soft_labels: The teachers' scores of each, or None.
        """
        self.masked, self.bare, self.settings = masked, bare, settings
        hard = _smooth_labels(np.eye(len(LABELS), dtype=np.float32)[masked.labels], settings.label_smoothing)
        self.targets = self.bare_targets = hard
        if soft_labels is not None:
            self.targets = _distillation_targets(hard, soft_labels.masked, settings.teacher_share)
            self.bare_targets = _distillation_targets(hard, soft_labels.bare, settings.teacher_share)
        self._pictures, self._first, self._counts = group_by_face(faces)
        self.weights = class_weights(masked.labels[self._pictures[self._first]], settings.balance)[masked.labels]
        self.faces = len(self._first)
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        """Draw the order of an epoch, counted from 0."""
        self.epoch = epoch
        random = np.random.default_rng([self.settings.seed, self.epoch])
        drawn = self._pictures[self._first + (random.random(self.faces) * self._counts).astype(np.int64)]
        self.order = drawn[random.permutation(self.faces)]
        self.is_bare = random.random(self.faces) < (self.settings.bare_share if self.bare else 0)

    def __len__(self) -> int:
        return max(1, self.faces // self.settings.batch_size)

    def __getitem__(self, index: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Faces (n, 48, 48, 1), 0 to 255, targets (n, 7) and weights (n,) of one batch."""
        settings = self.settings
        batch = slice(index * settings.batch_size, (index + 1) * settings.batch_size)
        chosen = self.order[batch]
        images, targets, weights = self.masked.images[chosen], self.targets[chosen], self.weights[chosen]
        if self.bare is not None:
            is_bare = self.is_bare[batch]
            images = np.where(is_bare[:, None, None], self.bare.images[chosen], images)
            targets = np.where(is_bare[:, None], self.bare_targets[chosen], targets)
        if settings.arch == "paper":
            return images[..., None].astype(np.float32), targets, weights
        random = np.random.default_rng([settings.seed, self.epoch, index])
        images = cut_out(augment(images, random, settings.augmentation), random, settings.cutout)
        faces = images[..., None].astype(np.float32)
        return mix_up(faces, targets, weights, random, settings.mixup) if settings.mixup else (faces, targets, weights)


def face_ids(records: Sequence[dict[str, Any]]) -> npt.NDArray[np.int64]:
    """Which face each picture shows: (n,) int64; pictures of one face have one number.

    Args:
        records: Of the pictures, as `dataset.split_records` gives them.
    """
    keys = [f"{record['source']} {record['box']}" for record in records]
    return np.unique(keys, return_inverse=True)[1].astype(np.int64)


def group_by_face(
    faces: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The pictures, (n,), ordered such that those of one face stand together; where each face's begin, and how many.

    Args:
        faces: (n,) which face each picture shows, as `face_ids` gives it.
    """
    order = np.argsort(faces, kind="stable")
    _, first, counts = np.unique(faces[order], return_index=True, return_counts=True)
    return order, first, counts


def validation_part(pixels: Sequence[str], share: float) -> npt.NDArray[np.bool_]:
    """Which training pictures are kept for validation: (n,) bool.

    Copies of a picture stand on one side. The part is the same for every seed, so that networks of
    several seeds, a network and its teacher, or a network and the one it starts from, never saw
    what any of them is validated on.

    Args:
        pixels: SHA-256 of each picture's bare pixels.
        share: Of the pictures.
    """
    return np.array([drawn_share("validation", 0, digest) for digest in pixels]) < share


def fold_of(pixels: Sequence[str], folds: int) -> npt.NDArray[np.int64]:
    """Which of so many folds, from 1, each training picture is in: (n,) int64, by `pixels` as of `validation_part`."""
    return np.array([int(drawn_share("part", 0, digest) * folds) + 1 for digest in pixels], dtype=np.int64)


def _smooth_labels(targets: FloatArray, share: float) -> FloatArray:
    return np.asarray((1 - share) * targets + share / len(LABELS), dtype=np.float32)


def _distillation_targets(hard: FloatArray, soft: FloatArray, share: float) -> FloatArray:
    """Targets of which the soft labels make up `share`, where there are any."""
    shares = np.where(soft.any(axis=1, keepdims=True), np.float32(share), np.float32(0))
    return np.asarray((1 - shares) * hard + shares * soft, dtype=np.float32)


def class_weights(labels: npt.NDArray[np.int64], power: float) -> FloatArray:
    """(7,) float32 in proportion to n^-power, such that the mean over all faces is 1."""
    counts = np.bincount(labels, minlength=len(LABELS))
    weights = np.maximum(counts, 1.0) ** -power
    return np.asarray(weights * counts.sum() / (weights * counts).sum(), dtype=np.float32)
