from __future__ import annotations

import numpy as np
import pytest

from maskfer_trainer.masks import KINDS, OUTLINES, draw_mask, smooth_outline

all_kinds = pytest.mark.parametrize("kind", KINDS)


@all_kinds
def test_levels_are_rgba_from_0_to_1(kind):
    for level in draw_mask(kind).levels:
        assert (level.dtype, level.shape[2]) == (np.float32, 4)
        assert 0 <= level.min() <= level.max() <= 1


@all_kinds
def test_colours_are_multiplied_by_alpha(kind):
    for level in draw_mask(kind).levels:
        assert (level[..., :3] <= level[..., 3:] + 1e-5).all()


@all_kinds
def test_each_level_is_half_the_one_before(kind):
    levels = draw_mask(kind).levels
    assert len(levels) > 3
    assert [(b.shape[0], b.shape[1]) for b in levels[1:]] == [(a.shape[0] // 2, a.shape[1] // 2) for a in levels[:-1]]


@all_kinds
@pytest.mark.parametrize("points", ["anchors", "outline"])
def test_points_lie_on_the_canvas(kind, points):
    template = draw_mask(kind)
    height, width = template.levels[0].shape[:2]
    found = getattr(template, points)
    assert ((found >= 0) & (found < (width, height))).all()


@all_kinds
def test_the_middle_is_opaque_and_the_corners_clear(kind):
    alpha = draw_mask(kind).levels[0][..., 3]
    middle = draw_mask(kind).anchors.mean(axis=0).astype(int)
    assert alpha[middle[1], middle[0]] == 1
    assert alpha[0, 0] == alpha[-1, -1] == 0


@pytest.mark.parametrize(("dark", "bright"), [("surgical-black", "surgical-white"), ("cloth-black", "kn95-white")])
def test_black_is_darker_than_white(dark, bright):
    def mean(kind: str) -> float:
        picture = draw_mask(kind).levels[2]
        return float(picture[..., :3].sum() / picture[..., 3].sum() / 3)

    assert mean(dark) < 0.25
    assert mean(bright) > 0.7


@pytest.mark.parametrize(("kind", "channel"), [("cloth-red", 0), ("surgical-blue", 2)])
def test_colours_are_in_rgb_order(kind, channel):
    picture = draw_mask(kind).levels[2]
    assert picture[..., :3].sum(axis=(0, 1)).argmax() == channel


@pytest.mark.parametrize("shape", OUTLINES)
def test_outlines_are_symmetric(shape):
    xs = np.sort(smooth_outline(OUTLINES[shape])[:, 0])
    assert np.allclose(xs, -xs[::-1], atol=1e-5)


def test_an_unknown_kind_is_refused():
    with pytest.raises(KeyError, match="tartan"):
        draw_mask("tartan")
