"""Names: which case a file is of, and which files are images."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from builders import touch

from drive_seg.errors import DriveSegError
from drive_seg.names import case_id, list_images, picture_name


@pytest.mark.parametrize(("name", "case"), [
    ("21_training.tif", "21"),
    ("21_manual1.gif", "21"),
    ("21_training_mask.gif", "21"),
    ("01_test.tif", "01"),
    ("01_manual2.gif", "01"),
    ("01_test_mask.gif", "01"),
    ("01_test_av.png", "01"),
    ("some/where/Image_01L.jpg", "Image_01L"),
    ("Image_01L_1st_manual.png", "Image_01L_1st"),
    ("01_h.nii.gz", "01_h"),
    ("01_mask.png", "01"),
    ("p1.left.png", "p1.left"),
    ("1.2.840.113_mask.gif", "1.2.840.113"),
    ("21_av.png", "21"),
    ("test.png", "test"),
    ("01_TEST_MASK.GIF", "01"),
    ("test_mask_07.png", "test_mask_07"),
    ("_mask.gif", "_mask"),
])  # fmt: skip
def test_case_id(name: str, case: str) -> None:
    assert case_id(name) == case


def test_accents_are_composed() -> None:
    assert case_id("Jose\u0301_OD_manual1.gif") == case_id("Jos\u00e9_OD_training.tif") == "Jos\u00e9_OD"
    assert picture_name("Jose\u0301.nii.gz") == "Jos\u00e9"


def test_list_images(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("b.TIF", "a.jpeg", "c.txt", ".d.png", "e.nii", "f.NII.GZ", "g.gz", "h.dcm")))
    for folder in ("f.png.d", "series.dcm"):
        (tmp_path / folder).mkdir()
    (tmp_path / "i.png").symlink_to(tmp_path / "gone.png")
    assert [path.name for path in list_images(tmp_path)] == ["a.jpeg", "b.TIF", "e.nii", "f.NII.GZ", "h.dcm", "i.png"]
    assert list_images(tmp_path / "nothing") == []


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DriveSegError, match=f"^{tmp_path}: cannot be read \\(Permission denied\\)$"):
        list_images(tmp_path)
