"""The capture thread: reading never waits for the network, nor the other way round; a lost camera comes back.

reading ──(error, end, 2 s without a frame, 2 s of the same picture)──► lost ──(paced attempts)──► reading

A camera of less than 1.5 frames a second gets three frames' time instead of the 2 s.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from types import TracebackType

import numpy as np

from maskfer_edge.cameras import MAX_MISSED_FRAMES, Camera, Frame
from maskfer_edge.contract import UInt8Array
from maskfer_edge.errors import CameraError, MaskferError

# How many frames of a file may be decoded ahead.
READ_AHEAD = 2
# A camera that gives no frame, or the same picture again and again, for so long is lost.
STALL_S = 2.0
# Standard deviation in grey levels below which a picture shows nothing, and may well be the same for ever.
DARK_DEVIATION = 3.0
# Opening a camera, and its first frame, may take so long.
OPEN_TIMEOUT_S = 10.0
# Pauses between attempts to open a lost camera: the first, doubled each time, up to the longest.
FIRST_PAUSE_S, MAX_PAUSE_S = 0.5, 30.0
# A driver that hangs keeps the thread that reads it. With so many of them only a new process helps.
MAX_HANGING = 8


class Capture:
    """Reads a camera in a thread of its own.

    A live camera's frames go into one slot that holds the newest only; those that nobody fetched
    in time are counted in `dropped`. A file's frames are all handed over, in order.

    Attributes:
        camera: The one that is, or was last, open.
        dropped: Frames passed over for a newer one.
        losses: How often the camera was lost.
        lost: Why it is lost at present; "" while it is not.
        idle: Called ten times a second while no frame comes, by the thread that iterates.
    """

    def __init__(
        self,
        camera: Camera,
        reopen: Callable[[], Camera] | None = None,
        *,
        retries: int | None = None,
        stall_s: float = STALL_S,
        first_pause_s: float = FIRST_PAUSE_S,
        report: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Set up; the thread starts on entering.

        Args:
            camera: Open already.
            reopen: Opens it again after a loss; None: a loss is an error.
            retries: Attempts in a row, whether they fail or hang, before that is an error after all; None: for ever.
            stall_s: After how long without a new picture the camera counts as lost; a slow one gets three frames' time.
            first_pause_s: Before the first attempt to open it again.
            report: Receives a line for people when the camera is lost and when it is back.
        """
        self.camera, self.dropped, self.losses, self.lost = camera, 0, 0, ""
        self.idle: Callable[[], None] = lambda: None
        self._reopen, self._retries = reopen, retries
        self._stall_s = max(stall_s, MAX_MISSED_FRAMES / camera.fps)
        self._open_timeout_s = max(OPEN_TIMEOUT_S, self._stall_s)
        self._first_pause_s, self._report = first_pause_s, report
        self._frames: deque[Frame] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._ended = False
        self._error: BaseException | None = None
        self._count = 0  # of frames handed over
        self._fresh = 0  # of those whose picture differs from the one before
        self._failures = 0  # in a row, without a fresh picture between them
        self._fresh_at_failure = 0
        self._sample: UInt8Array | None = None
        self._deadline = 0.0
        self._abandoned: list[threading.Thread] = []
        self._reader = self._new_reader(camera)

    def __enter__(self) -> Capture:
        self._deadline = time.monotonic() + self._open_timeout_s
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._reader.is_alive():
            # a read that hangs in the driver must not keep the program from ending
            self._reader.join(timeout=1.5)

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped

    def stop(self) -> None:
        """End the iteration as soon as it can; safe to call from a signal handler, as it takes no lock."""
        self._stopped = True

    def __iter__(self) -> Iterator[Frame]:
        """Yield frames until the source ends or `stop` is called.

        Raises:
            MaskferError: What the camera raised, after the frames before it, if it is not opened again.
        """
        while True:
            with self._changed:
                # the timeout lets a stop from a signal handler through, which cannot take the lock
                while not (self._frames or self._ended or self._stopped):
                    self._changed.wait(timeout=0.1)
                    self._check_stall()
                    self.idle()
                if self._stopped:
                    return
                if not self._frames:
                    if self._error is not None:
                        raise self._error
                    return
                frame = self._frames.popleft()
                self._changed.notify_all()
            yield frame

    def _check_stall(self) -> None:
        """Leave a reader that hangs to itself, and start another that opens the camera anew. Needs the lock."""
        if self._reopen is None or self._ended or time.monotonic() < self._deadline:
            return
        self._abandoned = [thread for thread in self._abandoned if thread.is_alive()] + [self._reader]
        if not self._count_failure():
            self._error = CameraError(f"{self.camera.name} gives no frames")
            self._ended = True
            return
        if len(self._abandoned) > MAX_HANGING:
            self._error = CameraError(f"{self.camera.name} hangs whenever it is opened; start the program again")
            self._ended = True
            return
        self._record_loss("it gives no frames")
        try:
            if self.camera.exclusive:
                # closing may hang as reading does
                threading.Thread(target=_close, args=(self.camera,), name="close", daemon=True).start()
            self._reader = self._new_reader(None)
            self._deadline = time.monotonic() + self._open_timeout_s
            self._reader.start()
        except RuntimeError as error:  # the system allows no more threads
            self._error, self._ended = CameraError(f"{self.camera.name} gives no frames, and {error}"), True

    def _new_reader(self, camera: Camera | None) -> threading.Thread:
        return threading.Thread(target=self._run, args=(camera,), name=f"capture {self.camera.name}", daemon=True)

    def _should_end(self) -> bool:
        """Whether the calling thread should end: stopped, or replaced by another reader."""
        return self._stopped or self._ended or threading.current_thread() is not self._reader

    def _run(self, camera: Camera | None) -> None:
        error: BaseException | None = None
        while not self._should_end():
            try:
                camera = self._open_again() if camera is None else camera
                if camera is None:
                    break
                self._read(camera)
                if not camera.endless or self._should_end():
                    break
                error = CameraError(f"camera {camera.name} gives no more frames")
            except Exception as raised:  # noqa: BLE001 (handed to the thread that iterates)
                error = raised
            _close(camera)
            camera = None
            if not self._may_try_again(error):
                break
            error = None
        _close(camera)
        with self._changed:
            if threading.current_thread() is self._reader:
                self._error, self._ended = error, True
                self._changed.notify_all()

    def _may_try_again(self, error: BaseException) -> bool:
        with self._changed:
            if threading.current_thread() is not self._reader:
                return False  # another has taken its place
            tries_left = self._count_failure()
            if self._failures > MAX_HANGING and any(thread.is_alive() for thread in self._abandoned):
                tries_left = False  # it may be the one that hangs that keeps the camera
            if self._reopen is None or not tries_left or not isinstance(error, MaskferError | OSError):
                return False
            self._record_loss(str(error))
        return True

    def _count_failure(self) -> bool:
        """Whether there are attempts left after one more failure. Needs the lock."""
        self._failures = 1 if self._fresh > self._fresh_at_failure else self._failures + 1
        self._fresh_at_failure = self._fresh
        return self._retries is None or self._failures <= self._retries

    def _record_loss(self, reason: str) -> None:
        if not self.lost:
            self.losses += 1
            self._report(f"{self.camera.name} is lost: {reason}; trying to open it again")
        self.lost = reason

    def _open_again(self) -> Camera | None:
        """Wait, then open the camera; None if stopped meanwhile."""
        assert self._reopen is not None
        # the exponent is bounded so that weeks of attempts do not overflow it
        pause = min(self._first_pause_s * 2 ** min(self._failures - 1, 16), MAX_PAUSE_S)
        self._deadline = time.monotonic() + pause + self._open_timeout_s
        until = time.monotonic() + pause
        while time.monotonic() < until and not self._should_end():
            time.sleep(min(0.1, pause))
        if self._should_end():
            return None
        camera = self._reopen()
        if not self._should_end():
            self.camera = camera
        return camera

    def _read(self, camera: Camera) -> None:
        """Hand over frames until the source ends, or this reader's time is over."""
        changed = time.monotonic()
        while not self._should_end():
            frame = camera.read()
            if frame is None:
                return
            if camera.endless and self._reopen is not None:
                # one pixel of 64 is enough: noise alone changes a living camera's picture everywhere
                sample = frame.image[::8, ::8].copy()
                now = time.monotonic()
                # in the dark, or behind a lid, compression leaves nothing of the noise
                fresh = (
                    self._sample is None or not np.array_equal(sample, self._sample) or sample.std() < DARK_DEVIATION
                )
                if fresh:
                    self._sample, changed = sample, now
                elif now - changed > self._stall_s:
                    raise CameraError(f"camera {camera.name} gives the same picture again and again")
                self._record_read(now, fresh=fresh)
            self._hand_over(camera, frame)

    def _record_read(self, now: float, *, fresh: bool) -> None:
        """The camera answers, if only with the same picture: `_check_stall` is for one that does not."""
        with self._changed:
            if threading.current_thread() is not self._reader:
                return
            self._deadline = now + self._stall_s
            if not fresh:
                return
            self._fresh += 1
            if self.lost:
                self.lost = ""
                self._report(f"{self.camera.name} is back")

    def _hand_over(self, camera: Camera, frame: Frame) -> None:
        with self._changed:
            if camera.live:
                self.dropped += len(self._frames)
                self._frames.clear()
            while len(self._frames) >= READ_AHEAD and not self._should_end():
                self._changed.wait(timeout=0.1)
            if self._should_end():
                return
            # numbers go on over a loss
            index = self._count if camera.endless else frame.index
            self._frames.append(replace(frame, index=index, losses=frame.losses + self.losses))
            self._count += 1
            self._changed.notify_all()


def _close(camera: Camera | None) -> None:
    if camera is not None:
        with suppress(Exception):  # a device that is gone may refuse even that
            camera.close()
