from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from maskfer_edge.decoding import decode
from maskfer_edge.errors import InputError
from maskfer_trainer import picture
from maskfer_trainer.faces import FACES, PROTOCOLS
from maskfer_trainer.masks import KINDS, Kind
from maskfer_trainer.picture import BuildSettings, PictureMasker
from maskfer_trainer.placement import FITS
from maskfer_trainer.rendering import WORN
from maskfer_trainer.source import Photograph

ODD_FILES = ("moving.png", "moving.webp", "two-pages.tif", "16-bit.png", "16-bit.tif", "cmyk.jpg", "progressive.jpeg",
             "palette.png", "turned.jpg", "transparent.png", "UPPER.BMP")  # fmt: skip
OWN = Kind("own", "own", (), (), (((0, 0, 1), (0, 0, 0)),), picture=b"1", to_picture=(1.0,) * 9)

pytestmark = pytest.mark.usefixtures("one_predictor")


def photograph(path: str = "train/happy/face.png", split: str = "train", stem: str = "face") -> Photograph:
    return Photograph(path, split, 3, stem)


@pytest.fixture(scope="session")
def face_png(astronaut) -> bytes:
    return encoded(astronaut)


def encoded(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


def mask(data: bytes, photo: Photograph | None = None, **settings):
    """The records and files of one picture."""
    result, files = PictureMasker(BuildSettings(**settings))(photo or photograph(), data)
    assert "skipped" not in result, result
    return result["records"], files


def masked(data: bytes, **settings) -> np.ndarray:
    """(h, w, 3) uint8: the first masked picture."""
    records, files = mask(data, **settings)
    return decode(files[records[0]["picture"]], "masked")


def covered(polygons: list[list[list[int]]], shape: tuple[int, int]) -> np.ndarray:
    """Which pixels outlines cover: bool."""
    drawn = np.zeros(shape, dtype=np.uint8)
    for polygon in polygons:
        cv2.fillPoly(drawn, [np.array(polygon, dtype=np.int32)], 1)
    return drawn > 0


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union."""
    return float((a & b).sum() / (a | b).sum())


def test_a_record_describes_the_masked_face(face_png):
    (record,), _ = mask(face_png)
    assert (record["source"], record["split"], record["class"], record["stem"]) == (
        "train/happy/face.png", "train", "happy", "face"
    )  # fmt: skip
    assert (record["size"], record["box"], record["score"], record["variant"]) == (
        [128, 128],
        [0, 0, 128, 128],
        None,
        0,
    )
    assert record["mask"]["kind"] in KINDS
    assert np.shape(record["landmarks"]) == (68, 2)
    assert -1 <= record["yaw"] <= 1


def test_a_record_can_be_written_as_json_and_read_again(face_png):
    records, _ = mask(face_png)
    again = json.loads(json.dumps(records))
    assert again[0].keys() == records[0].keys()
    assert again[0]["polygon"] == records[0]["polygon"]


def test_the_bare_picture_is_the_files_bytes(face_png):
    (record,), files = mask(face_png)
    assert files[record["bare"]] == face_png


def test_without_bare_pictures_only_masked_ones_are_made(face_png):
    (record,), files = mask(face_png, keep_bare=False)
    assert "bare" not in record
    assert list(files) == ["masked/train/happy/face.png"]


def test_the_same_settings_give_the_same_picture(face_png):
    assert mask(face_png) == mask(face_png)


@pytest.mark.parametrize("change", [{"seed": 1}, {"kinds": ("bandana",)}, {"plain": True}, {"fit": "homography"}])
def test_other_settings_give_another_picture(face_png, change):
    settings = {"kinds": ("cloth",), **change}
    assert not np.array_equal(masked(face_png, **settings), masked(face_png, kinds=("cloth",)))


def test_a_grey_picture_stays_grey(grey_face):
    (record,), files = mask(encoded(np.dstack([grey_face] * 3)))
    assert cv2.imdecode(np.frombuffer(files[record["picture"]], np.uint8), cv2.IMREAD_UNCHANGED).ndim == 2


def test_a_coloured_picture_stays_coloured(face_png):
    blue, _, red = cv2.split(masked(face_png, kinds=("surgical",), plain=True).astype(int))
    assert (blue - red)[85:110, 50:80].mean() > 20


def test_variants_are_named_by_number(face_png):
    records, files = mask(face_png, variants=3)
    assert [record["stem"] for record in records] == ["face", "face~1", "face~2"]
    assert [record["variant"] for record in records] == [0, 1, 2]
    assert {record["picture"] for record in records} == files.keys() - {"bare/train/happy/face.png"}


def test_variants_share_their_bare_picture(face_png):
    records, files = mask(face_png, variants=3)
    assert {record["bare"] for record in records} == {"bare/train/happy/face.png"}
    assert len(files) == 4


def test_variants_wear_different_masks(face_png):
    records, files = mask(face_png, variants=4)
    assert len({str(record["mask"]) for record in records}) == len({files[r["picture"]] for r in records}) == 4


def test_a_first_variant_is_what_one_variant_gives(face_png):
    several, one = mask(face_png, variants=3), mask(face_png)
    assert several[0][0] == one[0][0]
    assert several[1][one[0][0]["picture"]] == one[1][one[0][0]["picture"]]


def test_a_test_picture_has_no_variants(face_png):
    records, _ = mask(face_png, photograph("test/happy/face.png", split="test"), variants=3)
    assert [record["stem"] for record in records] == ["face"]


@pytest.mark.parametrize("worn", WORN)
def test_the_way_of_wearing_stands_in_the_record(face_png, worn):
    (record,), _ = mask(face_png, worn=(worn,))
    assert record["mask"]["worn"] == worn


def test_a_mask_under_the_nose_begins_lower(face_png):
    tops = {worn: np.min(mask(face_png, worn=(worn,))[0][0]["polygon"], axis=0)[1] for worn in WORN}
    assert tops["properly"] + 10 < tops["under-nose"] < tops["chin"] - 10


def test_several_ways_of_wearing_are_mixed(face_png):
    records, _ = mask(face_png, worn=("properly", "chin"), variants=12, keep_bare=False)
    assert {record["mask"]["worn"] for record in records} == {"properly", "chin"}


@pytest.mark.parametrize("side", [48, 128])
@pytest.mark.parametrize("kind", KINDS)
def test_the_ground_truth_agrees_with_the_outline(astronaut, kind, side):
    sized = cv2.resize(astronaut, (side, side), interpolation=cv2.INTER_AREA)
    (record,), files = mask(encoded(sized), kinds=(kind,), ground_truth=True)
    truth = cv2.imdecode(np.frombuffer(files[record["truth"]], np.uint8), cv2.IMREAD_UNCHANGED)
    assert (truth.shape, truth.dtype) == ((side, side), np.uint8)
    assert overlap(truth > 127, covered([record["polygon"]], truth.shape)) > 0.93


def test_the_ground_truth_is_where_the_picture_changes(face_png, astronaut):
    (record,), files = mask(face_png, kinds=("kn95",), ground_truth=True, plain=True)
    change = np.abs(decode(files[record["picture"]], "x").astype(int) - astronaut).max(axis=2)
    truth = decode(files[record["truth"]], "x")[..., 0]
    assert (change[truth == 255] > 3).mean() > 0.9
    assert (change[truth == 0] > 3).mean() < 0.06  # straps


def test_no_ground_truth_is_written_unless_asked_for(face_png):
    (record,), files = mask(face_png)
    assert "truth" not in record
    assert not any(path.startswith("truth") for path in files)


def test_every_variant_has_a_ground_truth(face_png):
    records, files = mask(face_png, variants=2, ground_truth=True)
    assert [r["truth"] for r in records] == ["truth/train/happy/face.png", "truth/train/happy/face~1.png"]
    assert files.keys() > {r["truth"] for r in records}


def test_plain_masks_of_a_kind_look_alike(face_png):
    records, _ = mask(face_png, plain=True, kinds=("kn95",), variants=3)
    assert len({str(record["mask"]) for record in records}) == 1


def test_fits_differ_most_on_a_turned_head(make_landmarks, monkeypatch, face_png):
    def difference(yaw: float) -> float:
        monkeypatch.setattr(picture.FaceFinder, "__call__", lambda *_: [picture.Face((0, 0, 128, 128), landmarks)])
        landmarks = make_landmarks(128, yaw=yaw)
        a, b = (masked(face_png, kinds=("surgical",), plain=True, fit=fit).astype(int) for fit in FITS)
        return float(np.abs(a - b).mean())

    assert difference(35) > 1.5 * difference(0)


def test_an_own_template_is_used_beside_the_drawn_kinds(face_png, own_template):
    records, _ = mask(face_png, kinds=("cloth",), templates=(own_template,), variants=12, keep_bare=False)
    assert {record["mask"]["kind"] for record in records} == {"cloth", "green"}


def test_an_own_template_lends_its_colours(face_png, own_template):
    image = masked(face_png, kinds=(), templates=(own_template,), plain=True).astype(int)
    blue, green, red = cv2.split(image[85:110, 50:80])
    assert (green - np.maximum(blue, red)).mean() > 60


@pytest.fixture
def own_template(tmp_path) -> Kind:
    """A green trapezium."""
    from maskfer_trainer.templates import load_template

    drawn = np.zeros((300, 400, 4), dtype=np.uint8)
    cv2.fillPoly(drawn, [np.array([[60, 20], [340, 20], [380, 160], [200, 290], [20, 160]])], (30, 220, 30, 255))
    cv2.imwrite(str(tmp_path / "green.png"), drawn)
    points = {"nose": [200, 20], "chin": [200, 290], "left-cheek": [20, 120], "right-cheek": [380, 120]}
    (tmp_path / "green.json").write_text(json.dumps(points))
    return load_template(tmp_path / "green.png")


def pair(portrait: np.ndarray) -> np.ndarray:
    """A photograph of two faces: the left one at two thirds of the size."""
    head = portrait[:256, 96:352]
    canvas = np.full((440, 720, 3), 120, dtype=np.uint8)
    canvas[90:346, 20:276] = head
    canvas[30:414, 306:690] = cv2.resize(head, (384, 384), interpolation=cv2.INTER_CUBIC)
    return canvas


@pytest.mark.parametrize(("faces", "stems"), [("largest", ["face"]), ("all", ["face", "face+1"])])
def test_detected_faces_get_a_record_each(portrait, faces, stems):
    records, files = mask(encoded(pair(portrait)), protocol="detected", faces=faces)
    assert [record["stem"] for record in records] == stems
    assert files.keys() == {"bare/train/happy/face.png", "masked/train/happy/face.png"}
    assert all(record["score"] > 0 for record in records)


def test_boxes_lie_on_the_detected_faces_the_largest_first(portrait):
    records, _ = mask(encoded(pair(portrait)), protocol="detected", faces="all")
    middles = [(x + w / 2, y + h / 2) for x, y, w, h in (record["box"] for record in records)]
    # the face's middle stands at (128, 119) of the part that was laid down
    assert middles[0] == pytest.approx((306 + 1.5 * 128, 30 + 1.5 * 119), abs=12)
    assert middles[1] == pytest.approx((20 + 128, 90 + 119), abs=8)
    assert records[0]["box"][2] == pytest.approx(1.5 * records[1]["box"][2], rel=0.1)


def test_a_weak_detection_does_not_count_before_a_face(portrait):
    """In this photograph dlib also sees a large face in the suit, with a score of 0.06."""
    (record,), _ = mask(encoded(np.hstack([portrait, portrait])), protocol="detected")
    assert record["score"] > 1


def test_all_detected_faces_of_a_picture_are_masked_in_it(portrait):
    image = pair(portrait)
    records, files = mask(encoded(image), protocol="detected", faces="all", kinds=("kn95",), ground_truth=True)
    truth = decode(files[records[0]["truth"]], "x")[..., 0] > 127
    assert overlap(truth, covered([record["polygon"] for record in records], truth.shape)) > 0.93
    change = np.abs(decode(files[records[0]["picture"]], "x").astype(int) - image).mean(axis=2)
    assert all(change[covered([r["polygon"]], truth.shape)].mean() > 20 for r in records)


@pytest.mark.parametrize("failing", [0, 1])
def test_a_face_that_no_mask_fits_takes_the_others_none(portrait, monkeypatch, failing):
    made, put_on = [], picture.put_on

    def put_on_or_not(*arguments):
        made.append(arguments)
        if len(made) - 1 == failing:
            raise InputError("the mask lies outside the picture")
        return put_on(*arguments)

    monkeypatch.setattr(picture, "put_on", put_on_or_not)
    records, files = mask(encoded(pair(portrait)), protocol="detected", faces="all")
    assert [record["stem"] for record in records] == [["face+1"], ["face"]][failing]
    assert "masked/train/happy/face.png" in files


def test_detected_faces_of_one_picture_wear_masks_of_their_own(portrait):
    records, _ = mask(encoded(pair(portrait)), protocol="detected", faces="all")
    assert records[0]["mask"] != records[1]["mask"]


@pytest.mark.parametrize("name", ODD_FILES)
def test_rare_kinds_of_picture_files_are_masked_upright(odd_files, astronaut, astronaut_landmarks, name):
    if name not in odd_files:
        pytest.skip("this OpenCV cannot read it")
    (record,), files = mask(odd_files[name], photograph(f"train/happy/{name}"), kinds=("surgical",), plain=True)
    image = decode(files[record["picture"]], name).astype(int)
    change = np.abs(image - astronaut).mean(axis=2)
    assert change[25:45, 40:90].mean() < 12  # forehead and eyes
    assert change[85:110, 50:80].mean() > 30  # the mask
    distances = np.linalg.norm(np.array(record["landmarks"]) - astronaut_landmarks, axis=1)
    assert distances.mean() < 4


def test_what_is_transparent_becomes_white(odd_files):
    assert (masked(odd_files["transparent.png"])[2:18, 2:18] == 255).all()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty (0 bytes)"),
        (b"no picture", "is not a picture that can be read"),
        (encoded(np.full((48, 48), 90, dtype=np.uint8)), "blank: no contrast"),
        (encoded(np.random.default_rng(0).integers(0, 256, (9, 40), dtype=np.uint8)), "too small: under 24 pixels"),
    ],
    ids=["empty", "text", "blank", "tiny"],
)
def test_what_shows_no_face_is_left_out_with_a_reason(data, reason):
    result, files = PictureMasker(BuildSettings())(photograph(), data)
    assert result["source"] == "train/happy/face.png"
    assert result["skipped"].startswith(reason)
    assert not files


def test_a_photograph_in_which_no_face_is_detected_is_left_out(portrait):
    sky = encoded(portrait[:200, 330:])
    result, files = PictureMasker(BuildSettings(protocol="detected"))(photograph(), sky)
    assert (result["skipped"], files) == ("no face detected", {})


@pytest.mark.parametrize("error", [cv2.error("bad"), np.linalg.LinAlgError("Singular matrix"), MemoryError()], ids=repr)
def test_what_goes_wrong_in_one_picture_leaves_out_that_picture_only(monkeypatch, face_png, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(picture, "put_on", fail)
    result, files = PictureMasker(BuildSettings())(photograph(), face_png)
    assert result["skipped"]
    assert not files


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kinds": ("tartan",)}, ["unknown mask kind tartan", *KINDS]),
        ({"kinds": ("cloth", "surgical-blue", "tartan")}, ["unknown mask kind surgical-blue, tartan", *KINDS]),
        ({"worn": ("upside-down",)}, ["unknown way of wearing upside-down", *WORN]),
        ({"fit": "affine"}, ["unknown fit affine", *FITS]),
        ({"protocol": "some"}, ["unknown protocol some", *PROTOCOLS]),
        ({"faces": "smallest"}, ["unknown choice of faces smallest", *FACES]),
        ({"faces": "all"}, ["--faces all needs --protocol detected"]),
        ({"kinds": ()}, ["no mask to choose from", *KINDS]),
        ({"worn": ()}, [*WORN]),
        ({"variants": 0}, ["0 variants", "1 or more"]),
        ({"variants": -1}, ["-1 variants"]),
        ({"templates": (OWN, OWN)}, ["two masks have one name: own"]),
        ({"kinds": ("cloth", "cloth")}, ["two masks have one name: cloth"]),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused_with_the_known_ones(settings, words):
    with pytest.raises(InputError) as refused:
        BuildSettings(**settings)
    assert all(word in str(refused.value) for word in words), refused.value


def test_settings_as_json_name_and_hash_templates():
    info = json.loads(json.dumps(BuildSettings(templates=(OWN,)).as_json()))
    assert list(info["templates"]) == ["own"]
    assert len(info["templates"]["own"]) == 64
    assert info["fit"] == "mesh"


def test_another_picture_or_place_gives_a_template_another_hash():
    changed = [OWN, Kind(**{**vars(OWN), "picture": b"2"}), Kind(**{**vars(OWN), "to_picture": (2.0,) * 9})]
    assert len({str(BuildSettings(templates=(kind,)).as_json()["templates"]) for kind in changed}) == 3
