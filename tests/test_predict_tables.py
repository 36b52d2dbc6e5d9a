"""The tables and the page that list the photographs of a folder, and what is kept of earlier ones."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from builders import another, listed
from PIL import Image

from drive_seg.errors import DriveSegError
from drive_seg.phantom import make_phantom
from drive_seg.predict import segment_photographs


def test_measures_in_millimetres_or_none(
    bundle: Path, folder: Path, settings: dict[str, object], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    segment_photographs(bundle, [folder / "0.png"], out, {**settings, "pixel_spacing_mm": 0.02})
    with (out / "vessels.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["skeleton_length_mm"]) == pytest.approx(0.02 * float(row["skeleton_length_px"]), abs=1e-4)
    before = (out / "vessels.csv").read_text()
    segment_photographs(bundle, [folder / "0.png"], out, {**settings, "measure": False})
    assert not (out / "vessels.csv").exists()
    (kept,) = out.glob("vessels_*.csv")
    assert kept.read_text() == before, "what was measured is not lost"


def test_remarks_on_quality_are_counted(
    bundle: Path, folder: Path, settings: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    segment_photographs(bundle, [folder], tmp_path / "out", settings)
    assert "remark in the column quality of vessels.csv: 5 of 5" in capsys.readouterr().err, "they are too small"
    segment_photographs(bundle, [folder], tmp_path / "alone", {**settings, "measure": False})
    assert "a remark" not in capsys.readouterr().err


def test_a_table_that_other_settings_replace_is_kept(
    bundle: Path, folder: Path, settings: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    segment_photographs(bundle, [folder / "0.png"], out, settings)
    before = (out / "vessels.csv").read_text()
    segment_photographs(bundle, [folder / "0.png", folder / "2.png"], out, settings)
    assert not list(out.glob("vessels_*.csv")), "its row is still there"
    segment_photographs(bundle, [folder / "0.png"], out, {**settings, "pixel_spacing_mm": 0.02})
    (kept,) = out.glob("vessels_*.csv")
    assert kept.read_text().startswith(before) and f"kept as {kept.name}" in capsys.readouterr().err
    spacings = [
        json.loads((out / f"settings{suffix}.json").read_text())["settings"]["pixel_spacing_mm"]
        for suffix in ("", kept.stem.removeprefix("vessels"))
    ]
    assert spacings == [0.02, None], "what either was measured with"


@pytest.mark.parametrize("edited", [b"photograph,case_id\nM\xfcller.png,0\n", b"photograph,case_id\n0.png,0,by hand\n"])
def test_a_table_that_was_edited_is_kept(
    bundle: Path, folder: Path, settings: dict[str, object], tmp_path: Path, edited: bytes
) -> None:
    """Saved in another encoding, or with a remark beside the last column."""
    out = tmp_path / "out"
    segment_photographs(bundle, [folder / "0.png"], out, settings)
    written = (out / "vessels.csv").read_bytes()
    (out / "vessels.csv").write_bytes(edited)
    (out / "settings.json").write_bytes(b"\xfc")
    for _ in range(2):
        segment_photographs(bundle, [folder / "0.png"], out, settings)
        (kept,) = out.glob("vessels_*.csv")
        assert kept.read_bytes() == edited and (out / "vessels.csv").read_bytes() == written
    assert kept.with_name(f"settings{kept.stem.removeprefix('vessels')}.json").read_bytes() == b"\xfc"


def test_a_second_folder_is_added_to_the_tables(
    bundle: Path, folder: Path, settings: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    segment_photographs(bundle, [folder], out, settings)
    another(other, 8, "a.png")
    assert segment_photographs(bundle, [other], out, settings) == [], "that of the first folder is not of this run"
    assert listed(out) == ["a.png", "0.png", "1.png", "2.png", "3.png", "4.png"], "other/ comes before photographs/"
    assert listed(out, "failed.csv") == ["broken.png"]
    assert "left out of its tables" not in capsys.readouterr().err
    page = (out / "gallery.html").read_text()
    assert 'src="a_thumbnail.jpg"' in page and 'src="4_thumbnail.jpg"' in page and "broken.png" in page

    (folder / "0.png").unlink()
    (out / "1_overlay.jpg").unlink()
    Image.fromarray(make_phantom(9, 150, 141).image).save(folder / "2.png")
    segment_photographs(bundle, [other], out, settings)
    assert listed(out) == ["a.png", "3.png", "4.png"], "gone, without all its results, changed since"
    assert "of an earlier run: 2 of 5 photographs" in capsys.readouterr().err
    segment_photographs(bundle, [other], out, {**settings, "threshold": 0.3})
    assert listed(out) == ["a.png"]
    assert "of an earlier run: 5 of 5 photographs" in capsys.readouterr().err


def test_a_photograph_that_had_another_name_among_others_is_in_the_tables_once(
    bundle: Path, folder: Path, settings: dict[str, object], tmp_path: Path
) -> None:
    out, other = tmp_path / "out", another(tmp_path / "other", 8)
    segment_photographs(bundle, [folder / "0.png", other], out, settings)
    segment_photographs(bundle, [folder / "0.png"], out, settings)
    with (out / "vessels.csv").open(encoding="utf-8", newline="") as file:
        assert [row["photograph"] for row in csv.DictReader(file)] == [str(other), str(folder / "0.png")]


def test_a_table_that_is_open_elsewhere_costs_no_other(
    bundle: Path, folder: Path, settings: dict[str, object], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / "failed.csv").mkdir(parents=True)  # as little to be deleted as a file that is open on Windows
    with pytest.raises(DriveSegError, match=r"failed\.csv: cannot be deleted \(.*\); is it open in another program\?$"):
        segment_photographs(bundle, [folder / "0.png"], out, settings)
    assert listed(out) == ["0.png"]
