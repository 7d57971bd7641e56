"""Pictures to look at: a data set at a glance, and all kinds of masks on one face."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from maskfer_edge.contract import LABELS, UInt8Array
from maskfer_edge.dataset import CLASS_FOLDERS
from maskfer_edge.decoding import read_picture
from maskfer_edge.dependencies import cv2
from maskfer_edge.errors import InputError
from maskfer_trainer.draw import drawn_number
from maskfer_trainer.faces import FaceFinder
from maskfer_trainer.landmarks import Landmarks
from maskfer_trainer.masks import Kind
from maskfer_trainer.placement import canonical_landmarks
from maskfer_trainer.rendering import put_on
from maskfer_trainer.variety import draw_wearing

TILE_PX = 96
PAIRS_PER_ROW = 7
NAME_PX = 110
GAP_PX = 6


def contact_sheet(dataset: Path, records: Iterable[dict[str, Any]], seed: int) -> Image.Image:
    """Draw `PAIRS_PER_ROW` random pairs of each class.

    Args:
        dataset: Folder that the records' paths start from.
        records: Of the manifest; gone through twice, and few kept.
        seed: Of the choice of pictures.
    """
    random = np.random.default_rng(drawn_number("contact sheet", seed, ""))
    counts = Counter(record["class"] for record in records)
    chosen = {folder: random.permutation(counts[folder])[:PAIRS_PER_ROW].tolist() for folder in CLASS_FOLDERS}
    shown, passed = {}, Counter[str]()
    for record in records:
        folder = record["class"]
        if passed[folder] in chosen[folder]:
            shown[folder, passed[folder]] = record
        passed[folder] += 1
    width = NAME_PX + PAIRS_PER_ROW * (2 * TILE_PX + GAP_PX)
    sheet = Image.new("RGB", (width, len(LABELS) * (TILE_PX + GAP_PX)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(18)
    for row, (label, folder) in enumerate(zip(LABELS, CLASS_FOLDERS, strict=True)):
        y = row * (TILE_PX + GAP_PX) + GAP_PX // 2
        draw.text((10, y + TILE_PX // 2), label, fill="black", font=font, anchor="lm")
        for column, index in enumerate(chosen[folder]):
            record = shown[folder, index]
            x = NAME_PX + column * (2 * TILE_PX + GAP_PX)
            for offset, key in enumerate(("bare", "picture")):
                if key in record:
                    sheet.paste(_tile(dataset / record[key], record["box"]), (x + offset * TILE_PX, y))
    return sheet


def _tile(path: Path, box: tuple[int, int, int, int]) -> Image.Image:
    x, y, w, h = box
    # read as the builder reads it: Pillow shows 16 bits and transparent pixels otherwise
    tile = Image.fromarray(np.ascontiguousarray(read_picture(path)[..., ::-1])).crop((x, y, x + w, y + h))
    return ImageOps.contain(tile, (TILE_PX, TILE_PX), Image.Resampling.BICUBIC)


PREVIEW_PX = 320
DRAWN_UNIT_PX = 110
COLUMNS = 4


def preview_sheet(kinds: Sequence[Kind], photograph: Path | None) -> Image.Image:
    """Draw each kind on a face, worn properly, with its name.

    Args:
        kinds: See `masks.KINDS` and `templates.load_template`.
        photograph: Whose largest face wears them; None for a drawn one.

    Raises:
        InputError: If the photograph cannot be read or shows no face.
    """
    if photograph is None:
        image, landmarks, box = _drawn_face()
    else:
        image = read_picture(photograph)
        grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), dtype=np.uint8)
        try:
            face = FaceFinder("detected")(grey)[0]
        except InputError as error:
            raise InputError(f"{photograph}: {error}; give a photograph of one face from the front") from None
        landmarks, box = face.landmarks, face.box
    x, y, w, h = box
    rows = -(-len(kinds) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (PREVIEW_PX + GAP_PX), rows * (PREVIEW_PX + 30)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, kind in enumerate(kinds):
        _, wearing = draw_wearing([kind], ["properly"], 0, kind.name, plain=False)
        masked = put_on(image, landmarks, kind, replace(wearing, turn=0.0, shift=(0.0, 0.0))).image
        tile = Image.fromarray(np.ascontiguousarray(masked[..., ::-1])).crop((x, y, x + w, y + h))
        left, top = number % COLUMNS * (PREVIEW_PX + GAP_PX), number // COLUMNS * (PREVIEW_PX + 30)
        sheet.paste(tile.resize((PREVIEW_PX, PREVIEW_PX), Image.Resampling.LANCZOS), (left, top))
        draw.text((left + PREVIEW_PX // 2, top + PREVIEW_PX + 14), kind.name, "black", ImageFont.load_default(18), "mm")
    return sheet


def _drawn_face() -> tuple[UInt8Array, Landmarks, tuple[int, int, int, int]]:
    """A plain head, its landmarks and its frame, for those who have no photograph at hand."""
    side = round(3.2 * DRAWN_UNIT_PX)
    origin = np.array((1.6, 1.05))
    image = np.full((side, side, 3), (214, 208, 200), dtype=np.uint8)

    def at(x: float, y: float) -> tuple[int, int]:
        return round((x + origin[0]) * DRAWN_UNIT_PX), round((y + origin[1]) * DRAWN_UNIT_PX)

    def oval(centre: tuple[float, float], axes: tuple[float, float], colour: tuple[int, int, int]) -> None:
        cv2.ellipse(image, at(*centre), (round(axes[0] * DRAWN_UNIT_PX), round(axes[1] * DRAWN_UNIT_PX)), 0, 0, 360,
                    colour, -1, cv2.LINE_AA)  # fmt: skip

    oval((0, 2.3), (0.55, 0.9), (128, 156, 198))
    for side_ in (-1, 1):
        oval((1.06 * side_, 0.3), (0.14, 0.3), (128, 156, 198))
    oval((0, 0.3), (1.05, 1.33), (150, 180, 222))
    for side_ in (-1, 1):
        oval((0.45 * side_, 0.06), (0.2, 0.1), (250, 250, 250))
        oval((0.45 * side_, 0.06), (0.09, 0.09), (60, 70, 90))
        cv2.line(image, at(0.22 * side_, -0.2), at(0.7 * side_, -0.22), (70, 84, 110), 6, cv2.LINE_AA)
    image = np.asarray(cv2.GaussianBlur(image, (0, 0), 1.2), dtype=np.uint8)
    landmarks = ((canonical_landmarks() + origin) * DRAWN_UNIT_PX).astype(np.float32)
    return image, landmarks, (0, 0, side, side)
