"""Masked pictures a second on one core, reading and writing included, beside a plain loop as peers have it.

The plain loop asks dlib's frontal detector about each picture (enlarged twofold, as MaskTheFace does), finds
landmarks in its box, reads the mask's picture from disk, warps it by a homography and pastes it hard-edged.
"""

import tempfile
import time
from pathlib import Path

import cv2
import dlib
import numpy as np

from maskfer_trainer.demo_clip import portrait
from maskfer_trainer.faces import FaceFinder
from maskfer_trainer.landmarks import find_predictor
from maskfer_trainer.masks import CANVAS_ORIGIN, KINDS, draw_mask
from maskfer_trainer.picture import BuildSettings, PictureMasker
from maskfer_trainer.placement import CANONICAL_PIVOTS, find_pivots
from maskfer_trainer.source import Photograph

SECONDS = 4.0


def pictures(folder: Path, side: int) -> list[Path]:
    """Crops of one face, each with other light, as grey or coloured JPEG files."""
    whole = portrait()
    grey = cv2.cvtColor(whole, cv2.COLOR_BGR2GRAY)
    x, y, w, h = FaceFinder("detected")(grey)[0].box
    face = grey if side == 48 else whole
    crop = cv2.resize(face[max(y, 0) : y + h, max(x, 0) : x + w], (side, side), interpolation=cv2.INTER_AREA)
    paths = []
    for k in range(16):
        paths.append(folder / f"{side}-{k}.jpg")
        cv2.imwrite(str(paths[-1]), np.clip(crop * (0.7 + 0.03 * k), 0, 255).astype(np.uint8))
    return paths


def rate(work, paths: list[Path]) -> float:
    work(paths[0])
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < SECONDS:
        work(paths[count % len(paths)])
        count += 1
    return count / (time.perf_counter() - started)


def ours(folder: Path, variants: int):
    masker = PictureMasker(BuildSettings(variants=variants))

    def work(path: Path) -> None:
        _, files = masker(Photograph(path.name, "train", 0, path.stem), path.read_bytes())
        for name, data in files.items():
            (folder / name.replace("/", "-")).write_bytes(data)

    return work


def plain(folder: Path):
    detector, predictor = dlib.get_frontal_face_detector(), dlib.shape_predictor(str(find_predictor()))
    layers = draw_mask(KINDS["surgical"], 256)
    template = folder / "template.png"
    cv2.imwrite(str(template), np.dstack([np.full_like(layers.form[..., :3], 220), layers.form[..., :1]]))
    anchors = ((CANONICAL_PIVOTS + np.array(CANVAS_ORIGIN)) * 256).astype(np.float32)

    def work(path: Path) -> None:
        image = cv2.imread(str(path))
        for box in detector(image, 1):
            points = np.array([(p.x, p.y) for p in predictor(image, box).parts()], dtype=np.float32)
            mask = cv2.imread(str(template), cv2.IMREAD_UNCHANGED)
            matrix, _ = cv2.findHomography(anchors, find_pivots(points))
            warped = cv2.warpPerspective(mask, matrix, image.shape[1::-1])
            image[warped[..., 3] > 0] = warped[warped[..., 3] > 0][:, :3]
        cv2.imwrite(str(folder / f"out-{path.name}"), image)

    return work


def main():
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for side in (48, 224, 1024):
            paths = pictures(folder, side)
            one, four, rival = (
                rate(ours(folder, 1), paths),
                4 * rate(ours(folder, 4), paths),
                rate(plain(folder), paths),
            )
            print(
                f"{side}x{side}: {one:.0f} masked pictures a second, {four:.0f} with --variants 4; "
                f"the plain loop {rival:.0f} ({one / rival:.1f} times)"
            )


if __name__ == "__main__":
    main()
