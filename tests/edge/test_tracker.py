import numpy as np
import pytest

from maskfer_edge.contract import LABELS
from maskfer_edge.detector import Detection
from maskfer_edge.errors import InputError
from maskfer_edge.results import UNSURE
from maskfer_edge.tracker import Tracker, overlap

BOX = (100, 100, 50, 50)


def face(box=BOX, label=0, score=5.0):
    scores = np.zeros(7, np.float32)
    scores[label] = 1
    return Detection(box, score), scores


def moved(dx, dy=0):
    return (BOX[0] + dx, BOX[1] + dy, BOX[2], BOX[3])


def numbers(results):
    return [result.track for result in results]


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


def test_a_face_that_moves_a_little_keeps_its_number():
    tracker = Tracker()
    assert [numbers(tracker.update(i, [face(moved(5 * i))])) for i in range(4)] == [[1]] * 4


def test_a_face_elsewhere_gets_a_new_number():
    tracker = Tracker()
    tracker.update(0, [face()])
    assert numbers(tracker.update(1, [face(moved(300))])) == [2]


def test_two_faces_keep_their_numbers_in_any_order():
    tracker = Tracker()
    tracker.update(0, [face(), face(moved(200))])
    assert numbers(tracker.update(1, [face(moved(205)), face(moved(3))])) == [2, 1]


def test_the_greater_overlap_wins():
    tracker = Tracker()
    tracker.update(0, [face()])
    assert numbers(tracker.update(1, [face(moved(20)), face(moved(2))])) == [2, 1]


@pytest.mark.parametrize(("gap", "number"), [(10, 1), (11, 2)])
def test_an_unseen_face_is_forgotten_after_the_patience(gap, number):
    tracker = Tracker(patience=10)
    tracker.update(0, [face()])
    assert numbers(tracker.update(gap, [face()])) == [number]


def test_a_number_is_not_given_twice():
    tracker = Tracker(patience=0)
    tracker.update(0, [face()])
    tracker.update(1, [])
    assert numbers(tracker.update(2, [face()])) == [2]


def test_scores_are_smoothed_by_the_newest_share():
    tracker = Tracker(newest_share=0.25)
    tracker.update(0, [face(label=0)])
    scores = tracker.update(1, [face(label=3)])[0].scores
    assert (scores["Angry"], scores["Happy"]) == (0.75, 0.25)


def test_a_newest_share_of_one_does_not_smooth():
    tracker = Tracker(newest_share=1)
    tracker.update(0, [face(label=0)])
    assert tracker.update(1, [face(label=3)])[0].scores["Happy"] == 1


def test_smoothed_scores_sum_to_one():
    rng = np.random.default_rng(0)
    tracker = Tracker()
    for frame in range(20):
        result = tracker.update(frame, [(Detection(BOX, 1.0), rng.dirichlet(np.ones(7)).astype(np.float32))])[0]
    assert sum(result.scores.values()) == pytest.approx(1, abs=1e-3)


def test_one_odd_frame_does_not_change_the_expression():
    tracker = Tracker()
    for frame in range(5):
        tracker.update(frame, [face(label=3)])
    assert tracker.update(5, [face(label=0)])[0].expression == "Happy"


def test_a_result_tells_box_score_and_best_label():
    result = Tracker().update(0, [face(label=6, score=2.34567)])[0]
    assert (result.box, result.detector_score, result.expression, result.confidence) == (BOX, 2.346, LABELS[6], 1.0)


def test_no_faces_give_no_results():
    assert Tracker().update(0, []) == ()


@pytest.mark.parametrize(("least", "expected"), [(0.0, "Angry"), (0.5, "Angry"), (0.61, UNSURE)])
def test_below_the_least_confidence_a_face_is_unsure(least, expected):
    scores = np.array([0.6, 0.4, 0, 0, 0, 0, 0], np.float32)
    (found,) = Tracker(min_confidence=least).update(0, [(Detection(BOX, 5.0), scores)])
    assert (found.expression, found.confidence) == (expected, pytest.approx(0.6))


def test_the_smoothed_score_is_what_must_be_sure():
    tracker = Tracker(min_confidence=0.7)
    assert [tracker.update(i, [face(label=int(i >= 2))])[0].expression for i in range(5)] == [
        "Angry", "Angry", UNSURE, UNSURE, "Disgust",
    ]  # fmt: skip


@pytest.mark.parametrize("least", [-0.1, 1.1, float("nan")])
def test_a_least_confidence_that_is_no_share_is_refused(least):
    with pytest.raises(InputError, match="within 0 and 1"):
        Tracker(min_confidence=least)
