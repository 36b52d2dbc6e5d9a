"""Writes masks as DICOM Segmentation objects; highdicom comes with the extra ``dicom``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from drive_seg import __version__
from drive_seg.classes import vessel_kind
from drive_seg.errors import DriveSegError
from drive_seg.files import replacing

__all__ = ["save_dicom_seg"]

_MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
"""Elements that DICOM requires in every object, if only empty, and that real photographs leave out."""


def save_dicom_seg(mask: np.ndarray, names: Sequence[str], source: str | os.PathLike, path: str | os.PathLike) -> None:
    """Write a mask as a binary segmentation that refers to the photograph, in the study of the same patient.

    Args:
        mask: (H, W), class values; 0 is background.
        names: of the vessel classes, each of which is a segment. Arteries and veins, see ``vessel_kind``, have codes
            of their own; a class that is the only one needs no name.
        source: the photograph, a DICOM file of H rows and W columns.
        path: file to write, whole or not at all.

    Raises:
        DriveSegError: if highdicom is not installed, or the photograph lacks what a reference to it needs.

    Source: DICOM PS3.3, A.51, Segmentation IOD.
    """
    try:
        import highdicom
        import pydicom
        from pydicom.sr.codedict import codes
    except ImportError as error:
        raise DriveSegError(
            "save_dicom_seg: highdicom is not installed, expected pip install 'drive-seg[dicom]'"
        ) from error

    algorithm = highdicom.AlgorithmIdentificationSequence("drive-seg", codes.DCM.ArtificialIntelligence, __version__)
    known = {"artery": ("Retinal arteries", codes.SCT.Artery), "vein": ("Retinal veins", codes.SCT.Vein)}
    kinds = [known.get(vessel_kind(name), (f"Retinal vessels, {name}", codes.SCT.BloodVessel)) for name in names]
    if len(names) == 1:
        kinds = [("Retinal vessels", codes.SCT.BloodVessel)]
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=kind,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            anatomic_regions=[codes.SCT.Retina],
        )
        for number, (label, kind) in enumerate(kinds, 1)
    ]
    photograph = pydicom.dcmread(source, stop_before_pixels=True)
    needed = [name for name in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID") if name not in photograph]
    if needed:
        raise DriveSegError(f"{source}: lacks {' and '.join(needed)}, which a DICOM Segmentation must refer to")
    try:
        segmentation = _segmentation(mask, photograph, segments)
    except Exception as error:  # odd elements in a file may make highdicom raise anything
        raise DriveSegError(f"{source}: no segmentation can refer to it ({type(error).__name__}: {error})") from error
    with replacing(path) as temporary:
        segmentation.save_as(temporary)


def _segmentation(mask: np.ndarray, photograph: Any, segments: list[Any]) -> Any:
    import highdicom
    from pydicom.uid import generate_uid

    _complete(photograph)
    segmentation = highdicom.seg.Segmentation(
        source_images=[photograph],
        pixel_array=mask[None].astype(np.uint8),
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=generate_uid(),
        series_number=int(photograph.get("SeriesNumber") or 0) + 100,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="drive-seg",
        manufacturer_model_name="drive-seg",
        software_versions=__version__,
        device_serial_number="0",
        content_description="Retinal vessels, found by a network; not for diagnosis",
        omit_empty_frames=False,
    )
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    if "PixelMeasuresSequence" in shared and not shared.PixelMeasuresSequence[0]:
        del shared.PixelMeasuresSequence
    return segmentation


def _complete(photograph: Any) -> None:
    """Add what highdicom expects of multi-frame objects, which ophthalmic photographs may be."""
    from pydicom import Dataset, Sequence

    for name in _MAY_BE_EMPTY:
        if name not in photograph:
            setattr(photograph, name, None)
    if "NumberOfFrames" not in photograph:
        photograph.NumberOfFrames = 1
    if "SharedFunctionalGroupsSequence" not in photograph:
        shared = Dataset()
        shared.PixelMeasuresSequence = Sequence([Dataset()])
        photograph.SharedFunctionalGroupsSequence = Sequence([shared])
