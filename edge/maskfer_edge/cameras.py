"""Where frames come from: one small interface, and what implements it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any

import numpy as np

from maskfer_edge.contract import UInt8Array
from maskfer_edge.decoding import PICTURE_SUFFIXES, read_picture
from maskfer_edge.dependencies import cv2
from maskfer_edge.errors import CameraError, DependencyError, InputError

DEMO_CLIP = "demo.mp4"
FOLDER_FPS = 2.0
SOURCES = "a video file, a picture, a folder of pictures, usb:N, picamera or demo"


@dataclass(frozen=True)
class Frame:
    """One picture of a source.

    Attributes:
        image: (height, width, 3) uint8, B,G,R.
        index: Its number in the source, from 0.
        time: Live: seconds since 1970 at capture. Else: seconds from the source's beginning.
        arrived: Of `time.monotonic`, when it was read.
    """

    image: UInt8Array
    index: int
    time: float
    arrived: float = field(default_factory=monotonic)


class Camera(ABC):
    """A source of frames; a context manager that lets the hardware go in any case.

    Attributes:
        name: For messages.
        live: Whether frames that nobody fetched in time are stale.
        endless: Whether it has no end, so that an end is a loss.
        moving: Whether each frame follows from the one before, as in a video.
        fps: Frames a second as far as known, for recordings.
    """

    name: str
    live: bool
    endless: bool = False
    moving: bool = True
    fps: float

    @abstractmethod
    def read(self) -> Frame | None:
        """The next frame, or None after the last. Raises CameraError if the source breaks."""

    def close(self) -> None:  # noqa: B027 (most files have nothing to let go)
        """Let the hardware or file go; may be called twice."""

    def __enter__(self) -> Camera:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class FakeCamera(Camera):
    """Gives the pictures that it was made with."""

    name = "fake"

    def __init__(
        self, images: Sequence[UInt8Array], live: bool = False, fps: float = 10.0, pause_s: float = 0.0
    ) -> None:
        self.images, self.live, self.fps, self.pause_s = list(images), live, fps, pause_s
        self.index = 0
        self.closed = False

    def read(self) -> Frame | None:
        """The next picture."""
        if self.index >= len(self.images):
            return None
        time.sleep(self.pause_s)
        frame = Frame(self.images[self.index], self.index, self.index / self.fps)
        self.index += 1
        return frame

    def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True


class VideoFile(Camera):
    """A video file, every frame of it."""

    live = False

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise InputError(f"{path} cannot be opened as a video (damaged, or of an unknown format)")
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = float(fps) if np.isfinite(fps) and 0 < fps <= 1000 else 25.0
        self._index = 0

    def read(self) -> Frame | None:
        """The next frame of the file."""
        good, image = self._capture.read()
        if not good:
            if self._index == 0:
                raise InputError(f"{self.name} holds no frame that can be read (damaged, or cut short)")
            return None
        frame = Frame(np.asarray(image, dtype=np.uint8), self._index, self._index / self.fps)
        self._index += 1
        return frame

    def close(self) -> None:
        """Close the file."""
        self._capture.release()


class PictureFiles(Camera):
    """Pictures one after another, as if two were taken a second."""

    live = moving = False
    fps = FOLDER_FPS

    def __init__(self, name: str, paths: Sequence[Path]) -> None:
        self.name = name
        self._paths = list(paths)
        self._index = 0

    def read(self) -> Frame | None:
        """The next picture; a damaged one is an InputError that names it."""
        if self._index >= len(self._paths):
            return None
        frame = Frame(read_picture(self._paths[self._index]), self._index, self._index / self.fps)
        self._index += 1
        return frame


class UsbCamera(Camera):
    """A USB or built-in camera, by V4L2."""

    live = endless = True

    def __init__(self, number: int) -> None:
        self.name = f"usb:{number}"
        self._capture = cv2.VideoCapture(number, cv2.CAP_V4L2)
        if not self._capture.isOpened():
            raise CameraError(
                f"camera {self.name} cannot be opened; is it plugged in (ls /dev/video*), used by another program, "
                "or are you not in group video (sudo usermod -aG video $USER)?"
            )
        # compressed frames, or USB 2 gives only a few a second; one buffer, so that none is stale
        self._capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = float(fps) if 1 <= fps <= 240 else 30.0
        self._index = 0

    def read(self) -> Frame | None:
        """The next frame."""
        good, image = self._capture.read()
        if not good:
            raise CameraError(f"camera {self.name} gives no more frames; is it unplugged?")
        frame = Frame(np.asarray(image, dtype=np.uint8), self._index, time.time())
        self._index += 1
        return frame

    def close(self) -> None:
        """Let the camera go."""
        self._capture.release()


class PiCamera(Camera):
    """The Raspberry Pi's own camera, by picamera2."""

    name = "picamera"
    live = endless = True
    fps = 30.0

    def __init__(self) -> None:
        try:
            from picamera2 import Picamera2
        except ImportError as error:
            raise DependencyError(
                "picamera2 is not installed; run: sudo apt install -y python3-picamera2, and make the virtual "
                "environment with --system-site-packages"
            ) from error
        try:
            self._camera: Any = Picamera2()
            # picamera2's "RGB888" is B,G,R in memory
            configuration = self._camera.create_video_configuration(main={"size": (640, 480), "format": "RGB888"})
            self._camera.configure(configuration)
            self._camera.start()
        except Exception as error:  # libcamera raises RuntimeError, IndexError and others
            self.close()
            raise CameraError(
                f"the Pi camera cannot be opened ({' '.join(str(error).split())[:150]}); "
                "is it connected (rpicam-hello --list-cameras), or used by another program?"
            ) from error
        self._index = 0

    def read(self) -> Frame | None:
        """The next frame."""
        try:
            image = self._camera.capture_array("main")
        except Exception as error:
            raise CameraError(f"the Pi camera gives no more frames: {' '.join(str(error).split())[:150]}") from error
        frame = Frame(np.asarray(image, dtype=np.uint8), self._index, time.time())
        self._index += 1
        return frame

    def close(self) -> None:
        """Let the camera go."""
        camera = getattr(self, "_camera", None)
        if camera is not None:
            camera.close()
            self._camera = None


def open_camera(source: str) -> Camera:
    """Open a source by its name.

    Args:
        source: A video file, a picture, a folder of pictures, ``usb:N``, ``picamera`` or ``demo``.

    Raises:
        InputError: If there is no such source, or the file cannot be read.
        CameraError: If the camera cannot be opened.
        DependencyError: If the camera's library is missing.
    """
    if source == "demo":
        return VideoFile(Path(str(files("maskfer_edge") / "data" / DEMO_CLIP)))
    if source == "picamera":
        return PiCamera()
    if source.startswith("usb:"):
        number = source.removeprefix("usb:")
        if not (number.isascii() and number.isdigit() and len(number) <= 3):
            raise InputError(f"expected a camera number after usb:, such as usb:0; received {source!r}")
        return UsbCamera(int(number))
    path = Path(source)
    if path.is_dir():
        paths = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES)
        if not paths:
            raise InputError(f"{path} holds no pictures ({', '.join(PICTURE_SUFFIXES)})")
        return PictureFiles(source, paths)
    if not path.exists():
        raise InputError(f"source {source!r} does not exist; give {SOURCES}")
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return PictureFiles(source, [path])
    return VideoFile(path)
