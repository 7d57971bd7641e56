"""Which face is which from frame to frame, where it is between detections, and what it shows without flicker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from maskfer_edge.contract import LABELS, FloatArray
from maskfer_edge.detector import Box, Detection, iou
from maskfer_edge.errors import InputError
from maskfer_edge.results import FaceResult, face_result

BoxFloat = tuple[float, float, float, float]
# Weight of the newest movement in the exponential moving average of a box's velocity.
VELOCITY_WEIGHT = 0.5


@dataclass
class Track:
    """One face over time.

    Attributes:
        number: Stays with the face.
        box: Left, top, width, height in pixels, where the face was last detected.
        detector_score: Of that detection.
        unreadable: Detections in a row that found it too small to be read.
        seen: Frame of that detection.
        velocity: Change of the box, pixels a frame.
        hits: Detections that found it.
        misses: Detections in a row that did not find it.
        scores: Smoothed, (7,) float32; None before the first classification.
        classified: Frame of the last classification; -1 before the first.
        label: Index of the expression that is shown.
    """

    number: int
    box: BoxFloat
    detector_score: float
    seen: int
    velocity: FloatArray = field(default_factory=lambda: np.zeros(4, dtype=np.float32))
    hits: int = 1
    misses: int = 0
    scores: FloatArray | None = None
    classified: int = -1
    label: int = 0
    unreadable: int = 0

    def box_at(self, frame: int) -> Box:
        """Where the box is, or should be by its velocity, in a frame."""
        x, y, w, h = np.asarray(self.box) + self.velocity * (frame - self.seen)
        return round(float(x)), round(float(y)), max(1, round(float(w))), max(1, round(float(h)))


# Intersection over union from which a detection belongs to a track.
MATCH_IOU = 0.3


class Tracker:
    """Matches boxes by their overlap with where each face should be, smooths scores, and keeps labels steady (own)."""

    def __init__(
        self,
        newest_share: float = 0.4,
        patience: int = 10,
        coast: int = 1,
        lead: float = 0.05,
        min_confidence: float = 0.0,
        confirm: int = 1,
    ) -> None:
        """Set up without tracks.

        Args:
            newest_share: Weight of the newest scores in the exponential moving average, 0 to 1; 1 does not smooth.
            patience: Detections in a row without a face after which it is forgotten.
            coast: Detections in a row without a face over which it is still shown.
            lead: By how much another label's smoothed score must lead before it takes over.
            min_confidence: Smoothed score, 0 to 1, below which the expression is `results.UNSURE`.
            confirm: Detections that must have found a face before it is shown: false ones rarely come twice.

        Raises:
            InputError: If `min_confidence` is not within 0 and 1.
        """
        if not 0 <= min_confidence <= 1:
            raise InputError(f"min-confidence must be within 0 and 1; received {min_confidence}")
        self.min_confidence, self.lead = min_confidence, lead
        self.newest_share = newest_share
        self.patience, self.coast, self.confirm = patience, coast, confirm
        self._tracks: list[Track] = []
        self._next_number = 1

    def detected(self, frame: int, detections: Sequence[Detection]) -> None:
        """Take what the detector found in a frame.

        Args:
            frame: Number of the frame; grows from call to call.
            detections: All faces found.
        """
        # before they are paired: a crowd has thousands of pairs
        expected = [track.box_at(frame) for track in self._tracks]
        pairs = sorted(
            (
                (shared, t, d)
                for t, box in enumerate(expected)
                for d, detection in enumerate(detections)
                if (shared := iou(box, detection.box)) >= MATCH_IOU
            ),
            reverse=True,
        )
        track_of: dict[int, Track] = {}
        taken: set[int] = set()
        for _, t, d in pairs:
            if t not in taken and d not in track_of:
                taken.add(t)
                track_of[d] = self._tracks[t]
        for t, track in enumerate(self._tracks):
            if t not in taken:
                track.misses += 1
        self._tracks = [track for track in self._tracks if track.misses <= self.patience]
        for d, detection in enumerate(detections):
            if d in track_of:
                _update(track_of[d], frame, detection)
                if track_of[d].unreadable > self.patience:
                    _forget_expression(track_of[d])
            else:
                unreadable = 0 if detection.readable else self.coast + 1
                self._tracks.append(Track(self._number(), detection.box, detection.score, frame, unreadable=unreadable))

    def shown(self) -> list[Track]:
        """Faces that were seen lately and can be read, the one that was classified longest ago first."""
        return sorted(
            (t for t in self._tracks if max(t.misses, t.unreadable) <= self.coast and t.hits >= self.confirm),
            key=lambda t: (t.classified, t.number),
        )

    def classified(self, track: Track, frame: int, scores: FloatArray) -> None:
        """Take the (7,) float32 scores of a face in a frame."""
        if track.scores is None:
            track.scores, track.label = scores, int(scores.argmax())
        else:
            smoothed = self.newest_share * scores + (1 - self.newest_share) * track.scores
            track.scores = smoothed.astype(np.float32)
            best = int(smoothed.argmax())
            if smoothed[best] - smoothed[track.label] > self.lead:
                track.label = best
        track.classified = frame

    def results(self, frame: int) -> tuple[FaceResult, ...]:
        """The faces of a frame, those that were classified at least once, by their numbers."""
        return tuple(
            face_result(
                track.number,
                track.box_at(frame),
                track.detector_score,
                track.scores,
                self.min_confidence,
                LABELS[track.label],
            )
            for track in sorted(self.shown(), key=lambda track: track.number)
            if track.scores is not None
        )

    def covered(self, frame: int) -> tuple[Box, ...]:
        """Boxes of all that may be a face and is not in `results`, or not for sure where these say.

        That of a face that was not found in this very frame also holds the place where it was found last: it may have
        moved on, or stopped.
        """
        read = {track.number for track in self.shown() if track.scores is not None}
        boxes = []
        for track in self._tracks:
            if track.seen != frame:
                x, y, w, h = (round(side) for side in track.box)
                boxes.append(_enclosing(track.box_at(frame), (x, y, w, h)))
            elif track.number not in read:
                boxes.append(track.box_at(frame))
        return tuple(boxes)

    def expected(self, frame: int, max_misses: int) -> list[Box]:
        """Where the faces should be in a frame that so many detections in a row missed at most."""
        return [track.box_at(frame) for track in self._tracks if track.misses <= max_misses]

    def forget(self) -> None:
        """Let all faces go: the next frame has nothing to do with those before."""
        self._tracks = []

    def lose(self) -> None:
        """Make all faces new ones that are not shown until they are found; until then they stay in `covered`."""
        for track in self._tracks:
            track.number, track.hits = self._number(), 0
            _forget_expression(track)

    def _number(self) -> int:
        self._next_number += 1
        return self._next_number - 1


def _enclosing(a: Box, b: Box) -> Box:
    """The smallest box that encloses two."""
    left, top = min(a[0], b[0]), min(a[1], b[1])
    return left, top, max(a[0] + a[2], b[0] + b[2]) - left, max(a[1] + a[3], b[1] + b[3]) - top


def _update(track: Track, frame: int, detection: Detection) -> None:
    since = max(1, frame - track.seen)
    moved = (np.asarray(detection.box, dtype=np.float32) - np.asarray(track.box, dtype=np.float32)) / since
    track.velocity = (VELOCITY_WEIGHT * moved + (1 - VELOCITY_WEIGHT) * track.velocity).astype(np.float32)
    track.box, track.detector_score, track.seen, track.misses = detection.box, detection.score, frame, 0
    track.unreadable = 0 if detection.readable else track.unreadable + 1
    track.hits += 1


def _forget_expression(track: Track) -> None:
    track.scores, track.classified, track.label = None, -1, 0
