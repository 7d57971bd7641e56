from __future__ import annotations

import cv2
import numpy as np
import pytest

from maskfer_edge.errors import InputError
from maskfer_trainer.masks import KINDS, draw_mask
from maskfer_trainer.placement import NEAREST_CHEEK, Wearing, find_pivots, put_on

SIDE = 120
MIDDLE = np.float32([SIDE / 2, SIDE / 2])


def make_landmarks(turned: float = 0.0) -> np.ndarray:
    """A face seen from the front, turned by degrees about the picture's middle."""
    points = np.full((68, 2), 60, dtype=np.float32)
    angles = np.linspace(np.pi, 0, 17)
    points[:17] = np.stack([60 + 42 * np.cos(angles), 52 + 52 * np.sin(angles)], axis=1)
    points[27:31] = [(60, y) for y in (46, 54, 62, 70)]
    return turn(points, turned)


def turn(points: np.ndarray, degrees: float) -> np.ndarray:
    angle = np.radians(degrees)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return ((points - MIDDLE) @ rotation.T + MIDDLE).astype(np.float32)


def noisy(level: int = 120, colour: bool = False) -> np.ndarray:
    shape = (SIDE, SIDE, 3) if colour else (SIDE, SIDE)
    return np.random.default_rng(1).integers(level - 20, level + 20, shape, dtype=np.uint8)


def wear(image: np.ndarray, kind: str, landmarks: np.ndarray | None = None) -> np.ndarray:
    return put_on(image, make_landmarks() if landmarks is None else landmarks, draw_mask(kind), Wearing())


@pytest.mark.parametrize("turned", [-40, -20, 0, 20, 40])
def test_pivots_are_convex(turned):
    assert cv2.isContourConvex(find_pivots(make_landmarks(turned)).reshape(-1, 1, 2))


def test_pivots_are_top_right_bottom_left():
    top, right, bottom, left = find_pivots(make_landmarks())
    assert top[1] < right[1] < bottom[1]
    assert left[0] < top[0] < right[0]
    assert left[1] == pytest.approx(right[1], abs=1)


@pytest.mark.parametrize("degrees", [-20, 20])
def test_pivots_follow_roll(degrees):
    expected = turn(find_pivots(make_landmarks()), degrees)
    assert np.allclose(find_pivots(make_landmarks(degrees)), expected, atol=0.05)


def test_a_higher_ridge_moves_the_first_pivot_alone_up():
    low, high = find_pivots(make_landmarks(), 0.5), find_pivots(make_landmarks(), 0.2)
    assert high[0, 1] < low[0, 1] - 5
    assert np.abs(high[2] - low[2]).max() < 2


def test_a_turned_heads_nose_stays_between_the_cheeks():
    landmarks = make_landmarks()
    landmarks[27:31, 0] = 14
    top, right, _, left = find_pivots(landmarks)
    across = right - left
    assert (top - left) @ across / (across @ across) == pytest.approx(NEAREST_CHEEK, abs=1e-3)


def nose_below_chin() -> np.ndarray:
    landmarks = make_landmarks()
    landmarks[27:31, 1] += 80
    return landmarks


@pytest.mark.parametrize(
    "landmarks",
    [np.full((68, 2), 30, dtype=np.float32), make_landmarks() * np.float32([0, 1]), make_landmarks(180),
     make_landmarks() * np.float32([-1, 1]), nose_below_chin()],
    ids=["all the same", "a line", "upside down", "mirrored", "nose below chin"],
)  # fmt: skip
def test_implausible_landmarks_are_refused(landmarks):
    with pytest.raises(InputError, match="implausible landmarks"):
        find_pivots(landmarks)


def test_a_mask_outside_the_picture_is_refused():
    with pytest.raises(InputError, match="outside"):
        wear(noisy(), "cloth-red", make_landmarks() + 500)


@pytest.mark.parametrize("kind", KINDS)
def test_the_lower_face_changes(kind):
    image = noisy()
    assert (wear(image, kind)[80:95, 45:75] != image[80:95, 45:75]).mean() > 0.9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("region", [np.s_[:46], np.s_[112:], np.s_[:, :4]], ids=["eyes", "below", "beside"])
def test_eyes_and_background_stay(kind, region):
    image = noisy()
    assert np.array_equal(wear(image, kind)[region], image[region])


@pytest.mark.parametrize("colour", [False, True])
def test_shape_and_dtype_stay(colour):
    image = noisy(colour=colour)
    masked = wear(image, "surgical-blue")
    assert (masked.shape, masked.dtype) == (image.shape, image.dtype)


@pytest.mark.parametrize("colour", [False, True])
def test_the_input_is_not_changed(colour):
    image = noisy(colour=colour)
    before = image.copy()
    assert not np.array_equal(wear(image, "surgical-blue"), before)
    assert np.array_equal(image, before)


@pytest.mark.parametrize(("kind", "channel"), [("surgical-blue", 0), ("cloth-red", 2)])
def test_colours_are_in_bgr_order(kind, channel):
    masked = wear(np.full((SIDE, SIDE, 3), 128, dtype=np.uint8), kind)
    assert masked[80:95, 45:75].mean(axis=(0, 1)).argmax() == channel


@pytest.mark.parametrize("side", [48, 120, 480])
@pytest.mark.parametrize(("kind", "skin"), [("kn95-white", 250), ("surgical-black", 12), ("cloth-black", 12)])
def test_no_fringe_runs_along_the_edge(kind, skin, side):
    scale = side / SIDE
    image = np.full((side, side), skin, dtype=np.uint8)
    landmarks = (make_landmarks() + 0.5) * np.float32(scale) - 0.5
    masked = put_on(image, landmarks, draw_mask(kind), Wearing()).astype(int)
    inside = cv2.fillConvexPoly(np.zeros_like(image), np.round(find_pivots(landmarks)).astype(np.int32), 1) > 0
    cloth = masked[cv2.erode(inside.astype(np.uint8), np.ones((3, 3))) > 0]
    lowest, highest = min(skin, cloth.min()), max(skin, cloth.max())
    assert masked.min() >= lowest - 30
    assert masked.max() <= highest + 30


def test_a_dim_face_wears_a_dim_mask():
    bright, dim = (wear(np.full((SIDE, SIDE), level, dtype=np.uint8), "kn95-white") for level in (180, 20))
    assert dim[85, 60] < bright[85, 60] - 40


def test_brightness_is_a_factor_on_the_mask():
    image = noisy()
    bright, dark = (
        put_on(image, make_landmarks(), draw_mask("surgical-blue"), Wearing(brightness=b)) for b in (1, 0.8)
    )
    assert dark[80:95, 45:75].mean() == pytest.approx(0.8 * bright[80:95, 45:75].mean(), rel=0.03)
