"""What a face detector takes for faces and is none, drawn on scenes while it learns: letters, emblems, ovals."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from maskfer_edge.contract import UInt8Array
from maskfer_edge.dependencies import cv2
from maskfer_edge.detector import Box

# Sides in pixels, as faces have them.
MIN_SIDE_PX, MAX_SIDE_PX = 16, 120
# Free pixels between a distractor and any face.
MARGIN = 4
# Places that are tried for each.
TRIES = 6
FONTS = (
    cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_PLAIN, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX,
    cv2.FONT_HERSHEY_TRIPLEX, cv2.FONT_HERSHEY_COMPLEX_SMALL, cv2.FONT_HERSHEY_SCRIPT_SIMPLEX,
    cv2.FONT_HERSHEY_SCRIPT_COMPLEX,
)  # fmt: skip
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789&@%"


def draw_distractors(image: UInt8Array, boxes: list[Box], count: int, random: np.random.Generator) -> None:
    """Draw distractors on a scene, in place, away from `boxes`; one that finds no free place is left out."""
    height, width = image.shape
    for _ in range(count):
        kind = KINDS[int(random.integers(len(KINDS)))]
        side = math.exp(random.uniform(math.log(MIN_SIDE_PX), math.log(MAX_SIDE_PX)))
        # words are wide
        high, wide = round(side), round(side * random.uniform(0.8, 2.0 if kind is _letters else 1.25))
        for _ in range(TRIES):
            left, top = int(random.integers(1 - wide // 4, width - wide)), int(random.integers(0, height - high))
            if all(_apart((left, top, wide, high), box) for box in boxes):
                _draw(image, kind, (left, top, wide, high), random)
                break


def _apart(a: Box, b: Box) -> bool:
    return (
        a[0] >= b[0] + b[2] + MARGIN
        or b[0] >= a[0] + a[2] + MARGIN
        or a[1] >= b[1] + b[3] + MARGIN
        or b[1] >= a[1] + a[3] + MARGIN
    )


def _draw(image: UInt8Array, kind: Kind, box: Box, random: np.random.Generator) -> None:
    """Draw in a copy of the box's part of the scene, which clips it, and lay that on the scene."""
    left, top = max(0, box[0]), max(0, box[1])
    background = image[top : box[1] + box[3], left : box[0] + box[2]]
    grey = _contrasting_grey(float(background.mean()), random)
    part = background.copy()
    kind(part, grey, random)
    if random.random() < 0.3:  # out of focus
        part = cv2.GaussianBlur(part, (0, 0), float(random.uniform(0.5, 0.03 * max(part.shape) + 0.6)))
    opacity = float(random.uniform(0.6, 1)) if random.random() < 0.4 else 1.0
    background[:] = cv2.addWeighted(part, opacity, background, 1 - opacity, 0)


def _contrasting_grey(background: float, random: np.random.Generator) -> int:
    """A grey that stands out from what is under it."""
    apart = random.uniform(40, 200)
    up = background + apart <= 255 and (background - apart < 0 or random.random() < 0.7)
    return int(min(255, max(0, background + apart if up else background - apart)))


def _letters(part: UInt8Array, grey: int, random: np.random.Generator) -> None:
    height, width = part.shape
    text = "".join(LETTERS[i] for i in random.integers(len(LETTERS), size=int(random.choice((1, 1, 2, 3, 5)))))
    font = FONTS[int(random.integers(len(FONTS)))]
    (wide, high), _ = cv2.getTextSize(text, font, 1.0, 1)
    scale = min(width / wide, height / high) * 0.9
    thickness = max(1, round(scale * random.uniform(0.8, 5)))
    # text grows up and to the right from here
    at = round((width - wide * scale) / 2), round((height + high * scale) / 2)
    if random.random() < 0.25:  # with a shadow or an outline
        cv2.putText(part, text, at, font, scale, 0 if grey > 127 else 255, thickness + 2, cv2.LINE_AA)
    cv2.putText(part, text, at, font, scale, grey, thickness, cv2.LINE_AA)


def _emblem(part: UInt8Array, grey: int, random: np.random.Generator) -> None:
    """A disc or a plate with a star, rings or letters in it; or a star alone."""
    height, width = part.shape
    centre, axes = (width // 2, height // 2), (max(1, width // 2 - 1), max(1, height // 2 - 1))
    inner = _contrasting_grey(grey, random)
    ground, what = random.random(), int(random.integers(3))
    if ground < 0.5:
        cv2.ellipse(part, centre, axes, 0, 0, 360, grey, cv2.FILLED, cv2.LINE_AA)
    elif ground < 0.7:
        part[:] = grey
    elif ground < 0.85:
        cv2.ellipse(part, centre, axes, 0, 0, 360, grey, max(1, width // 14), cv2.LINE_AA)
        inner = grey
    else:
        inner, what = grey, 0
    if what == 0:
        _star(part, inner, random)
    elif what == 1:
        for share in sorted(random.uniform(0.2, 0.85, int(random.integers(1, 4))), reverse=True):
            sides = max(1, round(axes[0] * share)), max(1, round(axes[1] * share))
            cv2.ellipse(part, centre, sides, 0, 0, 360, inner, int(random.choice((-1, 1, 2, 3))), cv2.LINE_AA)
            inner = _contrasting_grey(inner, random)
    else:
        rows, columns = height // 5, width // 5
        _letters(part[rows : height - rows, columns : width - columns], inner, random)


def _star(part: UInt8Array, grey: int, random: np.random.Generator) -> None:
    height, width = part.shape
    points = int(random.choice((4, 5, 5, 5, 6, 8)))
    radii = np.tile((0.46, 0.46 * random.uniform(0.3, 0.6)), points)
    angles = np.arange(2 * points) * math.pi / points + random.uniform(-0.4, 0.4) - math.pi / 2
    corners = np.stack([np.cos(angles) * radii * width + width / 2, np.sin(angles) * radii * height + height / 2], 1)
    cv2.fillPoly(part, [corners.astype(np.int32)], grey, cv2.LINE_AA)


def _oval(part: UInt8Array, grey: int, random: np.random.Generator) -> None:
    """An oval with two marks, anywhere in it but side by side as eyes are, or a blurred light."""
    height, width = part.shape
    centre, axes = (width // 2, height // 2), (max(1, width // 2 - 1), max(1, height // 2 - 1))
    cv2.ellipse(part, centre, axes, 0, 0, 360, grey, cv2.FILLED, cv2.LINE_AA)
    if random.random() < 0.25:
        part[:] = cv2.GaussianBlur(part, (0, 0), 0.1 * height)
        return
    mark, angle = _contrasting_grey(grey, random), random.uniform(0.5, math.pi - 0.5)
    reach, radius = random.uniform(0.3, 0.6), max(1, round(random.uniform(0.05, 0.16) * width))
    for sign in (-1, 1):
        at = (
            round(centre[0] + sign * reach * axes[0] * math.cos(angle)),
            round(centre[1] + sign * reach * axes[1] * math.sin(angle)),
        )
        cv2.circle(part, at, radius, mark, cv2.FILLED, cv2.LINE_AA)


Kind = Callable[[UInt8Array, int, np.random.Generator], None]
KINDS: tuple[Kind, ...] = (_letters, _letters, _emblem, _emblem, _oval)
