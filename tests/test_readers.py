"""Reading photographs of common formats: depths, orientation, axis order, and files that cannot be read."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import save_palette
from monai.transforms import Compose, LoadImaged
from pictures import COLOURS
from PIL import ExifTags, Image

from drive_seg.errors import DriveSegError, user_error
from drive_seg.readers import PhotographReader, read_image

DRAWN = np.array([[0, 0, 1, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 1]], dtype=np.uint8)
"""3 rows, 5 columns; no mirror image of it is the same."""


def save(picture: Image.Image, path: Path, **options: object) -> Path:
    picture.save(path, **options)
    return path


def load(path: Path, content: str) -> torch.Tensor:
    reader = PhotographReader(content)
    transform = Compose([LoadImaged("image", reader=reader, ensure_channel_first=True, dtype=torch.uint8)])
    return transform({"image": str(path)})["image"]


@pytest.mark.parametrize("suffix", [".tif", ".png", ".bmp", ".ppm", ".TIFF", ".jp2", ".webp"])
def test_colour_photograph(tmp_path: Path, suffix: str) -> None:
    path = save(Image.fromarray(COLOURS), tmp_path / f"eye{suffix}", lossless=True)  # an option of WebP alone
    array = read_image(path)
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, COLOURS)


def test_jpeg_photograph(tmp_path: Path) -> None:
    smooth = np.linspace(40, 200, 32 * 48).reshape(32, 48, 1).repeat(3, axis=2).astype(np.uint8)
    array = read_image(save(Image.fromarray(smooth), tmp_path / "eye.jpg", quality=95))
    assert array.shape == (32, 48, 3)
    assert np.abs(array.astype(int) - smooth).max() < 12


def as_grey(folder: Path) -> tuple[Path, np.ndarray]:
    return save(Image.fromarray(COLOURS[..., 0]), folder / "eye.png"), COLOURS[..., :1].repeat(3, axis=2)


def as_alpha(folder: Path) -> tuple[Path, np.ndarray]:
    alpha = np.full((3, 5, 1), 90, np.uint8)
    return save(Image.fromarray(np.concatenate([COLOURS, alpha], axis=2)), folder / "eye.png"), COLOURS


def as_cut_out(folder: Path) -> tuple[Path, np.ndarray]:
    """White and transparent beyond the first two columns."""
    picture = np.full((3, 5, 4), 255, np.uint8)
    picture[:, :2, :3], picture[:, 2:, 3] = COLOURS[:, :2], 0
    expected = np.zeros_like(COLOURS)
    expected[:, :2] = COLOURS[:, :2]
    return save(Image.fromarray(picture), folder / "eye.png"), expected


def as_palette(folder: Path) -> tuple[Path, np.ndarray]:
    path = save_palette(folder / "eye.gif", DRAWN, {0: (9, 8, 7), 1: (200, 100, 50)})
    return path, np.where(DRAWN[..., None], (200, 100, 50), (9, 8, 7))


def as_16_bit(folder: Path) -> tuple[Path, np.ndarray]:
    values = np.array([[0, 256, 257], [513, 514, 65535]], dtype=np.uint16)
    levels = np.array([[0, 0, 1], [1, 2, 255]])  # 65535 / 255 = 257 to a level
    return save(Image.fromarray(values), folder / "eye.png"), levels[..., None].repeat(3, axis=2)


def as_16_bit_tif(folder: Path) -> tuple[Path, np.ndarray]:
    path, levels = as_16_bit(folder)
    with Image.open(path) as picture:
        return save(picture, folder / "eye.tif"), levels


@pytest.mark.parametrize("make", [as_grey, as_alpha, as_cut_out, as_palette, as_16_bit, as_16_bit_tif])
def test_other_photographs_become_rgb(tmp_path: Path, make: Callable[[Path], tuple[Path, np.ndarray]]) -> None:
    path, expected = make(tmp_path)
    array = read_image(path)
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, expected)
    np.testing.assert_array_equal(load(path, "photograph").numpy(), expected.transpose(2, 0, 1))


@pytest.mark.parametrize("value", [np.float32(0.5), np.int32(70_000)])
def test_pixels_of_more_than_16_bits_are_refused(tmp_path: Path, value: np.generic) -> None:
    path = save(Image.fromarray(np.full((2, 3), value)), tmp_path / "eye.tif")
    with pytest.raises(DriveSegError, match=r"eye\.tif: expected 8 or 16 bits a channel, got pixels of mode [FI]$"):
        read_image(path)


@pytest.mark.parametrize(("orientation", "turned"), [
    (1, lambda a: a),
    (2, lambda a: a[:, ::-1]),
    (3, lambda a: a[::-1, ::-1]),
    (6, lambda a: np.rot90(a, -1)),  # the camera was turned to the left: a quarter clockwise puts it right
    (8, lambda a: np.rot90(a)),
])  # fmt: skip
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_exif_orientation(
    tmp_path: Path, suffix: str, orientation: int, turned: Callable[[np.ndarray], np.ndarray]
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = save(Image.fromarray(COLOURS), tmp_path / f"eye{suffix}", exif=exif, lossless=True)
    np.testing.assert_array_equal(read_image(path), turned(COLOURS))


def test_exif_orientation_of_a_jpeg(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = save(Image.fromarray(COLOURS), tmp_path / "eye.jpg", exif=exif)
    assert read_image(path).shape == (5, 3, 3)


def test_first_of_several_frames(tmp_path: Path) -> None:
    frames = [Image.fromarray(DRAWN * value) for value in (255, 0)]
    path = save(frames[0], tmp_path / "drawn.tif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read_image(path, "binary"), DRAWN * 255)


def picture_bytes(suffix: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).save(content, Image.registered_extensions()[suffix])
    return content.getvalue()


def missing(path: Path) -> None:
    path.unlink(missing_ok=True)


def zero_bytes(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("not a picture")


def half(path: Path) -> None:
    content = picture_bytes(path.suffix)
    path.write_bytes(content[: len(content) // 2])


def first_bytes(path: Path) -> None:
    path.write_bytes(picture_bytes(path.suffix)[:30])


def folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(("name", "damage", "message"), [
    ("a.png", missing, "there is no such file"),
    ("a.tif", zero_bytes, "is not an image of a format that can be read"),
    ("a.tif", text, "is not an image of a format that can be read"),
    ("a.png", half, "cannot be read as an image, it seems damaged ("),
    ("a.jpg", half, "cannot be read as an image, it seems damaged ("),
    ("a.tif", half, ""),  # a TIFF file may have its table of contents at the end
    ("a.bmp", half, "cannot be read as an image, it seems damaged ("),
    ("a.gif", half, "cannot be read as an image, it seems damaged ("),
    ("a.jp2", half, "cannot be read as an image, it seems damaged ("),
    ("a.webp", half, "cannot be read as an image, it seems damaged ("),
    ("a.png", first_bytes, ""),
    ("a.jpg", first_bytes, ""),
    ("a.tif", first_bytes, ""),
    ("a.png", folder, "is a folder, expected a file"),
    ("a.png", os.mkfifo, "is a pipe or a device, expected a file"),
])  # fmt: skip
def test_files_that_cannot_be_read(tmp_path: Path, name: str, damage: Callable[[Path], None], message: str) -> None:
    path = tmp_path / name
    damage(path)
    for content in ("photograph", "binary", "classes"):
        with pytest.raises(DriveSegError) as raised:
            read_image(path, content)
        assert str(raised.value).startswith(f"{path}: {message}")
        assert "\n" not in str(raised.value)
        with pytest.raises(RuntimeError) as wrapped:
            load(path, content)
        assert str(user_error(wrapped.value)) == str(raised.value)


def test_a_picture_too_large_to_be_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(Image.fromarray(COLOURS), tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 7)  # of 15; Pillow refuses more than twice as many
    with pytest.raises(DriveSegError, match=r"bomb\.png: expected a photograph of at most 100 million pixels"):
        read_image(path)


def test_one_file_at_a_time() -> None:
    with pytest.raises(DriveSegError, match=r"^a, b: expected one file, got 2$"):
        PhotographReader().get_data(["a", "b"])


def test_content_must_be_known() -> None:
    with pytest.raises(ValueError, match="content: expected one of photograph, binary, classes, got 'mask'"):
        PhotographReader("mask")
    with pytest.raises(DriveSegError, match="content: expected one of photograph, binary, classes, got 'mask'"):
        read_image("any.png", "mask")
