from __future__ import annotations

import math
from importlib.resources import files

import cv2
import numpy as np
import pytest

from maskfer_edge import rescorer
from maskfer_edge.detector import Detection
from maskfer_edge.errors import ModelError
from maskfer_edge.learned_detector import DEFAULT_DETECTOR
from maskfer_edge.model_file import unpack_detector
from maskfer_edge.rescorer import (
    CONFIDENT_SCORE,
    CONTEXT,
    DEVIATION,
    MAX_GAIN,
    MAX_RESCORED,
    MEAN,
    SIDE,
    Rescorer,
    combine_scores,
    context_crop,
)

RNG = np.random.default_rng(0)


class ByBrightness:
    """An interpreter for which a face is as likely as its crop is bright."""

    def __init__(self, in_type=np.float32, in_quantization=(0.0, 0), shape=(1, SIDE, SIDE, 1), out=(1, 1)):
        self.details = [
            {"index": 0, "shape": np.array(shape), "dtype": in_type, "quantization": in_quantization},
            {"index": 1, "shape": np.array(out), "dtype": np.float32, "quantization": (0.0, 0)},
        ]
        self.asked = 0

    def get_input_details(self):
        return self.details[:1]

    def get_output_details(self):
        return self.details[1:]

    def set_tensor(self, index, value):
        self.seen = value.copy()

    def invoke(self):
        self.asked += 1

    def get_tensor(self, index):
        return np.full((1, 1), self.seen.mean() / 255, np.float32)


def as_bright_as_the_middle(image, box):
    left, top, width, height = box
    return np.full((SIDE, SIDE), image[top + height // 2, left + width // 2], np.uint8)


@pytest.fixture
def bright(monkeypatch):
    """A rescorer for which a face is as likely as the middle of its box is bright."""
    interpreter = ByBrightness()
    monkeypatch.setattr(rescorer, "open_interpreter", lambda *_: interpreter)
    monkeypatch.setattr(rescorer, "context_crop", as_bright_as_the_middle)
    return Rescorer(b""), interpreter


def alike(crop, part):
    """Whether a crop shows a part of a picture, in whatever light."""
    return crop.shape == part.shape and np.corrcoef(crop.ravel(), part.ravel())[0, 1] > 0.999


def test_a_crop_is_a_square_round_the_box_and_wider():
    picture = RNG.integers(60, 180, (200, 300), dtype=np.uint8)
    crop = context_crop(picture, (108, 58, 32, 32))
    assert (crop.shape, crop.dtype, CONTEXT * 32) == ((SIDE, SIDE), np.uint8, SIDE)
    assert alike(crop, picture[50:98, 100:148])


def test_an_oblong_box_gives_the_square_of_its_area():
    picture = RNG.integers(60, 180, (200, 300), dtype=np.uint8)
    assert alike(context_crop(picture, (124 - 8, 74 - 32, 16, 64)), picture[50:98, 100:148])


@pytest.mark.parametrize("gain", [0.5, 0.7, 1.0])
def test_light_and_contrast_are_evened_out(gain):
    picture = cv2.GaussianBlur(RNG.normal(110, 400, (120, 120)), (0, 0), 4).clip(0, 255)
    crop = context_crop((picture * gain).astype(np.uint8), (30, 30, 60, 60))
    assert crop.mean() == pytest.approx(MEAN, abs=3)
    assert crop.std() == pytest.approx(DEVIATION, abs=3)


def test_a_sensors_noise_is_not_made_a_picture():
    dark = (8 + RNG.normal(0, 1, (120, 120))).clip(0, 255).astype(np.uint8)
    assert context_crop(dark, (30, 30, 32, 32)).std() < 2 * MAX_GAIN


@pytest.mark.parametrize("level", [0, 90, 255])
def test_a_plain_picture_gives_a_plain_crop(level):
    assert (context_crop(np.full((100, 150), level, np.uint8), (40, 30, 50, 50)) == MEAN).all()


@pytest.mark.parametrize("box", [(-40, -40, 80, 80), (260, 160, 80, 80)])
def test_beyond_the_edge_a_crop_is_grey(box):
    crop = context_crop(RNG.integers(0, 256, (200, 300), dtype=np.uint8), box)
    beyond, within = (crop[:20, :20], crop[26:, 26:]) if box[0] < 0 else (crop[-20:, -20:], crop[:22, :22])
    assert (beyond == MEAN).all()
    assert within.std() > 10


def test_colours_count_as_grey():
    colour = RNG.integers(0, 256, (120, 160, 3), dtype=np.uint8)
    grey = cv2.cvtColor(colour, cv2.COLOR_BGR2GRAY)
    assert np.array_equal(context_crop(colour, (40, 30, 60, 60)), context_crop(grey, (40, 30, 60, 60)))


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (149, 99, 1, 1), (-5000, -5000, 10000, 10000), (75, 50, 1, 400)])
def test_odd_boxes_give_crops(box):
    assert context_crop(np.full((100, 150), 9, np.uint8), box).shape == (SIDE, SIDE)


def test_a_box_that_lies_off_the_picture_gives_grey():
    assert (context_crop(np.zeros((100, 150), np.uint8), (500, 500, 20, 20)) == MEAN).all()


@pytest.mark.parametrize(
    ("score", "face_probability", "expected"), [(0.5, 0.5, 0.5), (0.8, 0.8, 0.8), (0.2, 0.8, 0.5), (0.5, 0.9, 0.75)]
)
def test_both_scores_count_alike(score, face_probability, expected):
    assert combine_scores(score, face_probability) == pytest.approx(expected)
    assert combine_scores(face_probability, score) == pytest.approx(expected)


@pytest.mark.parametrize("pair", [(0.0, 1.0), (1.0, 1.0), (0.0, 0.0), (math.nan, 1.0), (1.0, math.nan)])
def test_no_score_is_quite_sure_and_none_is_no_number(pair):
    assert 0 < combine_scores(*pair) < 1


def test_what_is_no_number_is_no_face():
    assert combine_scores(0.5, math.nan) < 0.1


def test_a_second_look_changes_scores_and_order(bright):
    picture = np.full((100, 300), 20, np.uint8)
    picture[:, 150:] = 230
    dark, light = Detection((40, 30, 30, 30), 0.6), Detection((220, 30, 30, 30), 0.3)
    found = bright[0](picture, picture, [dark, light], 0.0)
    assert [face.box for face in found] == [light.box, dark.box]
    assert found[0].score == pytest.approx(combine_scores(0.3, 230 / 255))
    assert bright[0](picture, picture, [dark, light], 0.5) == found[:1]


def test_a_face_is_given_once(bright):
    twice = [Detection((100, 30, 40, 40), 0.7), Detection((118, 30, 40, 40), 0.6)]
    picture = np.full((100, 300), 230, np.uint8)
    assert [face.box for face in bright[0](picture, picture, twice, 0.1)] == [(100, 30, 40, 40)]


@pytest.mark.parametrize(("left", "count"), [(100, 1), (98, 1), (97, 2)], ids=["inside", "four fifths", "less"])
def test_what_lies_in_a_face_is_no_other_one(bright, left, count):
    face, eye = Detection((100, 10, 60, 60), 0.7), Detection((left, 20, 10, 10), 0.6)
    picture = np.full((100, 300), 230, np.uint8)
    assert len(bright[0](picture, picture, [face, eye], 0.1)) == count


def test_a_large_box_round_a_surer_face_stays(bright):
    small, large = Detection((120, 20, 10, 10), 0.7), Detection((100, 10, 60, 60), 0.6)
    picture = np.full((100, 300), 230, np.uint8)
    assert [face.box for face in bright[0](picture, picture, [large, small], 0.1)] == [small.box, large.box]


def test_a_crowd_costs_no_more_than_its_surest(bright):
    many = [Detection((20 * number, 10, 10, 10), 0.7 - number / 100) for number in range(MAX_RESCORED + 5)]
    picture = np.full((40, 600), 230, np.uint8)
    found = bright[0](picture, picture, many, 0.1)
    assert (len(found), bright[1].asked) == (MAX_RESCORED, MAX_RESCORED)


def test_what_the_detector_is_sure_of_is_not_looked_at(bright):
    sure, unsure = Detection((100, 30, 40, 40), CONFIDENT_SCORE), Detection((20, 30, 40, 40), CONFIDENT_SCORE - 0.01)
    picture = np.full((100, 300), 20, np.uint8)
    found = bright[0](picture, picture, [sure, unsure], 0.0)
    assert found[0] == sure
    assert (found[1].box, bright[1].asked) == (unsure.box, 1)
    assert found[1].score < unsure.score


def test_what_the_detector_is_sure_of_must_reach_the_least_score_too(bright):
    picture = np.full((100, 300), 230, np.uint8)
    assert bright[0](picture, picture, [Detection((100, 30, 40, 40), 0.85)], 0.9) == []


@pytest.mark.parametrize(("side", "seen"), [(126, (300, 400)), (130, (150, 200))])
def test_what_is_large_is_looked_at_in_the_smaller_picture(bright, monkeypatch, side, seen):
    cropped = []
    monkeypatch.setattr(
        rescorer, "context_crop", lambda image, box: cropped.append((image, box)) or np.zeros((SIDE, SIDE), np.uint8)
    )
    picture = cv2.GaussianBlur(RNG.normal(110, 600, (300, 400, 3)), (0, 0), 6).clip(0, 255).astype(np.uint8)
    smaller = cv2.resize(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), (200, 150), interpolation=cv2.INTER_AREA)
    box = (100, 80, side, side)
    bright[0](picture, smaller, [Detection(box, 0.7)], 0.0)
    ((image, there),) = cropped
    assert image.shape[:2] == seen
    expected = context_crop(picture, box)
    # half a pixel aside, as the smaller picture has whole ones
    assert np.corrcoef(context_crop(image, there).ravel(), expected.ravel())[0, 1] > 0.98


def test_a_picture_that_was_enlarged_for_the_network_is_looked_at_itself(bright, monkeypatch):
    cropped = []
    monkeypatch.setattr(
        rescorer, "context_crop", lambda image, box: cropped.append(image.shape) or np.zeros((SIDE, SIDE), np.uint8)
    )
    small, larger = np.zeros((90, 120), np.uint8), np.zeros((180, 240), np.uint8)
    bright[0](small, larger, [Detection((20, 10, 70, 70), 0.7)], 0.0)
    assert cropped == [(90, 120)]


def test_integers_are_put_in_as_the_file_asks(monkeypatch):
    interpreter = ByBrightness(np.int8, (1.0, -128))
    monkeypatch.setattr(rescorer, "open_interpreter", lambda *_: interpreter)
    Rescorer(b"").face_probability(np.full((SIDE, SIDE), 200, np.uint8))
    assert (interpreter.seen.dtype, interpreter.seen.min(), interpreter.seen.max()) == (np.int8, 72, 72)


@pytest.mark.parametrize("odd", [{"shape": (1, 32, 32, 1)}, {"out": (1, 2)}, {"in_type": np.int16}])
def test_other_tensors_are_refused(monkeypatch, odd):
    monkeypatch.setattr(rescorer, "open_interpreter", lambda *_: ByBrightness(**odd))
    with pytest.raises(ModelError, match=r"second network"):
        Rescorer(b"", name="mine.tflite")


def test_the_bundled_detector_looks_twice():
    content = (files("maskfer_edge") / "data" / DEFAULT_DETECTOR).read_bytes()
    model = unpack_detector(content, "bundled")
    face_probability = Rescorer(model.rescorer).face_probability
    assert face_probability(np.full((SIDE, SIDE), 128, np.uint8)) < 0.5
    assert len(content) <= 400_000


def test_of_a_whole_crowd_the_rest_is_looked_at_too_and_not_readable(bright):
    many = [Detection((20 * number, 10, 10, 10), 0.7 - number / 100) for number in range(MAX_RESCORED + 5)]
    picture = np.full((40, 600), 230, np.uint8)
    found = bright[0](picture, picture, many, 0.1, rescore_all=True)
    assert bright[1].asked == len(found) == MAX_RESCORED + 5
    assert [face.readable for face in found] == [True] * MAX_RESCORED + [False] * 5
    assert found[:MAX_RESCORED] == bright[0](picture, picture, many, 0.1)


def test_the_rest_of_a_crowd_hides_nothing_that_is_readable(bright):
    picture = np.full((40, 600), 100, np.uint8)
    many = [Detection((20 * number, 10, 10, 10), 0.7 - number / 100) for number in range(MAX_RESCORED)]
    left, top, width, height = many[-1].box
    picture[:, left + 6 :] = 250  # so that the one beyond ends as the surest
    many.append(Detection((left + 4, top, width, height), 0.5))
    found = bright[0](picture, picture, many, 0.0, rescore_all=True)
    assert found == bright[0](picture, picture, many, 0.0)
