"""Finds the test pictures that are duplicated in train, pixel for pixel or nearly."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from maskfer_edge.contract import UInt8Array
from maskfer_edge.dependencies import extra

# 16 × 16 frequencies. The usual 8 × 8 do not tell faces apart: of FER2013's training pictures whose nearest is within
# 6 of 64 bits, a tenth are paired with another photograph.
HASH_SIDE = 16
HASH_BITS = HASH_SIDE**2
# Three times HASH_SIDE is 48: a 48 × 48 picture is hashed without being scaled first.
HIGH_FREQUENCY_FACTOR = 3
# Chosen by eye on pairs within FER2013's train alone: of 1,985 pairs up to this distance about 5 show two photographs;
# beyond 64 the false pairs about double with every step. Each hash is half ones, so distances are even.
MAX_DISTANCE = 60

# How many pictures of train and of test are compared at a time: 64 MB of distances.
TRAIN_BLOCK, TEST_BLOCK = 8192, 2048

# A picture's pixels_sha256 and its perceptual_hash.
Hashes = tuple[str, str]


@dataclass(frozen=True)
class Duplicate:
    """A test picture that is duplicated in train.

    Attributes:
        test: Its name.
        train: Name of the training picture that is nearest to it; of several, the first by name.
        distance: Bits in which their perceptual hashes differ, 0 to `MAX_DISTANCE`.
        exact: Whether the two have the same pixels.
    """

    test: str
    train: str
    distance: int
    exact: bool


def perceptual_hash(grey: UInt8Array) -> str:
    """The signs of a picture's 256 lowest frequencies (DCT pHash, by the library imagehash).

    Few bits change when a picture is encoded again, brightened, blurred, scaled or stamped with a
    watermark; about half of them differ between two photographs.

    Args:
        grey: (height, width) uint8, 0 to 255. It should not be blank: without contrast the signs are noise.

    Returns:
        64 hexadecimal digits.

    Raises:
        DependencyError: If imagehash or Pillow is not installed.
    """
    with extra("trainer"):
        import imagehash
        from PIL import Image
    return str(imagehash.phash(Image.fromarray(grey), HASH_SIDE, HIGH_FREQUENCY_FACTOR))


def find_duplicates(train: Mapping[str, Hashes], test: Mapping[str, Hashes]) -> dict[str, Duplicate]:
    """Find the test pictures that are duplicated in train.

    Found are pictures with the same pixels, and those whose perceptual hashes differ in at most
    `MAX_DISTANCE` of 256 bits: other encodings, brightnesses and watermarks, and crops that are one pixel
    of 48 apart along one axis. Of crops one pixel apart along both axes it finds half, of crops two pixels apart
    hardly any, and no mirrored pictures. So what it finds is a lower bound: in a cut of FER2013's train it finds
    about half of the pictures whose photograph is there in another crop.

    Args:
        train: Name to `pixels_sha256` and `perceptual_hash`, for each training picture.
        test: The same for each test picture.

    Returns:
        Test name to what it duplicates, sorted by name, for the test pictures that do. The same whatever
        the order of the arguments' items.

    Raises:
        ValueError: If a perceptual hash is not 64 hexadecimal digits.
    """
    train_names, test_names = sorted(train), sorted(test)
    first_by_pixels = {train[name][0]: name for name in reversed(train_names)}
    nearest, distances = _nearest([train[name][1] for name in train_names], [test[name][1] for name in test_names])
    found = {}
    for name, index, distance in zip(test_names, nearest.tolist(), distances.tolist(), strict=True):
        same = first_by_pixels.get(test[name][0])
        if same is not None:
            found[name] = Duplicate(name, same, 0, exact=True)
        elif distance <= MAX_DISTANCE:
            found[name] = Duplicate(name, train_names[index], distance, exact=False)
    return found


def _nearest(train: list[str], test: list[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The index of each test hash's nearest training hash, the first of several, and its distance.

    Without training hashes the distance is more than any two hashes have.
    """
    train_bits, test_bits = _unpacked(train), _unpacked(test)
    nearest = np.zeros(len(test), dtype=np.int64)
    distances = np.full(len(test), HASH_BITS + 1, dtype=np.int64)
    for start in range(0, len(train), TRAIN_BLOCK):
        train_signs = _signs(train_bits[start : start + TRAIN_BLOCK])
        for low in range(0, len(test), TEST_BLOCK):
            block = slice(low, low + TEST_BLOCK)
            # products of ±1 count equal bits less different bits; whole numbers, so float32 is exact
            agreement = _signs(test_bits[block]) @ train_signs.T
            best = agreement.argmax(axis=1)
            distance = (HASH_BITS - np.take_along_axis(agreement, best[:, None], axis=1)[:, 0]).astype(np.int64) // 2
            nearer = distance < distances[block]
            nearest[block][nearer] = start + best[nearer]
            distances[block][nearer] = distance[nearer]
    return nearest, distances


def _unpacked(hashes: Collection[str]) -> npt.NDArray[np.uint8]:
    """(n, 256) uint8, 0 or 1."""
    for text in hashes:
        if len(text) != HASH_BITS // 4:
            raise ValueError(f"{text!r} is no perceptual hash; it needs {HASH_BITS // 4} hexadecimal digits")
    packed = np.frombuffer(bytes.fromhex("".join(hashes)), dtype=np.uint8)
    return np.unpackbits(packed).reshape(-1, HASH_BITS)


def _signs(bits: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """-1 for a bit of 0, 1 for a bit of 1."""
    return bits.astype(np.float32) * 2 - 1
