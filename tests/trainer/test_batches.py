from __future__ import annotations

import numpy as np
import pytest

from maskfer_edge.contract import LABELS
from maskfer_edge.dataset import PictureSet
from maskfer_trainer.batches import FaceBatches
from maskfer_trainer.settings import FitSettings
from maskfer_trainer.teachers import SoftLabels

PLAIN = {"augmentation": 0.0, "cutout": 0.0, "label_smoothing": 0.0, "balance": 0.0, "bare_share": 0.0}


def pictures(labels: list[int], level: int = 0) -> PictureSet:
    """Picture i is of the one grey `level` + i."""
    images = np.stack([np.full((48, 48), level + i, np.uint8) for i in range(len(labels))])
    return PictureSet(images, np.array(labels), tuple(str(i) for i in range(len(labels))))


def batches(
    labels: list[int], faces: list[int] | None = None, bare: PictureSet | None = None, **changes
) -> FaceBatches:
    """Batches of three faces that are not changed, but for `changes`."""
    of_picture = np.array(range(len(labels)) if faces is None else faces)
    soft_labels = changes.pop("soft_labels", None)
    return FaceBatches(
        pictures(labels), bare, of_picture, FitSettings(**{"batch_size": 3, **PLAIN, **changes}), soft_labels
    )


def greys(made: FaceBatches) -> list[int]:
    return [int(face[0, 0, 0]) for i in range(len(made)) for face in made[i][0]]


def test_each_face_comes_once_an_epoch():
    assert sorted(greys(batches([0, 1, 2, 3, 4, 5]))) == list(range(6))


def test_faces_that_fill_no_batch_are_others_each_epoch():
    made = batches([0, 1, 2, 3, 4, 5, 6])
    left_out = set()
    for epoch in range(30):
        made.start_epoch(epoch)
        left_out |= set(range(7)) - set(greys(made))
    assert left_out == set(range(7))


def test_fewer_faces_than_a_batch_are_one_batch():
    assert sorted(greys(batches([0, 1]))) == [0, 1]


def test_each_face_comes_once_in_one_of_its_masks():
    made = batches([0, 0, 1, 1, 1, 2], faces=[7, 7, 3, 3, 3, 1])
    seen = [set(), set(), set()]
    for epoch in range(40):
        made.start_epoch(epoch)
        shown = sorted(greys(made))
        assert [grey in group for grey, group in zip(shown, ({0, 1}, {2, 3, 4}, {5}), strict=True)] == [True] * 3
        for grey, group in zip(shown, seen, strict=True):
            group.add(grey)
    assert seen == [{0, 1}, {2, 3, 4}, {5}]


@pytest.mark.parametrize(("share", "expected"), [(0.0, set(range(6))), (1.0, set(range(100, 106)))])
def test_the_bare_share_chooses_the_part(share, expected):
    labels = [0, 1, 2, 3, 4, 5]
    assert set(greys(batches(labels, bare=pictures(labels, 100), bare_share=share))) == expected


def test_the_bare_share_is_kept_on_average():
    labels = [k % 7 for k in range(50)]
    made = batches(labels, bare=pictures(labels, 100), bare_share=0.3)
    shares = []
    for epoch in range(40):
        made.start_epoch(epoch)
        shares.append(np.mean(np.array(greys(made)) >= 100))
    assert np.mean(shares) == pytest.approx(0.3, abs=0.04)


def test_batches_depend_on_seed_and_epoch_alone():
    changes = {"augmentation": 1.0, "cutout": 0.5, "mixup": 0.2}
    first, second, other = (batches([0, 1, 2, 3], seed=seed, **changes) for seed in (1, 1, 2))
    before = first[0][0]
    first.start_epoch(3)
    second.start_epoch(3)
    other.start_epoch(3)
    assert np.array_equal(first[0][0], second[0][0])
    assert not np.array_equal(first[0][0], before)
    assert not np.array_equal(first[0][0], other[0][0])


def test_targets_are_the_labels():
    made = batches([0, 1, 2, 3, 4, 5, 6])
    for i in range(len(made)):
        faces, targets, weights = made[i]
        assert targets.argmax(axis=1).tolist() == faces[:, 0, 0, 0].astype(int).tolist()
        assert weights.tolist() == [1.0] * len(faces)


def test_label_smoothing_spreads_its_share_over_all_classes():
    targets = batches([4], label_smoothing=0.14)[0][1]
    assert targets[0] == pytest.approx([0.02] * 4 + [0.88] + [0.02] * 2)


ALL_ALIKE, SILENT = np.full((1, 7), 1 / 7, np.float32), np.zeros((1, 7), np.float32)


def test_a_teacher_counts_for_its_share_of_the_target():
    targets = batches([2], soft_labels=SoftLabels(ALL_ALIKE, SILENT), teacher_share=0.7)[0][1]
    assert targets[0] == pytest.approx([0.1, 0.1, 0.4, 0.1, 0.1, 0.1, 0.1])


def test_a_bare_face_is_taught_as_a_bare_one():
    soft_labels = SoftLabels(SILENT, ALL_ALIKE)
    targets = batches([2], bare=pictures([2]), bare_share=1.0, soft_labels=soft_labels, teacher_share=0.7)[0][1]
    assert targets[0] == pytest.approx([0.1, 0.1, 0.4, 0.1, 0.1, 0.1, 0.1])


def test_the_label_alone_counts_where_no_teacher_speaks():
    targets = batches([2], soft_labels=SoftLabels(SILENT, SILENT), teacher_share=0.7)[0][1]
    assert targets[0].tolist() == [0, 0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(("balance", "ratio"), [(0.0, 1.0), (0.5, 2.0), (1.0, 4.0)])
def test_rare_classes_weigh_more(balance, ratio):
    made = batches([0] * 4 + [1], balance=balance, batch_size=5)
    _, targets, weights = made[0]
    rare = targets[:, 1] == 1
    assert weights[rare] / weights[~rare][0] == pytest.approx([ratio])
    assert weights.mean() == pytest.approx(1)


def test_masks_of_one_face_do_not_make_its_class_weigh_less():
    _, targets, weights = batches([0, 0, 0, 1], faces=[0, 0, 0, 1], balance=1.0, batch_size=2)[0]
    assert sorted(targets.argmax(axis=1).tolist()) == [0, 1]
    assert weights == pytest.approx([1, 1])


def test_the_paper_s_network_sees_faces_as_they_are():
    settings = FitSettings(arch="paper", augmentation=0.0, cutout=0.0, batch_size=9)
    steep = np.tile(np.arange(48, dtype=np.uint8), (4, 48, 1))
    masked = PictureSet(steep, np.zeros(4, np.int64), ("a", "b", "c", "d"))
    made = FaceBatches(masked, None, np.arange(4), settings)
    for epoch in range(4):
        made.start_epoch(epoch)
        assert np.array_equal(made[0][0][..., 0], steep.astype(np.float32))


def test_mixup_mixes_targets_as_it_mixes_faces():
    faces, targets, _ = batches([0, 1, 2, 3, 4, 5, 6], mixup=1.0, batch_size=7)[0]
    assert targets.sum(axis=1) == pytest.approx([1] * 7, abs=1e-5)
    assert ((targets > 0.01).sum(axis=1) == 2).any()
    # picture k is of grey k and of class k
    assert faces[:, 0, 0, 0] == pytest.approx(targets @ np.arange(len(LABELS)), abs=1e-4)
