"""Where results go: one small interface, and what implements it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from maskfer_edge.cameras import Frame
from maskfer_edge.contract import LABELS, UInt8Array
from maskfer_edge.dependencies import cv2
from maskfer_edge.errors import OutputError
from maskfer_edge.files import atomic_file, check_writable, lock, remove_abandoned, rotated_names
from maskfer_edge.results import FrameResult

MIN_FREE_BYTES = 4_000_000
# A camera that stood still for longer than this does not fill a recording with copies of its last frame.
MAX_GAP_S = 5.0
# How long the pictures may take that fill one gap in a recording of a camera: what would come after them waits.
MAX_FILLING_S = 0.25
# A recording that nothing was written to for so long belongs to no run any more.
ABANDONED_AFTER_S = 600.0
# Within which a window opens on any machine that can open one.
WINDOW_TIMEOUT_S = 20.0


class Output(ABC):
    """Takes every frame's result, on a thread of its own.

    Attributes:
        name: For messages and metrics.
        wants_picture: Whether the annotated picture is needed.
        keeps_all: Whether of a file no frame may be missing, so that the loop waits for it.
        main_thread: Whether it must be called by the main thread.
        keeps_partial: Whether what it has of a camera is kept when something fails, it or another.
        dropped: Frames that it took and could not pass on.
    """

    name = "output"
    wants_picture = False
    keeps_all = False
    main_thread = False
    keeps_partial = False
    dropped = 0

    @abstractmethod
    def write(self, frame: Frame, result: FrameResult, annotated: UInt8Array | None) -> bool:
        """Take one frame; False asks the loop to end. Raises OutputError if it cannot."""

    def idle(self) -> bool:
        """Called now and then while no frame comes, if it is of the main thread; False asks the loop to end."""
        return True

    def close(self, failed: bool = False) -> None:  # noqa: B027
        """Finish; after a failure leave nothing half-written. May raise OutputError."""


class FakeOutput(Output):
    """Keeps what it is given."""

    name, keeps_all = "fake", True

    def __init__(self, wants_picture: bool = False) -> None:
        self.wants_picture = wants_picture
        self.results: list[FrameResult] = []
        self.pictures: list[UInt8Array] = []
        self.closed: str = ""

    def write(self, frame: Frame, result: FrameResult, annotated: UInt8Array | None) -> bool:
        """Keep the result."""
        self.results.append(result)
        if annotated is not None:
            self.pictures.append(annotated)
        return True

    def close(self, failed: bool = False) -> None:
        """Remember how it ended."""
        self.closed = "failed" if failed else "well"


class LineFile(Output):
    """Text into a file or to stdout, whole lines or none; others can read them at once.

    What is there already is changed by the first line, or by a good end without one: a run that fails before leaves all
    as it was.
    """

    keeps_all = True
    header = ""

    def __init__(self, path: str, overwrite: bool = False, *, append: bool = False, rotate_bytes: float = 0) -> None:
        """Open the file, or stdout for ``-``.

        Args:
            path: Where to.
            overwrite: Whether existing files are replaced.
            append: Whether to append to an existing file; a last line that a crash left incomplete is removed.
            rotate_bytes: Size from which a new file is begun; five old ones become PATH.1, PATH.2, ...; 0: never.

        Raises:
            OutputError: If a file is there already, another run is writing it, or it cannot be written.
        """
        self.name = "stdout" if path == "-" else path
        self._path = None if path == "-" else Path(path)
        self._append, self._rotate_bytes = append, rotate_bytes
        self._new = self._started = False
        self._file: IO[bytes]
        # a pipe, or a device such as a serial line or /dev/full, has no beginning to go back to
        self._regular = self._path is not None and (self._path.is_file() or not self._path.exists())
        if self._path is None:
            self._file = sys.stdout.buffer
            return
        if self._regular or self._path.is_dir():
            for file in [path, *rotated_names(path)] if rotate_bytes else [path]:
                check_writable(Path(file), overwrite or append)
        self._new = not self._path.exists()
        try:
            self._file = self._open(os.O_RDWR if append and self._regular else os.O_WRONLY)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}") from error

    @abstractmethod
    def lines(self, result: FrameResult) -> str:
        """What one frame adds: whole lines, or nothing."""

    def write(self, frame: Frame, result: FrameResult, annotated: UInt8Array | None) -> bool:
        """Write one frame's lines."""
        text = self.lines(result).encode()
        if text:
            self._write_all(text)
        return True

    def close(self, failed: bool = False) -> None:
        """Close the file; the lines so far are whole. After a failure before the first line, leave all as it was."""
        try:
            if not failed and not self._started:
                self._write_all(b"")
        finally:
            if self._path is not None:
                if self._new and not self._started:
                    self._path.unlink(missing_ok=True)
                self._file.close()

    def _open(self, flags: int) -> IO[bytes]:
        assert self._path is not None
        while True:
            file = os.fdopen(os.open(self._path, flags | os.O_CREAT, 0o666), "rb+" if flags & os.O_RDWR else "wb", 0)
            try:
                if self._regular:
                    lock(file, self._path)
                    # another run may have removed or renamed it before it was locked
                    if not self._path.exists() or not os.path.samestat(os.fstat(file.fileno()), self._path.stat()):
                        file.close()
                        continue
            except BaseException:
                file.close()
                raise
            return file

    def _write_all(self, text: bytes) -> None:
        start: int | None = None
        try:
            if not self._started:
                text = self._begin() + text
            if self._regular:
                start = self._file.tell()
                if self._rotate_bytes and start and start + len(text) > self._rotate_bytes:
                    self._rotate()
                    start, text = self._file.tell(), self.header.encode() + text
            written = self._file.write(text)
            self._file.flush()
            if written is not None and written < len(text):
                raise OSError(28, "No space left on device")
            self._started = True
        except BrokenPipeError:
            raise
        except OSError as error:
            if start is not None:
                with suppress(OSError):
                    self._file.truncate(start)
            raise OutputError(f"{self.name} cannot be written: {error.strerror or error}") from error

    def _begin(self) -> bytes:
        """What comes before the first line, once the file is truncated to what is appended to."""
        if self._regular:
            if self._append:
                self._file.seek(_end_of_last_line(self._file))
            if self._file.truncate():
                return b""
        return self.header.encode()

    def _rotate(self) -> None:
        names = [Path(name) for name in (self.name, *rotated_names(self.name))]
        for older, newer in zip(names[:0:-1], names[-2::-1], strict=True):
            if newer.exists():
                newer.replace(older)
        before = self._file
        self._file = self._open(os.O_WRONLY)
        with before:  # which kept others off it until it was whole
            self._file.seek(0, os.SEEK_END)  # another run may have been quicker


def _end_of_last_line(file: IO[bytes]) -> int:
    """Just behind the last newline, or 0."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 65536)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


class JsonLines(LineFile):
    """One line of JSON a frame."""

    def lines(self, result: FrameResult) -> str:
        """The frame's line."""
        return result.to_json() + "\n"


class CsvFile(LineFile):
    """One line a face, below a line of names."""

    header = "time,frame,track,left,top,width,height,detector_score,expression,confidence," + ",".join(LABELS) + "\n"

    def lines(self, result: FrameResult) -> str:
        """The lines of the frame's faces."""
        # numbers and our own labels: nothing that would need quotes
        return "".join(
            ",".join(
                map(
                    str,
                    (
                        result.time,
                        result.frame,
                        face.track,
                        *face.box,
                        face.detector_score,
                        face.expression,
                        face.confidence,
                        *face.scores.values(),
                    ),
                )
            )
            + "\n"
            for face in result.faces
        )


class VideoRecording(Output):
    """An annotated video. The file appears when the recording ends well, or not at all."""

    wants_picture = keeps_all = keeps_partial = True

    def __init__(self, path: Path, fps: float, overwrite: bool = False, *, live: bool = False) -> None:
        """Reserve the name; the writer is made with the first frame, whose size the video has.

        Args:
            path: Where to; .mp4 or .avi.
            fps: Of the video.
            overwrite: Whether an existing file is replaced.
            live: Whether the source is live: a video that is encoded more slowly than it plays is shorter then, and
                `dropped` counts the pictures that it lacks.

        Raises:
            OutputError: If the file is there already, its suffix is not .mp4 or .avi, or its folder cannot be written.
        """
        if path.suffix.lower() not in (".mp4", ".avi"):
            raise OutputError(f"{path} must end in .mp4 or .avi")
        self.name, self.path, self.fps, self.live = str(path), path, fps, live
        self._stack = ExitStack()
        remove_abandoned(path, ABANDONED_AFTER_S)  # pictures of people that nobody would look for
        self._partial = self._stack.enter_context(atomic_file(path, overwrite))
        # held while it may be written: a camera that is lost for long leaves it as old as an abandoned one
        try:
            lock(self._stack.enter_context(self._partial.open("wb")), path)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
        self._writer: Any = None
        self._size_wh = (0, 0)
        self._first_time = 0.0
        self._written = 0

    def write(self, frame: Frame, result: FrameResult, annotated: UInt8Array | None) -> bool:
        """Write one frame, repeated or left out so that the video keeps the source's time."""
        assert annotated is not None
        if self._writer is None:
            self._open(annotated, frame.time)
        due = round((frame.time - self._first_time) * self.fps) + 1 - self._written
        if abs(due) > MAX_GAP_S * self.fps:  # backwards: the clock was set
            self._first_time += (due - 1) / self.fps
            due = 1
        if due > 0:
            picture = fit_into(annotated, self._size_wh)
            started = time.monotonic()
            for number in range(due):
                if self.live and number and time.monotonic() - started > MAX_FILLING_S:
                    self.dropped += due - number
                    self._first_time += (due - number) / self.fps
                    break
                # a picture takes less than it has bytes, and the end of a file some as well
                if shutil.disk_usage(self.path.parent).free < MIN_FREE_BYTES + picture.nbytes:
                    raise OutputError(f"{self.path} cannot be written: the disk is full")
                self._writer.write(picture)
                self._written += 1
        return True

    def close(self, failed: bool = False) -> None:
        """Finish the file and check that it can be read back; after a failure remove it."""
        if self._writer is not None:
            self._writer.release()
        if failed or not self._written:
            with suppress(OutputError):
                self._stack.__exit__(OutputError, OutputError("recording failed"), None)
            return
        with self._stack:
            check = cv2.VideoCapture(str(self._partial))
            frames = int(check.get(cv2.CAP_PROP_FRAME_COUNT))
            check.release()
            if frames != self._written:
                raise OutputError(f"{self.path} cannot be written: only {frames} of {self._written} frames arrived")

    def _open(self, picture: UInt8Array, start: float) -> None:
        height, width = picture.shape[:2]
        # the codec stores colour for 2×2 pixels
        self._size_wh = (width + width % 2, height + height % 2)
        fourcc = cv2.VideoWriter.fourcc(*("mp4v" if self.path.suffix.lower() == ".mp4" else "MJPG"))
        self._writer = cv2.VideoWriter(str(self._partial), fourcc, self.fps, self._size_wh)
        if not self._writer.isOpened():
            self._writer = None
            raise OutputError(f"{self.path} cannot be written as a video by this OpenCV; try the suffix .avi")
        self._first_time = start


class Window(Output):
    """A window on the screen; q, Esc or closing it ends the loop."""

    name = "window"
    wants_picture = main_thread = True

    def __init__(self, title: str = "maskfer") -> None:
        self.title = title
        self._open = False

    def write(self, frame: Frame, result: FrameResult, annotated: UInt8Array | None) -> bool:
        """Show the picture."""
        try:
            if not self._open:
                cv2.namedWindow(self.title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
                cv2.resizeWindow(self.title, frame.image.shape[1], frame.image.shape[0])
                self._open = True
            cv2.imshow(self.title, annotated)
        except cv2.error as error:
            raise OutputError("the window cannot be opened; give --headless") from error
        return self.idle()

    def idle(self) -> bool:
        """Let the window answer, also while the camera is lost."""
        if not self._open:
            return True
        try:
            key = cv2.waitKey(1) & 0xFF
            closed = cv2.getWindowProperty(self.title, cv2.WND_PROP_VISIBLE) < 1
        except cv2.error as error:
            raise OutputError("the window is gone; give --headless") from error
        return not closed and key not in (ord("q"), 27)

    def close(self, failed: bool = False) -> None:
        """Close the window."""
        with suppress(cv2.error):
            cv2.destroyAllWindows()


def has_display() -> bool:
    """Whether a window opens here: tried by another process, as OpenCV ends the one that tries in vain."""
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    command = [sys.executable, "-P", "-c", "import cv2; cv2.namedWindow('maskfer'); cv2.destroyAllWindows()"]
    with suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run(command, capture_output=True, timeout=WINDOW_TIMEOUT_S, check=False).returncode == 0
    return False


def fit_into(image: UInt8Array, size_wh: tuple[int, int]) -> UInt8Array:
    """The picture centred on a black canvas of `size_wh`, made smaller if it must be."""
    width, height = size_wh
    h, w = image.shape[:2]
    if (w, h) == size_wh:
        return image
    scale = min(width / w, height / h, 1.0)
    if scale < 1:
        w, h = max(1, round(w * scale)), max(1, round(h * scale))
        image = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA)
    left, top = (width - w) // 2, (height - h) // 2
    framed = cv2.copyMakeBorder(
        image, top, height - h - top, left, width - w - left, cv2.BORDER_CONSTANT, value=(0, 0, 0)
    )
    return np.asarray(framed, dtype=np.uint8)
