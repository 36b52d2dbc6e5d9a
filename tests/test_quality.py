from __future__ import annotations

import numpy as np
import pytest
from builders import tensor
from PIL import Image, ImageFilter
from realdata import real_data

from drive_seg.errors import DriveSegError
from drive_seg.fov import estimate_fov, fov_diameter
from drive_seg.phantom import make_phantom
from drive_seg.quality import AssessQualityd, brightness_and_sharpness
from drive_seg.readers import read_image

ASSESS = AssessQualityd(darkest=50, least_sharpness=0.18, least_density=0.02)


def words(photograph: np.ndarray, fov: np.ndarray, vessels: float = 0.1) -> list[str]:
    mask = np.zeros(fov.shape, dtype=np.uint8)
    mask.flat[np.flatnonzero(fov)[: int(vessels * fov.sum())]] = 1
    case = {"photograph": tensor(photograph.transpose(2, 0, 1)), "pred": tensor(mask[None])}
    return ASSESS({**case, "fov": tensor(fov[None].astype(np.uint8))})["quality"]


def blurred(photograph: np.ndarray, share: float, diameter: float) -> np.ndarray:
    return np.asarray(Image.fromarray(photograph).filter(ImageFilter.GaussianBlur(share * diameter)))


@pytest.mark.parametrize("side", [400, 1000])
def test_phantoms(side: int) -> None:
    phantom = make_phantom(1, side, side)
    fov = phantom.fov > 0
    assert words(phantom.image, fov) == []
    assert words(phantom.image, fov, vessels=0.01) == ["hardly any vessel"]
    assert "too dark" in words((phantom.image * 0.15).astype(np.uint8), fov)
    assert "blurred" in words(blurred(phantom.image, 0.012, side), fov)


def test_resolution_does_not_matter() -> None:
    phantom = make_phantom(2, 600, 600)
    larger = np.asarray(Image.fromarray(phantom.image).resize((1500, 1500), Image.Resampling.BICUBIC))
    fov = np.asarray(Image.fromarray(phantom.fov > 0).resize((1500, 1500), Image.Resampling.NEAREST))
    once, again = brightness_and_sharpness(phantom.image, phantom.fov > 0), brightness_and_sharpness(larger, fov)
    assert again[0] == pytest.approx(once[0], abs=2) and again[1] == pytest.approx(once[1], rel=0.1)


def test_nothing_at_all() -> None:
    fov = np.ones((60, 60), dtype=bool)
    assert brightness_and_sharpness(np.zeros((60, 60, 3), dtype=np.uint8), fov) == (0.0, 0.0)
    assert words(np.zeros((60, 60, 3), dtype=np.uint8), fov, 0) == ["too dark", "blurred", "hardly any vessel"]


@pytest.mark.parametrize(("dataset", "pattern", "every"), [("CHASE_DB1", "*.jpg", 4), ("HRF", "*.[jJ][pP][gG]", 9)])
def test_real_photographs_are_good_until_they_are_spoilt(dataset: str, pattern: str, every: int) -> None:
    files = sorted(real_data(dataset).rglob(pattern))[::every]
    assert len(files) >= 4
    for file in files:
        photograph = read_image(file)
        fov = estimate_fov(photograph)
        assert words(photograph, fov) == [], file
        assert words(blurred(photograph, 0.008, fov_diameter(fov)), fov) == ["blurred"], file
        assert "too dark" in words((photograph * 0.15).astype(np.uint8), fov), file


@pytest.mark.parametrize("name", ["darkest", "least_sharpness", "least_density"])
def test_limits(name: str) -> None:
    limits = {"darkest": 50, "least_sharpness": 0.2, "least_density": 0.02, name: -1}
    with pytest.raises(DriveSegError, match=f"^{name}: expected a number from 0, got -1"):
        AssessQualityd(**limits)
