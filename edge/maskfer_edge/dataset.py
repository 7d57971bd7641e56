"""The layout of a data set that `trainer build-dataset` makes, and how pictures are read from it.

    DATASET/dataset.json            settings, counts, hash of the source
    DATASET/manifest.jsonl          one line a masked face
    DATASET/{masked,bare}/{train,test}/<class>/<picture>

It stands in the edge package because trainer and converter both read it and may not import each other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskfer_edge.contract import INPUT_SIZE, LABELS, UInt8Array, preprocess
from maskfer_edge.decoding import read_picture
from maskfer_edge.errors import InputError
from maskfer_edge.files import read_bytes

CLASS_FOLDERS = tuple(label.lower() for label in LABELS)
PARTS = ("masked", "bare")
SPLITS = ("train", "test")


@dataclass(frozen=True)
class PictureSet:
    """Faces as the network sees them.

    Attributes:
        images: (n, 48, 48) uint8 grey, 0 to 255.
        labels: (n,) int64, indices into `contract.LABELS`.
        names: n strings ``<class>/<stem>``, one a masked face, the same for its bare picture.
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


def dataset_info(dataset: Path) -> dict[str, Any]:
    """The content of ``dataset.json``.

    Raises:
        InputError: If `dataset` was not made by ``trainer build-dataset``.
    """
    if not dataset.is_dir():
        raise InputError(f"{dataset} is not a folder; make a data set with: trainer build-dataset SOURCE OUT")
    path = dataset / "dataset.json"
    if not path.exists():
        raise InputError(
            f"{dataset} is no data set, as it has no dataset.json; if it holds faces, make one in another folder: "
            f"trainer build-dataset {dataset} OUT"
        )
    info: Any = None
    with suppress(ValueError):
        info = json.loads(read_bytes(path))
    if not isinstance(info, dict) or not {"name", "sha256"} <= info.keys():
        raise InputError(f"{path} is damaged; build the data set again")
    return info


def manifest(dataset: Path) -> Iterator[dict[str, Any]]:
    """The records of ``manifest.jsonl``, one a masked face, in the manifest's order, one after the other.

    All of them together, of a whole FER2013, would take gigabytes.

    Raises:
        InputError: If it is missing or a line of it is damaged.
    """
    path = dataset / "manifest.jsonl"
    try:
        with path.open("rb") as file:
            for line in file:
                record = json.loads(line)
                if not (isinstance(record, dict) and {"split", "class", "stem"} <= record.keys()):
                    raise ValueError
                yield record
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError):
        raise InputError(f"{path} is damaged; build the data set again") from None


def record_name(record: dict[str, Any]) -> str:
    """The name that a manifest's record has in `PictureSet.names`."""
    return f"{record['class']}/{record['stem']}"


def split_records(dataset: Path, split: str, *needed: str) -> list[dict[str, Any]]:
    """The manifest's records of one split (train or test), by class in the order of the labels, then by stem.

    Landmarks and outlines, which are the most of a record, are left out.

    Args:
        dataset: Made by ``trainer build-dataset``.
        split: Which.
        needed: Keys that each record must have besides ``box``.

    Raises:
        InputError: If a class has none, or the data set is of an earlier version.
    """
    records = [
        {key: value for key, value in record.items() if key not in ("landmarks", "polygon")}
        for record in manifest(dataset)
        if record["split"] == split
    ]
    if not all({"box", *needed} <= record.keys() for record in records):
        raise InputError(f"{dataset} was built by an earlier version of maskfer; build it again")
    present = {record["class"] for record in records}
    for folder in CLASS_FOLDERS:
        if folder not in present:
            raise InputError(f"{dataset} holds no {split} pictures of {folder}; all seven classes are needed")
    known = [record for record in records if record["class"] in CLASS_FOLDERS]
    return sorted(known, key=lambda record: (CLASS_FOLDERS.index(record["class"]), str(record["stem"])))


def read_pictures(dataset: Path, part: str, records: list[dict[str, Any]]) -> PictureSet:
    """Read the masked or the bare pictures (`part`) of some records, preprocessed, in their order.

    Raises:
        InputError: If a picture was not kept, or is damaged.
    """
    key = "picture" if part == "masked" else "bare"
    if any(key not in record for record in records):
        raise InputError(f"{dataset} holds no {part} pictures; build it again with them (--keep-bare)")
    read: dict[tuple[str, tuple[float, ...]], UInt8Array] = {}  # a bare face stands for all its masked pictures
    images = []
    for record in records:
        picture = (str(record[key]), tuple(record["box"]))
        if picture not in read:
            read[picture] = preprocess(read_picture(dataset / picture[0]), record["box"])
        images.append(read[picture])
    labels = [CLASS_FOLDERS.index(record["class"]) for record in records]
    stacked = np.stack(images).reshape(-1, INPUT_SIZE, INPUT_SIZE)
    return PictureSet(stacked, np.asarray(labels, dtype=np.int64), tuple(map(record_name, records)))


def read_part(dataset: Path, part: str, split: str) -> PictureSet:
    """Read one part (masked or bare) of one split (train or test), preprocessed.

    Both parts have the same faces in the same order: a face with several masked pictures has as many
    times its bare one.

    Raises:
        InputError: If the part is not there, a class has no pictures, or a picture is damaged.
    """
    return read_pictures(dataset, part, split_records(dataset, split))
