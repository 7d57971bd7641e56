from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import weakref
import zlib
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest

from maskfer_edge.contract import preprocess
from maskfer_edge.dataset import CLASS_FOLDERS, manifest, read_part
from maskfer_edge.decoding import read_picture
from maskfer_edge.errors import DependencyError, InputError, OutputError
from maskfer_trainer import builder, picture, workers
from maskfer_trainer.builder import build_dataset
from maskfer_trainer.masks import KINDS
from maskfer_trainer.picture import BuildSettings
from maskfer_trainer.templates import load_template

PICTURES = 7 * (7 + 3)

pytestmark = pytest.mark.usefixtures("one_predictor")


@pytest.fixture
def small_source(tmp_path, make_source) -> Path:
    """One training and one test face of each class."""
    return make_source(tmp_path / "small", train=1, test=1)


@pytest.fixture(scope="module")
def strangers(tmp_path_factory) -> Path:
    """One training and one test face of each class, each of another photograph."""
    from skimage.data import lfw_subset

    folder = tmp_path_factory.mktemp("strangers") / "faces"
    faces = iter((255 * lfw_subset()[:14]).astype(np.uint8))
    for split in ("train", "test"):
        for name in CLASS_FOLDERS:
            (folder / split / name).mkdir(parents=True)
            write(folder / split / name / "0.png", cv2.resize(next(faces), (48, 48), interpolation=cv2.INTER_CUBIC))
    return folder


@pytest.fixture
def twins(tmp_path, strangers) -> Path:
    """`strangers` with an exact and a near copy of training faces in test."""
    folder = shutil.copytree(strangers, tmp_path / "twins")
    shutil.copy(folder / "train/sad/0.png", folder / "test/sad/copy.png")
    face = cv2.imread(str(folder / "train/fear/0.png"), cv2.IMREAD_GRAYSCALE)
    write(folder / "test/happy/brighter.png", np.clip(1.1 * face + 8, 0, 255).astype(np.uint8))
    return folder


def write(path: Path, image: np.ndarray) -> None:
    assert cv2.imwrite(str(path), image)


def build(source: Path, out: Path, **settings):
    return build_dataset(source, out, BuildSettings(**settings), workers=1)


def skips(dataset: Path) -> dict[str, str]:
    with (dataset / "skipped.csv").open(newline="") as file:
        return {row["source"]: row["reason"] for row in csv.DictReader(file)}


def interrupt_after(count: int):
    def progress(done: int, total: int) -> None:
        if done == count:
            raise KeyboardInterrupt

    return progress


def start(source: Path, out: Path, monkeypatch, batches: int = 2, **settings) -> None:
    """A build that is interrupted after some batches of three pictures."""
    monkeypatch.setattr(builder, "BATCH", 3)
    with pytest.raises(KeyboardInterrupt):
        build_dataset(source, out, BuildSettings(**settings), 1, interrupt_after(3 * batches))


# --- what is written


def test_the_expected_files_are_made(dataset, read_folder):
    files = {name for name in read_folder(dataset) if "/" not in name}
    assert files == {"dataset.json", "manifest.jsonl", "skipped.csv", "contact-sheet.png"}


def test_a_bare_and_a_masked_picture_of_each_face_is_kept(dataset, read_folder):
    parts = [name.split("/")[0] for name in read_folder(dataset) if "/" in name]
    assert (parts.count("masked"), parts.count("bare"), len(parts)) == (PICTURES, PICTURES, 2 * PICTURES)


@pytest.mark.parametrize("part", ["masked", "bare"])
@pytest.mark.parametrize(("split", "count"), [("train", 49), ("test", 21)])
def test_both_parts_can_be_read(dataset, part, split, count):
    pictures = read_part(dataset, part, split)
    assert len(pictures) == count
    assert np.bincount(pictures.labels).tolist() == [count // 7] * 7


def test_masked_and_bare_pictures_have_the_same_names(dataset):
    assert read_part(dataset, "masked", "train").names == read_part(dataset, "bare", "train").names


def test_bare_pictures_are_the_sources_bytes(dataset, source):
    assert (dataset / "bare/train/sad/2.png").read_bytes() == (source / "train/sad/2.png").read_bytes()


def test_masks_change_the_lower_half_more(dataset):
    masked, bare = (read_part(dataset, part, "train").images.astype(float) for part in ("masked", "bare"))
    change = np.abs(masked - bare).mean(axis=(0, 2))
    assert change[28:42].mean() > 8 * change[:14].mean()


def test_each_picture_has_a_manifest_record(dataset):
    records = list(manifest(dataset))
    assert len(records) == PICTURES
    for record in records:
        assert (dataset / record["picture"]).is_file()
        assert (dataset / record["bare"]).is_file()
        assert record["mask"]["kind"] in KINDS
        assert np.shape(record["polygon"])[1] == 2
        assert np.shape(record["landmarks"]) == (68, 2)
        assert record["box"] == [0, 0, 48, 48]


def test_the_info_counts_pictures_and_holds_the_manifests_hash(dataset):
    info = json.loads((dataset / "dataset.json").read_text())
    assert (info["version"], info["pictures"], info["skipped"]) == (2, PICTURES, 0)
    assert info["counts"]["train"] == dict.fromkeys(CLASS_FOLDERS, 7)
    assert info["sha256"] == hashlib.sha256((dataset / "manifest.jsonl").read_bytes()).hexdigest()


def test_the_info_holds_all_settings(dataset):
    info = json.loads((dataset / "dataset.json").read_text())
    assert {name: info[name] for name in BuildSettings.__dataclass_fields__} == json.loads(
        json.dumps(BuildSettings().as_json())
    )


def test_several_kinds_of_mask_are_used(dataset):
    assert len({record["mask"]["kind"] for record in manifest(dataset)}) == len(KINDS)


@pytest.mark.timeout(120)
def test_two_processes_give_the_same_bytes_as_one(tmp_path, source, dataset, read_folder):
    build_dataset(source, tmp_path / "out", BuildSettings(), workers=2)
    assert read_folder(tmp_path / "out") == read_folder(dataset)


def test_another_seed_gives_other_masks(tmp_path, source, dataset):
    build(source, tmp_path / "out", seed=1)
    assert [r["mask"] for r in manifest(tmp_path / "out")] != [r["mask"] for r in manifest(dataset)]


@pytest.mark.parametrize("seed", [-1, 2**70])
def test_every_whole_number_is_a_seed(tmp_path, small_source, seed):
    assert build(small_source, tmp_path / "out", seed=seed).pictures == 14


def test_only_the_kinds_asked_for_are_used(tmp_path, small_source):
    build(small_source, tmp_path / "out", kinds=("cloth",))
    assert {record["mask"]["kind"] for record in manifest(tmp_path / "out")} == {"cloth"}


def test_a_zip_gives_the_same_pictures_as_a_folder(tmp_path, small_source, read_folder):
    archive = shutil.make_archive(str(tmp_path / "zipped"), "zip", small_source)
    build(small_source, tmp_path / "a")
    build(Path(archive), tmp_path / "b")
    a, b = (read_folder(tmp_path / name) for name in "ab")
    assert a.pop("dataset.json") != b.pop("dataset.json")
    assert a == b


def test_the_report_counts_faces_by_split_and_class(tmp_path, small_source):
    report = build(small_source, tmp_path / "out")
    assert (report.pictures, report.skipped, report.reasons) == (14, 0, {})
    assert report.counts == {split: dict.fromkeys(CLASS_FOLDERS, 1) for split in ("train", "test")}


# --- options


@pytest.fixture(scope="module")
def full(tmp_path_factory, make_source):
    """A data set with everything that may be written, and three variants."""
    folder = tmp_path_factory.mktemp("full")
    source = make_source(folder / "small", train=2, test=1)
    worn = ("properly", "under-nose")
    build(source, folder / "out", variants=3, ground_truth=True, coco=True, worn=worn, kinds=("cloth", "kn95"))
    return folder / "out"


def test_variants_are_made_of_training_faces_only(full):
    assert {p.name for p in (full / "masked/train/sad").iterdir()} == {
        f"{face}{variant}.png" for face in (0, 1) for variant in ("", "~1", "~2")
    }
    assert [p.name for p in (full / "masked/test/sad").iterdir()] == ["0.png"]


def test_variants_have_one_bare_picture(full):
    assert {p.name for p in (full / "bare/train/sad").iterdir()} == {"0.png", "1.png"}


def test_masked_and_bare_variants_are_aligned(full):
    masked, bare = (read_part(full, part, "train") for part in ("masked", "bare"))
    assert masked.names == bare.names
    assert masked.names[:6] == ("angry/0", "angry/0~1", "angry/0~2", "angry/1", "angry/1~1", "angry/1~2")
    assert np.array_equal(bare.images[0], bare.images[1])
    assert not np.array_equal(masked.images[0], masked.images[1])
    assert np.abs(masked.images[:, :10].astype(int) - bare.images[:, :10]).mean() < 3  # one forehead


def test_variants_wear_different_masks(full):
    masks = [str(r["mask"]) for r in manifest(full) if r["source"] == "train/sad/0.png"]
    assert len(set(masks)) == 3


def test_a_file_named_like_a_variant_is_kept_apart(tmp_path, small_source):
    shutil.copy(small_source / "train/sad/0.png", small_source / "train/sad/0~1.png")
    build(small_source, tmp_path / "out", variants=2)
    records = [r for r in manifest(tmp_path / "out") if r["split"] == "train"]
    assert len({r["picture"] for r in records}) == len({(r["class"], r["stem"]) for r in records}) == len(records)


def test_a_file_named_like_a_second_face_is_kept_apart(tmp_path, large_source):
    shutil.copy(large_source / "train/sad/two.png", large_source / "train/sad/two+1.png")
    build(large_source, tmp_path / "out", protocol="detected", faces="all", keep_bare=False)
    records = [r for r in manifest(tmp_path / "out") if r["split"] == "train"]
    assert len({(r["class"], r["stem"]) for r in records}) == len(records)


def test_ways_of_wearing_stand_in_the_manifest(full):
    assert {r["mask"]["worn"] for r in manifest(full)} == {"properly", "under-nose"}


def test_every_masked_picture_has_a_ground_truth(full):
    for record in manifest(full):
        truth = cv2.imread(str(full / record["truth"]), cv2.IMREAD_UNCHANGED)
        drawn = cv2.fillPoly(np.zeros((48, 48), np.uint8), [np.array(record["polygon"])], 255)
        assert ((truth > 127) & (drawn > 0)).sum() / ((truth > 127) | (drawn > 0)).sum() > 0.93


@pytest.mark.parametrize(("split", "images"), [("train", 7 * 2 * 3), ("test", 7)])
def test_coco_files_name_the_masked_pictures(full, split, images):
    found = json.loads((full / f"coco-{split}.json").read_text())
    assert len(found["images"]) == images
    assert len(found["annotations"]) == 2 * images
    for image in found["images"]:
        picture = cv2.imread(str(full / image["file_name"]))
        assert picture.shape[:2] == (image["height"], image["width"])


@pytest.mark.parametrize(
    ("options", "absent"), [({"keep_bare": False}, "bare"), ({}, "truth"), ({}, "coco-train.json")]
)
def test_what_is_not_asked_for_is_not_written(tmp_path, small_source, options, absent):
    build(small_source, tmp_path / "out", **options)
    assert not (tmp_path / "out" / absent).exists()


def test_a_data_set_without_bare_pictures_says_how_to_get_them(tmp_path, small_source):
    build(small_source, tmp_path / "out", keep_bare=False)
    assert len(read_part(tmp_path / "out", "masked", "train")) == 7
    with pytest.raises(InputError, match="--keep-bare"):
        read_part(tmp_path / "out", "bare", "train")


@pytest.mark.parametrize("change", [{"plain": True}, {"fit": "homography"}])
def test_other_drawing_gives_other_pictures(tmp_path, small_source, change, read_folder):
    build(small_source, tmp_path / "a", kinds=("surgical",))
    build(small_source, tmp_path / "b", kinds=("surgical",), **change)
    a, b = (read_folder(tmp_path / name / "masked") for name in "ab")
    assert a.keys() == b.keys()
    assert all(a[name] != b[name] for name in a)


def make_template(folder: Path) -> Path:
    drawn = np.zeros((300, 400, 4), dtype=np.uint8)
    cv2.fillPoly(drawn, [np.array([[60, 20], [340, 20], [380, 160], [200, 290], [20, 160]])], (30, 220, 30, 255))
    write(folder / "green.png", drawn)
    points = {"nose": [200, 20], "chin": [200, 290], "left-cheek": [20, 120], "right-cheek": [380, 120]}
    (folder / "green.json").write_text(json.dumps(points))
    return folder / "green.png"


def test_an_own_template_is_used_and_its_hash_kept(tmp_path, small_source):
    template = load_template(make_template(tmp_path))
    build(small_source, tmp_path / "out", kinds=(), templates=(template,))
    assert {record["mask"]["kind"] for record in manifest(tmp_path / "out")} == {"green"}
    info = json.loads((tmp_path / "out/dataset.json").read_text())["templates"]
    assert info == BuildSettings(templates=(template,)).as_json()["templates"]


@pytest.mark.timeout(120)
def test_an_own_template_reaches_other_processes(tmp_path, small_source, read_folder, monkeypatch):
    monkeypatch.setattr(builder, "BATCH", 7)
    settings = BuildSettings(kinds=(), templates=(load_template(make_template(tmp_path)),))
    build_dataset(small_source, tmp_path / "a", settings, workers=1)
    build_dataset(small_source, tmp_path / "b", settings, workers=2)
    assert read_folder(tmp_path / "a") == read_folder(tmp_path / "b")


def test_an_unfinished_build_with_another_template_is_refused(tmp_path, small_source, monkeypatch):
    path = make_template(tmp_path)
    start(small_source, tmp_path / "out", monkeypatch, templates=(load_template(path),))
    path.with_suffix(".json").write_text(path.with_suffix(".json").read_text().replace("290", "280"))
    with pytest.raises(OutputError, match="other settings"):
        build(small_source, tmp_path / "out", templates=(load_template(path),))


@pytest.fixture
def large_source(tmp_path, portrait) -> Path:
    """The portrait once a class; as ``two.png`` of sad its face twice, the right one larger."""
    head = portrait[20:220, 124:324]
    canvas = np.full((340, 560, 3), 120, dtype=np.uint8)
    canvas[70:270, 20:220] = head
    canvas[20:320, 240:540] = cv2.resize(head, (300, 300), interpolation=cv2.INTER_CUBIC)
    for split in ("train", "test"):
        for name in CLASS_FOLDERS:
            (tmp_path / "large" / split / name).mkdir(parents=True)
            write(tmp_path / "large" / split / name / "one.png", head)
    write(tmp_path / "large/train/sad/two.png", canvas)
    write(tmp_path / "large/train/sad/none.png", portrait[:200, 330:])
    return tmp_path / "large"


@pytest.mark.parametrize(("faces", "names"), [("largest", ["sad/one", "sad/two"]),
                                              ("all", ["sad/one", "sad/two", "sad/two+1"])])  # fmt: skip
def test_detected_faces_are_read_as_crops(tmp_path, large_source, portrait, faces, names):
    build(large_source, tmp_path / "out", protocol="detected", faces=faces)
    bare = read_part(tmp_path / "out", "bare", "train")
    assert [name for name in bare.names if name.startswith("sad/")] == names
    expected = preprocess(portrait, (167, 62, 114, 114))  # FER2013's framing of the portrait's face
    for name in names:
        crop = bare.images[bare.names.index(name)]
        assert cv2.matchTemplate(crop[6:42, 6:42], expected[9:39, 9:39], cv2.TM_CCOEFF_NORMED).max() > 0.9


def test_a_photograph_without_a_face_is_reported(tmp_path, large_source):
    report = build(large_source, tmp_path / "out", protocol="detected")
    assert skips(tmp_path / "out") == {"train/sad/none.png": "no face detected"}
    assert report.reasons == {"no face detected": 1}


# --- duplicates


def test_a_test_picture_that_stands_in_train_is_marked(tmp_path, twins):
    report = build(twins, tmp_path / "out")
    marks = {r["source"]: (r["in_train"], r["near_train"]) for r in manifest(tmp_path / "out")}
    assert {source: mark for source, mark in marks.items() if mark != ("", "")} == {
        "test/sad/copy.png": ("train/sad/0.png", ""),
        "test/happy/brighter.png": ("", "train/fear/0.png"),
    }
    assert (report.duplicates_in_test, report.near_duplicates_in_test, report.skipped) == (1, 1, 0)


def test_duplicates_are_left_out_when_asked(tmp_path, twins):
    report = build(twins, tmp_path / "out", dedupe=True, ground_truth=True)
    assert skips(tmp_path / "out") == {
        "test/sad/copy.png": "also stands in train: train/sad/0.png",
        "test/happy/brighter.png": "also stands in train: train/fear/0.png",
    }
    assert (report.pictures, report.skipped) == (14, 2)
    assert (report.duplicates_in_test, report.near_duplicates_in_test) == (1, 1)


def test_duplicates_left_out_are_counted_under_one_reason(tmp_path, twins):
    assert build(twins, tmp_path / "out", dedupe=True).reasons == {"also stands in train": 2}


def test_without_duplicates_none_are_counted(tmp_path, strangers):
    report = build(strangers, tmp_path / "out", dedupe=True)
    assert (report.pictures, report.skipped, report.reasons) == (14, 0, {})


def test_duplicates_left_out_leave_no_files(tmp_path, twins, read_folder):
    build(twins, tmp_path / "out", dedupe=True, ground_truth=True, coco=True)
    left = [name for name in read_folder(tmp_path / "out") if "copy" in name or "brighter" in name]
    assert not left
    assert b"copy.png" not in (tmp_path / "out/manifest.jsonl").read_bytes()
    assert b"copy.png" not in (tmp_path / "out/coco-test.json").read_bytes()


def test_a_class_that_is_all_duplicates_is_refused(tmp_path, twins):
    shutil.copy(twins / "train/sad/0.png", twins / "test/sad/0.png")
    with pytest.raises(InputError, match=r"test/sad .*3 × also stands in train"):
        build(twins, tmp_path / "out", dedupe=True)


# --- odd files


def unusable_files(folder: Path) -> dict[str, str]:
    """Files that no face can be found in, and the reason that the report must give."""
    random = np.random.default_rng(0)
    (folder / "empty.png").write_bytes(b"")
    whole = cv2.imencode(".png", random.integers(0, 255, (48, 48), dtype=np.uint8))[1].tobytes()
    (folder / "corrupt.png").write_bytes(whole[:8] + bytes(len(whole) - 8))
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("no picture")
    (folder / "bare name").write_text("no picture")
    (folder / "text.png").write_text("no picture either")
    write(folder / "blank.png", np.full((48, 48), 90, dtype=np.uint8))
    write(folder / "tiny.png", random.integers(0, 255, (9, 9), dtype=np.uint8))
    return {"empty.png": "is empty (0 bytes)", "corrupt.png": "is not a picture that can be read",
            "cut.png": "is not a picture that can be read", "notes.txt": "not a picture: .txt",
            "bare name": "not a picture: no suffix", "text.png": "is not a picture that can be read",
            "blank.png": "blank: no contrast", "tiny.png": "too small: under 24 pixels"}  # fmt: skip


def test_unusable_files_are_reported_with_a_reason(tmp_path, small_source):
    expected = unusable_files(small_source / "train/fear")
    report = build(small_source, tmp_path / "out")
    found = skips(tmp_path / "out")
    assert found.keys() == {f"train/fear/{name}" for name in expected}
    assert all(found[f"train/fear/{name}"].startswith(reason) for name, reason in expected.items())
    assert (report.pictures, report.skipped) == (14, len(expected))
    assert sum(report.reasons.values()) == len(expected)


def test_skipped_files_leave_no_picture(tmp_path, small_source):
    unusable_files(small_source / "train/fear")
    build(small_source, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out/masked/train/fear").iterdir()] == ["0.png"]
    assert [p.name for p in (tmp_path / "out/bare/train/fear").iterdir()] == ["0.png"]


def test_rare_kinds_of_picture_files_are_masked_among_unusable_ones(tmp_path, small_source, odd_files):
    unusable = unusable_files(small_source / "train/fear")
    for name, data in odd_files.items():
        (small_source / "train/fear" / name).write_bytes(data)
    report = build(small_source, tmp_path / "out", kinds=("surgical",), plain=True)
    assert (report.pictures, report.skipped) == (14 + len(odd_files), len(unusable))
    masked, bare = (read_part(tmp_path / "out", part, "train") for part in ("masked", "bare"))
    for stem in (Path(name).stem for name in odd_files):
        for index in (i for i, name in enumerate(masked.names) if name.startswith(f"fear/{stem}")):
            change = np.abs(masked.images[index].astype(int) - bare.images[index])
            assert change[9:17, 15:33].mean() < 4 < change[32:41, 19:30].mean()


@pytest.mark.parametrize("name", ['a\nb,"c.png', "é😀.png", "a b.png", "0.PNG", "a..b.png"])
def test_any_name_is_a_name(tmp_path, small_source, name):
    shutil.copy(small_source / "train/sad/0.png", small_source / "train/sad" / name)
    assert build(small_source, tmp_path / "out").pictures == 15
    assert len(read_part(tmp_path / "out", "bare", "train")) == 8


def test_a_name_that_is_not_utf_8_is_a_name_too(tmp_path, small_source):
    with suppress(OSError):  # some file systems refuse it
        shutil.copy(small_source / "train/sad/0.png", os.fsencode(small_source / "train/sad") + b"/\xff\xfe.png")
        assert build(small_source, tmp_path / "out").pictures == 15


def test_a_file_that_cannot_be_read_is_reported_without_its_place_on_the_disk(tmp_path, small_source, monkeypatch):
    shutil.copy(small_source / "train/sad/0.png", small_source / "train/sad/gone.png")
    monkeypatch.setattr(builder, "check_space", lambda *_: (small_source / "train/sad/gone.png").unlink())
    report = build(small_source, tmp_path / "out")
    assert skips(tmp_path / "out") == {"train/sad/gone.png": "cannot be read: No such file or directory"}
    assert report.reasons == {"cannot be read: No such file or directory": 1}


def test_a_file_that_ends_every_worker_is_reported(tmp_path, small_source, monkeypatch):
    def run_here(task, batches, count, died):
        for batch in batches:
            yield task([photo for photo in batch if photo.path != "train/sad/bad.png"])
            yield [died(photo) for photo in batch if photo.path == "train/sad/bad.png"]

    shutil.copy(small_source / "train/sad/0.png", small_source / "train/sad/bad.png")
    monkeypatch.setattr(builder, "run_here", run_here)
    build(small_source, tmp_path / "out")
    assert "worker process died" in skips(tmp_path / "out")["train/sad/bad.png"]


@pytest.mark.parametrize("kind", ["comment", "long-comment"])
def test_what_opencv_can_read_does_not_stop_the_contact_sheet(tmp_path, small_source, kind):
    """Pillow refuses text chunks that are damaged or very long."""
    text = b"zTXt", b"a\0\0" + zlib.compress(bytes(3_000_000)) if kind == "long-comment" else b"a\0\0b"
    check = zlib.crc32(b"".join(text)) if kind == "long-comment" else 0
    chunk = struct.pack(">I", len(text[1])) + b"".join(text) + struct.pack(">I", check)
    data = (small_source / "train/sad/0.png").read_bytes()
    (small_source / "train/sad/0.png").write_bytes(data[:33] + chunk + data[33:])
    read_picture(small_source / "train/sad/0.png")
    assert build(small_source, tmp_path / "out").pictures == 14


# --- refusals, and going on


def test_a_class_without_any_face_is_refused_and_nothing_is_left(tmp_path, small_source):
    (small_source / "test/fear/0.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"test/fear.*empty"):
        build(small_source, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_an_existing_output_is_refused(tmp_path, small_source):
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="already there"):
        build(small_source, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_missing_folders_above_the_output_are_made(tmp_path, small_source):
    build(small_source, tmp_path / "a/b/out")
    assert (tmp_path / "a/b/out/dataset.json").is_file()
    assert [p.name for p in (tmp_path / "a/b").iterdir()] == ["out"]


def test_an_interrupted_build_goes_on_where_it_stopped(tmp_path, small_source, read_folder, monkeypatch):
    build(small_source, tmp_path / "whole")
    start(small_source, tmp_path / "out", monkeypatch)
    assert not (tmp_path / "out").exists()
    seen: list[int] = []
    build_dataset(small_source, tmp_path / "out", BuildSettings(), 1, lambda done, _: seen.append(done))
    assert seen == [9, 12, 14]
    assert read_folder(tmp_path / "out") == read_folder(tmp_path / "whole")
    assert not (tmp_path / "out.partial").exists()


def test_records_do_not_gather_in_memory(tmp_path, small_source, monkeypatch):
    """Whether they come from workers or out of the log: all of a large data set would take gigabytes."""

    class Held(dict):
        pass

    finished, alive = [], []

    def stack(result: dict) -> Held:
        result = Held(result)
        finished.append(weakref.ref(result))
        alive.append(sum(reference() is not None for reference in finished))
        return result

    def run_here(task, batches, count, died):
        for batch in batches:
            yield [stack(result) for result in task(batch)]

    read = builder._Log.__getitem__
    monkeypatch.setattr(builder, "BATCH", 1)
    monkeypatch.setattr(builder, "run_here", run_here)
    monkeypatch.setattr(builder._Log, "__getitem__", lambda log, source: stack(read(log, source)))
    build(small_source, tmp_path / "out", coco=True)
    assert len(finished) > 4 * 14
    assert max(alive) <= 3


def test_a_build_that_was_stopped_at_its_end_goes_on(tmp_path, twins, read_folder, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    build(twins, tmp_path / "whole", dedupe=True)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("maskfer_trainer.contact_sheet.contact_sheet", stop)
        build(twins, tmp_path / "out", dedupe=True)
    assert not (tmp_path / "out").exists()
    build(twins, tmp_path / "out", dedupe=True)
    assert read_folder(tmp_path / "out") == read_folder(tmp_path / "whole")


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:-30],
        lambda b: b[:-200] + bytes(200),
        lambda b: b + b'{"sour',
        lambda b: b[:-200] + b"\xff" * 200,
        lambda b: b + b'[1]\n"skipped"\nnull\n{}\n{"source": [], "records": []}\n',
        lambda b: b.replace(b'"records"', b'"recorks"', 1),
        lambda b: b.replace(b'"records": [{', b'"records": [5, {', 1),
    ],
)
def test_a_record_damaged_by_a_power_cut_is_made_again(tmp_path, small_source, read_folder, monkeypatch, damage):
    build(small_source, tmp_path / "whole")
    start(small_source, tmp_path / "out", monkeypatch)
    log = tmp_path / "out.partial/progress.jsonl"
    log.write_bytes(damage(log.read_bytes()))
    build(small_source, tmp_path / "out")
    assert read_folder(tmp_path / "out") == read_folder(tmp_path / "whole")


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_picture_that_a_power_cut_left_out_is_made_again(tmp_path, small_source, read_folder, monkeypatch, damage):
    build(small_source, tmp_path / "whole")
    start(small_source, tmp_path / "out", monkeypatch)
    damage(next((tmp_path / "out.partial/masked").rglob("*.png")))
    build(small_source, tmp_path / "out")
    assert read_folder(tmp_path / "out") == read_folder(tmp_path / "whole")


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"variants": 2}, {"coco": True}, {"dedupe": True}, {"fit": "homography"}, {"worn": ("chin",)},
     {"kinds": ("cloth",)}, {"keep_bare": False}, {"plain": True}, {"ground_truth": True}, {"protocol": "detected"}],
    ids=str,
)  # fmt: skip
def test_an_unfinished_build_with_other_settings_is_refused(tmp_path, small_source, monkeypatch, change):
    start(small_source, tmp_path / "out", monkeypatch, batches=1)
    with pytest.raises(OutputError, match="other settings"):
        build(small_source, tmp_path / "out", **change)


def test_an_unfinished_build_by_another_maskfer_is_refused(tmp_path, small_source, monkeypatch):
    start(small_source, tmp_path / "out", monkeypatch, batches=1)
    monkeypatch.setattr(builder, "version", lambda _: "0.0")
    with pytest.raises(OutputError, match="or by another version of maskfer; remove it"):
        build(small_source, tmp_path / "out")


def test_a_build_that_had_nothing_done_stands_in_the_way_of_no_other(tmp_path, small_source, read_folder, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(builder, "run_here", stop)
        build(small_source, tmp_path / "out")
    (tmp_path / "out.partial/masked/train/sad/old.png").write_text("of that build, not in its log yet")
    build(small_source, tmp_path / "out", seed=1)
    build(small_source, tmp_path / "whole", seed=1)
    assert read_folder(tmp_path / "out") == read_folder(tmp_path / "whole")


def test_two_builds_of_one_folder_do_not_disturb_each_other(tmp_path, small_source, read_folder):
    def second(done: int, total: int) -> None:
        if done == total:
            with pytest.raises(OutputError, match=r"another run is writing .*out\.partial/build\.json"):
                build(small_source, tmp_path / "out", seed=1)

    build_dataset(small_source, tmp_path / "out", BuildSettings(), 1, second)
    build(small_source, tmp_path / "whole")
    assert read_folder(tmp_path / "out") == read_folder(tmp_path / "whole")


@pytest.mark.parametrize("inside", [".", "data", "train/data"])
def test_a_data_set_among_its_own_pictures_is_refused(tmp_path, make_source, monkeypatch, inside):
    source = make_source(tmp_path / "faces", 1, 1)
    monkeypatch.chdir(source)
    with pytest.raises(OutputError, match="already there" if inside == "." else "name a folder outside it"):
        build(Path(), Path(inside))
    assert sorted(path.name for path in source.iterdir()) == ["test", "train"]


def test_an_unfinished_build_of_another_source_is_refused(tmp_path, small_source, monkeypatch):
    start(small_source, tmp_path / "out", monkeypatch, batches=1)
    shutil.copy(small_source / "train/sad/0.png", small_source / "train/sad/added.png")
    with pytest.raises(OutputError, match=r"out\.partial holds an unfinished build with other settings"):
        build(small_source, tmp_path / "out")


def test_a_folder_of_another_kind_is_not_taken_for_an_unfinished_build(tmp_path, small_source):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial/mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="remove it"):
        build(small_source, tmp_path / "out")
    assert (tmp_path / "out.partial/mine.txt").read_text() == "mine"


@pytest.mark.parametrize("where", ["picture", "sheet"])
def test_a_full_disk_is_one_error_that_says_how_to_go_on(tmp_path, small_source, read_folder, monkeypatch, where):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OutputError, match=r"No space left.*goes on"):
        patched.setattr(*((builder, "_write") if where == "picture" else (Path, "rename")), full)
        build(small_source, tmp_path / "out")
    build(small_source, tmp_path / "out")
    build(small_source, tmp_path / "whole")
    assert read_folder(tmp_path / "out") == read_folder(tmp_path / "whole")


def test_a_log_that_cannot_be_closed_hides_no_error(tmp_path, small_source, monkeypatch):
    class Full:
        def __init__(self, file):
            self._file = file

        def __getattr__(self, name):
            return getattr(self._file, name)

        def flush(self):
            raise OSError(28, "No space left on device")

        def close(self):
            self._file.close()
            raise OSError(28, "No space left on device")

    begin = builder._Log.__init__

    def with_full_file(self, partial):
        begin(self, partial)
        self._file = Full(self._file)

    with monkeypatch.context() as patched, pytest.raises(OutputError, match=r"No space left.*goes on"):
        patched.setattr(builder._Log, "__init__", with_full_file)
        build(small_source, tmp_path / "out")


def test_a_data_set_of_the_folder_where_one_is_has_its_name(tmp_path, small_source, monkeypatch):
    monkeypatch.chdir(small_source)
    build(Path(), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["name"] == small_source.name


def test_too_little_space_is_found_before_any_work(tmp_path, small_source, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    monkeypatch.setattr(picture.PictureMasker, "__call__", lambda *_: pytest.fail("worked"))
    with pytest.raises(OutputError, match="MB are needed"):
        build(small_source, tmp_path / "out")


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("library", ["dlib", "imagehash"])
def test_a_missing_library_is_found_before_anything_is_written(tmp_path, source, monkeypatch, count, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(DependencyError, match=rf"{library} is not installed; run: pip install 'maskfer\[trainer\]'"):
        build_dataset(source, tmp_path / "out", BuildSettings(), count)
    assert not list(tmp_path.glob("out*"))


# --- on a cluster


@pytest.fixture
def cluster(tmp_path):
    """The address of a Dask scheduler on this machine, with two worker processes."""
    pytest.importorskip("distributed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    processes: list[subprocess.Popen[bytes]] = []

    def run(*arguments: str) -> None:
        with (tmp_path / f"dask-{len(processes)}.log").open("w") as log:
            command = [sys.executable, "-m", "dask", *arguments, "--no-dashboard"]
            processes.append(
                subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
            )

    try:
        run("scheduler", "--host", address)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        run("worker", address, "--nworkers", "2", "--nthreads", "1")
        yield address
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with the workers that a nanny has started
            process.wait()


@pytest.mark.timeout(180)
def test_a_cluster_gives_the_same_bytes_as_one_process(tmp_path, small_source, read_folder, cluster, monkeypatch):
    unusable_files(small_source / "train/fear")
    settings = BuildSettings(templates=(load_template(make_template(tmp_path)),), variants=2, ground_truth=True)
    build_dataset(small_source, tmp_path / "here", settings, workers=1)
    monkeypatch.setattr(builder, "BATCH", 3)
    monkeypatch.setattr(workers, "NO_WORKER_SECONDS", 60.0)
    counts: list[int] = []
    build_dataset(
        small_source, tmp_path / "out", settings, progress=lambda done, _: counts.append(done), scheduler=cluster
    )
    assert counts[-1] == 14 + 8
    assert read_folder(tmp_path / "out") == read_folder(tmp_path / "here")


def test_a_worker_with_another_maskfer_is_refused():
    with pytest.raises(InputError, match=r"a worker has maskfer .*, this machine 0\.0; install the same"):
        builder._ClusterTask(BuildSettings(), "0.0")([])


def test_an_unreachable_scheduler_is_one_error_and_nothing_is_left(tmp_path, small_source, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr(workers, "CONNECT_SECONDS", 0.5)
    with pytest.raises(InputError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1") as refused:
        build_dataset(small_source, tmp_path / "out", BuildSettings(), scheduler="tcp://127.0.0.1:1")
    assert "\n" not in str(refused.value)
    assert {p.name for p in tmp_path.iterdir()} == {"small"}
