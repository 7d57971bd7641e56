"""A second look at what a detector takes for faces, at the picture's own resolution and with their surroundings.

A cascade's second stage, as in MTCNN (Zhang and others, Joint Face Detection and Alignment Using Multi-task Cascaded
Convolutional Networks, 2016); the network, and how both scores become one, are our own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from maskfer_edge.contract import UInt8Array
from maskfer_edge.dependencies import cv2
from maskfer_edge.detector import Box, Detection, overlap, scaled
from maskfer_edge.errors import ModelError
from maskfer_edge.runtime import AUTO, check_types, codes_of_pixels, dequantised, open_interpreter

SIDE = 48
# Side of what the network sees, in sides of the face's box.
CONTEXT = 1.5
# Light and contrast are evened out: mean and standard deviation in grey levels, and how often the latter grows at most.
# What lies beyond the picture's edge has the mean.
MEAN, DEVIATION, MOST_GAIN = 127, 50.0, 5.0
# A detector's score from which a second look is taken, and at how many of a picture's surest at most: on validation
# scenes 0.1 has the same F1 with half as many looks again; on the tuning half of the photographs no face needs more.
CANDIDATE, MOST_LOOKS = 0.15, 16
# From here on a detector's score is believed: on validation scenes and the tuning half no second look changed its fate.
SURE = 0.8
# Of boxes that share so much (intersection over union), only the surest is kept: the network finds all of them likely.
SAME_FACE = 0.25
# Neither score is ever quite sure: 8 bits tell no finer.
LEAST_DOUBT = 1 / 512


def surroundings(image: UInt8Array, box: Box) -> UInt8Array:
    """What a second look sees of a face.

    Args:
        image: (height, width, 3) uint8, B,G,R, or (height, width) grey.
        box: Left, top, width, height in pixels; its centre lies in the picture.

    Returns:
        (48, 48) uint8 grey: a square round the box's centre, `CONTEXT` times as wide as the box, in even light.
    """
    left, top, width, height = box
    side = max(1, round(CONTEXT * math.sqrt(width * height)))
    lows = round(left + (width - side) / 2), round(top + (height - side) / 2)
    inside = [(max(low, 0), min(low + side, length)) for low, length in zip(lows, image.shape[1::-1], strict=True)]
    found = np.full((SIDE, SIDE), MEAN, dtype=np.uint8)
    (x0, x1), (y0, y1) = inside
    if x0 >= x1 or y0 >= y1:
        return found
    part = image[y0:y1, x0:x1]
    grey = cv2.cvtColor(part, cv2.COLOR_BGR2GRAY) if part.ndim == 3 else part
    (to_x0, to_x1), (to_y0, to_y1) = (
        _placed(start - low, end - low, side) for (start, end), low in zip(inside, lows, strict=True)
    )
    interpolation = cv2.INTER_AREA if side > SIDE else cv2.INTER_LINEAR
    small = cv2.resize(grey, (to_x1 - to_x0, to_y1 - to_y0), interpolation=interpolation)
    mean, deviation = (float(value[0, 0]) for value in cv2.meanStdDev(small))
    gain = min(MOST_GAIN, DEVIATION / max(deviation, 1.0))
    # one pass that rounds and clips; numpy takes ten times as long
    found[to_y0:to_y1, to_x0:to_x1] = cv2.addWeighted(small, gain, small, 0, MEAN - gain * mean)
    return found


def _placed(start: int, end: int, side: int) -> tuple[int, int]:
    """From where to where a part of the square lies in the result; at least one pixel."""
    first = min(SIDE - 1, round(start * SIDE / side))
    return first, max(first + 1, round(end * SIDE / side))


def combined(score: float, likely: float) -> float:
    """The mean of two probabilities' log odds, as a probability."""
    odds = 1.0
    for probability in (score, likely):
        # in this order a float network's NaN is no face
        doubtful = min(1 - LEAST_DOUBT, max(LEAST_DOUBT, probability))
        odds *= doubtful / (1 - doubtful)
    return math.sqrt(odds) / (1 + math.sqrt(odds))


class Rescorer:
    """Asks a network about each candidate. The interpreter is built once; not for two threads at a time."""

    def __init__(self, flatbuffer: bytes, runtime: str = AUTO, threads: int = 1, name: str = "rescorer") -> None:
        """Open the network and check its tensors.

        Args:
            flatbuffer: A TFLite model: `surroundings` in, the probability of a face out.
            runtime: See `runtime.open_interpreter`.
            threads: Likewise.
            name: For messages.

        Raises:
            ModelError: If the tensors are not one (1, 48, 48, 1) input and one (1, 1) output.
            DependencyError: If no TFLite runtime works here.
        """
        self._interpreter = open_interpreter(flatbuffer, runtime, threads, name)
        details = [*self._interpreter.get_input_details(), *self._interpreter.get_output_details()]
        shapes = [tuple(int(n) for n in detail["shape"]) for detail in details]
        expected = [(1, SIDE, SIDE, 1), (1, 1)]
        if shapes != expected:
            raise ModelError(f"{name} has a second network with tensors of shapes {shapes}; expected {expected}")
        check_types(details, f"the second network of {name}")
        self._input, self._output = details
        self._codes = codes_of_pixels(self._input)

    def __call__(
        self,
        image: UInt8Array,
        smaller: UInt8Array,
        candidates: Sequence[Detection],
        least_score: float,
        *,
        whole_crowd: bool = False,
    ) -> list[Detection]:
        """Give candidates scores that count what a second look says.

        Args:
            image: The picture in which they were found, (height, width, 3) uint8, B,G,R, or (height, width) grey.
            smaller: The same, (h, w) uint8 grey, however small: what has twice the pixels that are needed in it is
                looked at there, as that takes a fraction of the time.
            candidates: With scores from 0 to 1, the surest first. Those of `SURE` and more keep theirs; of the others
                those beyond `MOST_LOOKS` are left out.
            least_score: Those that end below it are left out.
            whole_crowd: Whether those beyond `MOST_LOOKS` are looked at all the same, and given as not readable.

        Returns:
            The others with their new scores, 0 to 1, the readable ones before the rest, the surest first and each face
            once.
        """
        scale = smaller.shape[1] / image.shape[1]
        looked = [found for found in candidates if found.score >= SURE]
        doubtful = candidates[len(looked) :]
        for number, found in enumerate(doubtful if whole_crowd else doubtful[:MOST_LOOKS]):
            seen, box = image, found.box
            if scale < 1 and scale * CONTEXT * math.sqrt(box[2] * box[3]) >= 2 * SIDE:
                seen, box = smaller, scaled(box, scale)
            score = combined(found.score, self.likely(surroundings(seen, box)))
            looked.append(Detection(found.box, score, readable=number < MOST_LOOKS))
        kept: list[Detection] = []
        for found in sorted(looked, key=lambda found: (not found.readable, -found.score)):
            if found.score >= least_score and all(overlap(found.box, other.box) < SAME_FACE for other in kept):
                kept.append(found)
        return kept

    def likely(self, crop: UInt8Array) -> float:
        """How likely a (48, 48) uint8 crop of `surroundings` shows a face, 0 to 1."""
        tensor: Any = self._codes[crop][None, ..., None]
        self._interpreter.set_tensor(self._input["index"], tensor)
        self._interpreter.invoke()
        return float(dequantised(self._interpreter.get_tensor(self._output["index"]), self._output)[0, 0])
