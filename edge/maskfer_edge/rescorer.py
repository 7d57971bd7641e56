"""The detector's second stage: scores its candidates again, at the picture's own resolution and with context.

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
from maskfer_edge.detector import Box, Detection, intersection, iou, scaled
from maskfer_edge.errors import ModelError
from maskfer_edge.runtime import AUTO, check_types, codes_of_pixels, dequantised, open_interpreter

SIDE = 48
# Side of what the network sees, in sides of the face's box.
CONTEXT = 1.5
# Light and contrast are evened out: mean and standard deviation in grey levels, and how often the latter grows at most.
# What lies beyond the picture's edge has the mean.
MEAN, DEVIATION, MAX_GAIN = 127, 50.0, 5.0
# First-stage score from which a candidate is rescored, and how many of a picture's highest-scoring ones are at most: on
# validation scenes 0.1 has the same F1 at 1.5 times the cost; on the tuning half of the photographs no face needs more.
CANDIDATE_SCORE, MAX_RESCORED = 0.15, 16
# First-stage score from which a candidate keeps its score: on validation scenes and the tuning half rescoring changed
# the outcome for none.
CONFIDENT_SCORE = 0.8
# Intersection over union from which only the highest-scoring box is kept: the network finds all of them likely.
NMS_IOU = 0.25
# Share of a box from which it lies in a higher-scoring one and is left out: an eye behind glasses looks like a face.
NMS_INSIDE = 0.8
# Probabilities are clipped to this distance from 0 and 1: 8 bits resolve no finer.
EPSILON = 1 / 512


def context_crop(image: UInt8Array, box: Box) -> UInt8Array:
    """Crop a candidate as the second stage sees it.

    Args:
        image: (height, width, 3) uint8, B,G,R, or (height, width) grey.
        box: Left, top, width, height in pixels; its centre lies in the picture.

    Returns:
        (48, 48) uint8 grey: a square round the box's centre, `CONTEXT` times as wide as the box, in even light.
    """
    left, top, width, height = box
    side = max(1, round(CONTEXT * math.sqrt(width * height)))
    origins = round(left + (width - side) / 2), round(top + (height - side) / 2)
    inside = [
        (max(origin, 0), min(origin + side, length)) for origin, length in zip(origins, image.shape[1::-1], strict=True)
    ]
    crop = np.full((SIDE, SIDE), MEAN, dtype=np.uint8)
    (x0, x1), (y0, y1) = inside
    if x0 >= x1 or y0 >= y1:
        return crop
    visible = image[y0:y1, x0:x1]
    grey = cv2.cvtColor(visible, cv2.COLOR_BGR2GRAY) if visible.ndim == 3 else visible
    (to_x0, to_x1), (to_y0, to_y1) = (
        _span(start - origin, end - origin, side) for (start, end), origin in zip(inside, origins, strict=True)
    )
    interpolation = cv2.INTER_AREA if side > SIDE else cv2.INTER_LINEAR
    small = cv2.resize(grey, (to_x1 - to_x0, to_y1 - to_y0), interpolation=interpolation)
    mean, deviation = (float(value[0, 0]) for value in cv2.meanStdDev(small))
    gain = min(MAX_GAIN, DEVIATION / max(deviation, 1.0))
    # one pass that rounds and clips; numpy takes ten times as long
    crop[to_y0:to_y1, to_x0:to_x1] = cv2.addWeighted(small, gain, small, 0, MEAN - gain * mean)
    return crop


def _span(start: int, end: int, side: int) -> tuple[int, int]:
    """From where to where a part of the square lies in the result; at least one pixel."""
    first = min(SIDE - 1, round(start * SIDE / side))
    return first, max(first + 1, round(end * SIDE / side))


def _same_face(box: Box, higher_scoring: Box) -> bool:
    inside = intersection(box, higher_scoring) / (box[2] * box[3])
    return inside >= NMS_INSIDE or iou(box, higher_scoring) >= NMS_IOU


def combine_scores(score: float, face_probability: float) -> float:
    """The mean of two probabilities' log odds, as a probability."""
    odds = 1.0
    for probability in (score, face_probability):
        # in this order a float network's NaN is no face
        clipped = min(1 - EPSILON, max(EPSILON, probability))
        odds *= clipped / (1 - clipped)
    return math.sqrt(odds) / (1 + math.sqrt(odds))


class Rescorer:
    """Scores each candidate with a second network. The interpreter is built once; not for two threads at a time."""

    def __init__(self, flatbuffer: bytes, runtime: str = AUTO, threads: int = 1, name: str = "rescorer") -> None:
        """Open the network and check its tensors.

        Args:
            flatbuffer: A TFLite model: `context_crop` in, the probability of a face out.
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
        min_score: float,
        *,
        rescore_all: bool = False,
    ) -> list[Detection]:
        """Rescore candidates, and suppress all but the highest-scoring of overlapping ones.

        Args:
            image: The picture in which they were found, (height, width, 3) uint8, B,G,R, or (height, width) grey.
            smaller: The same, (h, w) uint8 grey, however small: what has twice the pixels that are needed in it is
                cropped from it, as that takes a fraction of the time.
            candidates: With scores from 0 to 1, the highest first. Those of `CONFIDENT_SCORE` and more keep theirs; of
                the others those beyond `MAX_RESCORED` are left out.
            min_score: Those whose new score is below it are left out.
            rescore_all: Whether those beyond `MAX_RESCORED` are rescored all the same, and returned as not readable.

        Returns:
            The others with their new scores, 0 to 1, the readable ones before the rest, the highest score first and
            each face once.
        """
        scale = smaller.shape[1] / image.shape[1]
        rescored = [candidate for candidate in candidates if candidate.score >= CONFIDENT_SCORE]
        uncertain = candidates[len(rescored) :]
        for number, candidate in enumerate(uncertain if rescore_all else uncertain[:MAX_RESCORED]):
            source, box = image, candidate.box
            if scale < 1 and scale * CONTEXT * math.sqrt(box[2] * box[3]) >= 2 * SIDE:
                source, box = smaller, scaled(box, scale)
            score = combine_scores(candidate.score, self.face_probability(context_crop(source, box)))
            rescored.append(Detection(candidate.box, score, readable=number < MAX_RESCORED))
        kept: list[Detection] = []
        for detection in sorted(rescored, key=lambda detection: (not detection.readable, -detection.score)):
            if detection.score >= min_score and not any(_same_face(detection.box, other.box) for other in kept):
                kept.append(detection)
        return kept

    def face_probability(self, crop: UInt8Array) -> float:
        """Probability that a (48, 48) uint8 crop of `context_crop` shows a face, 0 to 1."""
        tensor: Any = self._codes[crop][None, ..., None]
        self._interpreter.set_tensor(self._input["index"], tensor)
        self._interpreter.invoke()
        return float(dequantised(self._interpreter.get_tensor(self._output["index"]), self._output)[0, 0])
