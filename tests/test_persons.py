from __future__ import annotations

import pytest

from drive_seg.persons import person


@pytest.mark.parametrize(("name", "whose"), [
    ("Image_01L", "Image_01"), ("Image_01R", "Image_01"), ("7l", "7"), ("p07_OD", "p07"), ("p07OS", "p07"),
    ("p07_os", "p07"), ("10_left", "10"), ("10-right", "10"), ("3 LE", "3"), ("a_b_L", "a_b"),
    ("21", "21"), ("01_dr", "01_dr"), ("01_g", "01_g"), ("color", "color"), ("im0001", "im0001"), ("L", "L"),
    ("_R", "_R"),
])  # fmt: skip
def test_whose_eye_it_is_by_name(name: str, whose: str) -> None:
    assert person({"case_id": name}) == whose
    assert person({"case_id": name, "person": "somebody"}) == "somebody"


def test_spellings_of_accents_are_of_one_person() -> None:
    names = [{"case_id": "Jose\u0301_OD"}, {"case_id": "Jos\u00e9_OS"}, {"case_id": "1", "person": "Jose\u0301"}]
    assert {person(case) for case in names} == {"Jos\u00e9"}
