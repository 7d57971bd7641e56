"""Photographs by class, out of a folder or a zip."""

from __future__ import annotations

import hashlib
import lzma
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from maskfer_edge.contract import LABELS
from maskfer_edge.dataset import CLASS_FOLDERS, SPLITS
from maskfer_edge.errors import InputError
from maskfer_edge.files import read_bytes
from maskfer_trainer.draw import drawn_share

# A plain <class>/ layout is split so that one picture in six is tested on.
TEST_SHARE = 1 / 6
# Of the 255 bytes of a file's name: numbers and a suffix follow.
MAX_STEM = 200


@dataclass(frozen=True)
class Photograph:
    """One file of a source.

    Attributes:
        path: Its path inside the source, with forward slashes.
        split: ``train`` or ``test``.
        label: Index into `contract.LABELS`.
        stem: Name of the pictures made from it, unique within split and class.
    """

    path: str
    split: str
    label: int
    stem: str


class PhotoSource:
    """A folder or zip with ``train/<class>/`` and ``test/<class>/``, or ``<class>/`` alone.

    Class names count in any case. Hidden files and ``__MACOSX`` are passed over; a single folder
    around everything is looked through. Can be pickled to worker processes.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._zip: zipfile.ZipFile | None = None
        self._entries: dict[str, zipfile.ZipInfo] = {}
        if not root.exists():
            raise InputError(f"{root} does not exist; give a zip or a folder with train/<class>/ and test/<class>/")
        self.is_zip = root.is_file()
        if self.is_zip and not zipfile.is_zipfile(root):
            raise InputError(f"{root} is neither a folder nor a whole zip file")

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_zip": None, "_entries": {}}

    def read(self, path: str) -> bytes:
        """The bytes of one photograph. Raises InputError if it is damaged or gone."""
        if not self.is_zip:
            return read_bytes(self.root / path)
        if self._zip is None:
            self._zip = zipfile.ZipFile(self.root)
            self._entries = {_path(entry): entry for entry in self._zip.infolist()}
        try:
            return self._zip.read(self._entries[path])
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, OSError, EOFError) as error:
            raise InputError(f"{path} cannot be unpacked: {error}") from error

    def fingerprint(self) -> str:
        """sha256 over the names and sizes (zip: and CRCs) of all files; tells one source from another."""
        digest = hashlib.sha256()
        if self.is_zip:
            with zipfile.ZipFile(self.root) as archive:
                lines = [f"{i.filename}\t{i.file_size}\t{i.CRC}" for i in archive.infolist() if not i.is_dir()]
        else:
            lines = [f"{name}\t{(self.root / name).stat().st_size}" for name in self._names()]
        digest.update("\n".join(sorted(lines)).encode(errors="surrogateescape"))
        return digest.hexdigest()

    def photographs(self, seed: int) -> list[Photograph]:
        """All files in classes, sorted by path.

        Args:
            seed: Of the 5:1 split of a plain ``<class>/`` layout; each picture's side depends on
                its own path and the seed alone.

        Raises:
            InputError: If a zip holds unsafe paths, a folder is no class, or a class is missing.
        """
        names = [PurePosixPath(name) for name in self._names()]
        files = [name for name in names if not any(p.startswith(".") or p == "__MACOSX" for p in name.parts)]
        depth = self._depth_of_classes(files)
        found: list[tuple[PurePosixPath, str, int]] = []
        unknown, given = set(), set()
        for file in files:
            parts = file.parts[depth:]
            split = parts[0].lower() if parts and parts[0].lower() in SPLITS else None
            class_parts = parts[1:] if split else parts
            if len(class_parts) < 2:
                continue  # a file beside the class folders, such as a README
            if class_parts[0].lower() not in CLASS_FOLDERS:
                unknown.add("/".join(file.parts[: len(file.parts) - len(class_parts) + 1]))
                continue
            label = CLASS_FOLDERS.index(class_parts[0].lower())
            drawn = "test" if drawn_share("split", seed, str(file)) < TEST_SHARE else "train"
            given.add(split)
            found.append((file, split or drawn, label))
        if unknown:
            raise InputError(
                f"{self.root} holds folders that are no class: {_some(sorted(unknown))}; "
                f"the classes are {', '.join(CLASS_FOLDERS)}, the parts {' and '.join(SPLITS)}"
            )
        counts = Counter((split, label) for _, split, label in found)
        missing = [f"{s}/{CLASS_FOLDERS[k]}" for s in SPLITS for k in range(len(LABELS)) if not counts[s, k]]
        if missing:
            if not any(given):
                raise InputError(
                    f"{self.root} has no pictures left for {_some(missing)} once a sixth of them is drawn for test; "
                    "give more pictures, another --seed, or folders train/<class>/ and test/<class>/"
                )
            raise InputError(f"{self.root} has no pictures for {_some(missing)}; every class needs some in each part")
        return _with_stems(sorted(found))

    def _names(self) -> list[str]:
        if not self.is_zip:
            return sorted(file.relative_to(self.root).as_posix() for file in _files_below(self.root, ()))
        try:
            with zipfile.ZipFile(self.root) as archive:
                # a zip may hold one name twice, also as ./name; the last one counts, as for every unpacker
                names = list({_path(info): None for info in archive.infolist() if not info.is_dir()})
        except (zipfile.BadZipFile, NotImplementedError) as error:  # the latter: made for a later version of zip
            raise InputError(f"{self.root} is a zip that cannot be read: {error}") from error
        for name in names:
            if "\\" in name:
                raise InputError(
                    f"{self.root} names its files with backslashes; pack it with another program, or give the folder"
                )
            if name.startswith("/") or name[1:2] == ":" or ".." in PurePosixPath(name).parts:
                raise InputError(f"{self.root} holds an unsafe path, {name!r}; nothing was unpacked")
        return names

    def _depth_of_classes(self, files: list[PurePosixPath]) -> int:
        known = {*SPLITS, *CLASS_FOLDERS}
        depth = 0
        while True:
            level = {file.parts[depth] for file in files if len(file.parts) > depth + 1}
            if any(name.lower() in known for name in level):
                return depth
            if len(level) != 1:
                raise InputError(
                    f"{self.root} has no class folders; it needs train/<class>/ and test/<class>/, or <class>/, "
                    f"with the classes {', '.join(CLASS_FOLDERS)}"
                )
            depth += 1


def _path(entry: zipfile.ZipInfo) -> str:
    """Without the ./ that some packers write."""
    return str(PurePosixPath(entry.filename))


def _files_below(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """All files of a folder, links to folders followed, but for one that leads back to a folder that it lies in."""
    above = (*above, folder.resolve())
    for path in folder.iterdir():
        if path.is_file():
            yield path
        elif path.is_dir() and path.resolve() not in above:
            yield from _files_below(path, above)


def _with_stems(found: list[tuple[PurePosixPath, str, int]]) -> list[Photograph]:
    """Name the pictures; two files that differ only by suffix, subfolder or a long name's end get different stems."""
    taken: set[tuple[str, int, str]] = set()
    photographs = []
    for path, split, label in found:
        # "~" and "+" number the variants and faces of one picture
        base = path.stem.replace("~", "-").replace("+", "-")
        if len(os.fsencode(base)) > MAX_STEM:
            base = os.fsencode(base)[:MAX_STEM].decode(errors="ignore")
        stem = base
        number = 1
        while (split, label, stem.lower()) in taken:
            number += 1
            stem = f"{base}-{number}"
        taken.add((split, label, stem.lower()))
        photographs.append(Photograph(str(path), split, label, stem))
    return photographs


def _some(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
