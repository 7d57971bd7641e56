"""Frames out of files: videos and pictures, as fast as they can be used, or in their own time."""

from __future__ import annotations

import mmap
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from maskfer_edge.cameras import Camera, Frame
from maskfer_edge.decoding import read_picture
from maskfer_edge.dependencies import cv2
from maskfer_edge.errors import InputError

FOLDER_FPS = 2.0
# Of a video; some formats give the unit in which they count time instead, such as 1000 a second.
MAX_FPS = 240
# What is due later than so many seconds is due at once: the file's times jump.
MAX_WAIT_S = 5.0
# Share of the frames in a video's metadata that must be there.
MIN_FRAME_SHARE = 0.9
# Boxes of an MP4 or MOV file that hold others.
CONTAINERS = (b"moov", b"trak", b"mdia")


class VideoFile(Camera):
    """A video file, every frame of it."""

    live, file = False, True

    def __init__(self, path: Path) -> None:
        self.name, self._path = str(path), path
        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise InputError(f"{path} cannot be opened as a video (damaged, or of an unknown format)")
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = float(fps) if np.isfinite(fps) and 0 < fps <= MAX_FPS else 25.0
        # other formats do not store it, and OpenCV guesses
        exact = path.suffix.lower() in (".avi", ".mp4", ".mov")
        self._frame_count = float(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)) if exact else 0.0
        self._index, self._first_s, self._time = 0, 0.0, 0.0

    def read(self) -> Frame | None:
        """The next frame of the file. Raises InputError if it ends far too early."""
        good, image = self._capture.read()
        if not good:
            if self._index == 0:
                raise InputError(f"{self.name} holds no frame that can be read (damaged, or cut short)")
            if self._index < MIN_FRAME_SHARE * self._frame_count and not _is_trimmed(self._path):
                raise InputError(
                    f"{self.name} ends after {self._index} of {self._frame_count:.0f} frames; "
                    "it is cut short or damaged"
                )
            return None
        # not every video has as many frames in each second
        position_s = float(self._capture.get(cv2.CAP_PROP_POS_MSEC)) / 1000
        if self._index == 0:
            self._first_s = position_s
        elif position_s - self._first_s > self._time:
            self._time = position_s - self._first_s
        else:  # the file has no times
            self._time += 1 / self.fps
        frame = Frame(np.asarray(image, dtype=np.uint8), self._index, self._time)
        self._index += 1
        return frame

    def close(self) -> None:
        """Close the file."""
        self._capture.release()


def _is_trimmed(path: Path) -> bool:
    """Whether an MP4 or MOV plays less than the frames that it holds (ISO/IEC 14496-12, edit lists).

    So it is where a program cuts a video without encoding it anew.
    """
    unit, shown_s = 0, 0.0
    with (
        suppress(OSError, ValueError, ZeroDivisionError, RecursionError, struct.error),
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        for kind, start in _boxes(data, 0, len(data)):
            is_64_bit = data[start : start + 1] == b"\1"  # times of 64 bits
            if kind == b"mvhd":
                (unit,) = struct.unpack_from(">I", data, start + (20 if is_64_bit else 12))
            elif kind == b"tkhd":
                (shown,) = struct.unpack_from(">Q" if is_64_bit else ">I", data, start + (28 if is_64_bit else 20))
                shown_s = shown / unit
            elif kind == b"mdhd":
                media_unit, length = struct.unpack_from(
                    ">IQ" if is_64_bit else ">II", data, start + (20 if is_64_bit else 12)
                )
                if shown_s < MIN_FRAME_SHARE * length / media_unit:
                    return True
    return False


def _boxes(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[bytes, int]]:
    """Kind of each box between two positions, those inside `CONTAINERS` as well, and where what it holds begins."""
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        inside = start + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, inside)
            inside += 8
        yield kind, inside
        if kind in CONTAINERS:
            yield from _boxes(data, inside, min(start + size, end))
        if size < 8:  # the last one, which goes to the file's end, or damage
            return
        start += size


class PictureFiles(Camera):
    """Pictures one after another, as if two were taken a second."""

    live = moving = False
    file, fps = True, FOLDER_FPS

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


class RealTimeFile(Camera):
    """A file as if it were a camera: each frame when it is due, and stale frames may be passed over."""

    live = file = True

    def __init__(self, camera: Camera) -> None:
        self._camera, self.name, self.fps, self.moving = camera, camera.name, camera.fps, camera.moving
        self._started: float | None = None

    def read(self) -> Frame | None:
        """Wait until the next frame is due."""
        frame = self._camera.read()
        if frame is None:
            return None
        now = time.monotonic()
        if self._started is None or self._started + frame.time - now > MAX_WAIT_S:
            self._started = now - frame.time
        time.sleep(max(0.0, self._started + frame.time - now))
        return replace(frame, arrived=time.monotonic())

    def close(self) -> None:
        """Close the file."""
        self._camera.close()


class LoopedFile(Camera):
    """A file again and again; numbers and times go on."""

    live, file = False, True

    def __init__(self, reopen: Callable[[], Camera]) -> None:
        self._reopen, self._camera = reopen, reopen()
        self.name, self.fps, self.moving = self._camera.name, self._camera.fps, self._camera.moving
        self._index, self._offset_s, self._time = 0, 0.0, 0.0

    def read(self) -> Frame | None:
        """The next frame, the first one after the last."""
        frame = self._camera.read()
        if frame is None:
            self._camera.close()
            self._camera = self._reopen()
            self._offset_s = self._time + 1 / self.fps
            frame = self._camera.read()
            if frame is None:
                return None
        self._time = self._offset_s + frame.time
        numbered = replace(frame, index=self._index, time=self._time)
        self._index += 1
        return numbered

    def close(self) -> None:
        """Close the file."""
        self._camera.close()
