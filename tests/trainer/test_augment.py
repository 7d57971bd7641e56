from __future__ import annotations

import numpy as np
import pytest

from maskfer_trainer.augment import augment


@pytest.fixture
def faces(vary) -> np.ndarray:
    return np.stack([vary(seed) for seed in range(8)])


def test_the_same_seed_gives_the_same_faces(faces):
    assert np.array_equal(augment(faces, np.random.default_rng(5)), augment(faces, np.random.default_rng(5)))


def test_another_seed_gives_other_faces(faces):
    assert not np.array_equal(augment(faces, np.random.default_rng(5)), augment(faces, np.random.default_rng(6)))


def test_shape_and_dtype_stay(faces):
    changed = augment(faces, np.random.default_rng(0))
    assert (changed.shape, changed.dtype) == (faces.shape, np.uint8)


def test_the_input_is_not_changed(faces):
    before = faces.copy()
    augment(faces, np.random.default_rng(0))
    assert np.array_equal(faces, before)


def test_every_face_changes_but_keeps_its_content(faces):
    for before, after in zip(faces, augment(faces, np.random.default_rng(0)), strict=True):
        assert not np.array_equal(before, after)
        likeness = max(np.corrcoef(before.ravel(), side.ravel())[0, 1] for side in (after, after[:, ::-1]))
        assert likeness > 0.4


@pytest.mark.parametrize("count", [0, 1])
def test_few_faces_are_fine(faces, count):
    assert augment(faces[:count], np.random.default_rng(0)).shape == (count, 48, 48)


@pytest.mark.parametrize("level", [0, 255])
def test_light_is_clipped_and_does_not_wrap(level):
    changed = augment(np.full((20, 48, 48), level, dtype=np.uint8), np.random.default_rng(0)).astype(int)
    assert np.abs(changed - level).max() <= 36


def test_without_strength_faces_are_flipped_alone(faces):
    for before, after in zip(faces, augment(faces, np.random.default_rng(0), strength=0), strict=True):
        assert min(np.abs(before.astype(int) - side).max() for side in (after, after[:, ::-1])) <= 1
