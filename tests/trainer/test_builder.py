from __future__ import annotations

import csv
import hashlib
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from maskfer_edge.dataset import CLASS_FOLDERS, manifest, read_part
from maskfer_edge.errors import DependencyError, InputError, OutputError
from maskfer_trainer import builder
from maskfer_trainer.builder import BuildSettings, build_dataset
from maskfer_trainer.masks import KINDS

PICTURES = 7 * (7 + 3)


@pytest.fixture
def small_source(tmp_path, make_source) -> Path:
    """One training and one test face of each class."""
    return make_source(tmp_path / "small", train=1, test=1)


def test_the_expected_files_are_made(dataset, read_folder):
    files = {name for name in read_folder(dataset) if "/" not in name}
    assert files == {"dataset.json", "manifest.jsonl", "skipped.csv", "contact-sheet.png"}


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
    records = manifest(dataset)
    assert len(records) == PICTURES
    for record in records:
        assert (dataset / record["picture"]).is_file()
        assert (dataset / record["bare"]).is_file()
        assert record["mask"]["kind"] in KINDS
        assert np.shape(record["pivots"]) == (4, 2)
        assert np.shape(record["landmarks"]) == (68, 2)


def test_the_info_counts_pictures_and_holds_the_manifests_hash(dataset):
    info = json.loads((dataset / "dataset.json").read_text())
    assert info["counts"]["train"] == dict.fromkeys(CLASS_FOLDERS, 7)
    assert info["sha256"] == hashlib.sha256((dataset / "manifest.jsonl").read_bytes()).hexdigest()


def test_several_kinds_of_mask_are_used(dataset):
    assert len({record["mask"]["kind"] for record in manifest(dataset)}) == len(KINDS)


def test_a_test_picture_that_stands_in_train_is_marked(dataset):
    marked = [record["source"] for record in manifest(dataset) if record["in_train"]]
    assert marked == ["test/happy/2.png"]


@pytest.mark.timeout(120)
def test_two_processes_give_the_same_bytes_as_one(tmp_path, source, dataset, read_folder):
    assert PICTURES >= 64  # below that, build_dataset uses one process only
    build_dataset(source, tmp_path / "out", BuildSettings(), workers=2)
    assert read_folder(tmp_path / "out") == read_folder(dataset)


def test_another_seed_gives_other_masks(tmp_path, source, dataset):
    build_dataset(source, tmp_path / "out", BuildSettings(seed=1), workers=1)
    assert [r["mask"] for r in manifest(tmp_path / "out")] != [r["mask"] for r in manifest(dataset)]


def test_only_the_kinds_asked_for_are_used(tmp_path, small_source):
    build_dataset(small_source, tmp_path / "out", BuildSettings(kinds=("cloth-red",)), workers=1)
    assert {record["mask"]["kind"] for record in manifest(tmp_path / "out")} == {"cloth-red"}


@pytest.mark.parametrize("kinds", [("tartan",), ()])
def test_unknown_kinds_are_refused_with_the_known_ones(kinds):
    with pytest.raises(InputError, match="surgical-blue"):
        BuildSettings(kinds=kinds)


def test_a_zip_gives_the_same_pictures_as_a_folder(tmp_path, small_source, read_folder):
    archive = shutil.make_archive(str(tmp_path / "zipped"), "zip", small_source)
    build_dataset(small_source, tmp_path / "a", BuildSettings(), workers=1)
    build_dataset(Path(archive), tmp_path / "b", BuildSettings(), workers=1)
    a, b = (read_folder(tmp_path / name) for name in "ab")
    assert a.pop("dataset.json") != b.pop("dataset.json")
    assert a == b


def test_a_coloured_picture_stays_coloured(tmp_path, small_source, astronaut):
    cv2.imwrite(str(small_source / "train/sad/colour.png"), astronaut)
    build_dataset(small_source, tmp_path / "out", BuildSettings(kinds=("surgical-blue",)), workers=1)
    blue, _, red = cv2.split(cv2.imread(str(tmp_path / "out/masked/train/sad/colour.png")).astype(int))
    assert (blue - red)[80:115, 50:80].mean() > 20


def unusable_files(folder: Path) -> dict[str, str]:
    """Files that no face can be found in, and the reason that the report must give."""
    random = np.random.default_rng(0)
    (folder / "empty.png").write_bytes(b"")
    whole = cv2.imencode(".png", random.integers(0, 255, (48, 48), dtype=np.uint8))[1].tobytes()
    (folder / "corrupt.png").write_bytes(whole[:8] + bytes(len(whole) - 8))
    (folder / "notes.txt").write_text("no picture")
    (folder / "text.png").write_text("no picture either")
    cv2.imwrite(str(folder / "blank.png"), np.full((48, 48), 90, dtype=np.uint8))
    cv2.imwrite(str(folder / "tiny.png"), random.integers(0, 255, (9, 9), dtype=np.uint8))
    return {"empty.png": "empty", "corrupt.png": "not a picture", "notes.txt": "not a picture: .txt",
            "text.png": "not a picture", "blank.png": "blank", "tiny.png": "too small"}  # fmt: skip


def test_unusable_files_are_reported_with_a_reason(tmp_path, small_source):
    expected = unusable_files(small_source / "train/fear")
    report = build_dataset(small_source, tmp_path / "out", BuildSettings(), workers=1)
    with (tmp_path / "out/skipped.csv").open() as file:
        reasons = {Path(row["source"]).name: row["reason"] for row in csv.DictReader(file)}
    assert reasons.keys() == expected.keys()
    assert all(word in reasons[name] for name, word in expected.items())
    assert (report.pictures, report.skipped) == (14, len(expected))


def test_skipped_files_leave_no_picture(tmp_path, small_source):
    unusable_files(small_source / "train/fear")
    build_dataset(small_source, tmp_path / "out", BuildSettings(), workers=1)
    assert [p.name for p in (tmp_path / "out/masked/train/fear").iterdir()] == ["0.png"]


def test_a_class_without_any_face_is_refused_and_nothing_is_left(tmp_path, small_source):
    (small_source / "test/fear/0.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"test/fear.*empty"):
        build_dataset(small_source, tmp_path / "out", BuildSettings(), workers=1)
    assert not list(tmp_path.glob("out*"))


def test_an_existing_output_is_refused(tmp_path, small_source):
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="already there"):
        build_dataset(small_source, tmp_path / "out", BuildSettings())
    assert not list((tmp_path / "out").iterdir())


def interrupt_after(count: int):
    def progress(done: int, total: int) -> None:
        if done == count:
            raise KeyboardInterrupt

    return progress


def test_an_interrupted_build_goes_on_where_it_stopped(tmp_path, small_source, read_folder):
    build_dataset(small_source, tmp_path / "whole", BuildSettings(), workers=1)
    with pytest.raises(KeyboardInterrupt):
        build_dataset(small_source, tmp_path / "out", BuildSettings(), 1, interrupt_after(6))
    assert not (tmp_path / "out").exists()
    seen: list[int] = []
    build_dataset(small_source, tmp_path / "out", BuildSettings(), 1, lambda done, _: seen.append(done))
    assert seen == list(range(7, 15))
    assert read_folder(tmp_path / "out") == read_folder(tmp_path / "whole")


def test_a_record_cut_in_the_middle_is_made_again(tmp_path, small_source, read_folder):
    build_dataset(small_source, tmp_path / "whole", BuildSettings(), workers=1)
    with pytest.raises(KeyboardInterrupt):
        build_dataset(small_source, tmp_path / "out", BuildSettings(), 1, interrupt_after(6))
    log = tmp_path / "out.partial/progress.jsonl"
    log.write_bytes(log.read_bytes()[:-30])
    build_dataset(small_source, tmp_path / "out", BuildSettings(), workers=1)
    assert read_folder(tmp_path / "out") == read_folder(tmp_path / "whole")


def test_an_unfinished_build_with_other_settings_is_refused(tmp_path, small_source):
    with pytest.raises(KeyboardInterrupt):
        build_dataset(small_source, tmp_path / "out", BuildSettings(), 1, interrupt_after(3))
    with pytest.raises(OutputError, match="other settings"):
        build_dataset(small_source, tmp_path / "out", BuildSettings(seed=1), 1)


def test_a_full_disk_is_one_error_that_says_how_to_go_on(tmp_path, small_source, monkeypatch):
    def full(self, photo):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(builder._Worker, "_mask", full)
    with pytest.raises(OutputError, match=r"No space left.*goes on"):
        build_dataset(small_source, tmp_path / "out", BuildSettings(), workers=1)


@pytest.mark.parametrize("workers", [1, 2])
def test_missing_dlib_is_found_before_anything_is_written(tmp_path, source, monkeypatch, workers):
    monkeypatch.setitem(__import__("sys").modules, "dlib", None)
    with pytest.raises(DependencyError, match=r"pip install 'maskfer\[trainer\]'"):
        build_dataset(source, tmp_path / "out", BuildSettings(), workers)
    assert not list(tmp_path.glob("out*"))
