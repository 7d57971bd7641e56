import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import ModuleType

import cv2
import numpy as np
import pytest

from maskfer_edge import camera_devices as module
from maskfer_edge.camera_devices import NetworkStream, PiCamera, UsbCamera
from maskfer_edge.errors import CameraError, DependencyError
from maskfer_edge.sources import CameraOptions, open_camera


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

    def create_video_configuration(self, **configuration):
        return configuration

    def configure(self, configuration):
        self._call("configure")
        self.configuration = configuration

    def start(self):
        self._call("start")
        self.started = True

    def capture_arrays(self, streams):
        self._call("capture_arrays")
        assert streams == ["main", "lores"]
        planes = np.full((360, 384), 99, np.uint8)  # Y and below it U and V, rows padded to 384
        planes[:240, :320] = 7
        return [np.full((480, 640, 3), (1, 2, 3), np.uint8), planes], {}

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


def test_an_absent_usb_camera_is_one_line_with_the_remedies():
    with pytest.raises(CameraError, match=r"usb:99 cannot be opened; is it plugged in.*group video") as error:
        open_camera("usb:99")
    assert one_line(error)


def test_a_usb_camera_is_live_and_let_go(video_capture):
    with UsbCamera(0) as camera:
        assert camera.live
    assert camera._capture.released


def test_a_usb_camera_buffers_one_frame(video_capture):
    assert UsbCamera(0)._capture.settings[cv2.CAP_PROP_BUFFERSIZE] == 1


@pytest.mark.parametrize(("damaged", "lost"), [(1, False), (4, False), (5, True)])
def test_a_few_damaged_frames_are_no_loss(video_capture, monkeypatch, damaged, lost):
    def read(capture):
        capture.settings["damaged"] = capture.settings.get("damaged", 0) + 1
        if capture.settings["damaged"] <= damaged:
            raise cv2.error("!buf.empty()")
        return True, np.zeros((2, 2, 3), np.uint8)

    monkeypatch.setattr(video_capture, "read", read)
    with UsbCamera(0) as camera:
        if lost:
            with pytest.raises(CameraError, match="gives no more frames"):
                camera.read()
        else:
            assert camera.read().index == 0


def test_an_unplugged_usb_camera_is_a_camera_error_after_its_frames(video_capture):
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
        assert picamera2.made[0].configuration["main"]["format"] == "RGB888"


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
    picamera2.fails_in = "capture_arrays"
    with pytest.raises(CameraError, match="no more frames: capture_arrays broke badly"), PiCamera() as camera:
        camera.read()
    assert picamera2.made[0].closed


def test_the_pi_camera_gives_the_luma_of_its_small_stream(picamera2):
    with PiCamera() as camera:
        grey = camera.read().grey
    assert (grey.shape, grey.dtype, set(grey.ravel().tolist())) == ((240, 320), np.uint8, {7})
    assert picamera2.made[0].configuration["lores"] == {"size": (320, 240), "format": "YUV420"}


def test_the_pi_camera_takes_size_and_rate(picamera2):
    with open_camera("picamera", CameraOptions(size_wh=(1280, 720), fps=15.0)) as camera:
        configuration = picamera2.made[0].configuration
    assert (configuration["main"]["size"], configuration["lores"]["size"]) == ((1280, 720), (640, 360))
    assert (configuration["controls"], camera.fps) == ({"FrameRate": 15.0}, 15.0)


def test_a_usb_camera_is_asked_for_size_rate_and_compressed_frames(video_capture):
    settings = UsbCamera(0, (1280, 720), 15.0)._capture.settings
    assert (settings[cv2.CAP_PROP_FRAME_WIDTH], settings[cv2.CAP_PROP_FRAME_HEIGHT]) == (1280, 720)
    assert settings[cv2.CAP_PROP_FPS] == 15
    assert settings[cv2.CAP_PROP_FOURCC] == cv2.VideoWriter.fourcc(*"MJPG")


class MotionJpeg(BaseHTTPRequestHandler):
    """A network camera of three frames."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for value in (50, 100, 150):
            jpeg = cv2.imencode(".jpg", np.full((48, 64, 3), value, np.uint8))[1].tobytes()
            part = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%b\r\n" % (len(jpeg), jpeg)
            self.wfile.write(part)

    def log_message(self, *_):
        pass


@pytest.fixture
def network_camera():
    server = HTTPServer(("127.0.0.1", 0), MotionJpeg)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://user:secret@127.0.0.1:{server.server_port}/video"
    server.shutdown()
    server.server_close()


def test_a_network_stream_gives_its_frames_and_then_an_error(network_camera):
    with NetworkStream(network_camera) as camera:
        values = [int(camera.read().image.mean().round()) for _ in range(2)]
        with pytest.raises(CameraError, match="gives no more frames"):
            for _ in range(9):
                camera.read()
    assert values == pytest.approx([50, 100], abs=2)


def test_a_password_in_an_address_is_never_named(network_camera):
    with NetworkStream(network_camera) as camera:
        assert "secret" not in camera.name


def test_a_stream_that_is_not_there_is_one_line_without_the_password(monkeypatch):
    monkeypatch.setattr(module, "STREAM_OPEN_MS", 200)
    with pytest.raises(CameraError, match=r"stream rtsp://127\.0\.0\.1:9/x cannot be opened") as error:
        NetworkStream("rtsp://user:secret@127.0.0.1:9/x")
    assert one_line(error)
    assert "secret" not in str(error.value)


def test_a_picamera2_of_another_numpy_is_one_line(monkeypatch):
    class Broken(ModuleType):
        def __getattr__(self, name):
            raise ValueError("numpy.dtype size changed,\nmay indicate binary incompatibility")

    monkeypatch.setitem(sys.modules, "picamera2", Broken("picamera2"))
    with pytest.raises(DependencyError, match=r"cannot be loaded .numpy.dtype size changed.*doctor") as error:
        PiCamera()
    assert one_line(error)
