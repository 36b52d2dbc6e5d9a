"""Archives of datasets: whole, nested, damaged, and such as would write where they must not."""

from __future__ import annotations

import gzip
import io
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from public_datasets import SMALL, fingerprints

import drive_seg.archives
from drive_seg.archives import write_archive
from drive_seg.data import load_datalist
from drive_seg.errors import DriveSegError
from drive_seg.prepare import prepare


def zipped(folder: Path, archive: Path, prefix: str = "") -> Path:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w") as content:
        for path in sorted(folder.rglob("*")):
            content.write(path, prefix + path.relative_to(folder).as_posix())
    return archive


@pytest.mark.parametrize("given", ["folder of zips", "one zip", "nested folder", "zip of zips"])
def test_drive_as_it_may_come(given: str, pristine: dict[str, Path], tmp_path: Path) -> None:
    downloads = tmp_path / "downloads"
    if given == "nested folder":
        shutil.copytree(pristine["drive"], downloads / "DRIVE")
        source = downloads
    else:
        for part in ("training", "test"):
            zipped(pristine["drive"] / part, downloads / f"{part}.zip", prefix=f"{part}/")
        source = downloads / "training.zip" if given == "one zip" else downloads
        if given == "zip of zips":
            source = zipped(downloads, tmp_path / "datasets.zip")
    before = fingerprints(downloads)
    prepare(SMALL["drive"], source, tmp_path / "out")
    assert len(load_datalist(tmp_path / "out", "training")) == 16
    assert len(load_datalist(tmp_path / "out", "test")) == 20
    assert fingerprints(downloads) == before


@pytest.mark.parametrize("given", ["folder", "one of them"])
def test_stare_as_three_archives(given: str, pristine: dict[str, Path], tmp_path: Path) -> None:
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    for part in ("stare-images", "labels-ah", "labels-vk"):
        with tarfile.open(downloads / f"{part}.tar", "w") as content:
            for path in sorted((pristine["stare"] / part).iterdir()):
                content.add(path, path.name)
    source = downloads if given == "folder" else downloads / "labels-ah.tar"
    prepare(SMALL["stare"], source, tmp_path / "out")
    prepare(SMALL["stare"], pristine["stare"], tmp_path / "plain")
    packed, plain = fingerprints(tmp_path / "out"), fingerprints(tmp_path / "plain")
    assert {name: digest for name, (digest, _) in packed.items()} == {
        name: digest for name, (digest, _) in plain.items()
    }


def test_compressed_tar_with_macos_litter(pristine: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "._Image_01L.jpg").write_bytes(b"not a picture")
    with tarfile.open(tmp_path / "CHASEDB1.tar.gz", "w:gz") as content:
        content.add(pristine["chase_db1"], "CHASEDB1")
        content.add(tmp_path / "._Image_01L.jpg", "__MACOSX/CHASEDB1/._Image_01L.jpg")
    prepare(SMALL["chase_db1"], tmp_path / "CHASEDB1.tar.gz", tmp_path / "out")
    assert len(load_datalist(tmp_path / "out", "test")) == 8


@pytest.mark.parametrize("packing", ["gz", "bz2", "xz"])
def test_a_damaged_archive_is_refused(packing: str, pristine: dict[str, Path], tmp_path: Path) -> None:
    """Its photographs might be of the right size and wrong."""
    path = tmp_path / f"CHASEDB1.tar.{packing}"
    with tarfile.open(path, f"w:{packing}") as content:
        content.add(pristine["chase_db1"], "CHASEDB1")
    damaged = bytearray(path.read_bytes())
    for place in range(len(damaged) // 2, len(damaged) // 2 + 20):
        damaged[place] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(DriveSegError, match=rf"CHASEDB1\.tar\.{packing}: cannot be (unpacked|read)"):
        prepare(SMALL["chase_db1"], path, tmp_path / "out")


def test_a_checksum_that_is_wrong_is_noticed(tmp_path: Path) -> None:
    """tarfile stops before it."""
    path = tmp_path / "damaged.tar.gz"
    with tarfile.open(path, "w:gz") as content:
        content.addfile(tarfile.TarInfo("empty.txt"), io.BytesIO())
    packed = bytearray(path.read_bytes())
    packed[-8] ^= 1  # of the four bytes of the checksum
    path.write_bytes(packed)
    with pytest.raises(DriveSegError, match=r"damaged\.tar\.gz: cannot be unpacked \(CRC"):
        prepare(SMALL["chase_db1"], path, tmp_path / "out")


def test_a_zip_that_was_packed_with_backslashes(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "windows.zip", "w") as content:
        content.writestr("CHASEDB1\\Image_01L.jpg", "photograph")
    with pytest.raises(DriveSegError, match=r"windows\.zip: expected slashes .*; unpack it and give the folder"):
        prepare(SMALL["chase_db1"], tmp_path / "windows.zip", tmp_path / "out")


@pytest.mark.parametrize("member", ["../evil.txt", "/evil.txt", "a/../../evil.txt", "..\\evil.txt", "C:/evil.txt"])
def test_zip_that_would_write_outside_is_refused(member: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as content:
        content.writestr("fine.txt", "fine")
        content.writestr(member, "evil")
    with pytest.raises(DriveSegError, match=r"bad\.zip: refused, its member .*evil\.txt' would be written outside"):
        prepare(SMALL["chase_db1"], tmp_path / "bad.zip", tmp_path / "out")
    assert not list(tmp_path.rglob("evil.txt"))


def test_a_tar_with_a_date_that_cannot_be(pristine: dict[str, Path], tmp_path: Path) -> None:
    def far_away(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mtime = 2**70
        return member

    with tarfile.open(tmp_path / "drive.tar", "w", format=tarfile.PAX_FORMAT) as content:
        content.add(pristine["drive"], "DRIVE", filter=far_away)
    prepare(SMALL["drive"], tmp_path / "drive.tar", tmp_path / "out")
    assert len(load_datalist(tmp_path / "out", "training")) == 16


def test_zip_with_a_link_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as content:
        content.writestr(link, "/etc/passwd")
    with pytest.raises(DriveSegError, match=r"bad\.zip: refused, its member 'link' is a link"):
        prepare(SMALL["chase_db1"], tmp_path / "bad.zip", tmp_path / "out")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_tar_with_a_link_is_refused(kind: bytes, tmp_path: Path) -> None:
    member = tarfile.TarInfo("link")
    member.type, member.linkname = kind, "/etc/passwd"
    with tarfile.open(tmp_path / "bad.tar", "w") as content:
        content.addfile(member)
    with pytest.raises(DriveSegError, match=r"bad\.tar: refused, its member 'link' is a link or device"):
        prepare(SMALL["chase_db1"], tmp_path / "bad.tar", tmp_path / "out")


def test_tar_that_would_write_outside_is_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo("../evil.txt")
    member.size = 4
    with tarfile.open(tmp_path / "bad.tar", "w") as content:
        content.addfile(member, io.BytesIO(b"evil"))
    with pytest.raises(DriveSegError, match=r"bad\.tar: refused"):
        prepare(SMALL["chase_db1"], tmp_path / "bad.tar", tmp_path / "out")


@pytest.mark.parametrize("limit", ["MAX_UNPACKED_BYTES", "MAX_UNPACKED_FILES"])
@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_archive_that_is_too_large_is_refused(
    limit: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drive_seg.archives, limit, 3)
    (tmp_path / "content").mkdir()
    for number in range(4):
        (tmp_path / "content" / f"{number}.txt").write_text("text")
    archive = shutil.make_archive(str(tmp_path / "large"), suffix, tmp_path / "content")
    with pytest.raises(DriveSegError, match=rf"large\.{suffix}: refused, it unpacks to more than"):
        prepare(SMALL["chase_db1"], archive, tmp_path / "out")


@pytest.mark.parametrize("name", ["broken.zip", "broken.tar", "broken.tar.gz"])
def test_archive_that_is_none(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"this is no archive")
    with pytest.raises(DriveSegError, match=rf"{name}: cannot be unpacked"):
        prepare(SMALL["chase_db1"], tmp_path / name, tmp_path / "out")


def test_archives_depend_on_contents_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"two")
    write_archive(tmp_path / "a.zip", {"b": tmp_path / "file", "a": b"one"})
    (tmp_path / "file").chmod(0o600)
    write_archive(tmp_path / "b.zip", {"a": b"one", "b": b"two"})
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_a_file_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drive_seg.archives, "MAX_FILE_BYTES", 1000)
    for size in (1000, 1001):
        (tmp_path / "im0001.ppm.gz").write_bytes(gzip.compress(bytes(size)))
        if size == 1000:
            assert drive_seg.archives.read_file(tmp_path / "im0001.ppm.gz") == bytes(size)
    with pytest.raises(DriveSegError, match=r"im0001\.ppm\.gz: refused, it unpacks to more than 1000 bytes"):
        drive_seg.archives.read_file(tmp_path / "im0001.ppm.gz")
