from __future__ import annotations

import cv2
import numpy as np
import pytest

from maskfer_edge.errors import InputError
from maskfer_trainer.masks import NOSE
from maskfer_trainer.placement import (
    CANONICAL_JAW,
    CANONICAL_PIVOTS,
    FITS,
    NEAREST_CHEEK,
    HomographyMap,
    canonical_landmarks,
    check_plausible,
    face_mesh,
    find_pivots,
    head_turn,
    mesh_map,
    unit_length,
)

SIDE = 120
MIDDLE = np.float32([SIDE - 1, SIDE - 1]) / 2
RIDGE = slice(27, 31)
# what a map must take to its canonical place: the jaw line and the ridge of the nose
FITTED = np.r_[0:17, 27:31]
ROWS = 8
YAWS = (-45, -35, -20, 0, 20, 35, 45)


def turn(points: np.ndarray, degrees: float) -> np.ndarray:
    angle = np.radians(degrees)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return ((points - MIDDLE) @ rotation.T + MIDDLE).astype(np.float32)


def mirror(landmarks: np.ndarray) -> np.ndarray:
    """The picture mirrored, but not the order of landmarks."""
    return landmarks * np.float32([-1, 1]) + np.float32([SIDE - 1, 0])


def make_map(landmarks: np.ndarray, fit: str, protrusion: float = 0.0):
    pivots = find_pivots(landmarks)
    return (
        HomographyMap(landmarks, pivots)
        if fit == "homography"
        else mesh_map(landmarks, unit_length(pivots), protrusion)
    )


def mesh_rows(landmarks: np.ndarray, protrusion: float = 0.0) -> np.ndarray:
    """(8, 5, 2) pixels: each row of the mesh from the left of the picture to the right."""
    _, pixels = face_mesh(landmarks, protrusion)
    jaw, inner = pixels[:17], pixels[17:].reshape(3, ROWS, 2)
    return np.stack([jaw[:ROWS], *inner, jaw[:ROWS:-1]], axis=1)


@pytest.mark.parametrize("roll", [-40, -20, 0, 20, 40])
def test_pivots_are_convex(make_landmarks, roll):
    assert cv2.isContourConvex(find_pivots(make_landmarks(roll=roll)).reshape(-1, 1, 2))


def test_pivots_are_top_right_bottom_left(make_landmarks):
    top, right, bottom, left = find_pivots(make_landmarks())
    assert top[1] < right[1] < bottom[1]
    assert left[0] < top[0] < right[0]
    assert left[1] == pytest.approx(right[1], abs=0.1)


@pytest.mark.parametrize("degrees", [-20, 20])
def test_pivots_follow_roll(make_landmarks, degrees):
    expected = turn(find_pivots(make_landmarks()), degrees)
    assert find_pivots(make_landmarks(roll=degrees)) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(("nose_x", "share"), [(0, NEAREST_CHEEK), (SIDE, 1 - NEAREST_CHEEK)])
def test_a_turned_heads_nose_stays_between_the_cheeks(make_landmarks, nose_x, share):
    landmarks = make_landmarks()
    landmarks[RIDGE, 0] = nose_x
    top, right, _, left = find_pivots(landmarks)
    across = right - left
    assert (top - left) @ across / (across @ across) == pytest.approx(share, abs=1e-3)


def nose_below_chin(landmarks: np.ndarray) -> np.ndarray:
    landmarks[RIDGE, 1] += 80
    return landmarks


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (np.zeros_like, "nose and chin coincide"),
        (lambda points: points * np.float32([0, 1]), "the cheeks coincide"),
        (lambda points: turn(points, 180), "no convex quadrilateral"),
        (mirror, "no convex quadrilateral"),
        (nose_below_chin, "no convex quadrilateral"),
    ],
    ids=["all the same", "a line", "upside down", "mirrored", "nose below chin"],
)  # fmt: skip
@pytest.mark.parametrize("check", [find_pivots, lambda points: check_plausible(points, (SIDE, SIDE))],
                         ids=["find_pivots", "check_plausible"])  # fmt: skip
def test_implausible_landmarks_are_refused(make_landmarks, change, message, check):
    with pytest.raises(InputError, match=f"^implausible landmarks: .*{message}$"):
        check(change(make_landmarks()))


def shrink(landmarks: np.ndarray) -> np.ndarray:
    return (landmarks - MIDDLE) * np.float32(0.1) + MIDDLE


def raise_mouth(landmarks: np.ndarray) -> np.ndarray:
    landmarks[48:, 1] -= 40
    return landmarks


def lower_eyes(landmarks: np.ndarray) -> np.ndarray:
    landmarks[36:48, 1] += 40
    return landmarks


def swap_eyes_and_mouth(landmarks: np.ndarray) -> np.ndarray:
    return lower_eyes(raise_mouth(landmarks))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shrink, "face too small: under 8 pixels wide"),
        (lambda points: points + np.float32([110, 0]), "implausible landmarks: most of the jaw lies off the picture"),
        (lambda points: points - np.float32([0, 130]), "implausible landmarks: most of the jaw lies off the picture"),
        (raise_mouth, "implausible landmarks: eyes, nose and mouth are out of order"),
        (lower_eyes, "implausible landmarks: eyes, nose and mouth are out of order"),
        (swap_eyes_and_mouth, "implausible landmarks: eyes, nose and mouth are out of order"),
    ],
    ids=["too small", "off to the right", "off above", "mouth above nose", "eyes below nose", "eyes below mouth"],
)
def test_faces_no_mask_can_be_fitted_to_are_refused(make_landmarks, change, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        check_plausible(change(make_landmarks()), (SIDE, SIDE))


@pytest.mark.parametrize("side", [24, 120, 2000])
@pytest.mark.parametrize("roll", [-40, 0, 40])
@pytest.mark.parametrize("yaw", YAWS)
def test_plausible_faces_are_accepted_with_their_pivots(make_landmarks, side, roll, yaw):
    landmarks = make_landmarks(side, roll, yaw)
    assert np.array_equal(check_plausible(landmarks, (side, side)), find_pivots(landmarks))


@pytest.mark.parametrize("move", [(60, 0), (-60, 0), (0, 40), (0, -70)], ids=["right", "left", "low", "high"])
def test_a_face_partly_off_the_picture_is_accepted(make_landmarks, move):
    check_plausible(make_landmarks() + np.float32(move), (SIDE, SIDE))


def test_a_nose_crowded_up_to_the_eyes_is_accepted(make_landmarks):
    landmarks = make_landmarks()
    landmarks[RIDGE, 1] = landmarks[36:48, 1].mean() - np.float32([5, 3, 1, 0])
    check_plausible(landmarks, (SIDE, SIDE))


def test_a_photographs_landmarks_are_accepted(astronaut, astronaut_landmarks):
    height, width = astronaut.shape[:2]
    check_plausible(astronaut_landmarks, (width, height))


def test_canonical_pivots_are_symmetric():
    top, right, bottom, left = CANONICAL_PIVOTS
    assert (top[0], bottom[0]) == pytest.approx((0, 0), abs=1e-6)
    assert right == pytest.approx(left * np.float32([-1, 1]), abs=1e-6)


def test_canonical_pivots_lie_between_bridge_and_tip_on_the_cheeks_and_at_the_chin():
    top, right, bottom, _ = CANONICAL_PIVOTS
    assert NOSE[0][1] < top[1] < NOSE[-1][1]
    assert right[0] == pytest.approx(1, abs=0.05)
    assert bottom == pytest.approx(CANONICAL_JAW[8])


@pytest.mark.parametrize("unit", [5, 33, 400])
@pytest.mark.parametrize("roll", [-40, 0, 40])
def test_a_unit_is_half_the_faces_width(unit, roll):
    landmarks = turn(canonical_landmarks() * np.float32(unit), roll)
    assert unit_length(find_pivots(landmarks)) == pytest.approx(unit, rel=0.001)


@pytest.mark.parametrize("yaw", YAWS)
def test_a_turn_of_the_head_does_not_change_the_unit(make_landmarks, yaw):
    expected = unit_length(find_pivots(make_landmarks()))
    assert unit_length(find_pivots(make_landmarks(yaw=yaw))) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("side", [36, 120, 2000])
@pytest.mark.parametrize("roll", [-30, 0, 30])
def test_maps_take_a_frontal_face_to_its_canonical_place(make_landmarks, fit, side, roll):
    landmarks = make_landmarks(side, roll)
    found = make_map(landmarks, fit)(landmarks[FITTED])
    assert found == pytest.approx(canonical_landmarks()[FITTED], abs=0.05)


@pytest.mark.parametrize("fit", FITS)
def test_maps_give_float32(make_landmarks, fit):
    found = make_map(make_landmarks(), fit)(np.float32([[60, 60], [70, 80]]))
    assert (found.shape, found.dtype) == ((2, 2), np.float32)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("roll", [-30, 0, 30])
def test_maps_bound_the_face_below_the_eyes(make_landmarks, fit, roll):
    landmarks = make_landmarks(roll=roll)
    low, high = make_map(landmarks, fit).bounds_px
    assert (low <= landmarks[:17].min(axis=0) + 0.01).all()
    assert (high >= landmarks[:17].max(axis=0) - 0.01).all()


@pytest.mark.parametrize("roll", [-30, 0, 30])
@pytest.mark.parametrize("yaw", [-35, 35])
def test_the_meshs_middle_follows_a_turned_heads_nose(make_landmarks, roll, yaw):
    landmarks = make_landmarks(roll=roll, yaw=yaw)
    found = make_map(landmarks, "mesh")(landmarks[[*range(27, 31), 8]])
    assert found[:, 0] == pytest.approx(0, abs=0.05)
    assert found[:, 1] == pytest.approx(canonical_landmarks()[[*range(27, 31), 8], 1], abs=0.1)


@pytest.mark.parametrize("yaw", [-35, 35])
def test_the_mesh_keeps_to_a_turned_heads_jaw_line(make_landmarks, yaw):
    landmarks = make_landmarks(yaw=yaw)
    assert make_map(landmarks, "mesh")(landmarks[:17]) == pytest.approx(CANONICAL_JAW, abs=0.12)


@pytest.mark.parametrize("protrusion", [0.0, 0.4])
@pytest.mark.parametrize("yaw", YAWS)
def test_rows_of_the_mesh_run_from_jaw_to_jaw(make_landmarks, yaw, protrusion):
    assert (np.diff(mesh_rows(make_landmarks(yaw=yaw), protrusion)[..., 0], axis=1) > 0).all()


@pytest.mark.parametrize("yaw", [-35, 35])
def test_the_mesh_is_crowded_where_the_face_turns_away(make_landmarks, yaw):
    steps = np.diff(mesh_rows(make_landmarks(yaw=yaw))[..., 0], axis=1)[:5]
    left, right = steps[:, :2].sum(axis=1), steps[:, 2:].sum(axis=1)
    assert ((left < right) == (yaw < 0)).all()


def test_rows_of_a_nose_beyond_the_cheek_end_at_the_clip(make_landmarks):
    landmarks = make_landmarks()
    landmarks[RIDGE, 0] = SIDE
    rows = mesh_rows(landmarks)[1:3, :, 0]  # those that end on the nose
    shares = (rows[:, 2] - rows[:, 0]) / (rows[:, 4] - rows[:, 0])
    assert shares == pytest.approx(1 - NEAREST_CHEEK, abs=1e-3)


@pytest.mark.parametrize("protrusion", [0.0, 0.4])
@pytest.mark.parametrize("roll", [0, 30])
@pytest.mark.parametrize("yaw", [-35, -20, 0, 20, 35])
def test_a_turned_heads_mesh_does_not_fold_over(make_landmarks, yaw, roll, protrusion):
    landmarks = make_landmarks(480, roll, yaw)
    low, high = landmarks[:17].min(axis=0), landmarks[:17].max(axis=0)
    x, y = np.meshgrid(np.linspace(low[0], high[0], 60), np.linspace(low[1], high[1], 60))
    units = make_map(landmarks, "mesh", protrusion)(np.stack([x, y], axis=-1).reshape(-1, 2)).reshape(60, 60, 2)
    across, down = np.diff(units, axis=1)[:-1], np.diff(units, axis=0)[:, :-1]
    turning = across[..., 0] * down[..., 1] - across[..., 1] * down[..., 0]
    jaw = landmarks[:17].reshape(-1, 1, 2)
    inside = np.array([[cv2.pointPolygonTest(jaw, (float(a), float(b)), False) > 0 for a, b in zip(*line, strict=True)]
                       for line in zip(x[:-1, :-1], y[:-1, :-1], strict=True)])  # fmt: skip
    assert inside.sum() > 500
    assert (turning[inside] > 0).all()


def test_a_mask_that_stands_off_leaves_a_turned_heads_nose_ridge(make_landmarks):
    landmarks = make_landmarks(yaw=25)
    close, off = (mesh_rows(landmarks, protrusion)[1, 2, 0] for protrusion in (0.0, 0.4))
    assert off > close + 1


@pytest.mark.parametrize("protrusion", [0.0, 0.4])
def test_a_mask_that_stands_off_a_frontal_face_stays_in_its_middle(make_landmarks, protrusion):
    assert mesh_rows(make_landmarks(), protrusion)[:, 2, 0] == pytest.approx(MIDDLE[0], abs=0.01)


def test_points_of_the_mesh_pair_units_with_pixels(make_landmarks):
    units, pixels = face_mesh(make_landmarks())
    assert units.shape == pixels.shape == (17 + 3 * ROWS, 2)
    assert units.dtype == pixels.dtype == np.float32


def test_a_homography_maps_pivots_to_their_canonical_place(make_landmarks):
    landmarks = make_landmarks(roll=15, yaw=25)
    pivots = find_pivots(landmarks)
    assert HomographyMap(landmarks, pivots)(pivots) == pytest.approx(CANONICAL_PIVOTS, abs=1e-3)


@pytest.mark.parametrize("roll", [0, 30])
@pytest.mark.parametrize("yaw", [-45, 45])
def test_a_homography_shows_no_ghost_beyond_its_horizon(make_landmarks, yaw, roll):
    landmarks = make_landmarks(480, roll, yaw)
    pivots = find_pivots(landmarks)
    x, y = np.meshgrid(np.arange(0, 2 * 480, 4) - 240.0, np.arange(0, 2 * 480, 4) - 240.0)
    units = HomographyMap(landmarks, pivots)(np.stack([x, y], axis=-1).reshape(-1, 2)).reshape(*x.shape, 2)
    on_mask = (np.abs(units[..., 0]) < 1) & (units[..., 1] > 0.2) & (units[..., 1] < 1.6)
    # 1: what is not on it, 2: the mask
    count, _ = cv2.connectedComponents(on_mask.astype(np.uint8))
    assert count == 2


@pytest.mark.parametrize(("yaw", "sign"), [(-30, -1), (0, 0), (30, 1)])
def test_yaw_is_positive_towards_the_right_of_the_picture(make_landmarks, yaw, sign):
    found, _ = head_turn(make_landmarks(yaw=yaw))
    assert abs(found) == pytest.approx(0.5 * abs(sign), abs=0.2)
    assert np.sign(round(found, 2)) == sign


@pytest.mark.parametrize("yaw", [-80, 80])
def test_yaw_ends_at_one(make_landmarks, yaw):
    assert head_turn(make_landmarks(yaw=yaw))[0] == np.sign(yaw)


@pytest.mark.parametrize("roll", [-30, 0, 30])
def test_roll_is_in_degrees_clockwise(make_landmarks, roll):
    assert head_turn(make_landmarks(roll=roll))[1] == pytest.approx(roll, abs=0.1)


@pytest.mark.parametrize("roll", [-30, 30])
def test_roll_does_not_look_like_yaw(make_landmarks, roll):
    assert head_turn(make_landmarks(roll=roll))[0] == pytest.approx(0, abs=0.01)
