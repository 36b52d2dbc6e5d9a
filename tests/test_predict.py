from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from drive_seg.errors import DriveSegError
from drive_seg.files import sha256
from drive_seg.fov import estimate_fov
from drive_seg.journal import Journal, read_journals
from drive_seg.measures import measure_vessels
from drive_seg.networks import UNet
from drive_seg.phantom import make_phantom
from drive_seg.pictures import SaveVesselsd
from drive_seg.predict import segment_photographs

SMALL = {"base_channels": 4, "depth": 3, "fov_diameter": 128, "precision": "float32", "engine": "torch"}
KINDS = ("vessels.png", "probability.png", "overlay.jpg", "thumbnail.jpg")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five photographs and one that is none."""
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for number in range(5):
        Image.fromarray(make_phantom(number, 150, 141).image).save(photographs / f"{number}.png")
    (photographs / "broken.png").write_bytes(b"not an image")
    return photographs


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, object]:
    torch.manual_seed(0)
    torch.save(UNet(base_channels=4, depth=3).state_dict(), tmp_path / "model.pt")
    return {**SMALL, "checkpoint": str(tmp_path / "model.pt")}


def results(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".png", ".jpg")}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.suffix in (".png", ".jpg")}


def test_two_runs_in_one_folder(bundle: Path, folder: Path, settings: dict[str, object], tmp_path: Path) -> None:
    """The second would replace pictures of the first, and neither's tables would tell of all of them."""
    out = tmp_path / "out"
    out.mkdir()
    with FileLock(out / ".predict.lock"), pytest.raises(DriveSegError, match="out: another run is writing into"):
        segment_photographs(bundle, [folder], out, settings)
    assert results(out) == {}
    segment_photographs(bundle, [folder / "0.png"], out, settings)
    with pytest.raises(DriveSegError, match="nothing: the config has no such key") as raised:
        segment_photographs(bundle, [folder], out, {**settings, "nothing": 1})
    segment_photographs(bundle, [folder / "1.png"], out, settings)
    assert raised.value.__traceback__ is not None, "what the failed run held is still held"
    assert {name[0] for name in results(out)} == {"0", "1"}, "a run that has failed stands in no other's way"


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
    page = (out / "gallery.html").read_text()
    for number in range(5):
        assert f'src="{number}_thumbnail.jpg"' in page and f'href="{number}_overlay.jpg"' in page
    assert "broken.png" in page and "1 could not be segmented" in page


def test_run_again_only_what_is_missing_is_done(
    bundle: Path, folder: Path, settings: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    segment_photographs(bundle, [folder], out, settings)
    before, first = times(out), results(out)
    (out / "2_overlay.jpg").unlink()
    Image.fromarray(make_phantom(9, 150, 141).image).save(folder / "broken.png")  # mended
    capsys.readouterr()
    assert segment_photographs(bundle, [folder], out, settings) == []
    assert "4 of 6 are done already" in capsys.readouterr().err
    after = times(out)
    redone = {name for name in after if after[name] != before.get(name)}
    assert redone == {f"{name}_{kind}" for name in ("2", "broken") for kind in KINDS}
    assert {name: results(out)[name] for name in first} == first
    assert not (out / "failed.csv").exists()


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


def test_the_settings_of_a_folder_are_told(
    bundle: Path, folder: Path, settings: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    segment_photographs(bundle, [folder / "0.png"], out, settings)
    about = json.loads((out / "settings.json").read_text())
    assert about["weights_sha256"] == sha256(str(settings["checkpoint"])) and about["engine"] == "torch"
    assert about["precision"] == "float32" and about["device"] == "cpu"
    assert {"drive-seg", "python", "torch", "monai"} <= about["versions"].keys()
    told = about["settings"]
    assert (told["threshold"], told["adaptation"], told["base_channels"], told["fov_diameter"]) == (0.5, 0.5, 4, 128)
    segment_photographs(bundle, [folder / "0.png"], out, {**settings, "threshold": 0.5, "flips": False})
    assert "1 of 1 are done already" in capsys.readouterr().err, "what the config says anyway changes nothing"


def test_a_photograph_keeps_the_name_of_its_results(
    bundle: Path, settings: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Patient A is segmented first, then A and B, who call their photographs alike."""
    for number, patient in enumerate("AB"):
        (tmp_path / patient).mkdir()
        Image.fromarray(make_phantom(number, 150, 141).image).save(tmp_path / patient / "L.png")
    out = tmp_path / "out"
    segment_photographs(bundle, [tmp_path / "A"], out, settings)
    segment_photographs(bundle, [tmp_path / "A", tmp_path / "B"], out, settings)
    assert "1 of 2 are done already" in capsys.readouterr().err
    assert {path.name for path in out.glob("*_vessels.png")} == {"L_vessels.png", "B_L_png_vessels.png"}
    with (out / "vessels.csv").open() as file:
        assert [row["case_id"] for row in csv.DictReader(file)] == ["L", "B_L_png"]


def test_masks_alone(bundle: Path, folder: Path, settings: dict[str, object], tmp_path: Path) -> None:
    out, alone = tmp_path / "out", tmp_path / "alone"
    segment_photographs(bundle, [folder / "0.png"], out, settings)
    segment_photographs(bundle, [folder / "0.png"], alone, {**settings, "pictures": ["vessels"], "measure": False})
    assert set(results(alone)) == {"0_vessels.png"} and not (alone / "gallery.html").exists()
    assert (alone / "0_vessels.png").read_bytes() == (out / "0_vessels.png").read_bytes()
    with pytest.raises(DriveSegError, match=r"pictures: expected some of vessels.*got 'masks'"):
        SaveVesselsd(str(out), pictures=["masks"])


@pytest.mark.parametrize("key", ["dataset_dir", "save"])
def test_keys_without_a_meaning_here(bundle: Path, folder: Path, tmp_path: Path, key: str) -> None:
    with pytest.raises(DriveSegError, match=rf"^{key}: .*expected"):
        segment_photographs(bundle, [folder], tmp_path / "out", {key: "x"})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", ["photograph", "setting", "weights"])
def test_what_has_changed_is_done_again(
    bundle: Path, folder: Path, settings: dict[str, object], tmp_path: Path, change: str
) -> None:
    out = tmp_path / "out"
    segment_photographs(bundle, [folder], out, settings)
    before = times(out)
    if change == "photograph":
        Image.fromarray(make_phantom(7, 150, 141).image).save(folder / "1.png")
    elif change == "weights":
        torch.save(UNet(base_channels=4, depth=3).state_dict(), tmp_path / "model.pt")
    else:
        settings = {**settings, "threshold": 0.3}
    segment_photographs(bundle, [folder], out, settings)
    redone = {name.split("_")[0] for name, stamp in times(out).items() if stamp != before[name]}
    assert redone == ({"1"} if change == "photograph" else {"0", "1", "2", "3", "4"})


def another(folder: Path, number: int, name: str = "0.png") -> Path:
    """A photograph of a name that there is already, in another folder."""
    folder.mkdir(exist_ok=True)
    Image.fromarray(make_phantom(number, 150, 141).image).save(folder / name)
    return folder / name


def test_results_of_other_settings_are_not_taken_for_those_of_these(
    bundle: Path, folder: Path, settings: dict[str, object], tmp_path: Path
) -> None:
    """The journal knows both, the files are of the last."""
    out = tmp_path / "out"
    for changes in ({}, {"threshold": 0.3}, {}):
        segment_photographs(bundle, [folder / "0.png"], out, {**settings, **changes})
        mask = np.asarray(Image.open(out / "0_vessels.png"))
        probability = np.asarray(Image.open(out / "0_probability.png"))
        fov = estimate_fov(make_phantom(0, 150, 141).image)
        assert np.array_equal(mask > 0, (probability >= changes.get("threshold", 0.5) * 65535) & fov)


def test_results_of_another_photograph_are_not_replaced(
    bundle: Path, folder: Path, settings: dict[str, object], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    segment_photographs(bundle, [folder / "0.png"], out, settings)
    before = results(out)
    other = another(tmp_path / "other", 8)
    with pytest.raises(
        DriveSegError, match=r"out: 0 is of .*photographs/0\.png, whose results those of .*other/0\.png"
    ):
        segment_photographs(bundle, [other], out, settings)
    assert results(out) == before
    (folder / "0.png").rename(folder / "moved.png")
    segment_photographs(bundle, [other], out, settings)
    assert results(out) != before


def listed(out: Path, table: str = "vessels.csv") -> list[str]:
    with (out / table).open(encoding="utf-8", newline="") as file:
        return [Path(row["photograph"]).name for row in csv.DictReader(file)]


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


def test_results_do_not_go_among_the_photographs(
    bundle: Path, folder: Path, settings: dict[str, object], tmp_path: Path
) -> None:
    before = sorted(folder.iterdir())
    for paths in ([folder], [folder / "0.png"]):
        with pytest.raises(DriveSegError, match=r"photographs: .*\.png lies there, choose an output folder without"):
            segment_photographs(bundle, paths, folder / "." / "", settings)
    assert sorted(folder.iterdir()) == before


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
    assert len(read_journals(tmp_path / "out", "progress_*.jsonl")) == 5, "nothing was done twice"
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


def test_journal_with_a_line_cut_off(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "progress_0.jsonl")
    journal.add({"case_id": "a"})
    journal.add({"case_id": "b"})
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:-5])
    journal.add({"case_id": "c"})
    assert read_journals(tmp_path, "progress_*.jsonl") == [{"case_id": "a"}, {"case_id": "c"}]
    (tmp_path / "progress_1.jsonl").write_bytes(b"\xff\x00garbage\n7\n[]")
    assert len(read_journals(tmp_path, "progress_*.jsonl")) == 2


def test_a_journal_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(DriveSegError, match=r"progress_0\.jsonl: cannot be written"):
        Journal(tmp_path / "absent" / "progress_0.jsonl").add({})


def test_leftovers_of_a_killed_run_are_removed(
    bundle: Path, folder: Path, settings: dict[str, object], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    ours, others = out / ".1_overlay.0a1b2c3d.jpg", [out / ".hidden.png", out / ".photo.of.me.png"]
    for path in (ours, *others):
        path.write_bytes(b"half a file")
    segment_photographs(bundle, [folder], out, settings)
    assert not ours.exists() and all(path.exists() for path in others)


def command(folder: Path, out: Path, settings: dict[str, object]) -> list[str]:
    overrides = [f"--{key}={value}" for key, value in settings.items()]
    return ["-m", "drive_seg.cli", "predict", str(folder), "--output-dir", str(out), *overrides]


@pytest.mark.slow
def test_killed_in_the_middle(folder: Path, settings: dict[str, object], tmp_path: Path) -> None:
    """No half-written result remains, and the second run ends with what an undisturbed one gives."""
    for number in range(5, 40):
        (folder / f"{number}.png").write_bytes((folder / f"{number % 5}.png").read_bytes())
    out, clean = tmp_path / "out", tmp_path / "clean"
    process = subprocess.Popen([sys.executable, *command(folder, out, settings)], stderr=subprocess.DEVNULL)
    while len(list(out.glob("*_overlay.jpg"))) < 6:
        assert process.poll() is None, "it was over before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for path in out.glob("[!.]*.png"):
        with Image.open(path) as picture:
            picture.load()
    killed_after = len(read_journals(out, "progress_*.jsonl"))
    assert 0 < killed_after < 41
    for target in (out, clean):
        done = subprocess.run([sys.executable, *command(folder, target, settings)], capture_output=True, text=True)
        assert done.returncode == 1 and "1 could not be segmented" in done.stderr
    assert results(out) == results(clean), "and no temporary file is left"
    assert len(read_journals(out, "progress_*.jsonl")) < 41 + killed_after, "what was done was not done again"


@pytest.mark.slow
def test_shared_out_over_processes(bundle: Path, folder: Path, settings: dict[str, object], tmp_path: Path) -> None:
    out, alone = tmp_path / "out", tmp_path / "alone"
    segment_photographs(bundle, [folder], alone, settings)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", *command(folder, out, settings)],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert "1 could not be segmented" in done.stderr, done.stderr[-3000:]
    assert results(out) == results(alone)
    journals = [path.read_text().splitlines() for path in sorted(out.glob("progress_*.jsonl"))]
    notes = [[json.loads(line)["case_id"] for line in lines if line] for lines in journals]
    assert [len(names) for names in notes] == [3, 3] and not set(notes[0]) & set(notes[1])
    assert (out / "gallery.html").read_text() == (alone / "gallery.html").read_text()
    assert (out / "failed.csv").read_text() == (alone / "failed.csv").read_text()
