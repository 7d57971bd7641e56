import json

import pytest

from maskfer_edge.detector import Detection
from maskfer_edge.errors import InputError
from maskfer_edge.scenes import GroundTruth, f1_by_threshold, match_boxes, read_ground_truth, scenes_info

FACE, NEAR, AWAY = (100, 60, 40, 48), (102, 61, 40, 48), (200, 150, 40, 48)


@pytest.fixture
def scenes(tmp_path):
    """Two scenes, the second one's face known."""
    (tmp_path / "scenes").mkdir()
    for number in range(2):
        (tmp_path / f"scenes/{number:05}.jpg").touch()
    (tmp_path / "scenes.json").write_text('{"validation": ["scenes/00001.jpg"]}')
    (tmp_path / "boxes.csv").write_text("image,label,xmin,ymin,xmax,ymax\nscenes/00001.jpg,with_mask,190,125,240,185\n")
    return tmp_path


def test_scenes_and_what_is_known_of_them(scenes):
    assert scenes_info(scenes) == {"validation": ["scenes/00001.jpg"]}
    ground_truths = read_ground_truth(scenes)
    assert ground_truths == {"scenes/00000.jpg": ([], []), "scenes/00001.jpg": ([(190, 125, 50, 60)], [])}
    assert list(ground_truths) == sorted(ground_truths)


@pytest.mark.parametrize("row", ["scenes/00002.jpg,with_mask,1,1,9,9", "scenes/00000.jpg,with_mask,1,1", "x"])
def test_damaged_boxes_are_named(scenes, row):
    (scenes / "boxes.csv").write_text(f"image,label,xmin,ymin,xmax,ymax\n{row}\n")
    with pytest.raises(InputError, match=r"is damaged.*trainer build-scenes"):
        read_ground_truth(scenes)


@pytest.mark.parametrize("info", [[], {"validation": 3}, {"validation": [[1]]}])
def test_a_damaged_description_is_named(scenes, info):
    (scenes / "scenes.json").write_text(json.dumps(info))
    with pytest.raises(InputError, match=r"scenes\.json is damaged"):
        scenes_info(scenes)


def test_what_is_no_scenes_is_named(tmp_path):
    with pytest.raises(InputError, match=r"holds no readable scenes\.json; make it with: trainer build-scenes"):
        scenes_info(tmp_path)


def test_a_second_box_on_a_face_is_false():
    hits, false = match_boxes([FACE, NEAR], [FACE], [])
    assert (hits.tolist(), false.tolist()) == ([0, -1], [False, True])


def test_a_box_finds_the_face_that_it_overlaps_most_of_those_left():
    hits, _ = match_boxes([NEAR, FACE], [FACE, NEAR], [])
    assert hits.tolist() == [1, 0]


def test_a_box_on_a_face_that_is_not_judged_is_neither_right_nor_wrong():
    hits, false = match_boxes([FACE, AWAY], [], [NEAR])
    assert (hits.tolist(), false.tolist()) == ([-1, -1], [False, True])


def test_f1_counts_right_false_and_missed_faces_at_each_threshold():
    """At 0.3 one of two faces is found beside a false one; at 0.5 one is found; at 0.9 nothing."""
    found = [[Detection(AWAY, 0.4), Detection(FACE, 0.8)], []]
    ground_truths = [
        GroundTruth([FACE], []),
        GroundTruth([FACE, (0, 0, 9, 9)], []),
    ]  # the last is smaller than what the edge gives
    assert f1_by_threshold(found, ground_truths, 240, [0.3, 0.5, 0.9]).tolist() == [2 / 4, 2 / 3, 0]


def test_no_faces_and_no_boxes_have_no_f1():
    assert f1_by_threshold([[]], [GroundTruth([], [])], 240, [0.5]).tolist() == [0]
