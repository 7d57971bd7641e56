import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from maskfer_edge.cameras import FakeCamera, Frame
from maskfer_edge.capture import Capture
from maskfer_edge.detector import Detection, FakeDetector
from maskfer_edge.errors import CameraError, InputError, MaskferError, OutputError
from maskfer_edge.health import HealthMeter
from maskfer_edge.loop import Pipeline, results
from maskfer_edge.model_file import ModelInfo
from maskfer_edge.outputs import FakeOutput
from maskfer_edge.tracker import Tracker

FACE = Detection((10, 10, 40, 40), 5.0)


class FakeClassifier:
    """Says Happy of every face, and keeps the faces."""

    def __init__(self, margins):
        info = ModelInfo("fake", margins, {}, {}, {}, "")
        self.model, self.faces = SimpleNamespace(info=info, name="my.tflite"), []

    def __call__(self, face):
        self.faces.append(face)
        return np.eye(7, dtype=np.float32)[3]


class FailingOutput(FakeOutput):
    def __init__(self, fails_in):
        super().__init__()
        self.fails_in = fails_in

    def write(self, *arguments):
        if self.fails_in == "write":
            raise OutputError("full")
        return super().write(*arguments)

    def close(self, failed=False):
        super().close(failed)
        if self.fails_in == "close":
            raise OutputError("full at the end")


class EndingOutput(FakeOutput):
    def write(self, *arguments):
        super().write(*arguments)
        return len(self.results) < 2


def pipeline(detections=(FACE,), margins=None, margin=None):
    classifier = FakeClassifier({"haar": 0.0} if margins is None else margins)
    return Pipeline(FakeDetector(detections), classifier, Tracker(), margin)


def picture():
    return np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)


def run(outputs, frames=5, detections=(FACE,), **options):
    meter = HealthMeter()
    with Capture(FakeCamera([picture()] * frames)) as capture:
        for _ in results(capture, pipeline(detections), outputs, meter=meter, **options):
            pass
    return meter


def test_every_frame_has_a_result():
    output = FakeOutput()
    run([output])
    assert [result.frame for result in output.results] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("most", "expected"), [(0, 5), (1, 1), (3, 3), (9, 5)])
def test_max_frames_ends_the_loop(most, expected):
    output = FakeOutput()
    assert run([output], max_frames=most).frames == len(output.results) == expected


def test_an_output_can_end_the_loop():
    assert run([EndingOutput(), FakeOutput()], frames=500).frames < 400


def test_the_window_ends_the_loop_at_once():
    ending = EndingOutput()
    ending.main_thread = True
    assert run([ending, FakeOutput()]).frames == 2


def test_a_window_that_is_closed_while_the_camera_is_lost_ends_the_loop():
    class Closed(FakeOutput):
        main_thread = True

        def idle(self):
            return False

    class Lost(FakeCamera):
        live = endless = True

        def read(self):
            frame = super().read()
            if frame is None:
                raise CameraError("unplugged")
            return frame

    def gone():
        raise CameraError("gone")

    with Capture(Lost([picture()]), gone) as capture:
        list(results(capture, pipeline(), [Closed()]))  # which would try for ever
    assert capture.stopped and capture.lost


def test_an_output_on_the_main_thread_is_called_by_it():
    seen = []

    class Here(FakeOutput):
        main_thread = True

        def write(self, *arguments):
            seen.append(threading.current_thread())
            return True

    run([Here()])
    assert set(seen) == {threading.main_thread()}


class CountingDetector(FakeDetector):
    def __init__(self):
        super().__init__([FACE])
        self.calls = 0

    def __call__(self, image, near=()):
        self.calls += 1
        return super().__call__(image, near)


def counted(frames=6, moving=True, faces=1, **options):
    """(calls of the detector, faces classified, faces in each result)."""
    detector, classifier = CountingDetector(), FakeClassifier({"haar": 0.0})
    detector.detections = [Detection((60 * i, 10, 40, 40), 5.0) for i in range(faces)]
    pipe = Pipeline(detector, classifier, Tracker(), **options)
    results = [pipe.process(Frame(picture(), i, 0.0), moving=moving) for i in range(frames)]
    return detector.calls, len(classifier.faces), [len(result.faces) for result in results]


@pytest.mark.parametrize(("every", "calls"), [(1, 6), (2, 3), (3, 2), (4, 2), (9, 1)])
def test_the_detector_sees_every_so_many_frames(every, calls):
    assert counted(detect_every=every) == (calls, 6, [1] * 6)


def test_pictures_that_do_not_follow_each_other_are_all_searched():
    assert counted(detect_every=3, moving=False)[0] == 6


def test_faces_are_classified_in_turn_under_a_budget():
    """The budget is spent after the first face, so that the others wait for their frames."""
    _, classified, shown = counted(frames=5, faces=3, budget_ms=1e-9)
    assert (classified, shown) == (5, [1, 2, 3, 3, 3])


def test_faces_that_are_to_be_blurred_are_all_in_the_first_result_read_or_not():
    detector = FakeDetector([Detection((60 * number, 10, 40, 40), 5.0) for number in range(3)])
    pipe = Pipeline(detector, FakeClassifier({"haar": 0.0}), Tracker(), budget_ms=1e-9)
    pipe.covers = True
    results = [pipe.process(Frame(picture(), number, 0.0)) for number in range(3)]
    assert [(len(result.faces), len(result.covered)) for result in results] == [(1, 2), (2, 1), (3, 0)]
    assert {*results[0].covered, results[0].faces[0].box} == {found.box for found in detector.detections}


def test_nothing_is_named_to_be_blurred_unless_asked():
    detector = FakeDetector([Detection((10, 10, 40, 40), 5.0, readable=False)])
    pipe = Pipeline(detector, FakeClassifier({"haar": 0.0}), Tracker())
    plain = pipe.process(Frame(picture(), 0, 0.0))
    pipe.covers = True
    covering = pipe.process(Frame(picture(), 1, 0.1))
    assert (plain.faces, plain.covered, covering.faces, covering.covered) == ((), (), (), ((10, 10, 40, 40),))
    assert "covered" not in covering.to_json()


@pytest.mark.parametrize("options", [{"detect_every": 0}, {"budget_ms": -1}, {"budget_ms": float("nan")}])
def test_numbers_that_make_no_sense_are_refused(options):
    with pytest.raises(InputError, match="received"):
        counted(**options)


def test_the_stages_are_timed():
    pipe = pipeline()
    pipe.process(Frame(picture(), 0, 0.0))
    assert set(pipe.stages_ms) == {"detect", "classify", "result", "age"}
    assert pipe.stages_ms["result"] >= pipe.stages_ms["classify"] > 0
    # the time to the result is rounded to hundredths
    assert pipe.stages_ms["age"] >= pipe.stages_ms["result"] - 0.01


def test_a_pulse_is_given_after_each_frame():
    pulses = []
    run([], pulse=lambda: pulses.append(1))
    assert len(pulses) == 5


def test_the_health_counts_what_happened():
    health = run([FakeOutput()]).snapshot()
    assert (health.frames, health.faces, health.dropped, health.losses) == (5, 1, 0, 0)
    assert health.output_drops == {"fake": 0}
    assert health.latency_ms["result"].p95 >= health.latency_ms["result"].p50 > 0


@pytest.mark.parametrize(("detections", "frames"), [((FACE,), 5), ((), 0)])
def test_the_summary_counts_frames_with_faces(detections, frames):
    assert run([], detections=detections).frames_with_faces == frames


def test_the_summary_counts_expressions():
    assert run([]).expressions == {"Happy": 5}


def test_outputs_are_closed_well_at_the_end():
    output = FakeOutput()
    run([output])
    assert output.closed == "well"


def test_outputs_are_closed_as_failed_if_one_cannot_write():
    outputs = [FakeOutput(), FailingOutput("write"), FakeOutput()]
    with pytest.raises(OutputError, match="full"):
        run(outputs)
    assert [output.closed for output in outputs] == ["failed"] * 3


def test_all_outputs_are_closed_if_one_cannot_close():
    outputs = [FailingOutput("close"), FakeOutput()]
    with pytest.raises(OutputError, match="full at the end"):
        run(outputs)
    assert [output.closed for output in outputs] == ["well"] * 2


def test_the_first_error_is_the_one_that_is_told():
    class Both(FailingOutput):
        def close(self, failed=False):
            raise OutputError("second")

    with pytest.raises(OutputError, match="full") as caught:
        run([Both("write")])
    assert "second" not in str(caught.value)


@pytest.mark.parametrize(("wanting", "pictures"), [(True, 5), (False, 0)])
def test_pictures_are_drawn_only_if_an_output_wants_them(wanting, pictures):
    output = FakeOutput(wants_picture=wanting)
    run([output])
    assert len(output.pictures) == pictures


def test_the_crop_has_the_margin_that_the_model_names():
    wide, narrow = (pipeline(margins={"haar": margin}) for margin in (0.2, 0.0))
    wide.faces(picture(), 0)
    narrow.faces(picture(), 0)
    assert not np.array_equal(wide.classifier.faces[0], narrow.classifier.faces[0])


def test_a_margin_can_be_given():
    assert pipeline(margins={}, margin=0.1).margin == 0.1


@pytest.mark.parametrize(("margins", "named"), [({"other": 0.1}, "other"), ({}, "none")])
def test_a_model_without_margin_for_the_detector_is_refused(margins, named):
    with pytest.raises(InputError, match=f"my.tflite was not made for detector 'haar'; it names {named}"):
        pipeline(margins=margins)


def test_a_result_carries_time_frame_and_latency():
    output = FakeOutput()
    run([output])
    last = output.results[-1]
    assert (last.time, last.frame, last.latency_ms >= 0) == (0.4, 4, True)


def test_whoever_has_seen_enough_may_leave():
    output = FakeOutput()
    with Capture(FakeCamera([picture()] * 100)) as capture:
        found = results(capture, pipeline(), [output])
        assert [next(found).frame, next(found).frame] == [0, 1]
        found.close()
    assert (len(output.results), output.closed) == (2, "well")


@pytest.mark.parametrize("covers", [False, True])
def test_faces_from_before_a_loss_are_gone_after_it_but_stay_blurred(lossy_camera, covers):
    first, again = (lossy_camera([picture()] * 3, live=True, pause_s=0.02) for _ in range(2))
    pipe = Pipeline(CountingDetector(), FakeClassifier({"haar": 0.0}), Tracker(coast=5), 0.0, detect_every=2)
    pipe.covers = covers
    seen = []
    with Capture(first, lambda: again, first_pause_s=0.001) as capture:
        for result in results(capture, pipe):
            seen.append(([face.track for face in result.faces], len(result.covered)))
            pipe.detector.detections = []
            if result.frame >= len(first.images):
                break
    assert seen[0] == ([1], 0)
    assert seen[-1] == ([], int(covers))


def test_a_slowdown_lets_the_detector_rest():
    detector = CountingDetector()
    pipe = Pipeline(detector, FakeClassifier({"haar": 0.0}), Tracker(), detect_every=2)
    pipe.slowdown = 2
    for index in range(8):
        pipe.process(Frame(picture(), index, 0.0))
    assert detector.calls == 2


def test_faces_are_looked_for_in_the_grey_picture_that_the_camera_gives():
    class Seeing(FakeDetector):
        def __call__(self, image, near=()):
            self.seen = image.shape
            return [Detection((5, 10, 20, 20), 5.0)]

    detector, classifier = Seeing(), FakeClassifier({"haar": 0.0})
    pipe = Pipeline(detector, classifier, Tracker())
    result = pipe.process(Frame(picture(), 0, 0.0, grey=np.zeros((40, 50), np.uint8)))
    assert (detector.seen, result.faces[0].box) == ((40, 50), (10, 20, 40, 40))


class SlowDetector(FakeDetector):
    """Looks until it is let go."""

    def __init__(self, fails=False):
        super().__init__([FACE])
        self.go_on, self.fails, self.seen = threading.Event(), fails, []

    def __call__(self, image, near=()):
        self.go_on.wait(5)
        self.seen.append(image.shape)
        if self.fails:
            raise ZeroDivisionError
        return super().__call__(image, near)


def background(detector, **options):
    pipe = Pipeline(detector, FakeClassifier({"haar": 0.0}), Tracker(), **options)
    pipe.detect_in_background()
    return pipe


def process_until(pipe, first, done):
    """Process frames from number `first` on until `done(result)`; the result and the next number."""
    for number in range(first, first + 2000):
        result = pipe.process(Frame(picture(), number, 0.0))
        if done(result):
            return result, number + 1
        time.sleep(0.001)
    raise AssertionError("it never came to that")


def test_the_loop_does_not_wait_for_a_detector_in_the_background():
    detector = SlowDetector()
    pipe = background(detector)
    assert all(not pipe.process(Frame(picture(), number, 0.0)).faces for number in range(10))
    detector.go_on.set()
    result, _ = process_until(pipe, 10, lambda result: result.faces)
    assert result.faces[0].expression == "Happy"
    pipe.close()


def test_what_was_found_late_is_matched_where_it_was_seen():
    detector = SlowDetector()
    detector.go_on.set()
    pipe = background(detector)
    result, number = process_until(pipe, 0, lambda result: result.faces)
    again, _ = process_until(pipe, number, lambda result: len(detector.seen) > 5)
    assert again.faces[0].track == result.faces[0].track == 1
    pipe.close()


def test_an_error_of_the_detector_reaches_the_loop():
    detector = SlowDetector(fails=True)
    detector.go_on.set()
    pipe = background(detector)
    with pytest.raises(ZeroDivisionError):
        process_until(pipe, 0, lambda result: False)
    pipe.close()


def test_a_detector_that_hangs_ends_the_loop(monkeypatch):
    monkeypatch.setattr("maskfer_edge.background_detector.DETECTION_TIMEOUT_S", 0.05)
    detector = SlowDetector()
    pipe = background(detector)
    with pytest.raises(MaskferError, match=r"hangs; start the program again"):
        process_until(pipe, 0, lambda result: False)
    detector.go_on.set()
    pipe.close()


def test_closing_does_not_wait_for_a_detector_that_hangs():
    pipe = background(SlowDetector())
    pipe.process(Frame(picture(), 0, 0.0))
    started = time.monotonic()
    pipe.close()
    assert time.monotonic() - started < 4  # it hangs for 5
    pipe.detector.go_on.set()


def test_in_the_background_too_the_detector_rests_between():
    detector = SlowDetector()
    detector.go_on.set()
    pipe = background(detector, detect_every=1000)
    process_until(pipe, 0, lambda result: result.faces)
    for number in range(300, 600):
        pipe.process(Frame(picture(), number, 0.0))
    assert len(detector.seen) == 1
    pipe.close()


def test_most_detections_look_only_where_faces_should_be():
    looked = []

    class Looking(FakeDetector):
        def __call__(self, image, near=()):
            looked.append(list(near))
            return [FACE]

    pipe = Pipeline(Looking(), FakeClassifier({"haar": 0.0}), Tracker(), detect_every=2)
    for index in range(12):
        pipe.process(Frame(picture(), index, 0.0))
    assert [bool(near) for near in looked] == [False, True, True, True, True, False]
    assert looked[1] == [FACE.box]


@pytest.mark.parametrize(("every", "faces"), [(1, [FACE]), (2, [])])
def test_every_frame_or_without_faces_it_looks_everywhere(every, faces):
    looked = []

    class Looking(FakeDetector):
        def __call__(self, image, near=()):
            looked.append(list(near))
            return faces

    pipe = Pipeline(Looking(), FakeClassifier({"haar": 0.0}), Tracker(), detect_every=every)
    for index in range(8):
        pipe.process(Frame(picture(), index, 0.0))
    assert not any(looked)


def test_places_are_in_the_pixels_of_the_picture_that_is_searched():
    looked = []

    class Looking(FakeDetector):
        def __call__(self, image, near=()):
            looked.append(list(near))
            return [Detection((5, 10, 20, 20), 5.0)]

    pipe = Pipeline(Looking(), FakeClassifier({"haar": 0.0}), Tracker(), detect_every=2)
    for index in range(3):
        pipe.process(Frame(picture(), index, 0.0, grey=np.zeros((40, 50), np.uint8)))
    assert looked == [[], [(5, 10, 20, 20)]]
