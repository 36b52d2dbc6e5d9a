from __future__ import annotations

import dataclasses
import gzip
import hashlib
import importlib.util
import io
import json
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from realdata import real_data

import drive_seg.archives
from drive_seg.data import load_datalist
from drive_seg.errors import DriveSegError
from drive_seg.names import case_id
from drive_seg.prepare import Dataset, main, prepare, read_binary

SCRIPTS = Path(__file__).resolve().parents[1] / "data_scripts"
SIZE = (100, 84)
"""Width and height of the generated photographs: odd enough to notice an exchanged axis, small enough to be quick."""


def facts(name: str) -> Dataset:
    spec = importlib.util.spec_from_file_location(f"prepare_{name}", SCRIPTS / f"prepare_{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.DATASET


DATASETS = {name: facts(name) for name in ("chase_db1", "hrf", "drive", "stare")}
SMALL = {name: dataclasses.replace(dataset, size=SIZE) for name, dataset in DATASETS.items()}


def circle() -> np.ndarray:
    rows, columns = np.ogrid[: SIZE[1], : SIZE[0]]
    return (rows - 41) ** 2 + (columns - 52) ** 2 <= 38**2


def photograph(number: int) -> Image.Image:
    picture = np.where(circle()[..., None], np.array([150 + number, 80, 40]), 2).astype(np.uint8)
    picture[30, 30:60] = 60
    return Image.fromarray(picture)


def annotation(value: int = 255) -> np.ndarray:
    drawn = np.zeros(SIZE[::-1], dtype=np.uint8)
    drawn[30, 30:60] = value
    return drawn


def save(picture: Image.Image, path: Path) -> None:
    """Save by suffix, through gzip where that is the last one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        buffer = io.BytesIO()
        picture.save(buffer, format="PPM")
        path.write_bytes(gzip.compress(buffer.getvalue(), mtime=0))
    else:
        picture.save(path)


def make_chase_db1(root: Path) -> None:
    for number, name in enumerate(f"Image_{child:02d}{eye}" for child in range(1, 15) for eye in "LR"):
        save(photograph(number), root / f"{name}.jpg")
        save(Image.fromarray(annotation() > 0), root / f"{name}_1stHO.png")
        save(Image.fromarray(annotation()), root / f"{name}_2ndHO.png")


def make_hrf(root: Path) -> None:
    for number, name in enumerate(f"{eye:02d}_{group}" for group in ("h", "dr", "g") for eye in range(1, 16)):
        save(photograph(number), root / "images" / f"{name}{'.JPG' if '_dr' in name else '.jpg'}")
        save(Image.fromarray(annotation()), root / "manual1" / f"{name}.tif")
        if not name.endswith("_g"):
            mask = np.repeat(circle()[..., None] * np.uint8(255), 3, axis=2)
            save(Image.fromarray(mask), root / "mask" / f"{name}_mask.tif")


def make_drive(root: Path) -> None:
    for case in range(1, 41):
        folder = root / ("training" if case > 20 else "test")
        save(photograph(case), folder / "images" / f"{case:02d}_{folder.name}.tif")
        save(Image.fromarray(circle() * np.uint8(255)), folder / "mask" / f"{case:02d}_{folder.name}_mask.gif")
        if case > 20:
            save(Image.fromarray(annotation()), folder / "1st_manual" / f"{case:02d}_manual1.gif")


def make_stare(root: Path) -> None:
    stare = DATASETS["stare"]
    for number, case in enumerate(sorted(stare.training + stare.validation + stare.test)):
        ending = ".ppm.gz" if number % 2 else ".ppm"
        save(photograph(number), root / "stare-images" / f"{case}{ending}")
        save(Image.fromarray(annotation()).convert("RGB"), root / "labels-ah" / f"{case}.ah{ending}")
        save(Image.fromarray(annotation()).convert("RGB"), root / "labels-vk" / f"{case}.vk{ending}")


MAKERS: dict[str, Callable[[Path], None]] = {
    "chase_db1": make_chase_db1,
    "hrf": make_hrf,
    "drive": make_drive,
    "stare": make_stare,
}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A generated source of each dataset; tests that change one copy it first."""
    root = tmp_path_factory.mktemp("pristine")
    for name, maker in MAKERS.items():
        maker(root / name)
    return {name: root / name for name in MAKERS}


@pytest.fixture
def source(request: pytest.FixtureRequest, pristine: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of one source to change, CHASE_DB1 unless the test says otherwise."""
    return Path(shutil.copytree(pristine[getattr(request, "param", "chase_db1")], tmp_path / "source"))


def fingerprints(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        path.relative_to(folder).as_posix(): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def read(path: str | Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("name", MAKERS)
def test_every_dataset_becomes_a_drive_layout(name: str, pristine: dict[str, Path], tmp_path: Path) -> None:
    before = fingerprints(pristine[name])
    prepare(SMALL[name], pristine[name], tmp_path / "out")
    assert fingerprints(pristine[name]) == before

    counts = {"chase_db1": (16, 4, 8), "hrf": (24, 6, 15), "drive": (16, 4, 20), "stare": (8, 2, 10)}[name]
    seen: set[str] = set()
    for section, count in zip(("training", "validation", "test"), counts, strict=True):
        cases = load_datalist(tmp_path / "out", section)
        assert len(cases) == count
        for case in cases:
            assert case["image"] not in seen
            seen.add(case["image"])
            assert {case_id(case[key]) for key in ("image", "fov", "label") if key in case} == {case["case_id"]}
            assert read(case["image"]).shape == (84, 100, 3)
            fov = read(case["fov"]) > 0
            assert (fov & circle()).sum() > 0.98 * (fov | circle()).sum()
            if name == "drive" and section == "test":
                assert "label" not in case
            else:
                np.testing.assert_array_equal(read(case["label"]) > 0, annotation() > 0)
                if name != "drive":
                    assert set(np.unique(read(case["label"]))) == {0, 255}

    content = json.loads((tmp_path / "out" / "dataset.json").read_text(encoding="utf-8"))
    assert content["name"] == DATASETS[name].name
    assert content["licence"] and "doi:" in content["reference"]
    cases = [case for section in ("training", "validation", "test") for case in content[section]]
    paths = [value for case in cases for key, value in case.items() if key not in ("case_id", "person")]
    assert paths and not any(Path(path).is_absolute() for path in paths)
    assert not list((tmp_path / "out").rglob(".*"))


@pytest.mark.parametrize("name", MAKERS)
def test_splits_are_explicit_and_disjoint(name: str) -> None:
    dataset = DATASETS[name]
    cases = dataset.training + dataset.validation + dataset.test
    assert len(cases) == len(set(cases)) == {"chase_db1": 28, "hrf": 45, "drive": 40, "stare": 20}[name]
    assert (
        dataset.size == {"chase_db1": (999, 960), "hrf": (3504, 2336), "drive": (565, 584), "stare": (700, 605)}[name]
    )


def test_no_child_of_chase_db1_is_in_two_sections() -> None:
    children = [{case[:-1] for case in cases} for cases in DATASETS["chase_db1"].sections().values()]
    assert [len(group) for group in children] == [8, 2, 4]
    assert len(set.union(*children)) == 14


@pytest.mark.parametrize("name", MAKERS)
def test_again_changes_nothing(name: str, pristine: dict[str, Path], tmp_path: Path) -> None:
    prepare(SMALL[name], pristine[name], tmp_path / "out")
    before = fingerprints(tmp_path / "out")
    prepare(SMALL[name], pristine[name], tmp_path / "out")
    after = fingerprints(tmp_path / "out")
    assert after.pop("dataset.json")[0] == before.pop("dataset.json")[0]
    assert after == before


def test_photographs_keep_every_pixel(pristine: dict[str, Path], tmp_path: Path) -> None:
    prepare(SMALL["chase_db1"], pristine["chase_db1"], tmp_path / "chase")
    copied = tmp_path / "chase" / "training" / "images" / "Image_03R_training.jpg"
    assert copied.read_bytes() == (pristine["chase_db1"] / "Image_03R.jpg").read_bytes()

    prepare(SMALL["stare"], pristine["stare"], tmp_path / "stare")
    stored = read(tmp_path / "stare" / "test" / "images" / "im0001_test.png")
    np.testing.assert_array_equal(stored, read(pristine["stare"] / "stare-images" / "im0001.ppm"))

    prepare(SMALL["drive"], pristine["drive"], tmp_path / "drive")
    for path in pristine["drive"].rglob("*.*"):
        assert (tmp_path / "drive" / path.relative_to(pristine["drive"])).read_bytes() == path.read_bytes()


def test_interrupted_run_leaves_no_half_file_and_can_be_repeated(
    pristine: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    real_write = Path.write_bytes
    writes = []

    def interrupted_write(path: Path, content: bytes) -> int:
        writes.append(path)
        if len(writes) == 7:
            real_write(path, content[: len(content) // 2])
            raise KeyboardInterrupt
        return real_write(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", interrupted_write)
        assert main(SMALL["chase_db1"], [str(pristine["chase_db1"]), str(out)]) == 130
    finished = fingerprints(out)
    assert len(finished) == 6
    assert not (out / "dataset.json").exists()

    prepare(SMALL["chase_db1"], pristine["chase_db1"], out)
    after = fingerprints(out)
    assert len(after) == 28 * 4 + 1
    assert {name: after[name] for name in finished} == finished


def test_damaged_output_is_mended(pristine: dict[str, Path], tmp_path: Path) -> None:
    prepare(SMALL["chase_db1"], pristine["chase_db1"], tmp_path / "out")
    image = tmp_path / "out" / "test" / "images" / "Image_11L_test.jpg"
    image.write_bytes(image.read_bytes()[:100])
    prepare(SMALL["chase_db1"], pristine["chase_db1"], tmp_path / "out")
    assert read(image).shape == (84, 100, 3)


def test_missing_photograph(source: Path, tmp_path: Path) -> None:
    (source / "Image_05L.jpg").unlink()
    with pytest.raises(
        DriveSegError, match=r"expected 20 training files for images .* found 19: there is no Image_05L\.jpg"
    ):
        prepare(SMALL["chase_db1"], source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_partner(source: Path, tmp_path: Path) -> None:
    (source / "Image_12R_2ndHO.png").unlink()
    with pytest.raises(
        DriveSegError, match=r"expected 8 test files for 2nd_manual .* found 7: there is no Image_12R_2ndHO\.png"
    ):
        prepare(SMALL["chase_db1"], source, tmp_path / "out")


def test_case_that_is_not_of_the_dataset(source: Path, tmp_path: Path) -> None:
    shutil.copy(source / "Image_14R.jpg", source / "Image_15L.jpg")
    with pytest.raises(DriveSegError, match=r"Image_15L\.jpg is no case of CHASE_DB1"):
        prepare(SMALL["chase_db1"], source, tmp_path / "out")


def test_two_different_files_for_one_case(source: Path, tmp_path: Path) -> None:
    (source / "copy").mkdir()
    shutil.copy(source / "Image_01L.jpg", source / "copy" / "Image_01L.jpg")
    prepare(SMALL["chase_db1"], source, tmp_path / "out")
    shutil.copy(source / "Image_02L.jpg", source / "copy" / "Image_01L.jpg")
    with pytest.raises(DriveSegError, match=r"Image_01L\.jpg and .*Image_01L\.jpg differ"):
        prepare(SMALL["chase_db1"], source, tmp_path / "out")


def test_wrong_size(source: Path, tmp_path: Path) -> None:
    photograph(1).rotate(90, expand=True).save(source / "Image_03L.jpg")
    with pytest.raises(DriveSegError, match=r"Image_03L\.jpg: expected 100 x 84 pixels, got 84 x 100"):
        prepare(SMALL["chase_db1"], source, tmp_path / "out")


def test_truncated_photograph(source: Path, tmp_path: Path) -> None:
    path = source / "Image_03L.jpg"
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(DriveSegError, match=r"Image_03L\.jpg: cannot be read as a picture"):
        prepare(SMALL["chase_db1"], source, tmp_path / "out")


def test_dark_photograph(source: Path, tmp_path: Path) -> None:
    Image.new("RGB", SIZE).save(source / "Image_03L.jpg")
    with pytest.raises(DriveSegError, match=r"Image_03L\.jpg: no field of view found"):
        prepare(SMALL["chase_db1"], source, tmp_path / "out")


def test_grey_photograph(source: Path, tmp_path: Path) -> None:
    photograph(1).convert("L").save(source / "Image_03L.jpg")
    with pytest.raises(DriveSegError, match=r"Image_03L\.jpg: expected a colour photograph \(RGB\), got mode L"):
        prepare(SMALL["chase_db1"], source, tmp_path / "out")


def test_annotation_of_more_than_two_values(source: Path, tmp_path: Path) -> None:
    grey = annotation()
    grey[31, 30:60] = 128
    Image.fromarray(grey).save(source / "Image_04R_1stHO.png")
    with pytest.raises(DriveSegError, match=r"Image_04R_1stHO\.png: expected a picture of two values.*got 3 values"):
        prepare(SMALL["chase_db1"], source, tmp_path / "out")


def test_annotation_outside_the_fov_is_noticed(source: Path, tmp_path: Path) -> None:
    drawn = annotation()
    drawn[:4] = 255
    Image.fromarray(drawn).save(source / "Image_04R_1stHO.png")
    notices = prepare(SMALL["chase_db1"], source, tmp_path / "out")
    assert any("Image_04R_training_mask.png" in notice and "lie outside" in notice for notice in notices)


@pytest.mark.parametrize("value", [1, 255])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_binary_pictures_of_every_kind(value: int, mode: str) -> None:
    if mode == "P":
        picture = Image.fromarray(annotation(value)).convert("L")
        picture.putpalette([0, 0, 0, 1, 1, 1] + [9] * 762)
    elif mode == "1":
        picture = Image.fromarray(annotation(value) > 0)
    else:
        picture = Image.fromarray(annotation(value)).convert(mode)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    np.testing.assert_array_equal(read_binary(Path("x.png"), buffer.getvalue(), SIZE), annotation() > 0)


def test_empty_annotation_is_refused() -> None:
    buffer = io.BytesIO()
    Image.new("L", SIZE).save(buffer, format="PNG")
    with pytest.raises(DriveSegError, match=r"x\.png: expected a picture of two values, 0 and one other, got 1 values"):
        read_binary(Path("x.png"), buffer.getvalue(), SIZE)


@pytest.mark.parametrize("source", ["hrf"], indirect=True)
def test_hrf_without_some_annotations(source: Path, tmp_path: Path) -> None:
    for case in ("11_h", "12_h", "13_h"):
        (source / "manual1" / f"{case}.tif").unlink()
    notices = prepare(SMALL["hrf"], source, tmp_path / "out")
    assert any("11_h, 12_h, 13_h" in notice for notice in notices)
    cases = [case["case_id"] for case in load_datalist(tmp_path / "out", "training")]
    assert len(cases) == 21 and "11_h" not in cases
    assert not list((tmp_path / "out").rglob("11_h*"))


def test_hrf_uses_published_masks_and_estimates_the_others(pristine: dict[str, Path], tmp_path: Path) -> None:
    prepare(SMALL["hrf"], pristine["hrf"], tmp_path / "out")
    for case in ("01_h", "15_dr"):
        (path,) = (tmp_path / "out").rglob(f"{case}_*_mask.png")
        np.testing.assert_array_equal(read(path), circle() * np.uint8(255))
    estimated = json.loads((tmp_path / "out" / "dataset.json").read_text(encoding="utf-8"))["estimatedFov"]
    assert sorted(estimated) == [f"{eye:02d}_g" for eye in range(1, 16)]


@pytest.mark.parametrize("source", ["drive"], indirect=True)
def test_drive_with_test_annotations(source: Path, tmp_path: Path) -> None:
    for case in range(1, 21):
        save(Image.fromarray(annotation()), source / "test" / "1st_manual" / f"{case:02d}_manual1.gif")
        save(Image.fromarray(annotation(1)), source / "test" / "2nd_manual" / f"{case:02d}_manual2.gif")
    prepare(SMALL["drive"], source, tmp_path / "out")
    cases = load_datalist(tmp_path / "out", "test", {"label": "1st_manual", "second": "2nd_manual"})
    assert len(cases) == 20 and all("second" in case for case in cases)

    (source / "test" / "1st_manual" / "07_manual1.gif").unlink()
    with pytest.raises(
        DriveSegError,
        match=r"expected 20 test files for 1st_manual .* found 19: there is no test/1st_manual/07_manual1\.gif",
    ):
        prepare(SMALL["drive"], source, tmp_path / "out")


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


@pytest.mark.parametrize("member", ["../evil.txt", "/evil.txt", "a/../../evil.txt", "..\\evil.txt", "C:/evil.txt"])
def test_zip_that_would_write_outside_is_refused(member: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as content:
        content.writestr("fine.txt", "fine")
        content.writestr(member, "evil")
    with pytest.raises(DriveSegError, match=r"bad\.zip: refused, its member .*evil\.txt' would be written outside"):
        prepare(SMALL["chase_db1"], tmp_path / "bad.zip", tmp_path / "out")
    assert not list(tmp_path.rglob("evil.txt"))


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


def test_output_and_source_must_be_apart(source: Path, tmp_path: Path) -> None:
    for output_dir in (source, source / "prepared"):
        with pytest.raises(DriveSegError, match="lies in SOURCE"):
            prepare(SMALL["chase_db1"], source, output_dir)
    (tmp_path / "alias").symlink_to(source)
    with pytest.raises(DriveSegError, match="lies in SOURCE"):
        prepare(SMALL["chase_db1"], source, tmp_path / "alias" / "out")
    inner = Path(shutil.copytree(source, tmp_path / "out" / "training"))
    with pytest.raises(DriveSegError, match="which is written to"):
        prepare(SMALL["chase_db1"], inner, tmp_path / "out")


def test_output_of_another_dataset_is_left_alone(pristine: dict[str, Path], tmp_path: Path) -> None:
    prepare(SMALL["stare"], pristine["stare"], tmp_path / "out")
    with pytest.raises(DriveSegError, match=r"dataset\.json is not of CHASE_DB1"):
        prepare(SMALL["chase_db1"], pristine["chase_db1"], tmp_path / "out")


def test_source_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DriveSegError, match="there is no file or folder"):
        prepare(SMALL["chase_db1"], tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DriveSegError, match=r"notes\.txt is neither a folder nor an archive"):
        prepare(SMALL["chase_db1"], tmp_path / "notes.txt", tmp_path / "out")


@pytest.mark.parametrize("name", MAKERS)
def test_help_says_where_the_data_are(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(DATASETS[name], ["--help"])
    assert exit_info.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in (DATASETS[name].homepage, "SOURCE", "OUTPUT_DIR", "Licence:", "doi:", "dataset.json"):
        assert words in shown


def test_script_ends_with_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "prepare_chase_db1.py"), str(tmp_path / "nowhere"), str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=SCRIPTS.parent)
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1 and "nowhere" in ended.stderr
    ended = subprocess.run([*command, "--debug"], capture_output=True, text=True, check=False, cwd=SCRIPTS.parent)
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr


def test_real_chase_db1(tmp_path: Path) -> None:
    source = real_data("CHASE_DB1")
    notices = prepare(DATASETS["chase_db1"], source, tmp_path)
    assert not any("outside" in notice for notice in notices)
    cases = load_datalist(tmp_path, "test", {"label": "1st_manual", "second": "2nd_manual"})
    assert [case["case_id"] for case in cases] == [f"Image_{child}{eye}" for child in (11, 12, 13, 14) for eye in "LR"]
    for case in cases:
        assert Path(case["image"]).read_bytes() == (source / f"{case['case_id']}.jpg").read_bytes()
        for key, ending in (("label", "1stHO"), ("second", "2ndHO")):
            original = read(source / f"{case['case_id']}_{ending}.png")
            np.testing.assert_array_equal(read(case[key]), original * np.uint8(255))


@pytest.mark.slow
def test_real_hrf(tmp_path: Path) -> None:
    source = real_data("HRF")
    notices = prepare(DATASETS["hrf"], source, tmp_path)
    assert not any("outside" in notice for notice in notices)
    assert [len(load_datalist(tmp_path, section)) for section in ("validation", "test")] == [6, 15]
    case = load_datalist(tmp_path, "test")[2]
    assert case["case_id"] == "01_h"
    np.testing.assert_array_equal(read(case["fov"]), read(source / "mask" / "01_h_mask.tif")[..., 0])
    np.testing.assert_array_equal(read(case["label"]), read(source / "manual1" / "01_h.tif"))
