from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from maskfer_edge.decoding import read_grey
from maskfer_edge.errors import InputError
from maskfer_trainer import cutouts as module
from maskfer_trainer.cutouts import (
    BARE,
    CROP,
    MASKED,
    PHOTOGRAPH,
    cut_out_crops,
    cut_out_photographs,
    cut_out_portrait,
)
from maskfer_trainer.detector_evaluation import Photo, read_photos


@pytest.fixture(scope="module")
def portraits(tmp_path_factory, astronaut):
    """A portrait of one face, whose box is about the middle of the picture."""
    folder = tmp_path_factory.mktemp("portraits")
    cv2.imwrite(str(folder / "0.png"), astronaut)
    (folder / "boxes.csv").write_text("image,xmin,ymin,xmax,ymax,score\n0.png,30,18,100,112,0.9\n")
    return folder


def test_in_a_large_picture_the_mask_is_put_on_the_face(portraits, tmp_path):
    photo = read_photos(portraits)[0]
    plain = read_grey(photo.path)
    height, width = plain.shape
    padded = cv2.copyMakeBorder(plain, height, height, width, width, cv2.BORDER_REPLICATE)
    cv2.imwrite(str(tmp_path / "padded.png"), padded)
    x0, y0, x1, y1 = photo.boxes_xyxy[0] + (width, height, width, height)
    box = np.array([(x0, y0, x1, y1)])
    bare, masked, *_ = cut_out_portrait(Photo(tmp_path / "padded.png", box, np.array([False])), 0)
    left, top, right, bottom = (round(side) for side in masked.box_xyxy)
    # of a bare portrait more is kept
    from_left, from_top = round(bare.box_xyxy[0]) - left, round(bare.box_xyxy[1]) - top
    height, width = masked.image.shape
    changed = bare.image[from_top : from_top + height, from_left : from_left + width] != masked.image
    middle = (top + bottom) // 2
    assert changed[middle:bottom, left:right].mean() > 0.3
    assert changed[: top + (middle - top) // 2].mean() < 0.01  # the forehead, and what is above


def test_a_portrait_of_a_scene_s_size_is_kept_whole(portraits):
    for photo in read_photos(portraits):
        bare = cut_out_portrait(photo, 0)[0]
        assert np.array_equal(bare.image, read_grey(photo.path))
        assert bare.box_xyxy == tuple(photo.boxes_xyxy[0])


def test_a_portrait_is_shown_bare_and_in_several_masks(portraits):
    bare, *masked = cut_out_portrait(read_photos(portraits)[0], 0)
    assert (bare.label, [cutout.label for cutout in masked]) == (BARE, [MASKED] * module.MASKS)
    pictures = [bare.image.tobytes(), *(cutout.image.tobytes() for cutout in masked)]
    assert len(set(pictures)) == len(pictures)
    assert [cutout.image.tobytes() for cutout in cut_out_portrait(read_photos(portraits)[0], 0)] == pictures


def test_the_larger_faces_of_photographs_are_cut_out(tmp_path):
    grey = np.arange(300 * 400, dtype=np.uint32).reshape(300, 400).astype(np.uint8)
    boxes = np.array(
        [
            (50, 60, 78, 88),
            (50, 160, 77, 187),  # too small
            (100, 60, 140, 160),  # too narrow
            (200, 60, 246, 160),
            (300, 60, 350, 110),  # another is near
            (353, 60, 393, 110),  # likewise
        ],
        dtype=float,
    )
    photo = Photo(tmp_path / "x.png", boxes, np.array([True, True, True, False, True, True]))
    cut_out = cut_out_photographs([(grey, photo)])
    assert [cutout.label for cutout in cut_out] == [MASKED, BARE]
    for cutout, (x0, y0, x1, y1) in zip(cut_out, boxes[[0, 3]].astype(int), strict=True):
        left, top, right, bottom = (round(side) for side in cutout.box_xyxy)
        assert cutout.source == PHOTOGRAPH
        assert np.array_equal(cutout.image[top:bottom, left:right], grey[y0:y1, x0:x1])


def test_training_faces_of_a_data_set_are_cut_out_bare_and_masked(dataset, monkeypatch):
    records = [json.loads(line) for line in (dataset / "manifest.jsonl").read_text().splitlines()]
    training = [record for record in records if record["split"] == "train"]
    cut_out = cut_out_crops(dataset, 0)
    assert {cutout.source for cutout in cut_out} == {CROP}
    for label, key in ((BARE, "bare"), (MASKED, "picture")):
        shown = {cutout.image.tobytes() for cutout in cut_out if cutout.label == label}
        assert shown == {read_grey(dataset / record[key]).tobytes() for record in training}
    monkeypatch.setattr(module, "MAX_CROPS", 2)
    assert [cutout.label for cutout in cut_out_crops(dataset, 0)] == [BARE, MASKED] * 2


def made_dataset(folder, records):
    """A data set of one grey picture and its training records."""
    cv2.imwrite(str(folder / "x.png"), np.arange(100 * 120, dtype=np.uint32).reshape(100, 120).astype(np.uint8))
    (folder / "dataset.json").write_text('{"name": "x", "sha256": "0"}')
    whole = {"split": "train", "class": "sad", "stem": "x", "bare": "x.png", "picture": "x.png", "pixels_sha256": "0"}
    lines = [json.dumps({**whole, "box": [0, 0, 48, 48], **record}) for record in records]
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_faces_of_whole_photographs_are_cut_out_by_their_boxes(tmp_path):
    dataset = made_dataset(tmp_path, [{"box": [10, 20, 40, 40]}, {"box": [60, 20, 30, 30]}])
    sides = sorted((cutout.image.shape, cutout.label) for cutout in cut_out_crops(dataset, 0))
    assert sides == [((side, side), label) for side in (30, 40) for label in (MASKED, BARE)]
    image = read_grey(tmp_path / "x.png")
    assert image[20:60, 10:50].tobytes() in {cutout.image.tobytes() for cutout in cut_out_crops(dataset, 0)}


def test_copies_of_a_face_are_one_and_show_some_of_its_masks(tmp_path):
    dataset = made_dataset(tmp_path, [{"stem": str(number)} for number in range(5)])
    assert [cutout.label for cutout in cut_out_crops(dataset, 0)] == [BARE] + [MASKED] * module.MASKED_CROPS


def test_a_data_set_without_bare_pictures_is_refused(tmp_path):
    made_dataset(tmp_path, [{}])
    line = json.loads((tmp_path / "manifest.jsonl").read_text())
    del line["bare"]
    (tmp_path / "manifest.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(InputError, match=r"holds no bare pictures; build it again with them \(--keep-bare\)"):
        cut_out_crops(tmp_path, 0)


def test_a_missing_picture_is_named(tmp_path):
    made_dataset(tmp_path, [{"picture": "gone.png"}])
    with pytest.raises(InputError, match=r"gone\.png"):
        cut_out_crops(tmp_path, 0)


def test_a_data_set_without_training_faces_is_refused(tmp_path):
    made_dataset(tmp_path, [{"split": "test"}])
    with pytest.raises(InputError, match="has no training faces"):
        cut_out_crops(tmp_path, 0)
