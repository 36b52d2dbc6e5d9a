"""Datalists: what belongs together, what is trained on and tested on, and what is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from drive_seg.data import annotated_test_cases, case_id, load_datalist, photographs, write_dataset_json
from drive_seg.errors import DriveSegError


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def drive(root: Path, test_annotations: bool = True, masks: bool = True) -> Path:
    """A folder with the names of the real DRIVE."""
    for number in range(1, 41):
        section = "test" if number <= 20 else "training"
        folder = root / section
        touch(folder / "images" / f"{number:02d}_{section}.tif")
        if masks:
            touch(folder / "mask" / f"{number:02d}_{section}_mask.gif")
        if section == "training" or test_annotations:
            touch(folder / "1st_manual" / f"{number:02d}_manual1.gif")
        if section == "test" and test_annotations:
            touch(folder / "2nd_manual" / f"{number:02d}_manual2.gif")
    return root


def ids(cases: list[dict[str, str]]) -> list[str]:
    return [case["case_id"] for case in cases]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("21_training.tif", "21"),
        ("21_manual1.gif", "21"),
        ("01_manual2.gif", "01"),
        ("01_test_mask.gif", "01"),
        ("01_mask.png", "01"),
        ("21_av.png", "21"),
        ("Image_01L.jpg", "Image_01L"),
        ("im0001.ppm.gz", "im0001"),
        ("test.png", "test"),
    ],
)
def test_case_id(name: str, expected: str) -> None:
    assert case_id(name) == expected


def test_drive_pairs_by_id_and_splits_16_4_20(tmp_path: Path) -> None:
    drive(tmp_path)
    (tmp_path / "training" / "images" / "Thumbs.db").write_bytes(b"")
    touch(tmp_path / "training" / "images" / ".hidden.tif")
    sections = {name: load_datalist(tmp_path, name) for name in ("training", "validation", "test")}
    assert {name: len(cases) for name, cases in sections.items()} == {"training": 16, "validation": 4, "test": 20}
    assert ids(sections["validation"]) == ["25", "30", "35", "40"]
    for section, cases in sections.items():
        folder = tmp_path / ("test" if section == "test" else "training")
        for case in cases:
            kind = folder.name
            assert case["image"] == str(folder / "images" / f"{case['case_id']}_{kind}.tif")
            assert case["label"] == str(folder / "1st_manual" / f"{case['case_id']}_manual1.gif")
            assert case["fov"] == str(folder / "mask" / f"{case['case_id']}_{kind}_mask.gif")
    everything = [case["image"] for cases in sections.values() for case in cases]
    assert len(everything) == len(set(everything)) == 40


def test_second_observer_under_a_key_of_its_own(tmp_path: Path) -> None:
    wanted = {"label": "1st_manual", "second": "2nd_manual"}
    drive(tmp_path)
    assert all("second" in case for case in load_datalist(tmp_path, "test", wanted))
    assert not any("second" in case for case in load_datalist(tmp_path, "training", wanted))


def test_absent_masks_and_test_annotations_are_normal(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    drive(tmp_path, test_annotations=False, masks=False)
    assert not any("fov" in case or "label" in case for case in load_datalist(tmp_path, "test"))
    with caplog.at_level(logging.WARNING):
        assert ids(annotated_test_cases(tmp_path)) == ["25", "30", "35", "40"]
    assert "no annotated test cases" in caplog.text and "validation cases instead" in caplog.text


def test_annotated_test_cases_are_the_test_cases(tmp_path: Path) -> None:
    drive(tmp_path)
    assert annotated_test_cases(tmp_path) == load_datalist(tmp_path, "test")


@pytest.mark.parametrize("lost", ["training/1st_manual/23_manual1.gif", "training/mask/23_training_mask.gif"])
def test_a_missing_partner_is_named(tmp_path: Path, lost: str) -> None:
    drive(tmp_path)
    (tmp_path / lost).unlink()
    with pytest.raises(DriveSegError, match=r"23_training\.tif has no partner"):
        load_datalist(tmp_path, "training")


def test_a_partner_without_image_is_named(tmp_path: Path) -> None:
    drive(tmp_path)
    (tmp_path / "training" / "images" / "23_training.tif").unlink()
    with pytest.raises(DriveSegError, match=r"23_manual1\.gif has no image"):
        load_datalist(tmp_path, "training")


def test_two_files_of_one_case(tmp_path: Path) -> None:
    drive(tmp_path)
    touch(tmp_path / "training" / "images" / "23_training.png")
    with pytest.raises(DriveSegError, match="both of case 23"):
        load_datalist(tmp_path, "training")


def test_training_needs_annotations(tmp_path: Path) -> None:
    touch(tmp_path / "training" / "images" / "1.png")
    with pytest.raises(DriveSegError, match=r"1\.png has no annotation '1st_manual'"):
        load_datalist(tmp_path, "training")


def test_folders_without_cases(tmp_path: Path) -> None:
    with pytest.raises(DriveSegError, match="DRIVE layout"):
        load_datalist(tmp_path, "training")
    with pytest.raises(DriveSegError, match="not a folder"):
        load_datalist(tmp_path / "nothing", "training")
    with pytest.raises(DriveSegError, match="section"):
        load_datalist(tmp_path, "train")


def with_json(root: Path, content: object) -> Path:
    (root / "dataset.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return root


def test_dataset_json_counts_where_there_is_one(tmp_path: Path) -> None:
    drive(tmp_path)
    touch(tmp_path / "x" / "a.png", tmp_path / "x" / "a_label.png", tmp_path / "x" / "b.png", tmp_path / "x" / "c.png")
    with_json(
        tmp_path,
        {
            "training": [{"image": "x/a.png", "label": "x/a_label.png"}],
            "validation": [{"case_id": "second", "image": "./x/b.png", "1st_manual": "x/a_label.png"}],
            "test": ["x/c.png"],
        },
    )
    assert load_datalist(tmp_path, "training") == [
        {"case_id": "a", "image": str(tmp_path / "x" / "a.png"), "label": str(tmp_path / "x" / "a_label.png")}
    ]
    assert ids(load_datalist(tmp_path, "validation")) == ["second"]
    assert load_datalist(tmp_path, "test") == [{"case_id": "c", "image": str(tmp_path / "x" / "c.png")}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ([], "expected an object with the keys"),
        ({"training": {}}, "training: expected a list"),
        ({"training": [{"label": "a.png"}]}, "expected the key image"),
        ({"training": [{"image": "none.png"}]}, "there is no file"),
        ({"training": [3]}, "expected a path"),
        ({"training": [{"image": "a.png"}, {"image": "a.png"}]}, "listed twice"),
        ({"training": [{"image": "a.png"}], "test": ["a.png"]}, "is in training and in test"),
    ],
)
def test_a_wrong_dataset_json_is_refused(tmp_path: Path, content: object, message: str) -> None:
    touch(tmp_path / "a.png")
    with pytest.raises(DriveSegError, match=message):
        load_datalist(with_json(tmp_path, content), "test")


def test_written_dataset_json_reads_back(tmp_path: Path) -> None:
    drive(tmp_path)
    sections = {"training": [], "validation": [], "test": []}
    from drive_seg.data import read_drive_layout

    layout = read_drive_layout(tmp_path)
    sections = {"training": layout["training"][:18], "validation": layout["training"][18:], "test": layout["test"]}
    path = write_dataset_json(tmp_path, sections, {"0": "background", "1": "vessel"}, name="DRIVE")
    content = json.loads(path.read_text())
    assert content["name"] == "DRIVE" and content["numTraining"] == 18
    assert content["training"][0]["image"] == "training/images/21_training.tif"
    assert ids(load_datalist(tmp_path, "validation")) == ["39", "40"]


def test_photographs_of_files_and_folders(tmp_path: Path) -> None:
    touch(tmp_path / "a" / "x.jpg", tmp_path / "a" / "notes.txt", tmp_path / "b" / "y.PNG", tmp_path / "b" / "x.tif")
    cases = photographs([tmp_path / "a", tmp_path / "b" / "y.PNG", tmp_path / "a" / "x.jpg"])
    assert [(case["case_id"], Path(case["image"]).name) for case in cases] == [("x", "x.jpg"), ("y", "y.PNG")]
    assert ids(photographs([tmp_path / "a", tmp_path / "b"])) == ["x_jpg", "x_tif", "y"]
    assert ids(photographs(tmp_path / "a")) == ["x"]


def test_photographs_of_one_name_in_two_folders(tmp_path: Path) -> None:
    touch(tmp_path / "a" / "x.jpg", tmp_path / "b" / "x.jpg")
    names = ids(photographs([tmp_path / "a", tmp_path / "b"]))
    assert len(set(names)) == 2 and names[0].endswith("a_x_jpg") and names[1].endswith("b_x_jpg")


def test_no_photographs(tmp_path: Path) -> None:
    with pytest.raises(DriveSegError, match="holds no photograph"):
        photographs(tmp_path)
    with pytest.raises(DriveSegError, match="no such file"):
        photographs([tmp_path / "none.jpg"])
    with pytest.raises(DriveSegError, match="at least one"):
        photographs([])
