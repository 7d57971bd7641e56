"""Makes the clip behind ``maskfer-edge run --source demo``: ``python -m maskfer_trainer.demo_clip OUT.mp4``.

It shows NASA's public-domain portrait of Eileen Collins, which scikit-image ships as
``data.astronaut()``, in masks of this project's own drawing, before a camera that moves a little.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np

from maskfer_edge.contract import UInt8Array
from maskfer_edge.dependencies import cv2, extra
from maskfer_edge.files import atomic_file
from maskfer_trainer.faces import FaceFinder
from maskfer_trainer.masks import KINDS
from maskfer_trainer.rendering import Wearing, put_on

SIZE_WH = (480, 360)
FPS = 15
FRAMES_PER_MASK = 54
ENLARGED = 2
# Those that the Haar cascade sees as well, which is blind to dark masks.
WORN = (("surgical", Wearing(top=0.55)), ("kn95", Wearing((40.0, 0.03, 0.7), top=0.55)))


def portrait() -> UInt8Array:
    """The portrait, enlarged: (1024, 1024, 3) uint8, B,G,R."""
    with extra("dev"):
        from skimage.data import astronaut
    picture = cv2.cvtColor(astronaut(), cv2.COLOR_RGB2BGR)
    enlarged = cv2.resize(picture, None, fx=ENLARGED, fy=ENLARGED, interpolation=cv2.INTER_CUBIC)
    return np.asarray(enlarged, dtype=np.uint8)


def make_frames() -> list[UInt8Array]:
    """All frames of the clip: (360, 480, 3) uint8, B,G,R."""
    bare = portrait()
    face = FaceFinder("detected")(np.asarray(cv2.cvtColor(bare, cv2.COLOR_BGR2GRAY), dtype=np.uint8))[0]
    landmarks = face.landmarks
    centre_x, centre_y = landmarks.mean(axis=0)
    frames: list[UInt8Array] = []
    for kind, wearing in WORN:
        masked = put_on(bare, landmarks, KINDS[kind], wearing).image
        for _ in range(FRAMES_PER_MASK):
            turn = 2 * math.pi * len(frames) / (FRAMES_PER_MASK * len(WORN))
            zoom = 0.80 + 0.08 * math.sin(2 * turn)
            matrix = cv2.getRotationMatrix2D((float(centre_x), float(centre_y)), 3 * math.sin(3 * turn), zoom)
            matrix[0, 2] += SIZE_WH[0] / 2 - centre_x + 60 + 30 * math.sin(turn)
            matrix[1, 2] += SIZE_WH[1] / 2 - centre_y + 10 * math.cos(2 * turn)
            frame = cv2.warpAffine(masked, matrix, SIZE_WH, flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT_101)
            frames.append(np.asarray(frame, dtype=np.uint8))
    return frames


def main() -> None:
    """Write the clip to the path given on the command line, replacing what is there."""
    with atomic_file(Path(sys.argv[1]), overwrite=True) as partial:
        writer = cv2.VideoWriter(str(partial), cv2.VideoWriter.fourcc(*"mp4v"), FPS, SIZE_WH)
        for frame in make_frames():
            writer.write(frame)
        writer.release()


if __name__ == "__main__":
    main()
