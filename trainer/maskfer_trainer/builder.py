"""Builds a masked data set: faces, a mask on each, pictures, manifest and skip report."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import IO

from maskfer_edge.dataset import CLASS_FOLDERS, SPLITS
from maskfer_edge.decoding import PICTURE_SUFFIXES
from maskfer_edge.dependencies import extra
from maskfer_edge.errors import InputError, OutputError
from maskfer_edge.files import check_space, lock
from maskfer_trainer.duplicates import Duplicate, Hashes, find_duplicates
from maskfer_trainer.landmarks import check_installed
from maskfer_trainer.picture import BuildSettings, Files, PictureMasker, Record, skipped
from maskfer_trainer.source import Photograph, PhotoSource
from maskfer_trainer.workers import check_scheduler, run_here, run_on_cluster

MANIFEST_VERSION = 2
BATCH = 32
# What a picture may come to on disk: a guess on the safe side for 48-pixel crops.
BYTES_PER_PICTURE = 4096

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Attributes:
        pictures: Masked faces.
        skipped: Files left out.
        reasons: How many were left out for each reason.
        counts: ``train`` and ``test`` to masked faces by class.
        duplicates_in_test: Test faces whose pixels are in train as well.
        near_duplicates_in_test: Test faces that are in train with small changes.
        seconds: Wall-clock time of this call.
    """

    pictures: int
    skipped: int
    reasons: dict[str, int]
    counts: dict[str, dict[str, int]]
    duplicates_in_test: int
    near_duplicates_in_test: int
    seconds: float


def build_dataset(
    source_path: Path,
    out: Path,
    settings: BuildSettings,
    workers: int = 0,
    progress: Progress | None = None,
    scheduler: str | None = None,
) -> BuildReport:
    """Build a masked data set out of a folder or zip of bare faces.

    Work goes on in ``OUT.partial``, which becomes `out` when all is done; a build that was cut
    short goes on from there. The result's bytes depend neither on `workers` nor on `scheduler`.

    Args:
        source_path: See `PhotoSource`.
        out: Folder to make.
        settings: What to draw.
        workers: Processes of this machine; 0 for one a core.
        progress: Called with pictures done and pictures in all.
        scheduler: Address of a Dask scheduler whose workers do the work instead.

    Raises:
        InputError: If the source or the scheduler cannot be used, or no face was found in a class.
        OutputError: If `out` is there already or cannot be written.
    """
    started = time.monotonic()
    if out.exists():
        raise OutputError(f"{out} is already there; name another folder or remove it")
    source = PhotoSource(source_path)
    photographs = source.photographs(settings.seed)
    if not source.is_zip and out.resolve().is_relative_to(source_path.resolve()):
        raise OutputError(f"{out} lies in {source_path}, of which it would become a part; name a folder outside it")
    if scheduler is None:
        check_installed()
    else:
        check_scheduler(scheduler)
    with extra("trainer"):
        import imagehash  # noqa: F401
    header = {"version": MANIFEST_VERSION, "source_sha256": source.fingerprint(), **settings.as_json()}
    partial = partial_path(out)
    with ExitStack() as stack:
        build_file = stack.enter_context(_open_build(partial))
        try:
            # another version may draw otherwise
            done = stack.enter_context(_resume(partial, build_file, {**header, "maskfer": version("maskfer")}))
            remaining = [photo for photo in photographs if photo.path not in done]
            batches = [remaining[i : i + BATCH] for i in range(0, len(remaining), BATCH)]
            pictures = settings.variants * (1 + settings.ground_truth) + settings.keep_bare
            check_space(partial, BYTES_PER_PICTURE * pictures * len(remaining))
            for part in ("masked", "bare", "truth"):
                for split, folder in {(photo.split, CLASS_FOLDERS[photo.label]) for photo in photographs}:
                    if part == "masked" or (settings.keep_bare if part == "bare" else settings.ground_truth):
                        (partial / part / split / folder).mkdir(parents=True, exist_ok=True)
            if scheduler is not None:
                finished = _on_cluster(source, settings, partial, batches, scheduler)
            else:
                finished = run_here(
                    _HereTask(source, settings, partial), batches, workers or os.cpu_count() or 1, _died
                )
            with closing(finished):
                for results in finished:
                    done.add(results)
                    if progress:
                        progress(len(done), len(photographs))
            report = _finish(partial, out, source_path, header, photographs, done, settings, started)
        except OSError as error:
            raise OutputError(
                f"{partial} cannot be written: {error.strerror or error}; what is done is kept there, "
                "and the same command goes on from it"
            ) from error
    return report


def partial_path(out: Path) -> Path:
    """Where a build is kept until it is whole."""
    return Path(f"{out}.partial")


def _open_build(partial: Path) -> IO[bytes]:
    """The open build.json of a build, which keeps others off it; makes the folder if there is none."""
    build_file = partial / "build.json"
    try:
        if partial.exists() and not build_file.exists():
            raise OutputError(f"{partial} holds no unfinished build; remove it and start again")
        partial.mkdir(parents=True, exist_ok=True)
        file = build_file.open("a+b")
    except OSError as error:
        raise OutputError(f"{partial} cannot be written: {error.strerror or error}") from error
    try:
        lock(file, build_file)
    except OutputError:
        file.close()
        raise
    return file


class _Log:
    """The results of a build by source path, in progress.jsonl: all records together would take gigabytes of memory."""

    def __init__(self, partial: Path) -> None:
        self._file = (partial / "progress.jsonl").open("a+b")
        self._places: dict[str, int] = {}
        self._file.seek(0)
        place = 0
        for line in self._file:
            with suppress(ValueError, TypeError, KeyError):  # damaged by a power cut: that picture is made again
                result = json.loads(line)
                records = () if "skipped" in result else result["records"]
                if all(_exists(partial, name) for name in _files_of(records)):
                    self._places[result["source"]] = place
            place += len(line)
            if not line.endswith(b"\n"):  # the last one, of which a part was written
                self._file.write(b"\n")

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # of what `add` could not write, and has told
            self._file.close()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, source: str) -> bool:
        return source in self._places

    def __getitem__(self, source: str) -> Record:
        self._file.seek(self._places[source])
        result: Record = json.loads(self._file.readline())
        return result

    def add(self, results: list[Record]) -> None:
        """Write results, and keep where they stand."""
        place = self._file.seek(0, os.SEEK_END)
        for result in results:
            self._places[result["source"]] = place
            place += self._file.write(f"{json.dumps(result)}\n".encode())
        self._file.flush()


def _resume(partial: Path, build_file: IO[bytes], header: Record) -> _Log:
    """The results of a build that was cut short; one that had nothing done gives way."""
    header_text, log = json.dumps(header, sort_keys=True).encode(), partial / "progress.jsonl"
    try:
        if not (log.exists() and log.stat().st_size):
            for part in ("masked", "bare", "truth"):
                shutil.rmtree(partial / part, ignore_errors=True)
            build_file.truncate(0)
            build_file.write(header_text)
            build_file.flush()
            return _Log(partial)
        build_file.seek(0)
        if build_file.read() != header_text:
            raise OutputError(
                f"{partial} holds an unfinished build with other settings, or by another version of maskfer; "
                "remove it and start again"
            )
        return _Log(partial)
    except OSError as error:
        raise OutputError(f"{partial} cannot be written: {error.strerror or error}") from error


def _files_of(records: Iterable[Record]) -> set[str]:
    """The files that belong to some records."""
    return {record[kind] for record in records for kind in ("picture", "bare", "truth") if kind in record}


def _exists(partial: Path, name: str) -> bool:
    """Whether a file was written: a power cut may leave it missing or empty though the log has it."""
    file = partial / name
    return file.is_file() and file.stat().st_size > 0


def _died(photo: Photograph) -> Record:
    return skipped(photo, "a worker process died of it, alone and again")


@lru_cache(maxsize=1)
def _masker(settings: BuildSettings) -> PictureMasker:
    """One a process: the predictor takes 100 MB."""
    return PictureMasker(settings)


def _read(source: PhotoSource, photo: Photograph) -> bytes | str:
    """The bytes of a picture file, or why it is left out."""
    suffix = Path(photo.path).suffix.lower()
    if suffix not in PICTURE_SUFFIXES:
        return f"not a picture: {suffix or 'no suffix'}"
    try:
        return source.read(photo.path)
    except InputError as error:
        return str(error).removeprefix(f"{source.root / photo.path} ").removeprefix(f"{photo.path} ")


@dataclass(frozen=True)
class _HereTask:
    """Masks pictures and writes them, on the machine that has the source."""

    source: PhotoSource
    settings: BuildSettings
    partial: Path

    def __call__(self, photographs: list[Photograph]) -> list[Record]:
        results = []
        for photo in photographs:
            data = _read(self.source, photo)
            if isinstance(data, str):
                results.append(skipped(photo, data))
                continue
            result, files = _masker(self.settings)(photo, data)
            _write(self.partial, files)
            results.append(result)
        return results


@dataclass(frozen=True)
class _ClusterTask:
    """Masks pictures that came over the wire and sends the files back: machines need share no disk."""

    settings: BuildSettings
    maskfer: str

    def __call__(self, items: list[tuple[Photograph, bytes]]) -> list[tuple[Record, Files]]:
        if self.maskfer != version("maskfer"):  # other code, other bytes
            raise InputError(
                f"a worker has maskfer {version('maskfer')}, this machine {self.maskfer}; install the same"
            )
        return [_masker(self.settings)(photo, data) for photo, data in items]


def _on_cluster(
    source: PhotoSource, settings: BuildSettings, partial: Path, batches: list[list[Photograph]], scheduler: str
) -> Generator[list[Record], None, None]:
    unreadable: list[Record] = []

    def read() -> Iterator[list[tuple[Photograph, bytes]]]:
        for batch in batches:
            items = []
            for photo in batch:
                data = _read(source, photo)
                if isinstance(data, str):
                    unreadable.append(skipped(photo, data))
                else:
                    items.append((photo, data))
            if items:
                yield items

    def died(item: tuple[Photograph, bytes]) -> tuple[Record, Files]:
        return _died(item[0]), {}

    task = _ClusterTask(settings, version("maskfer"))
    with closing(run_on_cluster(task, read(), scheduler, died)) as finished:
        for results in finished:
            for _, files in results:
                _write(partial, files)
            yield [record for record, _ in results]
    yield unreadable


def _write(partial: Path, files: Files) -> None:
    for path, data in files.items():
        (partial / path).write_bytes(data)


class _Records:
    """The records of a finished build, read from its log each time they are gone through.

    Each has ``in_train`` (same pixels) and ``near_train`` (small changes): the training file that it duplicates, or "".
    """

    def __init__(self, log: _Log, sources: list[str], found: Mapping[str, Duplicate]) -> None:
        self._log, self._sources, self._found = log, sources, found

    def __iter__(self) -> Iterator[Record]:
        for source in self._sources:
            duplicate = self._found.get(source)
            for record in self._log[source].get("records", ()):
                record["in_train"] = duplicate.train if duplicate and duplicate.exact else ""
                record["near_train"] = duplicate.train if duplicate and not duplicate.exact else ""
                yield record


def _finish(
    partial: Path, out: Path, source_path: Path, header: Record, photographs: list[Photograph], log: _Log,
    settings: BuildSettings, started: float,
) -> BuildReport:  # fmt: skip
    from maskfer_trainer.contact_sheet import contact_sheet

    left_out: list[tuple[str, str]] = []
    faces: dict[str, int] = {}
    hashes: dict[str, dict[str, Hashes]] = {split: {} for split in SPLITS}
    for photo in photographs:
        result = log[photo.path]
        if "skipped" in result:
            left_out.append((photo.path, result["skipped"]))
            continue
        faces[photo.path] = len(result["records"])
        for record in result["records"][:1]:  # all are of one file
            hashes[photo.split][photo.path] = (record["pixels_sha256"], record["perceptual_hash"])
    reasons = Counter(reason for _, reason in left_out)
    found = find_duplicates(hashes["train"], hashes["test"])
    exact, near = (sum(faces[name] for name, twin in found.items() if twin.exact is same) for same in (True, False))
    if settings.dedupe:
        for name in (photo.path for photo in photographs if photo.path in found):
            for file in _files_of(log[name]["records"]):
                (partial / file).unlink(missing_ok=True)
            left_out.append((name, f"also stands in train: {found[name].train}"))
            del faces[name]
        reasons.update(["also stands in train"] * len(found))
    counts = {split: dict.fromkeys(CLASS_FOLDERS, 0) for split in SPLITS}
    for photo in photographs:
        counts[photo.split][CLASS_FOLDERS[photo.label]] += faces.get(photo.path, 0)
    empty = [f"{split}/{name}" for split, by_class in counts.items() for name, n in by_class.items() if n == 0]
    if empty:
        shutil.rmtree(partial)
        raise InputError(
            f"no face could be masked for {', '.join(empty)} in {source_path} "
            f"({'; '.join(f'{n} × {reason}' for reason, n in reasons.most_common(3))}); nothing was written"
        )

    records = _Records(log, list(faces), found)
    digest = hashlib.sha256()
    with (partial / "manifest.jsonl").open("wb") as manifest:
        for record in records:
            line = f"{json.dumps(record)}\n".encode()
            manifest.write(line)
            digest.update(line)
    report = io.StringIO()
    writer = csv.writer(report, lineterminator="\n")
    writer.writerow(["source", "reason"])
    writer.writerows(left_out)
    info = {
        **header,
        "name": source_path.stem if source_path.is_file() else source_path.resolve().name,
        "pictures": sum(faces.values()),
        "skipped": len(left_out),
        "counts": counts,
        "sha256": digest.hexdigest(),
    }
    (partial / "skipped.csv").write_text(report.getvalue(), errors="surrogateescape")
    if settings.coco:
        from maskfer_trainer.coco import coco

        for split in SPLITS:
            of_split = coco(record for record in records if record["split"] == split)
            (partial / f"coco-{split}.json").write_text(json.dumps(of_split))
    contact_sheet(partial, records, seed=settings.seed).save(partial / "contact-sheet.png")
    (partial / "dataset.json").write_text(json.dumps(info, indent=2) + "\n")
    partial.rename(out)
    (out / "progress.jsonl").unlink()
    (out / "build.json").unlink()
    return BuildReport(
        pictures=sum(faces.values()),
        skipped=len(left_out),
        reasons=dict(reasons.most_common()),
        counts=counts,
        duplicates_in_test=exact,
        near_duplicates_in_test=near,
        seconds=round(time.monotonic() - started, 1),
    )
