from types import SimpleNamespace

import numpy as np
import pytest

from maskfer_edge.cameras import FakeCamera
from maskfer_edge.capture import Capture
from maskfer_edge.detector import Detection, FakeDetector
from maskfer_edge.errors import InputError, OutputError
from maskfer_edge.loop import Pipeline, run_loop
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
    with Capture(FakeCamera([picture()] * frames)) as capture:
        return run_loop(capture, pipeline(detections), outputs, **options)


def test_every_frame_has_a_result():
    output = FakeOutput()
    run([output])
    assert [result.frame for result in output.results] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("most", "expected"), [(0, 5), (1, 1), (3, 3), (9, 5)])
def test_max_frames_ends_the_loop(most, expected):
    output = FakeOutput()
    assert run([output], max_frames=most).frames == len(output.results) == expected


def test_an_output_can_end_the_loop():
    assert run([EndingOutput(), FakeOutput()]).frames == 2


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
