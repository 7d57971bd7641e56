"""The loop: frame in, result out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence

from maskfer_edge.background_detector import BackgroundDetector
from maskfer_edge.cameras import Frame
from maskfer_edge.capture import Capture
from maskfer_edge.classifier import Classifier
from maskfer_edge.contract import UInt8Array, preprocess
from maskfer_edge.dependencies import cv2
from maskfer_edge.detector import Box, Detector
from maskfer_edge.drawing import annotate
from maskfer_edge.errors import InputError
from maskfer_edge.health import HealthMeter
from maskfer_edge.output_threads import Draw, OutputSet
from maskfer_edge.outputs import Output
from maskfer_edge.results import FaceResult, FrameResult
from maskfer_edge.tracker import Tracker

# One detection of so many searches the whole frame; the others search known faces where they should be.
FULL_SEARCH_INTERVAL = 5


class Pipeline:
    """Detector, tracker, preprocessing and network in a row.

    Attributes:
        stages_ms: What the stages of the newest frame took, in milliseconds.
        slowdown: How many times longer the detector rests than `detect_every` says.
        covers: Whether results name all that is to be blurred, see `FrameResult.covered`.
    """

    def __init__(
        self,
        detector: Detector,
        classifier: Classifier,
        tracker: Tracker,
        margin: float | None = None,
        detect_every: int = 1,
        budget_ms: float = 0.0,
    ) -> None:
        """Put the parts together.

        Args:
            detector: Finds the faces.
            classifier: Says their expressions.
            tracker: Joins them over frames.
            margin: Crop margin; None for the one that the model file names for this detector.
            detect_every: The detector sees every so many frames; between, faces move on as they moved.
            budget_ms: Faces are classified in turn, the one that waits longest first, until so much time
                is spent on a frame, and one at least; 0: all of them.

        Raises:
            InputError: If the model names no crop margin for this detector, or a number makes no sense.
        """
        margins = classifier.model.info.crop_margins
        if margin is None and detector.name not in margins:
            raise InputError(
                f"{classifier.model.name} was not made for detector {detector.name!r}; "
                f"it names {', '.join(margins) or 'none'}"
            )
        if detect_every < 1 or not budget_ms >= 0:
            raise InputError(
                f"detect_every must be at least 1 and the budget not negative; received {detect_every} and {budget_ms}"
            )
        self.detector, self.classifier, self.tracker = detector, classifier, tracker
        self.margin = margins[detector.name] if margin is None else margin
        self.detect_every, self.budget_ms = detect_every, budget_ms
        self.stages_ms: dict[str, float] = {}
        self.slowdown, self.covers = 1, False
        self._until_detection = self._until_full = self._first_frame = 0
        self._background: BackgroundDetector | None = None

    def faces(self, image: UInt8Array, frame: int, grey: UInt8Array | None = None) -> tuple[FaceResult, ...]:
        """Find and classify the faces of a (height, width, 3) uint8 B,G,R picture.

        `grey`, (h, w) uint8, is the same picture in another size; if given, the detector searches that one.
        """
        self.stages_ms = {}
        self._detect(image, image if grey is None else grey, frame)
        started = time.perf_counter()
        for index, track in enumerate(self.tracker.shown()):
            if index > 0 and 0 < self.budget_ms < _ms_since(started):
                break
            box = track.box_at(frame)
            self.tracker.classified(track, frame, self.classifier(preprocess(image, box, self.margin)))
        self.stages_ms["classify"] = _ms_since(started)
        return self.tracker.results(frame)

    def detect_in_background(self) -> None:
        """Let the detector run on a thread of its own from now on, so that the loop never waits for it.

        What it finds counts from the frame on in which it is ready. Call `close` in the end.
        """
        self._background = BackgroundDetector(self.detector)

    def forget(self, frame: int) -> None:
        """Let all faces go: from this frame on the picture has nothing to do with what was before."""
        self.tracker.forget()
        self._restart_detection(frame)

    def lose(self, frame: int) -> None:
        """Show no face from before, as the camera was away; what is to be blurred stays so."""
        if not self.covers:
            self.forget(frame)
            return
        self._take_detections()
        self.tracker.lose()
        self._restart_detection(frame)

    def _restart_detection(self, frame: int) -> None:
        self._until_detection = self._until_full = 0
        self._first_frame = frame

    def close(self) -> None:
        """End the detector's thread, if there is one."""
        if self._background is not None:
            self._background.close()

    def _detect(self, image: UInt8Array, smaller: UInt8Array, frame: int) -> None:
        """Pass detections to the tracker, if the detector is due, or has finished an earlier frame."""
        self._until_detection -= 1
        due = self._until_detection < 0
        if self._background is None:
            if due:
                started = time.perf_counter()
                self.tracker.detected(frame, self.detector.detect(image, smaller, self._near(frame)))
                self.stages_ms["detect"] = _ms_since(started)
            return
        self._take_detections()
        if due and self._background.idle:
            self._background.submit(frame, image, smaller, self._near(frame))

    def _take_detections(self) -> None:
        """Pass the tracker what the detector's thread has found by now, if there is one."""
        found = self._background.take() if self._background else None
        if found is not None and found.frame >= self._first_frame:
            self.tracker.detected(found.frame, found.detections)
            self.stages_ms["detect"] = found.duration_ms

    def _near(self, frame: int) -> list[Box]:
        """Where the detector, whose turn it is, should search; empty: everywhere."""
        self._until_detection = self.detect_every * self.slowdown - 1
        if self.detect_every == 1:
            return []
        expected = self.tracker.expected(frame, self.tracker.patience if self.covers else self.tracker.coast)
        self._until_full = self._until_full - 1 if expected and self._until_full > 0 else FULL_SEARCH_INTERVAL - 1
        return [] if self._until_full == FULL_SEARCH_INTERVAL - 1 else expected

    def process(self, frame: Frame, *, moving: bool = True) -> FrameResult:
        """The result of one frame; `moving` is false if it has nothing to do with the one before."""
        started = time.perf_counter()
        if not moving:
            self.forget(frame.index)
        faces = self.faces(frame.image, frame.index, frame.grey)
        latency_ms = round(_ms_since(started), 2)
        self.stages_ms |= {"result": latency_ms, "age": (time.monotonic() - frame.arrived) * 1000}
        covered = self.tracker.covered(frame.index) if self.covers else ()
        return FrameResult(round(frame.time, 4), frame.index, faces, latency_ms, covered)


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000


def results(
    capture: Capture,
    pipeline: Pipeline,
    outputs: Sequence[Output] = (),
    max_frames: int = 0,
    meter: HealthMeter | None = None,
    draw: Draw = annotate,
    pulse: Callable[[], None] = lambda: None,
) -> Iterator[FrameResult]:
    """Process frames until the source ends, an output asks to end, or `max_frames` are done.

    The outputs are closed in any case; if anything failed they leave nothing half-written.

    Args:
        capture: Entered already.
        pipeline: What makes results.
        outputs: What takes them.
        max_frames: 0 for all.
        meter: Counts.
        draw: Makes the annotated picture, for outputs that want it.
        pulse: Called after each frame: the loop is alive.

    Yields:
        The result of each frame.

    Raises:
        MaskferError: What the camera, the pipeline or an output raised.
    """
    meter = meter or HealthMeter()
    meter.capture_state = lambda: (capture.dropped, capture.losses, capture.lost)
    camera = capture.camera
    output_set = OutputSet(outputs, draw, live=camera.live, stopping=lambda: capture.stopped)
    meter.output_drops |= {thread.output.name: thread.missed for thread in output_set.threads}

    def idle() -> None:
        if not output_set.idle():
            capture.stop()

    capture.idle = idle
    failed, losses = True, 0
    try:
        for frame in capture:
            if frame.losses != losses:
                losses = frame.losses
                pipeline.lose(frame.index)
            result = pipeline.process(frame, moving=camera.moving)
            meter.add(result, pipeline.stages_ms)
            pulse()
            go_on = output_set.write(frame, result)
            yield result
            if not go_on or meter.frames == max_frames:
                break
        failed = capture.stopped and not meter.frames  # nothing was done, so nothing is to be replaced
    except GeneratorExit:
        failed = False  # whoever iterates has seen enough
        raise
    finally:
        output_set.finish(failed)


def spare_a_core() -> None:
    """Leave one core of this machine to the camera and the outputs: the rest, at least one, is OpenCV's."""
    cv2.setNumThreads(max(1, len(os.sched_getaffinity(0)) - 1))
