import csv
import errno
import io
import json
import os
import shutil
import sys
import threading
import time
from contextlib import nullcontext
from dataclasses import asdict
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from maskfer_edge import outputs
from maskfer_edge.cameras import Frame
from maskfer_edge.contract import LABELS
from maskfer_edge.errors import OutputError
from maskfer_edge.outputs import CsvFile, FakeOutput, JsonLines, VideoRecording, Window, fit_into, has_display
from maskfer_edge.results import FrameResult, face_result

FACE = face_result(1, (10, 20, 30, 40), 7.0, np.full(7, 1 / 7, np.float32))


def picture(value=100, shape=(48, 64, 3)):
    return np.full(shape, value, np.uint8)


def feed(output, times, shape=(48, 64, 3)):
    for index, at in enumerate(times):
        image = picture(shape=shape)
        output.write(Frame(image, index, at), FrameResult(at, index, (FACE,), 1.0), image)


def read_back(path):
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (answer := capture.read())[0]:
        frames.append(answer[1])
    capture.release()
    return frames


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def lines_of(tmp_path, count=1):
    output = JsonLines(str(tmp_path / "a.jsonl"))
    feed(output, range(count))
    output.close()
    return [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]


def test_json_lines_writes_one_line_a_frame(tmp_path):
    assert [line["frame"] for line in lines_of(tmp_path, 3)] == [0, 1, 2]


def test_a_line_has_the_keys_of_the_design(tmp_path):
    assert list(lines_of(tmp_path)[0]) == ["time", "frame", "faces", "latency_ms"]


def test_a_face_has_the_keys_of_the_design(tmp_path):
    face = lines_of(tmp_path)[0]["faces"][0]
    assert list(face) == ["track", "box", "detector_score", "expression", "confidence", "scores"]


def test_a_line_holds_the_whole_result_but_what_is_covered(tmp_path):
    expected = asdict(FrameResult(0, 0, (FACE,), 1.0))
    del expected["covered"]
    assert lines_of(tmp_path)[0] == json.loads(json.dumps(expected))


def test_a_box_is_left_top_width_height(tmp_path):
    assert lines_of(tmp_path)[0]["faces"][0]["box"] == [10, 20, 30, 40]


def test_a_line_can_be_read_before_the_end(tmp_path):
    output = JsonLines(str(tmp_path / "a.jsonl"))
    feed(output, [0])
    assert (tmp_path / "a.jsonl").read_bytes().count(b"\n") == 1
    output.close()


def test_json_lines_to_stdout(capfdbinary):
    output = JsonLines("-")
    feed(output, range(2))
    output.close()
    assert capfdbinary.readouterr().out.count(b"\n") == 2


def test_a_full_disk_is_an_output_error():
    output = JsonLines("/dev/full")
    with pytest.raises(OutputError, match="/dev/full cannot be written: No space left"):
        feed(output, [0])
    output.close(failed=True)


class FillingFile:
    """A file on a disk that takes `room` bytes more; `raises` or tells a short count, as raw files do."""

    def __init__(self, file, room, raises):
        self.file, self.room, self.raises = file, room, raises

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        written = self.file.write(data[: self.room])
        self.room -= written
        if written < len(data) and self.raises:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written


@pytest.mark.parametrize("raises", [True, False])
def test_a_disk_that_fills_leaves_whole_lines(tmp_path, raises):
    output = JsonLines(str(tmp_path / "a.jsonl"))
    output._file = FillingFile(output._file, 600, raises)
    with pytest.raises(OutputError, match="No space left"):
        feed(output, range(9))
    output.close(failed=True)
    content = (tmp_path / "a.jsonl").read_bytes()
    assert 0 < len(content) < 600 and content.endswith(b"}\n")


def test_an_existing_json_file_is_refused_and_kept(tmp_path):
    (tmp_path / "a.jsonl").write_text("old")
    with pytest.raises(OutputError, match="already there"):
        JsonLines(str(tmp_path / "a.jsonl"))
    assert (tmp_path / "a.jsonl").read_text() == "old"


def test_overwrite_starts_the_json_file_anew(tmp_path):
    (tmp_path / "a.jsonl").write_text("old and much longer than nothing")
    JsonLines(str(tmp_path / "a.jsonl"), overwrite=True).close()
    assert (tmp_path / "a.jsonl").read_bytes() == b""


@pytest.mark.parametrize("options", [{"overwrite": True}, {"append": True}])
@pytest.mark.parametrize("kind", [JsonLines, CsvFile])
def test_a_failure_before_the_first_line_leaves_what_was_there(tmp_path, kind, options):
    (tmp_path / "a.txt").write_text("old")
    kind(str(tmp_path / "a.txt"), **options).close(failed=True)
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_file_that_another_run_writes_is_refused_and_kept(tmp_path):
    first = JsonLines(str(tmp_path / "a.jsonl"), rotate_bytes=1000)
    feed(first, range(9))  # which has begun a new file by then
    for options in ({"overwrite": True}, {"append": True}):
        with pytest.raises(OutputError, match=r"another run is writing .*a\.jsonl; name another output"):
            JsonLines(str(tmp_path / "a.jsonl"), **options)
    first.close()
    assert json.loads((tmp_path / "a.jsonl").read_text().splitlines()[-1])["frame"] == 8
    JsonLines(str(tmp_path / "a.jsonl"), append=True).close()


@pytest.mark.parametrize("options", [{"overwrite": True}, {"append": True, "rotate_bytes": 100}])
@pytest.mark.parametrize("kind", [JsonLines, CsvFile])
def test_a_pipe_takes_lines(tmp_path, kind, options):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    output = kind(str(pipe), **options)
    feed(output, range(3))
    output.close()
    reader.join()
    assert read[0].count("\n") == 3 + (kind is CsvFile)


@pytest.mark.parametrize("stdout", [io.StringIO(), None])
def test_a_file_needs_no_stdout(tmp_path, monkeypatch, stdout):
    monkeypatch.setattr(sys, "stdout", stdout)
    JsonLines(str(tmp_path / "a.jsonl")).close()
    assert names(tmp_path) == ["a.jsonl"]


def test_a_file_that_was_replaced_before_it_could_be_locked_is_opened_anew(tmp_path, monkeypatch):
    path, real = tmp_path / "a.jsonl", outputs.lock

    def lock_late(file, of):
        monkeypatch.setattr(outputs, "lock", real)
        path.rename(tmp_path / "a.jsonl.1")
        real(file, of)

    monkeypatch.setattr(outputs, "lock", lock_late)
    output = JsonLines(str(path))
    feed(output, [0])
    output.close()
    assert path.read_text().count("\n") == 1 and (tmp_path / "a.jsonl.1").read_text() == ""


def test_a_file_is_not_taken_for_stdout_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = JsonLines("stdout", rotate_bytes=1000)
    feed(output, range(9))
    output.close()
    assert {"stdout", "stdout.1"} < {*names(tmp_path)}


def test_a_failure_before_the_first_line_leaves_no_json_file(tmp_path):
    JsonLines(str(tmp_path / "a.jsonl")).close(failed=True)
    assert names(tmp_path) == []


def test_a_failure_keeps_the_lines_so_far(tmp_path):
    output = JsonLines(str(tmp_path / "a.jsonl"))
    feed(output, range(3))
    output.close(failed=True)
    assert (tmp_path / "a.jsonl").read_bytes().count(b"\n") == 3


@pytest.mark.parametrize("suffix", ["mp4", "avi"])
@pytest.mark.parametrize(
    ("shape", "size"),
    [((48, 64, 3), (48, 64, 3)), ((47, 63, 3), (48, 64, 3)), ((30, 301, 3), (30, 302, 3))],
)
def test_a_recording_can_be_read_back(tmp_path, suffix, shape, size):
    path = tmp_path / f"a.{suffix}"
    output = VideoRecording(path, 10.0)
    feed(output, [i / 10 for i in range(7)], shape)
    output.close()
    frames = read_back(path)
    assert (len(frames), frames[0].shape) == (7, size)


def test_a_recording_leaves_nothing_else(tmp_path):
    output = VideoRecording(tmp_path / "a.mp4", 10.0)
    feed(output, [0, 0.1])
    output.close()
    assert names(tmp_path) == ["a.mp4"]


def test_a_recording_appears_only_when_it_is_closed(tmp_path):
    output = VideoRecording(tmp_path / "a.mp4", 10.0)
    feed(output, [0])
    assert not (tmp_path / "a.mp4").exists()
    output.close()
    assert (tmp_path / "a.mp4").exists()


def test_of_a_camera_a_video_that_takes_too_long_is_shorter(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "MAX_FILLING_S", 0.0)
    output = VideoRecording(tmp_path / "a.avi", 10.0, live=True)
    feed(output, [0, 1, 1.1])  # ten pictures are due for the second, and one is written
    output.close()
    assert (len(read_back(tmp_path / "a.avi")), output.dropped) == (3, 9)


def test_of_a_file_a_video_keeps_its_time_however_long_that_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "MAX_FILLING_S", 0.0)
    output = VideoRecording(tmp_path / "a.avi", 10.0)
    feed(output, [0, 1, 1.1])
    output.close()
    assert (len(read_back(tmp_path / "a.avi")), output.dropped) == (12, 0)


def test_a_recording_that_waits_for_its_camera_is_not_taken_for_a_killed_one(tmp_path):
    waiting = VideoRecording(tmp_path / "a.mp4", 10.0)
    feed(waiting, [0])
    (partial,) = tmp_path.iterdir()
    os.utime(partial, (time.time() - 3600,) * 2)
    VideoRecording(tmp_path / "a.mp4", 10.0).close()
    waiting.close()
    assert len(read_back(tmp_path / "a.mp4")) == 1


def test_what_a_killed_recording_left_is_removed(tmp_path):
    kept = [".a.4567cdef.partial.mp4", ".a.b.0123cdef.partial.mp4", ".b.0123cdef.partial.mp4"]
    for name, age in ((".a.0123cdef.partial.mp4", 3600), (kept[0], 0), (kept[1], 3600), (kept[2], 3600)):
        (tmp_path / name).write_text("left")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    VideoRecording(tmp_path / "a.mp4", 10.0).close()
    assert names(tmp_path) == kept


@pytest.mark.parametrize("times", [[], [0.0, 0.1]])
def test_a_failed_recording_leaves_nothing(tmp_path, times):
    output = VideoRecording(tmp_path / "a.mp4", 10.0)
    feed(output, times)
    output.close(failed=True)
    assert names(tmp_path) == []


def test_a_failed_recording_keeps_the_old_one(tmp_path):
    (tmp_path / "a.mp4").write_text("old")
    output = VideoRecording(tmp_path / "a.mp4", 10.0, overwrite=True)
    feed(output, [0])
    output.close(failed=True)
    assert ((tmp_path / "a.mp4").read_text(), names(tmp_path)) == ("old", ["a.mp4"])


def test_a_recording_without_frames_leaves_nothing(tmp_path):
    VideoRecording(tmp_path / "a.mp4", 10.0).close()
    assert names(tmp_path) == []


def test_an_existing_video_is_refused_and_kept(tmp_path):
    (tmp_path / "a.mp4").write_text("old")
    with pytest.raises(OutputError, match="already there"):
        VideoRecording(tmp_path / "a.mp4", 10.0)
    assert (tmp_path / "a.mp4").read_text() == "old"


@pytest.mark.parametrize("count", [0, 7])
def test_a_recording_stops_before_the_disk_is_full(tmp_path, monkeypatch, count):
    output = VideoRecording(tmp_path / "a.avi", 10.0)
    free = iter([1e9] * count)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=next(free, 4e6 + 1000)))
    with pytest.raises(OutputError, match="the disk is full"):
        feed(output, [i / 10 for i in range(100)])
    output.close()  # as of a camera
    assert names(tmp_path) == ["a.avi"] * (count > 0)
    assert len(read_back(tmp_path / "a.avi")) == count


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(OutputError, match=r"must end in \.mp4 or \.avi"):
        VideoRecording(tmp_path / "a.gif", 10.0)


def test_a_recording_that_lost_frames_is_refused(tmp_path):
    output = VideoRecording(tmp_path / "a.avi", 10.0)
    feed(output, [0, 0.1])
    output._written = 5
    with pytest.raises(OutputError, match="only 2 of 5 frames"):
        output.close()
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("times", "frames"),
    [
        ([100.0, 100.1, 100.2], 3),
        ([100.0, 100.5], 6),
        ([100.0, 100.01, 100.02, 100.1], 2),
        ([100.0, 100.1, 200.0, 200.1], 4),
        ([100.0, 100.1, 200.0], 3),
        ([100.0, 100.1, 40.0, 40.1, 40.2], 5),
    ],
    ids=[
        "even",
        "a gap repeats",
        "too fast leaves out",
        "a long gap is skipped",
        "a long gap at the end",
        "set back",
    ],
)
def test_a_recording_keeps_the_source_s_time(tmp_path, times, frames):
    output = VideoRecording(tmp_path / "a.avi", 10.0)
    feed(output, times)
    output.close()
    assert len(read_back(tmp_path / "a.avi")) == frames


def test_pictures_of_other_sizes_are_fitted_into_the_first(tmp_path):
    output = VideoRecording(tmp_path / "a.avi", 1.0)
    for index, shape in enumerate([(48, 64, 3), (96, 32, 3), (10, 10, 3)]):
        image = picture(200, shape)
        output.write(Frame(image, index, float(index)), FrameResult(0.0, index, (), 1.0), image)
    output.close()
    assert [frame.shape for frame in read_back(tmp_path / "a.avi")] == [(48, 64, 3)] * 3


def test_fit_into_letterboxes_a_tall_picture():
    fitted = fit_into(picture(200, (96, 32, 3)), (64, 48))
    assert np.flatnonzero(fitted[24, :, 0]).tolist() == list(range(24, 40))


def test_fit_into_does_not_enlarge():
    assert (fit_into(picture(200, (10, 10, 3)), (64, 48)) > 0).sum() == 10 * 10 * 3


def test_a_window_that_cannot_open_names_the_option(monkeypatch):
    def refuse(*_):
        raise cv2.error("no display")

    monkeypatch.setattr(cv2, "namedWindow", refuse)
    with pytest.raises(OutputError, match="--headless"):
        feed(Window(), [0])


@pytest.mark.parametrize(
    ("key", "visible", "goes_on"),
    [(-1, 1.0, True), (ord("a"), 1.0, True), (ord("q"), 1.0, False), (27, 1.0, False), (-1, 0.0, False)],
)
def test_q_escape_and_closing_end_the_window(monkeypatch, key, visible, goes_on):
    for name in ("namedWindow", "resizeWindow", "imshow"):
        monkeypatch.setattr(cv2, name, lambda *_: None)
    monkeypatch.setattr(cv2, "waitKey", lambda _: key)
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: visible)
    assert Window().write(Frame(picture(), 0, 0.0), FrameResult(0.0, 0, (), 1.0), picture()) is goes_on


@pytest.mark.parametrize("environment", [{}, {"DISPLAY": ":987"}, {"WAYLAND_DISPLAY": "nowhere"}])
def test_a_screen_that_cannot_be_reached_is_none(monkeypatch, environment):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert not has_display()


@pytest.mark.parametrize(("program", "expected"), [("true", True), ("false", False)])
def test_a_screen_is_one_on_which_a_window_opens(monkeypatch, program, expected):
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(sys, "executable", shutil.which(program))
    assert has_display() is expected


def test_the_fake_keeps_what_it_is_given():
    output = FakeOutput()
    feed(output, range(2))
    assert [result.frame for result in output.results] == [0, 1]


@pytest.mark.parametrize("kind", [JsonLines, CsvFile])
def test_an_appended_file_goes_on(tmp_path, kind):
    for times in ([0, 1], [2]):
        output = kind(str(tmp_path / "a.txt"), append=True)
        feed(output, times)
        output.close()
    lines = (tmp_path / "a.txt").read_text().splitlines()
    assert len(lines) == 3 + (kind is CsvFile)


@pytest.mark.parametrize("left", [b'{"time":', b'{"a":1}\n{"time":', b'{"a":1}\n' + b"x" * 200_000])
def test_what_a_crash_left_of_the_last_line_is_taken_off(tmp_path, left):
    (tmp_path / "a.jsonl").write_bytes(left)
    output = JsonLines(str(tmp_path / "a.jsonl"), append=True)
    feed(output, [0])
    output.close()
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len(lines) == left.count(b"\n") + 1


def test_a_header_that_a_crash_cut_off_is_written_anew(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"time,fra")
    output = CsvFile(str(tmp_path / "a.csv"), append=True)
    feed(output, [0])
    output.close()
    assert (tmp_path / "a.csv").read_text().startswith(CsvFile.header)


@pytest.mark.parametrize("kind", [JsonLines, CsvFile])
def test_what_cannot_be_read_is_not_lost(tmp_path, kind):
    (tmp_path / "a.txt").write_text("old\n")
    output = kind(str(tmp_path / "a.txt"), append=True)
    file = output._file

    class Dying(io.RawIOBase):
        def __getattribute__(self, name):
            return object.__getattribute__(self, name) if name in ("read", "close") else getattr(file, name)

        def read(self, count=-1):
            raise OSError(errno.EIO, "Input/output error")

    output._file = Dying()
    with pytest.raises(OutputError, match="Input/output error"):
        feed(output, [0])
    file.close()
    assert (tmp_path / "a.txt").read_text() == "old\n"


@pytest.mark.parametrize("options", [{}, {"rotate_bytes": 1000}])
def test_a_pipe_is_no_file_that_is_there_already(tmp_path, options):
    os.mkfifo(tmp_path / "a.jsonl")
    with os.fdopen(os.open(tmp_path / "a.jsonl", os.O_RDONLY | os.O_NONBLOCK), "rb") as reader:
        output = JsonLines(str(tmp_path / "a.jsonl"), **options)
        feed(output, [0])
        output.close()
        assert json.loads(reader.read())["frame"] == 0


def test_a_file_that_grows_too_large_is_rotated(tmp_path):
    output = JsonLines(str(tmp_path / "a.jsonl"), rotate_bytes=1000)
    feed(output, range(40))
    output.close()
    written = ["a.jsonl", *(f"a.jsonl.{number}" for number in range(1, 6))]
    assert names(tmp_path) == written
    assert all((tmp_path / name).stat().st_size <= 1000 for name in written)
    frames = [json.loads(line)["frame"] for name in written[::-1]
              for line in (tmp_path / name).read_text().splitlines()]  # fmt: skip
    assert frames == list(range(frames[0], 40))


@pytest.mark.parametrize(("options", "refused"), [({}, True), ({"append": True}, False), ({"overwrite": True}, False)])
def test_what_a_rotation_would_replace_is_refused_unless_told(tmp_path, options, refused):
    (tmp_path / "a.jsonl.3").write_text("precious")
    with pytest.raises(OutputError, match=r"a\.jsonl\.3 is already there") if refused else nullcontext():
        JsonLines(str(tmp_path / "a.jsonl"), rotate_bytes=1000, **options).close()


def test_a_rotation_that_fails_is_an_output_error(tmp_path):
    output = JsonLines(str(tmp_path / "a.jsonl"), rotate_bytes=1000)
    (tmp_path / "a.jsonl.1").mkdir()
    (tmp_path / "a.jsonl.2").write_text("a file where a folder would go")
    with pytest.raises(OutputError, match=r"a\.jsonl cannot be written"):
        feed(output, range(20))
    output.close(failed=True)


def test_a_rotation_that_finds_no_room_for_a_new_file_is_an_output_error(tmp_path, monkeypatch):
    def no_room(self, flags):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    output = JsonLines(str(tmp_path / "a.jsonl"), rotate_bytes=1000)
    monkeypatch.setattr(JsonLines, "_open", no_room)
    with pytest.raises(OutputError, match=r"a\.jsonl cannot be written: Too many open files"):
        feed(output, range(20))
    output.close(failed=True)
    assert (tmp_path / "a.jsonl.1").read_bytes().endswith(b"\n")


def test_a_window_answers_while_no_frame_comes(monkeypatch):
    for name in ("namedWindow", "resizeWindow", "imshow"):
        monkeypatch.setattr(cv2, name, lambda *_: None)
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: 1.0)
    monkeypatch.setattr(cv2, "waitKey", lambda _: -1)
    window = Window()
    assert window.idle()  # not open yet
    window.write(Frame(picture(), 0, 0.0), FrameResult(0.0, 0, (), 1.0), picture())
    assert window.idle()
    monkeypatch.setattr(cv2, "waitKey", lambda _: ord("q"))
    assert not window.idle()


def test_a_rotated_csv_has_its_names_in_each_file(tmp_path):
    output = CsvFile(str(tmp_path / "a.csv"), rotate_bytes=400)
    feed(output, range(6))
    output.close()
    assert all((tmp_path / name).read_text().startswith("time,frame,track") for name in names(tmp_path))


def test_csv_writes_a_line_a_face(tmp_path):
    output = CsvFile(str(tmp_path / "a.csv"))
    feed(output, [0, 0.5])
    output.write(Frame(picture(), 2, 1.0), FrameResult(1.0, 2, (), 1.0), None)
    output.close()
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert [(row["frame"], row["expression"], row["left"], row["height"]) for row in rows] == [
        ("0", "Angry", "10", "40"), ("1", "Angry", "10", "40"),
    ]  # fmt: skip
    assert sum(float(rows[0][label]) for label in LABELS) == pytest.approx(1, abs=1e-3)


def test_a_csv_on_a_full_disk_is_an_output_error():
    output = CsvFile("/dev/full")
    with pytest.raises(OutputError, match="/dev/full cannot be written"):
        output.close()
