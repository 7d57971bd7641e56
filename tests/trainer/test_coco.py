from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from matplotlib.path import Path

from maskfer_trainer.coco import CATEGORIES, coco

SQUARE = [[10, 20], [30, 20], [30, 45], [10, 45]]
# round inner corners, as a mask under the chin has them
CHIN = [[5, 5], [11, 5], [11, 25], [27, 25], [27, 5], [34, 5], [34, 34], [5, 34]]
CORNER = [[2, 2], [9, 2], [9, 30], [40, 30], [40, 38], [2, 38]]


def record(picture: str = "masked/test/sad/0.png", **changes):
    defaults = {
        "picture": picture, "size": [64, 48], "class": "sad", "box": [5, 4, 40, 40], "polygon": SQUARE,
        "mask": {"kind": "cloth", "worn": "chin", "colour": [0, 0, 1]},
    }  # fmt: skip
    return {**defaults, **changes}


def annotations(*records, name: str):
    found = coco(list(records))
    (category,) = (c["id"] for c in found["categories"] if c["name"] == name)
    return [a for a in found["annotations"] if a["category_id"] == category]


def check_structure(found) -> None:
    """What cocodataset.org's "Data format" asks for, for object detection."""
    assert found.keys() >= {"images", "annotations", "categories"}
    for part in found.values():
        ids = [one["id"] for one in part]
        assert len(set(ids)) == len(ids) and all(isinstance(one, int) and one > 0 for one in ids)
    sizes = {image["id"]: (image["width"], image["height"]) for image in found["images"]}
    assert all(isinstance(image["file_name"], str) for image in found["images"])
    categories = {category["id"] for category in found["categories"]}
    for a in found["annotations"]:
        assert a["category_id"] in categories
        assert a["iscrowd"] in (0, 1)
        width, height = sizes[a["image_id"]]
        x, y, w, h = a["bbox"]
        assert min(x, y) >= 0 < min(w, h)
        assert x + w <= width and y + h <= height
        assert a["area"] > 0
        for polygon in a["segmentation"]:
            assert len(polygon) >= 6 and len(polygon) % 2 == 0
            points = np.reshape(polygon, (-1, 2))
            assert (points >= 0).all() and (points <= (width, height)).all()


@pytest.mark.parametrize(
    "records",
    [
        [],
        [record()],
        [record(), record("masked/test/sad/1.png")],
        [record(), record(box=[20, 4, 40, 40], polygon=[[20, 9], [50, 9], [35, 30]])],
        [record(box=[-10, -6, 90, 90])],
        [record(polygon=[[0, 20], [63, 20], [63, 47], [0, 47]])],
        [record(polygon=[[7, 47], [30, 47]])],  # a mask under the chin of which the picture shows one row
        [record(polygon=[[7, 47]])],
    ],
    ids=["none", "one", "two-pictures", "two-faces", "box-beyond", "to-the-edge", "a-line", "a-point"],
)
def test_the_structure_is_that_of_coco(records):
    found = coco(records)
    check_structure(found)
    assert json.loads(json.dumps(found)) == found


def test_categories_are_face_and_mask():
    assert [c["name"] for c in coco([])["categories"]] == ["face", "mask"] == [c["name"] for c in CATEGORIES]


def test_two_faces_of_a_picture_share_an_image():
    found = coco([record(), record(box=[20, 4, 40, 40]), record("masked/test/sad/1.png")])
    assert [image["file_name"] for image in found["images"]] == ["masked/test/sad/0.png", "masked/test/sad/1.png"]
    assert [a["image_id"] for a in found["annotations"]] == [1, 1, 1, 1, 2, 2]


def test_an_image_has_its_size():
    (image,) = coco([record()])["images"]
    assert (image["width"], image["height"]) == (64, 48)


def test_a_face_has_its_box():
    (face,) = annotations(record(), name="face")
    assert (face["bbox"], face["area"]) == ([5, 4, 40, 40], 1600)


def test_the_box_of_a_face_is_cut_at_the_pictures_edge():
    (face,) = annotations(record(box=[-10, 30, 30, 30]), name="face")
    assert (face["bbox"], face["area"]) == ([0, 30, 20, 18], 360)


def test_a_mask_has_the_box_and_area_of_its_outline():
    (mask,) = annotations(record(), name="mask")
    # to within the pixel by which outlines are counted from middles or from edges
    assert mask["bbox"] == pytest.approx([10, 20, 20, 25], abs=1)
    assert mask["area"] == pytest.approx(20 * 25, abs=20 + 25 + 1)
    assert np.reshape(mask["segmentation"][0], (-1, 2)).min(axis=0) == pytest.approx([10, 20], abs=1)


@pytest.mark.parametrize(
    "polygon", [SQUARE, [[3, 3], [20, 5], [12, 30]], [[7, 40], [30, 40], [30, 41], [7, 41]], CHIN, CORNER]
)
def test_a_segmentation_covers_the_pixels_of_the_mask(polygon):
    """The manifest's outlines run through the middles of pixels; COCO and its readers count from their edges."""
    (mask,) = annotations(record(polygon=polygon), name="mask")
    expected = cv2.fillPoly(np.zeros((48, 64), dtype=np.uint8), [np.array(polygon)], 1) > 0
    outline = Path(np.reshape(mask["segmentation"][0], (-1, 2)))
    middles = np.stack(np.meshgrid(np.arange(64) + 0.5, np.arange(48) + 0.5), axis=-1)
    covered = outline.contains_points(middles.reshape(-1, 2)).reshape(48, 64)
    assert (covered & expected).sum() / (covered | expected).sum() > 0.95
    assert mask["area"] == pytest.approx(expected.sum(), rel=0.02)


@pytest.mark.parametrize("name", ["face", "mask"])
def test_both_say_the_expression(name):
    (annotation,) = annotations(record(), name=name)
    assert annotation["expression"] == "sad"


def test_a_mask_says_kind_and_way_of_wearing():
    (mask,) = annotations(record(), name="mask")
    assert (mask["kind"], mask["worn"]) == ("cloth", "chin")
