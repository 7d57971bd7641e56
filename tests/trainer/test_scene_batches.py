from __future__ import annotations

import multiprocessing
import subprocess
import sys

import cv2
import numpy as np
import pytest

from maskfer_edge.errors import InputError
from maskfer_edge.scenes import GroundTruth
from maskfer_trainer import scene_batches as module
from maskfer_trainer.detector_targets import targets
from maskfer_trainer.scene_batches import SceneSet, batches_of, make_batch, random_affine, random_lighting, read_scenes


@pytest.fixture(scope="module")
def scenes():
    """Six scenes of one bright square each."""
    images = np.full((6, 240, 320), 60, np.uint8)
    faces = [[(40 + 30 * number, 50 + 15 * number, 50, 60)] for number in range(6)]
    for image, ((x, y, w, h),) in zip(images, faces, strict=True):
        image[y : y + h, x : x + w] = 220
    return SceneSet(images, [GroundTruth(boxes, [(5, 5, 7, 7)]) for boxes in faces])


@pytest.fixture
def plainly(monkeypatch):
    """Without another light and distractors."""
    monkeypatch.setattr(module, "random_lighting", lambda image, random: image)
    monkeypatch.setattr(module, "DISTRACTOR_SHARE", 0.0)


@pytest.fixture
def all_batches(tmp_path):
    def make(scenes, epochs=range(2), seed=0, workers=1):
        with batches_of(scenes, 2, seed, epochs, tmp_path, workers) as batches:
            made = list(batches)
        assert not list(tmp_path.iterdir())
        return made

    return make


def test_processes_that_make_batches_import_no_keras():
    heavy = "{'keras', 'tensorflow', 'matplotlib'}"
    code = f"import sys, maskfer_trainer.scene_batches; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_scenes_are_read_with_their_faces(tmp_path):
    (tmp_path / "scenes").mkdir()
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"scenes/{number:05}.jpg"), np.full((240, 320), 80 * number, np.uint8))
    (tmp_path / "boxes.csv").write_text(
        "image,label,xmin,ymin,xmax,ymax\nscenes/00001.jpg,with_mask,190,125,240,185\nscenes/00001.jpg,ignore,5,5,12,12\n"
    )
    training, validation = read_scenes(tmp_path, {"scenes/00001.jpg"})
    assert (len(training), len(validation)) == (2, 1)
    assert validation.ground_truth == [([(190, 125, 50, 60)], [(5, 5, 7, 7)])]
    assert training.images.mean(axis=(1, 2)).tolist() == [0, 160]


def test_a_scene_of_another_size_is_named(tmp_path):
    (tmp_path / "scenes").mkdir()
    cv2.imwrite(str(tmp_path / "scenes/00000.jpg"), np.zeros((24, 32), np.uint8))
    (tmp_path / "boxes.csv").write_text("image,label,xmin,ymin,xmax,ymax\n")
    with pytest.raises(InputError, match=r"00000\.jpg is not of 320x240 pixels.*trainer build-scenes"):
        read_scenes(tmp_path, set())


def test_a_full_disk_leaves_no_shared_pictures(scenes, tmp_path, monkeypatch):
    def half_written(path, images):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.np, "save", half_written)
    with pytest.raises(OSError, match="No space left"), batches_of(scenes, 2, 0, range(1), tmp_path, workers=2):
        pass
    assert not list(tmp_path.iterdir())


def test_a_moved_scene_s_boxes_lie_on_its_faces(scenes):
    random = np.random.default_rng(0)
    pictures = set()
    for _ in range(20):
        for number in range(len(scenes)):
            image, faces, ignored = random_affine(scenes.images[number], scenes.ground_truth[number].faces, [], random)
            pictures.add(image.tobytes())
            bright = image > 180
            if not faces:  # pushed over the edge, mostly or wholly
                assert bright.sum() == 0 or ignored
                continue
            ((x, y, w, h),) = faces
            # an upright box about a square that is turned by up to 8 degrees
            assert bright[y : y + h, x : x + w].mean() > 0.75
            assert bright[y : y + h, x : x + w].sum() > 0.85 * bright.sum()
    assert len(pictures) == 20 * len(scenes)


class Told:
    """Numbers in the order in which they are asked for: scale, turn, move, mirror."""

    def __init__(self, scale, move, mirrored=False):
        self.numbers, self.mirrored = [np.log(scale), 0.0, np.asarray(move)], mirrored

    def uniform(self, *_):
        return self.numbers.pop(0)

    def random(self):
        return 0.1 if self.mirrored else 0.9


# threefold, each pixel becomes nine whole ones
@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_moved_box_lies_on_its_face_to_the_pixel(scale, mirrored):
    image, face = np.full((240, 320), 60, np.uint8), (145, 110, 20, 30)
    image[110:140, 145:165] = 220
    changed, faces, _ = random_affine(image, [face], [], Told(scale, (0.0, 0.0), mirrored))
    assert faces == [cv2.boundingRect((changed > 140).astype(np.uint8))]


def test_a_face_that_is_pushed_out_or_grows_too_small_is_not_judged():
    image, face = np.zeros((240, 320), np.uint8), (0, 100, 40, 40)
    assert random_affine(image, [face], [], Told(1.0, (0.0, 0.0)))[1:] == ([face], [])
    # 0.15 of 320 pixels is more than the face is wide
    assert random_affine(image, [face], [], Told(1.0, (-1.0, 0.0)))[1:] == ([], [])
    assert random_affine(image, [face], [], Told(1.0, (-0.5, 0.0)))[1:] == ([], [(0, 100, 16, 40)])
    assert random_affine(image, [(160, 120, 15, 15)], [], Told(0.8, (0.0, 0.0)))[1:] == ([], [(160, 120, 12, 12)])


def test_batches_hold_targets_of_the_moved_faces(scenes, plainly, all_batches):
    for images, wanted in all_batches(scenes):
        assert (images.shape, images.dtype, wanted.shape) == ((2, 240, 320, 1), np.uint8, (2, 30, 40, 7))
        for image, maps in zip(images, wanted, strict=True):
            for row, column in np.argwhere(maps[..., 2] > 0):
                here = image[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
                assert here.mean() > image.mean() + 20


def test_a_batch_depends_on_seed_and_epoch_and_its_number_alone(scenes, all_batches):
    both, second = all_batches(scenes), all_batches(scenes, range(1, 2))
    assert (len(both), len(second)) == (6, 3)
    for (images, wanted), (again, wanted_again) in zip(both[3:], second, strict=True):
        np.testing.assert_array_equal(images, again)
        np.testing.assert_array_equal(wanted, wanted_again)
    assert not np.array_equal(both[0][0], both[3][0])
    assert not np.array_equal(both[0][0], all_batches(scenes, seed=1)[0][0])


def test_other_processes_make_the_same_batches(scenes, all_batches):
    for here, there in zip(all_batches(scenes), all_batches(scenes, workers=2), strict=True):
        for a, b in zip(here, there, strict=True):
            np.testing.assert_array_equal(a, b)


def test_processes_end_where_batches_are_not_wanted_any_more(scenes, tmp_path):
    before = set(multiprocessing.active_children())
    with batches_of(scenes, 2, 0, range(1000), tmp_path, workers=2) as batches:
        next(batches)
    assert set(multiprocessing.active_children()) <= before


def test_processes_that_are_ended_change_nothing(scenes, tmp_path, all_batches):
    before = set(multiprocessing.active_children())
    with batches_of(scenes, 2, 0, range(4), tmp_path, workers=2) as batches:
        made = [next(batches)]
        for process in set(multiprocessing.active_children()) - before:
            process.kill()
        made += batches
    assert not list(tmp_path.iterdir())
    for (images, _), (others, _) in zip(made, all_batches(scenes, range(4)), strict=True):
        np.testing.assert_array_equal(images, others)


def test_about_a_third_of_scenes_has_half_its_light_or_less():
    image = np.full((240, 320), 120, np.uint8)
    means = np.array([random_lighting(image, np.random.default_rng(number)).mean() for number in range(600)])
    assert 0.2 < (means < 60).mean() < 0.45
    assert (means > 85).mean() > 0.4
    assert means.min() > 10


def test_what_is_dark_already_stays_visible():
    image = np.tile(np.array([4, 40], np.uint8), (240, 160))
    for number in range(100):
        seen = random_lighting(image, np.random.default_rng(number)).astype(float)
        assert seen[:, 1::2].mean() > seen[:, ::2].mean() + 4


def test_noise_is_of_the_camera_and_not_the_same_twice():
    image = np.full((240, 320), 120, np.uint8)
    seen = [random_lighting(image, np.random.default_rng(number)) for number in range(60)]
    deviations = [picture.std() for picture in seen]
    assert max(deviations) < 7
    assert np.mean(deviations) > 1
    assert len({(picture.astype(int) - int(picture.mean())).tobytes() for picture in seen}) == 60


def test_targets_are_as_their_definition_says(scenes):
    """The whole map for each face at once, which takes longer."""
    columns, rows = np.meshgrid(np.arange(40) + 0.5, np.arange(30) + 0.5)
    random = np.random.default_rng(0)
    for _ in range(50):
        faces, ignored = (
            [tuple(int(n) for n in (*random.integers(0, (250, 180)), *random.integers(4, 70, 2))) for _ in range(3)]
            for _ in range(2)
        )
        heat, judged = np.zeros((30, 40)), np.ones((30, 40))
        for x, y, w, h in ignored:
            inside = (abs(columns - (x + w / 2) / 8) < w / 16 + 0.5) & (abs(rows - (y + h / 2) / 8) < h / 16 + 0.5)
            judged[inside] = 0
        for x, y, w, h in faces:
            column, row = int((x + w / 2) / 8), int((y + h / 2) / 8)
            judged[row, column] = 1
            across, down = max(0.35, 0.13 * w / 8), max(0.35, 0.13 * h / 8)
            apart = (columns - column - 0.5) ** 2 / (2 * across**2) + (rows - row - 0.5) ** 2 / (2 * down**2)
            heat = np.maximum(heat, np.exp(-apart))
        found = targets(faces, ignored)
        np.testing.assert_allclose(found[..., 0], heat, atol=1e-6)
        np.testing.assert_array_equal(found[..., 1], judged)


def test_distractors_come_on_a_third_of_scenes(scenes, monkeypatch):
    drawn = []
    monkeypatch.setattr(module, "draw_distractors", lambda image, boxes, count, random: drawn.append(count))
    for number in range(100):
        make_batch(scenes.images, scenes.ground_truth, (0, 0, number))
    assert 0.3 < len(drawn) / 600 < 0.4
    assert set(drawn) == {1, 2, 3}
