import json

import cv2
import numpy as np
import pytest

from maskfer_edge.contract import preprocess
from maskfer_edge.dataset import CLASS_FOLDERS, PictureSet, dataset_info, manifest, read_part
from maskfer_edge.decoding import decode, read_picture
from maskfer_edge.errors import InputError


def encoded(suffix=".png", shape=(40, 30, 3)):
    return cv2.imencode(suffix, np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))[1].tobytes()


def small_dataset(root, per_class=2, **changes):
    """Blank pictures of 48 pixels, bare ones brighter by 100; `changes` go into every record."""
    records = []
    for label, folder in enumerate(CLASS_FOLDERS):
        for part in ("masked", "bare"):
            (root / part / "train" / folder).mkdir(parents=True)
        for number in reversed(range(per_class)):
            picture = np.full((48, 48), 10 * label + number, np.uint8)
            name = f"train/{folder}/{number}.png"
            paths = {"picture": f"masked/{name}", "bare": f"bare/{name}"}
            cv2.imwrite(str(root / paths["picture"]), picture)
            cv2.imwrite(str(root / paths["bare"]), picture + 100)
            records.append(
                {"split": "train", "class": folder, "stem": str(number), **paths, "box": [0, 0, 48, 48], **changes}
            )
    write_manifest(root, records)
    return root


def write_manifest(root, records):
    (root / "manifest.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def without(records, *keys):
    return [{key: value for key, value in record.items() if key not in keys} for record in records]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp"])
def test_decode_gives_three_channels(suffix):
    assert decode(encoded(suffix), "x").shape == (40, 30, 3)


def test_decode_makes_grey_three_channels():
    assert decode(encoded(shape=(40, 30)), "x").shape == (40, 30, 3)


def test_decode_keeps_the_channel_order():
    image = np.zeros((4, 4, 3), np.uint8)
    image[..., 0] = 200
    np.testing.assert_array_equal(decode(cv2.imencode(".png", image)[1].tobytes(), "x"), image)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes"),
        (b"no picture", "not a picture"),
        (encoded()[:20], "not a picture"),
        (encoded(".jpg")[:900], "not a picture"),
    ],
)
def test_decode_refuses_what_is_no_picture(data, message):
    with pytest.raises(InputError, match=f"my.png.*{message}"):
        decode(data, "my.png")


def test_read_picture_names_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.png cannot be read"):
        read_picture(tmp_path / "none.png")


def test_dataset_info_reads_the_json(tmp_path):
    (tmp_path / "dataset.json").write_text('{"name": "faces", "sha256": "00", "seed": 3}')
    assert dataset_info(tmp_path) == {"name": "faces", "sha256": "00", "seed": 3}


def test_dataset_info_refuses_a_missing_folder(tmp_path):
    with pytest.raises(InputError, match=r"is not a folder.*build-dataset"):
        dataset_info(tmp_path / "none")


@pytest.mark.parametrize("content", [None, "{", "[]", "\xff"])
def test_dataset_info_refuses_a_missing_or_damaged_json(tmp_path, content):
    if content is not None:
        (tmp_path / "dataset.json").write_bytes(content.encode("latin1"))
    with pytest.raises(InputError, match=r"dataset\.json"):
        dataset_info(tmp_path)


def test_manifest_keeps_the_order(tmp_path):
    records = [{"split": "test", "class": "sad", "stem": name} for name in "cab"]
    write_manifest(tmp_path, records)
    assert list(manifest(tmp_path)) == records


@pytest.mark.parametrize("content", [None, '{"a": 1}\n{"b"', "5"])
def test_manifest_refuses_a_missing_or_damaged_file(tmp_path, content):
    if content is not None:
        (tmp_path / "manifest.jsonl").write_text(content)
    with pytest.raises(InputError, match=r"manifest\.jsonl"):
        list(manifest(tmp_path))


@pytest.mark.parametrize("line", ["{}", "[]", "[" * 100_000])
def test_a_manifest_whose_lines_say_nothing_is_damaged(tmp_path, line):
    small_dataset(tmp_path)
    with (tmp_path / "manifest.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=r"manifest\.jsonl is damaged"):
        read_part(tmp_path, "masked", "train")


def test_read_part_gives_pictures_in_label_and_name_order(tmp_path):
    pictures = read_part(small_dataset(tmp_path), "masked", "train")
    assert pictures.images[:, 0, 0].tolist() == [10 * label + number for label in range(7) for number in range(2)]


def test_read_part_names_class_and_stem(tmp_path):
    assert read_part(small_dataset(tmp_path), "masked", "train").names[:3] == ("angry/0", "angry/1", "disgust/0")


def test_read_part_gives_labels(tmp_path):
    assert read_part(small_dataset(tmp_path, 1), "masked", "train").labels.tolist() == list(range(7))


def test_both_parts_have_the_same_names(tmp_path):
    small_dataset(tmp_path)
    masked, bare = (read_part(tmp_path, part, "train") for part in ("masked", "bare"))
    assert masked.names == bare.names
    np.testing.assert_array_equal(bare.images, masked.images + 100)


def test_read_part_repeats_the_bare_picture_of_several_masked_ones(tmp_path):
    records = list(manifest(small_dataset(tmp_path, 1)))
    write_manifest(tmp_path, [*({**record, "stem": "0~1"} for record in records), *records])
    bare = read_part(tmp_path, "bare", "train")
    assert bare.names[:3] == ("angry/0", "angry/0~1", "disgust/0")
    np.testing.assert_array_equal(bare.images[::2], bare.images[1::2])


@pytest.mark.parametrize("box", [[30, 10, 40, 40], [-20, -20, 40, 40], [60, 60, 80, 80]])
def test_read_part_gives_the_crops_of_the_boxes(tmp_path, box):
    records = list(manifest(small_dataset(tmp_path, 1, box=box)))
    picture = np.random.default_rng(0).integers(0, 256, (90, 100, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / records[0]["picture"]), picture)
    np.testing.assert_array_equal(read_part(tmp_path, "masked", "train").images[0], preprocess(picture, box))


def test_read_part_passes_over_the_other_split(tmp_path):
    records = list(manifest(small_dataset(tmp_path)))
    write_manifest(tmp_path, [*records, {**records[0], "split": "test", "stem": "other"}])
    assert "angry/other" not in read_part(tmp_path, "masked", "train").names


def test_read_part_goes_by_the_manifest_not_the_folder(tmp_path):
    records = list(manifest(small_dataset(tmp_path)))
    cv2.imwrite(str(tmp_path / "masked/train/angry/added.png"), np.zeros((48, 48), np.uint8))
    assert len(read_part(tmp_path, "masked", "train")) == len(records)


def test_read_part_refuses_bare_pictures_that_were_not_kept(tmp_path):
    write_manifest(tmp_path, without(list(manifest(small_dataset(tmp_path))), "bare"))
    assert len(read_part(tmp_path, "masked", "train")) == 14
    with pytest.raises(InputError, match=r"holds no bare pictures; .*--keep-bare"):
        read_part(tmp_path, "bare", "train")


def test_read_part_refuses_a_class_without_pictures(tmp_path):
    records = list(manifest(small_dataset(tmp_path, 1)))
    write_manifest(tmp_path, [record for record in records if record["class"] != "fear"])
    with pytest.raises(InputError, match=r"no train pictures of fear; all seven"):
        read_part(tmp_path, "masked", "train")


def test_read_part_refuses_an_empty_split(tmp_path):
    with pytest.raises(InputError, match=r"no test pictures of angry; all seven"):
        read_part(small_dataset(tmp_path), "masked", "test")


def test_read_part_names_a_picture_that_is_gone(tmp_path):
    (small_dataset(tmp_path) / "masked/train/fear/0.png").unlink()
    with pytest.raises(InputError, match=r"fear/0\.png cannot be read"):
        read_part(tmp_path, "masked", "train")


def test_read_part_refuses_a_data_set_of_the_first_version(tmp_path):
    """Its records have no boxes."""
    write_manifest(tmp_path, without(list(manifest(small_dataset(tmp_path))), "box"))
    with pytest.raises(InputError, match=r"build .*again"):
        read_part(tmp_path, "masked", "train")


@pytest.mark.parametrize(("indices", "names"), [([2, 0], ("c", "a")), ([False, True, True], ("b", "c")), ([], ())])
def test_take_chooses_by_number_or_mask(indices, names):
    pictures = PictureSet(np.zeros((3, 48, 48), np.uint8), np.arange(3), ("a", "b", "c"))
    chosen = np.asarray(indices, dtype=None if indices else np.int64)
    assert pictures.take(chosen).names == names
