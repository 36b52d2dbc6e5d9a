"""Picture files opened with Pillow, but with all their bits.

Pillow keeps only 8 of 16 bits per colour channel, which leaves black where a camera's 12 bits are stored in 16.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image, ImageOps, UnidentifiedImageError

from drive_seg.sizes import check_size

__all__ = ["is_tiff", "open_raster", "read_deep"]

_logger = logging.getLogger(__name__)

FORMATS = ("TIFF", "PNG", "JPEG", "BMP", "DIB", "GIF", "PPM", "JPEG2000", "WEBP")
"""Not all that Pillow opens: some formats match almost any bytes, and one starts another program."""

_ORIENTATION = 0x0112
_BITS, _PHOTOMETRIC, _PLANES = 258, 262, 284
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_GREYS = (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.MINISWHITE)
_SWAPPED = {"16L": "16B", "16B": "16L", "16N": "16B" if np.little_endian else "16L"}

_TURNS = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


def is_tiff(path: str | os.PathLike) -> bool:
    """Whether a file is TIFF by its content."""
    with Path(path).open("rb") as file:
        return file.read(4) in _TIFF


def grey_levels(image: Image.Image) -> np.ndarray:
    """An annotation or mask in grey levels, (H, W), uint8.

    Palettes are looked up, and what is transparent is black, unless all of the picture is. If there are only two
    values and both give the same grey, such as black and nearly black, they become 0 and 255.

    Raises:
        ValueError: if all that can be seen is black, and the rest is transparent.
    """
    if image.mode != "P" and image.has_transparency_data:  # palettes may name any of their colours as transparent
        drawn = image.convert("RGBA")
        alpha = drawn.getchannel("A")
        on_black = Image.alpha_composite(Image.new("RGBA", drawn.size, "black"), drawn).convert("RGB")
        faintest, strongest = alpha.getextrema()
        if on_black.getbbox() is None and faintest != strongest:  # an annotation in ink, or the surroundings of an eye
            raise ValueError("expected a mask in white on black, got black beside transparent pixels")
        image = on_black if strongest else drawn.convert("RGB")
    levels = np.array(image.convert("L"))
    if levels.min() == levels.max():
        values = np.asarray(image)
        values = values if values.ndim == 2 else values.sum(axis=2)
        if len(np.unique(values)) == 2:
            return (values > values.min()).astype(np.uint8) * 255
    return levels


def open_raster(path: str | os.PathLike) -> Image.Image:
    """The first frame, decoded and turned by its EXIF orientation.

    Raises:
        DriveSegError: if it is implausibly large.
    """
    with Image.open(path, formats=FORMATS) as image:
        check_size(path, image.height, image.width)
        image.load()
        return ImageOps.exif_transpose(image)


def read_deep(path: str | os.PathLike) -> tuple[np.ndarray, float | None] | None:
    """The pixels of a file with more than 8 bits per channel, some of which Pillow would lose.

    Returns:
        Pixels (H, W) or (H, W, 3), uint16, turned by the EXIF orientation, and the value of white if the file declares
        it; None for any other file.

    Raises:
        DriveSegError: if the picture is implausibly large.
        PIL.UnidentifiedImageError: if the file is in none of the formats.
    """
    try:
        opened = Image.open(path, formats=FORMATS)
    except UnidentifiedImageError:
        return _read_grey_tiff(path)
    with opened as image:
        check_size(path, image.height, image.width)
        if image.format == "TIFF":
            _tell_of_pages(path)
        tiles = [tuple(tile) for tile in image.tile]
        coder = str(tiles[0][0]) if tiles else ""
        raw_mode = _raw_mode(tiles[0][3]) if tiles else ""
        if image.format == "PPM" and coder == "ppm" and tiles[0][3][1] > 255:
            return _read_ppm(path, image, tiles[0][2]), float(tiles[0][3][1])
        if image.format == "PPM" and image.mode == "I":  # written as text, which Pillow scales to 16 bits
            image.load()
            return np.asarray(image).astype(np.uint16), 65535.0
        if image.format == "TIFF" and image.mode in ("RGB", "RGBA", "RGBX") and _is_planar(image):
            turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1), np.asarray)
            planes = tifffile.imread(path, key=0)
            return turn(_visible(planes[:3].transpose(1, 2, 0), *planes[3:4])), None
        if image.mode.startswith("I;16"):
            white_is_zero = _is_white_zero(image)
            image.load()
            values = np.asarray(ImageOps.exif_transpose(image)).astype(np.uint16)
            return _from_black(values) if white_is_zero else (values, None)
        if raw_mode == "LA;16B":  # two bytes each of grey and alpha, as long as four channels of one
            image.tile = [_with_raw_mode(tile, "RGBA") for tile in image.tile]
            grey = _bytes(image)
            return _visible(grey[..., 0].astype(np.uint16) << 8 | grey[..., 1], grey[..., 2] | grey[..., 3]), None
        if image.mode in ("RGB", "RGBA", "RGBX") and raw_mode[-3:] in _SWAPPED:
            # If told that the bytes of a channel are swapped, Pillow keeps the lower byte instead.
            high = _bytes(image)
            with Image.open(path, formats=FORMATS) as again:
                swapped = raw_mode[:-3] + _SWAPPED[raw_mode[-3:]]
                again.tile = [_with_raw_mode(tile, swapped) for tile in again.tile]
                low = _bytes(again)
            values = high.astype(np.uint16) << 8 | low
            alpha = [values[..., 3]] if image.mode == "RGBA" else []
            return _visible(values[..., :3], *alpha), None
    return None


def _tell_of_pages(path: str | os.PathLike) -> None:
    """Warn of further pages: they may be a thumbnail, but also photographs that would be missed silently."""
    # Opened again, because counting moves through the pages. Errors in later pages do not matter.
    with contextlib.suppress(Exception), Image.open(path, formats=("TIFF",)) as image:
        pages = getattr(image, "n_frames", 1)
        if pages > 1:
            _logger.warning("%s: has %d pages, of which the first is read", path, pages)


def _raw_mode(arguments: Any) -> str:
    return str(arguments[0] if isinstance(arguments, (tuple, list)) and arguments else arguments)


def _with_raw_mode(tile: Any, raw_mode: str) -> Any:
    """The tile, with its bytes read in another mode than the file says."""
    arguments = (raw_mode, *tile[3][1:]) if isinstance(tile[3], (tuple, list)) else raw_mode
    return type(tile)(*tile[:3], arguments) if hasattr(tile, "_fields") else (*tile[:3], arguments)


def _bytes(image: Image.Image) -> np.ndarray:
    image.load()
    return np.asarray(ImageOps.exif_transpose(image))


def _visible(values: np.ndarray, alpha: np.ndarray | None = None) -> np.ndarray:
    """Black where fully transparent, as in files of 8 bits, unless all of the picture is."""
    if alpha is None or not alpha.any():
        return values
    return np.where((alpha > 0).reshape(*alpha.shape, *[1] * (values.ndim - 2)), values, values.dtype.type(0))


def _is_white_zero(image: Image.Image) -> bool:
    return image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0  # type: ignore[attr-defined]


def _from_black(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Invert 16 bits in which zero is white; black is then 65535, so that the scale is known."""
    return 65535 - values, 65535.0


def _is_planar(image: Image.Image) -> bool:
    tags = image.tag_v2  # type: ignore[attr-defined]
    return tags.get(_PLANES) == 2 and max(tags.get(_BITS, (1,))) == 16


def _read_ppm(path: str | os.PathLike, image: Image.Image, offset: int) -> np.ndarray:
    shape = (image.height, image.width, *[3] * (image.mode == "RGB"))
    with Path(path).open("rb") as file:
        file.seek(offset)
        content = file.read(2 * int(np.prod(shape)))
    return np.frombuffer(content, ">u2").reshape(shape).astype(np.uint16)


def _read_grey_tiff(path: str | os.PathLike) -> tuple[np.ndarray, float | None]:
    """A grey TIFF of 16 bits that Pillow cannot read: with alpha, or big-endian with white as zero."""
    if not is_tiff(path):
        raise UnidentifiedImageError
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        if (page.samplesperpixel, page.bitspersample) not in ((1, 16), (2, 16)) or page.photometric not in _GREYS:
            raise UnidentifiedImageError
        check_size(path, page.imagelength, page.imagewidth)
        values, alpha, white = page.asarray(), None, None
        if page.samplesperpixel == 2:
            values, alpha = np.moveaxis(values, 0 if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE else -1, 0)
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            values, white = _from_black(values)
        turn = _TURNS.get(page.tags[_ORIENTATION].value if _ORIENTATION in page.tags else 1, np.asarray)
    return turn(_visible(values, alpha)), white
