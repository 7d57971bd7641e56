"""How fast a run is on this machine: by stage, from start to first result, in memory; against the paper's own loop."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

from maskfer_edge.addresses import without_secrets
from maskfer_edge.board import cpu_name, governor, hottest_celsius
from maskfer_edge.cameras import Camera, Frame
from maskfer_edge.classifier import Classifier
from maskfer_edge.contract import preprocess
from maskfer_edge.dependencies import cv2
from maskfer_edge.detector import HaarDetector
from maskfer_edge.drawing import annotate
from maskfer_edge.errors import InputError, MaskferError
from maskfer_edge.health import HealthMeter, Latency
from maskfer_edge.model_file import load_model
from maskfer_edge.results import FrameResult, face_result
from maskfer_edge.run_settings import RunSettings
from maskfer_edge.running import BROWSER_SOURCE, open_pipeline, with_installed_files
from maskfer_edge.settings_file import as_toml
from maskfer_edge.sources import open_camera

# Frames that are held in memory, so that decoding is in no figure.
MAX_FRAMES, MAX_BYTES = 300, 200e6
# The two loops take turns, so that whatever else the machine does meets both.
ROUNDS = 2
REALTIME_FRAMES = 100
# Nothing is shown, written or sent.
NO_OUTPUTS: dict[str, Any] = {
    **dict.fromkeys(("jsonl", "csv", "record", "browser", "token", "mqtt", "metrics"), ""),
    "rotate_mb": 0.0,
    "headless": True,
}
# The cascade's arguments in the paper's listing.
NAIVE_SCALE, NAIVE_NEIGHBORS = 1.3, 5
NAIVE_CASCADE = "frontalface_default"


@dataclass(frozen=True)
class BenchReport:
    """What was measured.

    Attributes:
        source: Of the frames.
        frames: How many, and their width and height.
        faces_a_frame: Mean.
        fps: Frames a second of detector, tracker and network, without decoding and outputs.
        latency_ms: By stage.
        first_result_s: From the start of a new process to its first line of JSON.
        memory_mb: Largest resident memory of that process, 10^6 bytes.
        cpu_share: Of one core, of a process that plays the source in its own time; None if it is no video.
        realtime_fps: The source's own rate.
        naive_fps: Frames a second of the paper's loop on the same frames; None without a comparison.
        cpu: Of this machine.
        governor: Likewise; "" where it cannot be read.
        celsius: Likewise, after the runs; None where it cannot be read.
    """

    source: str
    frames: tuple[int, int, int]
    faces_a_frame: float
    fps: float
    latency_ms: dict[str, Latency]
    first_result_s: float
    memory_mb: float
    cpu_share: float | None
    realtime_fps: float
    naive_fps: float | None
    cpu: str
    governor: str
    celsius: float | None


def bench(settings: RunSettings, naive_model: Path | None = None) -> BenchReport:
    """Measure a run on the frames of a file.

    Args:
        settings: Of the run; outputs are left out.
        naive_model: The paper's network in float, for the loop to compare with (see `naive_loop`); None: no comparison.

    Raises:
        InputError: If the source is not a file, or shows no frame.
        MaskferError: If anything cannot be opened.
    """
    # of what is installed, the files: no benchmark is to end the trial of a model
    settings = with_installed_files(replace(settings, **NO_OUTPUTS))
    no_file = InputError(
        f"{without_secrets(settings.source)} is a camera; bench needs the same frames twice, so give a file or demo"
    )
    if settings.source == BROWSER_SOURCE:
        raise no_file
    with open_camera(settings.source) as camera:
        if not camera.file:
            raise no_file
        frames = _first_frames(camera, min(settings.max_frames or MAX_FRAMES, MAX_FRAMES))
        moving, realtime_fps = camera.moving, camera.fps
    naive = Classifier(load_model(naive_model), settings.runtime, mirror=False) if naive_model else None
    cores = cv2.getNumThreads()
    meter, own_s, naive_s, faces = HealthMeter(), 0.0, 0.0, 0
    for _ in range(ROUNDS):
        pipeline = open_pipeline(settings)
        cv2.setNumThreads(cores)
        started = time.perf_counter()
        for frame in frames:
            result = pipeline.process(replace(frame, arrived=time.monotonic()), moving=moving)
            meter.add(result, pipeline.stages_ms)
            faces += len(result.faces)
        own_s += time.perf_counter() - started
        if naive is not None:
            cv2.setNumThreads(1)
            started = time.perf_counter()
            naive_loop(frames, naive)
            naive_s += time.perf_counter() - started
    cv2.setNumThreads(cores)
    first_result_s, memory_mb = start_to_first_result(settings)
    height, width = frames[0].image.shape[:2]
    count = ROUNDS * len(frames)
    return BenchReport(
        source=settings.source,
        frames=(len(frames), width, height),
        faces_a_frame=round(faces / count, 2),
        fps=round(count / own_s, 1),
        latency_ms=meter.snapshot().latency_ms,
        first_result_s=first_result_s,
        memory_mb=memory_mb,
        cpu_share=realtime_share(settings) if moving else None,
        realtime_fps=realtime_fps,
        naive_fps=round(count / naive_s, 1) if naive is not None else None,
        cpu=cpu_name(),
        governor=governor(),
        celsius=hottest_celsius(),
    )


def _first_frames(camera: Camera, max_frames: int) -> list[Frame]:
    """So many of a file's first frames, or fewer if they are large."""
    frames, size = [], 0
    for frame in islice(iter(camera.read, None), max_frames):
        frames.append(frame)
        size += frame.image.nbytes
        if size >= MAX_BYTES:
            break
    return frames


def naive_loop(frames: Sequence[Frame], classifier: Classifier) -> None:
    """The paper's loop: the cascade over each whole frame, the network on each face, rectangle and text.

    Args:
        frames: In order.
        classifier: With the paper's network, in float, without mirror images.
    """
    # the paper's cascade looks at the whole frame and has no smallest face but its own window
    side = max(frames[0].image.shape)
    detector = HaarDetector(NAIVE_SCALE, NAIVE_NEIGHBORS, 24, side, cascade=NAIVE_CASCADE, equalisation="none")
    for frame in frames:
        found = [(d, classifier(preprocess(frame.image, d.box))) for d in detector(frame.image)]
        faces = tuple(face_result(i, d.box, d.score, scores) for i, (d, scores) in enumerate(found))
        annotate(frame.image, FrameResult(frame.time, frame.index, faces, 0.0))


def start_to_first_result(settings: RunSettings) -> tuple[float, float]:
    """Seconds from the start of a new process to its first result, and its largest resident memory in 10^6 bytes."""
    started = time.perf_counter()
    with _run_process(replace(settings, jsonl="-", max_frames=REALTIME_FRAMES)) as (process, stderr):
        assert process.stdout is not None
        if not process.stdout.readline():
            raise _failed(stderr)
        seconds, peak = time.perf_counter() - started, _peak_kb(process.pid)
        # its own high-water mark: the one that wait4 gives counts this process's memory before the exec, too
        for _ in process.stdout:
            peak = max(peak, _peak_kb(process.pid))
    return round(seconds, 2), round(peak * 1024 / 1e6, 1)


def _peak_kb(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def realtime_share(settings: RunSettings) -> float:
    """Share of one core that a process takes which plays a video in its own time, from its start on."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    with _run_process(replace(settings, realtime=True, loop=True, max_frames=REALTIME_FRAMES)) as (process, stderr):
        if process.wait():
            raise _failed(stderr)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return round(cpu_seconds / seconds, 3)


@contextmanager
def _run_process(settings: RunSettings) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """A process of its own that runs with these settings, and its stderr."""
    program = "import sys; from maskfer_edge.cli import main; sys.argv[0] = 'maskfer-edge'; main()"
    config = as_toml(settings).encode()
    read, write = os.pipe()
    os.write(write, config)
    os.close(write)
    command = [sys.executable, "-P", "-c", program, "run", "--config", f"/dev/fd/{read}"]
    with tempfile.TemporaryFile() as stderr:
        try:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, pass_fds=[read])
        finally:
            os.close(read)
        with process:
            yield process, stderr


def _failed(stderr: IO[bytes]) -> MaskferError:
    stderr.seek(0)
    lines = stderr.read().decode(errors="replace").splitlines() or ["it said nothing"]
    return MaskferError(f"the process that was to be measured failed: {lines[-1]}")
