"""Reading the files of a case: palettes, depths, orientation, axis order, and files that cannot be read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from builders import save_palette
from monai.transforms import Compose, LoadImaged
from PIL import Image

from drive_seg.errors import DriveSegError, user_error
from drive_seg.prepare import read_binary
from drive_seg.readers import PhotographReader, read_image

DRAWN = np.array([[0, 0, 1, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 1]], dtype=np.uint8)
"""3 rows, 5 columns; no mirror image of it is the same."""

COLOURS = np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3) * 5

ORIENTATION = 0x0112


def save(picture: Image.Image, path: Path, **options: object) -> Path:
    picture.save(path, **options)
    return path


def load(path: Path, content: str) -> torch.Tensor:
    reader = PhotographReader(content)
    transform = Compose([LoadImaged("image", reader=reader, ensure_channel_first=True, dtype=torch.uint8)])
    return transform({"image": str(path)})["image"]


def drive_manual(folder: Path) -> Path:
    return save_palette(folder / "21_manual1.gif", DRAWN * 255, {255: (255, 255, 255)})


def raw_white(folder: Path) -> Path:
    return save_palette(folder / "01_manual2.gif", DRAWN, {1: (255, 255, 255)})


def raw_indices(folder: Path) -> Path:
    return save_palette(folder / "01_manual2.gif", DRAWN, {1: (1, 1, 1)})


def one_bit(folder: Path) -> Path:
    return save(Image.fromarray(DRAWN.astype(bool)), folder / "drawn.png")


def grey(folder: Path) -> Path:
    return save(Image.fromarray(DRAWN * 200), folder / "drawn.bmp")


def colour(folder: Path) -> Path:
    return save(Image.fromarray(np.repeat(DRAWN[..., None] * 255, 3, axis=2)), folder / "drawn.tif")


def deep(folder: Path) -> Path:
    return save(Image.fromarray(DRAWN.astype(np.uint16) * 65535), folder / "drawn.png")


@pytest.mark.parametrize(("make", "foreground"), [
    (drive_manual, 255), (raw_white, 255), (raw_indices, 1), (one_bit, 255), (grey, 200), (colour, 255), (deep, 255),
])  # fmt: skip
def test_binary(tmp_path: Path, make: Callable[[Path], Path], foreground: int) -> None:
    path = make(tmp_path)
    array = read_image(path, "binary")
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, DRAWN * foreground)
    loaded = load(path, "binary")
    assert loaded.shape == (1, 3, 5)
    np.testing.assert_array_equal(loaded[0], DRAWN * foreground)


def in_colours(background: tuple[int, ...], drawn: tuple[int, ...]) -> np.ndarray:
    return np.where(DRAWN[..., None] == 1, np.array(drawn), np.array(background)).astype(np.uint8)


@pytest.mark.parametrize(("pixels", "foreground"), [
    (in_colours((255, 255, 255, 0), (255, 255, 255, 255)), 255),  # white, also where nothing can be seen
    (in_colours((255, 0), (255, 255)), 255),
    (in_colours((0, 0, 0, 0), (255, 0, 0, 128)), 38),  # 0.299 · 128, drawn with a soft pen
    (in_colours((0, 0, 0, 0), (200, 200, 200, 0)), 200),  # transparent everywhere
    (in_colours((0, 0, 0, 255), (0, 0, 4, 255)), 255),  # both are black in grey
    (in_colours((0, 0, 0), (0, 0, 4)), 255),
    (DRAWN * np.float32(0.9), 1),
    (DRAWN * np.float32(200), 1),
    (DRAWN * np.int32(-1), 1),
    (DRAWN.astype(np.int32) + 300, 1),
], ids=[
    "white and clear", "grey and clear", "soft pen", "clear everywhere", "nearly black, alpha", "nearly black",
    "fractions", "whole floats", "below zero", "large",
])  # fmt: skip
def test_masks_that_grey_levels_alone_would_leave_empty_or_full(
    tmp_path: Path, pixels: np.ndarray, foreground: int
) -> None:
    path = save(Image.fromarray(pixels), tmp_path / "drawn.tif")
    np.testing.assert_array_equal(read_image(path, "binary"), DRAWN * foreground)


@pytest.mark.parametrize("drawn", [255, 128])
def test_black_on_nothing_is_no_mask(tmp_path: Path, drawn: int) -> None:
    """An annotation in ink, or a template that hides the surroundings of an eye: one is the other's contrary."""
    path = save(Image.fromarray(DRAWN[..., None] * np.array([0, 0, 0, drawn], np.uint8)), tmp_path / "drawn.png")
    with pytest.raises(DriveSegError, match=r"drawn\.png: expected a mask in white on black, got black beside"):
        read_image(path, "binary")


@pytest.mark.parametrize("value", [np.nan, 0.5])
def test_numbers_that_are_no_mask(tmp_path: Path, value: float) -> None:
    pixels = DRAWN.astype(np.float32)
    pixels[0, 0] = value
    path = save(Image.fromarray(pixels), tmp_path / "drawn.tif")
    with pytest.raises(DriveSegError, match=r"drawn\.tif: expected a mask of two values, got others, from 0 to "):
        read_image(path, "binary")


def test_a_gif_of_drive_is_a_palette_image(tmp_path: Path) -> None:
    with Image.open(raw_indices(tmp_path)) as picture:
        assert picture.mode == "P" and set(np.unique(np.asarray(picture))) == {0, 1}


@pytest.mark.parametrize(("palette", "foreground"), [
    ([(0, 0, 0), (255, 255, 255)], 1),
    ([(0, 0, 0), (1, 1, 1)], 1),
    ([(255, 255, 255), (0, 0, 0)], 0),  # as it looks, not as it is numbered
    ([(0, 0, 0), (0, 0, 1)], 1),  # both are black in grey
    ([(0, 0, 0), (0, 0, 0)], 1),
])  # fmt: skip
def test_a_palette_is_read_alike_by_scripts_and_trainings(
    tmp_path: Path, palette: list[tuple[int, int, int]], foreground: int
) -> None:
    indices = np.zeros((20, 30), np.uint8)
    indices[3:7, 5:20] = 1
    path = save_palette(tmp_path / "21_manual1.gif", indices, dict(enumerate(palette)))
    expected = indices == foreground
    np.testing.assert_array_equal(read_image(path, "binary") > 0, expected)
    np.testing.assert_array_equal(read_binary(path, path.read_bytes(), (30, 20)), expected)


@pytest.mark.parametrize("suffix", [".tif", ".png", ".bmp", ".ppm", ".TIFF"])
def test_colour_photograph(tmp_path: Path, suffix: str) -> None:
    path = save(Image.fromarray(COLOURS), tmp_path / f"eye{suffix}")
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
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_exif_orientation(
    tmp_path: Path, suffix: str, orientation: int, turned: Callable[[np.ndarray], np.ndarray]
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = save(Image.fromarray(COLOURS), tmp_path / f"eye{suffix}", exif=exif)
    np.testing.assert_array_equal(read_image(path), turned(COLOURS))


def test_exif_orientation_of_a_jpeg(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    path = save(Image.fromarray(COLOURS), tmp_path / "eye.jpg", exif=exif)
    assert read_image(path).shape == (5, 3, 3)


def test_first_of_several_frames(tmp_path: Path) -> None:
    frames = [Image.fromarray(DRAWN * value) for value in (255, 0)]
    path = save(frames[0], tmp_path / "drawn.tif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read_image(path, "binary"), DRAWN * 255)


CLASSES = DRAWN + np.array([0, 0, 0, 0, 2], dtype=np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".gif", ".tif"])
@pytest.mark.parametrize("palette", [True, False])
def test_classes_are_raw_values_or_palette_indices(tmp_path: Path, suffix: str, palette: bool) -> None:
    path = tmp_path / f"av{suffix}"
    if palette:
        save_palette(path, CLASSES, {1: (255, 0, 0), 2: (0, 0, 255), 3: (0, 255, 0)})
    else:
        save(Image.fromarray(CLASSES), path)
    array = read_image(path, "classes")
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, CLASSES)


def test_classes_of_one_bit(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_image(one_bit(tmp_path), "classes"), DRAWN)


@pytest.mark.parametrize("values", [
    CLASSES.astype(np.uint16), CLASSES.astype(np.int32), CLASSES.astype(np.float32), np.dstack([CLASSES] * 3),
    np.stack([CLASSES, np.full_like(CLASSES, 255)], axis=2),
], ids=["16 bits", "32 bits", "floats", "three channels", "grey and alpha"])  # fmt: skip
def test_class_values_however_they_are_stored(tmp_path: Path, values: np.ndarray) -> None:
    path = save(Image.fromarray(values), tmp_path / "av.tif")
    np.testing.assert_array_equal(read_image(path, "classes"), CLASSES)


def test_numbers_that_are_no_class_values(tmp_path: Path) -> None:
    path = save(Image.fromarray(CLASSES.astype(np.uint16) * 500), tmp_path / "av.png")
    with pytest.raises(DriveSegError, match=r"av\.png: expected class values from 0 to 255, got 0 to 1500$"):
        read_image(path, "classes")


AV_COLOURS = {"1": [255, 0, 0], "2": [0, 0, 255], "255": [[0, 255, 0], [255, 255, 255]]}
IN_COLOUR = np.array([(0, 0, 0), (255, 0, 0), (0, 0, 255), (0, 255, 0), (255, 255, 255)], np.uint8)
"""Of the classes 0, 1, 2, 255 and 255."""


def drawn_in_colour() -> tuple[np.ndarray, np.ndarray]:
    """A picture (4, 5, 3) and its classes (4, 5)."""
    numbers = np.arange(20).reshape(4, 5) % 7 % 5
    return IN_COLOUR[numbers], np.array([0, 1, 2, 255, 255], np.uint8)[numbers]


@pytest.mark.parametrize("change", [
    lambda picture: picture,
    lambda picture: picture.convert("RGBA"),
    lambda picture: picture.quantize(8),
    lambda picture: picture.quantize(8).convert("RGBA").quantize(8),  # the palette has transparency, too
], ids=["RGB", "RGBA", "palette", "palette with alpha"])  # fmt: skip
def test_colours_become_classes(tmp_path: Path, change: Callable[[Image.Image], Image.Image]) -> None:
    pixels, classes = drawn_in_colour()
    path = save(change(Image.fromarray(pixels)), tmp_path / "av.png")
    array = read_image(path, "classes", AV_COLOURS)
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, classes)


def test_colours_of_16_bits(tmp_path: Path) -> None:
    pixels, classes = drawn_in_colour()
    tifffile.imwrite(tmp_path / "av.tif", pixels * np.uint16(257), photometric="rgb")
    np.testing.assert_array_equal(read_image(tmp_path / "av.tif", "classes", AV_COLOURS), classes)


def test_nothing_is_drawn_where_a_picture_is_transparent(tmp_path: Path) -> None:
    pixels, classes = drawn_in_colour()
    seen = np.arange(20).reshape(4, 5) % 2
    alpha = (seen * 255).astype(np.uint8)
    path = save(Image.fromarray(np.dstack([pixels, alpha])), tmp_path / "av.png")
    np.testing.assert_array_equal(read_image(path, "classes", AV_COLOURS), classes * seen)


def test_one_channel_holds_values_whatever_the_colours(tmp_path: Path) -> None:
    path = save(Image.fromarray(CLASSES), tmp_path / "av.png")
    np.testing.assert_array_equal(read_image(path, "classes", AV_COLOURS), CLASSES)


def test_colours_are_refused_unless_classes_are_given_for_them(tmp_path: Path) -> None:
    path = save(Image.fromarray(drawn_in_colour()[0]), tmp_path / "av.png")
    with pytest.raises(
        DriveSegError,
        match=r"av\.png: expected one channel of class values, got colours, such as \[255, 0, 0\]; class_colours gives",
    ):
        read_image(path, "classes")


def test_other_colours_are_refused(tmp_path: Path) -> None:
    """As smoothed edges have them."""
    pixels, _ = drawn_in_colour()
    pixels[0, :3] = [(128, 0, 0), (128, 0, 0), (0, 0, 64)]
    path = save(Image.fromarray(pixels), tmp_path / "av.png")
    with pytest.raises(DriveSegError) as raised:
        read_image(path, "classes", AV_COLOURS)
    assert str(raised.value) == (
        f"{path}: 3 of 20 pixels have colours that class_colours does not name, most often [128, 0, 0]; expected "
        "[255, 0, 0] for 1, [0, 0, 255] for 2, [0, 255, 0] for 255, [255, 255, 255] for 255 and [0, 0, 0] for the "
        "background (null: files hold class values)"
    )


def test_rows_come_first(tmp_path: Path) -> None:
    image = load(save(Image.fromarray(COLOURS), tmp_path / "21_training.tif"), "photograph")
    label = load(drive_manual(tmp_path), "binary")
    classes = load(save(Image.fromarray(CLASSES), tmp_path / "av.png"), "classes")
    assert image.shape == (3, 3, 5) and label.shape == classes.shape == (1, 3, 5)
    assert image.dtype is label.dtype is torch.uint8
    np.testing.assert_array_equal(image.numpy(), COLOURS.transpose(2, 0, 1))
    np.testing.assert_array_equal(label.numpy()[0], DRAWN * 255)
    np.testing.assert_array_equal(classes.numpy()[0], CLASSES)
    assert image.meta["filename_or_obj"] == str(tmp_path / "21_training.tif")


def picture_bytes(suffix: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    path = Path(f"eye{suffix}")
    save(Image.fromarray(noise), path)
    return path.read_bytes()


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
    ("a.png", first_bytes, ""),
    ("a.jpg", first_bytes, ""),
    ("a.tif", first_bytes, ""),
    ("a.png", folder, "is a folder, expected a file"),
    ("a.png", os.mkfifo, "is a pipe or a device, expected a file"),
])  # fmt: skip
def test_files_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, damage: Callable[[Path], None], message: str
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
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
