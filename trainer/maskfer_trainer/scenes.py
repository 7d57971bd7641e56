"""Scenes to train a face detector on: faces, half of them masked, on backgrounds, at many sizes and turns (own).

OUT/scenes/00000.jpg   grey, as the detector sees pictures
OUT/boxes.csv          image,label,xmin,ymin,xmax,ymax; label: with_mask, without_mask, ignore (too small to tell)
OUT/scenes.json        settings, counts, hash of the rest, and which scenes are for validation
"""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskfer_edge.contract import UInt8Array
from maskfer_edge.dataset import dataset_info
from maskfer_edge.decoding import read_grey
from maskfer_edge.dependencies import cv2
from maskfer_edge.detector import Box, intersection
from maskfer_edge.errors import InputError, OutputError
from maskfer_edge.files import atomic_folder, check_creatable, lock
from maskfer_edge.scenes import IGNORED
from maskfer_trainer.cutouts import (
    BARE,
    CROP,
    MASKED,
    MAX_FACE_PX,
    PHOTOGRAPH,
    PORTRAIT,
    Cutout,
    CutOutPortraits,
    cut_out_crops,
    cut_out_photographs,
    held_out,
)
from maskfer_trainer.detector_evaluation import Photo, read_photos, tuning_half
from maskfer_trainer.detector_targets import MIN_FACE_PX, SIZE_WH
from maskfer_trainer.draw import drawn_number
from maskfer_trainer.workers import run_in_order

# Turns of pasted faces: most people hold their heads up.
TURN_DEGREES, WIDE_TURN_DEGREES, WIDE_SHARE = 14.0, 45.0, 0.3
# Narrower than this share of its height, a face in a photograph is cut off by the edge.
MIN_ASPECT = 0.4
PHOTO_SHARE = 0.8
# Of the faces that a photograph has itself, this share is covered by another, within this turn of it.
SWAP_SHARE, SWAP_TURN_DEGREES = 0.5, 6.0
# Where pasted faces come from, of what there is. A portrait takes the place of what would be enlarged more than this.
SHARES, MAX_ENLARGED = {PORTRAIT: 0.45, CROP: 0.35, PHOTOGRAPH: 0.2}, 2.2
# How far a cutout reaches beyond the face, as a share of it: pasted, or over another face.
GROW, SWAP_GROW = {PORTRAIT: (1.05, 1.7), PHOTOGRAPH: (1.05, 1.4)}, (1.1, 1.3)
# A crop fades along this share of its side at each edge; its outline has this exponent, between an ellipse's and a
# rectangle's. So it must be that much larger than a face that it covers.
CROP_FADE, CROP_EXPONENT, CROP_SWAP_SIZE = 0.07, 3, 1.12
# A pasted face, or what is pasted that is none, hides no more than this of another face, and the other way round.
MAX_FACE_OVERLAP, MAX_HIDDEN_BY_DISTRACTOR = 0.15, 0.03
JPEG = [cv2.IMWRITE_JPEG_QUALITY, 92]
# Portraits that a process cuts out at a time.
FACES_PER_BATCH = 16
# Held in the temporary folder by the run that fills it.
LOCK = "build-scenes.lock"


@dataclass(frozen=True)
class SceneSettings:
    """What determines the scenes, besides the pictures.

    Attributes:
        count: How many.
        seed: Another seed gives others.
    """

    count: int = 6000
    seed: int = 0


@dataclass
class Scene:
    """A picture with faces.

    Attributes:
        image: (240, 320) uint8 grey.
        faces: Label and box (left, top, width, height) of each.
    """

    image: UInt8Array
    faces: list[tuple[str, Box]]


def build_scenes(
    portraits: Path,
    out: Path,
    settings: SceneSettings,
    photos: Path | None = None,
    crops: Path | None = None,
    workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    log: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Make scenes out of portraits and other faces; half of those pasted wear a mask, mostly of our own drawing.

    Args:
        portraits: Folder of pictures with one main face each, and their ``boxes.csv``.
        out: Folder to make, whole or not at all.
        settings: How many, and the seed.
        photos: Folder of photographs with ``boxes.csv``, as backgrounds with faces of their own, which are pasted
            elsewhere as well. Only the half named ``tuning`` is used (see `detector_evaluation.half`), so that the
            other half can judge.
        crops: Data set of ``trainer build-dataset`` whose training faces, bare and masked, are pasted as well.
        workers: Processes; 0: one a core.
        progress: Takes portraits and scenes done, and how many there will be.
        log: Takes messages for the terminal.

    Returns:
        What ``scenes.json`` says.

    Raises:
        InputError: If the pictures cannot be used.
        OutputError: If `out` is there already or cannot be written.
    """
    if out.exists():
        raise OutputError(f"{out} is already there; name another folder")
    check_creatable(out)
    faces = read_photos(portraits)
    made_of = [source.resolve().name for source in (portraits, photos) if source is not None]
    if crops is not None:
        made_of.append(str(dataset_info(crops)["name"]))
    backgrounds = [] if photos is None else tuning_half(read_photos(photos))
    if settings.count < 1 or not faces:
        raise InputError(f"{portraits} holds no portraits, or no scene is asked for")
    _remove_stale(out)
    cutouts: list[Cutout] = []
    if crops is not None:
        log(f"reading faces of {crops}")
        cutouts = cut_out_crops(crops, settings.seed)
    number_of_crops = sum(cutout.label == BARE for cutout in cutouts)
    log(f"finding landmarks on {len(faces)} portraits")
    batches = (faces[start : start + FACES_PER_BATCH] for start in range(0, len(faces), FACES_PER_BATCH))
    with (
        ExitStack() as stack,
        atomic_folder(out) as folder,
        closing(run_in_order(CutOutPortraits(settings.seed), batches, workers or len(os.sched_getaffinity(0)))) as cut,
    ):
        # held until the folder has its name: another run removes what nobody holds
        lock(stack.enter_context((folder.parent / LOCK).open("wb")), out)
        (folder / "scenes").mkdir()
        total = len(faces) + settings.count
        for batch, of_some in enumerate(cut, start=1):
            cutouts += of_some
            progress(min(batch * FACES_PER_BATCH, len(faces)), total)
        rows, counts, digest = [], {MASKED: 0, BARE: 0, IGNORED: 0}, hashlib.sha256()
        names = [f"scenes/{number:05}.jpg" for number in range(settings.count)]
        for_validation = [name for name in names if held_out("", name)]
        shown = [(read_grey(photo.path), photo) for photo in backgrounds]
        composers = _composers(cutouts + cut_out_photographs(shown), shown, settings.seed)
        for number, name in enumerate(names):
            scene = composers[held_out("", name)].compose(number)
            data = cv2.imencode(".jpg", scene.image, JPEG)[1].tobytes()
            (folder / name).write_bytes(data)  # cv2.imwrite says nothing of a full disk
            digest.update(data)
            for label, (x, y, w, h) in scene.faces:
                counts[label] += 1
                rows.append((name, label, x, y, x + w, y + h))
            progress(len(faces) + number + 1, total)
        sources = {"portraits": len(faces), "photos": len(backgrounds), "crops": number_of_crops}
        apart = composers[0] is not composers[1]
        boxes = _as_csv(rows)
        digest.update(boxes.encode())
        info = {
            "name": ", ".join(made_of),
            "sha256": digest.hexdigest(),
            **asdict(settings),
            "size_wh": SIZE_WH,
            **sources,
            "validation_apart": apart,
            "faces": counts,
            "validation": for_validation,
        }
        (folder / "boxes.csv").write_bytes(boxes.encode())
        (folder / "scenes.json").write_bytes((json.dumps(info, indent=2) + "\n").encode())
    return info


def _remove_stale(out: Path) -> None:
    """Remove what killed runs left of `out`: folders full of faces that no run holds any more."""
    for left in out.parent.glob(f".{glob.escape(out.name)}.*/{LOCK}"):
        with suppress(OutputError, OSError), left.open("rb+") as file:
            lock(file, left)
            shutil.rmtree(left.parent)


def _composers(cutouts: list[Cutout], photos: list[tuple[UInt8Array, Photo]], seed: int) -> tuple[_Composer, _Composer]:
    """What makes training scenes and validation scenes: one and the same, if there is too little to hold any back."""
    parts = [
        (
            [cutout for cutout in cutouts if cutout.held_out is apart],
            [(grey, photo) for grey, photo in photos if held_out(PHOTOGRAPH, photo.path.name) is apart],
        )
        for apart in (False, True)
    ]
    portraits = [[c for c in part if c.label == BARE and c.source == PORTRAIT] for part, _ in parts]
    if not (all(portraits) and all(bool(shown) is bool(photos) for _, shown in parts)):
        everything = _Composer(cutouts, photos, seed)
        return everything, everything
    return _Composer(*parts[0], seed), _Composer(*parts[1], seed)


def _as_csv(rows: Sequence[tuple[Any, ...]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("image", "label", "xmin", "ymin", "xmax", "ymax"))
    writer.writerows(rows)
    return text.getvalue()


class _Composer:
    """Makes scenes, each by its number alone."""

    def __init__(self, cutouts: list[Cutout], photos: list[tuple[UInt8Array, Photo]], seed: int) -> None:
        self.seed, self.photos = seed, photos
        self.cutouts = {
            (label, source): [c for c in cutouts if (c.label, c.source) == (label, source)]
            for label in (MASKED, BARE)
            for source in SHARES
        }

    def compose(self, number: int) -> Scene:
        random = np.random.default_rng(drawn_number("scene", self.seed, str(number)))
        scene = self._background(random)
        for place, (label, _) in enumerate(scene.faces):
            if label != IGNORED and random.random() < SWAP_SHARE:
                self._swap_face(scene, place, random)
        for _ in range(int(random.integers(0, 3))):
            self._paste_distractor(scene, random)
        for _ in range(int(random.choice((0, 1, 2, 3, 5, 8), p=(0.12, 0.33, 0.22, 0.15, 0.12, 0.06)))):
            self._paste_face(scene, random)
        scene.image = _as_photographed(scene.image, random)
        return scene

    def _background(self, random: np.random.Generator) -> Scene:
        if self.photos and random.random() < PHOTO_SHARE:
            return photo_part(*self.photos[int(random.integers(len(self.photos)))], random)
        return Scene(_drawn_background(random), [])

    def _any_cutout(self, side: float, random: np.random.Generator) -> Cutout:
        label = MASKED if random.random() < 0.5 and self.cutouts[MASKED, PORTRAIT] else BARE
        sources = [source for source in SHARES if self.cutouts[label, source]]
        shares = np.array([SHARES[source] for source in sources])
        source = sources[int(random.choice(len(sources), p=shares / shares.sum()))]
        cutout = self._one_of(label, source, random)
        if source != PORTRAIT and side > MAX_ENLARGED * cutout.side:
            cutout = self._one_of(label, PORTRAIT, random)
        return cutout

    def _one_of(self, label: str, source: str, random: np.random.Generator) -> Cutout:
        cutouts = self.cutouts[label, source]
        return cutouts[int(random.integers(len(cutouts)))]

    def _swap_face(self, scene: Scene, number: int, random: np.random.Generator) -> None:
        """Cover a photograph's face with another, which so gets hair, shoulders and neighbours that fit."""
        x, y, w, h = scene.faces[number][1]
        cutout, degrees = self._any_cutout(max(w, h), random), float(random.normal(0, SWAP_TURN_DEGREES))
        side = max(w, h) * (CROP_SWAP_SIZE if cutout.source == CROP else 1.0)
        placed = _place(cutout, degrees, side, random, (x + w / 2, y + h / 2))
        if all(
            _hidden(placed.box, box) <= MAX_FACE_OVERLAP
            for other, (_, box) in enumerate(scene.faces)
            if other != number
        ):
            _blend(scene.image, placed, random)
            scene.faces[number] = (cutout.label, placed.box)

    def _paste_face(self, scene: Scene, random: np.random.Generator) -> None:
        side = _face_side(random)
        cutout = self._any_cutout(side, random)
        wide = random.random() < WIDE_SHARE
        degrees = float(random.normal(0, TURN_DEGREES) if not wide else random.uniform(-1, 1) * WIDE_TURN_DEGREES)
        placed = _place(cutout, degrees, side, random)
        if all(_hidden(placed.box, box) <= MAX_FACE_OVERLAP for _, box in scene.faces):
            _blend(scene.image, placed, random)
            scene.faces.append((cutout.label, placed.box))

    def _paste_distractor(self, scene: Scene, random: np.random.Generator) -> None:
        """Something pasted just as faces are that is none: a portrait upside down, or its parts shuffled."""
        cutout = self._one_of(BARE, PORTRAIT, random)
        image = cutout.image[::-1] if random.random() < 0.4 else _shuffled(cutout.image, random)
        placed = _place(
            Cutout(image, cutout.box_xyxy, IGNORED), float(random.uniform(-40, 40)), _face_side(random), random
        )
        if all(_hidden(placed.box, box) <= MAX_HIDDEN_BY_DISTRACTOR for _, box in scene.faces):
            _blend(scene.image, placed, random)


@dataclass(frozen=True)
class _Placed:
    """A cutout warped to the scene: pixels, how much each covers (0 to 1), and the face's box."""

    pixels: npt.NDArray[np.float32]
    cover: npt.NDArray[np.float32]
    box: Box


def _hidden(a: Box, b: Box) -> float:
    """What two boxes share, as a share of the smaller one."""
    return intersection(a, b) / min(a[2] * a[3], b[2] * b[3])


def _face_side(random: np.random.Generator) -> float:
    return float(np.exp(random.uniform(math.log(MIN_FACE_PX), math.log(MAX_FACE_PX))))


def _place(
    cutout: Cutout,
    degrees: float,
    side: float,
    random: np.random.Generator,
    centre: tuple[float, float] | None = None,
) -> _Placed:
    """Warp a cutout so that its face has a side and a turn, about a centre or anywhere in the scene."""
    width, height = SIZE_WH
    x0, y0, x1, y1 = cutout.box_xyxy
    face_w, face_h = x1 - x0, y1 - y0
    scale = side / max(face_w, face_h)
    stretch = float(random.uniform(0.85, 1.12))
    half_w, half_h = face_w * scale * stretch / 2, face_h * scale / 2
    angle = math.radians(degrees)
    # the box of a turned ellipse
    box_w = math.hypot(half_w * math.cos(angle), half_h * math.sin(angle))
    box_h = math.hypot(half_w * math.sin(angle), half_h * math.cos(angle))
    # up to a fifth of a face may lie beyond the scene's edge
    centre_x, centre_y = centre or (
        float(random.uniform(0.6 * box, max(0.6 * box, end - 0.6 * box)))
        for box, end in ((box_w, width), (box_h, height))
    )
    cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
    middle = np.array([(x0 + x1) / 2, (y0 + y1) / 2])
    linear = np.array([[cos * stretch, -sin], [sin * stretch, cos]])
    matrix = np.column_stack([linear, np.array([centre_x, centre_y]) - linear @ middle])
    # shrinking aliases, so the picture is made small first
    shrunk, factor = cutout.image, 1.0
    while scale * factor < 0.5 and min(shrunk.shape) > 2:
        shrunk, factor = cv2.resize(shrunk, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), factor * 2
    small = matrix.copy()
    small[:, :2] *= factor
    flags = cv2.INTER_LINEAR if scale < 1 else cv2.INTER_CUBIC
    pixels = cv2.warpAffine(shrunk, small, SIZE_WH, flags=flags, borderMode=cv2.BORDER_REPLICATE).astype(np.float32)
    if cutout.source == CROP:
        cover = cv2.warpAffine(_fading(cutout.image.shape), matrix, SIZE_WH)
    else:
        inside = cv2.warpAffine(np.full(shrunk.shape, 255, np.uint8), small, SIZE_WH)
        grow = float(random.uniform(*(SWAP_GROW if centre else GROW[cutout.source])))
        soft = float(random.uniform(0.02, 0.12))
        cover = _cover((centre_x, centre_y), (half_w, half_h), degrees, grow, soft) * (inside / np.float32(255))
    left, top = max(0, round(centre_x - box_w)), max(0, round(centre_y - box_h))
    right, bottom = min(width, round(centre_x + box_w)), min(height, round(centre_y + box_h))
    return _Placed(pixels, cover, (left, top, max(1, right - left), max(1, bottom - top)))


def _cover(
    centre: tuple[float, float], half_wh: tuple[float, float], degrees: float, grow: float, soft: float
) -> npt.NDArray[np.float32]:
    """How much of a cutout is kept: an ellipse about the face, `grow` times as large, with an edge of `soft` of it."""
    cover = np.zeros((SIZE_WH[1], SIZE_WH[0]), np.float32)
    axes = (max(1, round(half_wh[0] * grow)), max(1, round(half_wh[1] * grow)))
    cv2.ellipse(cover, (round(centre[0]), round(centre[1])), axes, degrees, 0, 360, 1.0, cv2.FILLED)
    return np.asarray(cv2.GaussianBlur(cover, (0, 0), max(0.5, soft * max(half_wh))), dtype=np.float32)


@lru_cache(maxsize=16)
def _fading(shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """How much of a crop is kept: all in the middle, nothing at its edges and corners."""
    y, x = (np.abs(np.linspace(-1, 1, length)) ** CROP_EXPONENT for length in shape)
    from_middle = (y[:, None] + x) ** (1 / CROP_EXPONENT)
    share = np.clip((1 - from_middle) / (2 * CROP_FADE), 0, 1)
    return np.asarray(share * share * (3 - 2 * share), dtype=np.float32)


def _blend(image: UInt8Array, placed: _Placed, random: np.random.Generator) -> None:
    """Lay a cutout on a scene, in place, in light that is a mixture of its own and the scene's."""
    x, y, w, h = placed.box
    face, under = placed.pixels[y : y + h, x : x + w], image[y : y + h, x : x + w].astype(np.float32)
    share = float(random.uniform(0, 0.6))
    gain = ((1 - share) * (face.std() + 1) + share * (under.std() + 1)) / (face.std() + 1)
    level = (1 - share) * face.mean() + share * under.mean()
    lit = (placed.pixels - face.mean()) * np.clip(gain, 0.5, 1.5) + level + float(random.normal(0, 15))
    image[:] = np.clip(placed.cover * lit + (1 - placed.cover) * image, 0, 255).astype(np.uint8)


def photo_part(grey: UInt8Array, photo: Photo, random: np.random.Generator) -> Scene:
    """A part of a photograph, at a random scale, with its faces; beyond its edge it is grey, as in a letterbox."""
    width, height = SIZE_WH
    fit = min(width / grey.shape[1], height / grey.shape[0])
    scale = fit * float(np.exp(random.uniform(math.log(0.7), math.log(2.5))))
    mirrored = random.random() < 0.5
    size_wh = (max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale)))
    part = cv2.resize(grey, size_wh, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    left, top = (
        round(float(random.uniform(*sorted((0, have - want))))) for have, want in zip(size_wh, SIZE_WH, strict=True)
    )
    matrix = np.array([[1, 0, -left], [0, 1, -top]], dtype=np.float32)
    image = cv2.warpAffine(part, matrix, SIZE_WH, borderValue=127)
    faces = []
    for box, masked in zip(photo.boxes_xyxy * scale, photo.masked, strict=True):
        x0, x1 = np.clip((box[0] - left, box[2] - left), 0, width)
        y0, y1 = np.clip((box[1] - top, box[3] - top), 0, height)
        if x1 <= x0 or y1 <= y0:
            continue
        wide, high = x1 - x0, y1 - y0
        label = MASKED if masked else BARE
        # what is too small, or mostly cut off by the edge, is neither a face nor none
        if max(wide, high) < MIN_FACE_PX or min(wide, high) < MIN_ASPECT * max(wide, high):
            label = IGNORED
        at = round(width - x1 if mirrored else x0), round(y0)
        faces.append((label, (*at, max(1, round(wide)), max(1, round(high)))))
    return Scene(np.ascontiguousarray(image[:, ::-1] if mirrored else image), faces)


def _drawn_background(random: np.random.Generator) -> UInt8Array:
    """Clouds of noise at several scales, with shapes, bars and edges over them."""
    width, height = SIZE_WH
    image = np.full((height, width), float(random.uniform(30, 220)), np.float32)
    for cells in (3, 8, 24, 80):
        rough = random.normal(0, random.uniform(3, 40), (cells, cells)).astype(np.float32)
        image += cv2.resize(rough, SIZE_WH, interpolation=cv2.INTER_CUBIC)
    for _ in range(int(random.integers(0, 25))):
        shade = float(random.uniform(0, 255))
        ends = (random.uniform(0, 1, (2, 2)) * SIZE_WH).astype(int).tolist()
        kind = int(random.integers(4))
        if kind == 0:
            cv2.rectangle(image, ends[0], ends[1], shade, int(random.choice((-1, 1, 3))))
        elif kind == 1:
            axes = random.uniform(3, 70, 2).astype(int).tolist()
            cv2.ellipse(image, ends[0], axes, float(random.uniform(0, 180)), 0, 360, shade, -1)
        elif kind == 2:
            cv2.line(image, ends[0], ends[1], shade, int(random.integers(1, 9)))
        else:
            corners = (np.asarray(ends[0]) + random.normal(0, 40, (5, 2))).astype(np.int32)
            cv2.fillPoly(image, [corners], shade)
    return np.asarray(np.clip(image, 0, 255), dtype=np.uint8)


def _shuffled(image: UInt8Array, random: np.random.Generator) -> UInt8Array:
    """A picture's quarters or ninths in another order."""
    parts = int(random.choice((2, 3)))
    h, w = (side // parts for side in image.shape)
    tiles = [image[r * h : (r + 1) * h, c * w : (c + 1) * w] for r in range(parts) for c in range(parts)]
    order = random.permutation(len(tiles))
    rows = [np.hstack([tiles[order[r * parts + c]] for c in range(parts)]) for r in range(parts)]
    return np.asarray(np.vstack(rows), dtype=np.uint8)


def _as_photographed(image: UInt8Array, random: np.random.Generator) -> UInt8Array:
    """Contrast, brightness, a little blur and grain."""
    seen = (image.astype(np.float32) - 127) * float(random.uniform(0.6, 1.3)) + 127 + float(random.normal(0, 15))
    if random.random() < 0.3:
        seen = cv2.GaussianBlur(seen, (0, 0), float(random.uniform(0.4, 1.4)))
    seen = seen + random.normal(0, float(random.uniform(0, 7)), image.shape).astype(np.float32)
    return np.asarray(np.clip(seen, 0, 255), dtype=np.uint8)
