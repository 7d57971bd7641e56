"""Where frames come from: one interface and a fake; `camera_files`, `camera_devices` and `browser` implement it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic
from types import TracebackType

from maskfer_edge.contract import UInt8Array

# A live camera that gives no frame in the time of so many is lost.
MAX_MISSED_FRAMES = 3


@dataclass(frozen=True)
class Frame:
    """One picture of a source.

    Attributes:
        image: (height, width, 3) uint8, B,G,R.
        index: Its number in the source, from 0.
        time: Of hardware, the network and a browser: seconds since 1970 at capture. Of a file, also one that is played
            in its own time: seconds from its beginning.
        arrived: Of `time.monotonic`, when it was read.
        grey: (h, w) uint8, the same picture smaller and grey, if the camera gives that for nothing.
        losses: How often the camera had been lost, or another page of a browser had taken its place, before it.
    """

    image: UInt8Array
    index: int
    time: float
    arrived: float = field(default_factory=monotonic)
    grey: UInt8Array | None = None
    losses: int = 0


class Camera(ABC):
    """A source of frames; a context manager that lets the hardware go in any case.

    Attributes:
        name: For messages.
        live: Whether frames that nobody fetched in time are stale.
        endless: Whether it has no end, so that an end is a loss.
        exclusive: Whether it must be closed before the program can open it again, also while a read of it hangs.
        file: Whether it is a file or a folder of files, also if it is played as a live camera.
        moving: Whether each frame follows from the one before, as in a video.
        fps: Frames a second as far as known, for recordings.
    """

    name: str
    live: bool
    endless: bool = False
    exclusive: bool = False
    file: bool = False
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
