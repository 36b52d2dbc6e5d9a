"""Photographs without annotation: found, named, told of when passed over."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from builders import ids, touch

from drive_seg.errors import DriveSegError
from drive_seg.photographs import left_out, photograph_cases, with_fov_masks


def test_names_of_nifti_files_have_two_suffixes(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("eye.nii.gz", "a.b.NII.GZ", "c.nii", "d.png", "d.nii.gz")))
    assert [case["case_id"] for case in photograph_cases(tmp_path)] == ["a.b", "c", "d_nii_gz", "d_png", "eye"]


def test_photographs_of_files_and_folders_in_the_order_given(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("eyes/b.jpg", "eyes/a.png", "eyes/notes.txt", "z.tif", "y.raw")))
    cases = photograph_cases([tmp_path / "z.tif", str(tmp_path / "eyes"), tmp_path / "y.raw"])
    assert cases == [
        {"case_id": "z", "image": str(tmp_path / "z.tif")},
        {"case_id": "a", "image": str(tmp_path / "eyes/a.png")},
        {"case_id": "b", "image": str(tmp_path / "eyes/b.jpg")},
        {"case_id": "y", "image": str(tmp_path / "y.raw")},
    ]


@pytest.mark.parametrize("kind", [str, Path])
def test_one_photograph_or_folder(tmp_path: Path, kind: type) -> None:
    touch(tmp_path / "a.png")
    expected = [{"case_id": "a", "image": str(tmp_path / "a.png")}]
    assert photograph_cases(kind(tmp_path)) == photograph_cases(kind(tmp_path / "a.png")) == expected


def test_each_photograph_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "a.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    assert ids(photograph_cases(["a.png", tmp_path, "./a.png", "link.png"])) == ["a"]


@pytest.mark.parametrize(("names", "expected"), [
    (["a.png", "a.jpg", "b.jpg"], ["a_png", "a_jpg", "b"]),
    (["one/a.png", "two/a.png"], ["one_a_png", "two_a_png"]),
    (["one/a.png", "two/A.jpg", "b.png"], ["a_png", "A_jpg", "b"]),
    (["one/a.png", "two/a.png", "two/a.jpg"], ["one_a_png", "two_a_png", "a_jpg"]),
    (["a.png", "a.jpg", "a_png.tif"], ["a_png", "a_jpg", "a_png_tif"]),
    (["a.b.png", "a.c.png"], ["a.b", "a.c"]),
])  # fmt: skip
def test_photographs_of_one_name_get_names_of_their_own(tmp_path: Path, names: list[str], expected: list[str]) -> None:
    touch(*(tmp_path / name for name in names))
    found = ids(photograph_cases([tmp_path / name for name in names]))
    assert len(set(found)) == len(names)
    assert all(name.endswith(ending) for name, ending in zip(found, expected, strict=True))


@pytest.mark.parametrize("names", [
    ["r/a/b_c/eye.png", "r/a_b/c/eye.png"],
    ["one/in/a.png", "two/in/a.png", "in/a.png"],
    ["a.png", "A.PNG", "one/a.png"],
    ["one/\u00e9.png", "two/e\u0301.png"],
    ["\u00e9.png", "E\u0301.png"],
    [f"{'x' * 120}/{'y' * 120}/a.png", f"{'x' * 121}/{'y' * 120}/a.png"],
    ["z" * 250 + ".png", "z" * 250 + ".jpg"],
    ["ä" * 120 + ".png", "b.png"],
])  # fmt: skip
def test_every_photograph_has_a_name_that_fits_a_file_system(tmp_path: Path, names: list[str]) -> None:
    touch(*(tmp_path / name for name in names))
    found = ids(photograph_cases([tmp_path / name for name in names]))
    assert len({unicodedata.normalize("NFC", name).casefold() for name in found}) == len(names)
    assert all(len(name.encode()) <= 200 for name in found)
    assert found == ids(photograph_cases([tmp_path / name for name in names])), "the same every time"


def test_masks_of_photographs_that_are_called_alike(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("A/L.png", "B/L.png", "B/R.png")))
    cases = photograph_cases([tmp_path / "A", tmp_path / "B"])
    touch(tmp_path / "masks" / "B_L_png_mask.png", tmp_path / "masks" / "R_mask.png")
    found = with_fov_masks(cases, tmp_path / "masks")
    assert [Path(case.get("fov", "none")).name for case in found] == ["none", "B_L_png_mask.png", "R_mask.png"]
    touch(tmp_path / "masks" / "L.png")
    with pytest.raises(DriveSegError, match=r"L\.png: is of one of 2 photographs of that name, expected A_L_png_mask"):
        with_fov_masks(cases, tmp_path / "masks")


def test_fields_of_view_as_they_were_written(tmp_path: Path) -> None:
    """Of two photographs of one case, each gets its own."""
    touch(*(tmp_path / f"21_{part}.tif" for part in ("test", "training")))
    touch(*(tmp_path / "fovs" / f"21_{part}_fov.png" for part in ("test", "training")))
    cases = with_fov_masks(photograph_cases([tmp_path]), tmp_path / "fovs")
    assert [Path(case["fov"]).name for case in cases] == ["21_test_fov.png", "21_training_fov.png"]


def test_a_mask_whose_name_spells_accents_in_another_way(tmp_path: Path) -> None:
    touch(tmp_path / "Jos\u00e9.jpg", tmp_path / "masks" / "Jose\u0301_mask.png")
    (case,) = with_fov_masks(photograph_cases([tmp_path]), tmp_path / "masks")
    assert Path(case["image"]).is_file() and Path(case["fov"]).is_file(), "as they are called"


def test_a_link_keeps_its_own_name(tmp_path: Path) -> None:
    touch(tmp_path / "blobs" / "9f86d081.png")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "left.png").symlink_to("../blobs/9f86d081.png")
    assert photograph_cases(tmp_path / "snapshot") == [
        {"case_id": "left", "image": str(tmp_path / "snapshot/left.png")}
    ]


def test_a_link_to_itself_is_a_photograph_that_cannot_be_read(tmp_path: Path) -> None:
    touch(tmp_path / "a.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    assert ids(photograph_cases(tmp_path)) == ["a", "loop"]


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    touch(tmp_path / "in" / "a.png", tmp_path / "in" / ".hidden", tmp_path / "none" / "b.jpg")
    assert left_out([tmp_path / "in", tmp_path / "none", tmp_path / "in" / "a.png"]) == []
    touch(tmp_path / "in" / "IM0001", tmp_path / "in" / "notes.txt", tmp_path / "in" / "sub" / "c.png")
    assert left_out([tmp_path / "in"]) == [
        f"{tmp_path / 'in'}: left out, files of other kinds: 2, folders in it, which are not searched: 1"
    ]


@pytest.mark.parametrize(("paths", "message"), [
    (["nothing.png"], "{root}/nothing.png: there is no such file or folder"),
    (["a.png", "nowhere"], "{root}/nowhere: there is no such file or folder"),
    (["empty"], "{root}/empty: holds no photograph, expected files ending in .bmp, .dcm, .dib, .gif, .j2k, .jfif,"),
    (["nested"], ".webp; folders in it are not searched"),
    ([], "expected at least one photograph, got none"),
])  # fmt: skip
def test_no_photograph(tmp_path: Path, paths: list[str], message: str) -> None:
    touch(tmp_path / "a.png", tmp_path / "empty" / "notes.txt", tmp_path / "nested" / "1" / "a.png")
    with pytest.raises(DriveSegError) as raised:
        photograph_cases([tmp_path / path for path in paths])
    assert message.format(root=tmp_path) in str(raised.value)
