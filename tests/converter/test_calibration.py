from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest

from maskfer_converter.calibration import calibration_pictures
from maskfer_edge.contract import LABELS
from maskfer_edge.dataset import read_part
from maskfer_edge.errors import InputError


def test_they_are_of_every_class_and_reach_black_and_white(dataset):
    calibration = calibration_pictures(dataset, 4, 0)
    pictures = calibration.pictures
    assert (pictures.shape, pictures.dtype) == ((4 * 7 + 2, 48, 48, 1), np.float32)
    assert (pictures[-2].max(), pictures[-1].min()) == (0, 255)
    assert (calibration.counts, calibration.seed) == (dict.fromkeys(LABELS, 4), 0)


@pytest.mark.parametrize("per_class", [1, 2, 3])
def test_they_are_masked_and_bare_in_turn(dataset, per_class):
    pictures = calibration_pictures(dataset, per_class, 0).pictures[:-2, ..., 0]
    for i, picture in enumerate(pictures):
        part = read_part(dataset, ("masked", "bare")[i % per_class % 2], "train")
        assert (part.images[part.labels == i // per_class] == picture).all(axis=(1, 2)).any()


def test_the_seed_chooses_them(dataset):
    first, again, other = (calibration_pictures(dataset, 3, seed).pictures for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_too_few_are_refused(dataset):
    with pytest.raises(InputError, match="7 training pictures of Angry; 8 are needed"):
        calibration_pictures(dataset, 8, 0)


def test_empty_pictures_are_refused(tmp_path, dataset):
    copy = shutil.copytree(dataset, tmp_path / "black")
    for record in map(json.loads, (copy / "manifest.jsonl").read_text().splitlines()):
        if record["class"] == "fear":
            cv2.imwrite(str(copy / record["picture"]), np.zeros((48, 48), np.uint8))
    with pytest.raises(InputError, match="2 of 28 calibration pictures are of one grey, one of Fear first"):
        calibration_pictures(copy, 4, 0)


def test_a_data_set_of_one_class_is_refused(tmp_path, dataset):
    copy = shutil.copytree(dataset, tmp_path / "happy")
    lines = (copy / "manifest.jsonl").read_text().splitlines(keepends=True)
    (copy / "manifest.jsonl").write_text("".join(line for line in lines if json.loads(line)["class"] == "happy"))
    with pytest.raises(InputError, match="no train pictures of angry; all seven classes are needed"):
        calibration_pictures(copy, 4, 0)
