"""What may keep maskfer from working on this machine, and what helps."""

from __future__ import annotations

import grp
import os
import platform
import re
import shutil
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from maskfer_edge import board, camera_list
from maskfer_edge.errors import MaskferError

HOT_CELSIUS = 80.0
MIN_MEMORY_MB, MIN_DISK_MB = 100, 50
MEMINFO, DEV = Path("/proc/meminfo"), Path("/dev")
OPENCV = "run: pip install 'opencv-python>=4.8,<5'"
EXTRAS = {
    "websockets": "for the live view in a browser, and for its camera",
    "paho-mqtt": "for results by MQTT",
    "prometheus-client": "for metrics",
}

# Whether all is well, what was found, and what helps.
CheckResult = tuple[bool, str, str]


@dataclass(frozen=True)
class Finding:
    """The answer of one check.

    Attributes:
        what: The thing checked.
        good: False for what keeps maskfer from working, or soon will.
        found: One line.
        remedy: What helps, or could be had besides; "" if there is nothing to do.
    """

    what: str
    good: bool
    found: str
    remedy: str = ""

    @property
    def mark(self) -> str:
        """What stands before it: ``ok``, ``note`` if something could be had besides, or ``BAD``."""
        return "BAD" if not self.good else "note" if self.remedy else "ok"


def examine(model: Path | None = None) -> list[Finding]:
    """Look at all that maskfer needs; never raises.

    Args:
        model: The model file to check; None: the bundled one.
    """
    checks: dict[str, Callable[[], CheckResult]] = {
        "Python": _python,
        "numpy": _numpy,
        "OpenCV": _opencv,
        "OpenCV's build": _opencv_build,
        "TFLite runtime": _runtime,
        "model file": partial(_model, model),
        "face detector": _detector,
        "picamera2": _picamera2,
        "cameras": _cameras,
        "permission": _permission,
        "display": _display,
        "power and heat": _throttling,
        "temperature": _temperature,
        "clock governor": _governor,
        "free disk": _disk,
        "free memory": _memory,
        **{name: partial(_extra, name, use) for name, use in EXTRAS.items()},
    }
    return [_finding(what, check) for what, check in checks.items()]


def _finding(what: str, check: Callable[[], CheckResult]) -> Finding:
    try:
        return Finding(what, *check())
    except MaskferError as error:
        # these name the remedy behind the last semicolon
        found, semicolon, remedy = str(error).rpartition("; ")
        return Finding(what, False, found, remedy) if semicolon else Finding(what, False, remedy)
    except Exception as error:  # noqa: BLE001 (broken libraries raise anything, and the other checks go on)
        return Finding(what, False, f"cannot be checked: {type(error).__name__} {' '.join(str(error).split())[:200]}")


# Libraries are imported by the checks, so that one which cannot be loaded is a finding.


def _python() -> CheckResult:
    good = sys.version_info >= (3, 11)
    found = f"{platform.python_version()}, {struct.calcsize('P') * 8} bits on {platform.machine()}"
    return good, found, "" if good else "install Python 3.11 or newer"


def _numpy() -> CheckResult:
    import numpy as np

    good = tuple(map(int, np.__version__.split(".")[:2])) >= (1, 24)
    return good, np.__version__, "" if good else "run: pip install 'numpy>=1.24'"


def _opencv() -> CheckResult:
    from maskfer_edge.dependencies import cv2
    from maskfer_edge.detector import HaarDetector

    if not cv2.__version__.startswith("4."):
        return False, cv2.__version__, OPENCV
    try:
        HaarDetector()
    except MaskferError as error:
        _, _, remedy = str(error).rpartition("; ")
        return True, f"{cv2.__version__} without its Haar cascade; only needed for --detector haar", remedy
    return True, f"{cv2.__version__} with its Haar cascade", ""


def _opencv_build() -> CheckResult:
    from maskfer_edge.dependencies import cv2

    build_information = cv2.getBuildInformation()
    parts = ("GUI", "v4l/v4l2", "FFMPEG", "GStreamer")
    built = {part: re.search(rf"^ *{part}: *(\S+)", build_information, re.MULTILINE | re.IGNORECASE) for part in parts}
    has = {part: line[1].upper() if line else "unknown" for part, line in built.items()}
    found = ", ".join(f"{part} {answer}" for part, answer in has.items())
    if has["v4l/v4l2"] == "NO":
        return False, f"{found}: USB cameras cannot be opened", OPENCV
    if has["FFMPEG"] == has["GStreamer"] == "NO":
        return False, f"{found}: videos cannot be read", OPENCV
    if has["GUI"] == "NONE" and _screens():
        remedy = "give --headless, or run: pip uninstall opencv-python-headless; pip install 'opencv-python>=4.8,<5'"
        return False, f"{found}: windows cannot be opened", remedy
    return True, found, ""


def _runtime() -> CheckResult:
    from maskfer_edge.runtime import AUTO, RUNTIMES

    _classify(AUTO)
    working = [name for name in RUNTIMES if _finding(name, partial(_classify, name)).good]
    return True, f"the bundled model reads a face on {', '.join(working)}", ""


def _classify(runtime: str) -> CheckResult:
    import numpy as np

    from maskfer_edge.classifier import Classifier, default_model
    from maskfer_edge.contract import INPUT_SIZE

    Classifier(default_model(), runtime)(np.zeros((INPUT_SIZE, INPUT_SIZE), dtype=np.uint8))
    return True, "", ""


def _model(path: Path | None) -> CheckResult:
    from maskfer_edge.classifier import open_classifier

    model = open_classifier(path).model
    kind = str(model.info.quantization.get("format", "int8"))
    accuracies = [
        f"{figures[kind]:.1%} right on {name}"
        for name, figures in model.info.accuracy.items()
        if isinstance(figures, dict) and isinstance(figures.get(kind), float)
    ]
    return True, f"{model.name} is whole: " + ", ".join([model.info.architecture, kind, *accuracies]), ""


def _detector() -> CheckResult:
    import numpy as np

    from maskfer_edge.learned_detector import open_learned_detector

    detector = open_learned_detector()
    width, height = detector.model.info.input_size_wh
    detector(np.zeros((height, width), dtype=np.uint8))
    return True, f"{detector.model.name} works", ""


def _picamera2() -> CheckResult:
    if find_spec("picamera2") is None:
        return True, "not installed; only the Raspberry Pi's own camera needs it", camera_list.PICAMERA2_INSTALL
    return True, f"knows {len(camera_list.ask_picamera2())} cameras, with numpy {version('numpy')}", ""


def _cameras() -> CheckResult:
    cameras = camera_list.list_cameras()
    found = ", ".join(f"{c.source} ({': '.join(filter(None, (c.name, c.detail)))})" for c in cameras)
    return (
        True,
        found or "none",
        "" if cameras else "plug in a USB camera or connect the Pi camera; or give --source demo",
    )


def _permission() -> CheckResult:
    nodes = sorted(DEV.glob("video*"))
    closed = [node for node in nodes if not os.access(node, os.R_OK | os.W_OK)]
    if not closed:
        return True, f"{len(nodes)} video devices, all may be opened" if nodes else "no video devices", ""
    found = f"{len(closed)} of {len(nodes)} video devices may not be opened, such as {closed[0]}"
    if any(group.gr_name == "video" and group.gr_gid in os.getgroups() for group in grp.getgrall()):
        return False, f"{found}, though this program runs in group video", f"see whose it is: ls -l {closed[0]}"
    return False, found, "run: sudo usermod -aG video $USER, then log out and in again"


def _display() -> CheckResult:
    return True, ", ".join(_screens()) or "none: runs headless", ""


def _screens() -> list[str]:
    return [f"{name}={os.environ[name]}" for name in ("DISPLAY", "WAYLAND_DISPLAY") if os.environ.get(name)]


def _throttling() -> CheckResult:
    now, before = board.throttle_warnings(), board.throttled_since_boot()
    found = f"the board reports {', '.join(now) or 'nothing'}"
    found += f"; since it was started: {', '.join(before)}" if before else ""
    return not now, found, board.remedy_for(now or before)


def _temperature() -> CheckResult:
    celsius = board.hottest_celsius()
    if celsius is None:
        return True, "cannot be read here", ""
    good = celsius < HOT_CELSIUS
    return good, f"{celsius:.0f} °C", "" if good else "cool it: a heat sink, a fan, or a place with more air"


def _governor() -> CheckResult:
    # what Linux calls powersave keeps an ARM core at its lowest clock, but not a PC's
    slow = board.governor() == "powersave" and platform.machine().startswith(("arm", "aarch64"))
    remedy = "run: echo ondemand | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor" if slow else ""
    return True, f"{board.governor() or 'cannot be read here'} on {board.cpu_name()}", remedy


def _disk() -> CheckResult:
    free_mb = shutil.disk_usage(Path.cwd()).free / 1e6
    good = free_mb >= MIN_DISK_MB
    return good, f"{free_mb:.0f} MB in {Path.cwd()}", "" if good else "free some space, or record to another folder"


def _memory() -> CheckResult:
    available = re.search(r"^MemAvailable: *(\d+) kB", MEMINFO.read_text(), re.MULTILINE)
    if available is None:
        return True, "cannot be read here", ""
    free_mb = int(available[1]) * 1024 / 1e6
    good = free_mb >= MIN_MEMORY_MB
    return good, f"{free_mb:.0f} MB", "" if good else "end other programs (on a small board, the desktop)"


def _extra(package: str, use: str) -> CheckResult:
    try:
        return True, version(package), ""
    except PackageNotFoundError:
        return True, f"not installed; only needed {use}", f"run: pip install {package}"
