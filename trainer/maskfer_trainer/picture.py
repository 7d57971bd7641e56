"""What a data set is made of, and the making of its pictures: from one file's bytes to masked faces and records."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskfer_edge.contract import UInt8Array
from maskfer_edge.dataset import CLASS_FOLDERS
from maskfer_edge.decoding import decode
from maskfer_edge.dependencies import cv2
from maskfer_edge.errors import InputError
from maskfer_trainer.duplicates import perceptual_hash
from maskfer_trainer.faces import FACES, PROTOCOLS, Face, FaceFinder
from maskfer_trainer.masks import KINDS, Kind
from maskfer_trainer.placement import FITS, head_turn
from maskfer_trainer.rendering import WORN, Masked, Wearing, put_on
from maskfer_trainer.source import Photograph
from maskfer_trainer.variety import draw_wearing

Record = dict[str, Any]
Files = dict[str, bytes]


@dataclass(frozen=True)
class BuildSettings:
    """What determines a data set's bytes, besides the source.

    Attributes:
        kinds: Mask kinds to choose from, keys of `masks.KINDS`.
        templates: A user's own kinds, chosen from as well (see `templates.load_template`).
        worn: Ways of wearing to choose from, keys of `rendering.WORN`.
        fit: One of `placement.FITS`.
        plain: Masks as drawn: no variety but of kind, no light, blur, grain and shadow of the picture.
        variants: Masked pictures of each training face; test faces get one.
        protocol: One of `faces.PROTOCOLS`.
        faces: One of `faces.FACES`, with the protocol ``detected``.
        keep_bare: Copy the bare pictures too; training on both, teachers and evaluation need them.
        ground_truth: Write what each mask covers as a grey PNG.
        coco: Write boxes and outlines as COCO JSON.
        dedupe: Leave out test pictures that are duplicated in train.
        seed: Of masks and how they are worn, and of the split where there is none.
    """

    kinds: tuple[str, ...] = tuple(KINDS)
    templates: tuple[Kind, ...] = ()
    worn: tuple[str, ...] = ("properly",)
    fit: str = "mesh"
    plain: bool = False
    variants: int = 1
    protocol: str = "all"
    faces: str = "largest"
    keep_bare: bool = True
    ground_truth: bool = False
    coco: bool = False
    dedupe: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for what, given, known in (
            ("mask kind", self.kinds, KINDS), ("way of wearing", self.worn, WORN), ("fit", (self.fit,), FITS),
            ("protocol", (self.protocol,), PROTOCOLS), ("choice of faces", (self.faces,), FACES),
        ):  # fmt: skip
            unknown = [name for name in given if name not in known]
            if unknown:
                raise InputError(f"unknown {what} {', '.join(unknown)}; there are {', '.join(known)}")
        if not (self.kinds or self.templates):
            raise InputError(f"no mask to choose from; there are {', '.join(KINDS)}")
        if not self.worn:
            raise InputError(f"no way of wearing to choose from; there are {', '.join(WORN)}")
        if self.faces != "largest" and self.protocol != "detected":
            raise InputError("the protocol all takes each picture for one face; --faces all needs --protocol detected")
        if self.variants < 1:
            raise InputError(f"{self.variants} variants make no data set; give 1 or more")
        names = [kind.name for kind in self.all_kinds]
        if len(set(names)) < len(names):
            raise InputError(f"two masks have one name: {', '.join(sorted(n for n in names if names.count(n) > 1))}")

    @property
    def all_kinds(self) -> tuple[Kind, ...]:
        """Drawn kinds, then templates."""
        return (*(KINDS[name] for name in self.kinds), *self.templates)

    def as_json(self) -> Record:
        """All of it, templates as name and hash."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "templates"}
        return {
            **plain,
            "templates": {kind.name: sha256(kind.picture + repr(kind.to_picture).encode()) for kind in self.templates},
        }


class PictureMasker:
    """Puts masks on the faces of one picture file after another; predictor and drawings are loaded once."""

    def __init__(self, settings: BuildSettings) -> None:
        cv2.setNumThreads(1)
        self.settings = settings
        self.find_faces = FaceFinder(settings.protocol, settings.faces)

    def __call__(self, photo: Photograph, data: bytes) -> tuple[Record, Files]:
        """Mask one picture.

        Returns:
            Its result, ``{"source": …, "records": […]}`` (a record a masked face) or ``{"source": …,
            "skipped": why}``, and the files to write, by path inside the data set.
        """
        try:
            records, files = self._mask(photo, data)
        except InputError as error:
            return skipped(photo, str(error).removeprefix(f"{photo.path} ")), {}
        except (cv2.error, np.linalg.LinAlgError, MemoryError) as error:
            # one picture that nobody foresaw must not end the work on thirty thousand others
            return skipped(photo, f"cannot be masked: {type(error).__name__} {' '.join(str(error).split())}"), {}
        return {"source": photo.path, "records": records}, files

    def _mask(self, photo: Photograph, data: bytes) -> tuple[list[Record], Files]:
        image = decode(data, photo.path)
        grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), dtype=np.uint8)
        faces = self.find_faces(grey)
        if np.array_equal(image[..., 0], image[..., 2]) and np.array_equal(image[..., 0], image[..., 1]):
            image = grey
        folder = f"{photo.split}/{CLASS_FOLDERS[photo.label]}"
        files: Files = {}
        records: list[Record] = []
        base: Record = {
            "source": photo.path, "split": photo.split, "class": CLASS_FOLDERS[photo.label],
            "size": [grey.shape[1], grey.shape[0]], "pixels_sha256": sha256(str(grey.shape).encode() + grey.tobytes()),
            "perceptual_hash": perceptual_hash(grey),
        }  # fmt: skip
        if self.settings.keep_bare:
            base["bare"] = f"bare/{folder}/{photo.stem}{Path(photo.path).suffix.lower()}"
            files[base["bare"]] = data
        for variant in range(self.settings.variants if photo.split == "train" else 1):
            stem = photo.stem if variant == 0 else f"{photo.stem}~{variant}"
            of_picture = {**base, "variant": variant, "picture": f"masked/{folder}/{stem}.png"}
            if self.settings.ground_truth:
                of_picture["truth"] = f"truth/{folder}/{stem}.png"
            masked, cover = image, np.zeros_like(grey)
            worn, failure = 0, None
            for number, face in enumerate(faces):
                name = stem if number == 0 else f"{stem}+{number}"
                choice = f"{photo.path} {variant} {number}"
                kind, wearing = draw_wearing(
                    self.settings.all_kinds, self.settings.worn, self.settings.seed, choice, self.settings.plain
                )
                try:
                    result = put_on(masked, face.landmarks, kind, wearing, self.settings.fit, self.settings.plain)
                except InputError as error:  # at the picture's edge, perhaps; the other faces are masked all the same
                    failure = error
                    continue
                worn += 1
                masked, cover = result.image, np.maximum(cover, result.cover)
                records.append({**of_picture, "stem": name, **_describe(face, kind, wearing, result)})
            if failure and not worn:
                raise failure
            files[of_picture["picture"]] = _png(masked)
            if self.settings.ground_truth:
                files[of_picture["truth"]] = _png(cover)
        return records, files


def _describe(face: Face, kind: Kind, wearing: Wearing, masked: Masked) -> Record:
    yaw, roll = head_turn(face.landmarks)
    mask = {name: getattr(wearing, name) for name in wearing.__dataclass_fields__}
    return {
        "box": list(face.box),
        "score": face.score,
        "yaw": round(yaw, 2),
        "roll": round(roll, 1),
        "mask": {"kind": kind.name, **mask},
        "polygon": masked.polygon.tolist(),
        "landmarks": np.round(face.landmarks.astype(float), 1).tolist(),
    }


def skipped(photo: Photograph, reason: str) -> Record:
    """The result of a picture that is left out."""
    return {"source": photo.path, "skipped": reason}


def _png(image: UInt8Array) -> bytes:
    written, encoded = cv2.imencode(".png", image)
    assert written
    return encoded.tobytes()


def sha256(data: bytes) -> str:
    """In hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
