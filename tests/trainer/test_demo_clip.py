from __future__ import annotations

import sys

import cv2
import numpy as np
import pytest

from maskfer_trainer import demo_clip


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(demo_clip, "FRAMES_PER_MASK", 2)


def test_each_mask_is_shown_on_a_moving_face():
    frames = demo_clip.make_frames()
    assert {(frame.shape, frame.dtype) for frame in frames} == {((360, 480, 3), np.dtype(np.uint8))}
    assert len({frame.tobytes() for frame in frames}) == len(frames) == 2 * len(demo_clip.WORN)


def test_the_clip_replaces_what_is_there(monkeypatch, tmp_path):
    (tmp_path / "demo.mp4").write_bytes(b"older")
    monkeypatch.setattr(sys, "argv", ["demo_clip", str(tmp_path / "demo.mp4")])
    demo_clip.main()
    clip = cv2.VideoCapture(str(tmp_path / "demo.mp4"))
    assert clip.get(cv2.CAP_PROP_FRAME_COUNT) == 2 * len(demo_clip.WORN)
    assert clip.read()[1].shape == (360, 480, 3)
    clip.release()
