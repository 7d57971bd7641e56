"""The loop: frame in, result out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from maskfer_edge.cameras import Frame
from maskfer_edge.capture import Capture
from maskfer_edge.classifier import Classifier
from maskfer_edge.contract import UInt8Array, preprocess
from maskfer_edge.detector import Detector
from maskfer_edge.drawing import annotate
from maskfer_edge.errors import InputError, OutputError
from maskfer_edge.outputs import Output
from maskfer_edge.results import FaceResult, FrameResult
from maskfer_edge.tracker import Tracker


@dataclass
class RunSummary:
    """What a run did.

    Attributes:
        frames: Frames processed.
        frames_with_faces: Those in which a face was found.
        expressions: Faces by expression.
        dropped: Frames of a live camera that were passed over for a newer one.
        seconds: Wall-clock time.
    """

    frames: int = 0
    frames_with_faces: int = 0
    expressions: Counter[str] = field(default_factory=Counter)
    dropped: int = 0
    seconds: float = 0.0


class Pipeline:
    """Detector, preprocessing, network and tracker in a row."""

    def __init__(
        self, detector: Detector, classifier: Classifier, tracker: Tracker, margin: float | None = None
    ) -> None:
        """Put the parts together.

        Args:
            detector: Finds the faces.
            classifier: Says their expressions.
            tracker: Joins them over frames.
            margin: Crop margin; None for the one that the model file names for this detector.

        Raises:
            InputError: If the model names no crop margin for this detector.
        """
        margins = classifier.model.info.crop_margins
        if margin is None and detector.name not in margins:
            raise InputError(
                f"{classifier.model.name} was not made for detector {detector.name!r}; "
                f"it names {', '.join(margins) or 'none'}"
            )
        self.detector, self.classifier, self.tracker = detector, classifier, tracker
        self.margin = margins[detector.name] if margin is None else margin

    def faces(self, image: UInt8Array, frame: int) -> tuple[FaceResult, ...]:
        """Find and classify the faces of a (height, width, 3) uint8 B,G,R picture."""
        found = [
            (detection, self.classifier(preprocess(image, detection.box, self.margin)))
            for detection in self.detector(image)
        ]
        return self.tracker.update(frame, found)

    def process(self, frame: Frame) -> FrameResult:
        """The result of one frame."""
        started = time.perf_counter()
        faces = self.faces(frame.image, frame.index)
        latency_ms = round((time.perf_counter() - started) * 1000, 2)
        return FrameResult(round(frame.time, 4), frame.index, faces, latency_ms)


def run_loop(capture: Capture, pipeline: Pipeline, outputs: Sequence[Output], max_frames: int = 0) -> RunSummary:
    """Process frames until the source ends, an output asks to end, or `max_frames` are done.

    The outputs are closed in any case; if anything failed they leave nothing half-written.

    Args:
        capture: Entered already.
        pipeline: What makes results.
        outputs: What takes them.
        max_frames: 0 for all.

    Raises:
        MaskferError: What the camera, the pipeline or an output raised.
    """
    summary = RunSummary()
    started = time.monotonic()
    draw = any(output.wants_picture for output in outputs)
    failed = True
    try:
        for frame in capture:
            result = pipeline.process(frame)
            annotated = annotate(frame.image, result) if draw else None
            summary.frames += 1
            summary.frames_with_faces += bool(result.faces)
            summary.expressions.update(face.expression for face in result.faces)
            go_on = [output.write(frame, result, annotated) for output in outputs]
            if not all(go_on) or summary.frames == max_frames:
                break
        failed = False
    finally:
        _close_all(outputs, failed)
    summary.dropped = capture.dropped
    summary.seconds = time.monotonic() - started
    return summary


def _close_all(outputs: Sequence[Output], failed: bool) -> None:
    """Close every output, whichever fails; then raise the first failure, if nothing else is being raised."""
    errors = []
    for output in outputs:
        try:
            output.close(failed)
        except OutputError as error:
            errors.append(error)
    if errors and not failed:
        raise errors[0]
