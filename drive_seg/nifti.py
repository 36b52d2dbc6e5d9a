"""Photographs and vessel masks as NIfTI.

nibabel's first axis is x: a file's array (x, y) is (columns, rows) of the photograph, in stored order, as in ITK. The
affine, which says where the picture lies in space, never reorients it here. It is passed on, so that a mask lies where
its photograph does.
"""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path
from typing import BinaryIO

import nibabel
import numpy as np

from drive_seg.errors import DriveSegError
from drive_seg.files import replacing
from drive_seg.sizes import check_size

__all__ = ["PICTURE_AFFINE", "is_nifti", "read_nifti", "save_nifti"]

PICTURE_AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])
"""For a picture that is not NIfTI: x to the patient's left, y to the back, as ITK places a PNG. Viewers then show mask
and photograph upright and on top of each other."""

_GZIP = b"\x1f\x8b"
_HEADERS = {b"n+1\0": (344, nibabel.Nifti1Header), b"n+2\0": (4, nibabel.Nifti2Header)}
_MOST_EXTENSIONS = 1 << 24
"""Most bytes between header and pixels."""


def is_nifti(path: str | os.PathLike) -> bool:
    """Whether a file is NIfTI by its content, gzipped or not."""
    with _open_nifti(path) as file:
        try:
            return _header_type(file.read(540)) is not None
        except (OSError, EOFError, zlib.error):
            # Not gzip after all, or damaged: only NIfTI should be gzipped.
            return False


def read_nifti(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Read one slice.

    Args:
        path: file of (x, y) pixels, perhaps with further axes of length 1. Colours are a structured type or a last axis
            of 3 or 4, whose fourth, alpha, is dropped; (x, y, 3) is taken as colours, not as three slices.

    Returns:
        Pixels (H, W) or (H, W, 3), as stored, scaled if the header has a slope; affine (4, 4), ``PICTURE_AFFINE`` in
        place of one that is not finite or singular.

    Raises:
        DriveSegError: if the file is not NIfTI, not a single slice or implausibly large, or its header is damaged.
    """
    with _open_nifti(path) as file:
        block = file.read(540)
        header_type = _header_type(block)
        if header_type is None:
            raise DriveSegError(f"{path}: is not a NIfTI file")
        header = header_type(block[: header_type.template_dtype.itemsize], check=False)
        shape, dtype, offset = header.get_data_shape(), header.get_data_dtype(), int(header.get_data_offset())
        channels = _channels(shape, dtype)
        if channels is None:
            raise DriveSegError(
                f"{path}: expected one slice, grey or in colours, got an array of {' × '.join(map(str, shape))} {dtype}"
            )
        check_size(path, shape[1], shape[0])
        length = int(np.prod(shape)) * dtype.itemsize
        if not 0 <= offset <= _MOST_EXTENSIONS:
            raise DriveSegError(f"{path}: says that its pixels begin at byte {offset}, it seems damaged")
        content = block + file.read(max(0, offset + length - len(block)))
    values = np.frombuffer(content, dtype, count=int(np.prod(shape)), offset=offset).reshape(shape, order="F")
    if dtype.names:
        values = np.stack([values[name] for name in "RGB"], axis=-1)
    slope, intercept = header.get_slope_inter()
    if slope is not None and (slope, intercept) != (1, 0):
        values = values * np.float32(slope) + np.float32(intercept)
    values = values.reshape(*shape[:2], channels).swapaxes(0, 1)[..., :3]
    affine = np.asarray(header.get_best_affine(), dtype=float)
    usable = np.isfinite(affine).all() and np.linalg.matrix_rank(affine[:3, :3]) == 3
    return values[..., 0] if channels == 1 else values, affine if usable else PICTURE_AFFINE


def save_nifti(mask: np.ndarray, path: str | os.PathLike, affine: np.ndarray | None = None) -> None:
    """Write class values (H, W), uint8, as one gzipped slice (W, H, 1), whole or not at all.

    Args:
        mask: class values, rows first.
        path: ends in ``.nii.gz``.
        affine: the photograph's, (4, 4); None if it was not NIfTI.
    """
    image = nibabel.Nifti1Image(mask.T[..., None], PICTURE_AFFINE if affine is None else affine)
    image.header.set_intent("label")
    with replacing(path) as temporary:
        temporary.write_bytes(gzip.compress(image.to_bytes(), mtime=0))  # same bytes whenever written


def _open_nifti(path: str | os.PathLike) -> BinaryIO | gzip.GzipFile:
    with Path(path).open("rb") as file:
        gzipped = file.read(2) == _GZIP
    return gzip.open(path, "rb") if gzipped else Path(path).open("rb")


def _header_type(block: bytes) -> type[nibabel.Nifti1Header] | None:
    found = (kind for magic, (place, kind) in _HEADERS.items() if block[place : place + 4] == magic)
    return next(found, None)


def _channels(shape: tuple[int, ...], dtype: np.dtype) -> int | None:
    """Number of channels if the array is a single slice, else None."""
    if len(shape) < 2 or min(shape) < 1:
        return None
    more = [length for length in shape[2:] if length > 1]
    if dtype.names:
        return 3 if not more and {"R", "G", "B"} <= set(dtype.names) else None
    if dtype.kind not in "uif" or dtype.itemsize > 8:
        return None
    if not more:
        return 1
    return more[0] if len(more) == 1 and more[0] in (3, 4) and shape[-1] == more[0] else None
