"""Files are whole or not there."""

from __future__ import annotations

import csv
import errno
import hashlib
import math
import os
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from builders import names
from filelock import FileLock

from drive_seg import files
from drive_seg.errors import DriveSegError, user_error
from drive_seg.files import csv_text, remove, remove_leftovers, replacing, sha256, take_lock, write_csv, write_text


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "file.txt"
    path.write_text("old")
    return path


def test_a_file_is_replaced_at_the_end(old: Path) -> None:
    with replacing(old) as temporary:
        assert temporary.parent == old.parent and temporary.suffix == ".txt" and temporary != old
        temporary.write_text("new")
        assert old.read_text() == "old"
    assert old.read_text() == "new" and names(old.parent) == ["file.txt"]


def test_a_new_file_in_a_new_folder(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "file.txt", "größer\n")
    assert (tmp_path / "a" / "b" / "file.txt").read_bytes() == "größer\n".encode()


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_permissions_are_those_of_any_new_file(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_text(tmp_path / "file.txt", "")
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert (tmp_path / "file.txt").stat().st_mode & 0o777 == 0o666 & ~mask


def test_the_umask_which_all_threads_share_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "umask")  # two threads that set it and set it back can leave it at 0
    write_text(tmp_path / "file.txt", "")


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(old: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), replacing(old) as temporary:
        temporary.write_text("half")
        raise error
    assert old.read_text() == "old" and names(old.parent) == ["file.txt"]


def test_a_full_disk_is_told_with_the_file(old: Path) -> None:
    with pytest.raises(DriveSegError) as raised, replacing(old) as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(raised.value) == f"{old}: cannot be written (No space left on device)"
    assert old.read_text() == "old" and names(old.parent) == ["file.txt"]


def test_another_file_that_fails_is_told_by_its_own_name(old: Path) -> None:
    said = rf"^{old}: cannot be written \(.*No such file or directory"
    with pytest.raises(DriveSegError, match=rf"{said}: '.*missing\.pt'\)$"), replacing(old):
        old.with_name("missing.pt").read_bytes()
    with pytest.raises(DriveSegError, match=rf"{said}\)$"), replacing(old) as temporary:
        temporary.unlink()


def test_a_folder_that_cannot_be_written_to(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)  # the permissions themselves do not stop root
    with pytest.raises(DriveSegError) as raised:
        write_text(old, "new")
    assert str(raised.value) == f"{old}: cannot be written (Permission denied)"
    assert old.read_text() == "old"


def test_a_folder_that_is_a_file(old: Path) -> None:
    with pytest.raises(DriveSegError, match=r"file\.txt/new\.txt: cannot be written \("):
        write_text(old / "new.txt", "")


def test_a_device_or_a_pipe_stays_what_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "link", Path("/dev/stdout")):
        with pytest.raises(DriveSegError, match=f"^{path}: is a device or a pipe, expected a file$"):
            write_text(path, "")
    assert (tmp_path / "pipe").is_fifo() and names(tmp_path) == ["link", "pipe"]


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(DriveSegError, match=r"x\.txt: cannot be written \("):
        write_text(tmp_path / f"{'x' * 300}.txt", "")
    assert names(tmp_path) == []


def test_a_folder_in_the_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "file.txt").mkdir()
    with pytest.raises(DriveSegError, match=r"file\.txt: cannot be written \("):
        write_text(tmp_path / "file.txt", "")
    assert names(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("method", ["replace", "unlink"])
def test_a_file_that_is_open_elsewhere_for_a_moment(old: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """As on Windows, where a virus scanner opens what has just been written."""
    real, refusals = getattr(Path, method), [True, True, False]

    def refuse(path: Path, *args: Any, **kwargs: Any) -> Any:
        if refusals.pop(0):
            raise PermissionError(errno.EACCES, "Access is denied")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(files, "_WAITS", (0, 0))
    monkeypatch.setattr(Path, method, refuse)
    if method == "replace":
        write_text(old, "new")
        assert old.read_text() == "new"
    else:
        remove(old)
        assert not old.exists()
    assert not refusals


def test_what_cannot_be_deleted(tmp_path: Path) -> None:
    remove(tmp_path / "absent.txt")
    with pytest.raises(DriveSegError) as raised:
        remove(tmp_path)
    assert str(raised.value).startswith(f"{tmp_path}: cannot be deleted (")


def test_the_reason_of_a_failure_is_told_though_its_file_cannot_be_deleted(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise PermissionError(errno.EACCES, "Access is denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(ZeroDivisionError), replacing(old):
        raise ZeroDivisionError


def test_leftovers_are_known_in_any_spelling(tmp_path: Path) -> None:
    (tmp_path / ".Jose\u0301_fov.0a1b2c3d.png").touch()
    remove_leftovers(tmp_path, {"Jos\u00e9_fov"})
    assert names(tmp_path) == []


def test_leftovers_that_cannot_be_deleted_stay(tmp_path: Path) -> None:
    (tmp_path / ".a.0a1b2c3d.png").mkdir()
    (tmp_path / ".b.0a1b2c3d.png").touch()
    remove_leftovers(tmp_path, {"a", "b"})
    assert names(tmp_path) == [".a.0a1b2c3d.png"]


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_csv(path, [{"case": "01", "dice": 0.5}, {"case": "a, b", "dice": ""}])
    assert path.read_bytes() == b'case,dice\n01,0.5\n"a, b",\n'
    with path.open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"case": "01", "dice": "0.5"}, {"case": "a, b", "dice": ""}]


def test_what_is_no_number_becomes_an_empty_cell() -> None:
    values = [0.5, None, math.nan, -math.inf, np.float32("nan"), np.float64("inf"), np.float32(0.25), 7, True, "nan"]
    (row,) = csv.DictReader(csv_text([dict(zip("abcdefghij", values, strict=True))]).splitlines())
    assert list(row.values()) == ["0.5", "", "", "", "", "", "0.25", "7", "True", "nan"]


@pytest.mark.parametrize("size", [0, 3, (1 << 20) + 1])
def test_sha256(tmp_path: Path, size: int) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "file").write_bytes(content[:size])
    assert sha256(tmp_path / "file") == hashlib.sha256(content[:size]).hexdigest()


def test_sha256_of_no_file(tmp_path: Path) -> None:
    with pytest.raises(DriveSegError, match="nothing: cannot be read \\(No such file or directory\\)"):
        sha256(tmp_path / "nothing")


def test_the_cause_of_an_error_is_found() -> None:
    inner = DriveSegError("the file")
    try:
        try:
            raise inner
        except DriveSegError as error:
            raise RuntimeError("applying transform") from error
    except RuntimeError as outer:
        assert user_error(outer) is inner
    assert user_error(ValueError("a bug")) is None


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP], ids=["ENOLCK", "ENOTSUP"])
def test_a_folder_without_locks_is_written_to_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", fail)
    take_lock(FileLock(tmp_path / "folder" / ".lock"))
    assert f"{tmp_path / 'folder'}: has no file locks" in caplog.text
