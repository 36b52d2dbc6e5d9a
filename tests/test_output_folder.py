"""An output folder that several runs write into, one after the other: what is done already, and whose it is."""

from __future__ import annotations

import csv
import errno
import json
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from builders import KINDS, another, listed, results, times, touch
from filelock import FileLock
from PIL import Image

from drive_seg import output_folder
from drive_seg.errors import DriveSegError
from drive_seg.files import sha256
from drive_seg.fov import estimate_fov
from drive_seg.journal import Journal, read_journals
from drive_seg.networks import UNet
from drive_seg.output_folder import OutputFolder
from drive_seg.phantom import make_phantom
from drive_seg.predict import LOST, segment_photographs

TABLES = ("vessels.csv", "failed.csv", "gallery.html", "settings.json")


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


def test_the_settings_of_a_folder_are_told(
    bundle: Path, folder: Path, settings: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    segment_photographs(bundle, [folder / "0.png"], out, settings)
    about = json.loads((out / "settings.json").read_text())
    assert about["weights_sha256"] == sha256(str(settings["checkpoint"])) and about["engine"] == "torch"
    assert about["precision"] == "float32" and about["device"] == "cpu"
    assert {"drive-seg", "python", "torch", "monai"} <= about["versions"].keys()
    assert {"pillow", "tifffile", "nibabel", "pydicom"} <= about["versions"].keys(), "what decodes photographs"
    told = about["settings"]
    assert (told["threshold"], told["adaptation"], told["base_channels"], told["fov_diameter"]) == (0.5, 0.5, 4, 128)
    assert "key_metric" not in told, "which no photograph without annotation has"
    segment_photographs(bundle, [folder / "0.png"], out, {**settings, "threshold": 0.5, "flips": False})
    assert "1 of 1 are done already" in capsys.readouterr().err, "what the config says anyway changes nothing"
    segment_photographs(bundle, [folder / "0.png"], out, {**settings, "dataloader#pin_memory": True})
    assert "1 of 1 are done already" in capsys.readouterr().err, "what only MONAI's engine uses changes nothing, either"


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


def test_names_that_differ_by_case_alone(
    bundle: Path, folder: Path, settings: dict[str, object], tmp_path: Path
) -> None:
    """Not every file system tells their results apart."""
    first, second = another(tmp_path / "A", 7, "Eye.png"), another(tmp_path / "B", 8, "eye.png")
    segment_photographs(bundle, [first], tmp_path / "out", settings)
    with pytest.raises(DriveSegError, match=r"out: Eye is of .*A/Eye\.png, whose results those of .*B/eye\.png would"):
        segment_photographs(bundle, [second], tmp_path / "out", settings)


def test_an_earlier_name_with_accents_taken_apart(tmp_path: Path) -> None:
    case = {"case_id": "\u00e9", "image": str(tmp_path / "b.png")}
    entry = {"case_id": "E\u0301", "photograph": str(tmp_path / "a.png")}
    touch(tmp_path / "a.png", tmp_path / "b.png")
    OutputFolder(tmp_path, "settings").journal(0).add(entry)
    with pytest.raises(DriveSegError, match="expected another output folder"):
        OutputFolder(tmp_path, "settings").refuse_to_replace([case])
    others = [case, {"case_id": "c", "image": entry["photograph"]}]
    assert OutputFolder(tmp_path, "settings").named_as_before(others) == others, "two results would be one file"


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


def test_results_do_not_go_among_the_photographs(
    bundle: Path, folder: Path, settings: dict[str, object], tmp_path: Path
) -> None:
    before = sorted(folder.iterdir())
    for paths in ([folder], [folder / "0.png"]):
        with pytest.raises(DriveSegError, match=r"photographs: .*\.png lies there, choose an output folder without"):
            segment_photographs(bundle, paths, folder / "." / "", settings)
    assert sorted(folder.iterdir()) == before


class Decomposed(list):
    """A folder as ``os.scandir`` lists it where the file system takes accents apart."""

    def __init__(self, entries: Iterable[os.DirEntry[str]]) -> None:
        names = {entry: unicodedata.normalize("NFD", entry.name) for entry in entries}
        super().__init__(SimpleNamespace(name=name, path=e.path, is_file=e.is_file) for e, name in names.items())

    def __enter__(self) -> Decomposed:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def test_a_folder_that_lists_names_in_another_spelling(
    bundle: Path,
    settings: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, real = tmp_path / "out", os.scandir
    another(tmp_path / "in", 7, "Jose\u0301.png")
    monkeypatch.setattr(os, "scandir", lambda path: Decomposed(real(path)) if Path(path) == out else real(path))
    for _ in range(2):
        assert segment_photographs(bundle, [tmp_path / "in"], out, settings) == []
        assert listed(out) == ["Jose\u0301.png"]
    assert "1 of 1 are done already" in capsys.readouterr().err
    monkeypatch.undo()
    assert (out / "Jos\u00e9_vessels.png").is_file()


def test_times_that_a_share_rounds(
    bundle: Path, folder: Path, settings: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The time of a result is exact until the file has left the cache."""
    out = tmp_path / "out"

    def change_times(seconds: float) -> None:
        for path in out.glob("0_*"):
            os.utime(path, ns=(0, path.stat().st_mtime_ns + int(seconds * 1e9)))

    segment_photographs(bundle, [folder / "0.png"], out, settings)
    change_times(-1.9)
    assert segment_photographs(bundle, [folder / "0.png"], out, settings) == []
    assert listed(out) == ["0.png"] and "1 of 1 are done already" in capsys.readouterr().err
    change_times(4)
    segment_photographs(bundle, [folder / "0.png"], out, settings)
    assert "done already" not in capsys.readouterr().err, "somebody has written it later"
    assert not list(out.glob("0_vessels_*")), "the same, as it turns out"


def test_times_of_photographs_that_a_share_rounds(tmp_path: Path) -> None:
    """An outcome, a photograph that was begun, and the mask of its field of view."""
    photograph, mask = tmp_path / "0.png", tmp_path / "0_mask.png"
    case = {"case_id": "0", "image": str(photograph), "fov": str(mask)}
    for path in (photograph, mask):
        path.write_bytes(b"1234")
        os.utime(path, ns=(0, 11_900_000_000))
    folder = OutputFolder(tmp_path, "settings")
    for note in ({"begun": 1}, {"begun": 1}, {"failed": "why"}):
        folder.journal(0).add({**folder.identity(case), **note})

    def known() -> tuple[bool, bool]:
        now = OutputFolder(tmp_path, "settings")
        return "0" in now.latest([case]), "0" in now.begun([case])

    for path in (photograph, mask):
        os.utime(path, ns=(0, 10_000_000_000))
        assert known() == (True, True)
        os.utime(path, ns=(0, 14_000_000_000))
        assert known() == (False, False), "somebody has written it later"
        os.utime(path, ns=(0, 11_900_000_000))
        path.write_bytes(b"12345")
        os.utime(path, ns=(0, 11_900_000_000))
        assert known() == (False, False), "of another size"
        path.write_bytes(b"1234")
        os.utime(path, ns=(0, 11_900_000_000))
    del case["fov"]
    assert known() == (False, False), "its field of view is estimated now"


def test_a_success_counts_whichever_process_failed(tmp_path: Path) -> None:
    """Journals have no common order, and a later run may give a photograph to another process."""
    touch(tmp_path / "0.png", tmp_path / "0_vessels.png")
    case, folder = {"case_id": "0", "image": str(tmp_path / "0.png")}, OutputFolder(tmp_path, "settings")
    status = (tmp_path / "0_vessels.png").stat()
    done = {"saved": {"vessels": "0_vessels.png"}, "stamps": {"0_vessels.png": [status.st_size, status.st_mtime_ns]}}
    folder.journal(0).add({**folder.identity(case), **done})
    folder.journal(1).add({**folder.identity(case), "failed": "why"})
    assert "failed" not in OutputFolder(tmp_path, "settings").latest([case])["0"]


def test_photographs_on_a_share_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "share" / "1.png", tmp_path / "2.png", tmp_path / "out" / "1_vessels.png")
    case = {"case_id": "1", "image": str(tmp_path / "share" / "1.png")}
    folder = OutputFolder(tmp_path / "out", "settings")
    status = (tmp_path / "out" / "1_vessels.png").stat()
    stamps = {"1_vessels.png": [status.st_size, status.st_mtime_ns]}
    folder.journal(0).add({**folder.identity(case), "saved": {"vessels": "1_vessels.png"}, "stamps": stamps})
    exists = Path.exists

    def disconnected(path: Path) -> bool:
        if "share" in path.parts:
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected", str(path))
        return exists(path)

    monkeypatch.setattr(Path, "exists", disconnected)
    assert OutputFolder(tmp_path / "out", "settings").other_cases([]) == []
    namesake = {"case_id": "1", "image": str(tmp_path / "2.png")}
    with pytest.raises(DriveSegError, match=r"1 is of .*share/1\.png, whose results those of .*2\.png would replace"):
        OutputFolder(tmp_path / "out", "settings").refuse_to_replace([namesake])


def test_a_folder_grows_as_long_as_a_process_works(tmp_path: Path) -> None:
    """Whichever process it is; ``meet`` gives one up when nothing has grown for long."""
    folder = OutputFolder(tmp_path, "settings")
    seen = [folder.growth()]
    for rank in (0, 1, 1, 0):
        folder.journal(rank).add({"case_id": "a"})
        seen.append(folder.growth())
        assert folder.growth() == seen[-1] not in seen[:-1]


def test_results_that_are_lost_in_the_course_of_a_run(
    bundle: Path,
    folder: Path,
    settings: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, add = tmp_path / "out", Journal.add

    def lose(journal: Journal, entry: dict[str, Any]) -> None:
        add(journal, entry)
        if entry["case_id"] == "1" and "begun" not in entry:
            (out / "1_vessels.png").unlink()

    monkeypatch.setattr(Journal, "add", lose)
    assert segment_photographs(bundle, [folder / "0.png", folder / "1.png"], out, settings) == [
        (str(folder / "1.png"), LOST)
    ]
    assert (listed(out), listed(out, "failed.csv")) == (["0.png"], ["1.png"])
    assert f"drive-seg: {folder / '1.png'}: {LOST}" in capsys.readouterr().err
    monkeypatch.undo()
    assert segment_photographs(bundle, [folder / "0.png", folder / "1.png"], out, settings) == []


def test_journals_are_read_before_and_after_the_work(
    bundle: Path, folder: Path, settings: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once each, because that takes seconds where there are many thousands of photographs."""
    lines: list[int] = []

    def read(*arguments: Any) -> list[dict[str, Any]]:
        entries = read_journals(*arguments)
        lines.append(len(entries))
        return entries

    monkeypatch.setattr(output_folder, "read_journals", read)
    for _ in range(2):
        segment_photographs(bundle, [folder / "0.png"], tmp_path / "out", settings)
    assert len(lines) <= 2 * 2 and lines[-1] == 2, "of a photograph, that it was begun and what became of it"


def test_leftovers_of_a_killed_run_are_removed(
    bundle: Path, folder: Path, settings: dict[str, object], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    of_pictures = [out / ".1_overlay.0a1b2c3d.jpg", out / ".1_vessels.nii.0a1b2c3d.gz"]
    of_tables = [out / f".{name[0]}.0a1b2c3d{name[1]}" for name in map(os.path.splitext, TABLES)]
    others = [out / ".hidden.png", out / ".photo.of.me.png"]
    namesake = another(tmp_path / "e\u0301", 7)
    of_pictures.append(out / ".e\u0301_0_png_vessels.0a1b2c3d.png")
    for path in (*of_pictures, *of_tables, *others):
        path.write_bytes(b"half a file")
    segment_photographs(bundle, [folder, namesake], out, settings)
    assert not any(path.exists() for path in (*of_pictures, *of_tables)) and all(path.exists() for path in others)
