import json

import cv2
import numpy as np
import pytest

from maskfer_edge.dataset import CLASS_FOLDERS, PictureSet, dataset_info, decode, manifest, read_part, read_picture
from maskfer_edge.errors import InputError


def encoded(suffix=".png", shape=(40, 30, 3)):
    return cv2.imencode(suffix, np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))[1].tobytes()


def small_dataset(root, per_class=2):
    for label, folder in enumerate(CLASS_FOLDERS):
        (root / "masked" / "train" / folder).mkdir(parents=True)
        for number in range(per_class):
            picture = np.full((48, 48), 10 * label + number, np.uint8)
            cv2.imwrite(str(root / "masked" / "train" / folder / f"{number}.png"), picture)
    return root


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
    (tmp_path / "dataset.json").write_text('{"seed": 3}')
    assert dataset_info(tmp_path) == {"seed": 3}


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
    records = [{"picture": name} for name in "cab"]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert manifest(tmp_path) == records


@pytest.mark.parametrize("content", [None, '{"a": 1}\n{"b"'])
def test_manifest_refuses_a_missing_or_damaged_file(tmp_path, content):
    if content is not None:
        (tmp_path / "manifest.jsonl").write_text(content)
    with pytest.raises(InputError, match=r"manifest\.jsonl"):
        manifest(tmp_path)


def test_read_part_gives_pictures_in_label_and_name_order(tmp_path):
    pictures = read_part(small_dataset(tmp_path), "masked", "train")
    assert pictures.images[:, 0, 0].tolist() == [10 * label + number for label in range(7) for number in range(2)]


def test_read_part_names_class_and_stem(tmp_path):
    assert read_part(small_dataset(tmp_path), "masked", "train").names[:3] == ("angry/0", "angry/1", "disgust/0")


def test_read_part_gives_labels(tmp_path):
    assert read_part(small_dataset(tmp_path, 1), "masked", "train").labels.tolist() == list(range(7))


def test_read_part_refuses_a_missing_part(tmp_path):
    with pytest.raises(InputError, match="bare/train is not there"):
        read_part(small_dataset(tmp_path), "bare", "train")


def test_read_part_refuses_a_class_without_pictures(tmp_path):
    small_dataset(tmp_path, 1)
    (tmp_path / "masked" / "train" / "fear" / "0.png").unlink()
    with pytest.raises(InputError, match="fear holds no pictures"):
        read_part(tmp_path, "masked", "train")


@pytest.mark.parametrize(("indices", "names"), [([2, 0], ("c", "a")), ([False, True, True], ("b", "c")), ([], ())])
def test_take_chooses_by_number_or_mask(indices, names):
    pictures = PictureSet(np.zeros((3, 48, 48), np.uint8), np.arange(3), ("a", "b", "c"))
    chosen = np.asarray(indices, dtype=None if indices else np.int64)
    assert pictures.take(chosen).names == names
