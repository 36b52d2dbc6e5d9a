"""Photographs are segmented into a folder: what is written, what fails, and what becomes of a run that ends early."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from builders import KINDS, outcomes, predict_command, results, times, wait_for
from PIL import Image

from drive_seg.errors import DriveSegError
from drive_seg.fov import estimate_fov
from drive_seg.journal import Journal
from drive_seg.measures import measure_vessels
from drive_seg.phantom import make_phantom
from drive_seg.pictures import SaveVesselsd
from drive_seg.predict import ENDED, LOST, segment_photographs


def test_all_but_the_bad_one(bundle: Path, folder: Path, settings: dict[str, object], tmp_path: Path) -> None:
    out = tmp_path / "out"
    failed = segment_photographs(bundle, [folder], out, settings)
    assert [Path(photograph).name for photograph, _ in failed] == ["broken.png"]
    assert set(results(out)) == {f"{number}_{kind}" for number in range(5) for kind in KINDS}
    with (out / "failed.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["photograph"].endswith("broken.png") and "not an image" in row["reason"]
    with (out / "vessels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["photograph"]).name for row in rows] == [f"{number}.png" for number in range(5)]
    assert [row["case_id"] for row in rows] == [f"{number}" for number in range(5)], "what their files are called"
    assert rows[0]["width_px"] == "141" and rows[0]["height_px"] == "150"
    mask = np.asarray(Image.open(out / "0_vessels.png")) > 0
    fov = estimate_fov(make_phantom(0, 150, 141).image)
    expected = measure_vessels(mask, fov)
    assert float(rows[0]["vessel_density_share"]) == pytest.approx(expected["vessel_density_share"], abs=1e-5)
    assert {*expected, "quality"} < set(rows[0]) and not any(name.endswith("_mm") for name in rows[0])
    with Image.open(out / "0_thumbnail.jpg") as thumbnail, Image.open(out / "0_overlay.jpg") as overlay:
        assert thumbnail.size == (2 * 141, 150), "no larger than the photograph"
        left, right = np.split(np.asarray(thumbnail, dtype=float), 2, axis=1)
        expected_right = np.asarray(overlay, dtype=float)
    original = make_phantom(0, 150, 141).image
    assert np.abs(left - original).mean() < np.abs(left - expected_right).mean()
    assert np.abs(right - expected_right).mean() < np.abs(right - original).mean()
    page = (out / "gallery.html").read_text()
    for number in range(5):
        assert f'src="{number}_thumbnail.jpg"' in page and f'href="{number}_overlay.jpg"' in page
    assert "broken.png" in page and "1 could not be segmented" in page


def test_a_field_of_view_to_correct_and_give_back(
    bundle: Path, folder: Path, settings: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    only = {**settings, "pictures": ["vessels", "fov"]}
    segment_photographs(bundle, [folder / "0.png"], out, only)
    fov = np.asarray(Image.open(out / "0_fov.png"))
    assert fov.dtype == np.uint8 and np.array_equal(fov == 255, estimate_fov(make_phantom(0, 150, 141).image))
    corrected = fov.copy()
    corrected[:75] = 0
    Image.fromarray(corrected).save(out / "0_fov.png")
    segment_photographs(bundle, [folder / "0.png"], out, only, fov_dir=out)
    assert not np.asarray(Image.open(out / "0_vessels.png"))[:75].any()
    assert np.array_equal(np.asarray(Image.open(out / "0_fov.png")), corrected)
    capsys.readouterr()
    segment_photographs(bundle, [folder / "0.png"], out, only, fov_dir=out)
    assert "1 of 1 are done already" in capsys.readouterr().err


def test_what_was_corrected_by_hand_is_kept(
    bundle: Path, folder: Path, settings: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    segment_photographs(bundle, [folder / "0.png", folder / "1.png"], out, settings)
    mask = np.asarray(Image.open(out / "0_vessels.png")).copy()
    mask[70:80, 60:80] = 255
    Image.fromarray(mask).save(out / "0_vessels.png")
    segment_photographs(bundle, [folder / "0.png", folder / "1.png"], out, settings)
    (copy,) = out.glob("?_vessels_*.png")
    assert np.array_equal(np.asarray(Image.open(copy)), mask) and copy.name.startswith("0_")
    assert f"{copy}: a result that was changed by hand" in capsys.readouterr().err
    segment_photographs(bundle, [folder / "0.png", folder / "1.png"], out, {**settings, "threshold": 0.4})
    assert list(out.glob("?_vessels_*.png")) == [copy], "what this project wrote itself is not kept"


def test_what_was_corrected_in_an_editor_of_nifti_is_kept(
    bundle: Path, folder: Path, settings: dict[str, object], tmp_path: Path
) -> None:
    out, values = tmp_path / "out", {**settings, "save_nifti": True}
    segment_photographs(bundle, [folder / "0.png"], out, values)
    corrected = nibabel.Nifti1Image(np.ones((141, 150, 1), np.uint8), np.eye(4))
    nibabel.save(corrected, out / "0_vessels.nii.gz")
    segment_photographs(bundle, [folder / "0.png"], out, values)
    (copy,) = out.glob("0_vessels_*.nii.gz")
    assert (np.asarray(nibabel.load(copy).dataobj) == 1).all()
    assert not (np.asarray(nibabel.load(out / "0_vessels.nii.gz").dataobj) == 1).all()


def test_without_a_journal_only_what_was_corrected_is_kept(
    bundle: Path, folder: Path, settings: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a copy of a folder, whose files are of another time, or where corrected masks were put beforehand."""
    out, photographs = tmp_path / "out", [folder / "0.png", folder / "1.png"]
    segment_photographs(bundle, photographs, out, settings)
    (out / "progress_0.jsonl").unlink()
    mask = np.full((150, 141), 255, np.uint8)
    Image.fromarray(mask).save(out / "0_vessels.png")
    capsys.readouterr()
    segment_photographs(bundle, photographs, out, settings)
    (copy,) = out.glob("?_vessels_*.png")
    assert np.array_equal(np.asarray(Image.open(copy)), mask) and copy.name.startswith("0_")
    assert capsys.readouterr().err.count("a result that was changed by hand") == 1


def test_masks_alone(bundle: Path, folder: Path, settings: dict[str, object], tmp_path: Path) -> None:
    out, alone = tmp_path / "out", tmp_path / "alone"
    segment_photographs(bundle, [folder / "0.png"], out, settings)
    only = {**settings, "pictures": ["vessels"], "measure": False}
    segment_photographs(bundle, str(folder / "0.png"), alone, only)  # one without a list
    assert set(results(alone)) == {"0_vessels.png"} and not (alone / "gallery.html").exists()
    assert (alone / "0_vessels.png").read_bytes() == (out / "0_vessels.png").read_bytes()
    with pytest.raises(DriveSegError, match=r"pictures: expected some of vessels.*got 'masks'"):
        SaveVesselsd(str(out), pictures=["masks"], thumbnail_side=360)


@pytest.mark.parametrize("key", ["dataset_dir", "save"])
def test_keys_without_a_meaning_here(bundle: Path, folder: Path, tmp_path: Path, key: str) -> None:
    with pytest.raises(DriveSegError, match=rf"^{key}: .*expected"):
        segment_photographs(bundle, [folder], tmp_path / "out", {key: "x"})
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names elsewhere are Unicode")
def test_names_that_are_no_text(bundle: Path, folder: Path, settings: dict[str, object], tmp_path: Path) -> None:
    (folder / "broken.png").unlink()
    names = [b"m\xfcller.png", "line\u2028break.png".encode(), "next\x85line.png".encode()]
    for number, name in enumerate(names):
        (folder / f"{number}.png").rename(os.fsdecode(os.fsencode(folder) + b"/" + name))
    for _ in range(2):
        assert segment_photographs(bundle, [folder], tmp_path / "out", settings) == []
        with (tmp_path / "out" / "vessels.csv").open(encoding="utf-8", newline="") as file:
            assert len(list(csv.DictReader(file))) == 5
    assert len(outcomes(tmp_path / "out")) == 5, "nothing was done twice"
    assert not list((tmp_path / "out").glob("vessels_*.csv")), "nothing has changed"
    assert r"m\udcfcller" in (tmp_path / "out" / "gallery.html").read_text(encoding="utf-8")


def test_a_mistake_of_the_program_costs_one_photograph(
    bundle: Path,
    folder: Path,
    settings: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    normal = SaveVesselsd.__call__

    def fails(self: SaveVesselsd, data: dict[str, object]) -> dict[str, object]:
        if data["case_id"] == "3":
            raise ZeroDivisionError("nobody thought of this")
        return normal(self, data)

    monkeypatch.setattr(SaveVesselsd, "__call__", fails)
    failed = dict(segment_photographs(bundle, [folder], tmp_path / "out", settings))
    assert {Path(photograph).name for photograph in failed} == {"3.png", "broken.png"}
    assert failed[str(folder / "3.png")] == "ZeroDivisionError: nobody thought of this"
    assert "Traceback" in capsys.readouterr().err


class Killed(BaseException):
    """Ends a run as a signal ends a process, which can note nothing any more."""


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Case ids in the order that photographs are begun."""
    begun: list[str] = []
    normal = Journal.add

    def noted(self: Journal, entry: dict[str, Any]) -> None:
        if entry.get("begun") == 1:
            begun.append(entry["case_id"])
        normal(self, entry)

    monkeypatch.setattr(Journal, "add", noted)
    return begun


def ends_at(photograph: str, ending: Callable[[], BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    normal = SaveVesselsd.__call__

    def ends(self: SaveVesselsd, data: dict[str, Any]) -> dict[str, Any]:
        if data["case_id"] == photograph:
            raise ending()
        return normal(self, data)

    monkeypatch.setattr(SaveVesselsd, "__call__", ends)


def test_a_photograph_that_ends_its_process_stops_no_other(
    bundle: Path,
    folder: Path,
    settings: dict[str, object],
    tmp_path: Path,
    begun: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is tried last and alone, and after three times no more, unless it has changed."""
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        ends_at("1", Killed, patched)
        for _ in range(3):
            begun.clear()
            with pytest.raises(Killed):
                segment_photographs(bundle, [folder], out, settings)
        assert set(outcomes(out)) == {"0", "2", "3", "4", "broken"} and begun[-1] == "1"
        assert "one at a time at the end, because a run has ended at them: " in capsys.readouterr().err
    begun.clear()
    for _ in range(2):
        failed = {Path(path).name: reason for path, reason in segment_photographs(bundle, [folder], out, settings)}
        assert set(failed) == {"1.png", "broken.png"} and failed["1.png"] == ENDED
        assert f"drive-seg: {folder / '1.png'}: {ENDED}\n" in capsys.readouterr().err
        assert ENDED in (out / "failed.csv").read_text()
        with (out / "vessels.csv").open() as file:
            assert [row["case_id"] for row in csv.DictReader(file)] == ["0", "2", "3", "4"]
    assert begun == ["broken"] * 2, "which is no reason to end"
    os.utime(folder / "1.png", ns=(0, 10**15))
    assert len(segment_photographs(bundle, [folder], out, settings)) == 1 and "1" in begun


def test_a_run_that_is_interrupted_blames_no_photograph(
    bundle: Path,
    folder: Path,
    settings: dict[str, object],
    tmp_path: Path,
    begun: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patched:
        ends_at("1", KeyboardInterrupt, patched)
        for _ in range(4):
            with pytest.raises(KeyboardInterrupt):
                segment_photographs(bundle, [folder], tmp_path / "out", settings)
    begun.clear()
    assert len(segment_photographs(bundle, [folder], tmp_path / "out", settings)) == 1
    assert begun[-1] != "1"


@pytest.mark.parametrize("full", ["for a moment", "for good"])
def test_a_run_that_ends_with_an_error_blames_no_photograph(
    bundle: Path,
    folder: Path,
    settings: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    full: str,
) -> None:
    add, failures = Journal.add, []

    def fails(journal: Journal, entry: dict[str, Any]) -> None:
        if failures and full == "for good":
            raise DriveSegError("still full")
        if entry["case_id"] == "1" and "begun" not in entry:
            failures.append(entry)
            raise DriveSegError("full")
        add(journal, entry)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "add", fails)
        with pytest.raises(DriveSegError, match=r"^full$"):
            segment_photographs(bundle, [folder], tmp_path / "out", settings)
    capsys.readouterr()
    assert len(segment_photographs(bundle, [folder], tmp_path / "out", settings)) == 1
    assert ("one at a time" in capsys.readouterr().err) == (full == "for good")


def test_a_photograph_that_is_replaced_while_it_is_worked_on(
    bundle: Path,
    folder: Path,
    settings: dict[str, object],
    tmp_path: Path,
    begun: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    photograph, normal = folder / "1.png", SaveVesselsd.__call__

    def replaced(self: SaveVesselsd, data: dict[str, object]) -> dict[str, object]:
        if data["case_id"] == "1":
            Image.fromarray(make_phantom(7, 160, 141).image).save(photograph)
        return normal(self, data)

    with monkeypatch.context() as patched:
        patched.setattr(SaveVesselsd, "__call__", replaced)
        failed = segment_photographs(bundle, [photograph, folder / "0.png"], tmp_path / "out", settings)
    assert failed == [(str(photograph), LOST)]
    begun.clear()
    assert segment_photographs(bundle, [photograph, folder / "0.png"], tmp_path / "out", settings) == []
    assert begun == ["1"] and np.asarray(Image.open(tmp_path / "out" / "1_vessels.png")).shape == (160, 141)


def test_masks_of_the_field_of_view(
    bundle: Path, folder: Path, settings: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.png").unlink()
    masks, out = tmp_path / "masks", tmp_path / "out"
    masks.mkdir()
    left = np.zeros((150, 141), dtype=np.uint8)
    left[:, :70] = 255
    for name in ("0_mask.png", "1.png", "unknown.png"):
        Image.fromarray(left).save(masks / name)
    assert segment_photographs(bundle, [folder], out, {**settings, "threshold": 0.0}, fov_dir=masks) == []
    assert "3 of 5 photographs have no mask there" in capsys.readouterr().err
    found = {number: np.asarray(Image.open(out / f"{number}_vessels.png")) for number in range(5)}
    assert all(np.array_equal(found[number], left) for number in (0, 1)) and not np.array_equal(found[2], left)

    before = times(out)
    Image.fromarray(255 - left).save(masks / "1.png")
    segment_photographs(bundle, [folder], out, {**settings, "threshold": 0.0}, fov_dir=masks)
    assert {name.split("_")[0] for name, stamp in times(out).items() if stamp != before[name]} == {"1"}
    segment_photographs(bundle, [folder], out, {**settings, "threshold": 0.0})
    assert not np.array_equal(np.asarray(Image.open(out / "0_vessels.png")), left), "found now"

    Image.fromarray(left[:100]).save(masks / "0_mask.png")
    ((_, reason),) = segment_photographs(bundle, [folder], tmp_path / "another", settings, fov_dir=masks)
    assert "0_mask.png: fov: expected the size of" in reason
    with pytest.raises(DriveSegError, match=r"masks: holds no mask of the photographs, expected files such as 2_mask"):
        segment_photographs(bundle, [folder / "2.png"], tmp_path / "none", settings, fov_dir=masks)


@pytest.mark.slow
def test_killed_in_the_middle(folder: Path, settings: dict[str, object], tmp_path: Path) -> None:
    """No half-written result remains, and the second run ends with what an undisturbed one gives."""
    for number in range(5, 40):
        (folder / f"{number}.png").write_bytes((folder / f"{number % 5}.png").read_bytes())
    out, clean = tmp_path / "out", tmp_path / "clean"
    process = subprocess.Popen([sys.executable, *predict_command(folder, out, settings)], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: len(list(out.glob("*_overlay.jpg"))) >= 6, process)
    finally:
        process.kill()
        process.wait(timeout=60)
    for path in out.glob("[!.]*.png"):
        with Image.open(path) as picture:
            picture.load()
    killed_after = len(outcomes(out))
    assert 0 < killed_after < 41
    for target in (out, clean):
        done = subprocess.run(
            [sys.executable, *predict_command(folder, target, settings)], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 1 and "1 could not be segmented" in done.stderr
    assert results(out) == results(clean), "and no temporary file is left"
    assert len(outcomes(out)) < 41 + killed_after, "what was done was not done again"
