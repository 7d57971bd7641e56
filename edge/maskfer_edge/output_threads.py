"""Outputs on threads of their own: a slow or dead one never stalls the loop, and what it misses is counted."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from maskfer_edge.cameras import Frame
from maskfer_edge.contract import UInt8Array
from maskfer_edge.errors import OutputError
from maskfer_edge.outputs import Output
from maskfer_edge.results import FrameResult

# Frames that may wait for an output: so many, and fewer if they are large, but two at least.
QUEUE_SIZE, QUEUE_BYTES = 8, 32_000_000
# How long an output may take to write what waits for it, and then to finish what it has in hand.
CLOSE_TIMEOUT_S = 0.9

Draw = Callable[[UInt8Array, FrameResult], UInt8Array]


class PendingFrame:
    """A frame and its result; the annotated picture is drawn once, by whichever output wants it first."""

    def __init__(self, frame: Frame, result: FrameResult, draw: Draw) -> None:
        self.frame, self.result = frame, result
        self._draw = draw
        self._lock = threading.Lock()
        self._annotated: UInt8Array | None = None

    def annotated(self) -> UInt8Array:
        """(height, width, 3) uint8, B,G,R; shared, not to be changed."""
        with self._lock:
            if self._annotated is None:
                self._annotated = self._draw(self.frame.image, self.result)
            return self._annotated


class OutputThread:
    """Feeds one output.

    Attributes:
        output: What is fed.
        dropped: Frames that it was too slow for.
        ended: Whether it requested the end of the loop.
        error: What it raised, if anything.
    """

    def __init__(self, output: Output, *, wait: bool, stopping: Callable[[], bool] = lambda: False) -> None:
        """Start the thread.

        Args:
            output: What is fed.
            wait: Whether the loop waits for it rather than drop frames.
            stopping: Whether the run is to end soon, so that nothing is waited for any more.
        """
        self.output, self.dropped, self.ended = output, 0, False
        self.error: Exception | None = None
        self._wait, self._stopping = wait, stopping
        self._queue: deque[PendingFrame] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"output {output.name}", daemon=True)
        self._thread.start()

    def submit(self, item: PendingFrame) -> None:
        """Hand over one frame; never waits for long, unless it is to drop none."""
        size = max(2, min(QUEUE_SIZE, QUEUE_BYTES // item.frame.image.nbytes))
        with self._changed:
            while self._wait and len(self._queue) >= size and not (self.error or self.ended or self._stopping()):
                self._changed.wait(timeout=0.1)
            if len(self._queue) >= size:
                self._queue.popleft()
                self.dropped += 1
            self._queue.append(item)
            self._changed.notify_all()

    def missed(self) -> int:
        """Frames that it was too slow for, or could not pass on."""
        return self.dropped + self.output.dropped

    def end(self) -> None:
        """Have the thread end once it has written what waits."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def join(self, until: float) -> None:
        """Wait for the end of the thread, until a time of `time.monotonic`."""
        self._thread.join(timeout=max(0.0, until - time.monotonic()))

    def wait_as_the_loop(self) -> None:
        """Wait for the end of the thread, however long it takes, if the loop would wait for it."""
        while self._wait and self._thread.is_alive() and not self._stopping():
            self._thread.join(timeout=0.1)

    def discard(self) -> None:
        """Leave out what still waits."""
        with self._changed:
            self.dropped += len(self._queue)
            self._queue.clear()

    def leave(self) -> None:
        """Give it up if it has not ended; `close` raises that."""
        if self._thread.is_alive() and self.error is None:
            self.error = OutputError(f"{self.output.name} did not finish in {2 * CLOSE_TIMEOUT_S:g} s and was left")

    def close(self, failed: bool) -> None:
        """Close the output, unless it hangs. Raises what it raised, now or before."""
        if not self._thread.is_alive():
            self.output.close(failed)
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._queue or self._closing):
                    self._changed.wait()
                if not self._queue:
                    return
                item = self._queue.popleft()
                self._changed.notify_all()
            try:
                if not write_to(self.output, item):
                    self.ended = True
                    return
            except Exception as error:  # noqa: BLE001 (raised by the loop, which asks for it)
                self.error = error
                return


def write_to(output: Output, item: PendingFrame) -> bool:
    """Write one frame; False if the output asks to end."""
    return output.write(item.frame, item.result, item.annotated() if output.wants_picture else None)


class OutputSet:
    """All outputs of a run: those with threads of their own, and the window, which needs the main thread."""

    def __init__(
        self, outputs: Sequence[Output], draw: Draw, *, live: bool, stopping: Callable[[], bool] = lambda: False
    ) -> None:
        """Start the threads.

        Args:
            outputs: Open already.
            draw: Makes the annotated picture.
            live: Whether the source is live; else no frame is dropped by an output that wants all.
            stopping: Whether the run is to end soon; then these are not waited for either.
        """
        self._draw, self._live = draw, live
        self._main_thread_outputs = [output for output in outputs if output.main_thread]
        self.threads = [
            OutputThread(output, wait=output.keeps_all and not live, stopping=stopping)
            for output in outputs
            if not output.main_thread
        ]

    def write(self, frame: Frame, result: FrameResult) -> bool:
        """Hand one frame to all; False if one of them asks to end. Raises what any of them raised."""
        item = PendingFrame(frame, result, self._draw)
        for thread in self.threads:
            if thread.error:
                raise thread.error
            thread.submit(item)
        go_on = [write_to(output, item) for output in self._main_thread_outputs]
        return all(go_on) and not any(thread.ended for thread in self.threads)

    def idle(self) -> bool:
        """Let those of the main thread live while no frame comes; False if one of them asks to end."""
        return all([output.idle() for output in self._main_thread_outputs])

    def finish(self, failed: bool) -> None:
        """Close all, whichever fails; then raise the first failure, if nothing else is being raised."""
        self._end_threads(failed)
        # what one of them could not write while it ended has failed for all
        first = next((thread.error for thread in self.threads if thread.error is not None), None)
        errors: list[Exception] = [] if first is None else [first]
        closing: list[tuple[Output, Callable[[bool], None]]]
        closing = [(output, output.close) for output in self._main_thread_outputs]
        closing += [(thread.output, thread.close) for thread in self.threads]
        for output, close in closing:
            # of a camera, what there is so far is worth as much whatever has failed
            keeps_partial = self._live and output.keeps_partial
            try:
                close((failed or first is not None) and not keeps_partial)
            except Exception as error:  # noqa: BLE001 (the first is raised below)
                errors.append(error)
        if errors and not failed:
            raise errors[0]

    def _end_threads(self, failed: bool) -> None:
        """Let all write what waits, after a failure as far as they soon can, at the same time."""
        for thread in self.threads:
            thread.end()
        if not failed:
            for thread in self.threads:
                thread.wait_as_the_loop()
        now = time.monotonic()
        for thread in self.threads:
            thread.join(now + CLOSE_TIMEOUT_S)
        for thread in self.threads:
            thread.discard()
        for thread in self.threads:
            thread.join(now + 2 * CLOSE_TIMEOUT_S)
            thread.leave()
