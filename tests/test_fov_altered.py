"""Field of view of real photographs, rotated, noisy, marked with text and cropped, beside the published masks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from builders import overlap
from PIL import Image, ImageDraw, ImageFont
from realdata import real_data

from drive_seg.fov import estimate_fov

Altered = tuple[Image.Image, Image.Image]
"""A photograph and its mask."""

SHRUNK = 3
"""To a third in each direction, which keeps the 195 estimates to a quarter of a minute."""


@cache
def photograph_and_mask(case: str) -> Altered:
    folder = real_data("HRF")
    file = next(path for path in (folder / "images").iterdir() if path.stem == case)
    photograph = Image.open(file)
    mask = Image.fromarray(np.asarray(Image.open(folder / "mask" / f"{case}_mask.tif"))[..., 0] > 127).convert("L")
    size = (photograph.width // SHRUNK, photograph.height // SHRUNK)
    return photograph.resize(size, Image.Resampling.BOX), mask.resize(size, Image.Resampling.BOX)


def rotated(degrees: float) -> Callable[[Image.Image, Image.Image], Altered]:
    def turn(photograph: Image.Image, mask: Image.Image) -> Altered:
        options = {"angle": degrees, "resample": Image.Resampling.BILINEAR, "expand": True}
        return photograph.rotate(**options), mask.rotate(**options)

    return turn


def grainy(photograph: Image.Image, mask: Image.Image) -> Altered:
    noise = np.random.default_rng(0).normal(0, 12, (photograph.height, photograph.width, 3))
    return Image.fromarray((np.asarray(photograph) + noise).clip(0, 255).astype(np.uint8)), mask


def speckled(photograph: Image.Image, mask: Image.Image) -> Altered:
    random = np.random.default_rng(0)
    pixels = np.array(photograph)
    pixels[random.random(pixels.shape[:2]) < 0.01] = 255
    pixels[random.random(pixels.shape[:2]) < 0.01] = 0
    return Image.fromarray(pixels), mask


def marked(photograph: Image.Image, mask: Image.Image) -> Altered:
    """A name in one corner, a date in another, and a label that reaches over the rim."""
    photograph = photograph.copy()
    pen, font = ImageDraw.Draw(photograph), ImageFont.load_default(32)
    width, height = photograph.size
    pen.text((10, 10), "DOE, J.", font=font, fill=(255, 255, 255))
    pen.text((10, height - 50), "2020-01-31", font=font, fill=(255, 255, 0))
    pen.text((width - 190, height // 2), "OD 45 deg", font=font, fill=(255, 255, 255))
    return photograph, mask


def cropped(left: float, top: float, right: float, bottom: float) -> Callable[[Image.Image, Image.Image], Altered]:
    def cut(photograph: Image.Image, mask: Image.Image) -> Altered:
        width, height = photograph.size
        box = (round(left * width), round(top * height), round(right * width), round(bottom * height))
        return photograph.crop(box), mask.crop(box)

    return cut


def squared(share: float) -> Callable[[Image.Image, Image.Image], Altered]:
    """The square in the middle whose side is a share of the diameter, from about 0.7 on with black in its corners."""

    def cut(photograph: Image.Image, mask: Image.Image) -> Altered:
        left, top, right, bottom = mask.getbbox() or (0, 0, 0, 0)
        half = share * max(right - left, bottom - top) / 2
        row, column = (top + bottom) / 2, (left + right) / 2
        box = tuple(round(place) for place in (column - half, row - half, column + half, row + half))
        box = (max(0, box[0]), max(0, box[1]), min(mask.width, box[2]), min(mask.height, box[3]))
        return photograph.crop(box), mask.crop(box)

    return cut


ALTERATIONS: dict[str, Callable[[Image.Image, Image.Image], Altered]] = {
    "rotated by 17 degrees": rotated(17),
    "rotated by 90 degrees": rotated(90),
    "rotated by 133 degrees": rotated(133),
    "grainy": grainy,
    "speckled": speckled,
    "marked with text": marked,
    "left third missing": cropped(0.33, 0, 1, 1),
    "bottom missing": cropped(0, 0, 1, 0.7),
    "one corner": cropped(0, 0, 0.6, 0.6),
    "top and bottom missing": cropped(0, 0.12, 1, 0.88),
    "square, hardly any black in its corners": squared(0.75),
    "square, a little black in its corners": squared(0.76),
    "square, black corners": squared(0.8),
}


@pytest.mark.parametrize("alteration", ALTERATIONS)
def test_published_masks_of_altered_photographs(alteration: str) -> None:
    folder = real_data("HRF")
    cases = sorted(path.name.removesuffix("_mask.tif") for path in (folder / "mask").glob("*_mask.tif"))
    assert len(cases) == 15
    overlaps = {}
    for case in cases:
        photograph, mask = ALTERATIONS[alteration](*photograph_and_mask(case))
        expected = np.asarray(mask) > 127
        found = estimate_fov(np.asarray(photograph))
        overlaps[case] = overlap(found, expected)
    assert min(overlaps.values()) >= 0.98, overlaps  # 0.9979 and more
