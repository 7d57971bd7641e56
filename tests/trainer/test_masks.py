from __future__ import annotations

import numpy as np
import pytest

from maskfer_trainer.masks import CANVAS_ORIGIN, CANVAS_SIZE, KINDS, canvas_px, draw_mask, smooth_outline
from maskfer_trainer.patterns import PATTERNS
from maskfer_trainer.reliefs import RELIEFS

all_kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
# 2.7 times these is whole, so that the middle of the face is the middle of the canvas
even_sizes = pytest.mark.parametrize("unit_px", [40, 260])
STRAPLESS = ("fashion", "bandana")


def border(picture: np.ndarray) -> np.ndarray:
    return np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])


def area(cover: np.ndarray, unit_px: int) -> float:
    """Square face units."""
    return float(cover.sum()) / 255 / unit_px**2


@all_kinds
@pytest.mark.parametrize("unit_px", [32, 256])
def test_layers_are_four_bytes_a_pixel_of_the_canvas(kind, unit_px):
    layers = draw_mask(kind, unit_px)
    side = round(CANVAS_SIZE * unit_px)
    for layer in (layers.form, layers.trim):
        assert (layer.shape, layer.dtype) == ((side, side, 4), np.uint8)
    assert layers.albedo is None


@all_kinds
@pytest.mark.parametrize("unit_px", [32, 256])
def test_cloth_and_straps_end_before_the_canvas_does(kind, unit_px):
    layers = draw_mask(kind, unit_px)
    assert border(layers.form[..., 0]).max() == 0
    assert border(layers.trim[..., 0]).max() == 0


@all_kinds
@pytest.mark.parametrize("unit_px", [32, 256])
def test_cloth_lies_over_nose_cheeks_mouth_and_chin(kind, unit_px):
    points = np.float32([(0, 0.53), (-0.5, 0.9), (0.5, 0.9), (0, 1.1), (0, 1.5)])
    x, y = np.round(canvas_px(points, unit_px)).astype(int).T
    assert draw_mask(kind, unit_px).form[y, x, 0].tolist() == [255] * 5


@all_kinds
@even_sizes
def test_cover_is_symmetric(kind, unit_px):
    cover = draw_mask(kind, unit_px).form[..., 0].astype(int)
    mirrored = np.abs(cover - cover[:, ::-1])
    assert mirrored.sum() < 0.01 * cover.sum()


@all_kinds
@even_sizes
def test_the_right_side_faces_right_and_the_left_side_left(kind, unit_px):
    form = draw_mask(kind, unit_px).form.astype(int)
    on_cloth, middle = form[..., 0] > 127, form.shape[1] // 2
    right, left = on_cloth.copy(), on_cloth.copy()
    right[:, :middle], left[:, middle:] = False, False
    assert form[right][:, 1].mean() > 128 + 12
    assert form[left][:, 1].mean() < 128 - 12


@all_kinds
@pytest.mark.parametrize("unit_px", [32, 64])
def test_drawings_of_all_sizes_cover_the_same_area(kind, unit_px):
    expected = area(draw_mask(kind, 256).form[..., 0], 256)
    assert area(draw_mask(kind, unit_px).form[..., 0], unit_px) == pytest.approx(expected, rel=0.03)


@all_kinds
@pytest.mark.parametrize("unit_px", [32, 64])
def test_straps_of_all_sizes_cover_about_the_same_area(kind, unit_px):
    expected = area(draw_mask(kind, 256).trim[..., 0], 256)
    assert area(draw_mask(kind, unit_px).trim[..., 0], unit_px) == pytest.approx(expected, rel=0.3)


@all_kinds
def test_only_kinds_that_are_their_own_loops_have_no_straps(kind):
    assert (draw_mask(kind, 64).trim[..., 0].max() > 0) == (kind.name not in STRAPLESS)


@all_kinds
def test_only_the_moulded_mask_has_a_valve(kind):
    assert (draw_mask(kind, 64).trim[..., 2].max() > 127) == (kind.name == "cone")


@all_kinds
def test_creases_fade_towards_the_rim(kind):
    layers = draw_mask(kind, 64)
    assert layers.trim[..., 3][layers.form[..., 0] == 0].max() == 0
    assert layers.trim[..., 3].max() == 255


@all_kinds
def test_tone_is_near_the_cloths_own(kind):
    layers = draw_mask(kind, 128)
    assert layers.form[..., 3][layers.form[..., 0] > 127].mean() == pytest.approx(128, abs=8)


@all_kinds
def test_the_same_drawing_is_not_drawn_twice(kind):
    assert draw_mask(kind, 32) is draw_mask(kind, 32)


@all_kinds
def test_outlines_are_symmetric(kind):
    points = smooth_outline(kind.outline)
    mirrored = points * np.float32([-1, 1])
    distances = np.linalg.norm(points[:, None] - mirrored[None], axis=-1)
    assert distances.min(axis=1).max() < 1e-5


@all_kinds
def test_outlines_are_closed_without_long_edges(kind):
    points = smooth_outline(kind.outline)
    edges = np.linalg.norm(points - np.roll(points, 1, axis=0), axis=1)
    assert edges[0] < 0.15
    assert edges.max() < 0.15


@all_kinds
def test_outlines_round_off_corners(kind):
    points = smooth_outline(kind.outline)
    ahead, behind = np.roll(points, -1, axis=0) - points, points - np.roll(points, 1, axis=0)
    cosines = (ahead * behind).sum(axis=1) / np.linalg.norm(ahead, axis=1) / np.linalg.norm(behind, axis=1)
    assert np.degrees(np.arccos(cosines.clip(-1, 1))).max() < 25


def test_the_canvas_begins_at_its_origin():
    corner = canvas_px(-np.float32([CANVAS_ORIGIN]), 100)
    assert corner == pytest.approx(np.float32([[-0.5, -0.5]]), abs=1e-4)


def test_every_kind_has_a_relief_of_its_own():
    assert set(RELIEFS) == set(KINDS)


@all_kinds
def test_kinds_are_described_in_a_few_words(kind):
    assert 0 < len(kind.about) < 60


@all_kinds
def test_palettes_are_colours(kind):
    for hue, saturation, value in (middle for middle, _ in kind.palette):
        assert 0 <= hue < 360
        assert 0 <= saturation <= 1
        assert 0 < value <= 1


def test_some_kinds_are_printed_with_patterns():
    assert PATTERNS
    assert {kind.name for kind in KINDS.values() if kind.patterned} >= {"cloth", "bandana"}
