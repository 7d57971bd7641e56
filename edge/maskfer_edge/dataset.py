"""The layout of a data set that `trainer build-dataset` makes, and how pictures are read from it.

    DATASET/dataset.json            settings, counts, hash of the source
    DATASET/manifest.jsonl          one line a picture
    DATASET/{masked,bare}/{train,test}/<class>/<picture>

It stands in the edge package because trainer and converter both read it and may not import each other.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskfer_edge.contract import INPUT_SIZE, LABELS, UInt8Array, preprocess_whole
from maskfer_edge.dependencies import cv2
from maskfer_edge.errors import InputError
from maskfer_edge.files import read_bytes

CLASS_FOLDERS = tuple(label.lower() for label in LABELS)
PARTS = ("masked", "bare")
SPLITS = ("train", "test")
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


@dataclass(frozen=True)
class PictureSet:
    """Faces as the network sees them.

    Attributes:
        images: (n, 48, 48) uint8 grey, 0 to 255.
        labels: (n,) int64, indices into `contract.LABELS`.
        names: n strings ``<class>/<stem>``, the same for a face's masked and bare picture.
    """

    images: UInt8Array
    labels: npt.NDArray[np.int64]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def take(self, indices: npt.NDArray[Any]) -> PictureSet:
        """The pictures at `indices` (integers, or booleans as a mask), in that order."""
        chosen = np.arange(len(self))[indices]
        return PictureSet(self.images[chosen], self.labels[chosen], tuple(self.names[int(i)] for i in chosen))


def decode(data: bytes, name: str) -> UInt8Array:
    """Decode a picture file's bytes.

    Returns:
        (height, width, 3) uint8 in B,G,R order, turned as its EXIF orientation says.

    Raises:
        InputError: If the bytes are no whole picture.
    """
    if not data:
        raise InputError(f"{name} is empty (0 bytes)")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        image = None
    if image is None:
        raise InputError(f"{name} is not a picture that can be read (damaged, or not JPEG, PNG, BMP or WebP)")
    return np.asarray(image, dtype=np.uint8)


def read_picture(path: Path) -> UInt8Array:
    """Read a picture file: (height, width, 3) uint8, B,G,R. Raises InputError as `decode` does."""
    return decode(read_bytes(path), str(path))


def dataset_info(dataset: Path) -> dict[str, Any]:
    """The content of ``dataset.json``.

    Raises:
        InputError: If `dataset` was not made by ``trainer build-dataset``.
    """
    if not dataset.is_dir():
        raise InputError(f"{dataset} is not a folder; make a data set with: trainer build-dataset SOURCE OUT")
    try:
        info = json.loads(read_bytes(dataset / "dataset.json"))
    except (InputError, ValueError):
        raise InputError(
            f"{dataset} holds no readable dataset.json; make it with: trainer build-dataset SOURCE {dataset}"
        ) from None
    if not isinstance(info, dict):
        raise InputError(f"{dataset / 'dataset.json'} is damaged; build the data set again")
    return info


def manifest(dataset: Path) -> list[dict[str, Any]]:
    """The records of ``manifest.jsonl``, one a picture, in the manifest's order.

    Raises:
        InputError: If it is missing or a line of it is damaged.
    """
    path = dataset / "manifest.jsonl"
    try:
        return [json.loads(line) for line in read_bytes(path).splitlines()]
    except ValueError:
        raise InputError(f"{path} is damaged; build the data set again") from None


def record_name(record: dict[str, Any]) -> str:
    """The name that a manifest's record has in `PictureSet.names`."""
    return f"{record['class']}/{record['stem']}"


def read_part(dataset: Path, part: str, split: str) -> PictureSet:
    """Read one part (masked or bare) of one split (train or test), preprocessed.

    Raises:
        InputError: If the part is not there, a class has no pictures, or a picture is damaged.
    """
    root = dataset / part / split
    if not root.is_dir():
        raise InputError(f"{root} is not there; build the data set again with both parts")
    images, labels, names = [], [], []
    for label, folder in enumerate(CLASS_FOLDERS):
        # by stem, as a face's masked and bare picture differ in suffix
        paths = sorted(
            (p for p in (root / folder).glob("*") if p.suffix.lower() in PICTURE_SUFFIXES), key=lambda p: p.stem
        )
        if not paths:
            raise InputError(f"{root / folder} holds no pictures; all seven classes are needed")
        for path in paths:
            images.append(preprocess_whole(read_picture(path)))
            labels.append(label)
            names.append(f"{folder}/{path.stem}")
    stacked = np.stack(images).reshape(-1, INPUT_SIZE, INPUT_SIZE)
    return PictureSet(stacked, np.asarray(labels, dtype=np.int64), tuple(names))
