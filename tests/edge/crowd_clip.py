"""A clip of one, three or eight masked faces that sway: python tests/edge/crowd_clip.py PORTRAITS FACES OUT.mp4

The portraits are masked by the project's own generator. Those are taken whose masked face the Haar cascade finds, so
that each face costs what a face costs; the clip is for time, not for recall.
"""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path

import cv2
import numpy as np

from maskfer_edge.decoding import read_picture
from maskfer_edge.detector import HaarDetector
from maskfer_trainer.landmarks import LandmarkPredictor
from maskfer_trainer.masks import KINDS
from maskfer_trainer.rendering import Wearing, put_on

SIZE_WH, FPS, FRAMES = (640, 480), 15, 150
# Cells of a grid, by number of faces: columns, rows.
GRIDS = {1: (1, 1), 3: (3, 1), 8: (4, 2)}
WORN = (("surgical", Wearing(top=0.55)), ("kn95", Wearing((40.0, 0.03, 0.7), top=0.55)))


def masked_portraits(folder: Path, wanted: int, side: int) -> list[np.ndarray]:
    """Portraits, (side, side, 3) uint8 B,G,R, in each of which the cascade finds a masked face."""
    predictor, detector = LandmarkPredictor(), HaarDetector()
    found = []
    for row in csv.DictReader((folder / "boxes.csv").read_text().splitlines()):
        image = read_picture(folder / row["image"])
        x0, y0, x1, y1 = (int(row[key]) for key in ("xmin", "ymin", "xmax", "ymax"))
        grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        x0, y0, x1, y1 = max(0, x0), max(0, y0), min(grey.shape[1], x1), min(grey.shape[0], y1)
        landmarks = predictor(np.ascontiguousarray(grey[y0:y1, x0:x1])) + np.float32([x0, y0])
        kind, wearing = WORN[len(found) % len(WORN)]
        masked = cv2.resize(
            put_on(image, landmarks, KINDS[kind], wearing).image, (side, side), interpolation=cv2.INTER_AREA
        )
        if len(detector(masked)) == 1:
            found.append(masked)
        if len(found) == wanted:
            return found
    raise SystemExit(f"{folder} holds too few portraits in which the cascade finds a masked face")


def main() -> None:
    """Write the clip."""
    folder, faces, out = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    columns, rows = GRIDS[faces]
    side = min(SIZE_WH[0] // columns, SIZE_WH[1] // rows, 320)
    canvas = np.full((SIZE_WH[1], SIZE_WH[0], 3), 127, np.uint8)
    for place, picture in enumerate(masked_portraits(folder, faces, side)):
        left = (SIZE_WH[0] - columns * side) // 2 + place % columns * side
        top = (SIZE_WH[1] - rows * side) // 2 + place // columns * side
        canvas[top : top + side, left : left + side] = picture
    writer = cv2.VideoWriter(out, cv2.VideoWriter.fourcc(*"mp4v"), FPS, SIZE_WH)
    for frame in range(FRAMES):
        turn = 2 * math.pi * frame / FRAMES
        shift = np.float32([[1, 0, 12 * math.sin(3 * turn)], [0, 1, 8 * math.cos(2 * turn)]])
        writer.write(cv2.warpAffine(canvas, shift, SIZE_WH, borderMode=cv2.BORDER_REPLICATE))
    writer.release()


if __name__ == "__main__":
    main()
