from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from maskfer_edge.dataset import CLASS_FOLDERS, manifest
from maskfer_edge.decoding import read_picture
from maskfer_edge.errors import InputError
from maskfer_trainer.contact_sheet import GAP_PX, NAME_PX, PREVIEW_PX, TILE_PX, contact_sheet, preview_sheet
from maskfer_trainer.masks import KINDS

pytestmark = pytest.mark.usefixtures("one_predictor")

ROW_PX = TILE_PX + GAP_PX


@pytest.fixture
def pictures(tmp_path):
    """Records of one face a class: masked dark, bare bright."""
    records = []
    for number, name in enumerate(CLASS_FOLDERS):
        for part, value in (("masked", 40), ("bare", 160)):
            assert cv2.imwrite(str(tmp_path / f"{part}-{name}.png"), np.full((48, 48), value + number, np.uint8))
        paths = {"picture": f"masked-{name}.png", "bare": f"bare-{name}.png"}
        records.append({"class": name, "box": [0, 0, 48, 48], **paths})
    return tmp_path, records


def pair(sheet: Image.Image, row: int, column: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two tiles of a contact sheet."""
    x, y = NAME_PX + column * (2 * TILE_PX + GAP_PX), row * ROW_PX + GAP_PX // 2
    pixels = np.asarray(sheet)[y : y + TILE_PX, x : x + 2 * TILE_PX]
    return pixels[:, :TILE_PX], pixels[:, TILE_PX:]


def test_a_sheet_has_a_row_a_class_and_seven_pairs_a_row(dataset):
    sheet = contact_sheet(dataset, list(manifest(dataset)), seed=0)
    assert sheet.size == (NAME_PX + 7 * (2 * TILE_PX + GAP_PX), 7 * ROW_PX)
    assert all(tile.std() > 5 for row in range(7) for column in range(7) for tile in pair(sheet, row, column))


def test_every_class_is_named(pictures):
    names = np.asarray(contact_sheet(*pictures, seed=0))[:, :NAME_PX].min(axis=2)
    drawn = [names[row * ROW_PX : (row + 1) * ROW_PX] for row in range(7)]
    assert all((name < 100).sum() > 50 for name in drawn)
    assert len({name.tobytes() for name in drawn}) == 7


def test_bare_stands_left_of_masked_in_the_row_of_its_class(pictures):
    sheet = contact_sheet(*pictures, seed=0)
    for row in range(7):
        bare, masked = pair(sheet, row)
        assert (bare == 160 + row).all() and (masked == 40 + row).all()


def test_what_is_not_there_is_left_white(pictures):
    folder, records = pictures
    sheet = contact_sheet(folder, [{k: v for k, v in r.items() if k != "bare"} for r in records], seed=0)
    bare, masked = pair(sheet, 0)
    assert (bare == 255).all() and (masked == 40).all()
    assert (np.stack(pair(sheet, 0, 1)) == 255).all()


def test_the_box_is_shown(pictures):
    folder, records = pictures
    picture = np.zeros((90, 90), np.uint8)
    picture[20:60, 30:70] = 200
    assert cv2.imwrite(str(folder / "bare-angry.png"), picture)
    bare, _ = pair(contact_sheet(folder, [{**records[0], "box": [30, 20, 40, 40]}], seed=0), 0)
    assert (bare[2:-2, 2:-2] == 200).all()


@pytest.mark.parametrize(
    "name", ["16-bit.png", "16-bit.tif", "turned.jpg", "cmyk.jpg", "moving.png", "palette.png", "transparent.png"]
)
def test_bare_pictures_look_as_they_are_read(pictures, odd_files, name):
    folder, records = pictures
    (folder / name).write_bytes(odd_files[name])
    bare, _ = pair(contact_sheet(folder, [{**records[0], "bare": name, "box": [0, 0, 96, 96]}], seed=0), 0)
    assert np.abs(bare[..., ::-1].astype(int) - read_picture(folder / name)[:96, :96]).mean() < 3


def test_a_grey_picture_of_16_bits_looks_as_it_is_read(pictures, grey_face):
    folder, records = pictures
    assert cv2.imwrite(str(folder / "bare-angry.png"), grey_face[:96, :96].astype(np.uint16) * 257)
    bare, _ = pair(contact_sheet(folder, [{**records[0], "box": [0, 0, 96, 96]}], seed=0), 0)
    difference = np.abs(bare[..., 0].astype(int) - grey_face[:96, :96]).mean()
    assert difference < 3


def test_the_seed_chooses_the_pictures(dataset):
    first, again, other = (
        contact_sheet(dataset, list(manifest(dataset))[:49], seed=seed).tobytes() for seed in (0, 0, 1)
    )
    assert first == again != other


@pytest.fixture(scope="module")
def drawn() -> Image.Image:
    return preview_sheet(list(KINDS.values()), None)


def tile(sheet: Image.Image, number: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture of a preview, and the space for its name below."""
    x, y = number % 4 * (PREVIEW_PX + GAP_PX), number // 4 * (PREVIEW_PX + 30)
    pixels = np.asarray(sheet).astype(int)[y : y + PREVIEW_PX + 30, x : x + PREVIEW_PX]
    return pixels[:PREVIEW_PX], pixels[PREVIEW_PX:]


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (4, 1), (5, 2), (len(KINDS), -(-len(KINDS) // 4))])
def test_a_preview_has_four_pictures_a_row(count, rows):
    sheet = preview_sheet(list(KINDS.values())[:count], None)
    assert sheet.size == (4 * (PREVIEW_PX + GAP_PX), rows * (PREVIEW_PX + 30))


def test_a_preview_names_every_kind(drawn):
    names = [tile(drawn, number)[1] for number in range(len(KINDS))]
    assert all((name < 100).sum() > 50 for name in names)
    assert len({name.tobytes() for name in names}) == len(KINDS)


def test_kinds_look_different_on_one_face(drawn):
    faces = [tile(drawn, number)[0] for number in range(len(KINDS))]
    for number, face in enumerate(faces):
        for other in faces[:number]:
            assert np.abs(face - other)[: PREVIEW_PX // 5].mean() < 1  # forehead
            assert np.abs(face - other)[PREVIEW_PX // 2 :].mean() > 3


def test_a_preview_is_the_same_each_time(drawn):
    assert preview_sheet(list(KINDS.values()), None).tobytes() == drawn.tobytes()


def test_a_preview_shows_the_face_of_a_photograph(tmp_path, portrait):
    assert cv2.imwrite(str(tmp_path / "portrait.png"), portrait)
    face, _ = tile(preview_sheet([KINDS["surgical"]], tmp_path / "portrait.png"), 0)
    expected = cv2.resize(portrait[62:178, 166:282], (PREVIEW_PX, PREVIEW_PX), interpolation=cv2.INTER_CUBIC)
    found = cv2.matchTemplate(
        face[..., ::-1].astype(np.uint8), expected[40:120, 60:260], cv2.TM_CCOEFF_NORMED
    )  # forehead and eyes
    assert found.max() > 0.9


def test_a_preview_shows_an_own_template(tmp_path):
    from maskfer_trainer.templates import load_template

    picture = np.full((200, 300, 4), (30, 220, 30, 255), dtype=np.uint8)
    assert cv2.imwrite(str(tmp_path / "green.png"), picture)
    points = {"nose": [150, 5], "chin": [150, 195], "left-cheek": [5, 60], "right-cheek": [295, 60]}
    (tmp_path / "green.json").write_text(json.dumps(points))
    face, _ = tile(preview_sheet([load_template(tmp_path / "green.png")], None), 0)
    middle = face[190:230, 130:190].mean(axis=(0, 1))
    assert middle[1] > 1.5 * max(middle[0], middle[2])


@pytest.mark.parametrize(
    ("image", "reason"), [(np.full((200, 200, 3), 128, np.uint8), "blank"), (None, "no face detected")]
)
def test_a_photograph_without_a_face_is_named(tmp_path, portrait, image, reason):
    assert cv2.imwrite(str(tmp_path / "sky.png"), portrait[:200, 330:] if image is None else image)
    with pytest.raises(InputError, match=rf"sky\.png: {reason}.*photograph of one face") as refused:
        preview_sheet([KINDS["cloth"]], tmp_path / "sky.png")
    assert "\n" not in str(refused.value)
