from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from maskfer_edge.errors import InputError
from maskfer_trainer.source import PhotoSource

CLASSES = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
BOTH = [f"{split}/{name}/1.png" for split in ("train", "test") for name in CLASSES]


def make_folder(root: Path, names: list[str]) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def make_zip(path: Path, names: list[str], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), name.encode() * 50, method)
    return path


def paths(root: Path, seed: int = 0) -> list[str]:
    return [photo.path for photo in PhotoSource(root).photographs(seed)]


def test_a_zip_and_a_folder_give_the_same_photographs(tmp_path):
    folder = make_folder(tmp_path / "faces", BOTH)
    archive = make_zip(tmp_path / "faces.zip", BOTH)
    assert PhotoSource(archive).photographs(0) == PhotoSource(folder).photographs(0)


def test_split_and_label_come_from_the_folders(tmp_path):
    photographs = PhotoSource(make_folder(tmp_path, BOTH)).photographs(0)
    found = {photo.path: (photo.split, photo.label) for photo in photographs}
    assert found["test/happy/1.png"] == ("test", 3)
    assert found["train/angry/1.png"] == ("train", 0)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_bytes_are_read(tmp_path, kind):
    root = make_folder(tmp_path / "a", BOTH) if kind == "folder" else make_zip(tmp_path / "a.zip", BOTH)
    assert PhotoSource(root).read("train/sad/1.png").startswith(b"train/sad/1.png")


def plain_layout(count: int) -> list[str]:
    return [f"{name}/{i}.png" for name in CLASSES for i in range(count)]


def test_a_plain_layout_is_split_five_to_one(tmp_path):
    photographs = PhotoSource(make_zip(tmp_path / "a.zip", plain_layout(200))).photographs(0)
    share = sum(photo.split == "test" for photo in photographs) / len(photographs)
    assert share == pytest.approx(1 / 6, abs=0.04)


def test_a_pictures_side_does_not_depend_on_other_files(tmp_path):
    few = PhotoSource(make_zip(tmp_path / "few.zip", plain_layout(60))).photographs(0)
    many = {p.path: p.split for p in PhotoSource(make_zip(tmp_path / "many.zip", plain_layout(80))).photographs(0)}
    assert [many[photo.path] for photo in few] == [photo.split for photo in few]


def test_a_zip_may_name_the_folder_that_it_was_made_in(tmp_path):
    names = [f"./{name}" for name in BOTH]
    source = PhotoSource(make_zip(tmp_path / "a.zip", names))
    photographs = source.photographs(0)
    assert [p.path for p in photographs] == sorted(BOTH)
    assert source.read(photographs[0].path).startswith(f"./{photographs[0].path}".encode())


def test_of_two_ways_to_write_one_path_in_a_zip_the_last_counts(tmp_path):
    source = PhotoSource(make_zip(tmp_path / "a.zip", [*BOTH, f"./{BOTH[0]}"]))
    assert [p.path for p in source.photographs(0)] == sorted(BOTH)
    assert source.read(BOTH[0]).startswith(b"./")


def test_another_seed_splits_otherwise(tmp_path):
    source = PhotoSource(make_zip(tmp_path / "a.zip", plain_layout(60)))
    assert [p.split for p in source.photographs(0)] != [p.split for p in source.photographs(1)]


def test_class_and_split_names_count_in_any_case(tmp_path):
    names = [name.replace("train/happy", "Train/HAPPY") for name in BOTH]
    photographs = PhotoSource(make_folder(tmp_path, names)).photographs(0)
    assert ("Train/HAPPY/1.png", "train", 3) in [(p.path, p.split, p.label) for p in photographs]


def test_a_folder_around_everything_is_looked_through(tmp_path):
    names = [f"outer/inner/{name}" for name in BOTH]
    assert paths(make_zip(tmp_path / "a.zip", names)) == sorted(names)


@pytest.mark.parametrize(
    "extra", ["__MACOSX/train/angry/._1.png", ".git/config", "train/.DS_Store", "README.md", "train/angry/.hidden.png"]
)
def test_what_is_no_photograph_is_passed_over(tmp_path, extra):
    assert paths(make_folder(tmp_path, [*BOTH, extra])) == sorted(BOTH)


def test_stems_are_unique_within_split_and_class(tmp_path):
    names = [*BOTH, "train/angry/1.jpg", "train/angry/sub/1.png", "train/angry/1-2.png"]
    photographs = PhotoSource(make_folder(tmp_path, names)).photographs(0)
    stems = [photo.stem for photo in photographs if (photo.split, photo.label) == ("train", 0)]
    assert len(stems) == len(set(stems)) == 4


@pytest.mark.parametrize("letter", ["x", "é"])
def test_long_names_leave_room_for_numbers_and_suffixes(tmp_path, letter):
    long = letter * (245 // len(letter.encode()))
    source = PhotoSource(make_folder(tmp_path / "src", [*BOTH, f"train/angry/{long}1.png", f"train/angry/{long}2.png"]))
    stems = [photo.stem for photo in source.photographs(0) if photo.stem.startswith(letter)]
    assert len(set(stems)) == 2
    for stem in stems:
        (tmp_path / f"{stem}~10+10.jpeg").touch()


@pytest.mark.parametrize("unknown", ["train/bored", "validation/angry"])
def test_an_unknown_folder_is_named(tmp_path, unknown):
    with pytest.raises(InputError, match=unknown.split("/")[0 if "validation" in unknown else 1]):
        paths(make_folder(tmp_path, [*BOTH, f"{unknown}/1.png"]))


def test_a_missing_class_is_named(tmp_path):
    with pytest.raises(InputError, match="test/fear"):
        paths(make_folder(tmp_path, [name for name in BOTH if name != "test/fear/1.png"]))


def test_a_class_that_the_split_left_empty_is_explained(tmp_path):
    with pytest.raises(InputError, match=r"once a sixth of them is drawn for test; give more .* or folders train/"):
        paths(make_folder(tmp_path, plain_layout(7)))


def test_backslashes_in_a_zip_are_explained(tmp_path):
    archive = make_zip(tmp_path / "a.zip", [*BOTH, "a\\b.png"])
    with pytest.raises(InputError, match="with backslashes; pack it with another program"):
        paths(archive)


@pytest.mark.parametrize("names", [[], ["a.png"], ["one/a.png", "two/a.png"]])
def test_a_source_without_class_folders_is_refused(tmp_path, names):
    with pytest.raises(InputError, match="no class folders"):
        paths(make_folder(tmp_path, names))


@pytest.mark.parametrize("unsafe", ["../x.png", "/x.png", "train/../../x.png", "C:/x.png"])
def test_unsafe_paths_in_a_zip_are_refused(tmp_path, unsafe):
    archive = make_zip(tmp_path / "a.zip", [*BOTH, unsafe])
    with pytest.raises(InputError, match="unsafe path"):
        paths(archive)


def test_a_source_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        PhotoSource(tmp_path / "nothing")


@pytest.mark.parametrize("cut", [0, 100, -30])
def test_a_zip_cut_short_is_refused(tmp_path, cut):
    archive = make_zip(tmp_path / "a.zip", BOTH)
    archive.write_bytes(archive.read_bytes()[:cut])
    with pytest.raises(InputError, match="whole zip"):
        PhotoSource(archive)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_member_is_named(tmp_path, method):
    archive = make_zip(tmp_path / "a.zip", BOTH, method)
    content = bytearray(archive.read_bytes())
    start = content.index(b"train/fear/1.png") + len("train/fear/1.png")
    content[start : start + 12] = b"\xff" * 12
    archive.write_bytes(content)
    with pytest.raises(InputError, match=r"train/fear/1\.png"):
        PhotoSource(archive).read("train/fear/1.png")


def test_a_member_damaged_in_its_middle_is_named(tmp_path):
    data = np.random.default_rng(0).bytes(5000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("train/fear/1.png", data)
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[2000:3000] = bytes(1000)
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(InputError, match=r"train/fear/1\.png cannot be unpacked"):
        PhotoSource(tmp_path / "a.zip").read("train/fear/1.png")


def test_a_zip_of_a_later_kind_is_refused(tmp_path):
    archive = make_zip(tmp_path / "a.zip", BOTH)
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 6] = 246  # the version that is needed to read it
    archive.write_bytes(content)
    with pytest.raises(InputError, match=r"cannot be read: zip file version 24\.6"):
        paths(archive)


def test_folders_that_are_links_are_followed_but_not_in_circles(tmp_path):
    folder = make_folder(tmp_path / "faces", BOTH)
    expected = paths(folder)
    (folder / "train/sad").rename(tmp_path / "elsewhere")
    (folder / "train/sad").symlink_to(tmp_path / "elsewhere")
    (folder / "test/happy/again").symlink_to(folder)
    assert paths(folder) == expected


def test_a_photograph_that_is_gone_is_named(tmp_path):
    source = PhotoSource(make_folder(tmp_path, BOTH))
    (tmp_path / "train/sad/1.png").unlink()
    with pytest.raises(InputError, match=r"train/sad/1\.png"):
        source.read("train/sad/1.png")


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_the_fingerprint_tells_sources_apart(tmp_path, kind):
    def fingerprint(name: str, names: list[str]) -> str:
        make = make_folder if kind == "folder" else make_zip
        return PhotoSource(make(tmp_path / name, names)).fingerprint()

    assert fingerprint("a", BOTH) == fingerprint("b", BOTH) != fingerprint("c", [*BOTH, "train/sad/2.png"])


def test_a_zip_source_travels_to_another_process_after_reading(tmp_path):
    source = PhotoSource(make_zip(tmp_path / "a.zip", BOTH))
    before = source.read("train/sad/1.png")
    assert pickle.loads(pickle.dumps(source)).read("train/sad/1.png") == before


def test_fer2013_is_understood():
    import os

    folder = Path(os.environ.get("MASKFER_DATA", Path(__file__).parents[2] / "../shared/data"))
    if not (folder / "fer2013.zip").exists():
        pytest.skip(f"{folder}/fer2013.zip is not there (MASKFER_DATA names its folder)")
    photographs = PhotoSource(folder / "fer2013.zip").photographs(0)
    assert {(p.split, p.label) for p in photographs} == {(s, k) for s in ("train", "test") for k in range(7)}
