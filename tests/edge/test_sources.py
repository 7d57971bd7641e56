import re
import struct
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from maskfer_edge import camera_files
from maskfer_edge.camera_devices import NetworkStream, UsbCamera
from maskfer_edge.camera_files import RealTimeFile, _is_trimmed
from maskfer_edge.cameras import FakeCamera
from maskfer_edge.errors import CameraError, InputError
from maskfer_edge.sources import DEMO_CLIP, CameraOptions, open_camera


def write_pictures(folder, *names):
    for value, name in enumerate(names):
        cv2.imwrite(str(folder / name), np.full((8, 8, 3), value, np.uint8))


def write_clip(path, codec, count):
    """A clip of small grey frames at 10 a second, each brighter than the one before."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 10, (64, 64))
    for level in range(count):
        writer.write(np.full((64, 64, 3), level, np.uint8))
    writer.release()


def frames_of(camera):
    with camera:
        return list(iter(camera.read, None))


def test_a_folder_gives_its_pictures_by_name(tmp_path):
    write_pictures(tmp_path, "c.png", "a.PNG", "b.bmp")
    (tmp_path / "notes.txt").write_text("no picture")
    assert [int(frame.image[0, 0, 0]) for frame in frames_of(open_camera(str(tmp_path)))] == [1, 2, 0]


def test_pictures_come_two_a_second(tmp_path):
    write_pictures(tmp_path, "a.png", "b.png", "c.png")
    assert [(frame.index, frame.time) for frame in frames_of(open_camera(str(tmp_path)))] == [(0, 0), (1, 0.5), (2, 1)]


def test_a_picture_gives_one_frame(tmp_path):
    write_pictures(tmp_path, "a.png")
    assert len(frames_of(open_camera(str(tmp_path / "a.png")))) == 1


def test_a_damaged_picture_is_named_after_the_good_ones(tmp_path):
    write_pictures(tmp_path, "a.png")
    (tmp_path / "b.png").write_bytes(b"damaged")
    camera = open_camera(str(tmp_path))
    assert camera.read().index == 0
    with pytest.raises(InputError, match=r"b\.png is not a picture"):
        camera.read()


def test_hidden_files_of_a_folder_are_no_pictures(tmp_path):
    write_pictures(tmp_path, "a.png")
    (tmp_path / "._a.png").write_bytes(b"what macOS keeps beside it")
    with open_camera(str(tmp_path)) as camera:
        assert camera.read() is not None and camera.read() is None


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no pictures"):
        open_camera(str(tmp_path))


def test_a_missing_source_is_refused_with_what_there_is():
    with pytest.raises(
        InputError, match=r"'none\.mp4' does not exist; give a video file.*usb:N.*browser, auto or demo"
    ):
        open_camera("none.mp4")


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("0", InputError, "source '0' does not exist; did you mean usb:0?"),
        ("/dev/video99", CameraError, "/dev/video99: no such camera; see: maskfer-edge cameras"),
    ],
)
@pytest.mark.parametrize("loop", [False, True])
def test_a_camera_that_is_not_there_is_taken_for_one(source, error, message, loop):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        open_camera(source, CameraOptions(loop=loop))


@pytest.fixture(scope="module")
def demo_frames():
    return frames_of(open_camera("demo"))


def test_the_demo_clip_is_read_whole(demo_frames):
    assert [frame.index for frame in demo_frames] == list(range(108))


def test_a_video_keeps_its_time(demo_frames):
    assert [demo_frames[i].time for i in (0, 15, 105)] == pytest.approx([0, 1, 7])


def test_a_video_gives_colour_pictures(demo_frames):
    assert (demo_frames[0].image.shape, demo_frames[0].image.dtype) == ((360, 480, 3), np.uint8)


def test_files_are_not_live():
    with open_camera("demo") as camera:
        assert (camera.live, camera.file, camera.fps) == (False, True, 15.0)


@pytest.mark.parametrize("content", [b"", b"no video " * 50], ids=["empty", "foreign"])
def test_what_is_no_video_is_refused(tmp_path, content):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.mp4 cannot be opened as a video"):
        open_camera(str(tmp_path / "a.mp4"))


def test_a_video_cut_short_is_refused(tmp_path):
    with open_camera("demo") as demo, open(demo.name, "rb") as file:  # noqa: PTH123
        (tmp_path / DEMO_CLIP).write_bytes(file.read(20_000))
    with pytest.raises(InputError, match=DEMO_CLIP):
        frames_of(open_camera(str(tmp_path / DEMO_CLIP)))


@pytest.mark.parametrize(("kept", "whole"), [(0.5, False), (1.0, True)])
def test_a_video_that_ends_in_its_middle_is_said_to(tmp_path, kept, whole):
    path = tmp_path / "a.avi"
    write_clip(path, "MJPG", 60)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    camera, read = open_camera(str(path)), 0
    if whole:
        while camera.read():
            read += 1
        assert read == 60
    else:
        with pytest.raises(InputError, match=r"a\.avi ends after \d+ of 60 frames; it is cut short"):
            while camera.read():
                pass


@pytest.mark.parametrize(("shown_ms", "trimmed"), [(4000, False), (1500, True)])
def test_a_video_that_was_trimmed_without_encoding_is_whole(tmp_path, shown_ms, trimmed):
    path = tmp_path / "a.mp4"
    write_clip(path, "mp4v", 40)
    data = bytearray(path.read_bytes())
    # the length of the track, and of its only edit
    struct.pack_into(">I", data, data.index(b"tkhd") + 24, shown_ms)
    struct.pack_into(">I", data, data.index(b"elst") + 12, shown_ms)
    path.write_bytes(data)
    assert len(frames_of(open_camera(str(path)))) == shown_ms // 100
    assert _is_trimmed(path) is trimmed


@pytest.mark.parametrize("size", [0, 7, 8, 20, 100])
def test_what_is_no_whole_file_is_not_trimmed(tmp_path, size):
    (tmp_path / "a.mp4").write_bytes((b"\0\0\0\x6cmoov" + b"\0\0\0\x20mvhd" * 20)[:size])
    assert not _is_trimmed(tmp_path / "a.mp4")


def test_a_video_without_a_readable_frame_is_refused(video_capture, tmp_path):
    (tmp_path / "a.avi").write_bytes(b"x")
    camera = open_camera(str(tmp_path / "a.avi"))
    camera._capture.left = 0
    with pytest.raises(InputError, match="holds no frame"):
        camera.read()


@pytest.mark.parametrize(
    ("positions_ms", "times"),
    [
        ([500, 600, 1100, 1150], [0, 0.1, 0.6, 0.65]),
        ([0, 0, 0, 0], [0, 0.1, 0.2, 0.3]),
        ([0, 100, 90, 250], [0, 0.1, 0.2, 0.25]),
    ],
    ids=["said by the file", "not said", "going back"],
)
def test_a_frame_has_the_time_that_the_video_says(monkeypatch, tmp_path, positions_ms, times, video_capture):
    (tmp_path / "a.mkv").write_bytes(b"x")
    positions = iter(positions_ms)
    monkeypatch.setattr(video_capture, "get", lambda _, key: next(positions) if key == cv2.CAP_PROP_POS_MSEC else 10.0)
    camera = open_camera(str(tmp_path / "a.mkv"))
    camera._capture.left = len(times)
    assert [frame.time for frame in frames_of(camera)] == pytest.approx(times)


@pytest.mark.parametrize("fps", [0.0, float("nan"), float("inf"), -1.0, 90000.0])
def test_an_impossible_frame_rate_becomes_25(monkeypatch, tmp_path, fps, video_capture):
    (tmp_path / "a.avi").write_bytes(b"x")
    monkeypatch.setattr(video_capture, "get", lambda *_: fps)
    assert open_camera(str(tmp_path / "a.avi")).fps == 25.0


@pytest.mark.parametrize("source", ["usb:x", "usb:", "usb:-1", "usb:²", "usb:99999999999"])
def test_a_camera_number_must_be_one(source):
    with pytest.raises(InputError, match="expected a camera number after usb:"):
        open_camera(source)


def test_a_device_s_path_is_a_usb_camera(video_capture):
    camera = open_camera("/dev/null", CameraOptions(size_wh=(320, 240)))
    assert isinstance(camera, UsbCamera)
    assert (camera.name, camera._capture.settings[cv2.CAP_PROP_FRAME_WIDTH]) == ("usb:/dev/null", 320)


@pytest.mark.parametrize("source", ["rtsp://camera/stream", "http://camera/video", "RTSP://camera/stream"])
def test_an_address_is_a_stream(video_capture, source):
    camera = open_camera(source)
    assert isinstance(camera, NetworkStream)
    assert (camera.live, camera.endless) == (True, True)


@pytest.fixture
def waits(monkeypatch):
    """How long a file in its own time waits, by a clock that only its waiting moves."""
    waited = []
    clock = SimpleNamespace(monotonic=lambda: 100.0 + sum(waited), sleep=waited.append)
    monkeypatch.setattr(camera_files, "time", clock)
    return waited


def test_a_file_in_its_own_time_is_live_but_ends(tmp_path, waits):
    write_pictures(tmp_path, "a.png", "b.png")
    with open_camera(str(tmp_path), CameraOptions(realtime=True)) as camera:
        assert (camera.live, camera.file, camera.endless, camera.moving) == (True, True, False, False)
        frames = frames_of(camera)
    assert len(frames) == 2
    assert [frame.arrived for frame in frames] == [100.0, 100.5]
    assert waits == [0.0, 0.5]


def test_a_jump_in_a_file_s_time_is_not_waited_for(waits):
    class Jumping(FakeCamera):
        def read(self):
            frame = super().read()
            return frame and replace(frame, time=[0, 3600, 3600.1][frame.index])

    camera = RealTimeFile(Jumping([np.zeros((8, 8, 3), np.uint8)] * 3))
    assert [frame.time for frame in frames_of(camera)] == [0, 3600, 3600.1]
    assert waits == pytest.approx([0, 0, 0.1])


def test_a_file_in_a_loop_starts_again_and_its_numbers_go_on(tmp_path):
    write_pictures(tmp_path, "a.png", "b.png")
    with open_camera(str(tmp_path), CameraOptions(loop=True)) as camera:
        frames = [camera.read() for _ in range(5)]
    assert [(f.index, f.time, int(f.image[0, 0, 0])) for f in frames] == [
        (0, 0.0, 0), (1, 0.5, 1), (2, 1.0, 0), (3, 1.5, 1), (4, 2.0, 0),
    ]  # fmt: skip
