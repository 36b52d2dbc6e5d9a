"""Photographs of 16 bits, of CMYK and as NIfTI; names that lie; sizes too large to be true."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
from builders import fundus
from pictures import (
    COLOURS,
    FROM_TWELVE,
    GREY,
    GREY_AND_ALPHA,
    TWELVE,
    as_rgb24,
    save_nifti_array,
    save_png16,
    save_ppm16,
)
from PIL import ExifTags, Image

from drive_seg.bit_depth import to_8_bit
from drive_seg.errors import DriveSegError
from drive_seg.nifti import PICTURE_AFFINE, save_nifti
from drive_seg.pictures import save_png
from drive_seg.predict import segment_photographs
from drive_seg.readers import PhotographReader, read_image

AFFINE = np.array([[0, -2.0, 0, 3], [0.5, 0, 0, -7], [0, 0, 1, 0], [0, 0, 0, 1]])
"""Turned, scaled and moved."""


def orientation_tag(orientation: int) -> list[tuple[int, int, int, int, bool]]:
    """One of tifffile's ``extratags``."""
    return [(ExifTags.Base.Orientation, 3, 1, orientation, True)]


def alpha(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values, values[..., :1]], axis=2)


class TestTo8Bit:
    @pytest.mark.parametrize(("brightest", "white"), [
        (256, 1023), (1023, 1023), (1024, 4095), (4095, 4095), (4096, 16383), (16384, 65535), (65535, 65535),
    ])  # fmt: skip
    def test_the_fewest_bits_that_hold_the_brightest(self, brightest: int, white: int) -> None:
        values = np.array([0, brightest // 2, brightest], dtype=np.uint16)
        assert to_8_bit(values).tolist() == [0, brightest // 2 * 255 // white, brightest * 255 // white]

    def test_declared_white(self) -> None:
        values = np.array([0, 1000, 2000, 3000], dtype=np.uint16)
        assert to_8_bit(values, 2000).tolist() == [0, 127, 255, 255], "what is beyond is white, too"

    def test_8_bits_are_left_as_they_are(self) -> None:
        assert to_8_bit(COLOURS) is COLOURS
        assert to_8_bit(np.array([7], dtype=np.uint8), 15).tolist() == [119]

    def test_floats(self) -> None:
        assert to_8_bit(np.array([0.0, 0.5, 1.0])).tolist() == [0, 128, 255]
        assert to_8_bit(np.array([0.0, 100.4, 254.6])).tolist() == [0, 100, 255]
        assert to_8_bit(np.array([0.0, 4095.0])).tolist() == [0, 255]

    @pytest.mark.parametrize("value", [-1, 65536, np.nan, np.inf])
    def test_what_is_no_brightness(self, value: float) -> None:
        with pytest.raises(ValueError, match="expected"):
            to_8_bit(np.array([0, value]))


@pytest.mark.parametrize("values", [TWELVE, alpha(TWELVE)], ids=["rgb", "rgba"])
def test_png_of_16_bits(tmp_path: Path, values: np.ndarray) -> None:
    path = save_png16(tmp_path / "eye.png", values)
    np.testing.assert_array_equal(read_image(path), FROM_TWELVE)
    full = values.copy()
    full[0, 0, 0] = 65535
    assert (read_image(save_png16(path, full)) == full[..., :3] // 257).all()


@pytest.mark.parametrize("options", [
    {}, {"byteorder": ">"}, {"compression": "zlib"}, {"compression": "zlib", "byteorder": ">"},
    {"compression": "zlib", "predictor": 2}, {"tile": (16, 16)},
    {"planarconfig": "separate"}, {"planarconfig": "separate", "compression": "zlib", "byteorder": ">"},
], ids=str)  # fmt: skip
def test_tiff_of_16_bits(tmp_path: Path, options: dict[str, Any]) -> None:
    stored = np.moveaxis(TWELVE, -1, 0) if "planarconfig" in options else TWELVE
    tifffile.imwrite(tmp_path / "eye.tif", stored, photometric="rgb", **options)
    np.testing.assert_array_equal(read_image(tmp_path / "eye.tif"), FROM_TWELVE)


@pytest.mark.parametrize(
    ("orientation", "layout"), [*((orientation, "contig") for orientation in range(1, 9)), (6, "separate")]
)
def test_16_bits_are_turned_as_8_are(tmp_path: Path, orientation: int, layout: str) -> None:
    tag = orientation_tag(orientation)
    stored = np.moveaxis(TWELVE, -1, 0) if layout == "separate" else TWELVE
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=layout, extratags=tag)
    tifffile.imwrite(tmp_path / "b.tif", FROM_TWELVE, photometric="rgb", extratags=tag)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), read_image(tmp_path / "b.tif"))


def test_ppm_declares_its_white(tmp_path: Path) -> None:
    path = save_ppm16(tmp_path / "eye.ppm", TWELVE, 8191)
    np.testing.assert_array_equal(read_image(path), TWELVE.astype(int) * 255 // 8191)
    grey = read_image(save_ppm16(tmp_path / "eye.pgm", TWELVE[..., 0], 4095))
    np.testing.assert_array_equal(grey, GREY)


def test_pgm_of_16_bits_written_as_text(tmp_path: Path) -> None:
    numbers = " ".join(map(str, TWELVE[..., 0].ravel()))
    (tmp_path / "eye.pgm").write_text(f"P2\n5 3\n4095\n{numbers}\n")
    np.testing.assert_array_equal(read_image(tmp_path / "eye.pgm"), GREY)


def test_grey_png_of_16_bits_with_alpha(tmp_path: Path) -> None:
    path = save_png16(tmp_path / "eye.png", GREY_AND_ALPHA)
    np.testing.assert_array_equal(read_image(path), GREY)
    np.testing.assert_array_equal(read_image(path, "binary"), TWELVE[..., 0] >> 8)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(
    "options", [{}, {"byteorder": ">"}, {"planarconfig": "separate", "compression": "zlib"}], ids=str
)
def test_grey_tiff_of_16_bits_with_alpha(tmp_path: Path, options: dict[str, Any], orientation: int) -> None:
    stored = np.moveaxis(GREY_AND_ALPHA, -1, 0) if "planarconfig" in options else GREY_AND_ALPHA
    tag = orientation_tag(orientation)
    tifffile.imwrite(
        tmp_path / "eye.tif", stored, photometric="minisblack", extrasamples=["unassalpha"], extratags=tag, **options
    )
    expected = GREY if orientation == 1 else np.rot90(GREY, -1)
    np.testing.assert_array_equal(read_image(tmp_path / "eye.tif"), expected)


@pytest.mark.parametrize("kind", ["png", "grey png", "tiff", "planes", "grey tiff", "white is zero"])
def test_what_cannot_be_seen_is_black_in_16_bits_too(tmp_path: Path, kind: str) -> None:
    clear = np.zeros((3, 5), bool)
    clear[:, 3:] = True
    colours = np.where(clear[..., None], np.uint16(65535), np.uint16(20000))
    values = np.concatenate([np.repeat(colours, 3, axis=2), np.where(clear, 0, 65535)[..., None]], axis=2).astype(
        np.uint16
    )
    values = values[..., [0, 3]] if kind in ("grey png", "grey tiff", "white is zero") else values
    path = tmp_path / ("eye.png" if "png" in kind else "eye.tif")
    if "png" in kind:
        save_png16(path, values)
    else:
        layout = "separate" if kind == "planes" else "contig"
        photometric = {"grey tiff": "minisblack", "white is zero": "miniswhite"}.get(kind, "rgb")
        stored = np.moveaxis(values, -1, 0) if kind == "planes" else values
        tifffile.imwrite(path, stored, photometric=photometric, planarconfig=layout, extrasamples=["unassalpha"])
    pixels = read_image(path)
    assert (pixels[clear] == 0).all() and (pixels[~clear] > 0).all()


def test_further_pages_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A thumbnail, or another photograph."""
    first, second = Image.fromarray(COLOURS), Image.fromarray(COLOURS[::-1])
    first.save(tmp_path / "eye.tif", save_all=True, append_images=[second])
    np.testing.assert_array_equal(read_image(tmp_path / "eye.tif"), COLOURS)
    assert "eye.tif: has 2 pages, of which the first is read" in caplog.text


def test_tiffs_that_nobody_knows(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "eye.tif", GREY_AND_ALPHA.astype(np.float32), photometric="minisblack", extrasamples=[2]
    )
    with pytest.raises(DriveSegError, match=r"eye\.tif: is TIFF of another kind than 8 or 16 bits a channel"):
        read_image(tmp_path / "eye.tif")


@pytest.mark.parametrize("extra", [{}, {"extratags": orientation_tag(3)}], ids=["upright", "turned"])
@pytest.mark.parametrize("options", [{}, {"byteorder": ">"}, {"compression": "zlib"}], ids=str)
def test_tiff_of_16_bits_where_white_is_zero(tmp_path: Path, options: dict[str, Any], extra: dict[str, Any]) -> None:
    values = TWELVE[..., 0] * 16
    tifffile.imwrite(tmp_path / "eye.tif", 65535 - values, photometric="miniswhite", **options, **extra)
    values = np.rot90(values, 2) if extra else values
    expected = (values.astype(int) * 255 // 65535).astype(np.uint8)
    np.testing.assert_array_equal(read_image(tmp_path / "eye.tif"), expected[..., None].repeat(3, axis=2))


@pytest.mark.parametrize("suffix", [".tif", ".jpg"])
def test_cmyk(tmp_path: Path, suffix: str) -> None:
    smooth = np.full((16, 24, 3), (200, 120, 60), np.uint8)
    Image.fromarray(smooth).convert("CMYK").save(tmp_path / f"eye{suffix}")
    assert np.abs(read_image(tmp_path / f"eye{suffix}").astype(int) - smooth).max() < 6


@pytest.mark.parametrize(("array", "expected"), [
    (as_rgb24(COLOURS), COLOURS),
    (as_rgb24(COLOURS)[..., 0], COLOURS),
    (COLOURS.swapaxes(0, 1), COLOURS),
    (COLOURS.swapaxes(0, 1)[:, :, None], COLOURS),
    (COLOURS.swapaxes(0, 1)[:, :, None, None], COLOURS),
    (alpha(COLOURS).swapaxes(0, 1), COLOURS),
    (COLOURS[..., 0].T, COLOURS[..., :1].repeat(3, axis=2)),
    (COLOURS[..., 0].T[..., None], COLOURS[..., :1].repeat(3, axis=2)),
    (TWELVE.swapaxes(0, 1), FROM_TWELVE),
    (COLOURS.swapaxes(0, 1).astype(np.float32), COLOURS),
    (COLOURS.swapaxes(0, 1) / np.float32(255), np.rint(COLOURS / 220 * 220)),
], ids=[
    "structured slice", "structured", "last axis", "slice and last axis", "vectors", "alpha", "grey", "grey slice",
    "12 bits", "float", "float up to 1",
])  # fmt: skip
def test_nifti(tmp_path: Path, array: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(read_image(save_nifti_array(tmp_path / "eye.nii", array)), expected)


def test_nifti_with_a_slope_and_of_the_second_version(tmp_path: Path) -> None:
    image = nibabel.Nifti2Image(COLOURS[..., 0].T.astype(">i2"), np.eye(4))
    image.header.set_slope_inter(2, 10)
    path = tmp_path / "eye.nii"
    path.write_bytes(image.to_bytes())
    scaled = nibabel.load(path).get_fdata().T
    assert scaled.max() == 2 * 210 + 10
    np.testing.assert_array_equal(read_image(path)[..., 0], np.rint(scaled * 255 / 1023), "430 takes 10 bits")


def test_the_affine_turns_nothing_and_is_handed_on(tmp_path: Path) -> None:
    path = save_nifti_array(tmp_path / "eye.nii.gz", as_rgb24(COLOURS), AFFINE)
    array, meta = PhotographReader().get_data([str(path)])
    np.testing.assert_array_equal(array, COLOURS)
    np.testing.assert_array_equal(meta["nifti_affine"], AFFINE)
    save_png(COLOURS, tmp_path / "eye.png")
    assert "nifti_affine" not in PhotographReader().get_data([str(tmp_path / "eye.png")])[1]


@pytest.mark.parametrize("row", [[0, 0, 0, 0], [0, -2, 0, 3], [np.nan, 0, 0, 0]], ids=["zero", "twice", "nan"])
def test_an_affine_that_cannot_be_inverted_is_that_of_a_picture(tmp_path: Path, row: list[float]) -> None:
    path = save_nifti_array(tmp_path / "eye.nii", as_rgb24(COLOURS), AFFINE)
    content = bytearray(path.read_bytes())
    content[296:312] = struct.pack("<4f", *row)  # srow_y
    path.write_bytes(content)
    _, meta = PhotographReader().get_data([str(path)])
    np.testing.assert_array_equal(meta["nifti_affine"], PICTURE_AFFINE)
    save_nifti(COLOURS[..., 0], tmp_path / "eye_vessels.nii.gz", meta["nifti_affine"])


@pytest.mark.parametrize("shape", [(5, 3, 2), (5, 3, 3, 2), (5, 3, 4, 3), (5,)])
def test_volumes_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = save_nifti_array(tmp_path / "eye.nii", np.zeros(shape, np.uint8))
    with pytest.raises(DriveSegError, match=r"eye\.nii: expected one slice, grey or in colours, got an array of 5"):
        read_image(path)


def test_annotations_as_nifti(tmp_path: Path) -> None:
    classes = np.array([[0, 1, 2], [2, 0, 0]], np.uint8)
    path = save_nifti_array(tmp_path / "av.nii.gz", classes.T.astype(np.int16))
    np.testing.assert_array_equal(read_image(path, "classes"), classes)
    np.testing.assert_array_equal(read_image(path, "binary"), classes)
    with pytest.raises(DriveSegError, match="expected class values from 0 to 255"):
        read_image(save_nifti_array(path, classes.T.astype(np.int16) * 200), "classes")
    with pytest.raises(DriveSegError, match="expected one channel of class values"):
        read_image(save_nifti_array(path, as_rgb24(COLOURS)), "classes")
    assert read_image(path, "binary").shape == (3, 5)


def test_saved_nifti_is_read_back(tmp_path: Path) -> None:
    classes = np.array([[0, 1, 2], [2, 0, 0]], np.uint8)
    for affine, expected in ((AFFINE, AFFINE), (None, PICTURE_AFFINE)):
        save_nifti(classes, tmp_path / "a_vessels.nii.gz", affine)
        image = nibabel.load(tmp_path / "a_vessels.nii.gz")
        assert image.shape == (3, 2, 1) and image.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(np.asarray(image.dataobj)[..., 0], classes.T)
        np.testing.assert_allclose(image.affine, expected)
        np.testing.assert_array_equal(read_image(tmp_path / "a_vessels.nii.gz", "classes"), classes)
    content = (tmp_path / "a_vessels.nii.gz").read_bytes()
    save_nifti(classes, tmp_path / "a_vessels.nii.gz")
    assert (tmp_path / "a_vessels.nii.gz").read_bytes() == content


def test_a_mask_lies_in_space_as_its_photograph(bundle: Path, tmp_path: Path, settings: dict[str, object]) -> None:
    """The same eye as PNG and as NIfTI, 90 rows and 110 columns, on to the saved files."""
    photograph = fundus(90, 110, row=40, column=60, radius=35)
    save_png(photograph, tmp_path / "eye.png")
    save_nifti_array(tmp_path / "eye.nii.gz", as_rgb24(photograph), AFFINE)
    settings["save_nifti"] = True
    for name, affine in (("eye.png", PICTURE_AFFINE), ("eye.nii.gz", AFFINE)):
        output = tmp_path / name.replace(".", "_")
        assert not segment_photographs(bundle, [tmp_path / name], output, settings)
        assert len(list(output.glob("eye_*"))) == 5
        mask = np.asarray(Image.open(output / "eye_vessels.png"))
        image = nibabel.load(output / "eye_vessels.nii.gz")
        assert mask.shape == (90, 110) and 0 < (mask > 0).mean() < 0.9
        assert image.shape == (110, 90, 1) and image.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(np.asarray(image.dataobj)[..., 0].T * 255, mask)
        np.testing.assert_allclose(image.affine, affine)
    first, second = (tmp_path / name / "eye_vessels.png" for name in ("eye_png", "eye_nii_gz"))
    assert first.read_bytes() == second.read_bytes()
    settings["save_nifti"] = False
    assert not segment_photographs(bundle, [tmp_path / "eye.png"], tmp_path / "plain", settings)
    assert len(list((tmp_path / "plain").glob("eye_*"))) == 4


def huge_png(path: Path) -> None:
    save_png16(path, TWELVE, declared=(11_000, 12_000))


def huge_ppm(path: Path) -> None:
    path.write_bytes(b"P6\n20000 20000\n255\n" + b"\0" * 30)


def huge_nifti(path: Path) -> None:
    content = bytearray(save_nifti_array(path.with_suffix(".nii"), COLOURS[..., 0].T).read_bytes())
    content[42:46] = struct.pack("<hh", 30_000, 30_000)
    path.write_bytes(gzip.compress(bytes(content)))


@pytest.mark.parametrize("make", [huge_png, huge_ppm, huge_nifti])
def test_declared_sizes_too_large_to_be_true(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "bomb.png")
    with pytest.raises(DriveSegError, match=r"bomb\.png: ") as raised:
        read_image(tmp_path / "bomb.png")
    assert "\n" not in str(raised.value) and "million pixels" in str(raised.value)


@pytest.mark.parametrize("name", ["eye.jpg", "eye.dcm", "eye.nii.gz", "eye"])
def test_the_content_counts_not_the_name(tmp_path: Path, name: str) -> None:
    save_png(COLOURS, tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / name)
    np.testing.assert_array_equal(read_image(tmp_path / name), COLOURS)


def test_nifti_and_gzip_under_other_names(tmp_path: Path) -> None:
    path = save_nifti_array(tmp_path / "a.nii.gz", as_rgb24(COLOURS)).rename(tmp_path / "eye.jpg")
    np.testing.assert_array_equal(read_image(path), COLOURS)
    (tmp_path / "b.nii").write_bytes(gzip.decompress(path.read_bytes()))
    np.testing.assert_array_equal(read_image((tmp_path / "b.nii").rename(tmp_path / "b.nii.gz")), COLOURS)
    other, damaged = gzip.compress(b"something else"), bytearray(gzip.compress(path.read_bytes()))
    damaged[10:20] = b"\xff" * 10
    for content in (other, bytes(damaged)):
        path.write_bytes(content)
        with pytest.raises(DriveSegError, match=r"eye\.jpg: is not an image of a format that can be read$"):
            read_image(path)
