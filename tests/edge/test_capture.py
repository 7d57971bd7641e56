import threading
import time

import numpy as np
import pytest

from maskfer_edge import capture as module
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
    assert not [thread for thread in threading.enumerate() if thread.name == "capture fake"]


class ScriptedCamera(Camera):
    """A live camera that does what its script says: an int is a picture of that grey, the rest see `read`."""

    live = endless = True
    fps, contrast = 30.0, 200

    def __init__(self, script, name="scripted"):
        self.script, self.name, self.closed = list(script), name, threading.Event()

    def read(self):
        step = self.script.pop(0) if self.script else None
        if step == "block":
            self.closed.wait(5)  # as a driver that hangs, until it is let go
            raise CameraError("too late")
        if isinstance(step, Exception):
            raise step
        if step is None:
            return None
        time.sleep(0.002)
        picture = np.full((16, 16, 3), step, np.uint8)
        picture[8:] = self.contrast - step  # it shows something
        return Frame(picture, 0, 0.0)

    def close(self):
        self.closed.set()


GOES_ON = [2, 3] * 1000


def watched(*scripts, wanted=3, retries=None, stall_s=0.3, fps=30.0):
    """Read through cameras opened one after another; gives (grey levels seen, lines told, capture)."""
    cameras = [script if isinstance(script, Exception) else ScriptedCamera(script) for script in scripts]
    reported, seen = [], []

    def reopen():
        fetched.wait(5)  # or a newer picture may replace those before the loss
        camera = cameras.pop(0)
        if isinstance(camera, Exception):
            raise camera
        return camera

    fetched = threading.Event()
    first = cameras.pop(0)
    first.fps = fps
    with Capture(
        first, reopen, retries=retries, stall_s=stall_s, first_pause_s=0.001, report=reported.append
    ) as capture:
        for frame in capture:
            seen.append(int(frame.image[0, 0, 0]))
            fetched.set()
            if wanted in seen:
                break
    return seen, reported, capture


@pytest.mark.parametrize(
    ("ending", "why"),
    [
        ([], "gives no more frames"),
        ([CameraError("unplugged")], "unplugged"),
        ([OSError("input/output error")], "input/output error"),
        (["block"], "it gives no frames"),
        ([1] * 1000, "the same picture again and again"),
    ],
)
def test_a_lost_camera_comes_back(ending, why):
    seen, reported, capture = watched([1, *ending], GOES_ON)
    assert (seen[0], seen[-1], capture.losses, capture.lost) == (1, 3, 1, "")
    assert reported == [f"scripted is lost: {reported[0].split(': ', 1)[1]}", "scripted is back"]
    assert why in reported[0]


def test_a_slow_camera_is_not_lost_between_two_frames():
    _, reported, capture = watched([1] * 50 + GOES_ON, stall_s=0.05, fps=0.5)
    assert (capture.losses, reported) == (0, [])


def test_a_camera_that_cannot_be_opened_at_first_is_tried_again():
    seen, reported, capture = watched([1], CameraError("busy"), CameraError("busy"), GOES_ON)
    assert (seen[-1], capture.losses, len(reported)) == (3, 1, 2)


def test_a_picture_that_stands_still_after_opening_again_is_no_return():
    _, reported, capture = watched([1] + [1] * 200, [1] * 200, GOES_ON)
    assert (capture.losses, len(reported)) == (1, 2)


def test_the_dark_is_no_loss():
    """Behind a lid compression leaves the same picture for ever; what a camera that froze shows is not dark."""
    camera = ScriptedCamera([100] * 250 + GOES_ON)
    camera.contrast = 200  # both halves alike
    reported = []
    with Capture(camera, ScriptedCamera, stall_s=0.4, report=reported.append) as capture:
        for frame in capture:
            if frame.image[0, 0, 0] == 3:
                break
    assert (capture.losses, reported) == (0, [])


class OneOwnerCamera(ScriptedCamera):
    """As libcamera's: opened again only after it was closed, even if its read hangs."""

    exclusive = True


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_camera_that_has_one_owner_is_closed_where_it_hangs(monkeypatch, exclusive):
    monkeypatch.setattr(module, "MAX_HANGING", 3)
    first, cameras = OneOwnerCamera([1, "block"]), [OneOwnerCamera(GOES_ON)]
    first.exclusive = exclusive

    def hang():
        first.freed.wait(5)
        raise CameraError("too late")

    first.freed, read = threading.Event(), first.read
    first.read = lambda: hang() if first.script[:1] == ["block"] else read()

    def reopen():
        if not first.closed.is_set():
            raise CameraError("in use")
        return cameras.pop()

    with Capture(first, reopen, stall_s=0.05, first_pause_s=0.01) as capture:
        if exclusive:
            assert next(frame for frame in capture if frame.image[0, 0, 0] == 3)
        else:
            with pytest.raises(CameraError, match="in use"):
                list(capture)
        first.freed.set()


def test_after_so_many_attempts_it_is_an_error():
    with pytest.raises(CameraError, match="gone for good"):
        watched([1], CameraError("busy"), CameraError("gone for good"), [3], retries=2)


@pytest.mark.parametrize("hanging", [0, 1, 2])
def test_attempts_that_hang_count_as_well(monkeypatch, hanging):
    monkeypatch.setattr(module, "OPEN_TIMEOUT_S", 0.05)
    cameras = [[1, "block"], *[["block"]] * hanging]
    assert watched(*cameras, GOES_ON, retries=hanging + 1)[0][-1] == 3
    with pytest.raises(CameraError, match="gives no frames"):
        watched(*cameras, GOES_ON, retries=hanging)


def test_a_programming_error_is_no_loss():
    with pytest.raises(ZeroDivisionError):
        watched([1, ZeroDivisionError()], [3])


def test_frame_numbers_go_on_over_a_loss():
    numbers = []
    cameras = [ScriptedCamera([1]), ScriptedCamera([2, 3])]
    with Capture(cameras.pop(0), lambda: cameras.pop(0), first_pause_s=0.001) as capture:
        for frame in capture:
            numbers.append(frame.index)
            if len(numbers) == 3 or frame.image[0, 0, 0] == 3:
                break
    assert numbers == sorted(set(numbers))


def test_a_lost_camera_is_closed():
    first = ScriptedCamera([1, CameraError("unplugged")])
    cameras = [ScriptedCamera([3])]
    with Capture(first, lambda: cameras.pop(0), first_pause_s=0.001) as capture:
        for frame in capture:
            if frame.image[0, 0, 0] == 3:
                break
    assert first.closed.is_set()


def test_a_camera_that_hangs_each_time_ends_the_program(monkeypatch):
    monkeypatch.setattr(module, "OPEN_TIMEOUT_S", 0.05)
    monkeypatch.setattr(module, "MAX_HANGING", 2)
    with pytest.raises(CameraError, match="hangs whenever it is opened"):
        watched(*[["block"]] * 9)


def test_the_stop_does_not_wait_for_the_pause():
    def reopen():
        raise CameraError("busy")

    with Capture(ScriptedCamera([1]), reopen, first_pause_s=60.0) as capture:
        threading.Timer(0.05, capture.stop).start()
        list(capture)
    assert not capture._reader.is_alive()


def test_where_no_thread_can_be_started_the_camera_is_lost_for_good(monkeypatch):
    def refuses(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(module, "OPEN_TIMEOUT_S", 0.05)
    with Capture(ScriptedCamera(["block"]), lambda: ScriptedCamera([]), stall_s=0.05) as capture:
        monkeypatch.setattr(threading.Thread, "start", refuses)
        with pytest.raises(CameraError, match="scripted gives no frames, and can't start new thread"):
            list(capture)
        monkeypatch.undo()


def test_a_slow_camera_has_three_frames_time_to_open(monkeypatch):
    monkeypatch.setattr(module, "OPEN_TIMEOUT_S", 0.05)
    slow = ScriptedCamera([1])
    slow.fps = 5.0
    slow.read = lambda: time.sleep(0.3) or Frame(PICTURE, 0, 0.0)
    with Capture(slow, lambda: ScriptedCamera([])) as capture:
        next(iter(capture))
    assert capture.losses == 0


def test_the_stop_does_not_wait_for_a_hanging_read():
    capture = Capture(ScriptedCamera(["block"]), lambda: ScriptedCamera([]))
    started = time.monotonic()
    with capture:
        threading.Timer(0.05, capture.stop).start()
        list(capture)
    assert time.monotonic() - started < 4  # it hangs for 5


def test_a_file_that_ends_is_not_opened_again():
    with Capture(FakeCamera([PICTURE] * 3), lambda: FakeCamera([PICTURE])) as capture:
        assert len(list(capture)) == 3
    assert capture.losses == 0
