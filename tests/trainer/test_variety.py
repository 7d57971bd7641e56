from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, fields, replace

import numpy as np
import pytest

from maskfer_trainer.masks import KINDS
from maskfer_trainer.patterns import PATTERNS
from maskfer_trainer.rendering import WORN, Wearing
from maskfer_trainer.variety import PATTERN_SIZE, SHIFT, SIZE, TOP, TURN, draw_wearing

ALL = tuple(KINDS.values())
NAMES = [f"train/happy/{i}.png" for i in range(200)]
every_seed = pytest.mark.parametrize("seed", [0, 7])


def draw(name: str = "a.png", kinds=ALL, worn=tuple(WORN), seed: int = 0, plain: bool = False):
    return draw_wearing(kinds, worn, seed, name, plain)


def read_back(wearing: Wearing) -> Wearing:
    read = json.loads(json.dumps(asdict(wearing)))
    return Wearing(**{key: tuple(value) if isinstance(value, list) else value for key, value in read.items()})


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("name", NAMES[:5])
def test_the_same_seed_and_name_give_the_same_choice(name, plain):
    assert draw(name, plain=plain) == draw(name, plain=plain)


def test_names_give_choices_of_their_own():
    wearings = [draw(name)[1] for name in NAMES]
    assert len(set(wearings)) == len(NAMES)


def test_another_seed_gives_another_choice():
    assert sum(draw(name, seed=0) == draw(name, seed=1) for name in NAMES) == 0


def test_choices_do_not_depend_on_order():
    forwards = [draw(name) for name in NAMES]
    assert [draw(name) for name in NAMES[::-1]][::-1] == forwards


@every_seed
@pytest.mark.parametrize("plain", [False, True])
def test_all_kinds_are_chosen_about_as_often(seed, plain):
    counts = Counter(draw(name, seed=seed, plain=plain)[0].name for name in NAMES)
    assert set(counts) == set(KINDS)
    assert min(counts.values()) > 8


@every_seed
@pytest.mark.parametrize("plain", [False, True])
def test_all_ways_of_wearing_are_chosen_about_as_often(seed, plain):
    counts = Counter(draw(name, seed=seed, plain=plain)[1].worn for name in NAMES)
    assert set(counts) == set(WORN)
    assert min(counts.values()) > 45


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("names", [("cone",), ("kn95", "cloth")])
def test_only_kinds_given_are_chosen(names, plain):
    kinds = [KINDS[name] for name in names]
    assert {draw(name, kinds, plain=plain)[0].name for name in NAMES} == set(names)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("worn", [("properly",), ("under-nose", "chin")])
def test_only_ways_of_wearing_given_are_chosen(worn, plain):
    assert {draw(name, worn=worn, plain=plain)[1].worn for name in NAMES} == set(worn)


@pytest.mark.parametrize("name", NAMES[:20])
def test_plain_leaves_all_else_as_drawn(name):
    kind, wearing = draw(name, plain=True)
    assert wearing == Wearing(colour=kind.palette[0][0], worn=wearing.worn, creases=0.0)


def test_plain_chooses_the_same_kind_and_way():
    for name in NAMES:
        (kind, wearing), (plain_kind, plain_wearing) = draw(name), draw(name, plain=True)
        assert (plain_kind, plain_wearing.worn) == (kind, wearing.worn)


RANGES = {
    "top": TOP,
    "size": SIZE,
    "turn": (-TURN, TURN),
    "pattern_size": PATTERN_SIZE,
    "creases": (0.1, 1.0),
    "seed": (0, 2**31 - 1),
}


@pytest.mark.parametrize("field", RANGES)
def test_numbers_fill_their_range(field):
    low, high = RANGES[field]
    drawn = [getattr(draw(name)[1], field) for name in NAMES]
    assert low <= min(drawn) < low + 0.1 * (high - low)
    assert high - 0.1 * (high - low) < max(drawn) <= high


@pytest.mark.parametrize("axis", [0, 1])
def test_shifts_fill_their_range(axis):
    drawn = [draw(name)[1].shift[axis] for name in NAMES]
    assert -SHIFT <= min(drawn) < -0.8 * SHIFT
    assert 0.8 * SHIFT < max(drawn) <= SHIFT


@pytest.mark.parametrize("field", ["colour", "second"])
def test_colours_are_hue_saturation_and_value(field):
    for name in NAMES:
        hue, saturation, value = getattr(draw(name)[1], field)
        assert 0 <= hue <= 360
        assert 0 <= saturation <= 1
        assert 0 <= value <= 1


@pytest.mark.parametrize("kind", ALL, ids=KINDS)
def test_colours_come_from_the_palette(kind):
    for name in NAMES:
        colour = draw(name, [kind])[1].colour
        near = []
        for middle, stray in kind.palette:
            hue = abs((colour[0] - middle[0] + 180) % 360 - 180)
            others = [abs(c - m) for c, m in zip(colour[1:], middle[1:], strict=True)]
            near.append(all(o <= s + 0.051 for o, s in zip((hue, *others), stray, strict=True)))
        assert any(near)


def test_palettes_are_used_whole():
    kind = KINDS["surgical"]
    hues = [draw(name, [kind])[1].colour for name in NAMES]
    assert any(value < 0.2 for _, _, value in hues)
    assert any(190 < hue < 220 and saturation > 0.2 for hue, saturation, _ in hues)


@pytest.mark.parametrize("kind", ALL, ids=KINDS)
def test_as_many_masks_are_patterned_as_their_kind_says(kind):
    share = np.mean([draw(name, [kind])[1].pattern != "" for name in NAMES])
    assert share == pytest.approx(kind.patterned, abs=0.1)


def test_all_patterns_are_chosen():
    kind = replace(KINDS["cloth"], patterned=1.0)
    assert {draw(name, [kind])[1].pattern for name in NAMES} == set(PATTERNS)


@pytest.mark.parametrize("plain", [False, True])
def test_wearings_survive_json_exactly(plain):
    for name in NAMES:
        wearing = draw(name, plain=plain)[1]
        assert read_back(wearing) == wearing


@pytest.mark.parametrize("field", [field.name for field in fields(Wearing)])
def test_values_are_of_pythons_own_types(field):
    value = getattr(draw()[1], field)
    values = value if isinstance(value, tuple) else (value,)
    assert all(type(v) in (float, int, str) for v in values)
    assert type(read_back(draw()[1]).__getattribute__(field)) is type(value)


def test_kinds_of_any_order_may_be_given_as_a_list():
    assert draw(kinds=list(ALL)) == draw(kinds=ALL)
