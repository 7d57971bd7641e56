import sys
from types import ModuleType

import cv2
import numpy as np
import pytest

from maskfer_edge.cameras import DEMO_CLIP, FakeCamera, PiCamera, UsbCamera, open_camera
from maskfer_edge.errors import CameraError, DependencyError, InputError


def write_pictures(folder, *names):
    for value, name in enumerate(names):
        cv2.imwrite(str(folder / name), np.full((8, 8, 3), value, np.uint8))


def frames_of(camera):
    with camera:
        return list(iter(camera.read, None))


def one_line(error):
    return "\n" not in str(error.value)


class FakePicamera2:
    """Stands in for picamera2.Picamera2; `fails_in` names the call that raises."""

    fails_in = ""
    made: list = []  # noqa: RUF012

    def __init__(self):
        self.configuration, self.started, self.closed = None, False, False
        FakePicamera2.made.append(self)

    def _call(self, name):
        if name == self.fails_in:
            raise RuntimeError(f"{name} broke\nbadly")

    def create_video_configuration(self, main):
        return main

    def configure(self, configuration):
        self._call("configure")
        self.configuration = configuration

    def start(self):
        self._call("start")
        self.started = True

    def capture_array(self, stream):
        self._call("capture_array")
        return np.full((4, 4, 3), (1, 2, 3), np.uint8)

    def close(self):
        self.closed = True


@pytest.fixture
def picamera2(monkeypatch):
    module = ModuleType("picamera2")
    module.Picamera2 = FakePicamera2
    monkeypatch.setitem(sys.modules, "picamera2", module)
    monkeypatch.setattr(FakePicamera2, "made", [])
    monkeypatch.setattr(FakePicamera2, "fails_in", "")
    return FakePicamera2


class FakeVideoCapture:
    """Stands in for cv2.VideoCapture of a V4L2 camera."""

    def __init__(self, *_):
        self.opened, self.settings, self.released, self.left = True, {}, False, 2

    def isOpened(self):
        return self.opened

    def set(self, key, value):
        self.settings[key] = value

    def get(self, _):
        return 0.0

    def read(self):
        self.left -= 1
        return (True, np.zeros((2, 2, 3), np.uint8)) if self.left >= 0 else (False, None)

    def release(self):
        self.released = True


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


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no pictures"):
        open_camera(str(tmp_path))


def test_a_missing_source_is_refused_with_what_there_is():
    with pytest.raises(InputError, match=r"'none\.mp4' does not exist; give a video file.*usb:N, picamera or demo"):
        open_camera("none.mp4")


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
        assert (camera.live, camera.fps) == (False, 15.0)


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


def test_a_video_without_a_readable_frame_is_refused(monkeypatch, tmp_path):
    (tmp_path / "a.avi").write_bytes(b"x")
    monkeypatch.setattr(cv2, "VideoCapture", FakeVideoCapture)
    camera = open_camera(str(tmp_path / "a.avi"))
    camera._capture.left = 0
    with pytest.raises(InputError, match="holds no frame"):
        camera.read()


@pytest.mark.parametrize("said", [0.0, float("nan"), float("inf"), -1.0, 90000.0])
def test_an_impossible_frame_rate_becomes_25(monkeypatch, tmp_path, said):
    (tmp_path / "a.avi").write_bytes(b"x")
    monkeypatch.setattr(FakeVideoCapture, "get", lambda *_: said)
    monkeypatch.setattr(cv2, "VideoCapture", FakeVideoCapture)
    assert open_camera(str(tmp_path / "a.avi")).fps == 25.0


def test_an_absent_usb_camera_is_one_line_with_the_remedies():
    with pytest.raises(CameraError, match=r"usb:99 cannot be opened; is it plugged in.*group video") as error:
        open_camera("usb:99")
    assert one_line(error)


@pytest.mark.parametrize("source", ["usb:x", "usb:", "usb:-1", "usb:²", "usb:99999999999"])
def test_a_camera_number_must_be_one(source):
    with pytest.raises(InputError, match="expected a camera number after usb:"):
        open_camera(source)


def test_a_usb_camera_is_live_and_let_go(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", FakeVideoCapture)
    with UsbCamera(0) as camera:
        assert camera.live
    assert camera._capture.released


def test_a_usb_camera_buffers_one_frame(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", FakeVideoCapture)
    assert UsbCamera(0)._capture.settings[cv2.CAP_PROP_BUFFERSIZE] == 1


def test_an_unplugged_usb_camera_is_a_camera_error_after_its_frames(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", FakeVideoCapture)
    camera = UsbCamera(0)
    assert [camera.read().index, camera.read().index] == [0, 1]
    with pytest.raises(CameraError, match="usb:0 gives no more frames"):
        camera.read()


def test_without_picamera2_the_apt_line_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "picamera2", None)
    with pytest.raises(DependencyError, match="sudo apt install -y python3-picamera2"):
        open_camera("picamera")


def test_the_pi_camera_is_asked_for_bgr_which_it_calls_rgb888(picamera2):
    with open_camera("picamera"):
        assert picamera2.made[0].configuration["format"] == "RGB888"


def test_the_pi_camera_gives_frames_as_they_come(picamera2):
    with PiCamera() as camera:
        frames = [camera.read(), camera.read()]
    assert [frame.index for frame in frames] == [0, 1]
    assert frames[0].image[0, 0].tolist() == [1, 2, 3]


def test_the_pi_camera_is_closed_on_exit(picamera2):
    with open_camera("picamera"):
        pass
    assert picamera2.made[0].closed


@pytest.mark.parametrize("call", ["configure", "start"])
def test_a_pi_camera_that_does_not_open_is_closed_and_one_line(picamera2, call):
    picamera2.fails_in = call
    with pytest.raises(CameraError, match=f"cannot be opened \\({call} broke badly\\)"):
        open_camera("picamera")
    assert picamera2.made[0].closed


def test_a_pi_camera_that_breaks_is_closed_and_one_line(picamera2):
    picamera2.fails_in = "capture_array"
    with pytest.raises(CameraError, match="no more frames: capture_array broke badly"), PiCamera() as camera:
        camera.read()
    assert picamera2.made[0].closed


def test_the_fake_gives_its_pictures_and_remembers_its_end():
    camera = FakeCamera([np.zeros((1, 1, 3), np.uint8)] * 3, fps=4)
    assert [frame.time for frame in frames_of(camera)] == [0, 0.25, 0.5]
    assert camera.closed
