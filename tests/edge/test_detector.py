import cv2
import numpy as np
import pytest

from maskfer_edge.detector import Detection, FakeDetector, HaarDetector, open_detector, overlap
from maskfer_edge.errors import DependencyError, InputError
from maskfer_edge.sources import open_camera


@pytest.fixture(scope="module")
def haar():
    return HaarDetector()


@pytest.fixture(scope="module")
def portrait():
    """The demonstration clip's first frame; its face is about 165 pixels wide at (155, 95)."""
    with open_camera("demo") as camera:
        return camera.read().image


def contains(box, point):
    x, y, w, h = box
    return x < point[0] < x + w and y < point[1] < y + h


def test_the_masked_face_is_found(haar, portrait):
    assert [contains(found.box, (238, 177)) for found in haar(portrait)] == [True]


def test_the_box_is_about_the_face(haar, portrait):
    _, _, width, height = haar(portrait)[0].box
    assert 130 < width < 220 and width == height


def test_the_score_counts_agreeing_windows(haar, portrait):
    assert haar(portrait)[0].score >= haar.min_neighbors


def test_a_grey_picture_works_as_well(haar, portrait):
    assert haar(cv2.cvtColor(portrait, cv2.COLOR_BGR2GRAY)) == haar(portrait)


def test_a_black_picture_holds_no_face(haar):
    assert haar(np.zeros((480, 640, 3), np.uint8)) == []


def test_boxes_of_a_large_picture_are_in_its_own_pixels(haar, portrait):
    scale = 4000 / portrait.shape[1]
    large = cv2.resize(portrait, (4000, round(portrait.shape[0] * scale)))
    found = haar(large)
    assert any(contains(f.box, (238 * scale, 177 * scale)) and f.box[2] > 100 * scale for f in found)


def test_boxes_are_plain_integers(haar, portrait):
    assert [type(value) for value in haar(portrait)[0].box] == [int] * 4


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 1), (1, 4000, 3), (4000, 1, 3)])
def test_odd_pictures_hold_no_face(haar, shape):
    assert haar(np.zeros(shape, np.uint8)) == []


def test_a_detector_opens_by_name():
    assert isinstance(open_detector("haar"), HaarDetector)


def test_an_unknown_detector_is_refused_with_the_names():
    with pytest.raises(InputError, match="'yolo'; known: haar"):
        open_detector("yolo")


def test_a_missing_cascade_names_the_apt_line(monkeypatch, tmp_path):
    monkeypatch.setattr("maskfer_edge.detector.Path", lambda _: tmp_path)
    with pytest.raises(DependencyError, match="sudo apt install -y opencv-data"):
        HaarDetector()


def test_the_fake_finds_what_it_is_told():
    told = [Detection((1, 2, 3, 4), 5.0)]
    assert FakeDetector(told)(np.zeros((1, 1, 3), np.uint8)) == told


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 1.0),
        ((0, 0, 10, 10), (5, 0, 10, 10), 1 / 3),
        ((0, 0, 10, 10), (2, 2, 5, 5), 0.25),
        ((0, 0, 10, 10), (10, 0, 10, 10), 0.0),
        ((0, 0, 10, 10), (50, 50, 10, 10), 0.0),
    ],
)
def test_overlap_is_intersection_over_union(a, b, expected):
    assert overlap(a, b) == overlap(b, a) == pytest.approx(expected)


def test_near_a_known_face_it_is_found_again(haar, portrait):
    (everywhere,) = haar(portrait)
    x, y, w, h = everywhere.box
    (near,) = haar(portrait, [(x + 8, y - 6, w, h)])
    assert overlap(near.box, everywhere.box) > 0.7


def test_away_from_it_nothing_is_found(haar, portrait):
    assert haar(portrait, [(0, 250, 60, 60)]) == []


def test_a_face_of_quite_another_size_is_not_the_one_that_is_looked_for(haar, portrait):
    (everywhere,) = haar(portrait)
    x, y, w, h = everywhere.box
    assert haar(portrait, [(x + w // 2 - 20, y + h // 2 - 20, 40, 40)]) == []


def test_two_places_that_overlap_give_one_face(haar, portrait):
    (everywhere,) = haar(portrait)
    x, y, w, h = everywhere.box
    assert len(haar(portrait, [(x, y, w, h), (x + 20, y, w, h)])) == 1


@pytest.mark.parametrize("box", [(-500, -500, 50, 50), (5000, 10, 50, 50), (479, 359, 1, 1), (-20, 300, 60, 60)])
def test_a_place_outside_the_picture_is_no_error(haar, portrait, box):
    assert haar(portrait, [box]) == []
