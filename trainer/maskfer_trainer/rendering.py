"""The picture of a face wearing a mask: warped, lit as the face is, blurred and grained as the picture is."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from maskfer_edge.contract import UInt8Array
from maskfer_edge.dependencies import cv2
from maskfer_edge.errors import InputError
from maskfer_trainer.landmarks import Landmarks
from maskfer_trainer.masks import (
    CANVAS_ORIGIN,
    CANVAS_SIZE,
    DRAWN_BOTTOM,
    DRAWN_TOP,
    HSV,
    JAW,
    MAX_UNIT_PX,
    NOSE,
    ROUND_MIDDLE,
    ROUND_X,
    ROUND_Y,
    Kind,
    Points,
    draw_mask,
)
from maskfer_trainer.patterns import TILE_UNITS, draw_tile
from maskfer_trainer.placement import HomographyMap, check_plausible, head_turn, mesh_map, unit_length
from maskfer_trainer.reliefs import Field

# How a mask is worn: where it begins and ends on the face (face units) and how wide it lies.
WORN = {"properly": (0.2, 1.68, 1.0), "under-nose": (0.78, 1.86, 0.97), "chin": (1.36, 2.02, 0.86)}
CELLS = 24  # of the lattice that maps, light and skin are found on
FRONTAL = 0.5  # share of the light that comes from where the camera is
SKIN = 0.55  # what skin in ordinary light has of white


@dataclass(frozen=True)
class Wearing:
    """A mask's colours, and how it is worn.

    Attributes:
        colour: Of the cloth: hue in degrees, saturation and value from 0 to 1.
        second: Of straps, bindings, valves and printed patterns.
        pattern: One of `patterns.PATTERNS`, or "" for plain cloth.
        pattern_size: Size of the pattern, 1 as drawn.
        creases: How deep the cloth is creased, 0 to 1.
        worn: A key of `WORN`.
        top: How far from between the eyes (0) to the tip of the nose (1) it begins, if worn properly.
        size: Of the mask, 1 as drawn.
        shift: Right and down, face units.
        turn: Degrees, clockwise.
        seed: Of the place of creases and of grain.
    """

    colour: HSV = (204.0, 0.33, 0.86)
    second: HSV = (0.0, 0.0, 0.95)
    pattern: str = ""
    pattern_size: float = 1.0
    creases: float = 0.5
    worn: str = "properly"
    top: float = 0.38
    size: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    turn: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Masked:
    """A face that wears a mask.

    Attributes:
        image: Of the shape, dtype and colour order of the picture it was made from.
        cover: (h, w) uint8, how much of each pixel the mask covers, straps not counted: 0 to 255.
        polygon: (n, 2) int32 pixels, the outline of what it covers at least half.
    """

    image: UInt8Array
    cover: UInt8Array
    polygon: npt.NDArray[np.int32]


def put_on(
    image: UInt8Array, landmarks: Landmarks, kind: Kind, wearing: Wearing, fit: str = "mesh", plain: bool = False
) -> Masked:
    """Put a mask on a face.

    Args:
        image: (h, w) uint8 grey or (h, w, 3) uint8 B,G,R; not changed.
        landmarks: (68, 2) float32 pixels of `image`.
        kind: The mask.
        wearing: Its colours and how it is worn.
        fit: ``mesh`` (see `placement.face_mesh`) or ``homography``, the paper's.
        plain: Paste the mask as drawn, without light, blur, grain and shadow taken from the picture.

    Returns:
        The masked picture, what it covers, and its outline.

    Raises:
        InputError: If the landmarks are implausible, or the mask lies off the picture.
    """
    height, width = image.shape[:2]
    pivots = check_plausible(landmarks, (width, height))
    unit = unit_length(pivots)
    face_map = HomographyMap(landmarks, pivots) if fit == "homography" else mesh_map(landmarks, unit, kind.protrusion)
    # straps end beside the ears; cloth and its shadow end below the chin
    drawn_lowest = max((y for _, y in kind.outline), default=CANVAS_SIZE - CANVAS_ORIGIN[1])
    below = max(0.05, drawn_lowest + WORN[wearing.worn][1] - DRAWN_BOTTOM - JAW[-1][1])
    down = below * unit * (pivots[2] - pivots[0]) / np.linalg.norm(pivots[2] - pivots[0])
    low = np.floor(face_map.bounds_px[0] + np.minimum(down, 0) - 0.25 * unit)
    high = np.ceil(face_map.bounds_px[1] + np.maximum(down, 0) + 0.25 * unit)
    x0, y0 = (int(v) for v in np.maximum(low, 0))
    x1, y1 = (int(v) for v in np.minimum(high + 1, (width, height)))
    if x1 - x0 < 3 or y1 - y0 < 3:
        raise InputError("implausible landmarks: the mask lies outside the picture")
    region = image[y0:y1, x0:x1]
    size_wh = (x1 - x0, y1 - y0)

    # Sample finer than the picture and average, so that edges are smooth at 48 pixels too.
    finer = int(np.clip(round(110 / size_wh[0]), 1, 4))
    lattice = _lattice(size_wh) + np.array((x0, y0), dtype=np.float32)
    on_face = face_map(lattice.reshape(-1, 2)).reshape(lattice.shape)
    fine_wh = (size_wh[0] * finer, size_wh[1] * finer)
    on_mask = _enlarge(cv2.transform(on_face, _face_to_mask(wearing)), fine_wh)

    scene = (
        None
        if plain
        else _Scene(region, _sharpest_part(image, landmarks), on_face[2:-2, 2:-2], head_turn(landmarks)[0])
    )
    colours, cover, straps = _shade(kind, wearing, on_mask, unit * finer, scene, image.ndim == 3)
    if scene is not None:
        straps = straps * cv2.resize(scene.skin, fine_wh, interpolation=cv2.INTER_LINEAR)
    both = cover + straps * (1 - cover)
    layer = np.asarray(np.dstack([colours * both[..., None], both, cover]), dtype=np.float32)
    if finer > 1:
        layer = np.asarray(cv2.resize(layer, size_wh, interpolation=cv2.INTER_AREA), dtype=np.float32)
    if scene is not None:
        layer = np.asarray(scene.blur(layer, unit), dtype=np.float32)
    alpha, cover = layer[..., -2], layer[..., -1]
    colours = layer[..., :-2] / np.maximum(alpha, 1e-3)[..., None]
    if scene is not None:
        region = scene.cast_shadow(region, alpha, unit)
        colours = scene.grain(colours, wearing.seed)

    changed = _composite(image, region, colours, alpha, (x0, y0))
    whole = np.zeros((height, width), dtype=np.uint8)
    whole[y0:y1, x0:x1] = np.round(255 * cover)
    contours, _ = cv2.findContours((whole > 127).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        raise InputError("implausible landmarks: the mask lies outside the picture")
    outline = cv2.approxPolyDP(max(contours, key=cv2.contourArea), 0.01 * unit, True)[:, 0]
    return Masked(changed, whole, outline)


def _sharpest_part(image: UInt8Array, landmarks: Landmarks) -> UInt8Array:
    """The rectangle around brows, eyes and the ridge of the nose, at least 3 pixels each way."""
    height, width = image.shape[:2]
    low, high = landmarks[17:48].min(axis=0), landmarks[17:48].max(axis=0)
    x0, y0 = (int(np.clip(v, 0, side - 3)) for v, side in zip(low, (width, height), strict=True))
    x1, y1 = (
        int(np.clip(v + 1, start + 3, side)) for v, start, side in zip(high, (x0, y0), (width, height), strict=True)
    )
    return image[y0:y1, x0:x1]


def _composite(
    image: UInt8Array, region: UInt8Array, colours: Field, alpha: Field, position: tuple[int, int]
) -> UInt8Array:
    overlay = np.clip(np.round(colours * 255), 0, 255).astype(np.uint8)
    alpha_8 = Image.fromarray(np.clip(np.round(alpha * 255), 0, 255).astype(np.uint8))
    if image.ndim == 2:
        under = Image.fromarray(region)
        under.paste(Image.fromarray(overlay[..., 0]), (0, 0), alpha_8)
    else:
        under = Image.fromarray(np.ascontiguousarray(region))
        # B,G,R on B,G,R: Pillow does not mind the names of channels
        under.paste(Image.fromarray(overlay), (0, 0), alpha_8)
    changed = image.copy()
    x0, y0 = position
    changed[y0 : y0 + region.shape[0], x0 : x0 + region.shape[1]] = np.asarray(under)
    return changed


def _lattice(size_wh: tuple[int, int]) -> Points:
    """(CELLS + 4, CELLS + 4, 2) pixels: the middles of cells over a region, and two cells beyond it each way."""
    ticks = [(np.arange(-2, CELLS + 2) + 0.5) * side / CELLS - 0.5 for side in size_wh]
    return np.stack(np.meshgrid(*ticks), axis=-1).astype(np.float32)


def _enlarge(lattice: Field, size_wh: tuple[int, int]) -> Field:
    """From a lattice's points to all pixels of its region."""
    rows = _weighted([share[:, None, None] * lattice[place] for place, share in _cubic(size_wh[1])])
    return _weighted([share[None, :, None] * rows[:, place] for place, share in _cubic(size_wh[0])])


def _weighted(parts: list[Field]) -> Field:
    # added one after another: the same bits everywhere, unlike a product of matrices
    return np.asarray(((parts[0] + parts[1]) + parts[2]) + parts[3])


def _cubic(side: int) -> list[tuple[npt.NDArray[np.int64], Field]]:
    """For each pixel of a side four points of the lattice and their shares, by Catmull and Rom's spline (1974).

    OpenCV's cubic ripples: it does not keep straight lines straight, and rounds places to 1/32 of a cell.
    """
    places = (np.arange(side) + 0.5) * CELLS / side + 1.5
    first = np.floor(places).astype(np.int64)
    points = []
    for k in range(-1, 3):
        d = np.abs(places - first - k)
        near, far = (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2
        points.append((first + k, np.where(d <= 1, near, far).astype(np.float32)))
    return points


def _face_to_mask(wearing: Wearing) -> Field:
    """(2, 3) affine matrix from face units to the units a mask is drawn in."""
    top, bottom, wide = WORN[wearing.worn]
    if wearing.worn == "properly":
        top = wearing.top * NOSE[-1][1]
    stretch = (DRAWN_BOTTOM - DRAWN_TOP) / (bottom - top)
    centre = np.array((0.0, (top + bottom) / 2))
    cos, sin = np.cos(np.radians(wearing.turn)), np.sin(np.radians(wearing.turn))
    turned = np.array([[cos, sin], [-sin, cos]]) / wearing.size
    random_affine = centre - turned @ (centre + np.array(wearing.shift))
    scale = np.array((1 / wide, stretch))
    offset = np.array((0.0, DRAWN_TOP - stretch * top))
    return np.asarray(np.column_stack([turned * scale[:, None], random_affine * scale + offset]), dtype=np.float32)


def _bgr(colour: HSV, coloured: bool) -> Field:
    """B,G,R from 0 to 1, or one grey."""
    r, g, b = colorsys.hsv_to_rgb((colour[0] % 360) / 360, colour[1], colour[2])
    return np.array((b, g, r) if coloured else (0.299 * r + 0.587 * g + 0.114 * b,), dtype=np.float32)


def _shade(
    kind: Kind, wearing: Wearing, on_mask: Field, unit_px: float, scene: _Scene | None, coloured: bool
) -> tuple[Field, Field, Field]:
    """Colours (h, w, 1 or 3), cover and straps (h, w) of a mask, all 0 to 1, for each place `on_mask` (mask units)."""
    level = MAX_UNIT_PX
    while level > 32 and level / 2 >= unit_px:
        level //= 2
    layers = draw_mask(kind, level)
    map_xy = (on_mask + np.array(CANVAS_ORIGIN, dtype=np.float32)) * np.float32(level) - np.float32(0.5)
    form = cv2.remap(layers.form, map_xy, None, cv2.INTER_LINEAR).astype(np.float32)
    trim = cv2.remap(layers.trim, map_xy, None, cv2.INTER_LINEAR).astype(np.float32) / 255
    cover, nx, ny = form[..., 0] / 255, form[..., 1] / 127 - 128 / 127, form[..., 2] / 127 - 128 / 127
    tone = form[..., 3] / 128

    random = np.random.default_rng(wearing.seed)
    place = random.random(2).astype(np.float32)
    tile = draw_tile(wearing.pattern, level)
    tile_xy = (on_mask / np.float32(TILE_UNITS * wearing.pattern_size) + place) * np.float32(level)
    tiled = cv2.remap(tile, tile_xy % level, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP).astype(np.float32)
    deep = trim[..., 3] * np.float32(0.4 * wearing.creases * kind.crumpled / 127)
    nx, ny = nx + deep * (tiled[..., 0] - 128), ny + deep * (tiled[..., 1] - 128)
    tone = tone * (1 + (tiled[..., 3] - 128) / 127 * np.float32(0.025))

    second = np.maximum(trim[..., 1], tiled[..., 2] / 255 if wearing.pattern else 0)
    second = np.maximum(second, trim[..., 2])[..., None]
    first_bgr, second_bgr = _bgr(wearing.colour, coloured), _bgr(wearing.second, coloured)
    if layers.albedo is not None:
        first_bgr = cv2.remap(layers.albedo, map_xy, None, cv2.INTER_LINEAR).astype(np.float32) / 255
        if not coloured:
            first_bgr = cv2.cvtColor(first_bgr, cv2.COLOR_BGR2GRAY)[..., None]
    colours = first_bgr + second * (second_bgr - first_bgr)
    # straps in the second colour where there is no cloth over them
    straps = trim[..., 0]
    colours = colours + (straps * (1 - cover))[..., None] * (second_bgr - colours)
    light = scene.light if scene is not None else np.array((1.0, 0.0, -0.12), dtype=np.float32)
    nz = np.sqrt(np.maximum(1 - nx * nx - ny * ny, 0.05))
    shaded = tone * np.clip(light[0] * (1 + FRONTAL * (nz - 0.93)) + light[1] * nx + light[2] * ny, 0.05, 2.0)
    random_lighting = colours * shaded[..., None]
    if scene is not None:
        random_lighting = random_lighting * scene.tint
    # film and sensors bend towards white; black cloth still gives some light back
    random_lighting = np.where(
        random_lighting > 0.8, 0.8 + 0.2 * np.tanh((random_lighting - 0.8) / 0.2), random_lighting
    )
    return random_lighting.astype(np.float32), cover, straps


class _Scene:
    """What the picture tells of light, sharpness and grain around a face.

    Args:
        region: The part of the picture that the mask may cover.
        sharpest: The part around the eyes, whose edges tell how sharp the picture is.
        on_face: (CELLS, CELLS, 2) face units of its cells.
        yaw: Of the head, see `placement.head_turn`.
    """

    def __init__(self, region: UInt8Array, sharpest: UInt8Array, on_face: Field, yaw: float) -> None:
        self.coloured = region.ndim == 3
        grey = cv2.cvtColor(region, cv2.COLOR_BGR2GRAY) if self.coloured else region
        small = cv2.resize(region, (CELLS, CELLS), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        small_grey = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY) if self.coloured else small
        x, y = on_face[..., 0], on_face[..., 1]
        jaw = 1.0 - 0.45 * np.clip(y - 0.7, 0, 1) ** 2
        mouth = (np.abs(x) < 0.45) & (y > 0.62) & (y < 1.38)
        skin = (np.abs(x) < 0.85 * jaw) & (y > 0.3) & (y < 1.45) & ~mouth
        self.light, level = self._light(small_grey[skin], x[skin], y[skin])
        self.tint = np.ones(3 if self.coloured else 1, dtype=np.float32)
        if self.coloured:
            mean = small.reshape(-1, 3).mean(axis=0)
            tint = np.clip(mean / max(float(mean.mean()), 0.02), 0.5, 2) ** 0.2
            self.tint = np.round(tint, 4).astype(np.float32)
        self.skin = self._skin(small_grey, level, x, yaw)
        self._grey = grey
        self._sharpness = self._blur_px(cv2.cvtColor(sharpest, cv2.COLOR_BGR2GRAY) if self.coloured else sharpest)

    @staticmethod
    def _light(values: Field, x: Field, y: Field) -> tuple[Field, float]:
        """Ambient light and its slopes along the normal's x and y: least squares over skin, outliers left out."""
        usual = np.array((1.0, 0.0, -0.4))
        if len(values) < 12:
            return usual, SKIN
        level = max(float(np.median(values)), 0.02)
        normals = np.stack([np.ones_like(x), ROUND_X * x, ROUND_Y * (y - ROUND_MIDDLE)], axis=1).astype(np.float64)
        relative = values / level
        keep = np.abs(relative - 1) < 0.6
        slopes = usual
        for _ in range(2):
            # pulled towards light from above by as much as twenty cells would
            pull = np.diag((0.0, 8.0, 8.0))
            a, b = normals[keep], relative[keep]
            slopes = np.linalg.solve(a.T @ a + pull + 1e-6 * np.eye(3), a.T @ b + pull @ usual)
            error = np.abs(normals @ slopes - relative)
            keep = error <= np.sort(error)[3 * len(error) // 4]
        ambient = (0.5 + 0.5 * np.clip(level / SKIN, 0.1, 1.35)) * np.clip(slopes[0], 0.7, 1.3)
        return np.round((ambient, *np.clip(slopes[1:], -0.6, 0.6) * ambient), 4).astype(np.float32), level

    @staticmethod
    def _skin(grey: Field, level: float, x: Field, yaw: float) -> Field:
        """(CELLS, CELLS) float32 from 0 to 1: where a strap shows, not under hair nor beyond the face's far side."""
        like = 1 - np.clip((np.abs(grey - level) - 0.16) / 0.12, 0, 1)
        visible = np.where(np.abs(x) < 0.9, 1, like)
        far = x * np.sign(yaw) > 1.02
        if abs(yaw) > 0.2:
            visible = np.where(far, 0, visible)
        return np.asarray(visible, dtype=np.float32)

    @staticmethod
    def _blur_px(part: UInt8Array) -> float:
        """How far edges spread in the picture: the Gaussian sigma that the steepest of them has, pixels.

        A step of height c blurred by sigma is steepest by c / (sigma √(2π)).
        """
        # in whole numbers, as OpenCV's square roots depend on where in memory a picture lies
        dx, dy = (cv2.Sobel(part, cv2.CV_16S, *order).astype(np.int32) for order in ((1, 0), (0, 1)))
        steep = np.sort(dx * dx + dy * dy, axis=None)
        levels = np.sort(part, axis=None)
        low, high = float(levels[len(levels) // 50]), float(levels[-len(levels) // 50])
        steepest = float(np.sqrt(steep[-len(steep) // 200])) / 8
        return float((high - low) / max(steepest, 0.5) / np.sqrt(2 * np.pi))

    def blur(self, layer: Field, unit_px: float) -> Field:
        """Spread a layer's edges as the picture's are."""
        # the Sobel filter itself spreads an edge by 0.8 pixels
        sigma = 0.85 * float(np.sqrt(max(self._sharpness**2 - 0.8**2, 0)))
        sigma = min(sigma, 0.06 * unit_px)
        if sigma < 0.3:
            return layer
        return np.asarray(cv2.GaussianBlur(layer, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE))

    def cast_shadow(self, region: UInt8Array, cover: Field, unit_px: float) -> UInt8Array:
        """Darken the skin beside the mask, most on the side away from the light."""
        away = -0.05 * unit_px * self.light[1:] / max(float(np.abs(self.light[1:]).max()), 0.15)
        away[1] = max(away[1], 0.015 * unit_px)
        matrix = np.array([[1, 0, away[0]], [0, 1, away[1]]])
        size_wh = (cover.shape[1], cover.shape[0])
        shadow = cv2.warpAffine(cover, matrix, size_wh, borderMode=cv2.BORDER_REPLICATE)
        shadow = cv2.GaussianBlur(shadow, (0, 0), max(0.5, 0.045 * unit_px), borderType=cv2.BORDER_REPLICATE)
        factor = 1 - 0.4 * shadow
        factor = factor[..., None] if region.ndim == 3 else factor
        return np.asarray(np.round(region * factor), dtype=np.uint8)

    def grain(self, colours: Field, seed: int) -> Field:
        """Add the picture's noise: Immerkær's mask (1996), its flattest fifth tells noise from detail."""
        mask = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], dtype=np.float32)
        found = np.sort(np.abs(cv2.filter2D(self._grey, cv2.CV_32F, mask)), axis=None)
        # Of a normal distribution a fifth lies within 0.253 sigma; the mask multiplies sigma by 6. Half, as
        # small faces are all detail.
        spread = 0.5 * float(found[len(found) // 5]) / (6 * 0.253)
        if spread < 0.2:
            return colours
        random = np.random.default_rng(seed)
        noise = random.standard_normal(colours.shape[:2], dtype=np.float32) * np.float32(min(spread, 5.0) / 255)
        return np.asarray(colours + noise[..., None], dtype=np.float32)
