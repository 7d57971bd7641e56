"""The results of a frame."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from maskfer_edge.contract import LABELS, FloatArray

# The expression of a face whose best label's score is below the minimum confidence.
UNSURE = "Unsure"


@dataclass(frozen=True)
class FaceResult:
    """One face in one frame.

    Attributes:
        track: Number that stays with a face from frame to frame.
        box: Left, top, width, height in pixels of the frame.
        detector_score: On the detector's own scale; Haar: how many windows agreed on the face.
        expression: A label, or `UNSURE`. It changes only when another one clearly leads, so that it does not flicker.
        confidence: Its score, 0 to 1.
        scores: Every label's score, 0 to 1, smoothed over the track's frames; they sum to 1.
    """

    track: int
    box: tuple[int, int, int, int]
    detector_score: float
    expression: str
    confidence: float
    scores: dict[str, float]


@dataclass(frozen=True)
class FrameResult:
    """All faces in one frame.

    Attributes:
        time: Live: seconds since 1970. File or folder: seconds from its beginning.
        frame: Number of the frame in the source, from 0.
        faces: In no particular order.
        latency_ms: From the frame's arrival in the loop to this result.
        covered: Where else a face is or may be, left, top, width, height in pixels: too small, doubtful, not read yet,
            or not found in this very frame. Known only where pictures are to be blurred; not in `to_json`.
    """

    time: float
    frame: int
    faces: tuple[FaceResult, ...]
    latency_ms: float
    covered: tuple[tuple[int, int, int, int], ...] = ()

    def to_json(self) -> str:
        """One line of JSON."""
        # not dataclasses.asdict, whose deep copy takes ten times as long
        record = {**vars(self), "faces": [vars(face) for face in self.faces]}
        del record["covered"]
        return json.dumps(record, separators=(",", ":"))


def face_result(
    track: int,
    box: tuple[int, int, int, int],
    detector_score: float,
    scores: FloatArray,
    min_confidence: float = 0.0,
    expression: str | None = None,
) -> FaceResult:
    """Make a FaceResult from (7,) float32 scores.

    `expression` is the label to show, by default the one with the highest score; if its score is below
    `min_confidence` it becomes `UNSURE`.
    """
    shown = LABELS[int(np.argmax(scores))] if expression is None else expression
    rounded = {label: round(float(score), 4) for label, score in zip(LABELS, scores, strict=True)}
    confidence = rounded[shown]
    label = shown if confidence >= min_confidence else UNSURE
    return FaceResult(track, box, round(detector_score, 3), label, confidence, rounded)
