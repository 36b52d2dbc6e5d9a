"""Reading masks and classes: palettes, transparency, depths, colours, and numbers that are neither."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from builders import save_palette
from pictures import COLOURS
from PIL import Image
from test_readers import DRAWN, load, save

from drive_seg.errors import DriveSegError
from drive_seg.prepare import read_binary
from drive_seg.readers import read_image


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
    message = r"av\.png: 3 of 20 pixels have colours .*, most often \[128, 0, 0\]; expected \[255, 0, 0\] for 1, "
    with pytest.raises(DriveSegError, match=message):
        read_image(path, "classes", AV_COLOURS)


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
