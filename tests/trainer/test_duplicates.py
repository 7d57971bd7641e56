from __future__ import annotations

import hashlib
import random

import cv2
import numpy as np
import pytest

from maskfer_trainer import duplicates
from maskfer_trainer.duplicates import MAX_DISTANCE, Duplicate, find_duplicates, perceptual_hash


@pytest.fixture(scope="module")
def face(grey_face: np.ndarray) -> np.ndarray:
    return cv2.resize(grey_face, (48, 48), interpolation=cv2.INTER_AREA)


@pytest.fixture(scope="module")
def strangers() -> list[np.ndarray]:
    """Faces of a hundred photographs: (25, 25) uint8 grey."""
    from skimage.data import lfw_subset

    return list((255 * lfw_subset()[:100]).astype(np.uint8))


def hashes(**pictures: np.ndarray) -> dict[str, tuple[str, str]]:
    return {name: (hashlib.sha256(p.tobytes()).hexdigest(), perceptual_hash(p)) for name, p in pictures.items()}


def with_bits(*bits: int) -> str:
    """A hash in which these bits are 1."""
    return f"{sum(1 << bit for bit in bits):064x}"


def encoded_again(picture: np.ndarray) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_GRAYSCALE)


def brightened(picture: np.ndarray) -> np.ndarray:
    return np.clip(1.2 * picture + 10, 0, 255).astype(np.uint8)


def shifted(picture: np.ndarray) -> np.ndarray:
    return np.pad(picture, ((0, 0), (1, 0)), mode="edge")[:, :-1]


def cropped(picture: np.ndarray) -> np.ndarray:
    return cv2.resize(picture[1:-1, 1:-1], (48, 48))


def blurred(picture: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(picture, (0, 0), 1)


def enlarged(picture: np.ndarray) -> np.ndarray:
    return cv2.resize(picture, (120, 120), interpolation=cv2.INTER_CUBIC)


def stamped(picture: np.ndarray) -> np.ndarray:
    return cv2.putText(picture.copy(), "stock", (4, 40), cv2.FONT_HERSHEY_SIMPLEX, 0.4, 200)


def test_a_hash_is_64_hexadecimal_digits(face):
    assert len(bytes.fromhex(perceptual_hash(face))) == 32


def test_the_same_pixels_are_an_exact_duplicate(face, strangers):
    found = find_duplicates(hashes(other=strangers[0], copy=face), hashes(face=face))
    assert found == {"face": Duplicate("face", "copy", 0, exact=True)}


@pytest.mark.parametrize("change", [encoded_again, brightened, shifted, cropped, blurred, enlarged, stamped])
def test_a_changed_picture_is_a_near_duplicate(face, strangers, change):
    train = hashes(first=strangers[0], changed=change(face), last=strangers[1])
    found = find_duplicates(train, hashes(face=face))["face"]
    assert found.train == "changed" and not found.exact and found.distance <= MAX_DISTANCE


def test_other_faces_are_no_duplicates(strangers):
    named = hashes(**{str(i): picture for i, picture in enumerate(strangers)})
    names = sorted(named)
    train, test = names[:50], names[50:]
    assert find_duplicates({n: named[n] for n in train}, {n: named[n] for n in test}) == {}


def test_a_mirrored_picture_is_not_found(face):
    assert find_duplicates(hashes(mirrored=face[:, ::-1].copy()), hashes(face=face)) == {}


@pytest.mark.parametrize(("in_train", "in_test"), [(0, 0), (0, 1), (1, 0)])
def test_an_empty_part_has_no_duplicates(face, in_train, in_test):
    record = hashes(face=face)
    assert find_duplicates(record if in_train else {}, record if in_test else {}) == {}


@pytest.mark.parametrize(("differing", "is_found"), [(MAX_DISTANCE, True), (MAX_DISTANCE + 2, False)])
def test_the_largest_distance_is_included(differing, is_found):
    train = {"a": ("1", with_bits())}
    found = find_duplicates(train, {"b": ("2", with_bits(*range(differing)))})
    assert found == ({"b": Duplicate("b", "a", differing, exact=False)} if is_found else {})


def test_the_same_pixels_go_before_the_same_hash():
    train = {"a": ("other pixels", with_bits()), "b": ("pixels", with_bits())}
    assert find_duplicates(train, {"c": ("pixels", with_bits())})["c"] == Duplicate("c", "b", 0, exact=True)


def test_the_nearest_is_named():
    train = {"a": ("1", with_bits(0, 1, 2, 3)), "b": ("2", with_bits(0, 1)), "c": ("3", with_bits(4, 5, 6))}
    assert find_duplicates(train, {"d": ("4", with_bits())})["d"].train == "b"


def test_the_answer_does_not_depend_on_the_order():
    # many share pixels or stand at one distance, so that ties are to be broken
    numbers = random.Random(3)
    train = {f"train{i}": (str(numbers.randrange(20)), with_bits(i % 5)) for i in range(40)}
    test = {f"test{i}": (str(numbers.randrange(40)), with_bits(100 + i % 5)) for i in range(20)}
    expected = find_duplicates(train, test)
    assert {found.exact for found in expected.values()} == {True, False}
    for _ in range(5):
        mixed = [dict(numbers.sample(sorted(part.items()), len(part))) for part in (train, test)]
        assert list(find_duplicates(*mixed).items()) == list(expected.items())


def test_blocks_do_not_change_the_answer(monkeypatch):
    numbers = random.Random(4)
    train = {f"train{i:02}": (f"a{i}", with_bits(*numbers.sample(range(256), 30))) for i in range(50)}
    test = {f"test{i:02}": (f"b{i}", with_bits(*numbers.sample(range(256), 30))) for i in range(30)}
    whole = find_duplicates(train, test)
    monkeypatch.setattr(duplicates, "TRAIN_BLOCK", 7)
    monkeypatch.setattr(duplicates, "TEST_BLOCK", 4)
    assert find_duplicates(train, test) == whole != {}


@pytest.mark.parametrize("damaged", ["", "ab", "0" * 63, "0" * 65, "g" * 64])
def test_a_damaged_hash_is_refused(damaged):
    with pytest.raises(ValueError, match="hexadecimal"):
        find_duplicates({"a": ("1", with_bits())}, {"b": ("2", damaged)})
