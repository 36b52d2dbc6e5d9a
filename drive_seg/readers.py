"""Reading photographs, annotations and FOV masks, all with one axis order."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from monai.config import PathLike
from monai.data import PILReader
from monai.utils import ensure_tuple
from PIL import Image, ImageOps

from drive_seg.errors import DriveSegError

__all__ = ["PhotographReader", "read_image"]

CONTENTS = ("photograph", "binary", "classes")


class PhotographReader(PILReader):
    """MONAI's ``PILReader`` for the files of a case: every format Pillow knows, rows first, errors that name the file.

    MONAI's own reader swaps rows and columns, knows four suffixes and lets ``LoadImage`` bury what went wrong
    in a page of tracebacks. That last is why files are opened in ``get_data``, which ``LoadImage`` does not guard.

    Args:
        content: what the files hold and how pixels become numbers, see ``read_image``.
    """

    def __init__(self, content: str = "photograph") -> None:
        super().__init__(reverse_indexing=False)
        if content not in CONTENTS:
            raise ValueError(f"content: expected one of {', '.join(CONTENTS)}, got {content!r}")
        self.content = content

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """True: Pillow looks at the content, not at the name."""
        return True

    def read(self, data: Sequence[PathLike] | PathLike | np.ndarray, **kwargs: object) -> list[str]:
        """The file names, to be opened by ``get_data``."""
        return [os.fspath(name) for name in ensure_tuple(data)]

    def get_data(self, img: Sequence[str]) -> tuple[np.ndarray, dict]:
        """Array (H, W, 3) of a photograph or (H, W) of anything else, uint8, and its metadata.

        Raises:
            DriveSegError: if the file is missing, not an image, truncated or of a kind that does not fit.
        """
        if len(img) != 1:
            raise DriveSegError(f"{', '.join(img)}: expected one file, got {len(img)}")
        array = read_image(img[0], self.content)
        meta = {
            "spatial_shape": np.asarray(array.shape[:2]),
            "original_channel_dim": -1 if array.ndim == 3 else float("nan"),
        }
        return array, meta


def read_image(path: str | os.PathLike, content: str = "photograph") -> np.ndarray:
    """Read one image file with Pillow.

    Args:
        path: the file; of several frames the first is read, and an EXIF orientation is applied.
        content: ``photograph``: RGB, uint8, (H, W, 3); grey, palette, alpha and 16-bit grey are converted.
            ``binary``: an annotation or mask of two values, uint8, (H, W), in grey levels: palettes are looked up,
            so that both {0, 255} and the raw indices {0, 1} of DRIVE's second observer come out with a zero
            background. ``classes``: an annotation of several classes, uint8, (H, W), raw values or palette indices.

    Raises:
        DriveSegError: naming the file, if it cannot be read.
    """
    path = os.fspath(path)
    try:
        with Image.open(path) as image:
            image.load()
            return _to_array(ImageOps.exif_transpose(image), content, path)
    except FileNotFoundError as error:
        raise DriveSegError(f"{path}: there is no such file") from error
    except Image.UnidentifiedImageError as error:
        raise DriveSegError(f"{path}: is not an image of a format that can be read") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DriveSegError(f"{path}: cannot be read as an image, it seems damaged ({error})") from error


def _to_array(image: Image.Image, content: str, path: str) -> np.ndarray:
    if content == "photograph":
        if image.mode.startswith("I;16"):
            grey = (np.asarray(image).astype(np.uint32) // 257).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        if image.mode in ("I", "F"):
            raise DriveSegError(f"{path}: expected 8 or 16 bits a channel, got pixels of mode {image.mode}")
        return np.array(image.convert("RGB"))
    if content == "classes":
        if image.mode not in ("P", "L", "1"):
            raise DriveSegError(f"{path}: expected one channel of class values, got pixels of mode {image.mode}")
        return np.asarray(image).astype(np.uint8)
    return np.array(image.convert("L"))
