"""The capture thread: reading a camera never waits for the network, nor the other way round."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from types import TracebackType

from maskfer_edge.cameras import Camera, Frame

# How many frames of a file may be decoded ahead.
AHEAD = 2


class Capture:
    """Reads a camera in a thread of its own.

    A live camera's frames go into one slot that holds the newest only; those that nobody fetched
    in time are counted in `dropped`. A file's frames are all handed over, in order.
    """

    def __init__(self, camera: Camera) -> None:
        self.camera = camera
        self.dropped = 0
        self._frames: deque[Frame] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._stopped = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"capture {camera.name}", daemon=True)

    def __enter__(self) -> Capture:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        # a read that hangs in the driver must not keep the program from ending
        self._thread.join(timeout=2.0)
        if not self._thread.is_alive():
            self.camera.close()

    def stop(self) -> None:
        """End the iteration as soon as it can; safe to call from a signal handler's thread."""
        self._stopped = True

    def __iter__(self) -> Iterator[Frame]:
        """Yield frames until the source ends or `stop` is called.

        Raises:
            MaskferError: What the camera raised, after the frames before it.
        """
        while True:
            with self._changed:
                # the timeout lets a stop from a signal handler through, which cannot take the lock
                while not (self._frames or self._ended or self._stopped):
                    self._changed.wait(timeout=0.1)
                if self._stopped:
                    return
                if not self._frames:
                    if self._error is not None:
                        raise self._error
                    return
                frame = self._frames.popleft()
                self._changed.notify_all()
            yield frame

    def _run(self) -> None:
        try:
            while not self._stopped:
                frame = self.camera.read()
                if frame is None:
                    break
                self._hand_over(frame)
        except Exception as error:  # noqa: BLE001 (handed to the thread that iterates)
            self._error = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _hand_over(self, frame: Frame) -> None:
        with self._changed:
            if self.camera.live:
                self.dropped += len(self._frames)
                self._frames.clear()
            while len(self._frames) >= AHEAD and not self._stopped:
                self._changed.wait(timeout=0.1)
            self._frames.append(frame)
            self._changed.notify_all()
