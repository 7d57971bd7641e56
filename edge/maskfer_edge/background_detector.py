"""A detector on a thread of its own: the loop goes on at the camera's rate while faces are detected."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from maskfer_edge.contract import UInt8Array
from maskfer_edge.detector import Box, Detection, Detector
from maskfer_edge.errors import MaskferError

# No detector takes so long for a picture, on any board.
DETECTION_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class DetectionResult:
    """What the detector found in a frame.

    Attributes:
        frame: Number of the frame.
        detections: All faces found.
        duration_ms: How long the detector took.
    """

    frame: int
    detections: list[Detection]
    duration_ms: float


class BackgroundDetector:
    """Searches one picture at a time; the caller never waits."""

    def __init__(self, detector: Detector) -> None:
        """Start the thread; `detector` is used by it alone from now on."""
        self._detector = detector
        self._changed = threading.Condition()
        self._pending: tuple[int, UInt8Array, UInt8Array, list[Box]] | None = None
        self._result: DetectionResult | None = None
        self._busy = self._closed = False
        self._started = 0.0
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"detector {detector.name}", daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether `submit` would begin at once."""
        with self._changed:
            return not self._busy

    def submit(self, frame: int, image: UInt8Array, smaller: UInt8Array, near: list[Box]) -> None:
        """Begin to search a picture, which must not change meanwhile (see `Detector.detect`). Only while idle."""
        with self._changed:
            self._busy, self._pending, self._started = True, (frame, image, smaller, near), time.monotonic()
            self._changed.notify()

    def take(self) -> DetectionResult | None:
        """What was found since the last call; None if nothing is ready.

        Raises:
            Exception: What the detector raised.
            MaskferError: If a picture takes longer than `DETECTION_TIMEOUT_S`: only a new process helps then.
        """
        with self._changed:
            if self._error is not None:
                raise self._error
            if self._busy and time.monotonic() - self._started > DETECTION_TIMEOUT_S:
                raise MaskferError(f"detector {self._detector.name} hangs; start the program again")
            found, self._result = self._result, None
            return found

    def close(self) -> None:
        """End the thread; a detector at work is not waited for long."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout=1.0)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending is not None or self._closed)
                if self._closed or self._pending is None:
                    return
                frame, image, smaller, near = self._pending
                self._pending = None
            started = time.perf_counter()
            try:
                detections = self._detector.detect(image, smaller, near)
            except Exception as error:  # noqa: BLE001 (raised again in the loop)
                self._error = error
                return
            with self._changed:
                self._result = DetectionResult(frame, detections, (time.perf_counter() - started) * 1000)
                self._busy = False
