"""Builds a masked data set: landmarks, a mask on every face, pictures, manifest and skip report."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskfer_edge.contract import UInt8Array
from maskfer_edge.dataset import CLASS_FOLDERS, PICTURE_SUFFIXES, SPLITS, decode
from maskfer_edge.dependencies import cv2
from maskfer_edge.errors import InputError, OutputError
from maskfer_edge.files import check_space
from maskfer_trainer.draw import drawn_number
from maskfer_trainer.landmarks import LandmarkPredictor, check_installed
from maskfer_trainer.masks import KINDS, draw_mask
from maskfer_trainer.placement import Wearing, find_pivots, put_on
from maskfer_trainer.source import Photograph, PhotoSource

MANIFEST_VERSION = 1
# A picture whose grey levels vary less than this (standard deviation) shows no face.
LEAST_CONTRAST = 3.0
SMALLEST_SIDE = 24
RIDGE_RANGE = (0.2, 0.5)
BRIGHTNESS_RANGE = (0.8, 1.15)

Record = dict[str, Any]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class BuildSettings:
    """What determines a data set's bytes, besides the source.

    Attributes:
        kinds: Mask kinds to choose from, keys of `masks.KINDS`.
        seed: Of the choice of mask, its height and brightness, and of the split where there is none.
    """

    kinds: tuple[str, ...] = tuple(KINDS)
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise InputError(f"unknown mask kind {', '.join(unknown) or '(none)'}; there are {', '.join(KINDS)}")


@dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Attributes:
        pictures: Faces that now wear a mask.
        skipped: Files left out.
        reasons: How many were left out for each reason.
        counts: ``train`` and ``test`` to pictures by class.
        duplicates_in_test: Test pictures whose pixels also stand in train.
        seconds: Wall-clock time of this call.
    """

    pictures: int
    skipped: int
    reasons: dict[str, int]
    counts: dict[str, dict[str, int]]
    duplicates_in_test: int
    seconds: float


def build_dataset(
    source_path: Path, out: Path, settings: BuildSettings, workers: int = 0, progress: Progress | None = None
) -> BuildReport:
    """Build a masked data set out of a folder or zip of bare face crops.

    Work goes on in ``OUT.partial``, which becomes `out` when all is done; a build that was cut
    short goes on from there. The result's bytes do not depend on `workers`.

    Args:
        source_path: See `PhotoSource`.
        out: Folder to make.
        settings: What to draw.
        workers: Processes; 0 for one a core.
        progress: Called with pictures done and pictures in all.

    Raises:
        InputError: If the source cannot be used, or no face was found in a class.
        OutputError: If `out` is there already or cannot be written.
    """
    started = time.monotonic()
    if out.exists():
        raise OutputError(f"{out} is already there; name another folder or remove it")
    source = PhotoSource(source_path)
    photographs = source.photographs(settings.seed)
    check_installed()
    header = {"version": MANIFEST_VERSION, "source_sha256": source.fingerprint(), **asdict(settings)}
    partial = out.with_name(out.name + ".partial")
    records = _resume(partial, header)
    remaining = [photo for photo in photographs if photo.path not in records]
    try:
        check_space(partial, 8192 * len(remaining))
        for split, folder in {(photo.split, CLASS_FOLDERS[photo.label]) for photo in photographs}:
            (partial / "masked" / split / folder).mkdir(parents=True, exist_ok=True)
            (partial / "bare" / split / folder).mkdir(parents=True, exist_ok=True)
        with (partial / "progress.jsonl").open("a") as log:
            for record in _work(source, remaining, settings, partial, workers or os.cpu_count() or 1):
                records[record["source"]] = record
                log.write(json.dumps(record) + "\n")
                if progress:
                    progress(len(records), len(photographs))
        report = _finish(partial, out, source_path, header, [records[p.path] for p in photographs], started)
    except OSError as error:
        raise OutputError(
            f"{partial} cannot be written: {error.strerror or error}; what is done is kept there, "
            "and the same command goes on from it"
        ) from error
    return report


def _resume(partial: Path, header: Record) -> dict[str, Record]:
    """The records of a build that was cut short, by source path; makes the folder if there is none."""
    header_text = json.dumps(header, sort_keys=True)
    try:
        if not partial.exists():
            partial.mkdir(parents=True)
            (partial / "build.json").write_text(header_text)
            return {}
        if not (partial / "build.json").exists() or (partial / "build.json").read_text() != header_text:
            raise OutputError(f"{partial} holds an unfinished build with other settings; remove it and start again")
        records: dict[str, Record] = {}
        log = partial / "progress.jsonl"
        if log.exists():
            for line in log.read_text().splitlines(keepends=True):
                with suppress(ValueError):  # a line that a power cut damaged: that picture is made again
                    record = json.loads(line)
                    records[record["source"]] = record
            log.write_text("".join(json.dumps(record) + "\n" for record in records.values()))
        return records
    except OSError as error:
        raise OutputError(f"{partial} cannot be written: {error.strerror or error}") from error


def _work(
    source: PhotoSource, photographs: list[Photograph], settings: BuildSettings, partial: Path, workers: int
) -> Any:
    """Yield the records of `photographs`, in their order."""
    arguments = (source, settings, partial)
    if workers == 1 or len(photographs) < 64:
        worker = _Worker(*arguments)
        yield from map(worker, photographs)
        return
    # spawn: forking a process that has run TensorFlow or OpenCV threads may hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, arguments) as pool:
        yield from pool.map(_run_worker, photographs, chunksize=32)


class _Worker:
    """Masks one photograph after another; the predictor and the templates are loaded once."""

    def __init__(self, source: PhotoSource, settings: BuildSettings, partial: Path) -> None:
        cv2.setNumThreads(1)
        self.source, self.settings, self.partial = source, settings, partial
        self.predictor = LandmarkPredictor()

    def __call__(self, photo: Photograph) -> Record:
        record: Record = {
            "source": photo.path, "split": photo.split, "class": CLASS_FOLDERS[photo.label], "stem": photo.stem,
        }  # fmt: skip
        try:
            return {**record, **self._mask(photo)}
        except InputError as error:
            return {**record, "skipped": str(error).removeprefix(f"{photo.path} ")}

    def _mask(self, photo: Photograph) -> Record:
        suffix = Path(photo.path).suffix.lower()
        if suffix not in PICTURE_SUFFIXES:
            raise InputError(f"not a picture: {suffix or 'no suffix'}")
        data = self.source.read(photo.path)
        image = decode(data, photo.path)
        grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), dtype=np.uint8)
        if min(grey.shape) < SMALLEST_SIDE:
            raise InputError(f"too small: under {SMALLEST_SIDE} pixels")
        if float(grey.std()) < LEAST_CONTRAST:
            raise InputError("blank: no contrast")
        landmarks = self.predictor(grey)
        kind, wearing = _draw_wearing(photo.path, self.settings)
        is_grey = bool((image == image[..., :1]).all())
        masked = put_on(grey if is_grey else image, landmarks, draw_mask(kind), wearing)
        folder = Path(photo.split) / CLASS_FOLDERS[photo.label]
        picture = Path("masked") / folder / f"{photo.stem}.png"
        bare = Path("bare") / folder / f"{photo.stem}{suffix}"
        written, encoded = cv2.imencode(".png", masked)
        assert written
        (self.partial / picture).write_bytes(encoded.tobytes())
        (self.partial / bare).write_bytes(data)
        return {
            "picture": picture.as_posix(),
            "bare": bare.as_posix(),
            "pixels_sha256": _pixels_sha256(grey),
            "mask": {"kind": kind, "ridge": wearing.ridge, "brightness": wearing.brightness},
            "pivots": np.round(find_pivots(landmarks, wearing.ridge).astype(float), 2).tolist(),
            "landmarks": np.round(landmarks.astype(float), 1).tolist(),
        }


_worker: _Worker | None = None


def _start_worker(source: PhotoSource, settings: BuildSettings, partial: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    global _worker  # noqa: PLW0603 (one a process, made by the pool's initializer)
    _worker = _Worker(source, settings, partial)


def _run_worker(photo: Photograph) -> Record:
    assert _worker is not None
    return _worker(photo)


def _draw_wearing(path: str, settings: BuildSettings) -> tuple[str, Wearing]:
    """Choose the mask of one picture, by seed and path alone."""
    random = np.random.default_rng(drawn_number("mask", settings.seed, path))
    kind = settings.kinds[int(random.integers(len(settings.kinds)))]
    ridge = round(float(random.uniform(*RIDGE_RANGE)), 3)
    brightness = round(float(random.uniform(*BRIGHTNESS_RANGE)), 3)
    return kind, Wearing(ridge, brightness)


def _pixels_sha256(grey: UInt8Array) -> str:
    return hashlib.sha256(str(grey.shape).encode() + grey.tobytes()).hexdigest()


def _finish(
    partial: Path, out: Path, source_path: Path, header: Record, records: list[Record], started: float
) -> BuildReport:
    from maskfer_trainer.contact_sheet import contact_sheet

    kept = [record for record in records if "skipped" not in record]
    skipped = [record for record in records if "skipped" in record]
    in_train = {record["pixels_sha256"] for record in kept if record["split"] == "train"}
    for record in kept:
        record["in_train"] = record["split"] == "test" and record["pixels_sha256"] in in_train
    counts = {
        split: {name: sum(r["split"] == split and r["class"] == name for r in kept) for name in CLASS_FOLDERS}
        for split in SPLITS
    }
    empty = [f"{split}/{name}" for split, by_class in counts.items() for name, n in by_class.items() if n == 0]
    if empty:
        reasons = Counter(record["skipped"] for record in skipped).most_common(3)
        shutil.rmtree(partial)
        raise InputError(
            f"no face could be masked for {', '.join(empty)} in {source_path} "
            f"({'; '.join(f'{n} × {reason}' for reason, n in reasons)}); nothing was written"
        )

    manifest = "".join(json.dumps(record) + "\n" for record in kept)
    report = io.StringIO()
    writer = csv.writer(report, lineterminator="\n")
    writer.writerow(["source", "reason"])
    writer.writerows((record["source"], record["skipped"]) for record in skipped)
    info = {
        **header,
        "name": source_path.stem,
        "pictures": len(kept),
        "skipped": len(skipped),
        "counts": counts,
        "sha256": hashlib.sha256(manifest.encode()).hexdigest(),
    }
    (partial / "manifest.jsonl").write_text(manifest)
    (partial / "skipped.csv").write_text(report.getvalue())
    contact_sheet(partial, kept, seed=header["seed"]).save(partial / "contact-sheet.png")
    (partial / "dataset.json").write_text(json.dumps(info, indent=2) + "\n")
    partial.rename(out)
    (out / "progress.jsonl").unlink()
    (out / "build.json").unlink()
    return BuildReport(
        pictures=len(kept),
        skipped=len(skipped),
        reasons=dict(Counter(record["skipped"] for record in skipped).most_common()),
        counts=counts,
        duplicates_in_test=sum(record["in_train"] for record in kept),
        seconds=round(time.monotonic() - started, 1),
    )
