"""The weights that are shipped find what they found when they were measured, within the rounding of other machines."""

from __future__ import annotations

import pytest
from realdata import real_data

import drive_seg
from drive_seg.demo import RETINA
from drive_seg.metrics import confusion
from drive_seg.readers import read_image


@pytest.mark.parametrize(("adaptation", "dice"), [(0.0, 0.8442), (0.5, 0.8432)])
def test_a_photograph_of_chase_db1(adaptation: float, dice: float) -> None:
    """Of its test images, which the weights have not seen."""
    folder = real_data("CHASE_DB1")
    segment = drive_seg.load(engine="torch", precision="float32", adaptation=adaptation)
    found = segment(folder / "Image_14L.jpg")
    label = read_image(folder / "Image_14L_1stHO.png", "binary") > 0
    assert confusion(found.mask, label, found.fov).scores()["dice"] == pytest.approx(dice, abs=0.002)


@pytest.mark.parametrize(("adaptation", "share"), [(0.0, 0.1040), (0.5, 0.1012)])
def test_the_share_of_vessels_in_a_photograph_without_annotation(adaptation: float, share: float) -> None:
    """It comes with scikit-image, so that this runs where there are no datasets."""
    found = drive_seg.load(engine="torch", precision="float32", adaptation=adaptation)(RETINA)
    assert found.mask[found.fov].mean() == pytest.approx(share, abs=0.001)
