"""Reading photographs, annotations and FOV masks, all with one axis order."""

from __future__ import annotations

import logging
import os
import stat
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data import PILReader
from monai.utils import ensure_tuple
from PIL import Image, UnidentifiedImageError

from drive_seg.bit_depth import to_8_bit
from drive_seg.classes import Colour, classes_by_colour, classes_of_colours
from drive_seg.dicom import is_dicom, read_dicom
from drive_seg.errors import ArgumentError, DriveSegError
from drive_seg.nifti import is_nifti, read_nifti
from drive_seg.rasters import grey_levels, is_tiff, open_raster, read_deep
from drive_seg.sizes import MOST_PIXELS

__all__ = ["PhotographReader", "read_image"]

Colours = Sequence[tuple[Colour, int]] | None

CONTENTS = ("photograph", "binary", "classes")

# Where pydicom is installed, MONAI's LoadImage also makes a reader that it then does not use, which warns twice.
logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")


class PhotographReader(PILReader):
    """MONAI's ``PILReader`` for the files of a case: all common formats, rows first, errors that name the file.

    MONAI's own reader swaps rows and columns, knows four suffixes and lets ``LoadImage`` bury the error in a page of
    tracebacks. This is why files are opened in ``get_data``, which ``LoadImage`` does not guard.

    Args:
        content: what the files hold and how pixels become numbers, see ``read_image``.
        class_colours: colours by class value, see ``drive_seg.classes.classes_by_colour``.
    """

    def __init__(self, content: str = "photograph", class_colours: Mapping[str, Any] | None = None) -> None:
        super().__init__(reverse_indexing=False)
        _check_content(content)
        self.content = content
        # Pairs, because the settings that a training is resumed with are compared as texts of lists.
        self.colours = None if class_colours is None else list(classes_by_colour(class_colours).items())

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Always True: the content decides, not the name."""
        return True

    def read(self, data: Sequence[PathLike] | PathLike | np.ndarray, **kwargs: object) -> list[str]:
        """The file names, for ``get_data`` to open."""
        return [os.fspath(name) for name in ensure_tuple(data)]

    def get_data(self, img: Sequence[str]) -> tuple[np.ndarray, dict]:
        """Array (H, W, 3) of a photograph or (H, W) of anything else, uint8, and its metadata.

        The affine of a NIfTI file is stored as ``nifti_affine``: MONAI's own ``affine`` changes with every transform of
        the picture, but the results need the original.

        Raises:
            DriveSegError: if the file is missing, not an image, truncated or of an unsuitable kind.
        """
        if len(img) != 1:
            raise DriveSegError(f"{', '.join(img)}: expected one file, got {len(img)}")
        array, affine = _read(img[0], self.content, self.colours)
        meta: dict = {
            "spatial_shape": np.asarray(array.shape[:2]),
            "original_channel_dim": -1 if array.ndim == 3 else float("nan"),
        }
        if affine is not None:
            meta["nifti_affine"] = affine
        return array, meta


def read_image(
    path: str | os.PathLike, content: str = "photograph", class_colours: Mapping[str, Any] | None = None
) -> np.ndarray:
    """Read one image file: TIFF, PNG, JPEG, BMP, GIF, PPM, JPEG 2000, WebP, NIfTI or DICOM, whatever its name ends in.

    Args:
        path: the file; the first of several frames of a GIF or TIFF is read, and any EXIF orientation is applied.
        content: ``photograph``: RGB, uint8, (H, W, 3); grey, palette, alpha, CMYK and 16 bits per channel are
            converted, for the latter see ``to_8_bit``.
            ``binary``: an annotation or mask of two values, uint8, (H, W), in grey levels: palettes are looked up and
            transparent pixels are black, so that the background is zero both for {0, 255} and for the raw indices
            {0, 1} of DRIVE's second observer. Of other numbers, such as {-1, 0} or {0, 0.9}, zero is the background,
            or the lower one if none is zero, and the foreground is 1.
            ``classes``: an annotation of several classes, uint8, (H, W), raw values or palette indices; with
            ``class_colours``, files with a palette or three channels are read by their colours.
        class_colours: colours by class value, see ``drive_seg.classes.classes_by_colour``.

    Raises:
        DriveSegError: naming the file, if it cannot be read.
        ArgumentError: if ``content`` is none of these.
    """
    reader = PhotographReader(content, class_colours)
    return _read(os.fspath(path), content, reader.colours)[0]


def _check_content(content: str) -> None:
    if content not in CONTENTS:
        raise ArgumentError(f"content: expected one of {', '.join(CONTENTS)}, got {content!r}")


def _read(path: str, content: str, colours: Colours) -> tuple[np.ndarray, np.ndarray | None]:
    """The pixels, and for a NIfTI file its affine."""
    try:
        kind = Path(path).stat().st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):  # a pipe would have its reader wait for ever
            raise DriveSegError(f"{path}: is a pipe or a device, expected a file")
        if is_nifti(path):
            values, affine = read_nifti(path)
            return _from_values(values, None, content, colours, path), affine
        if is_dicom(path):
            return _from_values(*read_dicom(path), content, colours, path), None
        deep = None if content == "binary" else read_deep(path)
        if deep is not None:
            return _from_values(*deep, content, colours, path), None
        return _from_raster(open_raster(path), content, colours, path), None
    except DriveSegError:
        raise
    except FileNotFoundError as error:
        raise DriveSegError(f"{path}: there is no such file") from error
    except IsADirectoryError as error:
        raise DriveSegError(f"{path}: is a folder, expected a file") from error
    except UnidentifiedImageError as error:
        if is_tiff(path):
            raise DriveSegError(f"{path}: is TIFF of another kind than 8 or 16 bits a channel") from error
        raise DriveSegError(f"{path}: is not an image of a format that can be read") from error
    except Image.DecompressionBombError as error:
        raise DriveSegError(
            f"{path}: expected a photograph of at most {MOST_PIXELS // 1_000_000} million pixels, it declares more"
        ) from error
    except Exception as error:  # damaged bytes make decoders raise almost anything, from KeyError to MemoryError
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DriveSegError(f"{path}: cannot be read as an image, it seems damaged ({reason})") from error


def _from_values(values: np.ndarray, full_scale: float | None, content: str, colours: Colours, path: str) -> np.ndarray:
    """Convert numbers without a palette, (H, W) or (H, W, 3)."""
    if content == "photograph":
        try:
            pixels = to_8_bit(values, full_scale)
        except ValueError as error:
            raise DriveSegError(f"{path}: {error}") from error
        return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else np.ascontiguousarray(pixels)
    if content == "classes":
        return _from_classes(values, colours, path)
    if values.ndim == 3:
        picture = Image.fromarray(np.ascontiguousarray(values.clip(0, 255).astype(np.uint8)))
        return _from_raster(picture, content, colours, path)
    levels = np.unique(values)
    if len(levels) <= 2 and np.isfinite(levels).all():
        background = levels[0] if len(levels) == 2 and 0 not in levels else 0
        return (values != background).astype(np.uint8)
    if np.isin(levels, np.arange(256)).all():
        return values.astype(np.uint8)
    raise DriveSegError(f"{path}: expected a mask of two values, got others, from {levels[0]:g} to {levels[-1]:g}")


def _from_classes(values: np.ndarray, colours: Colours, path: str) -> np.ndarray:
    """Class values of numbers, (H, W), or of colours, (H, W, 3)."""
    if values.ndim == 3 and colours is not None:
        levels = values // 257 if values.max() > 255 else values  # white is 65535 in 16 bits
        try:
            return classes_of_colours(levels, dict(colours))
        except ValueError as error:
            raise DriveSegError(f"{path}: {error}") from error
    if values.ndim == 3:
        coloured = (values != values[..., :1]).any(axis=2)
        if coloured.any():
            raise DriveSegError(
                f"{path}: expected one channel of class values, got colours, such as {values[coloured][0].tolist()}; "
                "class_colours gives the class of each colour (artery_vein.json: red arteries, blue veins)"
            )
        values = values[..., 0]
    levels = np.unique(values)
    if not np.isin(levels, np.arange(256)).all():
        raise DriveSegError(f"{path}: expected class values from 0 to 255, got {levels[0]:g} to {levels[-1]:g}")
    return values.astype(np.uint8)


def _from_raster(image: Image.Image, content: str, colours: Colours, path: str) -> np.ndarray:
    if content == "photograph":
        if image.mode in ("I", "F"):
            raise DriveSegError(f"{path}: expected 8 or 16 bits a channel, got pixels of mode {image.mode}")
        pixels = np.array(image.convert("RGB"))
        if image.has_transparency_data:
            clear = np.asarray(image.convert("RGBA"))[..., 3] == 0
            if not clear.all():  # transparent pixels are not retina, whatever their colour
                pixels[clear] = 0
        return pixels
    if content == "classes":
        if image.mode == "P" and colours is not None:
            image = image.convert("RGBA").convert("RGB")  # any colour may be named as transparent
        elif len(image.getbands()) > 1:
            drawn = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", drawn.size, "black"), drawn).convert("RGB")
        return _from_classes(np.asarray(image), colours, path)
    if image.mode in ("I", "F"):
        return _from_values(np.asarray(image), None, content, colours, path)
    try:
        return grey_levels(image)
    except ValueError as error:
        raise DriveSegError(f"{path}: {error}") from error
