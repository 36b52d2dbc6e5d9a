"""Masks as DICOM Segmentation objects, read back by pydicom and highdicom."""

from __future__ import annotations

from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from pictures import save_dicom
from PIL import Image
from pydicom.uid import SegmentationStorage, generate_uid

from drive_seg.dicom_seg import save_dicom_seg
from drive_seg.errors import DriveSegError
from drive_seg.phantom import make_phantom
from drive_seg.pictures import save_png
from drive_seg.predict import segment_photographs

ROWS, COLUMNS = 45, 61


def photograph(path: Path, pixels: np.ndarray, **elements: object) -> Path:
    references = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid(), "PatientID": "eye-1"}
    return save_dicom(path, pixels, **{**references, **elements})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return photograph(tmp_path / "eye.dcm", np.zeros((ROWS, COLUMNS, 3), np.uint8), SeriesNumber=4)


def test_vessels(source: Path, tmp_path: Path) -> None:
    mask = np.zeros((ROWS, COLUMNS), np.uint8)
    mask[3:5, 10:50] = 1
    save_dicom_seg(mask, ["class 1"], source, tmp_path / "vessels.dcm")
    read, original = pydicom.dcmread(tmp_path / "vessels.dcm"), pydicom.dcmread(source)
    assert read.SOPClassUID == SegmentationStorage and read.SegmentationType == "BINARY" and read.Modality == "SEG"
    assert (read.Rows, read.Columns, int(read.NumberOfFrames)) == (ROWS, COLUMNS, 1)
    np.testing.assert_array_equal(read.pixel_array.reshape(ROWS, COLUMNS), mask)
    assert (read.PatientID, read.StudyInstanceUID) == ("eye-1", original.StudyInstanceUID)
    assert read.SeriesInstanceUID != original.SeriesInstanceUID and read.SeriesNumber == 104
    (series,) = read.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == original.SeriesInstanceUID
    assert series.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == original.SOPInstanceUID
    (segment,) = read.SegmentSequence
    assert segment.SegmentAlgorithmType == "AUTOMATIC" and segment.SegmentLabel == "Retinal vessels"
    assert segment.AnatomicRegionSequence[0].CodeMeaning == "Retina"
    assert "PixelMeasuresSequence" not in read.SharedFunctionalGroupsSequence[0], "nobody knows a pixel's size"


def test_arteries_and_veins_have_their_codes_wherever_they_stand(source: Path, tmp_path: Path) -> None:
    mask = np.zeros((ROWS, COLUMNS), np.uint8)
    mask[:, 20], mask[30], mask[2] = 1, 2, 3
    save_dicom_seg(mask, ["Veins", "capillary", "artery"], source, tmp_path / "vessels.dcm")
    segmentation = highdicom.seg.segread(tmp_path / "vessels.dcm")
    found = [segmentation.get_segment_description(number) for number in (1, 2, 3)]
    assert [(segment.segment_label, segment.segmented_property_type.meaning) for segment in found] == [
        ("Retinal veins", "Vein"),
        ("Retinal vessels, capillary", "Blood Vessel"),
        ("Retinal arteries", "Artery"),
    ]
    frames = segmentation.pixel_array
    np.testing.assert_array_equal(frames[0] + 2 * frames[1] + 3 * frames[2], mask)


def test_two_classes_without_names_are_not_called_arteries_and_veins(source: Path, tmp_path: Path) -> None:
    save_dicom_seg(np.zeros((ROWS, COLUMNS), np.uint8), ["class 1", "class 2"], source, tmp_path / "vessels.dcm")
    segments = pydicom.dcmread(tmp_path / "vessels.dcm").SegmentSequence
    assert [segment.SegmentLabel for segment in segments] == ["Retinal vessels, class 1", "Retinal vessels, class 2"]
    assert {segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning for segment in segments} == {"Blood Vessel"}


def test_a_retina_without_any_vessel(source: Path, tmp_path: Path) -> None:
    save_dicom_seg(np.zeros((ROWS, COLUMNS), np.uint8), ["class 1"], source, tmp_path / "vessels.dcm")
    assert not pydicom.dcmread(tmp_path / "vessels.dcm").pixel_array.any()


def test_a_photograph_that_cannot_be_referred_to(tmp_path: Path) -> None:
    bare = save_dicom(tmp_path / "bare.dcm", np.zeros((ROWS, COLUMNS, 3), np.uint8))
    with pytest.raises(DriveSegError, match=r"bare\.dcm: lacks StudyInstanceUID and Series"):
        save_dicom_seg(np.zeros((ROWS, COLUMNS), np.uint8), ["class 1"], bare, tmp_path / "vessels.dcm")
    assert not (tmp_path / "vessels.dcm").exists()


@pytest.mark.parametrize("elements", [{"PatientBirthDate": "1960"}, {"PatientSex": "male"}], ids=["date", "sex"])
def test_elements_that_are_not_by_the_standard(tmp_path: Path, elements: dict[str, str]) -> None:
    odd = photograph(tmp_path / "odd.dcm", np.zeros((ROWS, COLUMNS, 3), np.uint8), **elements)
    with pytest.raises(DriveSegError, match=r"odd\.dcm: no segmentation can refer to it \("):
        save_dicom_seg(np.zeros((ROWS, COLUMNS), np.uint8), ["class 1"], odd, tmp_path / "vessels.dcm")
    assert not (tmp_path / "vessels.dcm").exists()


def test_a_photograph_without_its_reference_leaves_nothing(
    bundle: Path, tmp_path: Path, settings: dict[str, object]
) -> None:
    bare = save_dicom(tmp_path / "bare.dcm", make_phantom(0, 90, 110).image)
    settings["save_dicom_seg"] = True
    ((_, reason),) = segment_photographs(bundle, [bare], tmp_path / "out", settings)
    assert "lacks StudyInstanceUID" in reason
    assert not list((tmp_path / "out").glob("bare_*"))


def test_only_dicom_photographs_have_one(bundle: Path, tmp_path: Path, settings: dict[str, object]) -> None:
    pixels = make_phantom(0, 90, 110).image
    photographs = [photograph(tmp_path / "one.dcm", pixels), tmp_path / "two.png"]
    save_png(pixels, photographs[1])
    settings |= {"save_dicom_seg": True, "pictures": ["vessels"]}
    assert not segment_photographs(bundle, photographs, tmp_path / "out", settings)
    assert sorted(path.name for path in (tmp_path / "out").glob("*_vessels.*")) == [
        "one_vessels.dcm",
        "one_vessels.png",
        "two_vessels.png",
    ]
    found = pydicom.dcmread(tmp_path / "out" / "one_vessels.dcm").pixel_array.reshape(90, 110)
    with Image.open(tmp_path / "out" / "one_vessels.png") as mask:
        np.testing.assert_array_equal(found * 255, np.asarray(mask))
    assert found.any()
