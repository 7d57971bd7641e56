"""Masked pictures a second on one core, PNG encoding included, by picture size.

Published for MaskTheFace on one core: 42 a second at 48x48, 5 at 512x512 (its own detector included).
"""

import time

import cv2

from maskfer_trainer.demo_clip import face_landmarks, portrait
from maskfer_trainer.landmarks import LandmarkPredictor
from maskfer_trainer.masks import KINDS, draw_mask
from maskfer_trainer.placement import Wearing, put_on

RIVAL = {48: 42, 512: 5}


def main():
    cv2.setNumThreads(1)
    whole = portrait()
    x0, y0 = face_landmarks(whole).min(axis=0).astype(int)
    x1, y1 = face_landmarks(whole).max(axis=0).astype(int)
    margin = (x1 - x0) // 6
    face = cv2.cvtColor(whole[y0 - 2 * margin : y1 + margin, x0 - margin : x1 + margin], cv2.COLOR_BGR2GRAY)
    predictor = LandmarkPredictor()
    templates = [draw_mask(kind) for kind in KINDS]
    for side, rival in RIVAL.items():
        picture = cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA)
        started, count = time.perf_counter(), 0
        while time.perf_counter() - started < 3:
            masked = put_on(picture, predictor(picture), templates[count % len(templates)], Wearing())
            cv2.imencode(".png", masked)
            count += 1
        rate = count / (time.perf_counter() - started)
        print(
            f"{side}x{side}: {rate:.0f} masked pictures a second (MaskTheFace, published: {rival}; {rate / rival:.0f}x)"
        )


if __name__ == "__main__":
    main()
