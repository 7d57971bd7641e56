from __future__ import annotations

import importlib.util
import sys

import cv2
import numpy as np
import pytest

from maskfer_edge.errors import DependencyError
from maskfer_trainer.landmarks import LandmarkPredictor, find_predictor

EYES, MOUTH, CHIN = slice(36, 48), slice(48, 68), 8


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


@pytest.fixture(scope="module")
def grey_portrait(portrait):
    return cv2.cvtColor(portrait, cv2.COLOR_BGR2GRAY)


def test_a_box_of_the_whole_picture_is_the_whole_picture(predictor, grey_face):
    np.testing.assert_array_equal(predictor(grey_face, (0, 0, 128, 128)), predictor(grey_face))


def test_a_box_gives_about_the_same_as_cropping(predictor, grey_portrait, grey_face):
    found = predictor(grey_portrait, (160, 60, 128, 128))
    assert np.linalg.norm(found - np.add(predictor(grey_face), (160, 60)), axis=1).mean() < 2


@pytest.mark.parametrize("jitter", [-6, 6])
def test_a_box_need_not_be_exact(predictor, grey_portrait, jitter):
    exact, random_affine = (predictor(grey_portrait, (179 + d, 83 + d, 88, 88)) for d in (0, jitter))
    assert np.linalg.norm(exact - random_affine, axis=1).mean() < 3


@pytest.mark.parametrize(("dx", "dy"), [(31, 0), (0, 200), (777, 55)])
def test_landmarks_move_with_the_face(predictor, grey_portrait, dx, dy):
    random_affine = cv2.copyMakeBorder(grey_portrait, dy, 0, dx, 0, cv2.BORDER_REFLECT)
    found = predictor(random_affine, (179 + dx, 83 + dy, 88, 88))
    expected = np.add(predictor(grey_portrait, (179, 83, 88, 88)), (dx, dy))
    np.testing.assert_allclose(found, expected, atol=0.1)


def test_a_small_face_of_a_large_picture_is_enlarged(predictor, grey_portrait):
    small = cv2.resize(grey_portrait, None, fx=0.3, fy=0.3, interpolation=cv2.INTER_AREA)
    canvas = np.full((900, 900), 120, dtype=np.uint8)
    canvas[400 : 400 + len(small), 300 : 300 + len(small)] = small
    found = predictor(canvas, (300 + 0.3 * 179, 400 + 0.3 * 83, 0.3 * 88, 0.3 * 88))
    expected = 0.3 * predictor(grey_portrait, (179, 83, 88, 88)) + (300, 400)
    assert np.linalg.norm(found - expected, axis=1).mean() < 1.5


@pytest.mark.parametrize("box", [(-30, -20, 128, 128), (60, 70, 128, 128), (0.4, 0.6, 127.3, 126.9)])
def test_a_box_may_reach_beyond_the_picture(predictor, grey_face, box):
    landmarks = predictor(grey_face, box)
    assert np.isfinite(landmarks).all()
    assert landmarks.shape == (68, 2)


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
