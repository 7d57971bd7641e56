import json
import os
import sys
import threading
import urllib.request
from dataclasses import replace

import cv2
import numpy as np
import pytest

import maskfer_edge
from maskfer_edge import running
from maskfer_edge.camera_devices import NetworkStream, UsbCamera
from maskfer_edge.detector import Detection, FakeDetector, iou
from maskfer_edge.errors import CameraError, InputError, OutputError
from maskfer_edge.results import FrameResult
from maskfer_edge.run_settings import RunSettings
from maskfer_edge.running import open_run
from maskfer_edge.sources import open_camera


def run(report=lambda text: None, **settings):
    with open_run(RunSettings(**{"source": "demo", "headless": True, "max_frames": 3, **settings}), report) as made:
        return made, list(made.results())


def test_a_run_gives_a_result_a_frame():
    made, results = run()
    assert [result.frame for result in results] == [0, 1, 2]
    assert made.meter.frames == 3


def test_settings_reach_the_pipeline():
    made, _ = run(detector="haar", detect_every=5, budget_ms=7.0, search_side=320, min_confidence=0.3, mirror=False)
    pipeline = made.pipeline
    assert (pipeline.detect_every, pipeline.budget_ms, pipeline.detector.search_side) == (5, 7.0, 320)
    assert (pipeline.tracker.min_confidence, pipeline.classifier.mirror) == (0.3, False)


def test_all_files_are_written_at_once(tmp_path):
    run(jsonl=str(tmp_path / "a.jsonl"), csv=str(tmp_path / "a.csv"), record=str(tmp_path / "a.mp4"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "a.jsonl", "a.mp4"]


def test_an_output_that_cannot_be_opened_leaves_nothing(tmp_path):
    (tmp_path / "a.mp4").write_text("old")
    with pytest.raises(OutputError, match="already there"):
        run(jsonl=str(tmp_path / "a.jsonl"), record=str(tmp_path / "a.mp4"))
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_blurring_reaches_the_recording(tmp_path):
    for blur in (False, True):
        run(record=str(tmp_path / f"{blur}.avi"), blur=blur, max_frames=1)
    plain, blurred = (open_camera(str(tmp_path / f"{blur}.avi")).read().image for blur in (False, True))
    face = slice(110, 240), slice(230, 370)
    assert np.abs(plain[face].astype(int) - blurred[face]).mean() > 5


def test_a_face_too_small_for_an_expression_is_blurred_as_well(tmp_path, portrait):
    scene = np.full((960, 1280, 3), 90, np.uint8)
    scene[400:680, 500:780] = cv2.resize(portrait, (280, 280), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(tmp_path / "scene.png"), scene)
    plain, blurred = (
        run(source=str(tmp_path / "scene.png"), blur=blur, record=str(tmp_path / f"{blur}.avi"))[1][0]
        for blur in (False, True)
    )
    assert (plain.faces, plain.covered, blurred.faces) == ((), (), ())
    assert [iou(box, (588, 433, 70, 70)) > 0.5 for box in blurred.covered] == [True]
    in_clear, covered = (open_camera(str(tmp_path / f"{blur}.avi")).read().image for blur in (False, True))
    face = slice(440, 500), slice(590, 655)
    assert np.abs(in_clear[face].astype(int) - covered[face]).mean() > 5


def test_what_is_to_be_blurred_is_looked_for_in_each_frame():
    assert run(blur=True)[0].pipeline.detect_every == 1


def test_blurring_changes_what_is_seen_and_not_what_is_said(monkeypatch):
    """Faces that are missed, far away or found once: said of them is the same, whether they are blurred or not."""
    near, false = (Detection((60 * n, 50, 50, 50), 0.9) for n in range(2))
    far, leaving = Detection((120, 50, 9, 9), 0.9, readable=False), replace(near, readable=False)
    found = [[near], [near, far], [], [near], [leaving, false], [near], [], [], [near]]

    class Finder(FakeDetector):
        name = "learned"
        keep_small = False

        def __call__(self, image, near=()):
            self.calls = getattr(self, "calls", -1) + 1
            return [face for face in found[self.calls] if face.readable or self.keep_small]

    monkeypatch.setattr(running, "LearnedDetector", Finder)
    faces_by_blur = {}
    for blur in (False, True):
        monkeypatch.setattr(running, "open_detector", lambda *_: Finder())
        made, results = run(blur=blur, detect_every=1, max_frames=len(found))
        # but for the numbers, as what is only covered has some too
        faces_by_blur[blur] = [[replace(face, track=0) for face in result.faces] for result in results]
        assert [bool(result.covered) for result in results] == [False, *[blur] * (len(found) - 1)]
    assert faces_by_blur[True] == faces_by_blur[False]
    assert made.pipeline.detector.keep_small


def test_before_a_camera_a_face_is_believed_when_it_was_found_twice():
    for blur in (False, True):
        assert run(realtime=True, blur=blur)[0].pipeline.tracker.confirm == 2
    assert run()[0].pipeline.tracker.confirm == 1


def test_auto_says_what_it_picked(monkeypatch):
    monkeypatch.setattr(running, "pick_source", lambda: "demo")
    reported = []
    made, _ = run(reported.append, source="auto")
    assert "source: demo" in reported
    assert made.settings.source == "demo"


@pytest.mark.parametrize("terminal", [False, True])
def test_the_token_of_the_live_view_is_in_no_log(monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    reported = []
    run(reported.append, browser="127.0.0.1:0", token="sesame")
    (line,) = (line for line in reported if line.startswith("live view"))
    assert ("sesame" in line) is terminal


def test_without_a_camera_auto_is_one_line(monkeypatch):
    def none():
        raise CameraError("no camera found")

    monkeypatch.setattr(running, "pick_source", none)
    with pytest.raises(CameraError, match="no camera found"):
        run(source="auto")


@pytest.mark.parametrize(
    ("settings", "lines"),
    [
        ({}, []),
        ({"realtime": True}, []),
        ({"token": "sesame"}, ["token has no effect without browser"]),
        ({"append": True}, ["append has no effect without jsonl or csv"]),
        ({"search_side": 320}, ["search_side has no effect on the learned detector"]),
        ({"search_side": 320, "detector": "haar"}, []),
        ({"size": "640x480", "fps": 5.0, "loop": True}, ["no effect on demo: size, fps"]),
    ],
)
def test_what_was_asked_for_in_vain_is_told(settings, lines):
    reported = []
    run(reported.append, **settings)
    assert reported == lines


@pytest.mark.parametrize(("kind", "asked"), [(UsbCamera, "realtime, loop"), (NetworkStream, "size, realtime, loop")])
def test_what_a_camera_does_not_obey_is_told(monkeypatch, video_capture, kind, asked):
    monkeypatch.setattr(running, "open_camera", lambda source, options: kind("rtsp://me:secret@door/live"))
    reported = []
    with open_run(
        RunSettings("rtsp://me:secret@door/live", "640x480", 5.0, True, True, headless=True), reported.append
    ):
        assert [line for line in reported if "lost" not in line] == [f"no effect on rtsp://door/live: {asked}"]


def test_a_lost_camera_is_opened_again(monkeypatch, lossy_camera):
    opens = []

    def open_one(source, options):
        opens.append(source)
        pictures = [np.full((64, 64, 3), 10 * len(opens) + i, np.uint8) for i in range(20)]
        return lossy_camera(pictures, live=True, pause_s=0.005)

    monkeypatch.setattr(running, "open_camera", open_one)
    reported = []
    with open_run(RunSettings(source="usb:0", headless=True), reported.append) as made:
        for _ in made.results():
            if len(opens) == 2:
                break
    assert opens == ["usb:0", "usb:0"]
    assert any("is lost: unplugged" in line for line in reported)


def test_retries_end_at_last(monkeypatch, lossy_camera):
    cameras = [lossy_camera([np.zeros((64, 64, 3), np.uint8)], live=True)]

    def open_one(source, options):
        if cameras:
            return cameras.pop()
        raise CameraError("gone")

    monkeypatch.setattr(running, "open_camera", open_one)
    with (
        open_run(RunSettings(source="usb:0", headless=True, retries=1)) as made,
        pytest.raises(CameraError, match="gone"),
    ):
        list(made.results())


def test_metrics_are_served_while_it_runs():
    pytest.importorskip("prometheus_client")
    reported = []
    with open_run(RunSettings(source="demo", headless=True, metrics="127.0.0.1:0"), reported.append) as made:
        found = made.results()
        next(found)
        port = reported[0].removeprefix("metrics: port ")
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
        found.close()
    assert "maskfer_frames_total 1.0" in text


def test_a_port_that_the_system_chose_is_said():
    pytest.importorskip("prometheus_client")
    reported = []
    run(reported.append, metrics="0")
    (line,) = reported
    assert int(line.removeprefix("metrics: port ")) > 0


def test_the_board_s_warnings_slow_the_detector(monkeypatch):
    class Hot:
        warnings = ("throttled",)

        def __init__(self, report):
            pass

        def factor(self):
            return 2

    monkeypatch.setattr(running, "Throttle", Hot)
    made, _ = run()
    assert (made.pipeline.slowdown, made.meter.snapshot().warnings) == (2, ("throttled",))


def test_stream_gives_results_to_programs():
    results = maskfer_edge.stream("demo", max_frames=2)
    assert all(isinstance(result, FrameResult) for result in results)


def test_stream_leaves_the_program_s_stderr_alone():
    before = os.fstat(2)
    found = [maskfer_edge.stream("demo", max_frames=2) for _ in range(4)]
    threads = [threading.Thread(target=list, args=(results,)) for results in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.path.samestat(os.fstat(2), before)


def test_a_run_that_was_never_begun_leaves_all_as_it_was(tmp_path):
    (tmp_path / "old.csv").write_text("old")
    settings = {"jsonl": str(tmp_path / "a.jsonl"), "csv": str(tmp_path / "old.csv"), "overwrite": True}
    with open_run(RunSettings(source="demo", headless=True, **settings)):
        pass
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("old.csv", "old")]


def test_a_run_that_is_stopped_before_its_first_frame_leaves_all_as_it_was(tmp_path):
    (tmp_path / "old.csv").write_text("old")
    with open_run(RunSettings(source="demo", headless=True, csv=str(tmp_path / "old.csv"), overwrite=True)) as made:
        made.capture.stop()
        assert list(made.results()) == []
    assert (tmp_path / "old.csv").read_text() == "old"


def test_stream_names_an_unknown_setting():
    with pytest.raises(InputError, match="unknown setting 'detector_every'"):
        list(maskfer_edge.stream("demo", detector_every=2))


def test_a_stream_that_is_left_closes_its_files(tmp_path):
    path = tmp_path / "a.jsonl"
    found = maskfer_edge.stream("demo", jsonl=str(path))
    next(found)
    next(found)
    found.close()
    assert [json.loads(line)["frame"] for line in path.read_text().splitlines()][:2] == [0, 1]
