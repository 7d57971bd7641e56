from __future__ import annotations

import numpy as np
import pytest

from maskfer_trainer.augment import augment, cut_out, mix_up


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


def test_cut_out_lays_one_grey_over_the_lower_half_alone(faces):
    changed = cut_out(faces, np.random.default_rng(0), 1.0)
    assert np.array_equal(changed[:, :24], faces[:, :24])
    for after in changed:
        assert len(set(after[37:, 12:36].ravel().tolist())) == 1


def test_cut_out_covers_its_share(faces):
    many = np.tile(faces, (100, 1, 1))
    changed = (cut_out(many, np.random.default_rng(0), 0.25) != many).any(axis=(1, 2))
    assert changed.mean() == pytest.approx(0.25, abs=0.05)


def test_cut_out_leaves_its_input_and_does_nothing_for_no_share(faces):
    before = faces.copy()
    assert np.array_equal(cut_out(faces, np.random.default_rng(0), 0.0), before)
    cut_out(faces, np.random.default_rng(0), 1.0)
    assert np.array_equal(faces, before)


def test_mix_up_gives_shares_of_two():
    faces = np.arange(6, dtype=np.float32)[:, None, None, None] * np.ones((1, 2, 2, 1), np.float32)
    targets, weights = np.eye(6, dtype=np.float32), np.ones(6, dtype=np.float32)
    mixed, mixed_targets, weighed = mix_up(faces, targets, weights, np.random.default_rng(0), 0.4)
    assert (mixed.shape, mixed_targets.shape, weighed.tolist()) == (faces.shape, targets.shape, pytest.approx([1] * 6))
    assert mixed[:, 0, 0, 0] == pytest.approx(mixed_targets @ np.arange(6), abs=1e-5)
    assert ((mixed_targets > 0).sum(axis=1) <= 2).all()
    assert (mixed_targets.max(axis=1) < 1).any()


def test_mix_up_mixes_the_weighted_losses():
    faces, targets = np.arange(6, dtype=np.float32)[:, None, None, None], np.eye(6, dtype=np.float32)
    weights = np.array([1, 2, 3, 4, 5, 6], dtype=np.float32)
    mixed, mixed_targets, weighed = mix_up(faces, targets, weights, np.random.default_rng(0), 1.0)
    plain = mix_up(faces, targets, np.ones(6, np.float32), np.random.default_rng(0), 1.0)
    assert np.array_equal(mixed, plain[0])
    # weight × target is the mix of weight × target of both
    assert weighed[:, None] * mixed_targets == pytest.approx(plain[1] * weights, abs=1e-5)
    assert mixed_targets.sum(axis=1) == pytest.approx([1] * 6, abs=1e-5)
