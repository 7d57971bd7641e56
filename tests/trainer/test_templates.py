from __future__ import annotations

import json
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from maskfer_edge.errors import InputError
from maskfer_trainer.masks import KINDS, draw_mask
from maskfer_trainer.placement import FITS, canonical_landmarks
from maskfer_trainer.rendering import Wearing, put_on
from maskfer_trainer.templates import ANCHORS, load_template

FOUR = ("nose", "left-cheek", "chin", "right-cheek")
SIX = (*FOUR, "left-jaw", "right-jaw")
# A mask's outline in face units.
TRAPEZOID = ((-0.9, 0.4), (0.9, 0.4), (0.6, 1.5), (-0.6, 1.5))
FACE_UNIT, FACE_ORIGIN = 100, (200, 60)  # of the face that wears it
both_fits = pytest.mark.parametrize("fit", FITS)

Homography = np.ndarray
UPRIGHT: Homography = np.array([[220, 0, 300], [0, 220, 90], [0, 0, 1]], dtype=np.float64)
TURNED: Homography = np.array([[150, -90, 330], [90, 150, 60], [0, 0, 1]], dtype=np.float64)
STRETCHED: Homography = np.array([[280, 0, 300], [0, 120, 40], [0, 0, 1]], dtype=np.float64)
FROM_BELOW: Homography = np.array([[220, 0, 300], [0, 220, 90], [0, 0.15, 1]], dtype=np.float64)


def to_pixels(units, matrix: Homography = UPRIGHT) -> np.ndarray:
    return cv2.perspectiveTransform(np.float64([units]), matrix)[0]


def anchors(names=FOUR, matrix: Homography = UPRIGHT) -> dict[str, list[float]]:
    points = to_pixels([ANCHORS[name] for name in names], matrix)
    return {name: [float(x), float(y)] for name, (x, y) in zip(names, points, strict=True)}


def paint(matrix: Homography = UPRIGHT, bgr=(40, 160, 90), hidden=0) -> np.ndarray:
    """(600, 600, 4) B,G,R and alpha: a trapezoid in one colour."""
    picture = np.full((600, 600, 4), hidden, dtype=np.uint8)
    outline = np.round(to_pixels(TRAPEZOID, matrix)).astype(np.int32)
    picture[..., 3] = cv2.fillPoly(np.zeros((600, 600), np.uint8), [outline], 255)
    picture[picture[..., 3] > 0, :3] = bgr
    return picture


@pytest.fixture
def write(tmp_path):
    """Writes NAME.png and, if there are points, NAME.json."""

    def save(picture=None, points=None, name: str = "own") -> Path:
        path = tmp_path / f"{name}.png"
        cv2.imwrite(str(path), paint() if picture is None else picture)
        if points is not None:
            path.with_suffix(".json").write_text(points if isinstance(points, str) else json.dumps(points))
        return path

    return save


def worn(kind, fit: str = "mesh"):
    landmarks = (canonical_landmarks() * FACE_UNIT + FACE_ORIGIN).astype(np.float32)
    return put_on(np.full((300, 400, 3), 128, dtype=np.uint8), landmarks, kind, Wearing(), fit, plain=True)


def test_a_kind_is_named_as_its_file(write):
    assert load_template(write(points=anchors(), name="Tartan 2")).name == "Tartan 2"


def test_a_kind_says_what_file_it_is_of(write):
    assert "own.png" in load_template(write(points=anchors())).about


@both_fits
@pytest.mark.parametrize("names", [FOUR, SIX, tuple(ANCHORS)], ids=["four", "six", "all"])
@pytest.mark.parametrize(
    "matrix", [UPRIGHT, TURNED, STRETCHED, FROM_BELOW], ids=["upright", "turned", "stretched", "from below"]
)
def test_a_picture_lies_where_its_points_say(write, matrix, names, fit):
    kind = load_template(write(paint(matrix), anchors(names, matrix)))
    expected = np.zeros((300, 400), np.uint8)
    cv2.fillPoly(expected, [np.int32(np.array(TRAPEZOID) * FACE_UNIT + FACE_ORIGIN)], 1)
    cover = worn(kind, fit).cover > 127
    assert (cover & (expected > 0)).sum() / (cover | (expected > 0)).sum() > 0.97


def test_points_that_disagree_are_met_on_average(write):
    given = anchors(SIX)
    given["left-jaw"][0] += 10
    kind = load_template(write(points=given))
    found = cv2.perspectiveTransform(np.float64([[ANCHORS["left-jaw"]]]), np.reshape(kind.to_picture, (3, 3)))[0, 0]
    assert given["left-jaw"][0] - 10 < found[0] < given["left-jaw"][0]


def test_a_picture_keeps_its_colours(write):
    masked = worn(load_template(write(points=anchors())))
    blue, green, red = masked.image[masked.cover == 255].mean(axis=0)
    assert green > red + 40 > blue + 70


@pytest.mark.parametrize("unit_px", [32, 128, 512])
@pytest.mark.parametrize(("level", "hidden"), [(10, 255), (250, 0)])
def test_colours_of_transparent_pixels_leave_no_fringe(write, unit_px, level, hidden):
    kind = load_template(write(paint(bgr=(level,) * 3, hidden=hidden), anchors()))
    layers = draw_mask(kind, unit_px)
    seen = layers.albedo[layers.form[..., 0] > 8].astype(int)
    assert np.abs(seen - level).max() <= 16


def test_a_half_transparent_part_lets_the_face_through(write):
    picture = paint()
    picture[:, 300:, 3] = np.where(picture[:, 300:, 3] > 0, 140, 0)
    cover = worn(load_template(write(picture, anchors()))).cover
    x, y = FACE_ORIGIN
    assert cover[y + 90, x - 40] == 255
    assert cover[y + 90, x + 40] == pytest.approx(140, abs=3)


def test_a_picture_with_a_palette_is_read(write, tmp_path):
    from PIL import Image

    path = write(points=anchors())
    blue, green, red, alpha = cv2.split(paint())
    Image.merge("RGBA", [Image.fromarray(c) for c in (red, green, blue, alpha)]).quantize(8).save(path)
    assert (worn(load_template(path)).cover > 127).any()


def test_a_scan_is_reduced_without_glitter(write):
    # one pixel light, one dark: reduced, that is grey throughout
    picture = cv2.resize(paint(), (2400, 2400), interpolation=cv2.INTER_NEAREST)
    picture[..., :3] = np.indices((2400, 2400)).sum(axis=0)[..., None] % 2 * 255
    points = {name: [4 * x, 4 * y] for name, (x, y) in anchors().items()}
    layers = draw_mask(load_template(write(picture, points)), 64)
    assert layers.albedo[layers.form[..., 0] == 255].std() < 20


def load(path: Path) -> str:
    """The one line a template is refused with."""
    with pytest.raises(InputError) as refused:
        load_template(path)
    message = str(refused.value)
    assert "\n" not in message
    return message


def test_a_picture_that_is_not_there_is_refused(tmp_path):
    assert load(tmp_path / "own.png") == f"{tmp_path / 'own.png'} cannot be read: No such file or directory"


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n"], ids=["empty", "text", "only begun"])
def test_what_is_no_picture_is_refused(write, content):
    path = write(points=anchors())
    path.write_bytes(content)
    assert load(path) == f"{path} is not a picture that can be read; a template is a PNG with transparency"


def test_a_picture_that_says_to_be_endless_is_refused(write):
    path = write(points=anchors())
    data = bytearray(path.read_bytes())
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)
    assert load(path) == f"{path} is not a picture that can be read; a template is a PNG with transparency"


@pytest.mark.parametrize("picture", [paint()[..., :3], paint()[..., 3]], ids=["colour", "grey"])
def test_a_picture_without_alpha_is_refused(write, picture):
    path = write(picture, anchors())
    assert load(path) == f"{path} has no alpha channel; save it as PNG with transparency around the mask"


def test_a_picture_of_16_bits_is_refused(write):
    path = write(paint().astype(np.uint16) * 257, anchors())
    assert load(path) == f"{path} has 16 bits a channel; save it with 8"


@pytest.mark.parametrize("alpha", [0, 127])
def test_a_picture_that_hides_nothing_is_refused(write, alpha):
    picture = paint()
    picture[..., 3] = alpha
    path = write(picture, anchors())
    assert load(path) == f"{path} is transparent throughout; nothing of it would be seen"


@pytest.mark.parametrize("name", KINDS)
def test_names_of_drawn_kinds_are_refused(write, name):
    path = write(points=anchors(), name=name)
    expected = f"{path} is named as a kind that is drawn; name it otherwise than {', '.join(KINDS)}"
    assert load(path) == expected


def test_a_picture_without_points_is_refused(write):
    path = write()
    assert load(path) == f"{path.with_suffix('.json')} cannot be read: No such file or directory"


KNOWN = f"the names are {', '.join(ANCHORS)}"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1, 2]", "7", "null", '{"nose": 3}', '{"nose": [1]}', '{"nose": [1, 2, 3]}', '{"nose": ["a", "b"]}',
     '{"nose": [null, 2]}', '{"nose": {"x": 1}}'],
)  # fmt: skip
def test_damaged_points_are_refused(write, text):
    path = write(points=text)
    assert load(path) == f'{path.with_suffix(".json")} is no list of points like {{"nose": [x, y], ...}}; {KNOWN}'


def test_points_that_are_no_text_are_refused(write):
    path = write(points=anchors())
    path.with_suffix(".json").write_bytes(b"\xff\xfe\x00{")
    assert "is no list of points" in load(path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "1e300"])
def test_points_that_are_no_places_are_refused(write, number):
    given = json.dumps(anchors()).replace(str(anchors()["chin"][0]), number)
    path = write(points=given)
    assert number in path.with_suffix(".json").read_text()
    assert load(path).startswith(str(path.with_suffix(".json")))


def test_unknown_points_are_refused(write):
    path = write(points={**anchors(), "ear": [3, 4]})
    assert load(path) == f"{path.with_suffix('.json')} names a point 'ear'; {KNOWN}"


@pytest.mark.parametrize("count", [0, 1, 3])
def test_fewer_than_four_points_are_refused(write, count):
    path = write(points={name: point for name, point in anchors().items() if name in FOUR[:count]})
    expected = f"{path.with_suffix('.json')} names {count} points; four or more are needed, and {KNOWN}"
    assert load(path) == expected


ON_A_LINE = "the points lie on a line; a mask cannot be fitted by them"


@pytest.mark.parametrize("names", [FOUR, SIX], ids=["four", "six"])
@pytest.mark.parametrize("step", [(10, 0), (0, 10), (10, 20), (0, 0)], ids=["across", "down", "aslant", "one place"])
def test_points_on_a_line_are_refused(write, names, step):
    path = write(points={name: [50 + i * step[0], 50 + i * step[1]] for i, name in enumerate(names)})
    assert load(path) == f"{path.with_suffix('.json')}: {ON_A_LINE}"


@pytest.mark.parametrize("other", ["left-cheek", "right-jaw"])
def test_four_points_of_which_three_lie_on_a_line_are_refused(write, other):
    # the nose's two and the chin leave open how wide the mask is
    path = write(points=anchors(("nose", "nose-tip", "chin", other)))
    assert load(path).startswith(f"{path.with_suffix('.json')}: ")


def test_two_of_four_points_in_one_place_are_refused(write):
    path = write(points={**anchors(), "left-cheek": anchors()["nose"]})
    assert load(path).startswith(f"{path.with_suffix('.json')}: ")


@pytest.mark.parametrize("swap", [("left-cheek", "right-cheek"), ("nose", "chin"), ("nose", "left-cheek")])
def test_points_that_were_mixed_up_are_refused(write, swap):
    given = anchors()
    given[swap[0]], given[swap[1]] = given[swap[1]], given[swap[0]]
    path = write(points=given)
    assert load(path).startswith(f"{path.with_suffix('.json')}: ")


def test_anchors_are_symmetric():
    for name, (x, y) in ANCHORS.items():
        if name.startswith("left-"):
            assert ANCHORS[name.replace("left-", "right-")] == pytest.approx((-x, y), abs=1e-6)
