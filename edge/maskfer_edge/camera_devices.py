"""Frames out of hardware and the network: USB cameras, the Raspberry Pi's own, and streams."""

from __future__ import annotations

import time
from abc import abstractmethod
from contextlib import suppress
from typing import Any

import numpy as np

from maskfer_edge.addresses import without_secrets
from maskfer_edge.camera_list import PICAMERA2_INSTALL
from maskfer_edge.cameras import MAX_MISSED_FRAMES, Camera, Frame
from maskfer_edge.dependencies import cv2
from maskfer_edge.errors import CameraError, DependencyError

PI_SIZE_WH, PI_FPS = (640, 480), 30.0
STREAM_SCHEMES = ("rtsp://", "rtsps://", "http://", "https://")
# A stream that cannot be opened, or gives no frame, within these is an error; OpenCV's own limits are 30 s.
STREAM_OPEN_MS, STREAM_READ_MS = 5000, 2000
# Frames in a row that cannot be decoded; then the camera counts as lost.
MAX_DAMAGED_FRAMES = 5


class _CaptureCamera(Camera):
    """What OpenCV captures live; `_capture` is opened by who inherits."""

    live = endless = True
    _capture: Any
    _index = 0

    @abstractmethod
    def _end_message(self) -> str:
        """What to say when no frame comes."""

    def read(self) -> Frame | None:
        """The next frame; a few in a row that are damaged are passed over."""
        good = False
        for _ in range(MAX_DAMAGED_FRAMES):
            with suppress(cv2.error):  # a compressed frame that arrived empty
                good, image = self._capture.read()
                break
        if not good:
            raise CameraError(self._end_message())
        frame = Frame(np.asarray(image, dtype=np.uint8), self._index, time.time())
        self._index += 1
        return frame

    def close(self) -> None:
        """Let the camera go."""
        self._capture.release()


class UsbCamera(_CaptureCamera):
    """A USB or built-in camera, by V4L2."""

    def __init__(self, device: int | str, size_wh: tuple[int, int] | None = None, fps: float = 0.0) -> None:
        """Open it.

        Args:
            device: Its number, or its path, e.g. one in /dev/v4l/by-id that stays with the camera.
            size_wh: Width and height to ask for, in pixels; None for the camera's own choice.
            fps: Frames a second to ask for; 0 for the camera's own choice.

        Raises:
            CameraError: If it cannot be opened.
        """
        self.name = f"usb:{device}"
        self._capture = cv2.VideoCapture(device, cv2.CAP_V4L2)
        if not self._capture.isOpened():
            raise CameraError(
                f"camera {self.name} cannot be opened; is it plugged in (maskfer-edge cameras), used by another "
                "program, or are you not in group video (sudo usermod -aG video $USER)?"
            )
        # compressed frames, or USB 2 gives only a few a second; one buffer, so that none is stale
        self._capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        if size_wh is not None:
            self._capture.set(cv2.CAP_PROP_FRAME_WIDTH, size_wh[0])
            self._capture.set(cv2.CAP_PROP_FRAME_HEIGHT, size_wh[1])
        if fps:
            self._capture.set(cv2.CAP_PROP_FPS, fps)
        reported_fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = float(reported_fps) if 1 <= reported_fps <= 240 else 30.0

    def _end_message(self) -> str:
        return f"camera {self.name} gives no more frames; is it unplugged?"


class NetworkStream(_CaptureCamera):
    """A camera on the network: RTSP, or MJPEG and the like over HTTP."""

    def __init__(self, url: str, fps: float = 0.0) -> None:
        """Connect.

        Args:
            url: Its address.
            fps: Frames a second that are to be expected; 0: as the stream reports, which is often wrong for a slow one.

        Raises:
            CameraError: If nothing answers in time.
        """
        self.name = without_secrets(url)
        read_ms = max(STREAM_READ_MS, round(1000 * MAX_MISSED_FRAMES / fps)) if fps else STREAM_READ_MS
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, STREAM_OPEN_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, read_ms]
        self._capture = cv2.VideoCapture(url, cv2.CAP_FFMPEG, limits)
        if not self._capture.isOpened():
            raise CameraError(
                f"stream {self.name} cannot be opened; is the address right, the camera on, and the password in the "
                "address (rtsp://user:password@host/path)?"
            )
        reported_fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps or (float(reported_fps) if np.isfinite(reported_fps) and 1 <= reported_fps <= 240 else 25.0)

    def _end_message(self) -> str:
        return f"stream {self.name} gives no more frames"


class PiCamera(Camera):
    """The Raspberry Pi's own camera, by picamera2: a picture, and a small grey one for the detector from the ISP."""

    name = "picamera"
    live = endless = exclusive = True

    def __init__(self, size_wh: tuple[int, int] | None = None, fps: float = 0.0) -> None:
        """Start it.

        Args:
            size_wh: Width and height of the pictures; by default `PI_SIZE_WH`.
            fps: Frames a second; by default `PI_FPS`.

        Raises:
            DependencyError: If picamera2 is missing.
            CameraError: If the camera cannot be started.
        """
        try:
            from picamera2 import Picamera2
        except ImportError as error:
            raise DependencyError(f"picamera2 is not installed; {PICAMERA2_INSTALL}") from error
        except Exception as error:  # compiled against another numpy: ValueError, AttributeError
            raise DependencyError(
                f"picamera2 cannot be loaded ({' '.join(str(error).split())[:150]}); "
                "maskfer-edge doctor says what does not go together"
            ) from error
        self.fps = fps or PI_FPS
        width, height = size_wh or PI_SIZE_WH
        # even numbers, as the ISP wants; half the side is what the detector is given
        self._grey_wh = (width // 4 * 2, height // 4 * 2)
        try:
            self._camera: Any = Picamera2()
            configuration = self._camera.create_video_configuration(
                # picamera2's "RGB888" is B,G,R in memory
                main={"size": (width, height), "format": "RGB888"},
                lores={"size": self._grey_wh, "format": "YUV420"},
                controls={"FrameRate": self.fps},
                buffer_count=3,
            )
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
        """The next frame, with the luma plane of the smaller stream."""
        try:
            (image, planes), _ = self._camera.capture_arrays(["main", "lores"])
        except Exception as error:
            raise CameraError(f"the Pi camera gives no more frames: {' '.join(str(error).split())[:150]}") from error
        width, height = self._grey_wh
        # the Y plane comes first, its rows padded to the hardware's stride
        grey = np.ascontiguousarray(planes[:height, :width], dtype=np.uint8)
        frame = Frame(np.asarray(image, dtype=np.uint8), self._index, time.time(), grey=grey)
        self._index += 1
        return frame

    def close(self) -> None:
        """Let the camera go."""
        camera = getattr(self, "_camera", None)
        if camera is not None:
            camera.close()
            self._camera = None
