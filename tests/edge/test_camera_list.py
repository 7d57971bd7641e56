import json
import os
import struct

import pytest

from maskfer_edge import camera_list
from maskfer_edge.camera_list import CameraInfo, ask_picamera2, list_cameras, pick_source
from maskfer_edge.errors import CameraError, DependencyError

CAPTURE, MPLANE, M2M, META, STREAMING, DEVICE_CAPS = 0x1, 0x1000, 0x8000, 0x800000, 0x4000000, 0x80000000
IMX708 = {"Model": "imx708", "Location": 2, "Rotation": 180, "Id": "/base/soc/i2c0mux/i2c@1/imx708@1a", "Num": 0}
WEBCAM = {"Model": "HD Webcam", "Id": "/base/scb/pcie@7d500000/pci@0,0/usb@0,0-1.3:1.0-046d:0825", "Num": 1}


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with the video devices and Pi cameras that the test gives it."""
    sysfs, dev = tmp_path / "sysfs", tmp_path / "dev"
    dev.mkdir()
    sysfs.mkdir()
    abilities, formats, errors, opened = {}, {}, {}, {}
    real_open, real_close = os.open, os.close

    class Machine:
        def video(self, number, name, caps=CAPTURE, index=0, codes=(), error=None, whole=None):
            """A device; `caps` are those of this node, `whole` those of all nodes of its hardware."""
            (sysfs / f"video{number}").mkdir()
            (sysfs / f"video{number}" / "name").write_text(f"{name}\n")
            (sysfs / f"video{number}" / "index").write_text(f"{index}\n")
            node = dev / f"video{number}"
            node.touch()
            abilities[node] = (CAPTURE | META | DEVICE_CAPS if whole is None else whole, caps | STREAMING)
            formats[node], errors[node] = codes, error
            return self

        def pi(self, answer):
            monkeypatch.setattr(camera_list, "ask_picamera2", answer)

        def list(self):
            return list_cameras(sysfs, dev)

        @property
        def still_open(self):
            return opened

    def fake_open(path, flags, *rest, **options):
        if errors.get(path) is not None:
            raise errors[path]
        number = real_open(path, flags, *rest, **options)
        if path in abilities:
            opened[number] = path
        return number

    def fake_close(number):
        opened.pop(number, None)
        real_close(number)

    def ioctl(number, request, answer):
        node = opened[number]
        if request == camera_list.QUERYCAP:
            assert len(answer) == 104
            answer[84:92] = struct.pack("=II", *abilities[node])
        elif request == camera_list.ENUM_FMT:
            index, kind = struct.unpack_from("=II", answer)
            assert (len(answer), kind) == (64, 1)
            if index >= len(formats[node]):
                raise OSError(22, "Invalid argument")
            answer[44:48] = formats[node][index].encode()

    monkeypatch.setattr(camera_list.os, "open", fake_open)
    monkeypatch.setattr(camera_list.os, "close", fake_close)
    monkeypatch.setattr(camera_list.fcntl, "ioctl", ioctl)
    monkeypatch.setattr(camera_list, "SYSFS", sysfs)
    made = Machine()
    made.pi(lambda: [])
    return made


def test_a_usb_camera_is_listed_with_its_formats(machine):
    machine.video(0, "HD Webcam: HD Webcam", codes=("MJPG", "YUYV", "Y10 "))
    assert machine.list() == [CameraInfo("usb:0", "HD Webcam: HD Webcam", "MJPG, YUYV, Y10")]


def test_the_node_of_a_cameras_metadata_is_no_camera(machine):
    machine.video(0, "Webcam").video(1, "Webcam", caps=META, index=1)
    assert [camera.source for camera in machine.list()] == ["usb:0"]


@pytest.mark.parametrize(
    ("caps", "whole", "listed"),
    [
        (CAPTURE, None, True),
        (CAPTURE | META, None, False),
        (M2M, None, False),
        (0, CAPTURE, True),  # an old driver, which tells no node from another
        (CAPTURE, META, False),
    ],
)
def test_what_gives_no_pictures_is_no_camera(machine, caps, whole, listed):
    machine.video(0, "device", caps=caps, whole=whole)
    assert bool(machine.list()) is listed


@pytest.mark.parametrize(
    "name",
    [
        "bcm2835-codec-decode",
        "bcm2835-isp-output0",
        "rpivid",
        "rpi-hevc-dec",
        "pispbe-input",
        "rp1-cfe-csi2_ch0",
        "unicam-image",
    ],
)
def test_the_raspberry_pis_own_nodes_are_no_usb_cameras(machine, name):
    machine.video(0, name).video(1, "Webcam")
    assert [camera.source for camera in machine.list()] == ["usb:1"]


def test_cameras_come_in_the_order_of_their_numbers(machine):
    for number in (10, 2, 0):
        machine.video(number, "Webcam")
    assert [camera.source for camera in machine.list()] == ["usb:0", "usb:2", "usb:10"]


def test_a_camera_without_permission_says_so(machine):
    denied = PermissionError(13, "Permission denied")
    machine.video(0, "Webcam", error=denied).video(1, "Webcam", index=1, error=denied)
    assert machine.list() == [CameraInfo("usb:0", "Webcam", "no permission: group video")]


@pytest.mark.parametrize("error", [OSError(19, "No such device"), OSError(16, "Device or resource busy")])
def test_a_device_that_cannot_be_opened_is_passed_over(machine, error):
    machine.video(0, "Webcam", error=error).video(1, "Other")
    assert [camera.source for camera in machine.list()] == ["usb:1"]


def test_nodes_are_closed_again(machine):
    machine.video(0, "Webcam").video(1, "Webcam", caps=META)
    machine.list()
    assert machine.still_open == {}


def test_without_video_devices_the_list_is_empty(tmp_path, machine):
    assert list_cameras(tmp_path / "nowhere", tmp_path) == []


def test_pi_cameras_come_first_and_once(machine):
    machine.video(0, "HD Webcam")
    machine.pi(lambda: [IMX708, {**IMX708, "Num": 1}, WEBCAM])
    assert [(camera.source, camera.name) for camera in machine.list()] == [
        ("picamera", "imx708"),
        ("usb:0", "HD Webcam"),
    ]


def test_a_usb_camera_that_libcamera_knows_is_no_pi_camera(machine):
    machine.pi(lambda: [WEBCAM])
    assert machine.list() == []


def broken():
    raise DependencyError("picamera2 does not work")


def test_a_broken_picamera2_hides_no_usb_camera(machine):
    machine.video(0, "Webcam")
    machine.pi(broken)
    assert [camera.source for camera in machine.list()] == ["usb:0"]


@pytest.mark.parametrize(("cameras", "expected"), [(["picamera", "usb:0"], "picamera"), (["usb:2", "usb:4"], "usb:2")])
def test_auto_takes_the_first_camera(monkeypatch, cameras, expected):
    monkeypatch.setattr(camera_list, "list_cameras", lambda: [CameraInfo(source, "") for source in cameras])
    assert pick_source() == expected


def test_auto_without_a_camera_says_what_to_do(monkeypatch):
    monkeypatch.setattr(camera_list, "list_cameras", lambda: [])
    with pytest.raises(CameraError, match=r"no camera found; plug in a USB camera.*--source demo") as raised:
        pick_source()
    assert "\n" not in str(raised.value)


@pytest.fixture
def picamera2(monkeypatch, tmp_path):
    """Installs a package picamera2 of this source."""

    def install(source):
        (tmp_path / "picamera2.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return install


def test_picamera2_is_asked_in_a_program_of_its_own(picamera2):
    code = f"class Picamera2:\n    global_camera_info = staticmethod(lambda: {json.dumps([IMX708])})\n"
    picamera2(f"print('chatter')\n{code}")
    assert ask_picamera2() == [IMX708]
    assert "picamera2" not in camera_list.sys.modules


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import libcamera_that_is_missing", "No module named 'libcamera_that_is_missing'.*sudo apt install"),
        ("import os; os.write(2, b'last words'); os.abort()", "it ended with status -6: "),
        ("class Picamera2:\n    global_camera_info = staticmethod(lambda: 7)", "'int' object is not iterable"),
        ("import time; time.sleep(60)", "timed out"),
    ],
    ids=["no libcamera", "crash", "odd answer", "hangs"],
)
def test_a_picamera2_that_does_not_work_is_one_line_with_the_remedy(picamera2, source, message):
    picamera2(source)
    with pytest.raises(DependencyError, match=message) as raised:
        ask_picamera2(timeout_s=1 if "sleep" in source else 60)
    assert "\n" not in str(raised.value)


def test_a_missing_picamera2_names_the_package(monkeypatch):
    monkeypatch.setattr(camera_list, "find_spec", lambda name: None)
    with pytest.raises(DependencyError, match="not installed; run: sudo apt install -y python3-picamera2"):
        ask_picamera2()


@pytest.mark.parametrize(
    ("installed", "remedy"), [("2.4.6", "'numpy<2' 'opencv-python<4.12'"), ("1.26.4", "'numpy>=2'")]
)
@pytest.mark.parametrize("error", ["ValueError('numpy.dtype size changed')", "AttributeError('_ARRAY_API not found')"])
def test_a_picamera2_built_for_another_numpy_names_the_right_one(monkeypatch, picamera2, installed, remedy, error):
    picamera2(f"raise {error}")
    monkeypatch.setattr(camera_list, "version", lambda name: installed)
    with pytest.raises(DependencyError) as raised:
        ask_picamera2()
    assert f"numpy {installed}" in str(raised.value)
    assert str(raised.value).endswith(f"; run: pip install {remedy}")
