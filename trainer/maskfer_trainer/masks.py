"""Mask kinds drawn here (own drawings, no photographs), as layers that a renderer lights and colours.

Everything is drawn in face units: x runs to the right of the picture, y down, the origin lies on the
bridge of the nose between the eyes and 1 is half the width of the face at its cheeks. `JAW` and
`NOSE` say where the landmarks of a frontal face lie in them. Drawings are functions of those units, so each
size of face gets a drawing of its own, with nothing to enlarge.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from maskfer_edge.contract import UInt8Array
from maskfer_edge.decoding import decode_layers
from maskfer_edge.dependencies import cv2
from maskfer_trainer.patterns import byte_layer, signed_layer
from maskfer_trainer.reliefs import RELIEFS, flat

Points = npt.NDArray[np.float32]
HSV = tuple[float, float, float]

# Median landmarks of frontal faces (FER2013's training part and portraits agree within 0.05): the
# jaw line from the ear to the chin, right side of the picture, then the ridge of the nose.
JAW = ((1.05, 0.07), (1.03, 0.34), (1.0, 0.61), (0.95, 0.87), (0.86, 1.11), (0.71, 1.31), (0.5, 1.48), (0.27, 1.58),
       (0.0, 1.6))  # fmt: skip
NOSE = ((0.0, 0.0), (0.0, 0.18), (0.0, 0.36), (0.0, 0.53))
# Where the mask begins on the ridge of the nose, as drawn; `placement` moves it.
DRAWN_TOP = 0.2
DRAWN_BOTTOM = 1.68
# A face's normal leans by so much a face unit from its middle.
ROUND_X, ROUND_Y, ROUND_MIDDLE = 0.62, 0.42, 0.95

CANVAS_ORIGIN = (1.35, 0.25)
CANVAS_SIZE = 2.7
MAX_UNIT_PX = 512


@dataclass(frozen=True)
class Kind:
    """What sets one kind of mask apart.

    Attributes:
        name: What it is called on the command line and in manifests.
        about: A few words for people.
        outline: Right half of the cloth's outline from nose to chin, face units.
        straps: Lines (thickness, then points) of the right-hand straps.
        palette: Usual colours as (hue in degrees, saturation 0 to 1, value 0 to 1) and how far each
            may stray; the colour of a mask is drawn from one of them.
        patterned: Share of masks with a printed pattern.
        crumpled: How much the cloth creases, 0 to 1.
        protrusion: How far it stands off the face, in units of the nose's own standing off.
        dome: How round it is; 1 is the face itself.
        picture: A user's own picture, PNG bytes with alpha, for which the outline is not drawn.
        to_picture: 9 numbers, row by row: homography from face units to pixels of that picture.
    """

    name: str
    about: str
    outline: tuple[tuple[float, float], ...]
    straps: tuple[tuple[float, tuple[tuple[float, float], ...]], ...]
    palette: tuple[tuple[HSV, HSV], ...]
    patterned: float = 0.0
    crumpled: float = 0.5
    protrusion: float = 0.1
    dome: float = 1.0
    picture: bytes = b""
    to_picture: tuple[float, ...] = ()


def _loops(top: tuple[float, float], low: tuple[float, float], thickness: float = 0.035) -> tuple[
    tuple[float, tuple[tuple[float, float], ...]], ...
]:  # fmt: skip
    """An ear loop: from the mask's upper corner to the top of the ear, and from below it to the lower corner."""
    return ((thickness, (top, (1.06, 0.16), (1.14, 0.0))), (thickness, (low, (1.03, 0.62), (1.13, 0.42))))


WHITE: tuple[HSV, HSV] = ((40.0, 0.03, 0.95), (60.0, 0.03, 0.05))
BLACK: tuple[HSV, HSV] = ((230.0, 0.08, 0.13), (120.0, 0.08, 0.06))
GREY: tuple[HSV, HSV] = ((220.0, 0.08, 0.45), (60.0, 0.06, 0.15))
BLUE: tuple[HSV, HSV] = ((204.0, 0.28, 0.92), (14.0, 0.16, 0.07))
GREEN: tuple[HSV, HSV] = ((165.0, 0.28, 0.88), (18.0, 0.14, 0.08))
PINK: tuple[HSV, HSV] = ((350.0, 0.25, 0.9), (15.0, 0.12, 0.07))
ANY: tuple[HSV, HSV] = ((180.0, 0.5, 0.6), (180.0, 0.4, 0.3))

_SURGICAL = ((0.0, 0.17), (0.12, 0.19), (0.24, 0.3), (0.45, 0.4), (0.72, 0.44), (0.95, 0.47), (0.95, 0.62),
             (0.92, 0.85), (0.87, 1.06), (0.78, 1.3), (0.58, 1.5), (0.3, 1.63), (0.0, 1.66))  # fmt: skip
_CONE = ((0.0, 0.14), (0.1, 0.15), (0.2, 0.28), (0.38, 0.45), (0.62, 0.6), (0.8, 0.78), (0.86, 0.98), (0.82, 1.2),
         (0.68, 1.42), (0.46, 1.58), (0.22, 1.67), (0.0, 1.69))  # fmt: skip
_KN95 = ((0.0, 0.12), (0.09, 0.15), (0.2, 0.28), (0.42, 0.42), (0.7, 0.56), (0.97, 0.62), (0.99, 0.78), (0.9, 1.02),
         (0.72, 1.3), (0.48, 1.52), (0.22, 1.7), (0.0, 1.74))  # fmt: skip
_KF94 = ((0.0, 0.16), (0.12, 0.18), (0.26, 0.3), (0.5, 0.42), (0.78, 0.54), (0.98, 0.68), (0.99, 0.8), (0.88, 1.08),
         (0.72, 1.32), (0.5, 1.54), (0.24, 1.68), (0.0, 1.71))  # fmt: skip
_CLOTH = ((0.0, 0.2), (0.14, 0.2), (0.32, 0.3), (0.55, 0.38), (0.8, 0.4), (0.98, 0.46), (0.98, 0.7), (0.93, 0.95),
          (0.82, 1.22), (0.62, 1.46), (0.34, 1.62), (0.0, 1.66))  # fmt: skip
_FASHION = ((0.0, 0.19), (0.12, 0.19), (0.3, 0.3), (0.55, 0.4), (0.8, 0.4), (1.0, 0.26), (1.05, 0.3), (1.0, 0.62),
            (0.94, 0.95), (0.82, 1.24), (0.62, 1.48), (0.32, 1.64), (0.0, 1.68))  # fmt: skip
_BANDANA = ((0.0, 0.2), (0.2, 0.22), (0.5, 0.28), (0.8, 0.26), (1.06, 0.16), (1.12, 0.22), (1.09, 0.6), (1.02, 1.0),
            (0.92, 1.35), (0.74, 1.7), (0.42, 2.0), (0.0, 2.25))  # fmt: skip
_DUCKBILL = ((0.0, 0.15), (0.12, 0.18), (0.25, 0.3), (0.5, 0.46), (0.78, 0.62), (0.9, 0.78), (0.88, 0.98), (0.78, 1.22),
             (0.62, 1.42), (0.4, 1.6), (0.2, 1.69), (0.0, 1.71))  # fmt: skip
_HEAD_STRAPS = ((0.05, ((0.74, 0.72), (1.0, 0.4), (1.14, 0.2))), (0.05, ((0.8, 1.08), (0.98, 0.86), (1.12, 0.74))))

_ALL = (
    Kind("surgical", "pleated, with nose wire and ear loops",
         _SURGICAL, _loops((0.93, 0.5), (0.87, 1.05)), (BLUE, BLUE, WHITE, BLACK, GREEN, PINK), 0.06, 0.8),
    Kind("kn95", "KN95 or FFP2, folded down the middle",
         _KN95, _loops((0.96, 0.64), (0.9, 0.98)), (WHITE, WHITE, BLACK, GREY), 0.0, 0.35, 0.25, 1.25),
    Kind("cone", "moulded N95 with a valve and straps round the head",
         _CONE, _HEAD_STRAPS, (WHITE,), 0.0, 0.15, 0.3, 1.5),
    Kind("kf94", "KF94, three panels",
         _KF94, _loops((0.96, 0.68), (0.93, 0.92)), (WHITE, WHITE, BLACK, GREY), 0.0, 0.3, 0.25, 1.2),
    Kind("duckbill", "two panels that meet in a beak",
         _DUCKBILL, _HEAD_STRAPS, (WHITE, GREEN, BLUE), 0.0, 0.35, 0.4, 1.3),
    Kind("cloth", "sewn and bound, plain or patterned",
         _CLOTH, _loops((0.96, 0.48), (0.9, 1.02), 0.05), (ANY, ANY, BLACK, WHITE, GREY), 0.5, 0.6, 0.1),
    Kind("fashion", "stretched, its sides are its loops",
         _FASHION, (), (BLACK, BLACK, GREY, PINK), 0.12, 0.3, 0.1, 1.1),
    Kind("bandana", "scarf or bandana over face and neck",
         _BANDANA, (), (ANY, ANY, BLACK, GREY), 0.6, 1.0, 0.05, 0.9),
)  # fmt: skip
KINDS: dict[str, Kind] = {kind.name: kind for kind in _ALL}


@dataclass(frozen=True)
class Layers:
    """One mask drawn at one size, ready to be warped, lit and coloured.

    Attributes:
        form: (h, w, 4) uint8: how much cloth covers the pixel (0 to 255), the normal's x and y (128
            is 0, ±127 is ±1), and tone (128 is 1): darker in creases, lighter on wires.
        trim: (h, w, 4) uint8: cover of straps, of parts in the second colour, of the valve, and how
            far creases may show; all 0 to 255.
        albedo: (h, w, 3) uint8 B,G,R of a user's own picture, or None for drawn kinds.
    """

    form: UInt8Array
    trim: UInt8Array
    albedo: UInt8Array | None = None


def canvas_px(points: Points, unit_px: float) -> Points:
    """Face units to canvas pixels (centres at integers)."""
    return np.asarray((points + np.array(CANVAS_ORIGIN)) * unit_px - 0.5, dtype=np.float32)


def smooth_outline(half: tuple[tuple[float, float], ...]) -> Points:
    """Close a half outline by mirroring and round its corners (Chaikin's corner cutting, 1974)."""
    right = np.array(half, dtype=np.float32)
    points = np.concatenate([right, right[-2:0:-1] * np.array((-1, 1))])
    for _ in range(3):
        following = np.roll(points, -1, axis=0)
        points = np.stack([0.75 * points + 0.25 * following, 0.25 * points + 0.75 * following], axis=1).reshape(-1, 2)
    return np.asarray(points, dtype=np.float32)


@lru_cache(maxsize=3 * len(KINDS))
def draw_mask(kind: Kind, unit_px: int) -> Layers:
    """Draw a kind at `unit_px` pixels a face unit; the drawing has 2.7 times as many each way."""
    side = round(CANVAS_SIZE * unit_px)
    ticks = (np.arange(side, dtype=np.float32) + 0.5) / unit_px
    x, y = np.meshgrid(ticks - CANVAS_ORIGIN[0], ticks - CANVAS_ORIGIN[1])
    if kind.picture:
        albedo, cover = _own_picture(kind, side, unit_px)
    else:
        albedo, cover = None, _fill(smooth_outline(kind.outline), side, unit_px)
    # how far inside the cloth, face units
    depth = cv2.distanceTransform((cover > 127).astype(np.uint8), cv2.DIST_L2, 5) / unit_px
    height, tone, second, valve = (flat if kind.picture else RELIEFS[kind.name])(x, y, depth)

    nx, ny = kind.dome * ROUND_X * x, kind.dome * ROUND_Y * (y - ROUND_MIDDLE)
    # cloth turns away at its rim
    risen = (height + 0.008 * np.minimum(depth / 0.04, 1)).astype(np.float32)
    risen = cv2.GaussianBlur(risen, (0, 0), max(0.6, 0.006 * unit_px))
    nx = nx - cv2.Sobel(risen, cv2.CV_32F, 1, 0, scale=unit_px / 8)
    ny = ny - cv2.Sobel(risen, cv2.CV_32F, 0, 1, scale=unit_px / 8)
    form = np.dstack([cover, signed_layer(nx), signed_layer(ny), byte_layer(128 * tone)])

    straps = np.zeros_like(cover)
    for thickness, line in kind.straps:
        for sign in (-1, 1):
            _stroke(straps, np.array(line, dtype=np.float32) * np.array((sign, 1)), thickness, unit_px)
    creases = np.minimum(depth / 0.12, 1) * (1 - valve)
    trim = np.dstack([straps, byte_layer(255 * second), byte_layer(255 * valve), byte_layer(255 * creases)])
    return Layers(form, trim, albedo)


def _own_picture(kind: Kind, side: int, unit_px: int) -> tuple[UInt8Array, UInt8Array]:
    """Colours (side, side, 3) B,G,R and cover (side, side) of a user's picture, laid out as drawings are."""
    picture = np.asarray(decode_layers(kind.picture), dtype=np.float32)
    picture[..., :3] *= picture[..., 3:] / 255  # by alpha, so that transparent pixels' colours leave no fringe
    from_canvas = np.array(
        [[1 / unit_px, 0, 0.5 / unit_px - CANVAS_ORIGIN[0]], [0, 1 / unit_px, 0.5 / unit_px - CANVAS_ORIGIN[1]],
         [0, 0, 1]]
    )  # fmt: skip
    matrix = np.array(kind.to_picture).reshape(3, 3) @ from_canvas
    # shrink by area before warping, or a large picture's threads would glitter
    shrink = max(1.0, float(np.sqrt(abs(np.linalg.det(matrix[:2, :2])))))
    if shrink > 1:
        picture = cv2.resize(picture, None, fx=1 / shrink, fy=1 / shrink, interpolation=cv2.INTER_AREA)
        middle = 0.5 / shrink - 0.5
        matrix = np.array([[1 / shrink, 0, middle], [0, 1 / shrink, middle], [0, 0, 1]]) @ matrix
    warped = cv2.warpPerspective(picture, matrix, (side, side), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    colours = warped[..., :3] / np.maximum(warped[..., 3:] / 255, 1e-3)
    return byte_layer(colours), byte_layer(warped[..., 3])


SHIFT = 4  # fractional bits of OpenCV's drawing coordinates


def _fill(outline: Points, side: int, unit_px: float) -> UInt8Array:
    finer = _finer(side)
    picture = np.zeros((side * finer, side * finer), dtype=np.uint8)
    points = np.round(canvas_px(outline, unit_px * finer) * 2**SHIFT).astype(np.int32)
    cv2.fillPoly(picture, [points], 255, cv2.LINE_AA, SHIFT)
    return np.asarray(cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA))


def _finer(side: int) -> int:
    """How much finer to draw what is then reduced: OpenCV's smooth edges lie half a pixel outside."""
    return max(1, round(2048 / side))


def _stroke(picture: UInt8Array, line: Points, thickness: float, unit_px: float) -> None:
    finer = _finer(len(picture))
    points = np.round(canvas_px(line, unit_px * finer) * 2**SHIFT).astype(np.int32)
    drawn = np.zeros((len(picture) * finer,) * 2, dtype=np.uint8)
    cv2.polylines(drawn, [points], False, 255, max(1, round(thickness * unit_px * finer)), cv2.LINE_AA, SHIFT)
    np.maximum(picture, cv2.resize(drawn, picture.shape, interpolation=cv2.INTER_AREA), out=picture)
