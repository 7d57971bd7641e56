"""A user's own mask pictures: a PNG with alpha, and beside it a JSON file that names points on it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from maskfer_edge.decoding import decode_layers
from maskfer_edge.dependencies import cv2
from maskfer_edge.errors import InputError
from maskfer_edge.files import read_bytes
from maskfer_trainer.masks import JAW, KINDS, NOSE, Kind, Points
from maskfer_trainer.placement import CANONICAL_PIVOTS
from maskfer_trainer.reliefs import Field

MAX_SIDE_PX = 1e6

# Where on a frontal face (face units) each named point of a picture belongs; left is left in the picture.
ANCHORS: dict[str, tuple[float, float]] = {
    "nose": (0.0, float(CANONICAL_PIVOTS[0, 1])),
    "nose-tip": NOSE[-1],
    "chin": (0.0, float(CANONICAL_PIVOTS[2, 1])),
    "left-cheek": (-1.0, float(CANONICAL_PIVOTS[3, 1])),
    "right-cheek": (1.0, float(CANONICAL_PIVOTS[1, 1])),
    "left-jaw": (-JAW[5][0], JAW[5][1]),
    "right-jaw": JAW[5],
    "left-ear": (-JAW[0][0], JAW[0][1]),
    "right-ear": JAW[0],
}


def load_template(path: Path) -> Kind:
    """Make a kind of mask out of ``NAME.png`` and ``NAME.json``.

    The JSON file gives four or more of `ANCHORS` as pixels:
    ``{"nose": [300, 10], "left-cheek": [5, 120], "chin": [300, 400], "right-cheek": [595, 120]}``.

    Args:
        path: The PNG.

    Returns:
        A kind named as the file is.

    Raises:
        InputError: If the picture has no alpha channel or hides nothing, an anchor is unknown, there
            are under four, or they lie on a line.
    """
    data = read_bytes(path)
    picture = decode_layers(data)
    if picture is None:
        raise InputError(f"{path} is not a picture that can be read; a template is a PNG with transparency")
    if picture.ndim != 3 or picture.shape[2] != 4:
        raise InputError(f"{path} has no alpha channel; save it as PNG with transparency around the mask")
    if picture.dtype != np.uint8:
        raise InputError(f"{path} has {picture.dtype.itemsize * 8} bits a channel; save it with 8")
    if not (picture[..., 3] > 127).any():
        raise InputError(f"{path} is transparent throughout; nothing of it would be seen")
    if path.stem in KINDS:
        raise InputError(f"{path} is named as a kind that is drawn; name it otherwise than {', '.join(KINDS)}")
    anchors = _read_anchors(path.with_suffix(".json"))
    units = np.array([ANCHORS[name] for name in anchors], dtype=np.float32)
    pixels = np.array(list(anchors.values()), dtype=np.float32)
    matrix = _fit(units, pixels, path.with_suffix(".json"))
    return Kind(
        path.stem, f"own picture, {path.name}", (), (), (((0.0, 0.0, 1.0), (0.0, 0.0, 0.0)),), crumpled=0.3,
        picture=data, to_picture=tuple(float(v) for v in matrix.ravel()),
    )  # fmt: skip


def _fit(units: Points, pixels: Points, path: Path) -> Field:
    """(3, 3) homography from face units to pixels of the picture."""
    refusal = InputError(f"{path}: the points lie on a line; a mask cannot be fitted by them")
    spread = float(np.abs(pixels - pixels.mean(axis=0)).max())
    if spread < 1:
        raise refusal
    # of points about 0 and of about size 1
    near = (pixels - pixels.mean(axis=0)) / spread
    rows = [((x, y, 1, 0, 0, 0, -u * x, -u * y, -u), (0, 0, 0, x, y, 1, -v * x, -v * y, -v))
            for (x, y), (u, v) in zip(units, near, strict=True)]  # fmt: skip
    if np.linalg.svd(np.array(rows).reshape(-1, 9), compute_uv=False)[7] < 0.01:
        raise refusal
    matrix, _ = cv2.findHomography(units, near, 0)
    if matrix is None or abs(np.linalg.det(matrix)) < 0.001:
        raise refusal
    depths = np.column_stack([units, np.ones(len(units))]) @ matrix[2]
    if np.linalg.det(matrix) < 0 or depths.min() <= 0:
        raise InputError(
            f"{path}: the points are mixed up; left is left in the picture, and the nose is above the chin"
        )
    back = np.array([[spread, 0, pixels[:, 0].mean()], [0, spread, pixels[:, 1].mean()], [0, 0, 1]])
    return np.asarray(back @ matrix)


def _read_anchors(path: Path) -> dict[str, tuple[float, float]]:
    known = f"the names are {', '.join(ANCHORS)}"
    try:
        given = json.loads(read_bytes(path))
        anchors = {str(name): (float(x), float(y)) for name, (x, y) in given.items()}
        if not all(abs(v) < MAX_SIDE_PX for point in anchors.values() for v in point):
            raise ValueError
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        raise InputError(f'{path} is no list of points like {{"nose": [x, y], ...}}; {known}') from None
    unknown = [name for name in anchors if name not in ANCHORS]
    if unknown:
        raise InputError(f"{path} names a point {unknown[0]!r}; {known}")
    if len(anchors) < 4:
        raise InputError(f"{path} names {len(anchors)} points; four or more are needed, and {known}")
    return anchors
