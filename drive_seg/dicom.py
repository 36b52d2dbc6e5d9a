"""Reads ophthalmic photographs from DICOM files; pydicom comes with the extra ``dicom``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from drive_seg.errors import DriveSegError
from drive_seg.sizes import check_size

__all__ = ["is_dicom", "read_dicom"]

INTERPRETATIONS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
GREY = ("MONOCHROME1", "MONOCHROME2")
PALETTE = "PALETTE COLOR"

_DEFLATED = "1.2.840.10008.1.2.1.99"


def is_dicom(path: str | os.PathLike) -> bool:
    """Whether a file's content is DICOM."""
    with Path(path).open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def read_dicom(path: str | os.PathLike) -> tuple[np.ndarray, float]:
    """Read a file with a single frame.

    Args:
        path: file with RGB, YBR, MONOCHROME or PALETTE COLOR pixels; JPEG and JPEG 2000 are decoded by Pillow, RLE by
            pydicom.

    Returns:
        Pixels (H, W) or (H, W, 3), RGB; and the value of white, from the bits stored.

    Raises:
        DriveSegError: if there is no frame or several, or one of another kind, too large or not decodable; or if
            pydicom is missing.
    """
    try:
        import pydicom
        from pydicom.pixels import apply_color_lut, pixel_array
    except ImportError as error:
        raise DriveSegError(f"{path}: reading DICOM needs pydicom (pip install 'drive-seg[dicom]')") from error
    syntax = pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID")
    if syntax == _DEFLATED:
        # Nothing in the file says how large it is once inflated.
        raise DriveSegError(f"{path}: the deflated transfer syntax of DICOM is not supported")
    dataset = pydicom.dcmread(path)
    if dataset.get("Modality") == "SEG":
        raise DriveSegError(f"{path}: is a DICOM Segmentation, expected a photograph")
    if "PixelData" not in dataset:
        raise DriveSegError(f"{path}: is DICOM without pixels")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise DriveSegError(f"{path}: expected one frame, got {frames}")
    check_size(path, int(dataset.Rows), int(dataset.Columns))
    interpretation = str(dataset.PhotometricInterpretation)
    if interpretation not in (*INTERPRETATIONS, *GREY, PALETTE):
        raise DriveSegError(
            f"{path}: expected pixels of {', '.join((*INTERPRETATIONS, *GREY, PALETTE))}, got {interpretation}"
        )
    if syntax.is_compressed and not _can_be_decoded(syntax):
        raise DriveSegError(f"{path}: its pixels are compressed as {syntax.name}, which pydicom alone does not decode")
    values = pixel_array(dataset)
    bits = int(dataset.BitsStored)
    if interpretation == PALETTE:
        values, bits = apply_color_lut(values, dataset), int(dataset.RedPaletteColorLookupTableDescriptor[2])
        if bits == 16 and values.max() < 256:
            bits = 8  # many writers declare 16 bits for tables of 8
    full_scale = float(2**bits - 1)
    if interpretation == "MONOCHROME1" and values.min() >= 0:  # negative values are refused later
        white = int(min(full_scale, np.iinfo(values.dtype).max))
        values = white - np.minimum(values, white)
    return values, full_scale


def _can_be_decoded(syntax: Any) -> bool:
    from pydicom.pixels import get_decoder

    try:
        return get_decoder(syntax).is_available
    except NotImplementedError:
        return False
