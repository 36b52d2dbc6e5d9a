"""Reading photographs, annotations and masks in the forms that datasets have them in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import LoadImaged
from PIL import Image

from drive_seg.errors import DriveSegError, user_error
from drive_seg.readers import PhotographReader, read_image

FIGURE = np.zeros((6, 9), np.uint8)
FIGURE[1:4, 2] = 1
FIGURE[3, 2:7] = 1  # an L: rows and columns cannot be mixed up, nor any mirror image


def palette_image(indices: np.ndarray, colours: list[int]) -> Image.Image:
    image = Image.fromarray(indices, mode="P")
    image.putpalette(colours)
    return image


def load(path: Path, content: str = "photograph") -> torch.Tensor:
    loader = LoadImaged("image", reader=PhotographReader(content), ensure_channel_first=True, dtype=torch.uint8)
    return loader({"image": str(path)})["image"]


def test_rows_come_first_all_the_way(tmp_path: Path) -> None:
    colours = np.stack([FIGURE * 200, FIGURE * 100, FIGURE * 50], axis=2)
    Image.fromarray(colours).save(tmp_path / "a.tif")
    loaded = load(tmp_path / "a.tif")
    assert loaded.shape == (3, 6, 9) and loaded.dtype is torch.uint8
    assert np.array_equal(np.asarray(loaded), colours.transpose(2, 0, 1))
    Image.fromarray(FIGURE * 255).save(tmp_path / "label.png")
    assert np.array_equal(np.asarray(load(tmp_path / "label.png", "binary"))[0] > 0, FIGURE > 0)


@pytest.mark.parametrize(
    ("indices", "palette"),
    [
        (FIGURE * 255, [v for i in range(256) for v in (i, i, i)]),  # DRIVE's first observer
        (FIGURE, [0, 0, 0, 255, 255, 255]),  # DRIVE's second observer: raw indices 0 and 1
        (FIGURE, [v for i in range(256) for v in (i, i, i)]),  # the same where 1 is almost black
    ],
)
def test_binary_gifs(tmp_path: Path, indices: np.ndarray, palette: list[int]) -> None:
    palette_image(indices, palette).save(tmp_path / "a.gif")
    assert np.array_equal(read_image(tmp_path / "a.gif", "binary") > 0, FIGURE > 0)


def test_one_bit_and_colour_masks(tmp_path: Path) -> None:
    Image.fromarray(FIGURE > 0).save(tmp_path / "bit.png")
    Image.fromarray(np.repeat(FIGURE[..., None] * 255, 3, axis=2)).save(tmp_path / "colour.tif")
    for name in ("bit.png", "colour.tif"):
        assert np.array_equal(read_image(tmp_path / name, "binary") > 0, FIGURE > 0)


def test_class_values_are_the_indices(tmp_path: Path) -> None:
    classes = FIGURE * 2
    classes[0, 0] = 1
    palette_image(classes, [0, 0, 0, 255, 0, 0, 0, 0, 255]).save(tmp_path / "av.png")
    Image.fromarray(classes).save(tmp_path / "grey.png")
    for name in ("av.png", "grey.png"):
        assert np.array_equal(read_image(tmp_path / name, "classes"), classes)
    Image.fromarray(np.zeros((6, 9, 3), np.uint8)).save(tmp_path / "rgb.png")
    with pytest.raises(DriveSegError, match=r"rgb\.png: expected one channel of class values"):
        read_image(tmp_path / "rgb.png", "classes")


def test_photographs_in_other_modes_become_rgb(tmp_path: Path) -> None:
    grey = np.arange(54, dtype=np.uint8).reshape(6, 9) * 4
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "grey16.png")
    Image.fromarray(np.dstack([grey, grey, grey, np.full_like(grey, 7)])).save(tmp_path / "alpha.png")
    palette_image(FIGURE, [10, 20, 30, 40, 50, 60]).save(tmp_path / "palette.png")
    expected = np.repeat(grey[..., None], 3, axis=2)
    for name in ("grey.png", "grey16.png", "alpha.png"):
        assert np.array_equal(read_image(tmp_path / name), expected), name
    assert read_image(tmp_path / "palette.png")[3, 3].tolist() == [40, 50, 60]


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(FIGURE * 255).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "turned.png", "binary"), np.rot90(FIGURE * 255, -1))


def spoilt(folder: Path, kind: str) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = folder / f"eye.{kind.split('-')[-1]}"
    if kind.startswith("truncated"):
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind.startswith("text"):
        path.write_text("these are not pixels")
    elif kind.startswith("empty"):
        path.write_bytes(b"")
    return path


@pytest.mark.parametrize(
    "kind", ["truncated-png", "truncated-jpg", "truncated-tif", "text-tif", "empty-png", "missing-png"]
)
def test_what_cannot_be_read_is_named(tmp_path: Path, kind: str) -> None:
    path = spoilt(tmp_path, kind)
    with pytest.raises(DriveSegError) as raised:
        read_image(path)
    assert str(raised.value).startswith(f"{path}: ") and "\n" not in str(raised.value)
    with pytest.raises(Exception) as wrapped:
        load(path)
    assert str(user_error(wrapped.value)) == str(raised.value)


def test_unknown_content() -> None:
    with pytest.raises(ValueError, match="photograph, binary, classes"):
        PhotographReader("colour")
