import os
import subprocess
import sys
from collections import namedtuple

import numpy as np
import pytest

from maskfer_edge import board, camera_list, doctor
from maskfer_edge.camera_list import CameraInfo
from maskfer_edge.dependencies import cv2
from maskfer_edge.doctor import EXTRAS, Finding, examine
from maskfer_edge.errors import DependencyError

WHATS = [
    "Python", "numpy", "OpenCV", "OpenCV's build", "TFLite runtime", "model file", "face detector", "picamera2",
    "cameras", "permission", "display", "power and heat", "temperature", "clock governor", "free disk", "free memory",
    *EXTRAS,
]  # fmt: skip


def finding(what, model=None):
    return next(found for found in examine(model) if found.what == what)


def test_everything_is_looked_at_on_this_machine():
    findings = examine()
    assert [found.what for found in findings] == WHATS
    assert all(found.found and "\n" not in found.found + found.remedy for found in findings)


@pytest.mark.parametrize(
    "what", ["Python", "numpy", "OpenCV", "OpenCV's build", "TFLite runtime", "model file", "face detector"]
)
def test_what_the_tests_run_on_is_good(monkeypatch, what):
    monkeypatch.delenv("DISPLAY", raising=False)
    assert finding(what).good


def test_the_runtimes_that_work_are_named():
    working = finding("TFLite runtime").found
    assert "litert" in working or "tflite-runtime" in working


def test_the_bundled_model_says_what_it_is():
    found = finding("model file").found
    assert "whole: lean, int8" in found and "right on masked test" in found


def test_a_missing_detector_is_bad(monkeypatch):
    monkeypatch.setattr("maskfer_edge.learned_detector.DEFAULT_DETECTOR", "gone.tflite")
    found = finding("face detector")
    assert not found.good
    assert "gone.tflite" in found.found
    assert "--detector haar" in found.remedy


def test_a_missing_cascade_keeps_nothing_from_working(monkeypatch):
    def missing(self):
        raise DependencyError("the cascade is missing; run: install it")

    monkeypatch.setattr("maskfer_edge.detector.HaarDetector.__init__", missing)
    found = finding("OpenCV")
    assert (found.good, found.remedy) == (True, "run: install it")
    assert "only needed for --detector haar" in found.found


def test_an_old_python_is_bad(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    assert doctor._python()[::2] == (False, "install Python 3.11 or newer")


def test_an_old_numpy_is_bad(monkeypatch):
    monkeypatch.setattr(np, "__version__", "1.19.5")
    assert finding("numpy") == Finding("numpy", False, "1.19.5", "run: pip install 'numpy>=1.24'")


def examined_with(tmp_path, module, source):
    """The findings of a new interpreter that has a module of this source; `what` to whether it is good and the text."""
    (tmp_path / f"{module}.py").write_text(source)
    program = (
        "from maskfer_edge.doctor import examine\nfor f in examine(): print(f.what, f.good, f.found, f.remedy, sep='|')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(tmp_path), "PATH": ""}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {line.split("|")[0]: line.split("|")[1:] for line in done.stdout.splitlines()}


def test_a_missing_system_library_is_named_and_the_other_checks_go_on(tmp_path):
    found = examined_with(tmp_path, "cv2", "raise ImportError('libGL.so.1: cannot open shared object file')")
    assert list(found) == WHATS
    assert found["OpenCV"] == [
        "False",
        "OpenCV cannot load: the system library libGL.so.1 is missing",
        "run: sudo apt install -y libgl1 libglib2.0-0 libxcb1",
    ]
    assert found["numpy"][0] == "True"


def test_a_library_that_raises_anything_is_a_finding(tmp_path):
    found = examined_with(tmp_path, "numpy", "raise RuntimeError('built for\\nanother processor')")
    assert list(found) == WHATS
    assert found["numpy"] == ["False", "cannot be checked: RuntimeError built for another processor", ""]


@pytest.mark.parametrize(
    ("build", "display", "good", "text"),
    [
        ({}, ":0", True, "GUI QT5, v4l/v4l2 YES, FFMPEG YES, GStreamer NO"),
        ({"v4l/v4l2": "NO"}, "", False, "USB cameras cannot be opened"),
        ({"FFMPEG": "NO"}, "", False, "videos cannot be read"),
        ({"FFMPEG": "NO", "GStreamer": "YES (1.22.0)"}, "", True, "GStreamer YES"),
        ({"GUI": "NONE"}, ":0", False, "windows cannot be opened"),
        ({"GUI": "NONE"}, "", True, "GUI NONE"),
    ],
)
def test_an_opencv_built_without_something_needed_is_bad(monkeypatch, build, display, good, text):
    parts = {"GUI": "QT5", "v4l/v4l2": "YES (linux/videodev2.h)", "FFMPEG": "YES", "GStreamer": "NO", **build}
    lines = "".join(f"\n    {part + ':':<30}{answer}" for part, answer in parts.items())
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: f"General configuration{lines}\n")
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    found = finding("OpenCV's build")
    assert (found.good, bool(found.remedy)) == (good, not good)
    assert text in found.found


def test_without_a_runtime_the_pip_line_is_the_remedy(monkeypatch):
    for name in ("ai_edge_litert.interpreter", "tflite_runtime.interpreter"):
        monkeypatch.setitem(sys.modules, name, None)
    found = finding("TFLite runtime")
    assert not found.good
    assert found.remedy.startswith("run: pip install ai-edge-litert")


def test_a_damaged_model_file_is_bad(tmp_path):
    (tmp_path / "cut.tflite").write_bytes(b"\0\0\0\0TFL3 and no more")
    found = finding("model file", tmp_path / "cut.tflite")
    assert not found.good
    assert "cut short" in found.found and "converter quantize" in found.remedy


def test_a_missing_picamera2_is_good_and_says_how_to_have_it(monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    found = finding("picamera2")
    assert found.good
    assert found.remedy.startswith("run: sudo apt install -y python3-picamera2")


def test_a_picamera2_that_numpy_breaks_is_bad(tmp_path):
    installed = tmp_path / "numpy-2.4.6.dist-info"  # another one may be there, with another remedy
    installed.mkdir()
    (installed / "METADATA").write_text("Name: numpy\nVersion: 2.4.6\n")
    source = "raise ValueError('numpy.dtype size changed, may indicate binary incompatibility')"
    good, found, remedy = examined_with(tmp_path, "picamera2", source)["picamera2"]
    assert good == "False" and "does not work with numpy 2.4.6" in found
    assert remedy == "run: pip install 'numpy<2' 'opencv-python<4.12'"


def test_cameras_are_named_with_their_sources(monkeypatch):
    cameras = [CameraInfo("picamera", "imx708"), CameraInfo("usb:0", "Webcam", "MJPG, YUYV")]
    monkeypatch.setattr(camera_list, "list_cameras", lambda: cameras)
    assert finding("cameras") == Finding("cameras", True, "picamera (imx708), usb:0 (Webcam: MJPG, YUYV)")


def test_no_camera_is_no_error_but_says_what_to_do(monkeypatch):
    monkeypatch.setattr(camera_list, "list_cameras", lambda: [])
    found = finding("cameras")
    assert (found.good, found.found) == (True, "none")
    assert "--source demo" in found.remedy


@pytest.mark.parametrize(("good", "remedy", "mark"), [(True, "", "ok"), (True, "x", "note"), (False, "x", "BAD")])
def test_what_is_good_but_has_a_remedy_is_a_note(good, remedy, mark):
    assert Finding("cameras", good, "none", remedy).mark == mark


Group = namedtuple("Group", "gr_name gr_gid")


@pytest.mark.parametrize(
    ("nodes", "may", "groups", "good", "remedy"),
    [
        (0, True, [], True, ""),
        (2, True, [], True, ""),
        (2, False, [7], False, "run: sudo usermod -aG video $USER, then log out and in again"),
        (2, False, [7, 44], False, "see whose it is: ls -l"),
    ],
    ids=["no devices", "open", "not in the group", "in the group"],
)
def test_video_devices_must_be_open_to_the_user(monkeypatch, tmp_path, nodes, may, groups, good, remedy):
    for number in range(nodes):
        (tmp_path / f"video{number}").touch()
    monkeypatch.setattr(doctor, "DEV", tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: may)
    monkeypatch.setattr(os, "getgroups", lambda: groups)
    monkeypatch.setattr(doctor.grp, "getgrall", lambda: [Group("dialout", 7), Group("video", 44)])
    answer = doctor._permission()
    assert answer[0] is good and answer[2].startswith(remedy) and bool(answer[2]) == bool(remedy)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, "none: runs headless"), ({"DISPLAY": ":0"}, "DISPLAY=:0"), ({"WAYLAND_DISPLAY": "w"}, "WAYLAND_DISPLAY=w")],
)
def test_a_screen_is_not_needed(monkeypatch, environment, expected):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.setenv(name, environment.get(name, ""))
    assert finding("display") == Finding("display", True, expected)


@pytest.mark.parametrize(
    ("now", "before", "good", "found", "remedy"),
    [
        ((), (), True, "the board reports nothing", ""),
        (("under-voltage",), (), False, "the board reports under-voltage", "use a better power supply"),
        ((), ("throttled",), True, "nothing; since it was started: throttled", "cool it, or use"),
    ],
)
def test_only_warnings_of_the_moment_are_bad(monkeypatch, now, before, good, found, remedy):
    monkeypatch.setattr(board, "throttle_warnings", lambda: now)
    monkeypatch.setattr(board, "throttled_since_boot", lambda: before)
    answer = finding("power and heat")
    assert answer.good is good
    assert found in answer.found and remedy in answer.remedy


@pytest.mark.parametrize(
    ("celsius", "good", "expected"),
    [(None, True, "cannot be read here"), (51.2, True, "51 °C"), (80.0, False, "80 °C")],
)
def test_a_hot_board_is_bad(monkeypatch, celsius, good, expected):
    monkeypatch.setattr(board, "hottest_celsius", lambda: celsius)
    assert (finding("temperature").good, finding("temperature").found) == (good, expected)


@pytest.mark.parametrize(
    ("clock", "machine", "remedy"),
    [
        ("powersave", "aarch64", True),
        ("powersave", "x86_64", False),
        ("ondemand", "aarch64", False),
        ("", "armv7l", False),
    ],
)
def test_a_board_kept_at_its_lowest_clock_gets_a_hint(monkeypatch, clock, machine, remedy):
    monkeypatch.setattr(board, "governor", lambda: clock)
    monkeypatch.setattr(doctor.platform, "machine", lambda: machine)
    assert (finding("clock governor").good, bool(finding("clock governor").remedy)) == (True, remedy)


@pytest.mark.parametrize(("free", "good"), [(40_000_000, False), (60_000_000, True)])
def test_a_full_disk_is_bad(monkeypatch, free, good):
    usage = namedtuple("Usage", "free")(free)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    assert finding("free disk").good is good


@pytest.mark.parametrize(
    ("text", "good", "expected"),
    [
        ("MemTotal: 1 kB\nMemAvailable:   50000 kB\n", False, "51 MB"),
        ("MemTotal: 1 kB\nMemAvailable:  500000 kB\n", True, "512 MB"),
        ("MemTotal: 1 kB\n", True, "cannot be read here"),
    ],
)
def test_little_memory_is_bad(monkeypatch, tmp_path, text, good, expected):
    (tmp_path / "meminfo").write_text(text)
    monkeypatch.setattr(doctor, "MEMINFO", tmp_path / "meminfo")
    assert (finding("free memory").good, finding("free memory").found) == (good, expected)


@pytest.mark.parametrize("package", EXTRAS)
def test_what_is_optional_may_be_missing(monkeypatch, package):
    def missing(name):
        raise doctor.PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", missing)
    found = finding(package)
    assert (found.good, found.remedy) == (True, f"run: pip install {package}")


def test_an_installed_extra_shows_its_version(monkeypatch):
    monkeypatch.setattr(doctor, "version", lambda name: "1.2.3")
    assert finding("websockets") == Finding("websockets", True, "1.2.3")


def test_a_check_that_breaks_is_a_finding(monkeypatch):
    monkeypatch.setattr(board, "hottest_celsius", lambda: 1 / 0)
    found = finding("temperature")
    assert (found.good, found.found) == (False, "cannot be checked: ZeroDivisionError division by zero")
