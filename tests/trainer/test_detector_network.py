from __future__ import annotations

import math

import numpy as np
import pytest

from maskfer_edge.learned_detector import decode
from maskfer_trainer.detector_network import build_detector, concatenate_outputs, loss
from maskfer_trainer.detector_targets import MAP_WH, STRIDE, targets
from maskfer_trainer.networks import multiply_accumulates


@pytest.fixture(scope="module")
def detector():
    return build_detector()


def test_the_maps_have_a_cell_for_eight_pixels(detector):
    shapes = {name: tuple(output.shape) for name, output in detector.output.items()}
    assert shapes == {"heat": (None, 30, 40, 1), "boxes": (None, 30, 40, 4)}
    assert MAP_WH == (40, 30)


def test_it_is_small(detector):
    assert detector.count_params() < 200_000
    assert multiply_accumulates(detector) < 65e6


def test_the_joined_maps_are_heat_and_boxes(detector):
    scene = np.random.default_rng(0).uniform(0, 255, (1, 240, 320, 1)).astype(np.float32)
    maps = detector.predict_on_batch(scene)
    both = concatenate_outputs(detector).predict_on_batch(scene)
    np.testing.assert_allclose(both, np.concatenate([maps["heat"], maps["boxes"]], axis=-1), atol=1e-6)


BOXES = [(100, 60, 40, 50), (3, 3, 16, 20), (250, 180, 64, 56), (161, 120, 24, 24)]


def test_targets_are_read_back_as_the_boxes_that_they_were_made_of():
    wanted = targets(BOXES, [])
    found, scores = decode(wanted[..., 0], wanted[..., 3:], STRIDE, 0.9)
    assert sorted(map(tuple, found.round().astype(int).tolist())) == sorted(BOXES)
    assert (scores == 1).all()


def test_a_centre_is_marked_once_a_face():
    assert targets(BOXES, [])[..., 2].sum() == len(BOXES)


def test_heat_falls_off_with_the_size_of_the_face():
    near = [targets([(160 - side // 2, 120 - side // 2, side, side)], [])[15, 22, 0] for side in (16, 64, 160)]
    assert near[0] < 0.01 < near[1] < near[2] < 1


def test_in_what_is_ignored_nothing_is_judged():
    wanted = targets([(10, 10, 40, 40)], [(200, 100, 40, 40)])
    assert wanted[15, 27, 1] == 0
    assert wanted[3, 3, 1] == 1


def test_a_scene_without_faces_has_no_heat():
    assert not targets([], [])[..., 0].any()


def test_the_right_maps_cost_nothing_and_wrong_ones_do():
    wanted = targets(BOXES, [])[None]
    sure = np.where(wanted[..., 2:3] == 1, 1.0, 0.0).astype(np.float32)
    right = float(loss(wanted, sure, wanted[..., 3:]))
    missed = float(loss(wanted, np.zeros_like(sure), wanted[..., 3:]))
    elsewhere = sure.copy()
    elsewhere[0, 29, 39] = 1
    false = float(loss(wanted, elsewhere, wanted[..., 3:]))
    misplaced = float(loss(wanted, sure, wanted[..., 3:] + 0.5))
    assert right == pytest.approx(0, abs=0.01)
    assert min(missed, false, misplaced) > 0.5
    assert misplaced == pytest.approx(right + 4 * 0.5, abs=1e-3)


def test_false_heat_in_what_is_ignored_costs_nothing():
    wanted = targets([(10, 10, 40, 40)], [(200, 100, 40, 40)])[None]
    heat = np.zeros((1, 30, 40, 1), np.float32)
    before = float(loss(wanted, heat, wanted[..., 3:]))
    heat[0, 15, 27] = 0.9
    assert float(loss(wanted, heat, wanted[..., 3:])) == pytest.approx(before, abs=1e-3)


def test_at_first_it_expects_few_faces(detector):
    heat = detector.predict_on_batch(np.full((1, 240, 320, 1), 127, np.float32))["heat"]
    assert math.log10(float(heat.mean())) == pytest.approx(-2, abs=0.7)
