import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from maskfer_edge.errors import InputError, OutputError
from maskfer_edge.files import atomic_file, atomic_folder, check_space, check_writable, read_bytes, write_atomically


def names(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize(("content", "expected"), [(b"\x00\xff", b"\x00\xff"), ("Grüße", "Grüße".encode())])
def test_write_atomically_writes_bytes_and_utf8(tmp_path, content, expected):
    write_atomically(tmp_path / "a.txt", content)
    assert (tmp_path / "a.txt").read_bytes() == expected


def test_nothing_but_the_file_is_left(tmp_path):
    write_atomically(tmp_path / "a.txt", "new")
    assert names(tmp_path) == ["a.txt"]


def test_an_existing_file_is_refused_and_kept(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(OutputError, match=r"already there.*--overwrite"):
        write_atomically(path, "new")
    assert path.read_text() == "old"


def test_overwrite_replaces(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    write_atomically(path, "new", overwrite=True)
    assert (path.read_text(), names(tmp_path)) == ("new", ["a.txt"])


def test_a_failure_inside_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_file(tmp_path / "a.txt") as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert names(tmp_path) == []


def test_a_failure_inside_keeps_the_old_content(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_file(path, overwrite=True) as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert (path.read_text(), names(tmp_path)) == ("old", ["a.txt"])


def test_a_full_disk_is_an_output_error_that_names_the_file(tmp_path):
    with pytest.raises(OutputError, match=r"a\.txt cannot be written: No space"), atomic_file(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_block_that_writes_nothing_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="cannot be written"), atomic_file(tmp_path / "a.txt"):
        pass


def test_the_temporary_name_keeps_the_suffix_and_the_folder(tmp_path):
    with atomic_file(tmp_path / "a.mp4") as partial:
        partial.touch()
        assert (partial.suffix, partial.parent) == (".mp4", tmp_path)


def test_a_name_that_appears_meanwhile_is_not_replaced(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(OutputError, match="already there"), atomic_file(path) as partial:
        partial.write_text("mine")
        path.write_text("another's")
    assert (path.read_text(), names(tmp_path)) == ("another's", ["a.txt"])


def test_a_file_system_without_hard_links_works(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    write_atomically(tmp_path / "a.txt", "new")
    assert ((tmp_path / "a.txt").read_text(), names(tmp_path)) == ("new", ["a.txt"])


def test_check_writable_accepts_a_new_name(tmp_path):
    assert check_writable(tmp_path / "new") is None


def test_check_writable_refuses_a_missing_folder(tmp_path):
    with pytest.raises(OutputError, match="mkdir -p"):
        check_writable(tmp_path / "none" / "a.txt")


def test_check_writable_refuses_a_dangling_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="already there"):
        check_writable(tmp_path / "link")


@pytest.mark.parametrize("overwrite", [False, True])
def test_check_writable_refuses_a_folder_even_to_overwrite(tmp_path, overwrite):
    with pytest.raises(OutputError, match="is a folder; name a file in it"):
        check_writable(tmp_path, overwrite)


def test_check_writable_refuses_a_folder_without_permission(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="cannot be written to"):
        check_writable(tmp_path / "a.txt")


def test_read_bytes_reads(tmp_path):
    (tmp_path / "a").write_bytes(b"\x01\x02")
    assert read_bytes(tmp_path / "a") == b"\x01\x02"


def test_read_bytes_names_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="none cannot be read: No such file"):
        read_bytes(tmp_path / "none")


def test_read_bytes_refuses_a_folder(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        read_bytes(tmp_path)


@pytest.mark.parametrize(("free", "refused"), [(999, True), (1000, False)])
def test_check_space_compares_with_what_is_free(tmp_path, monkeypatch, free, refused):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(free))
    try:
        check_space(tmp_path, 1000)
    except OutputError as error:
        assert refused and "free some space" in str(error)
    else:
        assert not refused


def test_what_ends_while_a_temporary_folder_is_made_leaves_none(tmp_path, monkeypatch):
    make = Path.mkdir

    def make_and_end(self, mode, parents):
        make(self, mode, parents)
        raise SystemExit(143)

    monkeypatch.setattr(Path, "mkdir", make_and_end)
    with pytest.raises(SystemExit), atomic_folder(tmp_path / "out"):
        pass
    assert not list(tmp_path.iterdir())
