from __future__ import annotations

import numpy as np
import pytest

from maskfer_trainer import decoys
from maskfer_trainer.decoys import draw_clothes, draw_decoys

BOXES = [(100, 60, 60, 70), (250, 10, 30, 30)]


def scene():
    return np.full((240, 320), 90, np.uint8)


@pytest.mark.parametrize("seed", range(60))
def test_decoys_keep_away_from_faces(seed):
    image = scene()
    draw_decoys(image, BOXES, 3, np.random.default_rng(seed))
    changed = image != 90
    for x, y, w, h in BOXES:
        assert not changed[y - 4 : y + h + 4, x - 4 : x + w + 4].any()


def test_decoys_are_drawn_and_differ():
    images = [scene() for _ in range(40)]
    for seed, image in enumerate(images):
        draw_decoys(image, BOXES, 1, np.random.default_rng(seed))
    drawn = [(image != 90).sum() for image in images]
    assert np.median(drawn) > 100
    assert len({image.tobytes() for image in images}) > 35


def test_the_same_generator_draws_the_same():
    images = [scene(), scene()]
    for image in images:
        draw_decoys(image, BOXES, 3, np.random.default_rng(3))
    np.testing.assert_array_equal(*images)


def test_where_no_place_is_free_nothing_is_drawn():
    image = scene()
    draw_decoys(image, [(0, 0, 320, 240)], 3, np.random.default_rng(0))
    assert (image == 90).all()


@pytest.mark.parametrize("kind", sorted({kind.__name__ for kind in decoys.KINDS}))
@pytest.mark.parametrize("under", [0, 128, 255])
def test_each_kind_stands_out(kind, under):
    for seed in range(10):
        part = np.full((40, 44), under, np.uint8)
        decoys._draw(part, getattr(decoys, kind), (0, 0, 44, 40), np.random.default_rng(seed))
        assert np.ptp(part) > 15


@pytest.mark.parametrize("box", [(-5, 10, 20, 16), (300, 200, 18, 16)])
def test_a_decoy_at_the_edge_is_clipped(box):
    for kind in decoys.KINDS:
        image = scene()
        decoys._draw(image, kind, box, np.random.default_rng(0))
        outside = image.copy()
        outside[max(0, box[1]) : box[1] + box[3], max(0, box[0]) : box[0] + box[2]] = 90
        assert (outside == 90).all()


FACE = (130, 40, 40, 50)


def clothed(seed, face=FACE, others=()):
    image = scene()
    draw_clothes(image, face, [face, *others], np.random.default_rng(seed))
    return image


@pytest.mark.parametrize("seed", range(40))
def test_clothes_are_drawn_below_a_face_and_not_on_it(seed):
    image = clothed(seed)
    x, y, w, h = FACE
    below = image[y + h : y + 2 * h, x : x + w]
    assert (below != 90).mean() > 0.9
    assert (image[: y + h] == 90).all()


def test_clothes_differ_and_go_by_the_generator():
    assert len({clothed(seed).tobytes() for seed in range(30)}) == 30
    np.testing.assert_array_equal(clothed(3), clothed(3))
    contrasts = [np.ptp(clothed(seed)[100:140, 130:170]) for seed in range(30)]
    assert np.median(contrasts) > 40


def test_no_clothes_are_drawn_on_another_face():
    assert (clothed(0, others=[(120, 120, 30, 30)]) == 90).all()


@pytest.mark.parametrize("face", [(130, 195, 40, 42), (-10, 40, 40, 50), (290, 150, 40, 50), (130, -20, 40, 50)])
def test_clothes_are_cut_to_the_scene(face):
    image = clothed(1, face)
    assert image.shape == scene().shape
    assert (image != 90).any() == (face[1] + face[3] < 236)
