"""Face detection by a quantised network that was trained on masked faces too, and a second one that rescores.

The network follows CenterNet (Zhou, Wang and Krähenbühl, "Objects as Points", 2019): for each cell of a coarse grid it
says how likely a face's centre lies in it, where in it, and how large that face is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maskfer_edge.contract import FloatArray, UInt8Array
from maskfer_edge.dependencies import cv2
from maskfer_edge.detector import NMS_IOU, Box, Detection, Detector
from maskfer_edge.errors import DependencyError, InputError, ModelError
from maskfer_edge.model_file import DetectorModel, load_detector_model
from maskfer_edge.rescorer import CANDIDATE_SCORE, Rescorer
from maskfer_edge.runtime import AUTO, check_types, codes_of_pixels, dequantised, open_interpreter

DEFAULT_DETECTOR = "detector-int8.tflite"
# What surrounds a picture whose shape is not the network's.
PADDING = 127
# Small pictures are enlarged no further: more pixels would add nothing new.
MAX_UPSCALING = 2.0
# Of the highest-scoring cells, so that a picture full of likely ones does not hold up the loop.
MAX_CANDIDATES = 64
# Share of the input's height that a face's side must have. Six in ten false boxes on the tuning half of the
# photographs were smaller, and of so small a face no expression can be read.
MIN_FACE_SHARE = 1 / 12
# Logarithm of a face's side in cells, either way: beyond, the exponential of a bad network would have no end or be 0.
MAX_LOG_SIZE = 6.0
NEIGHBOURS = np.ones((3, 3), dtype=np.uint8)


def open_learned_detector(path: Path | None = None, runtime: str = AUTO, threads: int = 1) -> LearnedDetector:
    """A learned detector by a model file, or by the bundled one if `path` is None.

    Raises:
        DependencyError: If no model is bundled with this installation, or no TFLite runtime works here.
        InputError: If the file cannot be read; ModelError if it does not keep the contract.
    """
    if path is not None:
        return LearnedDetector(load_detector_model(path), runtime, threads)
    bundled = files("maskfer_edge") / "data" / DEFAULT_DETECTOR
    if not bundled.is_file():
        raise DependencyError(
            f"the learned detector's model ({DEFAULT_DETECTOR}) is not in this installation; "
            "name one with --detector-model FILE, or take --detector haar"
        )
    with as_file(bundled) as bundled_path:
        return LearnedDetector(load_detector_model(bundled_path), runtime, threads)


class Placement(NamedTuple):
    """Where `letterbox` put a picture.

    Attributes:
        left: Of the picture within the result, in pixels.
        top: Likewise.
        scale_x: Pixels of the result to one of the picture.
        scale_y: Likewise; differs only by rounding to whole pixels.
    """

    left: int
    top: int
    scale_x: float
    scale_y: float


def letterbox(image: UInt8Array, out: UInt8Array) -> Placement:
    """Put a picture, grey and as large as fits undistorted, into the middle of an array that is else `PADDING`.

    It is made smaller by area interpolation, or larger bilinearly, at most `MAX_UPSCALING` times.

    Args:
        image: (height, width, 3) uint8, B,G,R, or (height, width) grey; not empty.
        out: (h, w) uint8, which is filled.

    Returns:
        Where it lies.
    """
    height, width = image.shape[:2]
    out_height, out_width = out.shape
    scale = min(out_width / width, out_height / height, MAX_UPSCALING)
    placed_w, placed_h = (max(1, round(side * scale)) for side in (width, height))
    left, top = (out_width - placed_w) // 2, (out_height - placed_h) // 2
    if (placed_h, placed_w) != out.shape:
        out.fill(PADDING)
    # one plane is resized faster than three
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if image.ndim == 3 else image
    place = out[top : top + placed_h, left : left + placed_w]
    if grey.shape == place.shape:
        place[...] = grey
    else:
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        cv2.resize(grey, (placed_w, placed_h), dst=place, interpolation=interpolation)
    return Placement(left, top, placed_w / width, placed_h / height)


def decode(
    heat: FloatArray,
    boxes: FloatArray,
    stride: int,
    threshold: float,
    min_side: float = 0.0,
    max_candidates: int | None = MAX_CANDIDATES,
) -> tuple[FloatArray, FloatArray]:
    """Decode a network's output into faces, with non-maximum suppression.

    A face is a cell that is as hot as any of its eight neighbours, and at least `threshold`. Of the `max_candidates`
    hottest, those are left out whose box shares more than `NMS_IOU` (intersection over union) with a hotter one's.

    Args:
        heat: (h, w) float32, 0 to 1: how likely a face's centre lies in each cell.
        boxes: (h, w, 4) float32: the centre's offset to the right of and below the cell's own, in cells, and the
            logarithms of the face's width and height in cells.
        stride: Side of a cell in pixels of the network's input.
        threshold: Minimum heat of a face.
        min_side: Minimum side of a face (square root of its box's area) in pixels of the input.
        max_candidates: None: all.

    Returns:
        (n, 4) float32 boxes (left, top, width, height) in pixels of the input, and their (n,) float32 scores, the
        highest first.
    """
    above = heat >= threshold
    if not above.any():
        return np.empty((0, 4), dtype=np.float32), np.empty(0, dtype=np.float32)
    rows, columns = np.nonzero(above & (heat >= cv2.dilate(heat, NEIGHBOURS)))
    scores = heat[rows, columns]
    order = np.argsort(-scores, kind="stable")
    rows, columns, scores = rows[order], columns[order], scores[order]
    dx, dy, *log_sizes = boxes[rows, columns].T
    width, height = np.exp(np.maximum(np.minimum(log_sizes, MAX_LOG_SIZE), -MAX_LOG_SIZE))
    left, top = columns + np.float32(0.5) + dx - width / 2, rows + np.float32(0.5) + dy - height / 2
    found = (np.stack([left, top, width, height], axis=1) * stride).astype(np.float32)
    # a float network's NaN is no face
    valid = np.isfinite(found).all(axis=1) & (found[:, 2] * found[:, 3] >= min_side**2)
    found, scores = found[valid][:max_candidates], scores[valid][:max_candidates]
    kept = np.asarray(cv2.dnn.NMSBoxes(found.tolist(), scores.tolist(), 0.0, NMS_IOU), dtype=np.intp)
    return found[kept], scores[kept]


class LearnedDetector(Detector):
    """Finds bare and masked faces. The interpreter and its buffers are built once; not for two threads at a time.

    Attributes:
        model: The opened model.
        score_threshold: Minimum score of a face; may be changed.
        keep_small: Whether faces smaller than `MIN_FACE_SHARE`, and those of a crowd that would not be rescored, are
            returned as well, as not readable; may be changed.
    """

    name = "learned"

    def __init__(
        self, model: DetectorModel, runtime: str = AUTO, threads: int = 1, *, score_threshold: float | None = None
    ) -> None:
        """Open the model and check its tensors.

        Args:
            model: What to open.
            runtime: See `runtime.open_interpreter`.
            threads: Likewise.
            score_threshold: Minimum score of a face, 0 to 1; None: the model file's.

        Raises:
            ModelError: If the tensors are not one (1, H, W, 1) input, and the outputs (1, h, w, 1) and (1, h, w, 4), or
                those of a second network are not `rescorer.Rescorer`'s.
            DependencyError: If no TFLite runtime works here.
        """
        self.model = model
        self.score_threshold = model.info.score_threshold if score_threshold is None else score_threshold
        self.keep_small = False
        self._interpreter = open_interpreter(model.flatbuffer, runtime, threads, model.name)
        (width, height), stride = model.info.input_size_wh, model.info.stride
        self._input, self._heat, self._boxes = self._checked_tensors(width, height, stride)
        self._grey = np.empty((height, width), dtype=np.uint8)
        self._codes = codes_of_pixels(self._input)
        # as the converter makes it, a pixel is its own code, and the grey picture is the tensor
        self._identity_codes = self._codes.dtype == np.uint8 and bool((self._codes == np.arange(256)).all())
        coded = self._grey if self._identity_codes else np.empty((height, width), dtype=self._codes.dtype)
        self._tensor = coded[None, ..., None]
        self._rescorer = Rescorer(model.rescorer, runtime, threads, model.name) if model.rescorer else None

    def __call__(self, image: UInt8Array, near: Sequence[Box] = ()) -> list[Detection]:
        """Find the faces of a picture, everywhere: `near` would save nothing.

        Args:
            image: (height, width, 3) uint8, B,G,R, or (height, width) grey, of any size.
            near: Ignored.

        Returns:
            The faces, the highest score first, and after them the small ones (see `keep_small`), likewise.
            Boxes are in whole pixels of the picture and may reach beyond it, but their centres do not; scores are
            from 0 to 1.

        Raises:
            InputError: If the picture is empty or of another type.
        """
        return self.detect(image, image)

    def detect(self, image: UInt8Array, smaller: UInt8Array, near: Sequence[Box] = ()) -> list[Detection]:
        """As a call; the first stage sees the smaller picture, the second stage crops from the larger one."""
        if image.dtype != np.uint8 or image.size == 0 or not (image.ndim == 2 or image.shape[2:] == (3,)):
            raise InputError(f"expected a uint8 picture, grey or B,G,R; received {image.dtype} of {image.shape}")
        placement = letterbox(smaller, self._grey)
        if not self._identity_codes:
            # any mode but the default writes without a copy between
            np.take(self._codes, self._grey, out=self._tensor[0, ..., 0], mode="clip")
        self._interpreter.set_tensor(self._input["index"], self._tensor)
        self._interpreter.invoke()
        heat, boxes = self._output(self._heat)[..., 0], self._output(self._boxes)
        min_side = MIN_FACE_SHARE * self._grey.shape[0]
        threshold = CANDIDATE_SCORE if self._rescorer else self.score_threshold
        stride = self.model.info.stride
        (height, width), (smaller_h, smaller_w) = image.shape[:2], smaller.shape[:2]
        placed_w, placed_h = round(smaller_w * placement.scale_x), round(smaller_h * placement.scale_y)
        in_image = placement._replace(scale_x=placed_w / width, scale_y=placed_h / height)
        downscaled = self._grey[placement.top : placement.top + placed_h, placement.left : placement.left + placed_w]

        def faces(heat: FloatArray, min_side: float) -> list[Detection]:
            # where faces are to be covered, none is left out
            limit = None if self.keep_small else MAX_CANDIDATES
            found, scores = decode(heat, boxes, stride, threshold, min_side, limit)
            detections = _to_picture(found, scores, in_image, width, height)
            if self._rescorer is None:
                return detections
            return self._rescorer(image, downscaled, detections, self.score_threshold, rescore_all=self.keep_small)

        readable = faces(heat, min_side)
        if not self.keep_small:
            return readable
        # apart, so that they hide no larger ones
        small = boxes[..., 2:].sum(axis=-1) < 2 * np.log(min_side / stride)
        return readable + [replace(face, readable=False) for face in faces(np.where(small, heat, 0), 0)]

    def _checked_tensors(self, width: int, height: int, stride: int) -> tuple[Any, Any, Any]:
        """Details of the input, the heat and the boxes."""
        inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        outputs = sorted(outputs, key=lambda detail: int(detail["shape"][-1]) if len(detail["shape"]) else 0)
        shapes = [tuple(int(n) for n in detail["shape"]) for detail in (*inputs, *outputs)]
        cells = (1, height // stride, width // stride)
        expected = [(1, height, width, 1), (*cells, 1), (*cells, 4)]
        if len(inputs) != 1 or shapes != expected:
            raise ModelError(f"{self.model.name} has tensors of shapes {shapes}; expected {expected}")
        check_types((*inputs, *outputs), self.model.name)
        return inputs[0], outputs[0], outputs[1]

    def _output(self, detail: Any) -> FloatArray:
        """An output without its first dimension, dequantised: (h, w, n) float32."""
        return dequantised(self._interpreter.get_tensor(detail["index"])[0], detail)


def _to_picture(
    found: FloatArray, scores: FloatArray, placement: Placement, width: int, height: int
) -> list[Detection]:
    """Boxes of the letterboxed picture in pixels of the picture itself, without those that lie in the padding."""
    detections = []
    for (x, y, w, h), score in zip(found.tolist(), scores.tolist(), strict=True):
        left, box_width = (x - placement.left) / placement.scale_x, w / placement.scale_x
        top, box_height = (y - placement.top) / placement.scale_y, h / placement.scale_y
        if 0 <= left + box_width / 2 <= width and 0 <= top + box_height / 2 <= height:
            detections.append(
                Detection((round(left), round(top), max(1, round(box_width)), max(1, round(box_height))), score)
            )
    return detections
