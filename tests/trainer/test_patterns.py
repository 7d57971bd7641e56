from __future__ import annotations

import numpy as np
import pytest

from maskfer_trainer.patterns import PATTERNS, byte_layer, draw_tile, signed_layer

SIZES = (32, 128, 512)
NX, NY, SECOND, WEAVE = range(4)
every_pattern = pytest.mark.parametrize("pattern", PATTERNS)
every_size = pytest.mark.parametrize("unit_px", SIZES)


@pytest.mark.parametrize("pattern", ["", *PATTERNS])
@every_size
def test_tiles_are_four_bytes_a_pixel(pattern, unit_px):
    tile = draw_tile(pattern, unit_px)
    assert (tile.shape, tile.dtype) == ((unit_px, unit_px, 4), np.uint8)


@pytest.mark.parametrize("pattern", ["", *PATTERNS])
@pytest.mark.parametrize("axis", [0, 1], ids=["down", "across"])
@every_size
def test_tiles_repeat_without_a_seam(pattern, axis, unit_px):
    tile = draw_tile(pattern, unit_px).astype(int)
    within = np.abs(np.diff(tile, axis=axis)).mean(axis=1 - axis)
    seam = np.abs(tile.take(0, axis) - tile.take(-1, axis)).mean(axis=0)
    # a print may change colour just there, as it does elsewhere in the tile
    assert (seam <= 1.25 * within.max(axis=0) + 1).all()


@every_pattern
@every_size
def test_patterns_print_some_of_the_cloth_and_leave_some(pattern, unit_px):
    printed = draw_tile(pattern, unit_px)[..., SECOND] / 255
    assert 0.1 <= printed.mean() <= 0.9
    assert printed.min() < 0.1
    assert printed.max() > 0.9


@every_pattern
def test_a_pattern_is_the_same_at_each_size(pattern):
    large = draw_tile(pattern, 512)[..., SECOND].astype(float)
    reduced = large.reshape(128, 4, 128, 4).mean(axis=(1, 3))
    assert np.abs(draw_tile(pattern, 128)[..., SECOND] - reduced).mean() < 12


@every_size
def test_plain_cloth_is_not_printed(unit_px):
    assert draw_tile("", unit_px)[..., SECOND].max() == 0


def test_patterns_differ():
    printed = [draw_tile(pattern, 64)[..., SECOND].astype(int) for pattern in PATTERNS]
    assert all(np.abs(a - b).mean() > 20 for i, a in enumerate(printed) for b in printed[:i])


@every_size
@pytest.mark.parametrize("layer", [NX, NY])
def test_creases_lean_both_ways_alike(unit_px, layer):
    normals = draw_tile("", unit_px)[..., layer].astype(float) - 128
    assert abs(normals.mean()) < 8
    assert normals.std() > 20


@pytest.mark.parametrize(("unit_px", "woven"), [(128, False), (512, True)])
def test_threads_show_close_up_only(unit_px, woven):
    assert (draw_tile("", unit_px)[..., WEAVE].std() > 0) == woven


def test_an_unknown_pattern_is_refused():
    with pytest.raises(KeyError, match="tartan"):
        draw_tile("tartan", 32)


@pytest.mark.parametrize(("value", "expected"), [(-3, 0), (0.4, 0), (127.6, 128), (300, 255)])
def test_bytes_are_rounded_and_clipped(value, expected):
    assert byte_layer(np.array([value]))[0] == expected


@pytest.mark.parametrize(("value", "expected"), [(-2, 0), (-1, 1), (0, 128), (1, 255), (2, 255)])
def test_signed_values_have_128_for_0(value, expected):
    assert signed_layer(np.array([value]))[0] == expected
