"""The weights that are shipped, on a photograph that they have not seen."""

from __future__ import annotations

from realdata import real_data

import drive_seg
from drive_seg.metrics import confusion
from drive_seg.readers import read_image


def test_a_photograph_of_chase_db1() -> None:
    """Of its test images, whose mean is 0.81; the lowest has 0.79."""
    folder = real_data("CHASE_DB1")
    found = drive_seg.load(engine="torch")(folder / "Image_14L.jpg")
    label = read_image(folder / "Image_14L_1stHO.png", "binary") > 0
    assert confusion(found.mask, label, found.fov).scores()["dice"] > 0.78
