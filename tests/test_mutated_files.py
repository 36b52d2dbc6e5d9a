"""A thousand damaged files: each is read or refused in one sentence, none stops the others."""

from __future__ import annotations

import csv
import struct
import time
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tifffile
from pictures import as_rgb24, save_compressed_dicom, save_dicom, save_nifti_array, save_png16, save_ppm16
from PIL import Image
from pydicom.uid import RLELossless

from drive_seg.errors import DriveSegError
from drive_seg.files import sha256
from drive_seg.fov import estimate_fov
from drive_seg.phantom import make_phantom
from drive_seg.predict import segment_photographs
from drive_seg.readers import read_image

COUNT = 1000
SEGMENTED = 60
HEIGHT, WIDTH = 64, 72

MUTATIONS = ("truncated", "bits", "header bits", "overwritten", "removed", "wrong suffix", "zeros", "empty", "huge")


@cache
def phantom() -> np.ndarray:
    """(H, W, 3), uint8."""
    whole = Image.fromarray(make_phantom(3, height=150, width=169).image)
    return np.asarray(whole.resize((WIDTH, HEIGHT), Image.Resampling.BOX))


def pillow(format: str, mode: str = "RGB", **options: object) -> Callable[[Path], object]:
    return lambda path: Image.fromarray(phantom()).convert(mode).save(path, format=format, **options)


def deep() -> np.ndarray:
    return phantom().astype(np.uint16) * 16


MAKERS: dict[str, Callable[[Path], object]] = {
    "rgb.png": pillow("PNG"),
    "palette.png": pillow("PNG", "P"),
    "alpha.png": pillow("PNG", "RGBA"),
    "deep.png": lambda path: save_png16(path, deep()),
    "rgb.jpg": pillow("JPEG"),
    "progressive.jpg": pillow("JPEG", progressive=True),
    "cmyk.jpg": pillow("JPEG", "CMYK"),
    "rgb.tif": pillow("TIFF"),
    "lzw.tif": pillow("TIFF", compression="tiff_lzw"),
    "deep.tif": lambda path: tifffile.imwrite(path, deep(), photometric="rgb", compression="zlib"),
    "planes.tif": lambda path: tifffile.imwrite(
        path, np.moveaxis(deep(), -1, 0), photometric="rgb", planarconfig="separate"
    ),
    "rgb.bmp": pillow("BMP"),
    "rgb.gif": pillow("GIF"),
    "rgb.ppm": pillow("PPM"),
    "deep.ppm": lambda path: save_ppm16(path, deep(), 4095),
    "rgb.jp2": pillow("JPEG2000"),
    "rgb.webp": pillow("WEBP"),
    "rgb.nii": lambda path: save_nifti_array(path, as_rgb24(phantom())),
    "float.nii": lambda path: save_nifti_array(path, phantom().swapaxes(0, 1).astype(np.float32)),
    "rgb.nii.gz": lambda path: save_nifti_array(path, as_rgb24(phantom())),
    "rgb.dcm": lambda path: save_dicom(path, phantom()),
    "grey.dcm": lambda path: save_dicom(path, deep()[..., 1], "MONOCHROME2", bits=12),
    "rle.dcm": lambda path: save_compressed_dicom(path, phantom(), "RGB", RLELossless),
}


def mutate(content: bytes, mutation: str, random: np.random.Generator) -> bytes:
    changed = bytearray(content)
    if mutation == "truncated":
        return content[: int(random.integers(1, len(content)))]
    if mutation == "empty":
        return b""
    if mutation == "zeros":
        return b"\0" * len(content)
    if mutation in ("bits", "header bits"):
        last = len(content) if mutation == "bits" else min(len(content), 400)
        for place in random.integers(0, last, size=int(random.integers(1, 9))):
            changed[place] ^= 1 << int(random.integers(8))
    elif mutation == "overwritten":
        start = int(random.integers(0, len(content)))
        length = min(int(random.integers(1, 200)), len(content) - start)
        changed[start : start + length] = random.bytes(length)
    elif mutation == "removed":
        start = int(random.integers(0, len(content)))
        del changed[start : start + int(random.integers(1, 50))]
    elif mutation == "huge":
        return _with_another_size(content, random)
    return bytes(changed)


def _with_another_size(content: bytes, random: np.random.Generator) -> bytes:
    """Width and height, wherever they stand as numbers of 2 or 4 bytes or in decimal, become large."""
    for side in (WIDTH, HEIGHT):
        large = int(random.choice([5_000, 30_000, 65_535]))
        for kind in (">I", "<I", "<H", ">H"):
            place = content[:1200].find(struct.pack(kind, side))
            if place >= 0:
                content = content[:place] + struct.pack(kind, large) + content[place + struct.calcsize(kind) :]
                break
        content = content[:20].replace(str(side).encode(), str(large).encode()) + content[20:]
    return content


def write_mutants(folder: Path, count: int) -> Iterator[tuple[Path, bool]]:
    """Files in every format and with every mutation in turn, and whether their content is as it was."""
    random = np.random.default_rng(20)
    names = list(MAKERS)
    originals = {}
    for name in names:
        path = folder / f"original.{name}"
        MAKERS[name](path)
        originals[name] = path.read_bytes()
        path.unlink()
    for number in range(count):
        name, mutation = names[number % len(names)], MUTATIONS[number // len(names) % len(MUTATIONS)]
        ending = name.partition(".")[2]
        if mutation == "wrong suffix":
            ending = str(random.choice([other.partition(".")[2] for other in names]))
        path = folder / f"{number:04d}.{ending}"
        content = mutate(originals[name], mutation, random)
        path.write_bytes(content)
        yield path, content == originals[name]


@pytest.mark.slow
def test_a_thousand_are_read_or_refused(tmp_path: Path) -> None:
    read = refused = 0
    slowest = 0.0
    for path, whole in write_mutants(tmp_path, COUNT):
        started = time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # decoders warn of what is damaged, and go on
                photograph = read_image(path)
        except DriveSegError as error:
            assert not whole, f"{path.name} is a good file: {error}"
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error) and len(str(error)) < 500
            refused += 1
            continue
        finally:
            slowest = max(slowest, time.process_time() - started)
        assert photograph.dtype == np.uint8 and photograph.ndim == 3 and photograph.shape[2] == 3 and photograph.size
        try:
            fov = estimate_fov(photograph)
        except ValueError as error:
            assert not whole and "\n" not in str(error), path.name
        else:
            assert fov.shape == photograph.shape[:2] and fov.any()
        read += 1
    assert slowest < 10, "seconds for one file, none of which has taken 1"
    assert read + refused == COUNT and read > 300 and refused > 300


@pytest.mark.slow
def test_bad_ones_change_nothing_for_good_ones(bundle: Path, tmp_path: Path, settings: dict[str, object]) -> None:
    settings["save_nifti"] = True
    folder = tmp_path / "mixed"
    folder.mkdir()
    # Every 17th, so that formats and mutations mix.
    chosen = [pair for number, pair in enumerate(write_mutants(folder, 17 * SEGMENTED)) if number % 17 == 0]
    photographs = [path for path, _ in chosen]
    good = [path for path, whole in chosen if whole]
    assert len(photographs) == SEGMENTED and len(good) > 3

    failed = dict(segment_photographs(bundle, photographs, tmp_path / "mixed_out", settings))
    assert not segment_photographs(bundle, good, tmp_path / "clean_out", settings)
    with (tmp_path / "mixed_out" / "failed.csv").open(newline="") as file:
        assert {row["photograph"]: row["reason"] for row in csv.DictReader(file)} == failed
    segmented = {path.name.split(".")[0] for path in (tmp_path / "mixed_out").glob("*_vessels.png")}
    segmented = {name.partition("_")[0] for name in segmented}
    for path in photographs:
        assert (str(path) in failed) != (path.name[:4] in segmented), path.name
        assert failed.get(str(path), "a reason") != "" and "\n" not in failed.get(str(path), "")
    clean = sorted(path for path in (tmp_path / "clean_out").iterdir() if path.suffix in (".png", ".gz", ".jpg"))
    assert len(clean) == 5 * len(good)
    for path in clean:
        assert sha256(tmp_path / "mixed_out" / path.name) == sha256(path), path.name
