"""Datalists: files are paired by case, splits are explicit, and what is wrong is named."""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import ids, touch, write_drive_layout

from drive_seg import data
from drive_seg.data import at_zooms, load_datalist, read_drive_layout, write_dataset_json
from drive_seg.errors import DriveSegError
from drive_seg.names import case_id, list_images
from drive_seg.phantom import write_phantom_dataset
from drive_seg.photographs import photograph_cases
from drive_seg.splits import cases_to_score, fold_cases

SECTIONS = ("training", "validation", "test")
OBSERVERS = {"label": "1st_manual", "second": "2nd_manual"}


def test_drive_gives_16_4_and_20(drive: Path) -> None:
    training, validation, test = (ids(load_datalist(drive, section)) for section in SECTIONS)
    assert validation == ["25", "30", "35", "40"]
    assert training == [str(n) for n in range(21, 41) if n not in (25, 30, 35, 40)] and len(training) == 16
    assert test == [f"{n:02d}" for n in range(1, 21)]


@pytest.mark.parametrize("validation_every", [2, 3, 5, 20])
def test_no_case_is_in_two_sections(drive: Path, validation_every: int) -> None:
    sections = [load_datalist(drive, section, validation_every=validation_every) for section in SECTIONS]
    for one, other in itertools.combinations(sections, 2):
        assert {case["image"] for case in one}.isdisjoint(case["image"] for case in other)
        assert {case["case_id"] for case in one}.isdisjoint(ids(other))
    assert sum(map(len, sections)) == 40
    assert len(sections[1]) == 20 // validation_every


def test_every_file_of_a_case_is_of_that_case(drive: Path) -> None:
    first = load_datalist(drive, "test", OBSERVERS)[0]
    assert {key: Path(value).relative_to(drive).as_posix() for key, value in first.items() if key != "case_id"} == {
        "image": "test/images/01_test.tif",
        "label": "test/1st_manual/01_manual1.gif",
        "second": "test/2nd_manual/01_manual2.gif",
        "fov": "test/mask/01_test_mask.gif",
    }
    for section in SECTIONS:
        for case in load_datalist(drive, section, OBSERVERS):
            files = [Path(value) for key, value in case.items() if key != "case_id"]
            assert all(file.is_absolute() and file.is_file() for file in files)
            assert {case_id(file) for file in files} == {case["case_id"]}
            assert ("second" in case) == (section == "test")


def test_pairing_is_by_case_not_by_position(tmp_path: Path) -> None:
    images = [tmp_path / "training" / "images" / name for name in ("1.tif", "10.tif")]
    manuals = [tmp_path / "training" / "1st_manual" / name for name in ("10_manual1.gif", "1_manual1.gif")]
    touch(*images, *manuals)
    assert list_images(images[0].parent) == images and list_images(manuals[0].parent) == manuals
    cases = load_datalist(tmp_path, "training")
    assert {case["case_id"]: Path(case["label"]).name for case in cases} == {
        "1": "1_manual1.gif",
        "10": "10_manual1.gif",
    }


def test_relative_folders_give_absolute_paths(drive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(drive.parent)
    assert load_datalist(drive.name, "test") == load_datalist(drive, "test")


def test_without_masks_there_is_no_fov(tmp_path: Path) -> None:
    write_drive_layout(tmp_path, range(21, 27), range(1, 3), masks=False)
    cases = [case for section in SECTIONS for case in load_datalist(tmp_path, section)]
    assert len(cases) == 8 and not any("fov" in case for case in cases)


def test_without_a_second_observer_there_is_no_such_key(tmp_path: Path) -> None:
    write_drive_layout(tmp_path, range(21, 27), range(1, 3), second_observer=False)
    assert all(set(case) == {"case_id", "image", "label", "fov"} for case in load_datalist(tmp_path, "test", OBSERVERS))


def test_masks_as_predict_writes_them(tmp_path: Path) -> None:
    names = ("21_training", "eye.v2")
    touch(*(tmp_path / "training" / "images" / f"{name}.tif" for name in names))
    touch(*(tmp_path / "training" / "1st_manual" / f"{name}_vessels.png" for name in names))
    touch(*(tmp_path / "training" / "mask" / f"{name}_fov.png" for name in names))
    cases = load_datalist(tmp_path, "training", validation_every=None)
    assert [(case["case_id"], Path(case["label"]).name, Path(case["fov"]).name) for case in cases] == [
        ("21", "21_training_vessels.png", "21_training_fov.png"),
        ("eye.v2", "eye.v2_vessels.png", "eye.v2_fov.png"),
    ]


def test_an_empty_folder_is_as_good_as_none(small: Path) -> None:
    shutil.rmtree(small / "test" / "2nd_manual")
    (small / "test" / "2nd_manual").mkdir()
    assert not any("second" in case for case in load_datalist(small, "test", OBSERVERS))


def test_hidden_and_other_files_are_no_cases(small: Path) -> None:
    before = load_datalist(small, "training")
    touch(
        small / "training" / "images" / "readme.txt",
        small / "training" / "images" / "._21_training.tif",
        small / "training" / "images" / "Thumbs.db",
        small / "training" / ".ipynb_checkpoints" / "21_training-checkpoint.png",
    )
    assert load_datalist(small, "training") == before


def test_another_annotation_under_the_same_key(small: Path) -> None:
    touch(*(small / "training" / "av" / f"{n}_training_av.png" for n in range(21, 27)))
    cases = load_datalist(small, "training", {"label": "av"})
    assert [Path(case["label"]).name for case in cases] == [f"{n}_training_av.png" for n in (21, 22, 23, 24, 26)]


def test_test_cases_need_no_annotations(tmp_path: Path) -> None:
    write_drive_layout(tmp_path, range(21, 27), range(1, 3), annotated_test=False)
    assert [set(case) for case in load_datalist(tmp_path, "test")] == [{"case_id", "image", "fov"}] * 2


def test_without_test_annotations_validation_stands_in_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_drive_layout(tmp_path, annotated_test=False)
    with caplog.at_level(logging.WARNING):
        cases = cases_to_score(tmp_path)
    assert ids(cases) == ["25", "30", "35", "40"] and all("label" in case for case in cases)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no annotated test cases: scoring the 4 held-out validation cases instead" in caplog.text


def test_with_test_annotations_nothing_stands_in(small: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert ids(cases_to_score(small)) == ids(load_datalist(small, "test")) and not caplog.records


def remove(*names: str) -> Callable[[Path], None]:
    return lambda root: [(root / name).unlink() for name in names] and None


def remove_folder(name: str) -> Callable[[Path], None]:
    return lambda root: shutil.rmtree(root / name)


def add(*names: str) -> Callable[[Path], None]:
    return lambda root: touch(*(root / name for name in names))


def link(name: str, target: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        (root / name).unlink(missing_ok=True)
        (root / name).symlink_to(root / target)

    return make


@pytest.mark.parametrize(("change", "message"), [
    (remove("training/1st_manual/22_manual1.gif"),
     "{root}/training/images/22_training.tif has no partner in {root}/training/1st_manual, "
     "expected a file named 22, 22_av, 22_mask or 22_manual1 (any number, also 22_training_manual1) there"),
    (remove("training/mask/23_training_mask.gif"),
     "{root}/training/images/23_training.tif has no partner in {root}/training/mask, "),
    (remove("training/images/24_training.tif", "training/mask/24_training_mask.gif"),
     "{root}/training/1st_manual/24_manual1.gif has no image in {root}/training/images, "),
    (add("training/mask/99_training_mask.gif"),
     "{root}/training/mask/99_training_mask.gif has no image in {root}/training/images, "),
    (remove_folder("training/images"), "has no image in {root}/training/images"),
    (add("training/images/22_training.png"),
     "{root}/training/images/22_training.png and {root}/training/images/22_training.tif are both of case 22, "
     "expected one file a case"),
    (add("training/1st_manual/22_manual2.gif"), "are both of case 22"),
    (remove_folder("training/1st_manual"), "has no annotation '1st_manual', expected one for every training case"),
    (link("training/images/22_training.tif", "test/images/01_test.tif"),
     "{root}: {root}/test/images/01_test.tif is in training and in test, expected it in one of them"),
    (add(*(f"training/image/{n}.gif" for n in range(21, 27))), "{root}/training/image: expected another name, "),
    (add(*(f"training/person/{n}.gif" for n in range(21, 27))), "{root}/training/person: expected another name, "),
    (add(*(f"training/2nd_Manual/{n}.gif" for n in range(21, 27))),
     "{root}/training/2nd_Manual: expected the name 2nd_manual"),
    (link("training/images/22_training.tif", "training/images/22_training.tif"),
     "'{root}/training/images/22_training.tif': cannot be read ("),
])  # fmt: skip
def test_files_that_do_not_fit(small: Path, change: Callable[[Path], None], message: str) -> None:
    change(small)
    with pytest.raises(DriveSegError) as raised:
        load_datalist(small, "training")
    assert message.format(root=small) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_validation_cases_need_annotations_too(small: Path) -> None:
    sections = {"training": read_drive_layout(small)["training"][:5], "validation": [{
        "case_id": "26", "image": str(small / "training/images/26_training.tif"),
    }]}  # fmt: skip
    write_dataset_json(small, sections, {})
    with pytest.raises(DriveSegError, match=r"26_training\.tif has no annotation '1st_manual', .*every validation"):
        load_datalist(small, "validation")


@pytest.mark.parametrize(("make", "message"), [
    (lambda root: None, "{root} is not a folder"),
    (lambda root: root.mkdir(), "{root} holds no case, expected images in training/images or test/images"),
    (lambda root: touch(root / "somewhere" / "21.tif"), "{root} holds no case"),
    (lambda root: touch(root), "{root} is not a folder"),
])  # fmt: skip
def test_no_dataset(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path / "DRIVE")
    with pytest.raises(DriveSegError) as raised:
        load_datalist(tmp_path / "DRIVE", "training")
    assert f"dataset_dir: {message}".format(root=tmp_path / "DRIVE") in str(raised.value)


def test_arguments(drive: Path) -> None:
    with pytest.raises(DriveSegError, match=r"^section: expected one of training, validation, test, got 'train'$"):
        load_datalist(drive, "train")


def test_training_cases_that_are_asked_for_must_be_there(tmp_path: Path) -> None:
    touch(tmp_path / "test" / "images" / "01_test.tif")
    with pytest.raises(DriveSegError, match="holds no training cases, expected images in training/images or a data"):
        load_datalist(tmp_path, "training")
    assert ids(load_datalist(tmp_path, "test")) == ["01"]


def test_validation_cases_that_are_asked_for_must_be_there(drive: Path) -> None:
    assert len(load_datalist(drive, "training", validation_every=None)) == 20
    with pytest.raises(DriveSegError, match=r"20 training cases leave none for validation.*got None$"):
        load_datalist(drive, "validation", validation_every=None)


@pytest.mark.parametrize("validation_every", [1, 0, -1, 2.5])
def test_validation_must_leave_something_to_train_on(drive: Path, validation_every: Any) -> None:
    with pytest.raises(DriveSegError, match=f"^validation_every: .*got {validation_every}$"):
        load_datalist(drive, "training", validation_every=validation_every)


def test_too_few_cases_to_validate_on(tmp_path: Path) -> None:
    write_drive_layout(tmp_path, range(21, 24), range(1, 3))
    with pytest.raises(DriveSegError, match="its 3 training cases leave none for validation"):
        load_datalist(tmp_path, "validation")
    assert ids(load_datalist(tmp_path, "validation", validation_every=3)) == ["23"]


@pytest.mark.parametrize("form", ["{}{}", "{}_{}", "{}-O{}", "{}O{}"])
def test_both_eyes_of_a_person_are_on_one_side_of_the_split(tmp_path: Path, form: str) -> None:
    sides = "DS" if "O" in form else "LR"
    names = [form.format(number, side) for number in range(11, 21) for side in sides]
    touch(*(tmp_path / "training" / "images" / f"{name}.png" for name in names))
    touch(*(tmp_path / "training" / "1st_manual" / f"{name}.png" for name in names))
    held_out = ids(load_datalist(tmp_path, "validation"))
    assert held_out == [form.format(number, side) for number in (15, 20) for side in sides]
    assert sorted(held_out + ids(load_datalist(tmp_path, "training"))) == names


def test_an_annotation_that_no_case_has(tmp_path: Path) -> None:
    write_drive_layout(tmp_path, range(21, 31), range(1, 3))
    for section in ("training", "validation", "test"):
        with pytest.raises(
            DriveSegError, match=r"annotation: .* has no '1st_manul', expected one of 1st_manual, 2nd_m"
        ):
            load_datalist(tmp_path, section, {"label": "1st_manul"})


def test_an_annotation_that_dataset_json_does_not_name(tmp_path: Path) -> None:
    sections = read_drive_layout(write_drive_layout(tmp_path, range(21, 31), range(1, 3)))
    write_dataset_json(tmp_path, sections, {})
    touch(*(tmp_path / "training" / "av" / f"{number}_av.png" for number in range(21, 31)))
    with pytest.raises(DriveSegError, match=r"has no 'av', .*training/av is there, but dataset\.json alone counts: "):
        load_datalist(tmp_path, "training", {"label": "av"})
    for case in sections["training"]:
        case["av"] = str(tmp_path / "training" / "av" / f"{case['case_id']}_av.png")
    write_dataset_json(tmp_path, sections, {})
    assert all(case["label"].endswith("_av.png") for case in load_datalist(tmp_path, "training", {"label": "av"}))


def test_several_datasets_follow_each_other(tmp_path: Path) -> None:
    folders = [write_drive_layout(tmp_path / name, training=range(21, 31)) for name in ("one", "two")]
    cases = load_datalist(folders, "training")
    alone = load_datalist(folders[1], "training")
    assert ids(cases)[:2] == ["one/21", "one/22"] and ids(cases)[len(alone)] == "two/21"
    assert [case["image"] for case in cases[len(alone) :]] == [case["image"] for case in alone]
    assert len({case["case_id"] for case in cases}) == len(cases) == 2 * len(alone)


def test_no_image_is_in_two_sections_of_two_datasets(tmp_path: Path) -> None:
    folders = [write_drive_layout(tmp_path / name, training=range(21, 31)) for name in ("one", "two")]
    validation = load_datalist(folders[1], "validation")[0]
    write_dataset_json(folders[0], {"training": [{**validation, "1st_manual": validation["label"]}]}, {})
    with pytest.raises(DriveSegError, match=r"one, .*two: .*25_training.tif is in training and in validation"):
        load_datalist(folders, "training")


def test_a_folder_that_is_called_like_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_phantom_dataset(tmp_path / "2026", training=3, test=1, seed=0, height=90, width=90)
    monkeypatch.chdir(tmp_path)
    assert len(load_datalist(2026, "test")) == len(cases_to_score(2026)) == 1
    assert len(fold_cases(2026, "1/3", "training")) == 2
    images = tmp_path / "2026" / "test" / "images"
    images.rename(tmp_path / "2027")
    assert photograph_cases(2027) == photograph_cases([2027]) == photograph_cases("2027")


def test_each_of_several_datasets_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [write_drive_layout(tmp_path / name) for name in ("a", "b")]
    read: list[Path] = []
    as_it_is = data.read_sections
    monkeypatch.setattr(data, "read_sections", lambda root, *others: read.append(root) or as_it_is(root, *others))
    load_datalist(folders, "training")
    assert read == folders


def test_several_datasets_have_names_of_their_own(tmp_path: Path) -> None:
    folders = [write_drive_layout(tmp_path / name / "data", training=range(21, 26)) for name in ("one", "two")]
    with pytest.raises(DriveSegError, match="dataset_dir: expected one or more folders of different names"):
        load_datalist(folders, "training")
    with pytest.raises(DriveSegError, match="got none"):
        load_datalist([], "training")


def test_one_dataset_is_scored_at_a_time(drive: Path) -> None:
    with pytest.raises(DriveSegError, match="dataset_dir: expected one folder, datasets are scored one at a time"):
        cases_to_score([drive, drive])  # type: ignore[arg-type]


def test_every_case_at_every_zoom() -> None:
    cases = [{"case_id": "1"}, {"case_id": "2"}]
    assert at_zooms(cases, [1.0, 0.5]) == [
        {"case_id": "1", "zoom": 1.0},
        {"case_id": "2", "zoom": 1.0},
        {"case_id": "1", "zoom": 0.5},
        {"case_id": "2", "zoom": 0.5},
    ]
