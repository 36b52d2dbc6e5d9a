"""Picture files that Pillow cannot write: 16 bits a channel, DICOM, NIfTI."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

RGB24 = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
PNG_COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}
"""PNG's colour type by the number of channels."""

COLOURS = np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3) * 5
"""3 rows, 5 columns, no two values alike."""

TWELVE = COLOURS.astype(np.uint16) * 16 + 9
"""A camera's 12 bits; the brightest is 220 · 16 + 9 = 3529. Scaled: v · 255 // 4095."""

FROM_TWELVE = (TWELVE.astype(int) * 255 // 4095).astype(np.uint8)

GREY = FROM_TWELVE[..., :1].repeat(3, axis=2)
"""What a photograph of the first of these channels is read as."""

GREY_AND_ALPHA = np.stack([TWELVE[..., 0], np.full((3, 5), 65535, np.uint16)], axis=2)


def save_png16(path: Path, values: np.ndarray, declared: tuple[int, int] | None = None) -> Path:
    """(H, W, C), uint16, and if they are to be wrong, the declared height and width."""
    height, width = declared or values.shape[:2]
    channels = values.shape[2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, PNG_COLOURS[channels], 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_png_part(*part) for part in parts))
    return path


def _png_part(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def save_ppm16(path: Path, values: np.ndarray, brightest: int) -> Path:
    """(H, W, 3) or (H, W), uint16."""
    magic = "P6" if values.ndim == 3 else "P5"
    head = f"{magic}\n# a comment\n{values.shape[1]} {values.shape[0]}\n{brightest}\n"
    path.write_bytes(head.encode() + values.astype(">u2").tobytes())
    return path


def as_rgb24(colours: np.ndarray) -> np.ndarray:
    """(H, W, 3), uint8, as the structured type of NIfTI, (W, H, 1)."""
    return np.ascontiguousarray(colours.swapaxes(0, 1)).view(RGB24)


def save_nifti_array(path: Path, array: np.ndarray, affine: np.ndarray | None = None, **header: Any) -> Path:
    """Indices (x, y, …), as nibabel has them."""
    image = nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine)
    for field, value in header.items():
        image.header[field] = value
    nibabel.save(image, path)
    return path


def save_dicom(path: Path, values: np.ndarray, interpretation: str = "RGB", bits: int = 8, **elements: Any) -> Path:
    """(H, W) or (H, W, 3) or frames of these, as pixels of the photometric interpretation, uncompressed."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, OphthalmicPhotography8BitImageStorage

    colours = interpretation not in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = OphthalmicPhotography8BitImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.SOPClassUID, dataset.SOPInstanceUID = OphthalmicPhotography8BitImageStorage, "1.2.3"
    dataset.Modality = "OP"
    frame = values.shape[-3:] if colours else values.shape[-2:]
    dataset.Rows, dataset.Columns = frame[:2]
    dataset.SamplesPerPixel = 3 if colours else 1
    if colours:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = interpretation
    dataset.BitsAllocated = 8 if bits <= 8 else 16
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits - 1, 0
    pixels = values.astype("<u1" if bits <= 8 else "<u2").tobytes()
    dataset.PixelData = pixels + b"\0" * (len(pixels) % 2)
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def save_compressed_dicom(
    path: Path, values: np.ndarray, interpretation: str, transfer_syntax: str, pixels: bytes | None = None
) -> Path:
    """A photograph (H, W, 3) like ``save_dicom``'s, compressed by pydicom or, if they are given, with these pixels."""
    import pydicom
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID

    dataset = pydicom.dcmread(save_dicom(path, values, interpretation))
    if pixels is None:
        dataset.compress(transfer_syntax)
    else:
        dataset.PixelData = encapsulate([pixels])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = UID(transfer_syntax)
    dataset.save_as(path)
    return path
