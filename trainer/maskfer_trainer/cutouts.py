"""What training scenes are made of: faces of portraits, photographs and crops, bare and masked (own)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from maskfer_edge.contract import UInt8Array, preprocess
from maskfer_edge.dataset import manifest
from maskfer_edge.decoding import read_grey
from maskfer_edge.dependencies import cv2
from maskfer_edge.detector import Box, intersection
from maskfer_edge.errors import InputError
from maskfer_trainer.detector_evaluation import Photo
from maskfer_trainer.detector_targets import SIZE_WH
from maskfer_trainer.draw import drawn_number, drawn_share
from maskfer_trainer.landmarks import LandmarkPredictor
from maskfer_trainer.masks import KINDS
from maskfer_trainer.rendering import put_on
from maskfer_trainer.variety import draw_wearing

MASKED, BARE = "with_mask", "without_mask"
PORTRAIT, CROP, PHOTOGRAPH = "portrait", "crop", "photograph"
WORN = ("properly", "properly", "properly", "under-nose", "chin")
# Largest side of pasted faces in pixels of the scene.
MAX_FACE_PX = 210
# Masks that a portrait is shown in, each in turn.
MASKS = 3
# How far from a face's middle a cutout's soft edge ends at most, in its longer sides: see `scenes.GROW`.
REACH = 1.25
# Shorter or narrower than this, a photograph's face is not cut out; nor with another within this share of its sides.
MIN_CUT_PX, MIN_CUT_ASPECT, GAP = 28.0, 0.45, 0.12
# Faces of a data set that are cut out at most, and masked pictures of each: more would fill the memory.
MAX_CROPS, MASKED_CROPS = 9000, 2
# The face's box in a crop framed as FER2013's are, as shares of its side. Measured: the landmarks of frontal faces lie
# in it as they do in the portraits' boxes.
CROP_BOX_XYXY = (0.065, -0.04, 0.92, 0.975)
# Of scenes on which nothing is trained: the network's epoch and threshold are chosen on them.
VALIDATION_SHARE = 0.05


@dataclass(frozen=True)
class Cutout:
    """A face to paste.

    Attributes:
        image: (h, w) uint8 grey.
        box_xyxy: The face's, in pixels of it.
        label: `MASKED` or `BARE`.
        source: `PORTRAIT`, `CROP`, which shows nothing beyond the face, or `PHOTOGRAPH`.
        held_out: Whether it is for validation scenes only.
    """

    image: UInt8Array
    box_xyxy: tuple[float, float, float, float]
    label: str
    source: str = PORTRAIT
    held_out: bool = False

    @property
    def side(self) -> float:
        """The face's longer side in pixels."""
        x0, y0, x1, y1 = self.box_xyxy
        return max(x1 - x0, y1 - y0)


def held_out(kind: str, name: str) -> bool:
    """Whether a scene, portrait, crop or photograph is for validation; the same for every seed."""
    return drawn_share(f"validation{kind}", 0, name) < VALIDATION_SHARE


@dataclass(frozen=True)
class CutOutPortraits:
    """Cuts faces out of portraits. Can be pickled to worker processes."""

    seed: int

    def __call__(self, photos: list[Photo]) -> list[Cutout]:
        """See `cut_out_portrait`."""
        cv2.setNumThreads(1)
        return [cutout for photo in photos for cutout in cut_out_portrait(photo, self.seed)]


def cut_out_portrait(photo: Photo, seed: int) -> list[Cutout]:
    """A portrait bare and, where its landmarks are plausible, in several masks."""
    grey = read_grey(photo.path)
    if not len(photo.boxes_xyxy):
        return []
    x0, y0, x1, y1 = (float(side) for side in photo.boxes_xyxy[0])
    box_xyxy, apart = (x0, y0, x1, y1), held_out(PORTRAIT, photo.path.name)
    # the parts that distractors shuffle are not of the face alone
    cutouts = [Cutout(*_around_face(grey, box_xyxy, SIZE_WH[0]), BARE, PORTRAIT, apart)]
    with suppress(InputError):  # a face too far aside for any mask
        landmarks = _predictor()(grey, (x0, y0, x1 - x0, y1 - y0))
        for number in range(MASKS):
            kind, wearing = draw_wearing(tuple(KINDS.values()), WORN, seed, f"{photo.path.name}~{number}", plain=False)
            with suppress(InputError):  # or for this one
                masked = put_on(grey, landmarks, kind, wearing).image
                cutouts.append(Cutout(*_around_face(masked, box_xyxy), MASKED, PORTRAIT, apart))
    return cutouts


def cut_out_photographs(photos: Iterable[tuple[UInt8Array, Photo]]) -> list[Cutout]:
    """The larger faces of photographs, masked and bare as they are, but those next to others."""
    cutouts = []
    for grey, photo in photos:
        apart = held_out(PHOTOGRAPH, photo.path.name)
        boxes = [(x0, y0, x1 - x0, y1 - y0) for x0, y0, x1, y1 in photo.boxes_xyxy.tolist()]
        for box, masked in zip(boxes, photo.masked, strict=True):
            x, y, w, h = box
            around = x - GAP * w, y - GAP * h, w + 2 * GAP * w, h + 2 * GAP * h
            alone = not any(intersection(around, other) for other in boxes if other is not box)
            if alone and max(w, h) >= MIN_CUT_PX and min(w, h) >= MIN_CUT_ASPECT * max(w, h):
                label = MASKED if masked else BARE
                cutouts.append(Cutout(*_around_face(grey, (x, y, x + w, y + h)), label, PHOTOGRAPH, apart))
    return cutouts


def cut_out_crops(dataset: Path, seed: int) -> list[Cutout]:
    """Training faces of a data set of ``trainer build-dataset``, each bare and in some of its masks.

    Raises:
        InputError: If the data set or one of its pictures cannot be read, or has no training faces or no bare ones.
    """
    # a face's hash of pixels and place in its picture; with them the bare picture and the masked ones
    faces: dict[tuple[str, Box], tuple[str, list[str]]] = {}
    for record in manifest(dataset):
        if record["split"] == "train":
            if not {"bare", "picture", "box", "pixels_sha256"} <= record.keys():
                raise InputError(f"{dataset} holds no bare pictures; build it again with them (--keep-bare)")
            x, y, w, h = record["box"]
            _, masked = faces.setdefault((record["pixels_sha256"], (x, y, w, h)), (record["bare"], []))
            masked.append(record["picture"])
    if not faces:
        raise InputError(f"{dataset} has no training faces; name another data set, or none")
    chosen = sorted(faces, key=lambda face: drawn_number("crop", seed, str(face)))[:MAX_CROPS]
    cutouts = []
    for pixels, box in chosen:
        bare, masked = faces[pixels, box]
        some = sorted(masked, key=lambda picture: drawn_number("crop", seed, picture))[:MASKED_CROPS]
        for name, label in ((bare, BARE), *((picture, MASKED) for picture in some)):
            side = min(MAX_FACE_PX, max(box[2:]))
            image = preprocess(read_grey(dataset / name), box, size=side)
            x0, y0, x1, y1 = (side * share for share in CROP_BOX_XYXY)
            cutouts.append(Cutout(image, (x0, y0, x1, y1), label, CROP, held_out(CROP, pixels)))
    return cutouts


def _around_face(
    image: UInt8Array, box_xyxy: tuple[float, float, float, float], least: int = 0
) -> tuple[UInt8Array, tuple[float, float, float, float]]:
    """What scenes can show of a picture, and the face's box in it: of thousands, whole ones would fill the memory.

    At least `least` pixels about the face's middle are kept.
    """
    x0, y0, x1, y1 = box_xyxy
    while max(x1 - x0, y1 - y0) > 2 * MAX_FACE_PX:  # then scenes would do it each time
        image = np.asarray(cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), dtype=np.uint8)
        x0, y0, x1, y1 = x0 / 2, y0 / 2, x1 / 2, y1 / 2
    reach = max(least, REACH * max(x1 - x0, y1 - y0))
    left, top = (max(0, math.floor((start + end) / 2 - reach)) for start, end in ((x0, x1), (y0, y1)))
    right, bottom = (math.ceil((start + end) / 2 + reach) for start, end in ((x0, x1), (y0, y1)))
    return image[top:bottom, left:right].copy(), (x0 - left, y0 - top, x1 - left, y1 - top)


@cache
def _predictor() -> LandmarkPredictor:
    """Of 100 MB, read once a process."""
    return LandmarkPredictor()
