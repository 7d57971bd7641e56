from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from maskfer_edge.errors import DependencyError, InputError
from maskfer_trainer import faces
from maskfer_trainer.faces import FaceFinder

JAW, EYES, MOUTH = slice(0, 17), slice(36, 48), slice(48, 68)
# The portrait's face in FER2013's framing, by hand.
BOX = (166, 62, 116, 116)

pytestmark = pytest.mark.usefixtures("one_predictor")


@pytest.fixture(scope="module")
def grey(portrait) -> np.ndarray:
    """The upper left of the portrait: (300, 400) uint8."""
    return np.ascontiguousarray(cv2.cvtColor(portrait, cv2.COLOR_BGR2GRAY)[:300, :400])


@pytest.fixture
def find():
    return FaceFinder("detected", "all")


def pair(grey: np.ndarray) -> np.ndarray:
    """Two faces, the right one half as large again."""
    canvas = np.full((450, 1000), 120, dtype=np.uint8)
    canvas[100:400, :400] = grey
    canvas[:, 400:] = cv2.resize(grey, (600, 450), interpolation=cv2.INTER_CUBIC)
    return canvas


def test_a_crop_is_one_face_and_no_detector_is_asked(grey_face):
    (face,) = FaceFinder("all")(grey_face)
    assert (face.box, face.score) == ((0, 0, 128, 128), None)
    assert face.landmarks.shape == (68, 2)


def test_a_crop_need_not_be_square(grey_face):
    (face,) = FaceFinder("all")(cv2.resize(grey_face, (60, 80)))
    assert face.box == (0, 0, 60, 80)


def test_a_face_is_detected_where_it_is(find, grey):
    (face,) = find(grey)
    assert face.box == pytest.approx(BOX, abs=5)
    assert face.score > 1


def test_landmarks_of_a_detected_face_are_pixels_of_the_whole_picture(find, grey, astronaut_landmarks):
    (face,) = find(grey)
    assert np.linalg.norm(face.landmarks - np.add(astronaut_landmarks, (160, 60)), axis=1).mean() < 4


def test_a_detected_face_is_framed_as_fer2013_frames_faces(find, grey):
    (face,) = find(grey)
    x, y, w, h = face.box
    within = (face.landmarks - (x, y)) / w
    assert w == h
    assert np.ptp(within[JAW, 0]) == pytest.approx(2 * 1.05 / 2.4, abs=0.08)  # 2.1 of 2.4 face units
    assert within[JAW, 0].mean() == pytest.approx(0.5, abs=0.05)
    assert within[EYES, 1].mean() == pytest.approx(0.38, abs=0.06)
    assert within[MOUTH, 1].mean() == pytest.approx(0.78, abs=0.06)


def test_a_frame_is_2_4_face_units_wide(monkeypatch, grey, make_landmarks):
    monkeypatch.setattr(faces, "LandmarkPredictor", lambda: lambda *_: make_landmarks(300))
    (face,) = FaceFinder("detected")(grey)
    assert face.box[2] == pytest.approx(2.4 * 0.28 * 300, abs=3)


def test_a_frame_is_centred_on_a_symmetric_face(monkeypatch, grey, make_landmarks):
    monkeypatch.setattr(faces, "LandmarkPredictor", lambda: lambda *_: make_landmarks(300))
    (face,) = FaceFinder("detected")(grey)
    assert face.box[0] + face.box[2] / 2 == 300 / 2


@pytest.mark.parametrize(("dx", "dy"), [(37, 0), (0, 53), (120, 80)])
def test_a_moved_face_is_found_moved_as_far(find, grey, dx, dy):
    (there,) = find(cv2.copyMakeBorder(grey, dy, 0, dx, 0, cv2.BORDER_REPLICATE))
    x, y, w, h = find(grey)[0].box
    assert there.box == pytest.approx((x + dx, y + dy, w, h), abs=5)


def test_a_box_may_reach_beyond_the_picture(find, grey):
    (face,) = find(np.ascontiguousarray(grey[78:, 175:]))
    assert face.box[1] < 0
    assert face.box[2] == pytest.approx(BOX[2], abs=8)


@pytest.mark.parametrize("scale", [0.6, 2.0, 9.0])
def test_small_faces_are_enlarged_and_large_pictures_reduced(find, grey, scale):
    sized = cv2.resize(grey[20:220, 120:320], None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    (face,) = find(sized)
    assert face.box == pytest.approx([scale * v for v in (BOX[0] - 120, BOX[1] - 20, *BOX[2:])], abs=6 * scale)


@pytest.mark.parametrize(("which", "count"), [("all", 2), ("largest", 1)])
def test_the_largest_face_comes_first(grey, which, count):
    found = FaceFinder("detected", which)(pair(grey))
    assert len(found) == count
    assert found[0].box == pytest.approx((400 + 1.5 * BOX[0], 1.5 * BOX[1], 1.5 * BOX[2], 1.5 * BOX[3]), abs=9)


@pytest.mark.parametrize("protocol", ["all", "detected"])
@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.zeros((48, 48)), "blank"),
        (np.full((48, 48), 255), "blank"),
        (np.random.default_rng(0).integers(100, 104, (48, 48)), "blank"),
        (np.random.default_rng(0).integers(0, 256, (23, 48)), "too small: under 24 pixels"),
        (np.random.default_rng(0).integers(0, 256, (48, 1)), "too small"),
    ],
    ids=["black", "white", "fog", "low", "thin"],
)
def test_what_can_show_no_face_is_refused(protocol, image, reason):
    with pytest.raises(InputError, match=reason):
        FaceFinder(protocol)(image.astype(np.uint8))


@pytest.mark.parametrize("shape", [(100, 100), (24, 24), (30, 900)])
def test_noise_is_no_detected_face(find, shape):
    with pytest.raises(InputError, match="no face detected"):
        find(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize("protocol", ["all", "detected"])
def test_implausible_landmarks_are_refused(monkeypatch, grey, make_landmarks, protocol):
    upside_down = np.add(make_landmarks(100)[::-1], (170, 70))
    monkeypatch.setattr(faces, "LandmarkPredictor", lambda: lambda *_: upside_down.astype(np.float32))
    with pytest.raises(InputError, match="implausible landmarks"):
        FaceFinder(protocol)(grey)


def test_a_face_whose_landmarks_are_implausible_does_not_lose_the_others(monkeypatch, grey):
    predictor = faces.LandmarkPredictor()

    def predict(image, box):
        return predictor(image, box) if box[0] < 400 else np.zeros((68, 2), dtype=np.float32)

    monkeypatch.setattr(faces, "LandmarkPredictor", lambda: predict)
    (face,) = FaceFinder("detected", "all")(pair(grey))
    assert face.box == pytest.approx((BOX[0], 100 + BOX[1], *BOX[2:]), abs=5)


def test_threads_take_turns_at_the_detector(monkeypatch, grey):
    class Detector:
        inside = most = 0

        def run(self, *_):
            self.inside += 1
            time.sleep(0.01)
            self.most = max(self.most, self.inside)
            self.inside -= 1
            return [], [], []

    detector = Detector()
    monkeypatch.setattr("dlib.get_frontal_face_detector", lambda: detector)
    find = FaceFinder("detected")
    with ThreadPoolExecutor(4) as pool:
        looks = [pool.submit(find, grey) for _ in range(8)]
    assert all("no face" in str(look.exception()) for look in looks)
    assert detector.most == 1


def test_missing_dlib_gives_the_pip_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "dlib", None)
    with pytest.raises(DependencyError, match=r"pip install 'maskfer\[trainer\]'"):
        FaceFinder("detected")
