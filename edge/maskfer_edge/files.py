"""Atomic writes, and locks so that one run writes a file at a time."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from maskfer_edge.errors import InputError, OutputError

# How many old files a rotated file keeps.
ROTATED_FILES = 5


def check_writable(path: Path, overwrite: bool = False) -> None:
    """Refuse early, before long work, an output that could not be written at the end.

    Raises:
        OutputError: If `path` is a folder, or exists and `overwrite` is false, or its folder cannot be written.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file in it")
    if os.path.lexists(path) and not overwrite:
        raise OutputError(f"{path} is already there; name another output or give --overwrite")
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(f"{folder} is not a folder; make it first: mkdir -p {folder}")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{folder} cannot be written to; name another output")


def check_creatable(folder: Path) -> None:
    """Refuse early, before long work, a folder that could not be made at the end.

    Raises:
        OutputError: If what is there of its path is no folder, or cannot be written to.
    """
    ancestor = next(parent for parent in folder.absolute().parents if parent.exists())
    if not ancestor.is_dir():
        raise OutputError(f"{folder} cannot be made: {ancestor} is no folder; name another")
    if not os.access(ancestor, os.W_OK):
        raise OutputError(f"{folder} cannot be made: {ancestor} cannot be written to; name another")


@contextmanager
def atomic_file(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary name beside `path` that becomes `path` if the block succeeds.

    The temporary name keeps the suffix, as some writers choose the format by it. After a power cut there is
    the old file or the new one, and once the block is left it is the new one.

    Raises:
        OutputError: If `path` exists and `overwrite` is false, or writing fails (disk full).
    """
    check_writable(path, overwrite)
    partial = path.with_name(_partial_name(path, secrets.token_hex(4)))
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        if overwrite:
            partial.replace(path)
        else:
            # link refuses an existing name, where replace would silently win a race
            try:
                os.link(partial, path)
            except FileExistsError:
                raise OutputError(f"{path} is already there; nothing was changed") from None
            except OSError:  # file systems without hard links (FAT on an SD card)
                partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _partial_name(path: Path, digits: str) -> str:
    return f".{path.stem}.{digits}.partial{path.suffix}"


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Make a folder of the same name inside a temporary one beside `path`; it becomes `path` if the block succeeds.

    The folders above it are made too. Whatever ends the block, the temporary one goes. Not tempfile's: a signal that
    comes while that makes its folder leaves the folder behind.

    Raises:
        OutputError: If it, or what is written in it, cannot be written (disk full).
    """
    outer = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        outer.mkdir(0o700, parents=True)
        folder = outer / path.name
        folder.mkdir()
        yield folder
        folder.rename(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}; nothing is left of it") from error
    finally:
        shutil.rmtree(outer, ignore_errors=True)


def rotated_names(path: str) -> list[str]:
    """Names of the old files of a rotated file: PATH.1, the newest, to PATH.5."""
    return [f"{path}.{number}" for number in range(1, ROTATED_FILES + 1)]


def lock(file: IO[bytes], path: Path) -> None:
    """Keep other runs off an open file until it is closed.

    Raises:
        OutputError: If another run has it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(f"another run is writing {path}; name another output") from None
    except OSError:  # file systems without locks
        return


def remove_abandoned(path: Path, after_s: float) -> None:
    """Remove what killed programs left of `path` under `atomic_file`'s temporary names.

    That is what is not locked and was not written for `after_s`, as some file systems have no locks.
    """
    if path.parent.is_dir():
        for leftover in path.parent.glob(_partial_name(Path(glob.escape(path.name)), "[0-9a-f]" * 8)):
            with suppress(OSError, OutputError), leftover.open("rb") as file:
                lock(file, leftover)
                if time.time() - leftover.stat().st_mtime > after_s:
                    leftover.unlink()


def write_atomically(path: Path, content: bytes | str, overwrite: bool = False) -> None:
    """Write `content` to `path` by way of `atomic_file`; text as UTF-8."""
    with atomic_file(path, overwrite) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def sync_folder(folder: Path) -> None:
    """Make what was renamed, linked or made in a folder outlast a power cut. Raises OSError."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # a folder that may be written to but not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot
            raise
    finally:
        os.close(descriptor)


def read_bytes(path: Path) -> bytes:
    """Read a file.

    Raises:
        InputError: If it does not exist or cannot be read; one line that names it.
    """
    try:
        return path.read_bytes()
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; a file is needed") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def check_space(folder: Path, needed_bytes: int) -> None:
    """Refuse work that the disk cannot hold.

    Raises:
        OutputError: If fewer than `needed_bytes` are free on the file system of `folder`.
    """
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise OutputError(
            f"{folder} has {free / 1e6:.0f} MB free and {needed_bytes / 1e6:.0f} MB are needed; "
            "free some space or name another output"
        )
