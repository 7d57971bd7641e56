"""A source of frames by its name."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from maskfer_edge.addresses import without_secrets
from maskfer_edge.camera_devices import STREAM_SCHEMES, NetworkStream, PiCamera, UsbCamera
from maskfer_edge.camera_files import LoopedFile, PictureFiles, RealTimeFile, VideoFile
from maskfer_edge.cameras import Camera
from maskfer_edge.decoding import PICTURE_SUFFIXES
from maskfer_edge.errors import CameraError, InputError

DEMO_CLIP = "demo.mp4"
SOURCES = (
    "a video file, a picture, a folder of pictures, usb:N, a device such as /dev/video0, picamera, "
    "an rtsp:// or http:// address, browser, auto or demo"
)


@dataclass(frozen=True)
class CameraOptions:
    """How a source is read.

    Attributes:
        size_wh: Width and height to ask a USB or Pi camera for, in pixels; None for its own choice.
        fps: Frames a second to ask it for, or to expect of a stream; 0 for its own choice.
        realtime: Whether a file is played in its own time, as a camera would give it.
        loop: Whether a file starts again at its end.
    """

    size_wh: tuple[int, int] | None = None
    fps: float = 0.0
    realtime: bool = False
    loop: bool = False


def open_camera(source: str, options: CameraOptions | None = None) -> Camera:
    """Open a source by its name.

    Args:
        source: A video file, a picture, a folder of pictures, ``usb:N``, a device's path, ``picamera``, the address of
            a stream, or ``demo``.
        options: How it is read.

    Raises:
        InputError: If there is no such source, or the file cannot be read.
        CameraError: If the camera cannot be opened.
        DependencyError: If the camera's library is missing.
    """
    options = options or CameraOptions()
    if source == "picamera":
        return PiCamera(options.size_wh, options.fps)
    if source.lower().startswith(STREAM_SCHEMES):
        return NetworkStream(source, options.fps)
    if source.startswith("usb:"):
        number = source.removeprefix("usb:")
        if not (number.isascii() and number.isdigit() and len(number) <= 3):
            raise InputError(f"expected a camera number after usb:, such as usb:0; received {source!r}")
        return UsbCamera(int(number), options.size_wh, options.fps)
    if Path(source).is_char_device():
        return UsbCamera(source, options.size_wh, options.fps)
    camera = LoopedFile(lambda: _open_file(source)) if options.loop else _open_file(source)
    return RealTimeFile(camera) if options.realtime else camera


def _open_file(source: str) -> Camera:
    if source == "demo":
        return VideoFile(Path(str(files("maskfer_edge") / "data" / DEMO_CLIP)))
    path = Path(source)
    if path.is_dir():
        # macOS leaves a hidden ._NAME.jpg beside each picture, which is none
        visible = (p for p in path.iterdir() if not p.name.startswith("."))
        paths = sorted(p for p in visible if p.suffix.lower() in PICTURE_SUFFIXES)
        if not paths:
            raise InputError(f"{path} holds no pictures ({', '.join(PICTURE_SUFFIXES)})")
        return PictureFiles(source, paths)
    if not path.exists():
        if source.startswith("/dev/"):
            raise CameraError(f"{source}: no such camera; see: maskfer-edge cameras")
        remedy = f"did you mean usb:{source}?" if source.isdecimal() else f"give {SOURCES}"
        raise InputError(f"source {without_secrets(source)!r} does not exist; {remedy}")
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return PictureFiles(source, [path])
    return VideoFile(path)
