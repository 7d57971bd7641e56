"""How the loop is doing: rates, ages and latencies, for people, metrics and the watchdog."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from maskfer_edge.results import FrameResult

# Over how many of the newest frames rates and percentiles are taken.
WINDOW = 256


@dataclass(frozen=True)
class Latency:
    """Milliseconds over the newest frames.

    Attributes:
        p50: Half of the frames took no longer.
        p95: 95 of 100 took no longer.
    """

    p50: float
    p95: float


@dataclass(frozen=True)
class Health:
    """The state of a run.

    Attributes:
        seconds: Since its start.
        frames: Frames processed.
        fps: Frames processed a second, over the newest.
        faces: In the newest frame.
        frame_age_s: Seconds since the newest result; None before the first.
        dropped: Frames of a live camera that were passed over for a newer one.
        losses: How often the camera was lost.
        lost: Why it is lost at present; "" while it is not.
        latency_ms: By stage: ``detect`` (of frames that were searched), ``classify``, ``result`` (both and what lies
            between), ``age`` (from the frame's capture to its result).
        output_drops: Output to how many frames it was too slow for.
        warnings: The board's warnings, e.g. under-voltage.
        put_back: Kinds of installed models whose newest failed on trial, so that the last good one runs.
    """

    seconds: float
    frames: int
    fps: float
    faces: int
    frame_age_s: float | None
    dropped: int
    losses: int
    lost: str
    latency_ms: dict[str, Latency]
    output_drops: dict[str, int]
    warnings: tuple[str, ...] = ()
    put_back: tuple[str, ...] = ()


@dataclass
class HealthMeter:
    """Collects what the loop does; `snapshot` may be called by any thread.

    Attributes:
        frames: Frames processed.
        frames_with_faces: Those in which a face was found.
        expressions: Faces by expression.
    """

    capture_state: Callable[[], tuple[int, int, str]] = lambda: (0, 0, "")
    frames: int = 0
    frames_with_faces: int = 0
    expressions: Counter[str] = field(default_factory=Counter)
    warnings: tuple[str, ...] = ()
    put_back: tuple[str, ...] = ()
    output_drops: dict[str, Callable[[], int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._result_times: deque[float] = deque(maxlen=WINDOW)
        self._stages: dict[str, deque[float]] = {}
        self._faces = 0

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    def add(self, result: FrameResult, stages_ms: dict[str, float]) -> None:
        """Take one frame's result and what its stages took."""
        with self._lock:
            self.frames += 1
            self._faces = len(result.faces)
            self.frames_with_faces += bool(result.faces)
            self.expressions.update(face.expression for face in result.faces)
            self._result_times.append(time.monotonic())
            for stage, duration_ms in stages_ms.items():
                self._stages.setdefault(stage, deque(maxlen=WINDOW)).append(duration_ms)

    def snapshot(self) -> Health:
        """The state at this moment."""
        now = time.monotonic()
        dropped, losses, lost = self.capture_state()
        with self._lock:
            frames = len(self._result_times) - 1
            span = self._result_times[-1] - self._result_times[0] if frames > 0 else 0.0
            if frames > 0 and now - self._result_times[-1] > max(1.0, 2 * span / frames):  # nothing flows
                span = now - self._result_times[0]
            stages = {stage: np.percentile(times, (50, 95)) for stage, times in self._stages.items()}
            return Health(
                seconds=round(now - self._started, 1),
                frames=self.frames,
                fps=round(frames / span, 1) if span else 0.0,
                faces=self._faces,
                frame_age_s=round(now - self._result_times[-1], 3) if self._result_times else None,
                dropped=dropped,
                losses=losses,
                lost=lost,
                latency_ms={s: Latency(round(float(p50), 2), round(float(p95), 2)) for s, (p50, p95) in stages.items()},
                output_drops={name: drops() for name, drops in self.output_drops.items()},
                warnings=self.warnings,
                put_back=self.put_back,
            )
