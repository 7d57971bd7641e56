"""Which mask a face wears and how, drawn by seed and name alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maskfer_trainer.draw import drawn_number
from maskfer_trainer.masks import HSV, Kind
from maskfer_trainer.patterns import PATTERNS
from maskfer_trainer.rendering import Wearing

# Chosen by eye on photographs of real masks, which mostly sit high, up to under the eyes.
TOP = (0.2, 0.5)
SIZE = (0.95, 1.06)
SHIFT = 0.04
TURN = 4.0
PATTERN_SIZE = (0.5, 1.6)


def draw_wearing(kinds: Sequence[Kind], worn: Sequence[str], seed: int, name: str, plain: bool) -> tuple[Kind, Wearing]:
    """Choose a mask and how it is worn.

    Args:
        kinds: Kinds to choose from.
        worn: Keys of `rendering.WORN` to choose from.
        seed: Another seed gives other choices.
        name: Of the face; each has choices of its own.
        plain: Choose kind and way of wearing only; the rest is as drawn.
    """
    random = np.random.default_rng(drawn_number("mask", seed, name))
    kind = kinds[int(random.integers(len(kinds)))]
    way = worn[int(random.integers(len(worn)))]
    if plain:
        return kind, Wearing(colour=kind.palette[0][0], worn=way, creases=0.0)

    def between(low: float, high: float) -> float:
        return round(float(random.uniform(low, high)), 3)

    middle, stray = kind.palette[int(random.integers(len(kind.palette)))]
    hue, saturation, value = (m + between(-1, 1) * s for m, s in zip(middle, stray, strict=True))
    colour: HSV = (
        round(hue % 360, 1),
        round(float(np.clip(saturation, 0, 1)), 3),
        round(float(np.clip(value, 0, 1)), 3),
    )
    # straps and prints are mostly white, else black or of any colour
    second: HSV = (0.0, 0.0, between(0.85, 1.0))
    other = random.random()
    if other < 0.15:
        second = (0.0, 0.0, between(0.05, 0.2))
    elif other < 0.4:
        second = (between(0, 360), between(0.3, 0.9), between(0.4, 0.9))
    patterned = random.random() < kind.patterned
    pattern = PATTERNS[int(random.integers(len(PATTERNS)))]
    return kind, Wearing(
        colour=colour,
        second=second,
        pattern=pattern if patterned else "",
        pattern_size=between(*PATTERN_SIZE),
        creases=between(0.1, 1),
        worn=way,
        top=between(*TOP),
        size=between(*SIZE),
        shift=(between(-SHIFT, SHIFT), between(-SHIFT, SHIFT)),
        turn=between(-TURN, TURN),
        seed=int(random.integers(2**31)),
    )
