"""Unpacks dataset archives safely (nothing outside the folder, no links, limited size) and writes our own archives."""

from __future__ import annotations

import contextlib
import gzip
import lzma
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from drive_seg.errors import DriveSegError

__all__ = ["files_in", "read_file", "unpacked", "write_archive"]

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MAX_UNPACKED_BYTES = 8 * 2**30
MAX_UNPACKED_FILES = 20_000
MAX_FILE_BYTES = MAX_UNPACKED_BYTES // 32

_MAX_NESTING = 3
_BLOCK = 2**20


@contextlib.contextmanager
def unpacked(source: Path, beside: Sequence[str]) -> Iterator[list[Path]]:
    """Folders that hold everything in ``source``, nested archives included; temporary ones are deleted afterwards."""
    with tempfile.TemporaryDirectory(prefix="drive-seg-") as temporary:
        if source.is_dir():
            roots, archives = [source], _archives_in(source)
        elif _is_archive(source):
            roots, archives = [], [source]
            if source.name.lower() in beside:
                archives += [p for p in sorted(source.parent.iterdir()) if p.name.lower() in beside and p != source]
        else:
            raise DriveSegError(f"SOURCE: {source} is neither a folder nor an archive ({', '.join(ARCHIVE_SUFFIXES)})")
        budget = _Budget()
        for nesting in range(_MAX_NESTING):
            folders = []
            for number, archive in enumerate(archives):
                # Named after the archive, because some archives lack the folder that their files belong in.
                folder = Path(temporary, f"{nesting}-{number}", archive.name.split(".")[0])
                folder.mkdir(parents=True)
                _unpack(archive, folder, budget)
                folders.append(folder.parent)
            roots += folders
            archives = [archive for folder in folders for archive in _archives_in(folder)]
        yield roots


def write_archive(path: Path, members: Mapping[str, bytes | Path]) -> None:
    """Write a zip file whose bytes depend only on the names and contents of its members.

    Members are sorted, share one date and set of permissions, and are stored uncompressed: weights hardly shrink, and
    deflate's output depends on the version of zlib.

    Args:
        path: the zip file, overwritten.
        members: contents, or paths of files that hold them, by name in the archive.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in sorted(members.items()):
            member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            member.create_system = 3  # Unix on every system, so that the permissions are read as such
            member.external_attr = 0o100644 << 16
            archive.writestr(member, content if isinstance(content, bytes) else content.read_bytes())


def files_in(folder: Path) -> list[Path]:
    """Files below ``folder`` in sorted order, without hidden ones such as macOS adds to archives (``._name``)."""
    return sorted(p for p in folder.rglob("*") if not p.name.startswith(".") and p.is_file())


def read_file(path: Path) -> bytes:
    """The content of a file, decompressed if it is a single gzipped file (``.gz``)."""
    try:
        if path.suffix.lower() == ".gz":
            with gzip.open(path) as packed:
                content = packed.read(MAX_FILE_BYTES + 1)
            if len(content) > MAX_FILE_BYTES:
                raise DriveSegError(f"{path}: refused, it unpacks to more than {MAX_FILE_BYTES} bytes")
            return content
        return path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DriveSegError(f"{path}: cannot be read ({error})") from error


def _is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVE_SUFFIXES)


def _archives_in(folder: Path) -> list[Path]:
    return [path for path in files_in(folder) if _is_archive(path)]


class _Budget:
    """How much may still be unpacked: a small archive can hold petabytes."""

    def __init__(self) -> None:
        self.bytes = MAX_UNPACKED_BYTES
        self.files = MAX_UNPACKED_FILES

    def take(self, archive: Path, size: int) -> None:
        self.bytes -= size
        self.files -= 1
        if self.bytes < 0 or self.files < 0:
            raise DriveSegError(
                f"{archive}: refused, it unpacks to more than {MAX_UNPACKED_BYTES / 2**30:g} GiB "
                f"or {MAX_UNPACKED_FILES} files"
            )


def _unpack(archive: Path, folder: Path, budget: _Budget) -> None:
    try:
        if archive.name.lower().endswith(".zip"):
            _unpack_zip(archive, folder, budget)
        else:
            _unpack_tar(archive, folder, budget)
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        OSError,
        NotImplementedError,
    ) as error:
        raise DriveSegError(f"{archive}: cannot be unpacked ({error})") from error


def _check_member(archive: Path, name: str) -> None:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if parts[:1] == ("/",) or ".." in parts or "\0" in name or ":" in "".join(parts[:1]):
        raise DriveSegError(f"{archive}: refused, its member {name!r} would be written outside the folder")
    if "\\" in name:
        raise DriveSegError(
            f"{archive}: expected slashes between folders, got backslashes in {name!r}; unpack it and give the folder"
        )


def _unpack_zip(archive: Path, folder: Path, budget: _Budget) -> None:
    with zipfile.ZipFile(archive) as content:
        members = content.infolist()
        for member in members:
            # orig_filename, because zipfile cuts names at a null byte and converts separators.
            _check_member(archive, member.orig_filename)
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise DriveSegError(f"{archive}: refused, its member {member.filename!r} is a link or device")
            if member.flag_bits & 1:
                raise DriveSegError(f"{archive}: its member {member.filename!r} is encrypted, expected plain files")
            budget.take(archive, member.file_size)
        for member in members:
            if not member.is_dir():
                target = folder.joinpath(*PurePosixPath(member.filename).parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                with content.open(member) as packed, target.open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)


def _unpack_tar(archive: Path, folder: Path, budget: _Budget) -> None:
    with tarfile.open(archive) as content:
        for member in content:
            if not (member.isfile() or member.isdir()):
                raise DriveSegError(f"{archive}: refused, its member {member.name!r} is a link or device")
            if member.isfile():
                _check_member(archive, member.name)
            budget.take(archive, member.size)
            member.mtime = 0  # any number may be there, and it does not matter
            content.extract(member, folder, filter="data")
        _check_rest(archive, content)


def _check_rest(archive: Path, content: tarfile.TarFile) -> None:
    """Read on to the checksum of the compressed data; tarfile stops before it."""
    assert content.fileobj is not None
    for _ in range(MAX_UNPACKED_BYTES // _BLOCK):
        if not content.fileobj.read(_BLOCK):
            return
    raise DriveSegError(f"{archive}: refused, it goes on for more than {MAX_UNPACKED_BYTES / 2**30:g} GiB")
