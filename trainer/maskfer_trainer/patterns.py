"""Cloth close up: creases, weave and printed patterns, as tiles that repeat without a seam (own drawings)."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from maskfer_edge.contract import UInt8Array
from maskfer_edge.dependencies import cv2
from maskfer_trainer.reliefs import Field, step


def byte_layer(values: Field) -> UInt8Array:
    """Rounded and clipped to 0 to 255."""
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def signed_layer(values: Field) -> UInt8Array:
    """-1 to 1 as 1 to 255, 0 as 128; clipped."""
    return byte_layer(128 + 127 * np.asarray(values))


Print = Callable[[Field, Field], Field]


def _wave(x: Field, y: Field, a: int, b: int, phase: float = 0.0) -> Field:
    """Waves that repeat `a` times across the tile and `b` times down."""
    return np.asarray(np.sin(2 * np.pi * (a * x + b * y + phase)), dtype=np.float32)


def _stripes(x: Field, y: Field) -> Field:
    return step(_wave(x, y, 0, 8), 0.25)


def _checks(x: Field, y: Field) -> Field:
    return 0.5 * step(_wave(x, y, 6, 0), 0.25) + 0.5 * step(_wave(x, y, 0, 6), 0.25)


def _dots(x: Field, y: Field) -> Field:
    return step(_wave(x, y, 6, 6) * _wave(x, y, 6, -6) - 0.55, 0.12)


def _flowers(x: Field, y: Field) -> Field:
    across, down = (4 * x) % 1 - 0.5, (4 * y + 0.5 * np.floor(4 * x)) % 1 - 0.5
    radius = np.hypot(across, down)
    petals = step(0.3 + 0.1 * np.cos(5 * np.arctan2(down, across)) - radius, 0.03)
    return petals * step(radius - 0.09, 0.02)


def _camouflage(x: Field, y: Field) -> Field:
    blotches = _wave(x, y, 2, 1, 0.1) + _wave(x, y, -1, 3, 0.4) + _wave(x, y, 3, -2, 0.7) + _wave(x, y, 4, 5, 0.2)
    return 0.5 * step(blotches, 0.15) + 0.5 * step(blotches - 1.2, 0.15)


def _paisley(x: Field, y: Field) -> Field:
    bent = np.sin(8 * np.pi * (x + 0.12 * _wave(x, y, 0, 2)) + 2 * _wave(x, y, 2, 2))
    swirl = np.abs(_wave(x, y, 3, 0) + _wave(x, y, 0, 3) + 1.2 * bent)
    return step(swirl - 0.9, 0.15) * step(1.9 - swirl, 0.15)


PRINTS: dict[str, Print] = {
    "stripes": _stripes, "checks": _checks, "dots": _dots, "flowers": _flowers, "camouflage": _camouflage,
    "paisley": _paisley,
}  # fmt: skip
PATTERNS = tuple(PRINTS)
TILE_UNITS = 1.0


@lru_cache(maxsize=2 * len(PATTERNS))
def draw_tile(pattern: str, unit_px: int) -> UInt8Array:
    """A square tile, one face unit a side, that repeats without a seam.

    Args:
        pattern: One of `PATTERNS`, or "" for plain cloth.
        unit_px: Side in pixels.

    Returns:
        (unit_px, unit_px, 4) uint8: the x and y of the creases' normals (128 is 0), how much of the
        second colour the pattern prints (0 to 255), and the weave (128 is none).
    """
    random = np.random.default_rng(7)
    ticks = (np.arange(unit_px, dtype=np.float32) + 0.5) / unit_px
    x, y = np.meshgrid(ticks, ticks)
    printed = PRINTS[pattern](x, y) if pattern else np.zeros_like(x)
    # creases: noise that is long in one direction and repeats
    creases = np.zeros_like(x)
    for _ in range(26):
        k = random.integers(-6, 7, 2)
        size = float(np.hypot(*k))
        if size:
            creases += np.sin(2 * np.pi * (k[0] * x + k[1] * y + random.random())) / size**1.3
    ridged = 1 - np.abs(creases) / np.abs(creases).max()
    ridged = cv2.GaussianBlur(np.tile(ridged**3, (3, 3)), (0, 0), max(0.5, 0.008 * unit_px))
    nx = cv2.Sobel(ridged, cv2.CV_32F, 1, 0, scale=unit_px / 8)[unit_px : 2 * unit_px, unit_px : 2 * unit_px]
    ny = cv2.Sobel(ridged, cv2.CV_32F, 0, 1, scale=unit_px / 8)[unit_px : 2 * unit_px, unit_px : 2 * unit_px]
    norm = 2.5 * float(np.std(nx)) + 1e-6
    weave = np.sin(2 * np.pi * 60 * x) * np.sin(2 * np.pi * 60 * y) if unit_px >= 240 else np.zeros_like(x)
    return np.dstack(
        [signed_layer(nx / norm), signed_layer(ny / norm), byte_layer(255 * printed), signed_layer(0.9 * weave)]
    )
