"""Photographs as DICOM."""

from __future__ import annotations

import builtins
import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pictures import COLOURS, TWELVE, save_compressed_dicom, save_dicom
from PIL import Image
from pydicom.uid import (
    MPEG4HP41,
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from drive_seg.errors import DriveSegError
from drive_seg.readers import read_image


def test_rgb(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_image(save_dicom(tmp_path / "eye.dcm", COLOURS)), COLOURS)
    one = save_dicom(tmp_path / "eye.dcm", COLOURS, NumberOfFrames=1)
    np.testing.assert_array_equal(read_image(one), COLOURS)


def test_ybr(tmp_path: Path) -> None:
    ybr = np.asarray(Image.fromarray(COLOURS).convert("YCbCr"))
    array = read_image(save_dicom(tmp_path / "eye.dcm", ybr, "YBR_FULL"))
    assert np.abs(array.astype(int) - COLOURS).max() <= 2


def test_grey_by_the_bits_stored(tmp_path: Path) -> None:
    path = save_dicom(tmp_path / "eye.dcm", TWELVE[..., 0] // 8, "MONOCHROME2", bits=12)
    expected = TWELVE[..., :1].astype(int) // 8 * 255 // 4095
    np.testing.assert_array_equal(read_image(path), expected.repeat(3, axis=2))
    inverted = save_dicom(tmp_path / "eye.dcm", 255 - COLOURS[..., 0], "MONOCHROME1")
    np.testing.assert_array_equal(read_image(inverted), COLOURS[..., :1].repeat(3, axis=2))
    twelve = (4095 - TWELVE[..., 0] // 8).astype(np.uint16)
    inverted = save_dicom(tmp_path / "eye.dcm", twelve, "MONOCHROME1", bits=12)
    np.testing.assert_array_equal(read_image(inverted), expected.repeat(3, axis=2))


@pytest.mark.parametrize(("interpretation", "foreground"), [("MONOCHROME1", 0), ("MONOCHROME2", 1)])
def test_masks_of_ones(tmp_path: Path, interpretation: str, foreground: int) -> None:
    """Where 0 is white, the numbers are 255 and 254, of which neither is the black of a mask."""
    mask = np.array([[0, 1, 1], [0, 0, 1]], np.uint8)
    path = save_dicom(tmp_path / "mask.dcm", mask, interpretation)
    np.testing.assert_array_equal(read_image(path, "binary"), mask == foreground)


@pytest.mark.parametrize("interpretation", ["MONOCHROME1", "MONOCHROME2"])
def test_signed_pixels_are_refused(tmp_path: Path, interpretation: str) -> None:
    signed = np.linspace(-2048, 2047, 35).astype(np.int16).reshape(5, 7)
    path = save_dicom(tmp_path / "eye.dcm", signed.view(np.uint16), interpretation, bits=16, PixelRepresentation=1)
    with pytest.raises(DriveSegError, match="expected pixels of 0 and more, got -2048 to 2047"):
        read_image(path)


@pytest.mark.parametrize(("bits", "largest"), [(8, 255), (16, 65535), (16, 255)])
def test_palette(tmp_path: Path, bits: int, largest: int) -> None:
    """Many writers declare 16 bits for tables of 8."""
    tables: dict[str, Any] = {}
    colours = np.arange(256, dtype=np.uint16)
    for name, table in (("Red", colours), ("Green", colours[::-1]), ("Blue", colours // 2)):
        tables[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        content = table.astype("<u1") if bits == 8 else (table * (largest // 255)).astype("<u2")
        tables[f"{name}PaletteColorLookupTableData"] = content.tobytes()
    indices = COLOURS[..., 0]
    array = read_image(save_dicom(tmp_path / "eye.dcm", indices, "PALETTE COLOR", **tables))
    np.testing.assert_array_equal(array, np.stack([indices, 255 - indices, indices // 2], axis=-1))


def test_jpeg(tmp_path: Path) -> None:
    smooth = np.full((16, 24, 3), (200, 120, 60), np.uint8)
    content = io.BytesIO()
    Image.fromarray(smooth).save(content, "JPEG", quality=95)
    path = save_compressed_dicom(tmp_path / "eye.dcm", smooth, "YBR_FULL_422", JPEGBaseline8Bit, content.getvalue())
    assert np.abs(read_image(path).astype(int) - smooth).max() < 6


def test_jpeg_2000(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.fromarray(COLOURS).save(content, "JPEG2000", no_jp2=True)
    path = save_compressed_dicom(tmp_path / "eye.dcm", COLOURS, "YBR_RCT", JPEG2000Lossless, content.getvalue())
    np.testing.assert_array_equal(read_image(path), COLOURS)


def test_rle(tmp_path: Path) -> None:
    path = save_compressed_dicom(tmp_path / "eye.dcm", COLOURS, "RGB", RLELossless)
    np.testing.assert_array_equal(read_image(path), COLOURS)


def test_deflated_files_are_refused(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(save_dicom(tmp_path / "eye.dcm", COLOURS))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(tmp_path / "eye.dcm")
    with pytest.raises(DriveSegError, match=r"eye\.dcm: the deflated transfer syntax of DICOM is not supported$"):
        read_image(tmp_path / "eye.dcm")


@pytest.mark.parametrize(("elements", "message"), [
    ({"NumberOfFrames": 2}, "expected one frame, got 2"),
    ({"Modality": "SEG"}, "is a DICOM Segmentation, expected a photograph"),
    ({"PhotometricInterpretation": "HSV"}, "expected pixels of RGB, .*, got HSV"),
    ({"Rows": 60000, "Columns": 60000}, ".* got 60000 × 60000"),
    ({"Rows": 0}, ".* got 5 × 0"),
])  # fmt: skip
def test_refused(tmp_path: Path, elements: dict[str, Any], message: str) -> None:
    path = save_dicom(tmp_path / "eye.dcm", COLOURS)
    dataset = pydicom.dcmread(path)
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.save_as(path)
    with pytest.raises(DriveSegError, match=rf"eye\.dcm: {message}"):
        read_image(path)


def test_without_pixels(tmp_path: Path) -> None:
    path = save_dicom(tmp_path / "eye.dcm", COLOURS)
    dataset = pydicom.dcmread(path)
    del dataset.PixelData
    dataset.save_as(path)
    with pytest.raises(DriveSegError, match=r"eye\.dcm: is DICOM without pixels$"):
        read_image(path)


def test_a_compression_without_a_decoder(tmp_path: Path) -> None:
    path = save_compressed_dicom(tmp_path / "eye.dcm", COLOURS, "RGB", MPEG4HP41, b"0123")
    with pytest.raises(DriveSegError, match=r"compressed as MPEG-4 .*, which pydicom alone does not decode$"):
        read_image(path)


def test_without_pydicom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_dicom(tmp_path / "eye.dcm", COLOURS)
    found = builtins.__import__

    def none(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "pydicom":
            raise ImportError(name)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", none)
    with pytest.raises(DriveSegError, match=r"eye\.dcm: reading DICOM needs pydicom \(.*\[dicom\]'\)$"):
        read_image(path)
