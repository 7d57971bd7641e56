from __future__ import annotations

import cv2
import numpy as np
import pytest

from maskfer_edge.dataset import PictureSet
from maskfer_edge.detector import Detection, Detector, FakeDetector, HaarDetector
from maskfer_trainer.through_detector import FACE_SIDES, PICTURE_WH, place_in_picture, through_detector


class Oracle(Detector):
    """Finds the one bright square, and shifts its box by a share of its side."""

    name = "haar"

    def __init__(self, shift: float = 0.0) -> None:
        self.shift = shift

    def __call__(self, image):
        x, y, w, h = cv2.boundingRect((image[..., 0] > 128).astype(np.uint8))
        return [Detection((x + round(self.shift * w), y, w, h), 1.0), Detection((0, 0, 5, 5), 9.0)]


def by_brightness(images: np.ndarray) -> np.ndarray:
    """Class 0 for what is bright to the left edge, else class 1."""
    bright = images[:, :, :12].mean(axis=(1, 2)) > 200
    return np.stack([bright, ~bright, *[np.zeros(len(images))] * 5], axis=1).astype(np.float32)


def faces(count: int = 4) -> PictureSet:
    images = np.full((count, 48, 48), 255, np.uint8)
    return PictureSet(images, np.zeros(count, np.int64), tuple(f"happy/{i}" for i in range(count)))


@pytest.fixture
def black_around(monkeypatch):
    """Faces on black, so that a detector made for the test can tell where they are."""
    from maskfer_trainer import through_detector as module

    def place(face, name):
        picture, (x, y, w, h) = place_in_picture(face, name)
        alone = np.zeros_like(picture)
        alone[y : y + h, x : x + w] = picture[y : y + h, x : x + w]
        return alone, (x, y, w, h)

    monkeypatch.setattr(module, "place_in_picture", place)


@pytest.mark.parametrize("name", [f"sad/{i}" for i in range(20)])
def test_a_face_lies_whole_in_the_picture(name, vary):
    face = vary(3)
    picture, (x, y, w, h) = place_in_picture(face, name)
    assert (picture.shape, picture.dtype) == ((PICTURE_WH[1], PICTURE_WH[0], 3), np.uint8)
    assert min(x, y) >= 0
    assert x + w <= PICTURE_WH[0]
    assert y + h <= PICTURE_WH[1]
    assert FACE_SIDES[0] <= w == h <= FACE_SIDES[1]
    back = cv2.resize(picture[y : y + h, x : x + w, 0], (48, 48), interpolation=cv2.INTER_AREA)
    assert np.abs(back.astype(int) - face).mean() < 6


def test_place_and_size_depend_on_the_name_alone(vary):
    assert place_in_picture(vary(1), "a")[1] == place_in_picture(vary(2), "a")[1] != place_in_picture(vary(1), "b")[1]


def test_a_perfect_detector_loses_nothing(black_around):
    found = through_detector(faces(), by_brightness, Oracle(), 0.0)
    assert (found.pictures, found.found) == (4, 1.0)
    assert found.accuracy_perfect == found.accuracy_detected == found.accuracy_overall == 1.0


def test_boxes_that_sit_badly_cost_what_they_cost(black_around):
    found = through_detector(faces(), by_brightness, Oracle(shift=-0.3), 0.0)
    assert (found.found, found.accuracy_perfect) == (1.0, 1.0)
    assert (found.accuracy_detected, found.accuracy_overall) == (0.0, 0.0)


def test_the_crop_margin_is_used(black_around):
    # without the black to the left of a box that is shifted, or with all the more of it
    assert through_detector(faces(), by_brightness, Oracle(shift=-0.1), -0.2).accuracy_detected == 1.0
    assert through_detector(faces(), by_brightness, Oracle(shift=-0.1), 0.2).accuracy_detected == 0.0


@pytest.mark.parametrize("detections", [[], [Detection((0, 0, 4, 4), 1.0)]])
def test_a_detector_that_finds_nothing_leaves_nothing_to_compare(detections):
    found = through_detector(faces(), by_brightness, FakeDetector(detections), 0.0)
    assert (found.found, found.accuracy_overall) == (0.0, 0.0)
    assert found.accuracy_perfect is found.accuracy_detected is None


def test_the_haar_cascade_finds_a_bare_face_that_was_placed(grey_face):
    small = cv2.resize(grey_face, (48, 48), interpolation=cv2.INTER_AREA)
    placed = PictureSet(np.stack([small] * 5), np.zeros(5, np.int64), tuple("abcde"))
    assert through_detector(placed, by_brightness, HaarDetector(), 0.0).found >= 0.6


def test_progress_counts_every_face(black_around):
    seen = []
    through_detector(faces(3), by_brightness, Oracle(), 0.0, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
