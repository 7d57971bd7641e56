from __future__ import annotations

import numpy as np
import pytest

from maskfer_trainer import distractors
from maskfer_trainer.distractors import draw_distractors

BOXES = [(100, 60, 60, 70), (250, 10, 30, 30)]


def scene():
    return np.full((240, 320), 90, np.uint8)


@pytest.mark.parametrize("seed", range(60))
def test_distractors_keep_away_from_faces(seed):
    image = scene()
    draw_distractors(image, BOXES, 3, np.random.default_rng(seed))
    changed = image != 90
    for x, y, w, h in BOXES:
        assert not changed[y - 4 : y + h + 4, x - 4 : x + w + 4].any()


def test_distractors_are_drawn_and_differ():
    images = [scene() for _ in range(40)]
    for seed, image in enumerate(images):
        draw_distractors(image, BOXES, 1, np.random.default_rng(seed))
    drawn = [(image != 90).sum() for image in images]
    assert np.median(drawn) > 100
    assert len({image.tobytes() for image in images}) > 35


def test_the_same_generator_draws_the_same():
    images = [scene(), scene()]
    for image in images:
        draw_distractors(image, BOXES, 3, np.random.default_rng(3))
    np.testing.assert_array_equal(*images)


def test_where_no_place_is_free_nothing_is_drawn():
    image = scene()
    draw_distractors(image, [(0, 0, 320, 240)], 3, np.random.default_rng(0))
    assert (image == 90).all()


@pytest.mark.parametrize("kind", sorted({kind.__name__ for kind in distractors.KINDS}))
@pytest.mark.parametrize("under", [0, 128, 255])
def test_each_kind_stands_out(kind, under):
    for seed in range(10):
        part = np.full((40, 44), under, np.uint8)
        distractors._draw(part, getattr(distractors, kind), (0, 0, 44, 40), np.random.default_rng(seed))
        assert np.ptp(part) > 15


@pytest.mark.parametrize("box", [(-5, 10, 20, 16), (300, 200, 18, 16)])
def test_a_distractor_at_the_edge_is_clipped(box):
    for kind in distractors.KINDS:
        image = scene()
        distractors._draw(image, kind, box, np.random.default_rng(0))
        outside = image.copy()
        outside[max(0, box[1]) : box[1] + box[3], max(0, box[0]) : box[0] + box[2]] = 90
        assert (outside == 90).all()
