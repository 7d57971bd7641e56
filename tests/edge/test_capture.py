import threading
import time

import numpy as np
import pytest

from maskfer_edge.cameras import Camera, FakeCamera, Frame
from maskfer_edge.capture import Capture
from maskfer_edge.errors import CameraError

PICTURE = np.zeros((2, 2, 3), np.uint8)


class GatedCamera(Camera):
    """A live camera that reads on until `last`, where it waits for `go_on`."""

    name, live, fps = "gated", True, 30.0

    def __init__(self, last, error=None):
        self.last, self.error, self.index, self.closed = last, error, 0, False
        self.there, self.go_on = threading.Event(), threading.Event()

    def read(self):
        if self.index == self.last:
            self.there.set()
            self.go_on.wait(5)
            if self.error:
                raise self.error
            return None
        self.index += 1
        return Frame(PICTURE, self.index - 1, 0.0)

    def close(self):
        self.closed = True


def test_a_file_is_handed_over_whole_and_in_order_to_a_slow_consumer():
    seen = []
    with Capture(FakeCamera([PICTURE] * 12)) as capture:
        for frame in capture:
            time.sleep(0.01)
            seen.append(frame.index)
    assert (seen, capture.dropped) == (list(range(12)), 0)


def test_a_file_is_not_decoded_far_ahead():
    camera = FakeCamera([PICTURE] * 50)
    with Capture(camera) as capture:
        next(iter(capture))
        time.sleep(0.1)
        assert camera.index < 10


def test_a_live_camera_gives_the_newest_frame_only():
    camera = GatedCamera(last=20)
    with Capture(camera) as capture:
        assert camera.there.wait(5)
        camera.go_on.set()
        assert [frame.index for frame in capture] == [19]


def test_frames_that_nobody_fetched_are_counted():
    camera = GatedCamera(last=20)
    with Capture(camera) as capture:
        assert camera.there.wait(5)
        camera.go_on.set()
        list(capture)
    assert capture.dropped == 19


def test_an_error_in_the_thread_reaches_the_consumer_after_earlier_frames():
    camera = GatedCamera(last=1, error=CameraError("unplugged"))
    seen = []
    with Capture(camera) as capture, pytest.raises(CameraError, match="unplugged"):
        for frame in capture:
            seen.append(frame.index)
            camera.go_on.set()
    assert seen == [0]


def test_stop_ends_the_iteration():
    with Capture(FakeCamera([PICTURE] * 1000)) as capture:
        seen = 0
        for _ in capture:
            seen += 1
            capture.stop()
    assert seen == 1


def test_stop_ends_a_wait_for_a_frame():
    camera = GatedCamera(last=0)
    with Capture(camera) as capture:
        threading.Timer(0.05, capture.stop).start()
        assert list(capture) == []
        camera.go_on.set()


def test_the_camera_is_closed_on_exit():
    camera = FakeCamera([PICTURE])
    with Capture(camera) as capture:
        list(capture)
    assert camera.closed


def test_the_camera_is_closed_after_a_failure_of_the_consumer():
    camera = FakeCamera([PICTURE] * 100)
    with pytest.raises(ZeroDivisionError), Capture(camera) as capture:
        next(iter(capture))
        raise ZeroDivisionError
    assert camera.closed


def test_no_thread_is_left():
    with Capture(FakeCamera([PICTURE] * 100)) as capture:
        next(iter(capture))
    assert not capture._thread.is_alive()
