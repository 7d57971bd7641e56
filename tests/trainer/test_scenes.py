from __future__ import annotations

import csv
import errno
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from maskfer_edge.errors import InputError, OutputError
from maskfer_edge.files import lock
from maskfer_trainer import scenes as module
from maskfer_trainer.cutouts import (
    BARE,
    CROP,
    CROP_BOX_XYXY,
    MASKED,
    PHOTOGRAPH,
    PORTRAIT,
    Cutout,
    cut_out_crops,
    cut_out_portrait,
)
from maskfer_trainer.detector_evaluation import Photo, half, read_photos
from maskfer_trainer.scenes import SIZE_WH, SceneSettings, build_scenes


@pytest.fixture(scope="module")
def portraits(tmp_path_factory, astronaut):
    """Three portraits of one face, whose box is about the middle of the picture."""
    folder = tmp_path_factory.mktemp("portraits")
    rows = ["image,xmin,ymin,xmax,ymax,score"]
    for number in range(3):
        cv2.imwrite(str(folder / f"{number}.png"), cv2.convertScaleAbs(astronaut, alpha=1 - 0.1 * number))
        rows.append(f"{number}.png,30,18,100,112,0.9")
    (folder / "boxes.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory, portrait):
    """Photographs of one face and of one that is too small to tell, in both halves."""
    folder = tmp_path_factory.mktemp("photos")
    rows = ["image,label,xmin,ymin,xmax,ymax"]
    for number in range(6):
        cv2.imwrite(str(folder / f"{number}.jpg"), cv2.resize(portrait, (400, 300)))
        rows += [f"{number}.jpg,without_mask,135,40,220,135", f"{number}.jpg,with_mask,5,5,9,9"]
    (folder / "boxes.csv").write_text("\n".join(rows) + "\n")
    assert {half(f"{number}.jpg") for number in range(6)} == {"tuning", "testing"}
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory, portraits, photos):
    out = tmp_path_factory.mktemp("built") / "scenes"
    info = build_scenes(portraits, out, SceneSettings(count=60), photos, workers=1)
    return out, info


def boxes_of(folder):
    """(n, 4) left, top, right, bottom of all faces that are judged."""
    rows = csv.DictReader((folder / "boxes.csv").read_text().splitlines())
    sides = ("xmin", "ymin", "xmax", "ymax")
    return np.array([[int(row[side]) for side in sides] for row in rows if row["label"] != "ignore"])


def test_scenes_and_boxes_are_written(built):
    out, info = built
    assert len(list((out / "scenes").glob("*.jpg"))) == info["count"] == 60
    assert cv2.imread(str(out / "scenes/00000.jpg"), cv2.IMREAD_UNCHANGED).shape == SIZE_WH[::-1]
    assert json.loads((out / "scenes.json").read_text()) == json.loads(json.dumps(info))


def test_about_half_of_the_faces_wear_masks(portraits, tmp_path):
    info = build_scenes(portraits, tmp_path / "scenes", SceneSettings(count=80), workers=1)
    masked, bare = info["faces"]["with_mask"], info["faces"]["without_mask"]
    assert 0.35 < masked / (masked + bare) < 0.65


def test_boxes_lie_within_the_scene(built):
    boxes = boxes_of(built[0])
    assert (boxes >= 0).all()
    assert (boxes[:, 2:] <= SIZE_WH).all()


def test_faces_are_of_many_sizes(built):
    boxes = boxes_of(built[0])
    sides = boxes[:, 3] - boxes[:, 1]
    assert sides.min() < 25
    assert sides.max() > 100


def test_the_same_seed_gives_the_same_scenes(built, portraits, photos, tmp_path):
    build_scenes(portraits, tmp_path / "again", SceneSettings(count=5), photos, workers=2)
    for name in ("scenes/00000.jpg", "scenes/00004.jpg"):
        assert (tmp_path / "again" / name).read_bytes() == (built[0] / name).read_bytes()


def test_another_seed_gives_others(built, portraits, photos, tmp_path):
    build_scenes(portraits, tmp_path / "other", SceneSettings(count=1, seed=1), photos, workers=1)
    assert (tmp_path / "other/scenes/00000.jpg").read_bytes() != (built[0] / "scenes/00000.jpg").read_bytes()


def test_only_the_tuning_half_of_the_photographs_is_used(built, photos):
    tuning = [photo for photo in read_photos(photos) if half(photo.path.name) == "tuning"]
    assert built[1]["photos"] == len(tuning) < 6


def test_faces_of_photographs_that_are_too_small_are_ignored(built):
    assert built[1]["faces"]["ignore"] > 0


def test_a_share_of_the_scenes_is_held_out(built):
    assert 0 < len(built[1]["validation"]) < 15


def test_a_pasted_face_lies_where_its_box_says(portraits, tmp_path, monkeypatch):
    """On an even background, what differs from it lies in and about the boxes."""
    monkeypatch.setattr(module, "_drawn_background", lambda random: np.full(SIZE_WH[::-1], 255, np.uint8))
    monkeypatch.setattr(module, "_as_photographed", lambda image, random: image)
    monkeypatch.setattr(module._Composer, "_paste_distractor", lambda *_: None)
    cutouts = [cutout for photo in read_photos(portraits) for cutout in cut_out_portrait(photo, 0)]
    composer = module._Composer(cutouts, [], 0)
    seen = 0
    for number in range(30):
        scene = composer.compose(number)
        changed = scene.image < 240
        near = np.zeros_like(changed)
        for _, (x, y, w, h) in scene.faces:
            seen += changed[y : y + h, x : x + w].mean() > 0.4
            near[max(0, y - h) : y + 2 * h, max(0, x - w) : x + 2 * w] = True
        assert not (changed & ~near).any()
    assert seen > 20


def test_a_photographed_face_is_covered_by_a_portrait_s(portraits, photos, monkeypatch):
    """What changes lies about the face's own place, and the new box does as well."""
    monkeypatch.setattr(module, "_as_photographed", lambda image, random: image)
    for name in ("_paste_distractor", "_paste_face"):
        monkeypatch.setattr(module._Composer, name, lambda *_: None)
    monkeypatch.setattr(module, "PHOTO_SHARE", 1.0)
    cutouts = [cutout for photo in read_photos(portraits) for cutout in cut_out_portrait(photo, 0)]
    shown = [(module.read_grey(photo.path), photo) for photo in read_photos(photos)]
    scenes = {}
    for share in (0.0, 1.0):
        monkeypatch.setattr(module, "SWAP_SHARE", share)
        composer = module._Composer(cutouts, shown, 0)
        scenes[share] = [composer.compose(number) for number in range(20)]
    swapped = labels = 0
    for before, after in zip(*scenes.values(), strict=True):
        changed = before.image != after.image
        near = np.zeros_like(changed)
        for (label, old), (new_label, new) in zip(before.faces, after.faces, strict=True):
            if label == module.IGNORED or (label, old) == (new_label, new):
                assert new == old
                continue
            swapped += 1
            labels += label != new_label
            x, y, w, h = old
            side = max(w, h)  # of a face at the scene's edge, less is to be seen than is covered
            assert abs(new[0] + new[2] / 2 - x - w / 2) < 0.35 * side
            assert abs(new[1] + new[3] / 2 - y - h / 2) < 0.35 * side
            near[max(0, y - side) : y + h + side, max(0, x - side) : x + w + side] = True
            assert changed[y : y + h, x : x + w].mean() > 0.6
        assert not (changed & ~near).any()
    assert swapped > 5 and 0 < labels < swapped


def test_of_a_large_portrait_only_what_scenes_show_is_kept(astronaut, tmp_path):
    """It lies in the scene as if the whole were pasted."""
    large = np.full((3000, 4000), 90, np.uint8)
    large[500:2100, 1200:2800] = cv2.cvtColor(cv2.resize(astronaut, (1600, 1600)), cv2.COLOR_BGR2GRAY)
    cv2.imwrite(str(tmp_path / "large.png"), large)
    box = 1200 + 30 * 12.5, 500 + 18 * 12.5, 1200 + 100 * 12.5, 500 + 112 * 12.5
    cutouts = cut_out_portrait(Photo(tmp_path / "large.png", np.array([box]), np.array([False])), 0)
    assert sum(cutout.image.nbytes for cutout in cutouts) < 5e6
    for degrees, side in ((0, 210), (30, 320), (-40, 40)):
        placed, whole = (
            module._place(cutout, degrees, side, np.random.default_rng(0), (160, 120))
            for cutout in (cutouts[0], Cutout(large, box, BARE))
        )
        assert placed.box == whole.box
        assert np.allclose(placed.cover, whole.cover, atol=0.01)
        assert np.abs(placed.pixels - whole.pixels)[whole.cover > 0].mean() < 1


def test_faces_come_from_portraits_crops_and_photographs():
    """In the shares that are set, and none of them too small for the place."""
    cutouts = [
        Cutout(np.zeros((60, 60), np.uint8), (10, 0, 50, 50), label, source)
        for label in (MASKED, BARE)
        for source in (PORTRAIT, CROP, PHOTOGRAPH)
    ]
    composer, random = module._Composer(cutouts, [], 0), np.random.default_rng(0)
    drawn = [composer._any_cutout(109, random) for _ in range(2000)]
    for source, share in module.SHARES.items():
        assert abs(np.mean([cutout.source == source for cutout in drawn]) - share) < 0.04
    assert abs(np.mean([cutout.label == MASKED for cutout in drawn]) - 0.5) < 0.04
    assert {composer._any_cutout(111, random).source for _ in range(100)} == {PORTRAIT}
    few = module._Composer([cutout for cutout in cutouts if cutout.source != CROP], [], 0)
    assert {few._any_cutout(50, random).source for _ in range(100)} == {PORTRAIT, PHOTOGRAPH}


def test_a_crop_fades_towards_its_edges(dataset):
    cutout = cut_out_crops(dataset, 0)[0]
    placed = module._place(cutout, 0.0, 96.0, np.random.default_rng(0), (160.0, 120.0))
    x, y, w, h = placed.box
    assert h == 96 and abs(x + w / 2 - 160) < 1 and abs(y + h / 2 - 120) < 1
    assert placed.cover[120, 160] > 0.99
    row = placed.cover[120]
    side = 96 / (CROP_BOX_XYXY[3] - CROP_BOX_XYXY[1])
    assert 0.8 * side < (row > 0).sum() < 1.13 * side and np.abs(np.diff(row)).max() < 0.35


def test_scenes_are_made_of_crops_as_well(dataset, portraits, photos, tmp_path):
    settings = SceneSettings(count=30)
    with_crops = build_scenes(portraits, tmp_path / "with", settings, photos, dataset, workers=1)
    without = build_scenes(portraits, tmp_path / "without", settings, photos, workers=1)
    assert (with_crops["crops"] > 0, without["crops"]) == (True, 0)
    assert with_crops["sha256"] != without["sha256"]
    name = json.loads((dataset / "dataset.json").read_text())["name"]
    assert with_crops["name"] == f"{portraits.name}, {photos.name}, {name}"


def test_what_is_held_out_is_in_validation_scenes_alone():
    cutouts = [
        Cutout(np.full((60, 60), level, np.uint8), (10, 0, 50, 50), label, source, apart)
        for label in (MASKED, BARE)
        for source in (PORTRAIT, CROP, PHOTOGRAPH)
        for level, apart in ((0, False), (255, True))
        if (source, apart) != (CROP, True)  # there may be none
    ]
    training, validation = module._composers(cutouts, [], 0)
    random = np.random.default_rng(0)
    for composer, apart in ((training, False), (validation, True)):
        drawn = [composer._any_cutout(50, random) for _ in range(100)]
        assert {cutout.held_out for cutout in drawn} == {apart}
        assert (CROP in {cutout.source for cutout in drawn}) is not apart


def test_scenes_json_says_what_the_scenes_are(built, portraits, photos, tmp_path):
    """Of other portraits with the same boxes all counts may be the same."""
    info = build_scenes(portraits, tmp_path / "again", SceneSettings(count=60), photos, workers=1)
    assert (info["name"], info["sha256"]) == (f"{portraits.name}, {photos.name}", built[1]["sha256"])
    others = shutil.copytree(portraits, tmp_path / "others")
    for path in others.glob("*.png"):
        cv2.imwrite(str(path), cv2.imread(str(path))[:, ::-1])
    other = build_scenes(others, tmp_path / "other", SceneSettings(count=60), photos, workers=1)
    assert other["sha256"] != info["sha256"]


def test_what_killed_runs_left_is_removed(portraits, tmp_path):
    for name in (".out.killed", ".out.running", ".other.killed"):
        (tmp_path / name / "out/scenes").mkdir(parents=True)
        (tmp_path / name / module.LOCK).touch()
    (tmp_path / ".out.mine").mkdir()
    with (tmp_path / ".out.running" / module.LOCK).open("rb+") as file:
        lock(file, tmp_path)
        build_scenes(portraits, tmp_path / "out", SceneSettings(count=1), workers=1)
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".out.running", ".other.killed", ".out.mine"}


def test_what_takes_long_is_said_and_shown(portraits, tmp_path):
    messages, shown = [], []
    build_scenes(
        portraits,
        tmp_path / "out",
        SceneSettings(count=2),
        workers=1,
        progress=lambda *now: shown.append(now),
        log=messages.append,
    )
    assert messages == ["finding landmarks on 3 portraits"]
    assert shown == [(3, 5), (4, 5), (5, 5)]


def test_a_folder_that_cannot_be_made_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="is no folder"):
        build_scenes(tmp_path / "no portraits", tmp_path / "file" / "out", SceneSettings(count=1))


def test_an_existing_folder_is_kept(portraits, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(OutputError, match="already there"):
        build_scenes(portraits, tmp_path / "mine", SceneSettings())


def test_a_folder_without_boxes_is_refused(tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"boxes\.csv"):
        build_scenes(tmp_path / "none", tmp_path / "out", SceneSettings())
    assert [path.name for path in tmp_path.iterdir()] == ["none"]


def test_a_failure_leaves_nothing(portraits, tmp_path, monkeypatch):
    monkeypatch.setattr(module._Composer, "compose", lambda *_: (_ for _ in ()).throw(InputError("broken")))
    with pytest.raises(InputError, match="broken"):
        build_scenes(portraits, tmp_path / "out", SceneSettings(count=2), workers=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["00001.jpg", "boxes.csv", "scenes.json"])
def test_a_full_disk_is_told_of_and_leaves_nothing(portraits, tmp_path, monkeypatch, name):
    write = Path.write_bytes

    def full(path, data):
        if path.name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"/out cannot be written: No space left on device; nothing is left of it"):
        build_scenes(portraits, tmp_path / "out", SceneSettings(count=2), workers=1)
    assert not list(tmp_path.iterdir())
