import numpy as np
import pytest

from maskfer_edge import health as module
from maskfer_edge.health import HealthMeter
from maskfer_edge.results import FrameResult, face_result

FACE = face_result(1, (0, 0, 9, 9), 1.0, np.eye(7, dtype=np.float32)[3])


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_before_the_first_frame_there_is_no_age(clock):
    health = HealthMeter().snapshot()
    assert (health.frames, health.fps, health.frame_age_s, health.latency_ms) == (0, 0.0, None, {})


def test_rate_and_age_are_of_the_newest_frames(clock):
    meter = HealthMeter()
    for _ in range(11):
        meter.add(FrameResult(0.0, 0, (FACE,), 1.0), {})
        clock[0] += 0.1
    health = meter.snapshot()
    assert (health.fps, health.frame_age_s, health.seconds) == (10.0, 0.1, 1.1)


def test_the_rate_falls_while_nothing_flows(clock):
    meter = HealthMeter()
    for _ in range(11):
        meter.add(FrameResult(0.0, 0, (FACE,), 1.0), {})
        clock[0] += 0.1
    clock[0] += 98.9
    assert meter.snapshot().fps == 0.1


def test_percentiles_are_by_stage():
    meter = HealthMeter()
    for took in range(101):
        meter.add(FrameResult(0.0, 0, (), 1.0), {"classify": took} if took % 2 else {"classify": took, "detect": 7})
    latency = meter.snapshot().latency_ms
    assert (latency["classify"].p50, latency["classify"].p95) == (50, 95)
    assert latency["detect"].p95 == 7


def test_faces_and_expressions_are_counted():
    meter = HealthMeter()
    for faces in ((FACE, FACE), (FACE,), ()):
        meter.add(FrameResult(0.0, 0, faces, 1.0), {})
    assert (meter.frames, meter.frames_with_faces, meter.expressions) == (3, 2, {"Happy": 3})
    assert meter.snapshot().faces == 0


def test_what_others_count_is_asked_for():
    meter = HealthMeter(capture_state=lambda: (3, 2, "unplugged"), output_drops={"mqtt": lambda: 4})
    health = meter.snapshot()
    assert (health.dropped, health.losses, health.lost, health.output_drops) == (3, 2, "unplugged", {"mqtt": 4})
