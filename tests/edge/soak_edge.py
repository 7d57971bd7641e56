"""Long trials of the loop, by name: python tests/edge/soak_edge.py age|memory|losses

age      a camera of 60 frames a second on the demonstration's pictures, for 10 minutes: is the newest result ever old?
memory   200,000 frames through detector stub, tracker and the real network: does memory grow?
losses   a camera lost 200 times (end, error, block, frozen picture): is each one made good, and how soon?
"""

from __future__ import annotations

import itertools
import statistics
import sys
import threading
import time

import numpy as np

from maskfer_edge.board import memory_mb
from maskfer_edge.cameras import Camera, FakeCamera, Frame
from maskfer_edge.capture import Capture
from maskfer_edge.classifier import open_classifier
from maskfer_edge.detector import Detection, FakeDetector, open_detector
from maskfer_edge.errors import CameraError
from maskfer_edge.loop import Pipeline, results
from maskfer_edge.outputs import FakeOutput
from maskfer_edge.sources import open_camera
from maskfer_edge.tracker import Tracker


class FastCamera(Camera):
    """Pictures again and again, 60 a second, whether anyone fetches them or not."""

    name, live, endless, fps = "fast", True, True, 60.0

    def __init__(self, images):
        self.images = itertools.cycle(images)
        self.next = time.monotonic()

    def read(self):
        self.next = max(self.next + 1 / self.fps, time.monotonic() - 1 / self.fps)
        time.sleep(max(0.0, self.next - time.monotonic()))
        return Frame(next(self.images), 0, time.time())


class Counting(FakeOutput):
    """Keeps nothing."""

    def write(self, *_):
        return True


def age(seconds=600):
    with open_camera("demo") as camera:
        images = [frame.image for frame in iter(camera.read, None)]
    pipeline = Pipeline(open_detector("learned"), open_classifier(None), Tracker(), detect_every=3)
    pipeline.detect_in_background()
    ages, intervals, before = [], [], None
    started = time.monotonic()
    with Capture(FastCamera(images)) as capture:
        for _ in results(capture, pipeline, [Counting()]):
            now = time.monotonic()
            ages.append(pipeline.stages_ms["age"])
            intervals.append((now - before) * 1000 if before else 0.0)
            before = now
            if now - started > seconds:
                break
        dropped = capture.dropped
    quantiles = np.percentile(ages, (50, 95, 99.9, 100)).round(1).tolist()
    interval = statistics.mean(intervals[1:])
    pipeline.close()
    over = np.mean(np.array(ages) > 2 * np.maximum(intervals, 1000 / 60))
    print(f"age: {len(ages)} results in {seconds:.0f} s, one each {interval:.1f} ms, {dropped} frames passed over")
    print(f"     age p50, p95, p99.9, max {quantiles} ms; older than two intervals: {over:.2%}")


def memory(frames=200_000):
    image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    pipeline = Pipeline(FakeDetector([Detection((40, 20, 80, 80), 5.0)]), open_classifier(None), Tracker())
    seen = []
    with Capture(FakeCamera([image] * frames, live=False)) as capture:
        for count, _ in enumerate(results(capture, pipeline, [Counting()]), 1):
            if count in (1_000, frames // 4, frames // 2, frames):
                seen.append((count, memory_mb()))
    print("memory:", ", ".join(f"{mb:.1f} MB after {count}" for count, mb in seen))


def _picture(level):
    """One that shows something: in the dark the same picture for ever is no loss."""
    picture = np.full((64, 64, 3), level, np.uint8)
    picture[32:] //= 2
    picture[:8] = 255 - level
    return picture


class LossyCamera(Camera):
    """Gives ten pictures, then is lost in one of four ways, in turn."""

    name, live, endless, fps = "lossy", True, True, 30.0
    ways = itertools.cycle(("end", "error", "block", "frozen"))
    values = itertools.count()
    lost_at: dict = {}  # noqa: RUF012

    def __init__(self):
        self.left, self.way, self.closed = 10, next(self.ways), threading.Event()

    def read(self):
        time.sleep(0.01)
        self.left -= 1
        if self.left > 0:
            return Frame(_picture(next(self.values) % 251), 0, time.time())
        LossyCamera.lost_at.setdefault("now", time.monotonic())
        LossyCamera.lost_at["way"] = self.way
        if self.way == "end":
            return None
        if self.way == "error":
            raise CameraError("unplugged")
        if self.way == "block":
            self.closed.wait(5.0)
            raise CameraError("let go")
        return Frame(_picture(255), 0, time.time())

    def close(self):
        self.closed.set()


def losses(count=200):
    took: dict[str, list[float]] = {}
    pipeline = Pipeline(FakeDetector(), open_classifier(None), Tracker())
    with Capture(LossyCamera(), LossyCamera) as capture:
        for _ in results(capture, pipeline):
            lost = LossyCamera.lost_at
            if "now" in lost and not capture.lost and capture.losses > sum(map(len, took.values())):
                took.setdefault(lost["way"], []).append(time.monotonic() - lost["now"])
                lost.clear()
            if sum(map(len, took.values())) >= count:
                break
        threads = threading.active_count()
    for way, times in took.items():
        median, longest = statistics.median(times), max(times)
        print(f"losses: {way:7} {len(times)} recovered, median {median:.2f} s, longest {longest:.2f} s")
    print(f"losses: {capture.losses} in all, {threads} threads at the end, {memory_mb():.0f} MB")


if __name__ == "__main__":
    {"age": age, "memory": memory, "losses": losses}[sys.argv[1]](*map(int, sys.argv[2:]))
