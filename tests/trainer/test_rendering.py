from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from maskfer_edge.errors import InputError
from maskfer_trainer import rendering
from maskfer_trainer.masks import KINDS, Kind, smooth_outline
from maskfer_trainer.patterns import PATTERNS
from maskfer_trainer.placement import CANONICAL_PIVOTS, FITS, canonical_landmarks, find_pivots
from maskfer_trainer.rendering import WORN, Masked, Wearing, put_on

SIDE = 120
UNIT = 0.28 * SIDE  # of make_landmarks
SURGICAL, CLOTH, FASHION = KINDS["surgical"], KINDS["cloth"], KINDS["fashion"]
WHITE, BLACK, BLUE, RED = (0.0, 0.0, 1.0), (0.0, 0.0, 0.03), (210.0, 0.8, 0.8), (0.0, 0.8, 0.8)
STRAPLESS = ("fashion", "bandana")
# Of the lower face, between the nose's tip and the chin: cloth of every kind.
CLOTH_ROWS = np.s_[66:90, 45:75]

all_kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
three_kinds = pytest.mark.parametrize(
    "kind", [KINDS[name] for name in ("surgical", "cone", "bandana")], ids=lambda kind: kind.name
)
both_fits = pytest.mark.parametrize("fit", FITS)
grey_and_colour = pytest.mark.parametrize("colour", [False, True], ids=["grey", "colour"])


def even(level: int, side: int = SIDE, colour: bool = False) -> np.ndarray:
    return np.full((side, side, 3) if colour else (side, side), level, dtype=np.uint8)


def noisy(level: int = 120, spread: int = 20, colour: bool = False) -> np.ndarray:
    shape = (SIDE, SIDE, 3) if colour else (SIDE, SIDE)
    return np.random.default_rng(1).integers(level - spread, level + spread, shape, dtype=np.uint8)


def sloping(left: int, right: int) -> np.ndarray:
    return np.tile(np.linspace(left, right, SIDE).round().astype(np.uint8), (SIDE, 1))


def bars(side: int) -> np.ndarray:
    """Sharp edges everywhere."""
    return np.where(np.arange(side) // (side // 15) % 2, 90, 170).astype(np.uint8)[None].repeat(side, axis=0)


def at(point: tuple[float, float], landmarks: np.ndarray) -> tuple[int, int]:
    """Row and column of a point of a frontal face (face units) whose landmarks these are."""
    bridge, tip = landmarks[27], landmarks[30]
    x, y = bridge + np.float32(point) * np.linalg.norm(tip - bridge) / 0.53
    return round(float(y)), round(float(x))


def roughness(picture: np.ndarray) -> float:
    """Of pixels against their neighbours."""
    mask = np.float32([[1, -2, 1], [-2, 4, -2], [1, -2, 1]])
    return float(np.abs(cv2.filter2D(picture, cv2.CV_32F, mask)).mean())


def parts(on: np.ndarray) -> int:
    return cv2.connectedComponents(on.astype(np.uint8))[0] - 1


@pytest.fixture(scope="module")
def wear(make_landmarks):
    """Puts a mask on a face seen from the front."""

    def put(image: np.ndarray, kind: Kind = SURGICAL, fit: str = "mesh", plain: bool = False, **wearing) -> Masked:
        return put_on(image, make_landmarks(image.shape[0]), kind, Wearing(**wearing), fit, plain)

    return put


@all_kinds
@both_fits
def test_the_lower_face_changes(wear, kind, fit):
    image = noisy()
    assert (wear(image, kind, fit).image[CLOTH_ROWS] != image[CLOTH_ROWS]).mean() > 0.9


BESIDE = {
    "forehead": np.s_[:36],
    "eyes": np.s_[:42, 30:90],
    "below": np.s_[128:],
    "left": np.s_[:, :8],
    "right": np.s_[:, 112:],
}


@all_kinds
@both_fits
@pytest.mark.parametrize("plain", [False, True])
def test_eyes_and_background_stay(make_landmarks, kind, fit, plain):
    image = np.random.default_rng(1).integers(100, 140, (140, SIDE), dtype=np.uint8)
    masked = put_on(image, make_landmarks(), kind, Wearing(), fit, plain).image
    assert [name for name, region in BESIDE.items() if not np.array_equal(masked[region], image[region])] == []


@grey_and_colour
@both_fits
@pytest.mark.parametrize("plain", [False, True])
def test_shape_and_dtype_stay(wear, colour, fit, plain):
    image = noisy(colour=colour)
    masked = wear(image, fit=fit, plain=plain).image
    assert (masked.shape, masked.dtype) == (image.shape, image.dtype)


@grey_and_colour
@pytest.mark.parametrize("plain", [False, True])
def test_the_input_is_not_changed(wear, colour, plain):
    image = noisy(colour=colour)
    before = image.copy()
    assert not np.array_equal(wear(image, plain=plain).image, before)
    assert np.array_equal(image, before)


@grey_and_colour
def test_views_of_pictures_are_taken_as_pictures(wear, colour):
    image = noisy(colour=colour)
    assert np.array_equal(wear(image[:, ::-1]).image, wear(np.ascontiguousarray(image[:, ::-1])).image)


def test_cover_and_polygon_are_bytes_and_whole_pixels(wear):
    masked = wear(noisy(colour=True))
    assert (masked.cover.shape, masked.cover.dtype) == ((SIDE, SIDE), np.uint8)
    assert (masked.polygon.ndim, masked.polygon.shape[1], masked.polygon.dtype) == (2, 2, np.int32)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(("colour", "channel"), [(BLUE, 0), ((120.0, 0.8, 0.8), 1), (RED, 2)])
def test_colours_are_in_bgr_order(wear, colour, channel, plain):
    masked = wear(even(128, colour=True), colour=colour, plain=plain).image
    assert masked[CLOTH_ROWS].mean(axis=(0, 1)).argmax() == channel


@pytest.mark.parametrize("hue", [-330.0, 390.0, 750.0])
def test_hues_wrap(wear, hue):
    image = even(128, colour=True)
    expected = wear(image, colour=(30.0, 0.8, 0.8)).image
    assert np.array_equal(wear(image, colour=(hue, 0.8, 0.8)).image, expected)


@pytest.mark.parametrize("colour", [BLUE, RED, WHITE])
def test_a_grey_picture_shows_the_colours_as_grey(wear, colour):
    of_colour = wear(even(128, colour=True), colour=colour, plain=True).image
    of_grey = wear(even(128), colour=colour, plain=True).image
    assert np.abs(cv2.cvtColor(of_colour, cv2.COLOR_BGR2GRAY).astype(int) - of_grey).max() <= 2


@all_kinds
def test_white_masks_are_brighter_than_black_ones(wear, kind):
    white, black = (wear(even(128), kind, colour=c, second=c).image[CLOTH_ROWS].mean() for c in (WHITE, BLACK))
    assert white > black + 100


PARTS = {"nose": (0.0, 0.5), "mouth": (0.0, 1.1), "chin": (0.0, 1.52)}


@all_kinds
@both_fits
@pytest.mark.parametrize(
    ("worn", "covered"),
    [("properly", ["nose", "mouth", "chin"]), ("under-nose", ["mouth", "chin"]), ("chin", ["chin"])],
)
def test_ways_of_wearing_cover_what_they_should(wear, make_landmarks, kind, fit, worn, covered):
    cover = wear(even(128), kind, fit, worn=worn).cover
    found = {name: int(cover[at(point, make_landmarks())]) for name, point in PARTS.items()}
    assert found == {name: 255 if name in covered else 0 for name in PARTS}


def test_every_way_of_wearing_is_tested():
    assert set(WORN) == {"properly", "under-nose", "chin"}


@both_fits
def test_a_higher_top_covers_more_of_the_nose(wear, fit):
    high, low = (np.flatnonzero(wear(even(128), fit=fit, top=top).cover[:, SIDE // 2])[0] for top in (0.2, 0.6))
    assert low - high == pytest.approx(0.4 * 0.53 * UNIT, abs=2)


@pytest.mark.parametrize("size", [0.9, 1.1])
def test_size_scales_the_mask(wear, size):
    drawn, sized = ((wear(even(128), size=s, plain=True).cover > 127).sum() for s in (1.0, size))
    assert sized / drawn == pytest.approx(size**2, rel=0.03)


@pytest.mark.parametrize("shift", [(0.1, 0.0), (-0.1, 0.0), (0.0, 0.1), (0.0, -0.1)])
def test_shifts_go_right_and_down(wear, shift):
    def middle(random_affine: tuple[float, float]) -> np.ndarray:
        moments = cv2.moments(wear(even(128), shift=random_affine, plain=True).cover)
        return np.array((moments["m10"], moments["m01"])) / moments["m00"]

    assert middle(shift) - middle((0.0, 0.0)) == pytest.approx(UNIT * np.array(shift), abs=0.4)


@pytest.mark.parametrize("turn", [-15.0, 15.0])
def test_turns_are_clockwise(wear, turn):
    cover = wear(even(128), turn=turn, plain=True).cover
    left, right = (np.flatnonzero(cover[:, x] > 127)[0] for x in (40, 80))
    assert np.degrees(np.arctan2(right - left, 40)) == pytest.approx(turn, abs=4)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@all_kinds
@both_fits
@pytest.mark.parametrize("side", [120, 480])
def test_the_polygon_is_the_outline_of_the_cover(wear, kind, fit, side):
    masked = wear(even(128, side), kind, fit)
    filled = cv2.fillPoly(np.zeros_like(masked.cover), [masked.polygon], 1) > 0
    assert overlap(filled, masked.cover > 127) >= 0.97


@all_kinds
@both_fits
def test_what_is_covered_has_changed(wear, kind, fit):
    image = even(128)
    masked = wear(image, kind, fit, colour=BLACK, second=BLACK)
    assert (masked.image != image)[masked.cover > 127].all()


@all_kinds
@both_fits
def test_a_plain_mask_changes_nothing_beside_cloth_and_straps(wear, make_landmarks, kind, fit):
    image = even(128)
    masked = wear(image, kind, fit, plain=True, colour=BLACK, second=BLACK)
    beside = (masked.image != image) & (masked.cover == 0)
    if kind.name in STRAPLESS:
        assert not beside.any()
    else:
        y, x = np.nonzero(beside)
        middle = make_landmarks()[27]
        assert (np.abs(x - middle[0]) > 0.7 * UNIT).all()
        assert (y - middle[1] < 1.2 * UNIT).all()


@both_fits
@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind.straps], ids=lambda kind: kind.name)
def test_straps_are_not_counted_as_cover(wear, kind, fit):
    image = even(128)
    masked = wear(image, kind, fit, plain=True, second=BLACK)
    assert ((masked.image != image) & (masked.cover == 0)).sum() > 15


# Of all of a mask's cloth, its rim as well: drawn large, a mask has many pixels of its own.
@pytest.mark.parametrize("side", [48, 120])
@pytest.mark.parametrize(("colour", "skin"), [(WHITE, 250), (BLACK, 12), (BLACK, 128), (WHITE, 128)])
@all_kinds
def test_no_fringe_runs_along_the_edge_of_a_plain_mask(wear, kind, side, colour, skin):
    large = wear(even(skin, 480), kind, colour=colour, second=colour, plain=True)
    cloth = large.image[large.cover == 255]
    image = wear(even(skin, side), kind, colour=colour, second=colour, plain=True).image
    assert image.min() >= min(skin, int(cloth.min())) - 2
    assert image.max() <= max(skin, int(cloth.max())) + 2


@pytest.mark.parametrize("side", [48, 120])
@pytest.mark.parametrize(("colour", "skin"), [(BLACK, 12), (BLACK, 128), (WHITE, 12), (WHITE, 128)])
@three_kinds
def test_no_bright_fringe_runs_along_the_edge(wear, kind, side, colour, skin):
    large = wear(even(skin, 480), kind, colour=colour, second=colour)
    cloth = large.image[large.cover == 255]
    assert wear(even(skin, side), kind, colour=colour, second=colour).image.max() <= max(skin, int(cloth.max())) + 2


@pytest.mark.parametrize(("dim", "bright"), [(20, 100), (60, 160), (100, 200)])
def test_a_dim_face_wears_a_dim_mask(wear, dim, bright):
    of_dim, of_bright = (wear(even(level), colour=WHITE).image[CLOTH_ROWS].mean() for level in (dim, bright))
    assert of_dim < of_bright - 15


def test_a_plain_mask_is_as_bright_on_any_face(wear):
    of_dim, of_bright = (wear(even(level), colour=WHITE, plain=True).image[CLOTH_ROWS] for level in (20, 200))
    assert np.array_equal(of_dim, of_bright)


@all_kinds
@both_fits
@pytest.mark.parametrize(("left", "right"), [(220, 90), (90, 220)])
def test_light_from_a_side_falls_on_that_side_of_the_mask(wear, kind, fit, left, right):
    masked = wear(sloping(left, right), kind, fit, colour=(0.0, 0.0, 0.7), second=(0.0, 0.0, 0.7), creases=0.0).image
    on_left, on_right = masked[66:90, 36:52].mean(), masked[66:90, 68:84].mean()
    assert np.sign(on_left - on_right) == np.sign(left - right)
    assert abs(on_left - on_right) > 8


@all_kinds
def test_a_plain_mask_is_lit_alike_from_both_sides(wear, kind):
    masked = wear(sloping(220, 90), kind, colour=(0.0, 0.0, 0.7), creases=0.0, plain=True).image
    assert masked[66:90, 36:52].mean() == pytest.approx(masked[66:90, 68:84].mean(), abs=3)


def test_a_red_light_reddens_the_mask(wear):
    image = even(128, colour=True)
    image[..., 0], image[..., 2] = 90, 160
    blue, _, red = wear(image, colour=(0.0, 0.0, 0.6)).image[CLOTH_ROWS].mean(axis=(0, 1))
    assert red > blue + 3


def edge_pixels(cover: np.ndarray) -> int:
    return int(((cover > 20) & (cover < 235)).sum())


@both_fits
def test_a_blurred_picture_gets_a_blurred_edge(wear, fit):
    sharp = bars(480)
    blurred = cv2.GaussianBlur(sharp, (0, 0), 4)
    assert edge_pixels(wear(blurred, fit=fit).cover) > 2 * edge_pixels(wear(sharp, fit=fit).cover)


def test_a_plain_masks_edge_is_sharp_on_a_blurred_picture(wear):
    sharp = bars(480)
    blurred = cv2.GaussianBlur(sharp, (0, 0), 4)
    assert edge_pixels(wear(blurred, plain=True).cover) == edge_pixels(wear(sharp, plain=True).cover)


def test_blur_leaves_the_masks_size(wear):
    sharp = bars(480)
    areas = [(wear(image).cover > 127).sum() for image in (sharp, cv2.GaussianBlur(sharp, (0, 0), 4))]
    assert areas[1] == pytest.approx(areas[0], rel=0.02)


@grey_and_colour
def test_a_noisy_picture_gets_a_grainy_mask(wear, colour):
    grainy, clean = (wear(noisy(128, spread, colour), FASHION, creases=0.0).image for spread in (15, 1))
    assert roughness(grainy[CLOTH_ROWS]) > 3 * roughness(clean[CLOTH_ROWS])


def test_a_clean_picture_gets_no_grain(wear):
    first, second = (wear(even(128), creases=0.0, seed=seed).image for seed in (1, 2))
    # what remains of the seed is where the weave begins
    assert np.abs(first.astype(int) - second).max() <= 1


def test_a_plain_mask_has_no_grain(wear):
    expected = wear(even(128), plain=True).image[CLOTH_ROWS]
    assert np.array_equal(wear(noisy(128), plain=True).image[CLOTH_ROWS], expected)


@all_kinds
@grey_and_colour
def test_a_mask_casts_a_shadow_below_its_edge(wear, kind, colour):
    image = even(150, colour=colour)
    masked = wear(image, kind)
    edge = np.flatnonzero(masked.cover[:, SIDE // 2])[-1]
    assert masked.image[edge + 1, SIDE // 2].max() < 145


@all_kinds
def test_a_plain_mask_casts_no_shadow(wear, kind):
    masked = wear(even(150), kind, plain=True)
    edge = np.flatnonzero(masked.cover[:, SIDE // 2])[-1]
    assert (masked.image[edge + 1 :, SIDE // 2] == 150).all()


def test_a_shadow_fades_with_distance(wear):
    masked = wear(even(150, 480))
    edge = np.flatnonzero(masked.cover[:, 240])[-1]
    below = masked.image[edge + 1 : edge + 30, 240].astype(int)
    assert (np.diff(below) >= 0).all()
    assert below[-1] == 150


@three_kinds
@both_fits
@pytest.mark.parametrize("plain", [False, True])
def test_the_same_wearing_gives_the_same_bytes(make_landmarks, kind, fit, plain):
    wearing = Wearing(pattern="dots", seed=5)
    first, again = (put_on(noisy(), make_landmarks(), kind, wearing, fit, plain) for _ in range(2))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.cover, again.cover)
    assert np.array_equal(first.polygon, again.polygon)


@pytest.mark.parametrize("plain", [False, True])
def test_another_seed_gives_other_creases(wear, plain):
    first, other = (wear(even(128, 480), seed=seed, creases=1.0, plain=plain) for seed in (1, 2))
    assert (first.image != other.image)[first.cover == 255].mean() > 0.3
    assert np.array_equal(first.cover, other.cover)


def test_deeper_creases_show_more(wear):
    smooth, slight, deep = (wear(even(128, 480), CLOTH, creases=creases).image.astype(int) for creases in (0, 0.3, 1))
    assert np.abs(deep - smooth).sum() > 2 * np.abs(slight - smooth).sum() > 0


@three_kinds
@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_show_two_colours(wear, kind, pattern):
    image = even(128, 240)
    cloth = wear(image, kind, pattern=pattern, colour=WHITE, second=BLACK, creases=0.0).image[132:180, 90:150]
    assert (cloth < 90).mean() > 0.03
    assert (cloth > 150).mean() > 0.03


def test_plain_cloth_shows_one_colour(wear):
    cloth = wear(even(128, 240), FASHION, colour=WHITE, second=BLACK).image[132:180, 90:150]
    assert cloth.min() > 90


def test_a_larger_pattern_changes_colour_less_often(wear):
    small, large = (
        wear(even(128, 480), FASHION, pattern="stripes", pattern_size=size, colour=WHITE, second=BLACK).image[
            250:400, 230
        ]
        for size in (0.5, 1.5)
    )
    changes = [int((np.diff((column > 100).astype(int)) != 0).sum()) for column in (small, large)]
    assert changes[0] > 2 * changes[1] > 0


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("plain", [False, True])
def test_no_seam_shows_where_the_pattern_repeats(wear, seed, plain):
    # stripes run across: along their middles nothing changes from one repetition to the next
    masked = wear(even(128, 1200), FASHION, pattern="stripes", colour=WHITE, second=WHITE, creases=0.0, seed=seed,
                  plain=plain, turn=0.0)  # fmt: skip
    black = wear(even(128, 1200), FASHION, pattern="stripes", colour=WHITE, second=BLACK, creases=0.0, seed=seed,
                 plain=plain, turn=0.0)  # fmt: skip
    share = black.image[700:900, 420:780] / masked.image[700:900, 420:780].astype(float)
    stripe = share[int(share.mean(axis=1).argmin())]
    assert stripe.max() < 0.2


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size_px", [(1300, 1100), (70, 60)])
def test_edges_do_not_ripple(fit, size_px):
    # a circle's edge keeps its distance from the middle
    side = size_px[0]
    unit = 0.28 * side
    landmarks = (canonical_landmarks() * np.float32(unit) + np.float32([side / 2, 0.35 * side])).astype(np.float32)
    angles = np.linspace(0, np.pi, 60)
    ring = tuple((float(0.6 * np.sin(a)), float(0.94 - 0.6 * np.cos(a))) for a in angles)
    kind = replace(FASHION, outline=ring)
    cover = put_on(even(128, side), landmarks, kind, Wearing(), fit, plain=True).cover
    contour = max(
        cv2.findContours((cover > 127).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0], key=len
    )
    points = contour[:, 0] - np.array((side / 2, 0.35 * side + 0.94 * unit))
    assert np.abs(np.hypot(*points.T) / unit - 0.6).max() < 0.004 + 1.2 / unit


@pytest.mark.parametrize("size_wh", [(60, 50), (700, 640), (1700, 1600)])
def test_the_lattice_is_enlarged_without_ripples(size_wh):
    # positions themselves, put on a lattice and enlarged, are where pixels are
    enlarged = rendering._enlarge(rendering._lattice(size_wh), size_wh)
    expected = np.stack(np.meshgrid(*(np.arange(side) for side in size_wh)), axis=-1)
    assert np.abs(enlarged - expected).max() < 0.1


@pytest.mark.parametrize(
    "move", [(0.45, 0.0), (-0.45, 0.0), (0.0, 0.3), (0.0, -0.2)], ids=["right", "left", "low", "high"]
)
@both_fits
@pytest.mark.parametrize("plain", [False, True])
def test_a_face_at_the_border_wears_what_fits(make_landmarks, move, fit, plain):
    random_affine = make_landmarks() + np.float32(move) * SIDE
    masked = put_on(noisy(), random_affine, SURGICAL, Wearing(colour=BLACK), fit, plain)
    whole = put_on(even(120, 3 * SIDE), random_affine + SIDE, SURGICAL, Wearing(colour=BLACK), fit, plain=True)
    expected = whole.cover[SIDE : 2 * SIDE, SIDE : 2 * SIDE]
    assert expected.any()
    assert overlap(masked.cover > 127, expected > 127) > 0.97


def test_a_mask_off_the_picture_is_refused(make_landmarks):
    landmarks = make_landmarks() + np.float32([0, 38])
    with pytest.raises(InputError, match=r"^implausible landmarks: the mask lies outside the picture$"):
        put_on(noisy(), landmarks, SURGICAL, Wearing(worn="chin"))


def test_a_face_off_the_picture_is_refused(make_landmarks):
    with pytest.raises(InputError, match="most of the jaw lies off the picture"):
        put_on(noisy(), make_landmarks() + 500, SURGICAL, Wearing())


@pytest.mark.parametrize("side", [48, 120, 480, 2000])
@grey_and_colour
@both_fits
def test_pictures_of_all_sizes_are_covered_alike(wear, side, colour, fit):
    cover = wear(even(128, side, colour), fit=fit).cover / 255
    expected = wear(even(128, 240), fit=fit, plain=True).cover / 255
    assert cover.mean() == pytest.approx(expected.mean(), rel=0.03)


@three_kinds
@both_fits
@pytest.mark.parametrize("worn", WORN)
@pytest.mark.parametrize("roll", [-35, 35])
def test_a_tilted_head_wears_its_mask_whole(make_landmarks, kind, fit, worn, roll):
    image = even(128, 360)
    upright, tilted = (
        (put_on(image, make_landmarks(360, angle), kind, Wearing(worn=worn), fit, plain=True).cover > 127).sum()
        for angle in (0, roll)
    )
    assert tilted == pytest.approx(upright, rel=0.015)


@both_fits
@pytest.mark.parametrize("worn", ["properly", "chin"])
@pytest.mark.parametrize("roll", [-30, 0, 30])
@pytest.mark.parametrize("yaw", [-40, -25, 25, 40])
@pytest.mark.parametrize("kind", [SURGICAL, KINDS["bandana"]], ids=lambda kind: kind.name)
def test_a_turned_heads_mask_is_in_one_piece(make_landmarks, fit, worn, roll, yaw, kind):
    masked = put_on(even(128, 240), make_landmarks(240, roll, yaw), kind, Wearing(worn=worn), fit, plain=True)
    pieces = parts(masked.cover > 127)
    assert pieces == 1


@three_kinds
@pytest.mark.parametrize("worn", WORN)
@pytest.mark.parametrize("roll", [-30, 0, 30])
@pytest.mark.parametrize("yaw", [-25, 25])
def test_a_turned_heads_homography_is_drawn_whole(make_landmarks, kind, worn, roll, yaw):
    landmarks = make_landmarks(240, roll, yaw) + np.float32([80, 80])
    cover = put_on(even(128, 400), landmarks, kind, Wearing(worn=worn), "homography", plain=True).cover > 127
    # where the outline lies, by the homography alone
    to_mask = np.vstack([rendering._face_to_mask(Wearing(worn=worn)), (0, 0, 1)])
    to_face = cv2.getPerspectiveTransform(CANONICAL_PIVOTS, find_pivots(landmarks)) @ np.linalg.inv(to_mask)
    outline = cv2.perspectiveTransform(smooth_outline(kind.outline)[None], to_face)
    expected = cv2.fillPoly(np.zeros((400, 400), np.uint8), [np.round(outline).astype(np.int32)], 1) > 0
    assert overlap(cover, expected) > 0.95


@pytest.mark.parametrize("yaw", [-35, 35])
def test_a_turned_heads_mask_follows_the_nose(make_landmarks, yaw):
    landmarks = make_landmarks(240, yaw=yaw)
    cover = put_on(even(128, 240), landmarks, SURGICAL, Wearing(), plain=True).cover
    # the peak of the mask is on the ridge
    top = int(np.flatnonzero((cover > 127).any(axis=1))[0])
    peak = np.flatnonzero(cover[top + 1] > 127).mean()
    assert peak == pytest.approx(landmarks[27:31, 0].mean(), abs=0.06 * 0.28 * 240)


@pytest.mark.parametrize(("yaw", "hidden"), [(35, "right"), (-35, "left")])
def test_straps_do_not_show_beyond_the_side_that_turns_away(make_landmarks, yaw, hidden):
    landmarks = make_landmarks(240, yaw=yaw)
    image = even(128, 240)
    masked = put_on(image, landmarks, SURGICAL, Wearing(second=WHITE, colour=BLACK)).image
    jaw = landmarks[:17, 0]
    beyond = masked[:, int(jaw.max()) + 6 :] if hidden == "right" else masked[:, : int(jaw.min()) - 6]
    assert (beyond > 140).sum() == 0


def test_straps_do_not_show_under_hair(wear):
    image = even(170, 240)
    image[:, :52] = image[:, 188:] = 20
    masked = wear(image, second=WHITE).image
    assert masked[:, :46].max() < 60
    assert masked[:, 194:].max() < 60


def own_kind(bgr: tuple[int, int, int] = (40, 160, 40), hidden: int = 255, lowest: float = 1.5) -> Kind:
    """A user's picture, 100 pixels a face unit: a trapezoid from under the eyes down."""
    corners = np.array(((-0.9, 0.4), (0.9, 0.4), (0.6, lowest), (-0.6, lowest)))
    picture = np.full((300, 300, 4), hidden, dtype=np.uint8)
    picture[..., 3] = cv2.fillPoly(np.zeros((300, 300), np.uint8), [np.int32(100 * corners + (150, 50))], 255)
    picture[picture[..., 3] > 0, :3] = bgr
    data = cv2.imencode(".png", picture)[1].tobytes()
    return Kind(
        "own", "own picture", (), (), ((WHITE, WHITE),), picture=data, to_picture=(100, 0, 150, 0, 100, 50, 0, 0, 1)
    )


@both_fits
@pytest.mark.parametrize("lowest", [1.5, 2.25], ids=["mask", "scarf"])
def test_a_users_picture_lies_where_its_points_are(wear, make_landmarks, fit, lowest):
    masked = wear(even(128, 480), own_kind(lowest=lowest), fit, plain=True)
    corners = np.array(((-0.9, 0.4), (0.9, 0.4), (0.6, lowest), (-0.6, lowest)))
    expected = cv2.fillPoly(np.zeros((480, 480), np.uint8),
                            [np.int32(np.round(corners * 0.28 * 480 + make_landmarks(480)[27]))], 1)  # fmt: skip
    assert overlap(masked.cover > 127, expected > 0) > 0.97


@pytest.mark.parametrize("plain", [False, True])
def test_a_users_picture_keeps_its_colours(wear, plain):
    masked = wear(even(128, colour=True), own_kind((40, 160, 90)), plain=plain, colour=RED, second=RED)
    blue, green, red = masked.image[CLOTH_ROWS].mean(axis=(0, 1))
    assert green > red + 20 > blue + 40


def test_a_users_picture_turns_grey_on_a_grey_picture(wear):
    masked = wear(even(128), own_kind((40, 160, 90)), plain=True).image
    of_colour = wear(even(128, colour=True), own_kind((40, 160, 90)), plain=True).image
    assert np.abs(cv2.cvtColor(of_colour, cv2.COLOR_BGR2GRAY).astype(int) - masked).max() <= 2


@pytest.mark.parametrize("side", [48, 120, 480])
@pytest.mark.parametrize("plain", [False, True])
def test_colours_hidden_in_a_users_picture_do_not_show(wear, side, plain):
    dark, bright = (wear(even(128, side, colour=True), own_kind(hidden=level), plain=plain).image for level in (0, 255))
    assert np.abs(dark.astype(int) - bright).max() <= 1


@all_kinds
@both_fits
def test_a_portrait_wears_every_kind(astronaut, astronaut_landmarks, kind, fit):
    masked = put_on(astronaut, astronaut_landmarks, kind, Wearing(), fit)
    nose, mouth = astronaut_landmarks[33], astronaut_landmarks[48:].mean(axis=0)
    eyes = astronaut_landmarks[36:48]
    for x, y in (nose, mouth):
        assert masked.cover[round(float(y)), round(float(x))] > 200
    for x, y in eyes:
        assert masked.cover[round(float(y)), round(float(x))] == 0


def test_a_portraits_mask_is_as_sharp_as_the_portrait(astronaut, astronaut_landmarks):
    blurred = cv2.GaussianBlur(astronaut, (0, 0), 2)
    sharp, soft = (
        edge_pixels(put_on(image, astronaut_landmarks, FASHION, Wearing()).cover) for image in (astronaut, blurred)
    )
    assert soft > 1.2 * sharp
