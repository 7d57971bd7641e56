"""The relief of each kind of mask: how high its cloth stands, and where it is darker, lighter or of another colour."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.floating[Any]]

# Of x, y (face units) and the depth inside the cloth, the height (face units), tone (1 is the cloth's
# own), the share of the second colour, and whether the place is a valve.
Reliefs = tuple[Field, Field, Field, Field]
Relief = Callable[[Field, Field, Field], Reliefs]


def bump(distance: Field, width: float) -> Field:
    """1 at distance 0, falling to both sides."""
    return np.asarray(np.exp(-((distance / width) ** 2)), dtype=np.float32)


def step(distance: Field, width: float) -> Field:
    """0 below distance 0 and 1 above, softly."""
    return np.asarray(0.5 + 0.5 * np.tanh(distance / width), dtype=np.float32)


def flat(x: Field, y: Field, depth: Field) -> Reliefs:
    """No relief: for pictures that bring their own."""
    return _nothing(x), np.ones_like(x), _nothing(x), _nothing(x)


def _nothing(x: Field) -> Field:
    return np.zeros_like(x)


def _surgical(x: Field, y: Field, depth: Field) -> Reliefs:
    height, tone = _nothing(x), np.ones_like(x)
    for level in (0.78, 1.0, 1.2):
        # pleats: the upper layer hangs over the lower, deepest in the middle
        line = y - (level + 0.1 * (1 - x**2) * (level - 0.55))
        open_ = 0.6 + 0.4 * (1 - np.minimum(np.abs(x), 1) ** 2)
        height = height + 0.018 * step(-line, 0.025) * open_
        tone = tone - 0.1 * bump(line - 0.012, 0.018) * open_
    wire = y - (0.27 + 0.2 * np.minimum(np.abs(x) / 0.4, 1.2) ** 1.5)
    height = height + 0.006 * bump(wire, 0.02) * (np.abs(x) < 0.5)
    # puckered sides where the pleats are sewn down, and the sewn hems
    height = height + 0.006 * np.sin(y * 42) * step(np.abs(x) - 0.78, 0.05)
    tone = tone - 0.1 * bump(depth - 0.05, 0.01) + 0.03 * (depth < 0.045)
    return height, tone, _nothing(x), _nothing(x)


def _kn95(x: Field, y: Field, depth: Field) -> Reliefs:
    # a ridge down the middle, creased at the nose, and welded seams
    height = 0.16 * np.exp(-np.abs(x) / 0.32) + 0.012 * bump(x, 0.02)
    weld = bump(depth - 0.05, 0.012) * (0.7 + 0.3 * np.sin((x + y) * 130))
    tone = 1 - 0.09 * weld - 0.08 * bump(x, 0.012)
    clip = bump(y - (0.3 + 0.35 * np.abs(x)), 0.03) * (np.abs(x) < 0.32)
    return height + 0.004 * clip, tone + 0.03 * clip, _nothing(x), _nothing(x)


def _cone(x: Field, y: Field, depth: Field) -> Reliefs:
    radius = np.sqrt((x / 0.85) ** 2 + ((y - 0.98) / 0.75) ** 2)
    height = 0.1 * np.sqrt(np.clip(1 - radius**2, 0, 1)) + 0.01 * step(depth - 0.07, 0.01)
    ribs = np.sin(np.arctan2(y - 0.98, x) * 60) * (depth < 0.065)
    tone = 1 + 0.05 * ribs - 0.1 * bump(depth - 0.07, 0.01)
    at = np.sqrt(x**2 + (y - 1.12) ** 2)
    valve = step(0.17 - at, 0.008)
    height = height + 0.025 * valve
    tone = tone - 0.25 * bump(at - 0.175, 0.012) - 0.14 * valve * (np.sin(at * 140) > 0.2)
    clip = bump(y - (0.3 + 0.9 * np.abs(x) ** 1.3), 0.03) * (np.abs(x) < 0.26)
    return height, tone - 0.12 * clip, _nothing(x), valve


def _kf94(x: Field, y: Field, depth: Field) -> Reliefs:
    # three panels: a flat middle one, and two that lean back
    upper, lower = y - (0.72 - 0.1 * (1 - x**2)), y - (1.2 + 0.06 * (1 - x**2))
    height = -0.16 * np.maximum(-upper, 0) - 0.3 * np.maximum(lower, 0)
    tone = 1 - 0.1 * bump(upper, 0.014) - 0.12 * bump(lower, 0.014) - 0.07 * bump(depth - 0.04, 0.01)
    return height, tone, _nothing(x), _nothing(x)


def _duckbill(x: Field, y: Field, depth: Field) -> Reliefs:
    # two panels that meet in a beak across the mouth
    beak = y - (1.04 - 0.12 * (1 - x**2))
    height = 0.24 * np.exp(-np.abs(beak) / 0.28) * (1 - np.minimum(np.abs(x), 1) ** 2)
    tone = 1 - 0.12 * bump(beak, 0.016) - 0.06 * bump(depth - 0.045, 0.01)
    return height, tone, _nothing(x), _nothing(x)


def _cloth(x: Field, y: Field, depth: Field) -> Reliefs:
    height = 0.05 * np.exp(-np.abs(x) / 0.35) - 0.006 * bump(x, 0.012)
    tone = 1 - 0.12 * bump(x, 0.01) - 0.08 * bump(depth - 0.055, 0.008)
    tone = tone + 0.03 * np.sin(depth * 400) * (depth < 0.055)
    binding = step(0.06 - depth, 0.006) * (np.abs(x) > 0.8)
    return height, tone, binding, _nothing(x)


def _fashion(x: Field, y: Field, depth: Field) -> Reliefs:
    height = 0.09 * np.exp(-np.abs(x) / 0.4) - 0.008 * bump(x, 0.014)
    tone = 1 - 0.14 * bump(x, 0.012) + 0.06 * bump(x - 0.03, 0.02)
    return height, tone, _nothing(x), _nothing(x)


def _bandana(x: Field, y: Field, depth: Field) -> Reliefs:
    # folds hang from the cheeks towards the middle below
    height, tone = _nothing(x), np.ones_like(x)
    for k, sag in enumerate((0.35, 0.62, 0.9, 1.2)):
        line = y - (0.4 + 0.12 * k + sag * (1 - np.minimum(np.abs(x), 1.1) ** 1.5))
        height = height + 0.022 * bump(line, 0.06)
        tone = tone - 0.12 * bump(line - 0.06, 0.04)
    tone = tone - 0.07 * bump(depth - 0.05, 0.01)
    return height, tone, _nothing(x), _nothing(x)


RELIEFS: dict[str, Relief] = {
    "surgical": _surgical, "kn95": _kn95, "cone": _cone, "kf94": _kf94, "duckbill": _duckbill, "cloth": _cloth,
    "fashion": _fashion, "bandana": _bandana,
}  # fmt: skip
