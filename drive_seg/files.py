"""Writes files whole or not at all: under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import logging
import math
import numbers
import os
import re
import secrets
import shutil
import tempfile
import time
import unicodedata
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from drive_seg.errors import DriveSegError

_WAITS = (0.1, 0.2, 0.4, 0.8, 1.6) if os.name == "nt" else ()
"""Seconds before each further attempt: Windows neither replaces nor deletes a file that another program has open, as a
virus scanner does for a moment."""


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside ``path`` that is renamed to it once the block has succeeded.

    The folder is made if it is missing. The temporary name keeps the suffix, because many writers choose the format by
    it. If the block raises, ``path`` is as it was and nothing else is left behind. If the process is killed, ``path``
    is as it was, too, but the temporary file may stay. There is no protection against power loss: waiting for the disk
    would slow down thousands of pictures.

    Raises:
        DriveSegError: if the folder cannot be written to, the disk is full, or ``path`` is a device or a pipe, which
            must not be replaced.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        # /dev/stdout is a link, which may lead to a file
        if (path.exists() and not (path.is_file() or path.is_dir())) or path.absolute().parent == Path("/dev"):
            raise DriveSegError(f"{path}: is a device or a pipe, expected a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        candidate = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
        candidate.touch(mode=0o666, exist_ok=False)  # minus the user's umask
        temporary = candidate
        yield temporary
        _patiently(lambda: candidate.replace(path))
    except OSError as error:
        of_this = error.filename is None or Path(error.filename) in (path, temporary, *path.parents)
        reason = (error.strerror if of_this else None) or error  # another file, such as one that was to be copied
        raise DriveSegError(f"{path}: cannot be written ({reason})") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):  # which would hide why the block failed
                temporary.unlink(missing_ok=True)


def _patiently(change: Callable[[], Any]) -> None:
    for wait in _WAITS:
        try:
            change()
        except PermissionError:
            time.sleep(wait)
        else:
            return
    change()


def remove(path: str | os.PathLike) -> None:
    """Delete a file, if it is there.

    Raises:
        DriveSegError: if it cannot be deleted.
    """
    path = Path(path)
    try:
        _patiently(lambda: path.unlink(missing_ok=True))
    except OSError as error:
        reason = error.strerror or error
        raise DriveSegError(f"{path}: cannot be deleted ({reason}); is it open in another program?") from error


def remove_leftovers(folder: str | os.PathLike, names: Container[str]) -> None:
    """Remove the temporary files of ``replacing`` that a killed process has left in a folder.

    Args:
        folder: where to look; nobody else may be writing there.
        names: stems of the files that were being written, their accents composed, see
            ``drive_seg.names.picture_name``.
    """
    for path in Path(folder).glob(".*.*.*"):
        temporary = re.fullmatch(r"\.(.+)\.[0-9a-f]{8}", path.stem)
        if temporary and unicodedata.normalize("NFC", temporary[1]) in names:
            with contextlib.suppress(DriveSegError):  # one that stays harms nobody
                remove(path)


def make_folder(path: str | os.PathLike) -> Path:
    """Make a folder to write into if it does not exist.

    Raises:
        DriveSegError: if it cannot be made or written to.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise DriveSegError(f"{path}: cannot be written to ({error.strerror or error})") from error
    return path


_logger = logging.getLogger(__name__)

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP)
"""Errors from network file systems without locks."""


def take_lock(lock: FileLock) -> None:
    """Lock a folder that only one run may write into; the folder is made if it does not exist.

    Raises:
        DriveSegError: if another run has it, or the folder cannot be written to.
    """
    folder = Path(lock.lock_file).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout as error:
        raise DriveSegError(
            f"{folder}: another run is writing into this folder, wait for it or choose another folder (if there is "
            f"none, delete {Path(lock.lock_file).name} in it)"
        ) from error
    except OSError as error:
        if error.errno in _NO_LOCKS:
            _logger.warning("%s: has no file locks, see to it that no other run writes into it", folder)
            return
        raise DriveSegError(f"{folder}: cannot be written to ({error.strerror or error})") from error


def encoded(text: str) -> bytes:
    """Text as UTF-8; bytes in file names that are not UTF-8 become ``\\udc…``."""
    return text.encode(errors="backslashreplace")


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write text as ``encoded`` returns it."""
    with replacing(path) as temporary:
        temporary.write_bytes(encoded(text))


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """One or more rows, all with the first one's keys, as a CSV table; None, NaN and infinity become empty."""
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _shown(value) for key, value in row.items()} for row in rows)
    return table.getvalue()


def write_csv(path: str | os.PathLike, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as ``csv_text`` returns them."""
    write_text(path, csv_text(rows))


def _shown(value: Any) -> Any:
    return "" if isinstance(value, numbers.Real) and not math.isfinite(value) else value


def sha256(path: str | os.PathLike) -> str:
    """Hexadecimal SHA-256 of a file's bytes.

    Raises:
        DriveSegError: if it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DriveSegError(f"{path}: cannot be read ({error.strerror or error})") from error
    return digest.hexdigest()


def keep(path: str | os.PathLike, *described_by: Path) -> Path | None:
    """Copy a file that is to be replaced, under a name made from its content, so that the same is kept only once.

    Args:
        path: the file.
        described_by: files that belong to it, copied first, with the same ending of the name, if they exist.

    Returns:
        The copy, such as ``model_0a1b2c3d.pt`` of ``model.pt``; None if there is one already.
    """
    path = Path(path)
    ending = f"_{sha256(path)[:8]}"
    copy = _with_ending(path, ending)
    if copy.exists():
        return None
    for file in (*filter(Path.is_file, described_by), path):
        with replacing(_with_ending(file, ending)) as temporary:
            shutil.copyfile(file, temporary)
    return copy


def _with_ending(path: Path, ending: str) -> Path:
    suffix = path.name[-len(".nii.gz") :] if path.name.lower().endswith(".nii.gz") else path.suffix
    return path.with_name(path.name.removesuffix(suffix) + ending + suffix)
