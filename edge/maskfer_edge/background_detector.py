"""A detector on a thread of its own: the loop goes on at the camera's rate while faces are looked for."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from maskfer_edge.contract import UInt8Array
from maskfer_edge.detector import Box, Detection, Detector
from maskfer_edge.errors import MaskferError

# No detector needs so long for a picture, on any board.
HANGS_S = 60.0


@dataclass(frozen=True)
class Found:
    """What the detector found in a frame.

    Attributes:
        frame: Number of the frame.
        detections: All faces.
        took_ms: For how long the detector looked.
    """

    frame: int
    detections: list[Detection]
    took_ms: float


class BackgroundDetector:
    """Looks at one picture at a time; whoever asks never waits."""

    def __init__(self, detector: Detector) -> None:
        """Start the thread; `detector` is used by it alone from now on."""
        self._detector = detector
        self._changed = threading.Condition()
        self._wanted: tuple[int, UInt8Array, UInt8Array, list[Box]] | None = None
        self._found: Found | None = None
        self._busy = self._closed = False
        self._begun = 0.0
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"detector {detector.name}", daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether `look` would begin at once."""
        with self._changed:
            return not self._busy

    def look(self, frame: int, image: UInt8Array, smaller: UInt8Array, near: list[Box]) -> None:
        """Begin to look at a picture, of which nothing may change meanwhile (see `Detector.find`). Only while idle."""
        with self._changed:
            self._busy, self._wanted, self._begun = True, (frame, image, smaller, near), time.monotonic()
            self._changed.notify()

    def take(self) -> Found | None:
        """What was found since the last call; None if nothing is ready.

        Raises:
            Exception: What the detector raised.
            MaskferError: If it looks at a picture for longer than `HANGS_S`: only a new process helps then.
        """
        with self._changed:
            if self._error is not None:
                raise self._error
            if self._busy and time.monotonic() - self._begun > HANGS_S:
                raise MaskferError(f"detector {self._detector.name} hangs; start the program again")
            found, self._found = self._found, None
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
                self._changed.wait_for(lambda: self._wanted is not None or self._closed)
                if self._closed or self._wanted is None:
                    return
                frame, image, smaller, near = self._wanted
                self._wanted = None
            started = time.perf_counter()
            try:
                detections = self._detector.find(image, smaller, near)
            except Exception as error:  # noqa: BLE001 (raised again in the loop)
                self._error = error
                return
            with self._changed:
                self._found = Found(frame, detections, (time.perf_counter() - started) * 1000)
                self._busy = False
