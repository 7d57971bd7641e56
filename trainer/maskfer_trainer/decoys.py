"""What a face detector takes for faces and is none, drawn on training scenes: letters, emblems, ovals, clothes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from maskfer_edge.contract import UInt8Array
from maskfer_edge.dependencies import cv2
from maskfer_edge.detector import Box

# Sides in pixels, as faces have them.
SMALLEST, LARGEST = 16, 120
# Free pixels between a decoy and any face.
MARGIN = 4
# Places that are tried for each.
TRIES = 6
FONTS = (
    cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_PLAIN, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX,
    cv2.FONT_HERSHEY_TRIPLEX, cv2.FONT_HERSHEY_COMPLEX_SMALL, cv2.FONT_HERSHEY_SCRIPT_SIMPLEX,
    cv2.FONT_HERSHEY_SCRIPT_COMPLEX,
)  # fmt: skip
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789&@%"


def draw_decoys(image: UInt8Array, boxes: list[Box], count: int, random: np.random.Generator) -> None:
    """Draw decoys on a scene, in place, each where it overlaps none of `boxes`; one that finds no place is left out."""
    height, width = image.shape
    for _ in range(count):
        kind = KINDS[int(random.integers(len(KINDS)))]
        side = math.exp(random.uniform(math.log(SMALLEST), math.log(LARGEST)))
        # words are wide
        high, wide = round(side), round(side * random.uniform(0.8, 2.0 if kind is _letters else 1.25))
        for _ in range(TRIES):
            left, top = int(random.integers(1 - wide // 4, width - wide)), int(random.integers(0, height - high))
            if all(_apart((left, top, wide, high), box) for box in boxes):
                _draw(image, kind, (left, top, wide, high), random)
                break


def draw_clothes(image: UInt8Array, face: Box, others: list[Box], random: np.random.Generator) -> None:
    """Draw shoulders and a chest below a face, in place, with a collar and what clothes carry.

    The portraits that scenes are made of show little below the chin, but below each face a detector meets collars,
    patches and straps.

    Args:
        image: (h, w) uint8 grey.
        face: Its box. If it ends at the lower edge, nothing is drawn.
        others: Boxes to keep off, else nothing is drawn; the face's own may be among them.
        random: Source of randomness.
    """
    x, y, w, h = face
    height, width = image.shape
    half, top, high = random.uniform(1.0, 1.6) * w, y + h, random.uniform(1.2, 2.4) * h
    middle = x + w / 2 + random.uniform(-0.2, 0.2) * w
    box = (round(middle - half), top, round(2 * half), round(high))
    if top >= height - MARGIN or not all(_apart(box, other) for other in others if other != face):
        return
    # drawn whole, then cut to the scene
    wide, tall = box[2], box[3]
    part = _cloth(wide, tall, random)
    neck, slope = random.uniform(0.25, 0.45) * w, random.uniform(0.15, 0.5) * h
    _collar(part, neck, random)
    for _ in range(int(random.integers(5))):
        side = random.uniform(0.25, 0.8) * w
        left, under = round(random.uniform(0, wide - side)), round(random.uniform(0.1 * h, max(0.2 * h, tall - side)))
        if side >= 8 and under + side < tall:
            KINDS[int(random.integers(len(KINDS)))](
                part[under : under + round(side), left : left + round(side)], int(random.integers(256)), random
            )
    corners = ((half - neck, 0), (half + neck, 0), (wide, slope), (wide, tall), (0, tall), (0, slope))
    cover = np.zeros((tall, wide), np.uint8)
    cv2.fillPoly(cover, [np.array(corners).astype(np.int32)], 255)
    cover, part = (np.asarray(cv2.GaussianBlur(a, (0, 0), random.uniform(0.4, 1.2))) for a in (cover, part))
    left, right, bottom = max(0, box[0]), min(width, box[0] + wide), min(height, top + tall)
    seen = np.s_[max(0, -top) : bottom - top, left - box[0] : right - box[0]]
    under_it = image[max(0, top) : bottom, left:right]
    share = cover[seen].astype(np.float32) / 255
    under_it[:] = np.rint(share * part[seen] + (1 - share) * under_it).astype(np.uint8)


def _cloth(width: int, height: int, random: np.random.Generator) -> UInt8Array:
    """Cloth with folds, or stripes or checks on it: (height, width) uint8."""
    folds = random.normal(0, random.uniform(2, 25), (int(random.integers(2, 7)), int(random.integers(2, 9))))
    levels = random.uniform(20, 235) + cv2.resize(folds, (width, height), interpolation=cv2.INTER_CUBIC)
    if random.random() < 0.25:
        period, strength = random.uniform(4, 20), random.uniform(10, 60)
        across, down = np.arange(width) // (period / 2) % 2, np.arange(height)[:, None] // (period / 2) % 2
        levels = levels + strength * ((across, down, across * down)[int(random.integers(3))] - 0.5)
    return np.asarray(np.clip(levels, 0, 255), dtype=np.uint8)


def _collar(part: UInt8Array, neck: float, random: np.random.Generator) -> None:
    """A ring, a neckline with or without tie, flaps, a front with buttons, or straps."""
    height, width = part.shape
    middle, what, shade = width // 2, int(random.integers(6)), int(random.integers(256))
    line = max(1, round(neck * random.uniform(0.05, 0.3)))
    if what == 0:
        for _ in range(int(random.integers(1, 4))):
            axes = round(neck * random.uniform(0.9, 2.2)), round(neck * random.uniform(0.2, 0.9))
            cv2.ellipse(
                part, (middle, round(neck * random.uniform(-0.1, 0.4))), axes, 0, 0, 360, shade, line, cv2.LINE_AA
            )
            shade = int(random.integers(256))
    elif what in (1, 2):
        deep = round(min(height, neck * random.uniform(1, 5)))
        opening = [(middle - neck, 0), (middle + neck, 0), (middle, deep)]
        cv2.fillPoly(part, [np.array(opening).astype(np.int32)], shade, cv2.LINE_AA)
        if what == 2:
            tie = neck * random.uniform(0.15, 0.35)
            shape = [
                (middle - tie / 2, 0),
                (middle + tie / 2, 0),
                (middle + tie, 0.8 * deep),
                (middle - tie, 0.8 * deep),
            ]
            cv2.fillPoly(part, [np.array(shape).astype(np.int32)], int(random.integers(256)), cv2.LINE_AA)
    elif what == 3:
        for sign in (-1, 1):
            flap = [
                (middle + sign * neck * 0.1, 0),
                (middle + sign * neck * 1.3, 0),
                (middle + sign * neck * 0.7, neck),
            ]
            cv2.fillPoly(part, [np.array(flap).astype(np.int32)], shade, cv2.LINE_AA)
    elif what == 4:
        cv2.line(part, (middle, 0), (middle, height), shade, line, cv2.LINE_AA)
        for y in range(round(neck / 2), height, max(4, round(neck))):
            cv2.circle(part, (middle, y), line, int(random.integers(256)), cv2.FILLED, cv2.LINE_AA)
    else:
        for sign in (-1, 1):
            end = round(middle + sign * neck * random.uniform(0.2, 2))
            cv2.line(part, (round(middle + sign * neck), 0), (end, height), shade, 3 * line, cv2.LINE_AA)


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
    under = image[top : box[1] + box[3], left : box[0] + box[2]]
    shade = _shade(float(under.mean()), random)
    part = under.copy()
    kind(part, shade, random)
    if random.random() < 0.3:  # out of focus
        part = cv2.GaussianBlur(part, (0, 0), float(random.uniform(0.5, 0.03 * max(part.shape) + 0.6)))
    opacity = float(random.uniform(0.6, 1)) if random.random() < 0.4 else 1.0
    under[:] = cv2.addWeighted(part, opacity, under, 1 - opacity, 0)


def _shade(under: float, random: np.random.Generator) -> int:
    """A grey that stands out from what is under it."""
    apart = random.uniform(40, 200)
    up = under + apart <= 255 and (under - apart < 0 or random.random() < 0.7)
    return int(min(255, max(0, under + apart if up else under - apart)))


def _letters(part: UInt8Array, shade: int, random: np.random.Generator) -> None:
    height, width = part.shape
    text = "".join(LETTERS[i] for i in random.integers(len(LETTERS), size=int(random.choice((1, 1, 2, 3, 5)))))
    font = FONTS[int(random.integers(len(FONTS)))]
    (wide, high), _ = cv2.getTextSize(text, font, 1.0, 1)
    scale = min(width / wide, height / high) * 0.9
    thickness = max(1, round(scale * random.uniform(0.8, 5)))
    # text grows up and to the right from here
    at = round((width - wide * scale) / 2), round((height + high * scale) / 2)
    if random.random() < 0.25:  # with a shadow or an outline
        cv2.putText(part, text, at, font, scale, 0 if shade > 127 else 255, thickness + 2, cv2.LINE_AA)
    cv2.putText(part, text, at, font, scale, shade, thickness, cv2.LINE_AA)


def _emblem(part: UInt8Array, shade: int, random: np.random.Generator) -> None:
    """A disc or a plate with a star, rings or letters in it; or a star alone."""
    height, width = part.shape
    centre, axes = (width // 2, height // 2), (max(1, width // 2 - 1), max(1, height // 2 - 1))
    inner = _shade(shade, random)
    ground, what = random.random(), int(random.integers(3))
    if ground < 0.5:
        cv2.ellipse(part, centre, axes, 0, 0, 360, shade, cv2.FILLED, cv2.LINE_AA)
    elif ground < 0.7:
        part[:] = shade
    elif ground < 0.85:
        cv2.ellipse(part, centre, axes, 0, 0, 360, shade, max(1, width // 14), cv2.LINE_AA)
        inner = shade
    else:
        inner, what = shade, 0
    if what == 0:
        _star(part, inner, random)
    elif what == 1:
        for share in sorted(random.uniform(0.2, 0.85, int(random.integers(1, 4))), reverse=True):
            sides = max(1, round(axes[0] * share)), max(1, round(axes[1] * share))
            cv2.ellipse(part, centre, sides, 0, 0, 360, inner, int(random.choice((-1, 1, 2, 3))), cv2.LINE_AA)
            inner = _shade(inner, random)
    else:
        rows, columns = height // 5, width // 5
        _letters(part[rows : height - rows, columns : width - columns], inner, random)


def _star(part: UInt8Array, shade: int, random: np.random.Generator) -> None:
    height, width = part.shape
    points = int(random.choice((4, 5, 5, 5, 6, 8)))
    radii = np.tile((0.46, 0.46 * random.uniform(0.3, 0.6)), points)
    angles = np.arange(2 * points) * math.pi / points + random.uniform(-0.4, 0.4) - math.pi / 2
    corners = np.stack([np.cos(angles) * radii * width + width / 2, np.sin(angles) * radii * height + height / 2], 1)
    cv2.fillPoly(part, [corners.astype(np.int32)], shade, cv2.LINE_AA)


def _oval(part: UInt8Array, shade: int, random: np.random.Generator) -> None:
    """An oval with two marks, anywhere in it but side by side as eyes are, or a blurred light."""
    height, width = part.shape
    centre, axes = (width // 2, height // 2), (max(1, width // 2 - 1), max(1, height // 2 - 1))
    cv2.ellipse(part, centre, axes, 0, 0, 360, shade, cv2.FILLED, cv2.LINE_AA)
    if random.random() < 0.25:
        part[:] = cv2.GaussianBlur(part, (0, 0), 0.1 * height)
        return
    mark, angle = _shade(shade, random), random.uniform(0.5, math.pi - 0.5)
    reach, radius = random.uniform(0.3, 0.6), max(1, round(random.uniform(0.05, 0.16) * width))
    for sign in (-1, 1):
        at = (
            round(centre[0] + sign * reach * axes[0] * math.cos(angle)),
            round(centre[1] + sign * reach * axes[1] * math.sin(angle)),
        )
        cv2.circle(part, at, radius, mark, cv2.FILLED, cv2.LINE_AA)


Kind = Callable[[UInt8Array, int, np.random.Generator], None]
KINDS: tuple[Kind, ...] = (_letters, _letters, _emblem, _emblem, _oval)
