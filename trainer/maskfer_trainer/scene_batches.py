"""Scenes in batches to train the face detector on, each scene changed anew whenever it is shown.

Without Keras: processes that make batches ahead import it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from maskfer_edge.contract import FloatArray, UInt8Array
from maskfer_edge.decoding import read_grey
from maskfer_edge.dependencies import cv2
from maskfer_edge.detector import Box
from maskfer_edge.errors import InputError
from maskfer_edge.learned_detector import PADDING
from maskfer_edge.scenes import GroundTruth, read_ground_truth
from maskfer_trainer.detector_targets import MIN_FACE_PX, SIZE_WH, targets
from maskfer_trainer.distractors import draw_distractors
from maskfer_trainer.workers import run_in_order

# Each time a scene is shown, it is turned, enlarged and moved anew, at most by so much (the move: of its sides).
MAX_ROTATION_DEGREES, ENLARGED, MAX_SHIFT = 8.0, (0.75, 1.35), 0.15
# A face of which less than this share lies within the scene is ignored.
MIN_VISIBLE_SHARE = 0.6
# Of scenes that get letters, emblems and the like, and how many at most.
DISTRACTOR_SHARE, MAX_DISTRACTORS = 0.35, 3
# Of scenes that are made dark, and what light is left; of all others. Noise is the sensor's, in grey levels.
DARK_SHARE, DARK_GAIN, GAIN = 0.4, (0.2, 0.7), (0.75, 1.25)
DARK_NOISE, NOISE = 6.0, 3.0
# A scene's mean grey that darkness leaves: below it faces drown in the noise.
MIN_MEAN_LEVEL = 16.0
# Of dark scenes whose middle tones lose more light than the bright ones, as those by spotlights do.
SPOTLIT_SHARE, MAX_GAMMA = 0.5, 1.8
# Of all others, those with little contrast, and how little.
FLAT_SHARE, CONTRAST = 0.3, (0.4, 0.8)

Batch: TypeAlias = tuple[UInt8Array, FloatArray]
# Scenes' numbers, their ground truth, and what determines the changes.
BatchTask: TypeAlias = tuple[npt.NDArray[np.int64], list[GroundTruth], tuple[int, int, int]]


@dataclass(frozen=True)
class SceneSet:
    """Scenes in memory.

    Attributes:
        images: (n, 240, 320) uint8 grey.
        ground_truth: Faces and ignored boxes of each.
    """

    images: UInt8Array
    ground_truth: list[GroundTruth]

    def __len__(self) -> int:
        return len(self.ground_truth)


def read_scenes(scenes: Path, held_out: set[str]) -> tuple[SceneSet, SceneSet]:
    """The scenes that are trained on, and those held out by name. Raises InputError if a file is missing or damaged."""
    ground_truth = read_ground_truth(scenes)
    parts = []
    for validation in (False, True):
        names = [name for name in ground_truth if (name in held_out) is validation]
        images = np.empty((len(names), *SIZE_WH[::-1]), np.uint8)
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            for place, image in enumerate(pool.map(read_grey, [scenes / name for name in names])):
                if image.shape != images.shape[1:]:
                    raise InputError(
                        f"{scenes / names[place]} is not of {SIZE_WH[0]}x{SIZE_WH[1]} pixels; "
                        "make the scenes anew with: trainer build-scenes"
                    )
                images[place] = image
        parts.append(SceneSet(images, [ground_truth[name] for name in names]))
    return parts[0], parts[1]


@contextmanager
def batches_of(
    scenes: SceneSet, size: int, seed: int, epochs: range, folder: Path, workers: int = 0
) -> Iterator[Iterator[Batch]]:
    """Batches of several epochs, one epoch after the other, made ahead by other processes.

    Each is determined by seed, epoch and its number in the epoch alone. Batches are whole: the few scenes that fill
    none are others each epoch.

    Args:
        scenes: To show.
        size: Scenes a batch.
        seed: Of order and changes.
        epochs: Their numbers.
        folder: Where the pictures may lie for the processes to share, as long as they work.
        workers: Processes; 0: one less than there are cores to use; 1: none besides this one.

    Yields:
        What gives the batches, each as `make_batch` returns it. It raises InputError if processes are ended again and
        again.
    """
    workers = workers or max(1, len(os.sched_getaffinity(0)) - 1)
    tasks = _tasks(scenes, size, seed, epochs)
    if workers == 1 or not epochs:
        yield (make_batch(scenes.images[chosen], ground_truth, key) for chosen, ground_truth, key in tasks)
        return
    # all processes see one copy of the pictures; `run_folder.open_run` removes what a kill leaves of it
    shared = folder / ".scenes.partial.npy"
    try:
        np.save(shared, scenes.images)
        with closing(run_in_order(_MakeBatches(shared), ([task] for task in tasks), workers)) as made:
            yield (batch for (batch,) in made)
    finally:
        shared.unlink(missing_ok=True)


def _tasks(scenes: SceneSet, size: int, seed: int, epochs: range) -> Iterator[BatchTask]:
    for epoch in epochs:
        order = np.random.default_rng((seed, epoch)).permutation(len(scenes))
        for index in range(len(scenes) // size):
            chosen = order[index * size : (index + 1) * size]
            yield chosen, [scenes.ground_truth[number] for number in chosen], (seed, epoch, index)


@dataclass(frozen=True)
class _MakeBatches:
    """Makes batches out of pictures in a file."""

    images: Path

    def __call__(self, tasks: list[BatchTask]) -> list[Batch]:
        cv2.setNumThreads(1)
        images = np.load(self.images, mmap_mode="r")
        return [make_batch(images[chosen], ground_truth, key) for chosen, ground_truth, key in tasks]


def make_batch(images: UInt8Array, ground_truth: list[GroundTruth], key: tuple[int, int, int]) -> Batch:
    """Change scenes at random.

    Args:
        images: (n, 240, 320) uint8 grey.
        ground_truth: Faces and ignored boxes of each.
        key: Seeds the changes.

    Returns:
        (n, 240, 320, 1) uint8 pictures, and their (n, 30, 40, 7) targets.
    """
    random = np.random.default_rng(key)
    images_out = np.empty_like(images)
    targets_out = []
    for place, (image, (faces, ignored)) in enumerate(zip(images, ground_truth, strict=True)):
        warped, visible, still_ignored = random_affine(image, faces, ignored, random)
        if random.random() < DISTRACTOR_SHARE:
            draw_distractors(warped, visible + still_ignored, int(random.integers(1, MAX_DISTRACTORS + 1)), random)
        images_out[place] = random_lighting(warped, random)
        targets_out.append(targets(visible, still_ignored))
    return images_out[..., None], np.stack(targets_out)


def random_affine(
    image: UInt8Array, faces: list[Box], ignored: list[Box], random: np.random.Generator
) -> tuple[UInt8Array, list[Box], list[Box]]:
    """A scene mirrored, turned, enlarged and moved at random; what comes in from beyond its edge is grey.

    Args:
        image: (240, 320) uint8 grey.
        faces: Boxes (left, top, width, height) of its faces.
        ignored: Boxes in which nothing counts.
        random: Source of randomness.

    Returns:
        The picture, the boxes of the faces that are still to be found, and those to be ignored.
    """
    width, height = SIZE_WH
    scale = float(np.exp(random.uniform(*np.log(ENLARGED))))
    matrix = cv2.getRotationMatrix2D(
        (width / 2, height / 2), float(random.uniform(-1, 1)) * MAX_ROTATION_DEGREES, scale
    )
    matrix[:, 2] += random.uniform(-1, 1, 2) * MAX_SHIFT * SIZE_WH
    if random.random() < 0.5:
        matrix[0] *= -1
        matrix[0, 2] += width - 1
    warped = cv2.warpAffine(image, matrix, SIZE_WH, flags=cv2.INTER_LINEAR, borderValue=PADDING)
    # plain numbers: arrays of two take ten times as long
    (xx, xy, x_move), (yx, yy, y_move) = matrix.tolist()
    visible: list[Box] = []
    still_ignored: list[Box] = []
    for boxes, kept in ((faces, visible), (ignored, still_ignored)):
        for x, y, w, h in boxes:
            # the matrix counts from the middle of the first pixel, boxes from its edge
            old_x, old_y = x + w / 2 - 0.5, y + h / 2 - 0.5
            centre_x, centre_y = xx * old_x + xy * old_y + x_move + 0.5, yx * old_x + yy * old_y + y_move + 0.5
            half_w, half_h = w * scale / 2, h * scale / 2
            left, end = max(0.0, centre_x - half_w), min(float(width), centre_x + half_w)
            top, bottom = max(0.0, centre_y - half_h), min(float(height), centre_y + half_h)
            if end - left < 1 or bottom - top < 1:
                continue
            whole = (end - left) * (bottom - top) >= MIN_VISIBLE_SHARE * 4 * half_w * half_h
            large = max(w, h) * scale >= MIN_FACE_PX
            box = (round(left), round(top), max(1, round(end - left)), max(1, round(bottom - top)))
            (kept if whole and large else still_ignored).append(box)
    return warped, visible, still_ignored


def random_lighting(image: UInt8Array, random: np.random.Generator) -> UInt8Array:
    """A scene, (240, 320) uint8 grey, in another light, new: darker or brighter, flatter, with a sensor's noise."""
    dark = random.random() < DARK_SHARE
    gain = float(np.exp(random.uniform(*np.log(DARK_GAIN))) if dark else random.uniform(*GAIN))
    levels = np.arange(256, dtype=np.float64)
    if dark and random.random() < SPOTLIT_SHARE:
        levels = 255 * (levels / 255) ** float(random.uniform(1, MAX_GAMMA))
        gain = min(1.0, 1.5 * gain)
    mean = float(levels[int(image[::8, ::8].mean())])
    if dark:
        gain = max(gain, min(1.0, MIN_MEAN_LEVEL / max(mean, 1.0)))
    levels *= gain
    level = mean * gain
    if not dark and random.random() < FLAT_SHARE:
        levels = (levels - level) * float(random.uniform(*CONTRAST)) + level
    levels += float(random.normal(0, min(12.0, level / 8)))
    seen = cv2.LUT(image, np.clip(np.rint(levels), 0, 255).astype(np.uint8))
    noise = _NOISE[int(random.integers(2))]
    top, left = (int(random.integers(have - want)) for have, want in zip(noise.shape, image.shape, strict=True))
    noise = noise[top : top + image.shape[0], left : left + image.shape[1]]
    sigma = float(random.uniform(0, DARK_NOISE if dark else NOISE))
    return np.asarray(cv2.addWeighted(seen, 1, noise, sigma, 0, dtype=cv2.CV_8U), dtype=np.uint8)


def _noise() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Of standard deviation 1, larger than a scene: white, and coarser, as a camera's own denoising leaves it."""
    # parts of one field: drawing it anew takes as long as all the rest
    white = np.random.default_rng(0).standard_normal((2 * SIZE_WH[1], 2 * SIZE_WH[0]), dtype=np.float32)
    coarse = cv2.GaussianBlur(white, (0, 0), 0.8)
    return white, np.asarray(coarse / coarse.std(), dtype=np.float32)


_NOISE = _noise()
