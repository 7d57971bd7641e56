from __future__ import annotations

import cv2
import numpy as np
import pytest

from maskfer_edge.detector import HaarDetector, iou
from maskfer_edge.errors import InputError
from maskfer_trainer import detector_evaluation
from maskfer_trainer.detector_evaluation import half, read_photos
from maskfer_trainer.haar_tuning import CASCADES, MIN_NEIGHBORS, HaarTrial, as_text, rank_trials, tune_haar

LABELLED = "image,label,xmin,ymin,xmax,ymax"


@pytest.mark.parametrize("cascade", CASCADES)
def test_more_neighbours_drop_only_what_fewer_agree_on(portrait, cascade):
    few, many = (HaarDetector(1.1, n, cascade=cascade, equalisation="histogram")(portrait) for n in (2, 5))
    assert sorted(many, key=lambda d: d.box) == sorted((d for d in few if d.score > 5), key=lambda d: d.box)
    assert many


@pytest.mark.parametrize(("equalisation", "finds"), [("none", False), ("histogram", True), ("clahe", True)])
def test_evened_out_contrast_shows_a_face_in_the_dark(portrait, equalisation, finds):
    detector = HaarDetector(1.1, 3, cascade=CASCADES[0], equalisation=equalisation)
    detections = detector((portrait // 12).astype(np.uint8))
    assert any(iou(d.box, (176, 65, 97, 97)) > 0.5 for d in detections) == finds


def test_only_the_tuning_half_is_looked_at(tmp_path, portrait, monkeypatch):
    small = cv2.resize(portrait, (128, 128), interpolation=cv2.INTER_AREA)
    names = [f"{i}.png" for i in range(6)]
    for name in names:
        cv2.imwrite(str(tmp_path / name), small)
    (tmp_path / "boxes.csv").write_text("\n".join([LABELLED, *(f"{n},without_mask,40,15,72,47" for n in names)]) + "\n")
    read = []
    monkeypatch.setattr(detector_evaluation, "read_picture", lambda path: read.append(path.name) or small)
    photos = read_photos(tmp_path)
    read.clear()
    seen = []
    trials = tune_haar(photos, least_px=16, min_face=20, progress=lambda done, total: seen.append((done, total)))
    assert {half(name) for name in names} == {"tuning", "testing"}
    assert read == [name for name in names if half(name) == "tuning"]
    assert (len(trials), seen[-1]) == (27 * len(MIN_NEIGHBORS), (len(read), len(read)))
    assert len({(t.cascade, t.equalisation, t.scale_factor, t.min_neighbors) for t in trials}) == len(trials)
    assert all(t.recall_masked is None for t in trials)
    assert max(t.recall_bare for t in trials) == 1.0


def test_no_tuning_half_is_refused():
    with pytest.raises(InputError, match="tuning half"):
        tune_haar([])


def trial(cascade: str, neighbors: int, recall: float | None, false: float, ms: float) -> HaarTrial:
    return HaarTrial(cascade, "none", 1.1, neighbors, recall, 0.5, false, ms)


def test_trials_within_the_limits_come_the_best_first():
    present = trial(CASCADES[0], 3, 0.2, 0.1, 10)
    allowed = trial(CASCADES[1], 4, 0.4, 0.3, 20)
    faster = trial(CASCADES[2], 4, 0.4, 0.3, 19)
    without_masks = trial(CASCADES[1], 4, None, 0.0, 1)
    trials = [
        present,
        trial(CASCADES[1], 3, 0.9, 0.31, 10),
        without_masks,
        trial(CASCADES[2], 3, 0.9, 0.1, 21),
        allowed,
    ]
    assert rank_trials([*trials, faster], max_false_boxes=0.3, max_slowdown=2) == [
        faster,
        allowed,
        present,
        without_masks,
    ]
    with pytest.raises(InputError, match=r"no setting of the cascade stays within 0.05 false boxes .* allow more"):
        rank_trials([present], max_false_boxes=0.05, max_slowdown=2)


def test_the_table_shows_ten_and_a_dash_for_what_there_is_not():
    lines = as_text([trial(CASCADES[0], 3, None, 0.25, 12.34)] * 12).splitlines()
    assert (len(lines), len({len(line) for line in lines})) == (11, 1)
    assert lines[1].split() == ["frontalface_default", "none", "1.10", "3", "-", "50.0%", "0.25", "12.3"]
