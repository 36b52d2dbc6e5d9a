"""Cases by a ``dataset.json``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from builders import ids, touch

from drive_seg.data import load_datalist, write_dataset_json
from drive_seg.errors import DriveSegError
from drive_seg.names import case_id, list_images
from drive_seg.phantom import write_phantom_dataset

SECTIONS = ("training", "validation", "test")
OBSERVERS = {"label": "1st_manual", "second": "2nd_manual"}


def write_json(root: Path, content: Any) -> Path:
    path = root / "dataset.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """Files whose names say nothing, which only a ``dataset.json`` can put together."""
    root = tmp_path / "named"
    touch(*(root / "files" / f"{kind}{n}.png" for kind in ("photo", "drawn", "circle") for n in range(4)))
    return root


def entry(number: int, **others: str) -> dict[str, str]:
    return {"image": f"files/photo{number}.png", "1st_manual": f"files/drawn{number}.png", **others}


def test_dataset_json(named: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_json(named, {
        "name": "four",
        "training": [entry(2), entry(1, fov="./files/circle1.png", case_id="one")],
        "validation": [{"image": "files/photo0.png", "label": "files/drawn0.png"}],
        "test": ["files/photo3.png"],
    })  # fmt: skip
    monkeypatch.chdir(tmp_path)
    files = named.resolve() / "files"
    assert load_datalist(named, "training") == [
        {
            "case_id": "one",
            "image": str(files / "photo1.png"),
            "fov": str(files / "circle1.png"),
            "label": str(files / "drawn1.png"),
        },
        {"case_id": "photo2", "image": str(files / "photo2.png"), "label": str(files / "drawn2.png")},
    ]
    assert load_datalist(named, "validation") == [
        {"case_id": "photo0", "image": str(files / "photo0.png"), "label": str(files / "drawn0.png")}
    ]
    assert load_datalist(named, "test") == [{"case_id": "photo3", "image": str(files / "photo3.png")}]


def test_dataset_json_is_all_that_counts(small: Path) -> None:
    write_json(small, {"training": [{"image": "training/images/21_training.tif"}], "test": []})
    assert ids(load_datalist(small, "training", {})) == ["21"]
    assert load_datalist(small, "test") == []


def test_dataset_json_that_names_no_validation_cases_is_split(named: Path) -> None:
    write_json(named, {"training": [entry(n) for n in range(4)]})
    assert ids(load_datalist(named, "training", validation_every=2)) == ["photo0", "photo2"]
    assert ids(load_datalist(named, "validation", validation_every=2)) == ["photo1", "photo3"]


@pytest.mark.parametrize(("content", "message"), [
    ("{", "{path}: cannot be read as JSON ("),
    ("", "{path}: cannot be read as JSON ("),
    ([], "{path}: expected an object with the keys training, validation, test"),
    ({"train": []}, "{path}: expected an object with the keys training, validation, test"),
    ({"training": {"image": "files/photo0.png"}}, "{path}: training: expected a list of cases, got dict"),
    ({"training": None}, "{path}: training: expected a list of cases, got NoneType"),
    ({"training": [entry(0), 3]}, "{path}: training[1]: expected a path or an object of paths, got 3"),
    ({"test": [{"image": 1}]}, "{path}: test[0]: image: expected a path, got 1"),
    ({"training": [entry(0, fold=1)]}, "{path}: training[0]: fold: expected a path, got 1"),
    ({"training": [entry(0, mask="files/photo1.png", fov="files/photo0.png")]},
     "expected one file as fov, got "),
    ({"training": [entry(0)], "testing": [entry(1)]}, "{path}: testing: holds cases, expected them in training, "),
    ({"test": [{"label": "files/drawn0.png"}]}, "{path}: test[0]: expected the key image, got label"),
    ({"test": [{}]}, "{path}: test[0]: expected the key image, got nothing"),
    ({"test": ["files/photo9.png"]}, "{path}: test[0]: image: there is no file {root}/files/photo9.png"),
    ({"test": [entry(0, fov="circle0.png")]}, "{path}: test[0]: fov: there is no file {root}/circle0.png"),
    ({"test": [entry(0), entry(0)]}, "{path}: test[1]: case photo0 is listed twice"),
    ({"test": [entry(0, case_id="a"), entry(1, case_id="a")]}, "{path}: test[1]: case a is listed twice"),
    ({"training": [entry(0), entry(1)], "validation": [entry(1)]},
     "{root}/files/photo1.png is in training and in validation"),
    ({"training": [entry(0)], "validation": [entry(1)], "test": [entry(0, case_id="other")]},
     "{root}/files/photo0.png is in training and in test"),
])  # fmt: skip
def test_dataset_json_that_does_not_fit(named: Path, content: Any, message: str) -> None:
    path = write_json(named, content)
    with pytest.raises(DriveSegError) as raised:
        load_datalist(named, "test")
    assert message.format(path=path, root=named) in str(raised.value)


def test_written_dataset_json_gives_the_same_cases(drive: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(drive, root)
    before = {section: load_datalist(root, section, OBSERVERS, validation_every=4) for section in SECTIONS}
    stored = {
        section: [{OBSERVERS.get(key, key): value for key, value in case.items()} for case in cases]
        for section, cases in before.items()
    }
    path = write_dataset_json(root, stored, {"0": "background", "1": "vessel"}, name="DRIVE", licence="none")
    assert path == root / "dataset.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["name"] == "DRIVE" and content["labels"] == {"0": "background", "1": "vessel"}
    assert [content[key] for key in ("numTraining", "numValidation", "numTest")] == [15, 5, 20]
    assert content["validation"][0] == {
        "case_id": "24",
        "image": "training/images/24_training.tif",
        "1st_manual": "training/1st_manual/24_manual1.gif",
        "fov": "training/mask/24_training_mask.gif",
    }
    for section, cases in before.items():
        assert load_datalist(root, section, OBSERVERS) == cases, "the sections are explicit now"

    moved = root.rename(tmp_path / "moved")
    assert ids(load_datalist(moved, "validation")) == ids(before["validation"])


def test_dataset_json_may_say_whose_eye_it_is(named: Path) -> None:
    write_json(named, {"training": [entry(n, person="ab"[n // 2]) for n in range(4)]})
    held_out = load_datalist(named, "validation", validation_every=2)
    assert ids(held_out) == ["photo2", "photo3"] and {case["person"] for case in held_out} == {"b"}
    training = load_datalist(named, "training", validation_every=2)
    cases = [{**case, "1st_manual": case.pop("label")} for case in [*training, *held_out]]
    write_dataset_json(named, {"training": cases}, {})
    assert load_datalist(named, "validation", validation_every=2) == load_datalist(named, "validation", None, 2)
    assert {case["person"] for case in load_datalist(named, "training", validation_every=2)} == {"a"}


def test_a_mask_in_dataset_json_is_that_of_the_field_of_view(named: Path) -> None:
    write_json(named, {"test": [entry(0, mask="files/photo1.png")]})
    (case,) = load_datalist(named, "test")
    assert case["fov"] == str(named.resolve() / "files" / "photo1.png")


def test_a_list_of_cases_as_windows_and_pandas_write_it(tmp_path: Path) -> None:
    write_phantom_dataset(tmp_path, training=2, test=1, seed=0, height=90, width=90)
    folder = tmp_path / "training"
    drawn = {case_id(path): str(path) for path in list_images(folder / "1st_manual")}
    cases = [
        {"image": str(path), "label": drawn[case_id(path)], "person": 7} for path in list_images(folder / "images")
    ]
    content = json.dumps({"training": cases, "validation": cases[:0], "test": []})
    (tmp_path / "dataset.json").write_text(content, encoding="utf-8-sig")
    assert [case["person"] for case in load_datalist(tmp_path, "training", validation_every=None)] == ["7", "7"]


@pytest.mark.parametrize(
    ("names", "persons", "told"), [("ab", "77", True), ("ab", "78", False), (["1L", "1R"], None, True)]
)
def test_a_person_on_both_sides_is_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, names: Sequence[str], persons: str | None, told: bool
) -> None:
    cases = [{"image": f"{name}.png", "label": f"{name}.png"} for name in names]
    for case, of in zip(cases, persons or "", strict=persons is not None):
        case["person"] = of
    for case in cases:
        (tmp_path / case["image"]).touch()
    (tmp_path / "dataset.json").write_text(json.dumps({"training": cases[:1], "validation": cases[1:], "test": []}))
    for section in ("training", "validation", "training"):
        load_datalist(tmp_path, section)
    said = f"persons with images in more than one of training, validation and test: {'1' if persons is None else '7'};"
    assert caplog.text.count(said) == told


def test_equal_numbers_are_not_one_person(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As where training and test images are numbered from 1 each; and folds part persons themselves."""
    for section in ("training", "test"):
        for number in (1, 2):
            for folder in ("images", "1st_manual"):
                path = tmp_path / section / folder / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
    load_datalist(tmp_path, "training", validation_every=2)
    cases = [{"image": f"training/images/{number}.png", "label": f"training/images/{number}.png"} for number in (1, 2)]
    listed = {"training": [{**cases[0], "person": "7"}], "validation": [{**cases[1], "person": "7"}]}
    load_datalist(tmp_path, "training", validation_every=None)
    (tmp_path / "dataset.json").write_text(json.dumps(listed))
    load_datalist(tmp_path, "training", validation_every=None)
    assert not caplog.records
