"""Which cameras this machine has."""

from __future__ import annotations

import fcntl
import json
import os
import struct
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from maskfer_edge.errors import CameraError, DependencyError

SYSFS, DEV = Path("/sys/class/video4linux"), Path("/dev")
NO_PERMISSION = "no permission: group video"
# Nodes of the Raspberry Pi's codecs, and those of its camera port, which only libcamera can use.
INTERNAL_DEVICES = ("bcm2835-codec", "bcm2835-isp", "rpivid", "rpi-hevc", "pispbe", "rp1-cfe", "unicam")
# From linux/videodev2.h: requests that fill v4l2_capability and v4l2_fmtdesc, and bits of the former.
QUERYCAP, ENUM_FMT = 0x80685600, 0xC0405602
VIDEO_CAPTURE, META_CAPTURE, DEVICE_CAPS = 0x1, 0x800000, 0x80000000
MAX_FORMATS = 16
PICAMERA2_INSTALL = (
    "run: sudo apt install -y python3-picamera2, and make the virtual environment with --system-site-packages"
)
# A program of its own: an import that fails, hangs or crashes harms nothing here.
ASK_PICAMERA2 = "import json, picamera2; print(json.dumps(picamera2.Picamera2.global_camera_info(), default=str))"


@dataclass(frozen=True)
class CameraInfo:
    """A camera.

    Attributes:
        source: As ``--source`` takes it: ``usb:N`` or ``picamera``.
        name: Its maker's or its sensor's.
        detail: The formats that it gives, or why it cannot be opened; "" if unknown.
    """

    source: str
    name: str
    detail: str = ""


def list_cameras(sysfs: Path = SYSFS, dev: Path = DEV) -> list[CameraInfo]:
    """The cameras that ``--source`` can open, the Raspberry Pi's own first; never raises.

    Args:
        sysfs: Where the kernel names the video devices.
        dev: Where their nodes are.
    """
    return [*_pi_cameras(), *_usb_cameras(sysfs, dev)]


def pick_source() -> str:
    """The source for ``--source auto``. Raises CameraError if there is no camera."""
    found = list_cameras()
    if not found:
        raise CameraError(
            "no camera found; plug in a USB camera, connect the Pi camera (rpicam-hello --list-cameras), "
            "or give --source demo, a video or a folder of pictures; maskfer-edge doctor says more"
        )
    return found[0].source


def ask_picamera2(timeout_s: float = 30.0) -> list[dict[str, Any]]:
    """What picamera2 knows of each camera (``Model``, ``Id``, ...).

    Raises:
        DependencyError: If picamera2 is not installed, or does not work here.
    """
    try:
        if find_spec("picamera2") is None:
            raise DependencyError(f"picamera2 is not installed; {PICAMERA2_INSTALL}")
        completed = subprocess.run(
            [sys.executable, "-P", "-c", ASK_PICAMERA2], capture_output=True, text=True, timeout=timeout_s, check=False
        )
        output = completed.stdout.strip().rpartition("\n")[2]
        if completed.returncode == 0:
            return [dict(camera) for camera in json.loads(output)]
        reason = completed.stderr.strip().rpartition("\n")[2][:200]
        # the last words before a crash need not tell of it
        if completed.returncode < 0 or not reason:
            reason = f"it ended with status {completed.returncode}" + (f": {reason}" if reason else "")
    except (OSError, TypeError, ValueError, subprocess.SubprocessError) as error:
        reason = " ".join(str(error).split())[:200]
    # "numpy.dtype size changed", "numpy.core.multiarray failed to import", "_ARRAY_API not found"
    if "numpy." in reason or "_ARRAY_API" in reason:
        numpy = version("numpy")
        other = "'numpy>=2'" if numpy.startswith("1.") else "'numpy<2' 'opencv-python<4.12'"
        raise DependencyError(f"picamera2 does not work with numpy {numpy} ({reason}); run: pip install {other}")
    raise DependencyError(f"picamera2 does not work ({reason}); {PICAMERA2_INSTALL}")


def _pi_cameras() -> list[CameraInfo]:
    try:
        known = ask_picamera2()
    except DependencyError:
        return []
    # libcamera lists USB cameras as well
    own = [camera for camera in known if "/usb" not in str(camera.get("Id", ""))]
    # --source picamera opens the first
    return [CameraInfo("picamera", str(camera.get("Model", "Pi camera"))) for camera in own[:1]]


def _usb_cameras(sysfs: Path, dev: Path) -> list[CameraInfo]:
    folders = [folder for folder in sysfs.glob("video*") if folder.name.removeprefix("video").isdecimal()]
    numbers = sorted(int(folder.name.removeprefix("video")) for folder in folders)
    found = (_usb_camera(number, sysfs / f"video{number}", dev / f"video{number}") for number in numbers)
    return [camera for camera in found if camera is not None]


def _usb_camera(number: int, folder: Path, node: Path) -> CameraInfo | None:
    """The camera of a video device; None if the device is something else, or gone."""
    with suppress(OSError, UnicodeDecodeError):
        name = (folder / "name").read_text().strip()
        if name.startswith(INTERNAL_DEVICES):
            return None
        try:
            descriptor = os.open(node, os.O_RDWR | os.O_NONBLOCK)
        except PermissionError:
            # a camera's further nodes, such as that of its metadata, have other indices
            first = (folder / "index").read_text().strip() == "0"
            return CameraInfo(f"usb:{number}", name, NO_PERMISSION) if first else None
        try:
            return CameraInfo(f"usb:{number}", name, _formats(descriptor)) if _captures_video(descriptor) else None
        finally:
            os.close(descriptor)
    return None


def _captures_video(descriptor: int) -> bool:
    answer = bytearray(104)
    fcntl.ioctl(descriptor, QUERYCAP, answer)
    of_all_nodes, of_this_node = struct.unpack_from("=II", answer, 84)
    capabilities = of_this_node if of_all_nodes & DEVICE_CAPS else of_all_nodes
    return bool(capabilities & VIDEO_CAPTURE) and not capabilities & META_CAPTURE


def _formats(descriptor: int) -> str:
    """Four-letter codes of the picture formats, e.g. ``MJPG, YUYV``."""
    codes = []
    with suppress(OSError):  # which ends the list
        for index in range(MAX_FORMATS):
            answer = bytearray(struct.pack("=II", index, 1).ljust(64, b"\0"))
            fcntl.ioctl(descriptor, ENUM_FMT, answer)
            codes.append(answer[44:48].decode("ascii", "replace").strip())
    return ", ".join(codes)
