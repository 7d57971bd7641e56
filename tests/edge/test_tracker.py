from dataclasses import replace

import numpy as np
import pytest

from maskfer_edge.contract import LABELS
from maskfer_edge.detector import Detection
from maskfer_edge.errors import InputError
from maskfer_edge.results import UNSURE
from maskfer_edge.tracker import Track, Tracker

BOX = (100, 100, 50, 50)


def face(box=BOX, label=0, score=5.0):
    scores = np.zeros(7, np.float32)
    scores[label] = 1
    return Detection(box, score), scores


def small(box=BOX):
    detection, scores = face(box)
    return replace(detection, readable=False), scores


def moved(dx, dy=0):
    return (BOX[0] + dx, BOX[1] + dy, BOX[2], BOX[3])


def update(tracker, frame, faces):
    """A frame in which the detector looks and each face found is classified."""
    tracker.detected(frame, [detection for detection, _ in faces])
    for track in tracker.shown():
        for detection, scores in faces:
            if track.seen == frame and track.box == detection.box:
                tracker.classified(track, frame, scores)
    return [result for result in tracker.results(frame) if result.box in [d.box for d, _ in faces]]


def numbers(results):
    return [result.track for result in results]


def test_a_face_that_moves_a_little_keeps_its_number():
    tracker = Tracker()
    assert [numbers(update(tracker, i, [face(moved(5 * i))])) for i in range(4)] == [[1]] * 4


def test_a_face_that_was_missed_is_covered_where_it_was_found_and_where_it_may_be():
    tracker = Tracker(coast=1)
    for frame in range(4):
        update(tracker, frame, [face(moved(10 * frame))])
    assert tracker.covered(3) == ()
    tracker.detected(8, [])
    (x, y, width, height), *others = tracker.covered(8)
    assert (x, y, height, others) == (BOX[0] + 30, BOX[1], BOX[3], [])
    assert width > BOX[2] + 20


def test_a_face_is_covered_for_longer_than_it_is_shown():
    tracker = Tracker(coast=1, patience=3)
    update(tracker, 0, [face()])
    seen = []
    for frame in range(1, 6):
        tracker.detected(frame, [])
        seen.append((len(tracker.results(frame)), len(tracker.covered(frame))))
    assert seen == [(1, 1), (0, 1), (0, 1), (0, 0), (0, 0)]


def test_between_detections_a_face_that_slowed_down_is_covered_where_it_was_found():
    tracker = Tracker()
    for frame in range(3):
        update(tracker, frame, [face(moved(20 * frame))])
    assert tracker.covered(2) == ()
    ((x, _, width, _),) = tracker.covered(4)
    assert (x, x + width) == (moved(40)[0], tracker.results(4)[0].box[0] + BOX[2])


def test_what_is_too_small_or_not_confirmed_is_covered_and_not_shown():
    tracker = Tracker(confirm=2)
    update(tracker, 0, [face(), small(moved(300))])
    assert (tracker.shown(), len(tracker.covered(0))) == ([], 2)
    update(tracker, 1, [face(), small(moved(300))])
    assert (numbers(tracker.results(1)), tracker.covered(1)) == ([1], (moved(300),))


def test_a_face_that_comes_near_is_read_from_then_on():
    tracker = Tracker()
    update(tracker, 0, [small()])
    assert not tracker.results(0)
    assert numbers(update(tracker, 1, [face()])) == [1]


@pytest.mark.parametrize("seen", ["far", "gone"])
def test_a_face_that_is_now_and_then_too_small_is_shown_as_one_that_is_missed_now_and_then(seen):
    tracker, shown = Tracker(coast=1), []
    for frame in range(6):
        found = [face()] if frame % 2 == 0 else [small()] if seen == "far" else []
        update(tracker, frame, found)
        shown.append(numbers(tracker.results(frame)))
    assert shown == [[1]] * 6


def test_what_a_face_showed_before_it_went_far_away_is_forgotten():
    tracker = Tracker(patience=3)
    update(tracker, 0, [face(label=1)])
    for frame in range(1, 6):
        update(tracker, frame, [small()])
    (result,) = update(tracker, 6, [face(label=2)])
    assert (result.track, result.expression, result.confidence) == (1, LABELS[2], 1.0)


def test_after_a_loss_faces_are_new_ones_and_covered_until_they_are_found():
    tracker = Tracker(confirm=2)
    for frame in range(2):
        update(tracker, frame, [face(label=1)])
    tracker.lose()
    assert (tracker.results(2), tracker.covered(2)) == ((), (BOX,))
    # a single find may be a false one, after a loss too
    assert (update(tracker, 3, [face(label=2)]), tracker.covered(3)) == ([], (BOX,))
    (result,) = update(tracker, 4, [face(label=2)])
    assert (result.track, result.expression, result.confidence) == (2, LABELS[2], 1.0)


def test_a_loss_does_not_shorten_how_long_a_face_is_covered():
    tracker = Tracker(patience=3)
    update(tracker, 0, [face()])
    tracker.lose()
    covered = []
    for frame in range(1, 6):
        tracker.detected(frame, [])
        covered.append(len(tracker.covered(frame)))
    assert covered == [1, 1, 1, 0, 0]


def test_faces_that_are_only_covered_are_expected_if_asked():
    tracker = Tracker(coast=1, patience=3)
    update(tracker, 0, [face()])
    for frame in (1, 2):
        tracker.detected(frame, [])
    assert (tracker.expected(3, tracker.coast), tracker.expected(3, tracker.patience)) == ([], [BOX])


def test_a_face_elsewhere_gets_a_new_number():
    tracker = Tracker()
    update(tracker, 0, [face()])
    assert numbers(update(tracker, 1, [face(moved(300))])) == [2]


def test_two_faces_keep_their_numbers_in_any_order():
    tracker = Tracker()
    update(tracker, 0, [face(), face(moved(200))])
    assert {r.track: r.box[0] for r in update(tracker, 1, [face(moved(205)), face(moved(3))])} == {1: 103, 2: 305}


def test_the_greater_overlap_wins():
    tracker = Tracker()
    update(tracker, 0, [face()])
    assert {r.track: r.box[0] for r in update(tracker, 1, [face(moved(20)), face(moved(2))])} == {1: 102, 2: 120}


@pytest.mark.parametrize(("missed", "number"), [(3, 1), (4, 2)])
def test_an_unseen_face_is_forgotten_after_the_patience(missed, number):
    tracker = Tracker(patience=3)
    update(tracker, 0, [face()])
    for frame in range(missed):
        tracker.detected(1 + frame, [])
    assert numbers(update(tracker, 9, [face()])) == [number]


@pytest.mark.parametrize(("missed", "shown"), [(0, 1), (1, 1), (2, 0)])
def test_a_face_that_was_missed_once_is_still_shown(missed, shown):
    tracker = Tracker(coast=1)
    update(tracker, 0, [face()])
    for frame in range(missed):
        tracker.detected(1 + frame, [])
    assert len(tracker.results(3)) == shown


def test_between_detections_a_box_moves_on_as_it_moved():
    tracker = Tracker()
    for frame in range(0, 40, 2):
        update(tracker, frame, [face(moved(4 * frame))])
    assert tracker.results(41)[0].box[0] == pytest.approx(BOX[0] + 4 * 41, abs=1)


def test_a_fast_face_is_matched_where_it_should_be():
    """Its boxes overlap too little from one detection to the next."""
    tracker = Tracker()
    for frame, x in enumerate((0, 20, 45, 75, 110, 150, 195, 240, 285)):
        found = update(tracker, frame, [face(moved(x))])
    assert numbers(found) == [1]


def test_another_label_takes_over_only_when_it_leads():
    tracker = Tracker(newest_share=1, lead=0.05)
    shown = []
    for frame, happy in enumerate((0.4, 0.52, 0.53, 0.48, 0.47)):
        scores = np.array([1 - happy, 0, 0, happy, 0, 0, 0], np.float32)
        (result,) = update(tracker, frame, [(Detection(BOX, 5.0), scores)])
        shown.append((result.expression, result.confidence))
    assert [label for label, _ in shown] == ["Angry", "Angry", "Happy", "Happy", "Angry"]
    assert shown[1][1] == pytest.approx(0.48)


def test_the_face_that_waits_longest_comes_first():
    tracker = Tracker()
    tracker.detected(0, [face()[0], face(moved(200))[0]])
    first, second = tracker.shown()
    tracker.classified(first, 0, face()[1])
    assert tracker.shown() == [second, first]


def test_a_face_that_was_never_classified_has_no_result():
    tracker = Tracker()
    tracker.detected(0, [face()[0]])
    assert tracker.results(0) == ()


def test_forgotten_faces_get_new_numbers():
    tracker = Tracker()
    update(tracker, 0, [face()])
    tracker.forget()
    assert numbers(update(tracker, 1, [face()])) == [2]


def test_a_number_is_not_given_twice():
    tracker = Tracker(patience=0)
    update(tracker, 0, [face()])
    update(tracker, 1, [])
    assert numbers(update(tracker, 2, [face()])) == [2]


def test_scores_are_smoothed_by_the_newest_share():
    tracker = Tracker(newest_share=0.25)
    update(tracker, 0, [face(label=0)])
    scores = update(tracker, 1, [face(label=3)])[0].scores
    assert (scores["Angry"], scores["Happy"]) == (0.75, 0.25)


def test_a_newest_share_of_one_does_not_smooth():
    tracker = Tracker(newest_share=1)
    update(tracker, 0, [face(label=0)])
    assert update(tracker, 1, [face(label=3)])[0].scores["Happy"] == 1


def test_smoothed_scores_sum_to_one():
    rng = np.random.default_rng(0)
    tracker = Tracker()
    for frame in range(20):
        result = update(tracker, frame, [(Detection(BOX, 1.0), rng.dirichlet(np.ones(7)).astype(np.float32))])[0]
    assert sum(result.scores.values()) == pytest.approx(1, abs=1e-3)


def test_one_odd_frame_does_not_change_the_expression():
    tracker = Tracker()
    for frame in range(5):
        update(tracker, frame, [face(label=3)])
    assert update(tracker, 5, [face(label=0)])[0].expression == "Happy"


def test_a_result_tells_box_score_and_best_label():
    result = update(Tracker(), 0, [face(label=6, score=2.34567)])[0]
    assert (result.box, result.detector_score, result.expression, result.confidence) == (BOX, 2.346, LABELS[6], 1.0)


def test_no_faces_give_no_results():
    assert update(Tracker(), 0, []) == []


@pytest.mark.parametrize(("least", "expected"), [(0.0, "Angry"), (0.5, "Angry"), (0.61, UNSURE)])
def test_below_the_least_confidence_a_face_is_unsure(least, expected):
    scores = np.array([0.6, 0.4, 0, 0, 0, 0, 0], np.float32)
    (found,) = update(Tracker(min_confidence=least), 0, [(Detection(BOX, 5.0), scores)])
    assert (found.expression, found.confidence) == (expected, pytest.approx(0.6))


def test_the_smoothed_score_is_what_must_be_sure():
    tracker = Tracker(min_confidence=0.7)
    assert [update(tracker, i, [face(label=int(i >= 2))])[0].expression for i in range(5)] == [
        "Angry", "Angry", UNSURE, UNSURE, "Disgust",
    ]  # fmt: skip


@pytest.mark.parametrize("least", [-0.1, 1.1, float("nan")])
def test_a_least_confidence_that_is_no_share_is_refused(least):
    with pytest.raises(InputError, match="within 0 and 1"):
        Tracker(min_confidence=least)


def test_a_face_is_shown_when_it_was_found_often_enough():
    tracker = Tracker(confirm=2)
    assert [len(update(tracker, frame, faces)) for frame, faces in enumerate(([face()], [face()], [face()]))] == [
        0,
        1,
        1,
    ]


def test_a_false_face_that_comes_once_is_never_shown():
    tracker = Tracker(confirm=2)
    shown = [update(tracker, frame, [face()] if frame == 2 else []) for frame in range(20)]
    assert not any(shown)


def test_a_crowd_is_placed_once_a_detection_and_not_once_a_pair(monkeypatch):
    placed = []
    box_at = Track.box_at
    monkeypatch.setattr(Track, "box_at", lambda track, frame: placed.append(track) or box_at(track, frame))
    tracker = Tracker()
    crowd = [Detection((60 * column, 60 * row, 50, 50), 1.0) for row in range(8) for column in range(8)]
    for frame in range(2):
        tracker.detected(frame, crowd)
    assert (len(tracker.shown()), len(placed)) == (64, 64)
