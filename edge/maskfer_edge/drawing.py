"""Rectangles and words on a frame."""

from __future__ import annotations

from maskfer_edge.contract import LABELS, UInt8Array
from maskfer_edge.dependencies import cv2
from maskfer_edge.results import UNSURE, FrameResult

FONT = cv2.FONT_HERSHEY_DUPLEX
# B,G,R; told apart by people with colour-weak eyes as well (after Okabe and Ito 2008)
COLOURS = dict(
    zip(
        LABELS,
        (
            (0, 94, 213),
            (115, 158, 0),
            (167, 121, 204),
            (66, 228, 240),
            (200, 200, 200),
            (178, 114, 0),
            (233, 180, 86),
        ),
        strict=True,
    )
)
COLOURS[UNSURE] = (128, 128, 128)


# Squares a blurred face is left with from side to side: too few to know anyone by.
BLUR_CELLS = 8
# Share of a face's box by which the blurred part reaches beyond it: hair and ears tell people apart too.
BLUR_MARGIN = 0.25


def annotate(image: UInt8Array, result: FrameResult, *, blur: bool = False) -> UInt8Array:
    """Draw each face's rectangle, expression and confidence.

    Args:
        image: (height, width, 3) uint8, B,G,R; not changed.
        result: Of this frame.
        blur: Whether faces are made unrecognisable first.

    Returns:
        A new picture of the same shape.
    """
    drawn = image.copy()
    height, width = drawn.shape[:2]
    if blur:
        for box in (*(face.box for face in result.faces), *result.covered):
            _pixelate(drawn, box)
    line = max(1, round(min(height, width) / 240))
    scale = max(0.4, min(height, width) / 800)
    for face in result.faces:
        x, y, w, h = face.box
        colour = COLOURS[face.expression]
        # the dark rim keeps light colours visible on light pictures
        cv2.rectangle(drawn, (x, y), (x + w, y + h), (0, 0, 0), line + 2, cv2.LINE_AA)
        cv2.rectangle(drawn, (x, y), (x + w, y + h), colour, line, cv2.LINE_AA)
        text = f"{face.expression} {face.confidence:.0%}"
        (text_w, text_h), below = cv2.getTextSize(text, FONT, scale, 1)
        pad = line + 2
        left = max(0, min(x - line // 2, width - text_w - 2 * pad))
        bottom = y if y >= text_h + below + 2 * pad else min(height, y + h + text_h + below + 2 * pad)
        top = bottom - text_h - below - 2 * pad
        cv2.rectangle(drawn, (left, top), (left + text_w + 2 * pad, bottom), colour, cv2.FILLED)
        ink = (0, 0, 0) if sum(colour) > 330 else (255, 255, 255)
        cv2.putText(drawn, text, (left + pad, bottom - below - pad), FONT, scale, ink, 1, cv2.LINE_AA)
    return drawn


def _pixelate(image: UInt8Array, box: tuple[int, int, int, int]) -> None:
    """Make a part of a picture, in place, of a few large squares."""
    x, y, w, h = box
    margin_x, margin_y = round(w * BLUR_MARGIN), round(h * BLUR_MARGIN)
    roi = image[max(0, y - margin_y) : max(0, y + h + margin_y), max(0, x - margin_x) : max(0, x + w + margin_x)]
    if roi.size:
        cells = cv2.resize(roi, (BLUR_CELLS, BLUR_CELLS), interpolation=cv2.INTER_AREA)
        roi[:] = cv2.resize(cells, roi.shape[1::-1], interpolation=cv2.INTER_NEAREST)
