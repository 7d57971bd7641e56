from __future__ import annotations

import importlib.util
import sys

import cv2
import numpy as np
import pytest

from maskfer_edge.errors import DependencyError
from maskfer_trainer.landmarks import LandmarkPredictor, find_predictor

EYES, MOUTH, CHIN = slice(36, 48), slice(48, 68), 8


@pytest.fixture(scope="module")
def predictor():
    return LandmarkPredictor()


def test_landmarks_are_68_points_of_float32(predictor, grey_face):
    landmarks = predictor(grey_face)
    assert (landmarks.shape, landmarks.dtype) == ((68, 2), np.float32)


@pytest.mark.parametrize("side", [48, 128, 300])
def test_eyes_lie_above_the_mouth_and_the_mouth_above_the_chin(predictor, grey_face, side):
    landmarks = predictor(cv2.resize(grey_face, (side, side), interpolation=cv2.INTER_AREA)) / side
    assert landmarks[EYES, 1].max() < landmarks[MOUTH, 1].min() < landmarks[CHIN, 1]
    assert landmarks[MOUTH, 1].max() < landmarks[CHIN, 1]


def test_a_small_copy_gives_about_the_same_places(predictor, grey_face):
    small = cv2.resize(grey_face, (48, 48), interpolation=cv2.INTER_AREA)
    distances = np.linalg.norm(predictor(small) / 48 - predictor(grey_face) / 128, axis=1)
    assert distances.mean() < 0.04


def test_the_predictor_is_found_without_importing_its_package():
    assert find_predictor().stat().st_size > 50e6
    assert "face_recognition_models" not in sys.modules


def test_a_missing_landmark_package_gives_the_pip_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DependencyError, match=r"pip install 'maskfer\[trainer\]'"):
        find_predictor()


def test_missing_dlib_gives_the_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(DependencyError, match=r"dlib is not installed; run: pip install 'maskfer\[trainer\]'"):
        LandmarkPredictor()
