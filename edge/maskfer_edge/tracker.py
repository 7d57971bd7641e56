"""Which face is which from frame to frame, with scores smoothed so that labels do not flicker."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskfer_edge.contract import FloatArray
from maskfer_edge.detector import Detection
from maskfer_edge.errors import InputError
from maskfer_edge.results import FaceResult, face_result

BoxInt = tuple[int, int, int, int]


@dataclass
class _Track:
    number: int
    box: BoxInt
    scores: FloatArray
    last_frame: int


class Tracker:
    """Matches boxes by overlap and smooths each face's scores exponentially (own)."""

    def __init__(
        self,
        least_overlap: float = 0.3,
        newest_share: float = 0.4,
        patience: int = 10,
        min_confidence: float = 0.0,
    ) -> None:
        """Set up without tracks.

        Args:
            least_overlap: Intersection over union from which two boxes are one face.
            newest_share: Weight of the newest scores, 0 to 1; 1 does not smooth.
            patience: Frames after which a face that was not seen is forgotten.
            min_confidence: Smoothed score, 0 to 1, below which the expression is `results.UNSURE`.

        Raises:
            InputError: If `min_confidence` is not within 0 and 1.
        """
        if not 0 <= min_confidence <= 1:
            raise InputError(f"the least confidence must be within 0 and 1; received {min_confidence}")
        self.min_confidence = min_confidence
        self.least_overlap, self.newest_share, self.patience = least_overlap, newest_share, patience
        self._tracks: list[_Track] = []
        self._next_number = 1

    def update(self, frame: int, faces: list[tuple[Detection, FloatArray]]) -> tuple[FaceResult, ...]:
        """Take one frame's faces and give them their track numbers and smoothed scores.

        Args:
            frame: Number of the frame; grows from call to call.
            faces: Detections with (7,) float32 scores.
        """
        self._tracks = [track for track in self._tracks if frame - track.last_frame <= self.patience]
        pairs = sorted(
            (
                (overlap(track.box, detection.box), t, d)
                for t, track in enumerate(self._tracks)
                for d, (detection, _) in enumerate(faces)
            ),
            reverse=True,
        )
        track_of: dict[int, _Track] = {}
        taken: set[int] = set()
        for shared, t, d in pairs:
            if shared >= self.least_overlap and t not in taken and d not in track_of:
                taken.add(t)
                track_of[d] = self._tracks[t]
        results = []
        for d, (detection, scores) in enumerate(faces):
            track = track_of.get(d)
            if track is None:
                track = _Track(self._next_number, detection.box, scores, frame)
                self._next_number += 1
                self._tracks.append(track)
            else:
                smoothed = self.newest_share * scores + (1 - self.newest_share) * track.scores
                track.box, track.scores, track.last_frame = detection.box, smoothed.astype(np.float32), frame
            results.append(face_result(track.number, detection.box, detection.score, track.scores, self.min_confidence))
        return tuple(results)


def overlap(a: BoxInt, b: BoxInt) -> float:
    """Intersection over union of two boxes (left, top, width, height), 0 to 1."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)
