from __future__ import annotations

import pytest

from drive_seg.classes import class_names
from drive_seg.errors import DriveSegError


def test_names_of_the_vessel_classes() -> None:
    assert class_names(2) == ["class 1"]
    assert class_names(3, ("artery", "vein")) == ["artery", "vein"]


@pytest.mark.parametrize("names", [["vein"], ["artery", "vein", "both"], ["vein", "vein"], "av", [1, 2], ["", "vein"]])
def test_names_that_do_not_fit_the_number_of_classes(names: object) -> None:
    with pytest.raises(DriveSegError, match=r"class_names: expected 2 different names, .* num_classes 3"):
        class_names(3, names)
