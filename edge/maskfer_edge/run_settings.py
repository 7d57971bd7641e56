"""What determines a live run: every flag of `maskfer-edge run`, and every key of its configuration file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from maskfer_edge.addresses import address, parse_broker
from maskfer_edge.errors import InputError
from maskfer_edge.files import rotated_names
from maskfer_edge.settings_file import check_types

# A runtime starts any number of threads, and hangs on hundreds of thousands.
MAX_THREADS = 64
# Known here as well, so that settings are checked without the libraries that these need.
DETECTORS = ("learned", "haar", "yunet")
RUNTIMES = ("auto", "litert", "litert-builtin", "tflite-runtime")
BROWSER_PORT, METRICS_PORT = 8090, 9090
# No camera gives less or more; by far beyond, OpenCV's times overflow and a recording never ends.
MIN_FPS, MAX_FPS = 0.001, 1000
# Default of `detect_every`: one detection in so many frames.
DETECTION_INTERVAL = 3


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class RunSettings:
    """Settings of a run, with what they mean in their metadata; 0 and "" stand for "not set"."""

    source: str = _setting("auto", "usb:N, a device, picamera, rtsp:// or http://, browser, a file, a folder, demo.")
    size: str = _setting("", "Width and height to ask a USB or Pi camera for, such as 640x480.")
    fps: float = _setting(0.0, "Frames a second to ask it for; for a stream, how many to expect.")
    realtime: bool = _setting(False, "Play a file at its own speed, like a camera.")
    loop: bool = _setting(False, "Start a file again at its end.")
    retries: int = _setting(-1, "Attempts in a row to reopen a lost camera; -1: no limit.")
    model: str = _setting(
        "", "Model file of converter quantize, or a bundled one: lean (default), or large, for a Pi 5 or a laptop."
    )
    models: str = _setting("", "Folder of installed models (maskfer-edge model): what is in use there is taken.")
    runtime: str = _setting("auto", "TFLite runtime: auto, litert, litert-builtin or tflite-runtime.")
    threads: int = _setting(1, "Threads of the network; more than one slows a small one down.")
    mirror: bool = _setting(
        True, "Also classify each face's mirror image (test-time flip): more accurate, twice the time."
    )
    detector: str = _setting("learned", "Face detector: learned, haar or yunet.")
    detector_model: str = _setting("", "Model file of the learned detector, or YuNet's .onnx.")
    detect_every: int = _setting(
        0,
        "Run the detector on every Nth frame of a video, and track faces between. 0: every third; with blur every one.",
    )
    search_side: int = _setting(
        640, "Longest side in pixels at which haar and yunet look for faces; learned has its own."
    )
    budget_ms: float = _setting(0.0, "Classify faces in turn, within so many milliseconds a frame; 0: all of them.")
    min_confidence: float = _setting(0.0, "Confidence, 0 to 1, below which a face is shown as Unsure.")
    headless: bool = _setting(False, "Open no window.")
    jsonl: str = _setting("", "Write one line of JSON a frame to this file; - for stdout.")
    csv: str = _setting("", "Write one line a face to this file.")
    rotate_mb: float = _setting(0.0, "Begin a new .jsonl or .csv after so many megabytes, and keep the five newest.")
    append: bool = _setting(False, "Add to existing .jsonl and .csv files.")
    record: str = _setting("", "Write the annotated video to this file (.mp4 or .avi).")
    browser: str = _setting("", "Serve a live view at this address: 8090, or HOST:PORT with a token.")
    token: str = _setting("", "What a browser must know (?token=...); or in MASKFER_TOKEN.")
    mqtt: str = _setting(
        "", "Publish to a broker: mqtt://user:password@host:port/prefix; mqtt://host is enough; mqtts: TLS."
    )
    metrics: str = _setting("", "Serve Prometheus metrics at this port of this machine only, or at HOST:PORT.")
    blur: bool = _setting(False, "Make the faces that are found, small ones too, unrecognisable in every picture.")
    max_frames: int = _setting(0, "End after so many frames.")
    overwrite: bool = _setting(False, "Replace existing output files.")

    def __post_init__(self) -> None:
        check_types(self)
        self._check_values()
        if not self.source:
            raise InputError("source is empty; name one, or leave it out for the camera that is there")
        self._check_strings()
        self._check_files()
        self._check_addresses()
        _ = self.size_wh

    def _check_values(self) -> None:
        for name in ("fps", "budget_ms", "rotate_mb", "max_frames"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} must be a number that is not negative; received {getattr(self, name)}")
        for name, minimum in (("threads", 1), ("detect_every", 0), ("search_side", 64), ("retries", -1)):
            if getattr(self, name) < minimum:
                raise InputError(f"{name} must be at least {minimum}; received {getattr(self, name)}")
        if self.fps and not MIN_FPS <= self.fps <= MAX_FPS:
            raise InputError(f"fps must be 0, or within {MIN_FPS} and {MAX_FPS}; received {self.fps}")
        if self.threads > MAX_THREADS:
            raise InputError(f"threads must be at most {MAX_THREADS}; received {self.threads}")
        if not 0 <= self.min_confidence <= 1:
            raise InputError(f"min_confidence must be within 0 and 1; received {self.min_confidence}")
        for name, choices in (("detector", DETECTORS), ("runtime", RUNTIMES)):
            if getattr(self, name) not in choices:
                raise InputError(f"unknown {name} {getattr(self, name)!r}; there are {', '.join(choices)}")

    def _check_files(self) -> None:
        if self.append and self.overwrite:
            raise InputError("append and overwrite exclude each other; leave one out")
        if self.rotate_mb and not {self.jsonl, self.csv} - {"", "-"}:
            raise InputError("rotate_mb goes with a jsonl or csv file; name one, or leave it out")
        files = self.output_files()
        for (name, value), (other, same) in combinations(files, 2):
            if name != other and os.path.realpath(value) == os.path.realpath(same):
                raise InputError(f"{name} and {other} are both {value}; give each a file of its own")
        self.check_inputs_kept({name: getattr(self, name) for name in ("source", "model", "detector_model")})

    def _check_addresses(self) -> None:
        served = [
            address(text, name, example_port)
            for name, example_port in (("browser", BROWSER_PORT), ("metrics", METRICS_PORT))
            if (text := getattr(self, name))
        ]
        if len(served) == 2:
            (host, port), (other_host, other_port) = served
            meet = host == other_host or {host, other_host} & {"0.0.0.0", "::"}
            if port and port == other_port and meet:  # port 0 is any that is free
                raise InputError(f"browser and metrics both use port {port}; give each a port of its own")
        if self.mqtt:
            parse_broker(self.mqtt)

    def _check_strings(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, str) and "\0" in value:
                raise InputError(f"{name} holds a NUL character; leave it out")
        for name in ("source", "record", "token", "mqtt"):  # which go to OpenCV, or over a network
            value = getattr(self, name)
            if value.encode(errors="replace").decode() != value:
                raise InputError(f"{name} is not UTF-8; give it in UTF-8, and rename the file if it names one")

    def output_files(self) -> list[tuple[str, str]]:
        """The files that the run writes, each with its setting's name."""
        files = [(name, path) for name in ("jsonl", "csv", "record") if (path := getattr(self, name))]
        rotated = [(name, path) for name, path in files if self.rotate_mb and name != "record"]
        return files + [(name, older) for name, path in rotated for older in rotated_names(path)]

    def check_inputs_kept(self, read: Mapping[str, str]) -> None:
        """Refuse a run that would write what it reads: files by what they are for. Raises InputError."""
        for name, path in self.output_files():
            for purpose, other in read.items():
                # a bundled network's name is no file, and an address may be longer than any
                exists = os.path.exists(other)  # noqa: PTH110 (Path.exists raises then)
                if exists and os.path.realpath(path) == os.path.realpath(other):
                    raise InputError(f"{name} would replace the {purpose.replace('_', ' ')} {other}; name another file")

    @property
    def detection_interval(self) -> int:
        """The detector sees every so many frames. With blurring it sees each one."""
        return self.detect_every or (1 if self.blur else DETECTION_INTERVAL)

    @property
    def size_wh(self) -> tuple[int, int] | None:
        """Width and height asked for; None if not. Raises InputError if it is no size."""
        if not self.size:
            return None
        match = re.fullmatch(r"(\d{2,5})x(\d{2,5})", self.size)
        if not match:
            raise InputError(f"size must be such as 640x480; received {self.size!r}")
        return int(match[1]), int(match[2])
