import threading
import time

import numpy as np
import pytest

from maskfer_edge import output_threads as module
from maskfer_edge.cameras import Frame
from maskfer_edge.errors import OutputError
from maskfer_edge.output_threads import OutputSet
from maskfer_edge.outputs import FakeOutput
from maskfer_edge.results import FrameResult

PICTURE = np.zeros((4, 4, 3), np.uint8)


class HeldOutput(FakeOutput):
    """Takes nothing until it is let go."""

    def __init__(self, keeps_all=True, **options):
        super().__init__(**options)
        self.keeps_all, self.go_on, self.started = keeps_all, threading.Event(), threading.Event()

    def write(self, *arguments):
        self.started.set()
        self.go_on.wait(5)
        return super().write(*arguments)


def no_drawing(image, result):
    return image


def feed(outputs, frames, draw=no_drawing, live=True):
    taking = OutputSet(outputs, draw, live=live)
    write(taking, range(frames))
    return taking


def write(taking, indices):
    for index in indices:
        taking.write(Frame(PICTURE, index, 0.0), FrameResult(0.0, index, (), 0.0))


def feed_while_held(frames):
    """Frames that come while an output still holds the first of them; gives it and what fed it."""
    held = HeldOutput()
    taking = feed([held], 1)
    held.started.wait(5)
    write(taking, range(1, frames))
    held.go_on.set()
    taking.finish(failed=False)
    return held, taking


def indices(output):
    return [result.frame for result in output.results]


def test_a_slow_output_holds_up_neither_the_loop_nor_the_others():
    held, other = HeldOutput(), FakeOutput()
    started = time.monotonic()
    taking = feed([held, other], 50)
    assert time.monotonic() - started < 4  # it is held for 5
    held.go_on.set()
    taking.finish(failed=False)
    assert indices(other)[-1] == indices(held)[-1] == 49


def test_what_it_missed_is_counted():
    held, taking = feed_while_held(50)
    assert indices(held) == [0, *range(50 - module.QUEUE_SIZE, 50)]
    assert taking.threads[0].dropped == 50 - len(held.results)


@pytest.mark.parametrize(("keeps_all", "complete"), [(True, True), (False, False)])
def test_of_a_file_nothing_is_missing_in_what_keeps_all(keeps_all, complete):
    held = HeldOutput(keeps_all)
    if complete:
        threading.Timer(0.2, held.go_on.set).start()  # else it would be waited for
    taking = feed([held], 50, live=False)
    held.go_on.set()
    taking.finish(failed=False)
    assert (indices(held) == list(range(50))) is complete


def test_a_picture_is_drawn_once_for_all_that_want_it():
    drawn = []

    def draw(image, result):
        drawn.append(result.frame)
        return image

    outputs = [FakeOutput(wants_picture=True), FakeOutput(wants_picture=True), FakeOutput()]
    feed(outputs, 3, draw).finish(failed=False)
    assert sorted(drawn) == [0, 1, 2]
    assert [len(output.pictures) for output in outputs] == [3, 3, 0]


def test_an_error_on_a_thread_reaches_the_loop():
    class Broken(FakeOutput):
        def write(self, *arguments):
            raise OutputError("disk full")

    taking = feed([Broken()], 1)
    deadline = time.monotonic() + 5
    with pytest.raises(OutputError, match="disk full"):
        while time.monotonic() < deadline:
            write(taking, [1])


def test_an_output_that_never_comes_back_is_left(monkeypatch):
    monkeypatch.setattr(module, "CLOSE_TIMEOUT_S", 0.1)
    held = HeldOutput()
    taking = feed([held], 1)
    with pytest.raises(OutputError, match=r"fake did not finish in 0\.2 s"):
        taking.finish(failed=False)
    held.go_on.set()


def test_outputs_that_never_come_back_are_left_at_the_same_time(monkeypatch):
    monkeypatch.setattr(module, "CLOSE_TIMEOUT_S", 0.3)
    held = [HeldOutput() for _ in range(4)]
    taking = feed(held, 1)
    started = time.monotonic()
    with pytest.raises(OutputError, match="did not finish"):
        taking.finish(failed=False)
    assert time.monotonic() - started < 1.5  # one after the other: 2.4
    for output in held:
        output.go_on.set()


@pytest.mark.parametrize(("pictures", "waiting"), [(100, 8), (5, 5), (0.5, 2)])
def test_of_large_pictures_fewer_wait(monkeypatch, pictures, waiting):
    monkeypatch.setattr(module, "QUEUE_BYTES", pictures * PICTURE.nbytes)
    held, _ = feed_while_held(21)
    assert indices(held) == [0, *range(21 - waiting, 21)]


def test_what_keeps_all_is_not_waited_for_when_the_run_is_to_end(monkeypatch):
    monkeypatch.setattr(module, "CLOSE_TIMEOUT_S", 0.1)
    held, stop = HeldOutput(), threading.Event()
    taking = OutputSet([held], no_drawing, live=False, stopping=stop.is_set)
    threading.Timer(0.3, stop.set).start()
    started = time.monotonic()
    write(taking, range(module.QUEUE_SIZE + 3))
    assert stop.is_set()
    with pytest.raises(OutputError, match="did not finish"):
        taking.finish(failed=False)
    assert time.monotonic() - started < 4  # it is held for 5
    held.go_on.set()


def test_a_slow_output_ends_in_order_without_what_waits_for_it(monkeypatch):
    monkeypatch.setattr(module, "CLOSE_TIMEOUT_S", 0.5)

    class Slow(FakeOutput):
        keeps_all = True

        def write(self, *arguments):
            time.sleep(0.2)
            return super().write(*arguments)

    slow, stop = Slow(), threading.Event()
    taking = OutputSet([slow], no_drawing, live=False, stopping=stop.is_set)
    write(taking, range(module.QUEUE_SIZE))
    stop.set()
    taking.finish(failed=False)
    assert slow.closed == "well"
    assert 0 < len(slow.results) < module.QUEUE_SIZE
    assert len(slow.results) + taking.threads[0].dropped == module.QUEUE_SIZE


def test_after_a_failure_what_waits_is_still_written():
    held = HeldOutput()
    taking = feed([held], 5)
    held.started.wait(5)
    threading.Timer(0.05, held.go_on.set).start()
    taking.finish(failed=True)
    assert (len(held.results), held.closed) == (5, "failed")


def test_after_a_failure_a_slow_output_is_not_waited_for_long(monkeypatch):
    monkeypatch.setattr(module, "CLOSE_TIMEOUT_S", 1.0)
    held = HeldOutput()
    taking = feed([held], 5)
    held.started.wait(5)

    def let_go():
        while not taking.threads[0].dropped:
            time.sleep(0.01)
        held.go_on.set()

    threading.Thread(target=let_go).start()
    taking.finish(failed=True)
    assert (len(held.results), taking.threads[0].dropped, held.closed) == (1, 4, "failed")


@pytest.mark.parametrize(("live", "ends"), [(True, ["well", "failed"]), (False, ["failed", "failed"])])
def test_of_a_camera_a_recording_outlives_the_failure_of_another(live, ends):
    recording, other = FakeOutput(), FakeOutput()
    recording.keeps_partial = True
    taking = feed([recording, other], 1, live=live)
    taking.finish(failed=True)
    assert [recording.closed, other.closed] == ends


@pytest.mark.parametrize(("live", "end"), [(True, "well"), (False, "failed")])
def test_of_a_camera_a_recording_outlives_its_own_failure(live, end):
    class Failing(FakeOutput):
        keeps_partial = True

        def write(self, *arguments):
            raise OutputError("the disk is full")

    failing = Failing()
    taking = feed([failing], 1, live=live)
    with pytest.raises(OutputError, match="the disk is full"):
        taking.finish(failed=False)
    assert failing.closed == end
