"""Which cases are trained on, held out and scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from builders import write_drive_layout
from monai.bundle import ConfigParser
from running import overrides, workflow_of

from drive_seg.configs import config_files
from drive_seg.errors import DriveSegError
from drive_seg.splits import cases_to_score, fold_cases, parse_fold


def test_an_estimated_field_of_view_is_told_of(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.png").touch()
    cases = [{"image": f"{name}.png", "label": f"{name}.png", "mask": f"{name}.png"} for name in "ab"]
    (tmp_path / "dataset.json").write_text(json.dumps({"test": cases, "estimatedFov": ["a"]}))
    assert [case["fov_source"] for case in cases_to_score(tmp_path)] == ["estimated", "published mask"]


def test_without_test_annotations_the_validation_cases_are_scored(phantoms: Path, tmp_path: Path) -> None:
    listed = [{"case_id": case["case_id"], "image": case["image"]} for case in cases_to_score(phantoms, "test")]
    held_out = [
        {key: case[key] for key in ("case_id", "image", "label")} for case in cases_to_score(phantoms, "validation")
    ]
    content = {"training": [], "validation": held_out, "test": listed, "estimatedFov": []}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    cases = cases_to_score(tmp_path, "test")
    assert [case["case_id"] for case in cases] == [case["case_id"] for case in held_out]
    assert {case["section"] for case in cases} == {"validation"}
    assert {case["fov_source"] for case in cases} == {"estimated"}


def test_folds_are_apart_and_complete(phantoms: Path) -> None:
    test = {case["case_id"] for case in cases_to_score(phantoms, "test")}
    seen: list[str] = []
    for number in (1, 2, 3):
        held_out = {case["case_id"] for case in fold_cases(phantoms, f"{number}/3", "validation")}
        trained_on = {case["case_id"] for case in fold_cases(phantoms, f"{number}/3", "training")}
        assert held_out and not held_out & trained_on and len(held_out | trained_on) == 6
        assert not (held_out | trained_on) & test
        seen += held_out
    assert len(seen) == len(set(seen)) == 6


def test_both_eyes_of_a_person_are_in_one_fold(tmp_path: Path) -> None:
    ids = [f"Image_{person:02}{side}" for person in range(1, 6) for side in "LR"]
    for case_id in ids:
        (tmp_path / f"{case_id}.png").touch()
    listed = [{"case_id": i, "image": f"{i}.png", "label": f"{i}.png"} for i in ids]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": listed[:8], "validation": listed[8:], "test": []}))
    folds = [[case["case_id"] for case in fold_cases(tmp_path, f"{number}/4", "validation")] for number in range(1, 5)]
    assert sorted(case_id for fold in folds for case_id in fold) == ids
    for fold in folds:
        assert fold == [f"{person}{side}" for person in sorted({case_id[:-1] for case_id in fold}) for side in "LR"]
    with pytest.raises(DriveSegError, match="at least 6 persons"):
        fold_cases(tmp_path, "1/6", "training")
    (tmp_path / "dataset.json").write_text(json.dumps({"training": listed[:2], "test": listed[2:]}))
    with pytest.raises(DriveSegError, match="at least 2 persons for 2 folds, got 1"):
        fold_cases(tmp_path, "1/2", "training")


def test_folds_do_not_follow_the_order_of_ids(tmp_path: Path) -> None:
    """HRF names its images 01_dr, 01_g, 01_h, 02_dr, …: every third one shows the same disease."""
    ids = [f"{number:02}_{disease}" for number in range(1, 10) for disease in ("dr", "g", "h")]
    listed = [{"image": f"{i}.png", "case_id": i, "label": f"{i}.png"} for i in ids]
    for case_id in ids:
        (tmp_path / f"{case_id}.png").touch()
    (tmp_path / "dataset.json").write_text(json.dumps({"training": listed}))
    for fold in ("1/3", "2/3", "3/3"):
        held_out = [case["case_id"].rpartition("_")[2] for case in fold_cases(tmp_path, fold, "validation")]
        assert len(held_out) == 9 and set(held_out) == {"dr", "g", "h"}


def test_folds_need_ids_that_differ(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.png").touch()
    cases = [{"image": f"{name}.png", "label": f"{name}.png", "case_id": "01"} for name in "ab"]
    cases.append({"image": "c.png", "label": "c.png", "case_id": "02"})
    (tmp_path / "dataset.json").write_text(json.dumps({"training": cases[1:], "validation": cases[:1]}))
    with pytest.raises(DriveSegError, match=r"training and validation cases of different ids .* got twice: 01 "):
        fold_cases(tmp_path, "1/2", "training")


def test_folds_of_several_datasets_are_those_of_each(tmp_path: Path) -> None:
    """What a network has been trained on by one of two datasets is not held out where that one is scored."""
    folders = [tmp_path / name for name in ("seven", "ten")]
    for folder, count in zip(folders, (7, 10), strict=True):
        write_drive_layout(folder, training=range(21, 21 + count))
    for fold in ("1/3", "2/3", "3/4"):
        trained_on = [case["image"] for case in fold_cases(folders, fold, "training")]
        for folder in folders:
            held_out = [case["image"] for case in fold_cases(folder, fold, "validation")]
            assert held_out and not set(held_out) & set(trained_on)
            assert {case["image"] for case in fold_cases(folders, fold, "validation")} >= set(held_out)
    with pytest.raises(DriveSegError, match="at least 8 persons"):
        fold_cases(folders, "1/8", "training")


def test_folds_of_several_datasets_share_no_image(tmp_path: Path) -> None:
    """The same photograph under two ids is held out by one dataset and trained on by the other."""
    write_drive_layout(tmp_path / "one", training=range(21, 25))
    images = sorted((tmp_path / "one" / "training" / "images").iterdir())
    annotations = sorted((tmp_path / "one" / "training" / "1st_manual").iterdir())
    renamed = [
        {"case_id": name, "image": f"../{image.relative_to(tmp_path)}", "label": f"../{label.relative_to(tmp_path)}"}
        for name, image, label in zip("abcd", images, annotations, strict=True)
    ]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "dataset.json").write_text(json.dumps({"training": renamed}))
    for section in ("training", "validation"):
        with pytest.raises(DriveSegError, match=r"one, .*other: .*_training\.tif is in training and in validation"):
            fold_cases([tmp_path / "one", tmp_path / "other"], "1/2", section)


@pytest.mark.parametrize("fold", ["0/5", "6/5", "1/1", "1", "a/b", None])
def test_what_is_no_fold(fold: Any) -> None:
    with pytest.raises(DriveSegError, match="k/n"):
        parse_fold(fold)


def test_fold_config_trains_without_the_cases_it_holds_out(bundle: Path, phantoms: Path, tmp_path: Path) -> None:
    workflow = workflow_of(bundle, ["train", "fold"], **overrides(phantoms, tmp_path, fold="2/3"))
    ids = {
        part: {case["case_id"] for case in workflow.parser.get_parsed_content(f"{part}#dataset#data")}
        for part in ("train", "validate")
    }
    assert len(ids["train"]) == 4 and len(ids["validate"]) == 2 and not ids["train"] & ids["validate"]


@pytest.mark.parametrize("names", [["train", "fold", "any_camera"], ["train", "any_camera", "fold"]])
def test_a_fold_and_another_overlay_go_together_in_any_order(bundle: Path, phantoms: Path, names: list[str]) -> None:
    parser = ConfigParser()
    parser.read_config(config_files(bundle, *names))
    parser.update({"bundle_root": str(bundle), "dataset_dir": str(phantoms), "fold": "1/3"})
    training = parser.get_parsed_content("train::dataset::data")
    held_out = {case["case_id"] for case in parser.get_parsed_content("validate::dataset::data")}
    zooms = parser.get_parsed_content("zooms")
    assert held_out and not held_out & {case["case_id"] for case in training}
    assert sorted({case["zoom"] for case in training}) == sorted(zooms)
    assert len(training) == len(zooms) * (6 - len(held_out))
