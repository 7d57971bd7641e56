"""A picture of a data set at a glance: bare and masked faces side by side, a row a class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from maskfer_edge.contract import LABELS
from maskfer_edge.dataset import CLASS_FOLDERS

TILE_PX = 96
PAIRS_A_ROW = 7
NAME_PX = 110
GAP_PX = 6


def contact_sheet(dataset: Path, records: list[dict[str, Any]], seed: int) -> Image.Image:
    """Draw `PAIRS_A_ROW` random pairs of each class.

    Args:
        dataset: Folder that the records' paths start from.
        records: Of the manifest.
        seed: Of the choice of pictures.
    """
    random = np.random.default_rng(seed)
    width = NAME_PX + PAIRS_A_ROW * (2 * TILE_PX + GAP_PX)
    sheet = Image.new("RGB", (width, len(LABELS) * (TILE_PX + GAP_PX)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(18)
    for row, (label, folder) in enumerate(zip(LABELS, CLASS_FOLDERS, strict=True)):
        y = row * (TILE_PX + GAP_PX) + GAP_PX // 2
        draw.text((10, y + TILE_PX // 2), label, fill="black", font=font, anchor="lm")
        of_class = [record for record in records if record["class"] == folder]
        chosen = random.permutation(len(of_class))[:PAIRS_A_ROW]
        for column, index in enumerate(chosen):
            x = NAME_PX + column * (2 * TILE_PX + GAP_PX)
            for offset, key in enumerate(("bare", "picture")):
                with Image.open(dataset / of_class[int(index)][key]) as picture:
                    tile = picture.convert("RGB")
                    tile.thumbnail((TILE_PX, TILE_PX))
                    if max(tile.size) < TILE_PX:
                        factor = TILE_PX / max(tile.size)
                        tile = tile.resize(
                            (round(tile.width * factor), round(tile.height * factor)),
                            Image.Resampling.BICUBIC,
                        )
                    sheet.paste(tile, (x + offset * TILE_PX, y))
    return sheet
