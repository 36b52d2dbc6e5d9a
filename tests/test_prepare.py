"""Public datasets as their sites distribute them become folders in the layout of DRIVE."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from builders import overlap
from PIL import Image
from public_datasets import DATASETS, MAKERS, SCRIPTS, SIZE, SMALL, annotation, circle, fingerprints, photograph, save
from realdata import real_data

from drive_seg.data import load_datalist
from drive_seg.errors import DriveSegError
from drive_seg.names import case_id
from drive_seg.prepare import main, prepare, read_binary


@pytest.fixture
def source(request: pytest.FixtureRequest, pristine: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of one source to change, CHASE_DB1 unless the test says otherwise."""
    return Path(shutil.copytree(pristine[getattr(request, "param", "chase_db1")], tmp_path / "source"))


def read(path: str | Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("name", MAKERS)
def test_every_dataset_becomes_a_drive_layout(name: str, pristine: dict[str, Path], tmp_path: Path) -> None:
    before = fingerprints(pristine[name])
    prepare(SMALL[name], pristine[name], tmp_path / "out")
    assert fingerprints(pristine[name]) == before

    counts = {"chase_db1": (16, 4, 8), "hrf": (24, 6, 15), "drive": (16, 4, 20), "stare": (8, 2, 10)}[name]
    seen: set[str] = set()
    for section, count in zip(("training", "validation", "test"), counts, strict=True):
        cases = load_datalist(tmp_path / "out", section)
        assert len(cases) == count
        for case in cases:
            assert case["image"] not in seen
            seen.add(case["image"])
            assert {case_id(case[key]) for key in ("image", "fov", "label") if key in case} == {case["case_id"]}
            assert read(case["image"]).shape == (84, 100, 3)
            fov = read(case["fov"]) > 0
            assert overlap(fov, circle()) > 0.98
            if name == "drive" and section == "test":
                assert "label" not in case
            else:
                np.testing.assert_array_equal(read(case["label"]) > 0, annotation() > 0)
                if name != "drive":
                    assert set(np.unique(read(case["label"]))) == {0, 255}

    content = json.loads((tmp_path / "out" / "dataset.json").read_text(encoding="utf-8"))
    assert content["name"] == DATASETS[name].name
    assert content["licence"] and "doi:" in content["reference"]
    cases = [case for section in ("training", "validation", "test") for case in content[section]]
    paths = [value for case in cases for key, value in case.items() if key not in ("case_id", "person")]
    assert paths and not any(Path(path).is_absolute() for path in paths)
    assert not list((tmp_path / "out").rglob(".*"))


@pytest.mark.parametrize("name", MAKERS)
def test_splits_are_explicit_and_disjoint(name: str) -> None:
    dataset = DATASETS[name]
    cases = dataset.training + dataset.validation + dataset.test
    assert len(cases) == len(set(cases)) == {"chase_db1": 28, "hrf": 45, "drive": 40, "stare": 20}[name]
    assert (
        dataset.size == {"chase_db1": (999, 960), "hrf": (3504, 2336), "drive": (565, 584), "stare": (700, 605)}[name]
    )


def test_no_child_of_chase_db1_is_in_two_sections() -> None:
    children = [{case[:-1] for case in cases} for cases in DATASETS["chase_db1"].sections().values()]
    assert [len(group) for group in children] == [8, 2, 4]
    assert len(set.union(*children)) == 14


@pytest.mark.parametrize("name", MAKERS)
def test_again_changes_nothing(name: str, pristine: dict[str, Path], tmp_path: Path) -> None:
    prepare(SMALL[name], pristine[name], tmp_path / "out")
    before = fingerprints(tmp_path / "out")
    prepare(SMALL[name], pristine[name], tmp_path / "out")
    after = fingerprints(tmp_path / "out")
    assert after.pop("dataset.json")[0] == before.pop("dataset.json")[0]
    assert after == before


def test_photographs_keep_every_pixel(pristine: dict[str, Path], tmp_path: Path) -> None:
    prepare(SMALL["chase_db1"], pristine["chase_db1"], tmp_path / "chase")
    copied = tmp_path / "chase" / "training" / "images" / "Image_03R_training.jpg"
    assert copied.read_bytes() == (pristine["chase_db1"] / "Image_03R.jpg").read_bytes()

    prepare(SMALL["stare"], pristine["stare"], tmp_path / "stare")
    stored = read(tmp_path / "stare" / "test" / "images" / "im0001_test.png")
    np.testing.assert_array_equal(stored, read(pristine["stare"] / "stare-images" / "im0001.ppm"))

    prepare(SMALL["drive"], pristine["drive"], tmp_path / "drive")
    for path in pristine["drive"].rglob("*.*"):
        assert (tmp_path / "drive" / path.relative_to(pristine["drive"])).read_bytes() == path.read_bytes()


def test_interrupted_run_leaves_no_half_file_and_can_be_repeated(
    pristine: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    real_write = Path.write_bytes
    writes = []

    def interrupted_write(path: Path, content: bytes) -> int:
        writes.append(path)
        if len(writes) == 7:
            real_write(path, content[: len(content) // 2])
            raise KeyboardInterrupt
        return real_write(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", interrupted_write)
        assert main(SMALL["chase_db1"], [str(pristine["chase_db1"]), str(out)]) == 130
    finished = fingerprints(out)
    assert len(finished) == 6
    assert not (out / "dataset.json").exists()

    prepare(SMALL["chase_db1"], pristine["chase_db1"], out)
    after = fingerprints(out)
    assert len(after) == 28 * 4 + 1
    assert {name: after[name] for name in finished} == finished


def test_damaged_output_is_mended(pristine: dict[str, Path], tmp_path: Path) -> None:
    prepare(SMALL["chase_db1"], pristine["chase_db1"], tmp_path / "out")
    image = tmp_path / "out" / "test" / "images" / "Image_11L_test.jpg"
    image.write_bytes(image.read_bytes()[:100])
    prepare(SMALL["chase_db1"], pristine["chase_db1"], tmp_path / "out")
    assert read(image).shape == (84, 100, 3)


def test_missing_photograph(source: Path, tmp_path: Path) -> None:
    (source / "Image_05L.jpg").unlink()
    with pytest.raises(
        DriveSegError, match=r"expected 20 training files for images .* found 19: there is no Image_05L\.jpg"
    ):
        prepare(SMALL["chase_db1"], source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_partner(source: Path, tmp_path: Path) -> None:
    (source / "Image_12R_2ndHO.png").unlink()
    with pytest.raises(
        DriveSegError, match=r"expected 8 test files for 2nd_manual .* found 7: there is no Image_12R_2ndHO\.png"
    ):
        prepare(SMALL["chase_db1"], source, tmp_path / "out")


def test_case_that_is_not_of_the_dataset(source: Path, tmp_path: Path) -> None:
    shutil.copy(source / "Image_14R.jpg", source / "Image_15L.jpg")
    with pytest.raises(DriveSegError, match=r"Image_15L\.jpg is no case of CHASE_DB1"):
        prepare(SMALL["chase_db1"], source, tmp_path / "out")


def test_two_different_files_for_one_case(source: Path, tmp_path: Path) -> None:
    (source / "copy").mkdir()
    shutil.copy(source / "Image_01L.jpg", source / "copy" / "Image_01L.jpg")
    prepare(SMALL["chase_db1"], source, tmp_path / "out")
    shutil.copy(source / "Image_02L.jpg", source / "copy" / "Image_01L.jpg")
    with pytest.raises(DriveSegError, match=r"Image_01L\.jpg and .*Image_01L\.jpg differ"):
        prepare(SMALL["chase_db1"], source, tmp_path / "out")


def test_wrong_size(source: Path, tmp_path: Path) -> None:
    photograph(1).rotate(90, expand=True).save(source / "Image_03L.jpg")
    with pytest.raises(DriveSegError, match=r"Image_03L\.jpg: expected 100 x 84 pixels, got 84 x 100"):
        prepare(SMALL["chase_db1"], source, tmp_path / "out")


def test_truncated_photograph(source: Path, tmp_path: Path) -> None:
    path = source / "Image_03L.jpg"
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(DriveSegError, match=r"Image_03L\.jpg: cannot be read as a picture"):
        prepare(SMALL["chase_db1"], source, tmp_path / "out")


def test_a_format_whose_reader_starts_another_program(source: Path, tmp_path: Path) -> None:
    postscript = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 {SIZE[0]} {SIZE[1]}\n%%EndComments\nshowpage\n"
    (source / "Image_03L.jpg").write_text(postscript)
    with Image.open(source / "Image_03L.jpg") as picture:
        assert picture.format == "EPS" and picture.size == SIZE, "Pillow would start Ghostscript to load it"
    with pytest.raises(DriveSegError, match=r"Image_03L\.jpg: cannot be read as a picture"):
        prepare(SMALL["chase_db1"], source, tmp_path / "out")


def test_dark_photograph(source: Path, tmp_path: Path) -> None:
    Image.new("RGB", SIZE).save(source / "Image_03L.jpg")
    with pytest.raises(DriveSegError, match=r"Image_03L\.jpg: no field of view found"):
        prepare(SMALL["chase_db1"], source, tmp_path / "out")


def test_grey_photograph(source: Path, tmp_path: Path) -> None:
    photograph(1).convert("L").save(source / "Image_03L.jpg")
    with pytest.raises(DriveSegError, match=r"Image_03L\.jpg: expected a colour photograph \(RGB\), got mode L"):
        prepare(SMALL["chase_db1"], source, tmp_path / "out")


def test_annotation_of_more_than_two_values(source: Path, tmp_path: Path) -> None:
    grey = annotation()
    grey[31, 30:60] = 128
    Image.fromarray(grey).save(source / "Image_04R_1stHO.png")
    with pytest.raises(DriveSegError, match=r"Image_04R_1stHO\.png: expected a picture of two values.*got 3 values"):
        prepare(SMALL["chase_db1"], source, tmp_path / "out")


def test_annotation_outside_the_fov_is_noticed(source: Path, tmp_path: Path) -> None:
    drawn = annotation()
    drawn[:4] = 255
    Image.fromarray(drawn).save(source / "Image_04R_1stHO.png")
    notices = prepare(SMALL["chase_db1"], source, tmp_path / "out")
    assert any("Image_04R_training_mask.png" in notice and "lie outside" in notice for notice in notices)


@pytest.mark.parametrize("value", [1, 255])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_binary_pictures_of_every_kind(value: int, mode: str) -> None:
    if mode == "P":
        picture = Image.fromarray(annotation(value)).convert("L")
        picture.putpalette([0, 0, 0, 1, 1, 1] + [9] * 762)
    elif mode == "1":
        picture = Image.fromarray(annotation(value) > 0)
    else:
        picture = Image.fromarray(annotation(value)).convert(mode)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    np.testing.assert_array_equal(read_binary(Path("x.png"), buffer.getvalue(), SIZE), annotation() > 0)


def test_empty_annotation_is_refused() -> None:
    buffer = io.BytesIO()
    Image.new("L", SIZE).save(buffer, format="PNG")
    with pytest.raises(DriveSegError, match=r"x\.png: expected a picture of two values, 0 and one other, got 1 values"):
        read_binary(Path("x.png"), buffer.getvalue(), SIZE)


@pytest.mark.parametrize("source", ["hrf"], indirect=True)
def test_hrf_without_some_annotations(source: Path, tmp_path: Path) -> None:
    for case in ("11_h", "12_h", "13_h"):
        (source / "manual1" / f"{case}.tif").unlink()
    notices = prepare(SMALL["hrf"], source, tmp_path / "out")
    assert any("11_h, 12_h, 13_h" in notice for notice in notices)
    cases = [case["case_id"] for case in load_datalist(tmp_path / "out", "training")]
    assert len(cases) == 21 and "11_h" not in cases
    assert not list((tmp_path / "out").rglob("11_h*"))


def test_hrf_uses_published_masks_and_estimates_the_others(pristine: dict[str, Path], tmp_path: Path) -> None:
    prepare(SMALL["hrf"], pristine["hrf"], tmp_path / "out")
    for case in ("01_h", "15_dr"):
        (path,) = (tmp_path / "out").rglob(f"{case}_*_mask.png")
        np.testing.assert_array_equal(read(path), circle() * np.uint8(255))
    estimated = json.loads((tmp_path / "out" / "dataset.json").read_text(encoding="utf-8"))["estimatedFov"]
    assert sorted(estimated) == [f"{eye:02d}_g" for eye in range(1, 16)]


@pytest.mark.parametrize("source", ["drive"], indirect=True)
def test_drive_with_test_annotations(source: Path, tmp_path: Path) -> None:
    for case in range(1, 21):
        save(Image.fromarray(annotation()), source / "test" / "1st_manual" / f"{case:02d}_manual1.gif")
        save(Image.fromarray(annotation(1)), source / "test" / "2nd_manual" / f"{case:02d}_manual2.gif")
    prepare(SMALL["drive"], source, tmp_path / "out")
    cases = load_datalist(tmp_path / "out", "test", {"label": "1st_manual", "second": "2nd_manual"})
    assert len(cases) == 20 and all("second" in case for case in cases)

    (source / "test" / "1st_manual" / "07_manual1.gif").unlink()
    with pytest.raises(
        DriveSegError,
        match=r"expected 20 test files for 1st_manual .* found 19: there is no test/1st_manual/07_manual1\.gif",
    ):
        prepare(SMALL["drive"], source, tmp_path / "out")


@pytest.mark.parametrize("source", ["drive"], indirect=True)
def test_drive_as_png(source: Path, tmp_path: Path) -> None:
    """As many copies of it have the photographs; two files of one case must be the same photograph."""
    for path in [*source.rglob("*_training.tif"), *source.rglob("*_test.tif")]:
        with Image.open(path) as photograph:
            photograph.save(path.with_suffix(".png"))
        path.unlink()
    prepare(SMALL["drive"], source, tmp_path / "out")
    assert len(load_datalist(tmp_path / "out", "training")) == 16
    assert (tmp_path / "out" / "training" / "images" / "21_training.png").is_file()


@pytest.mark.parametrize("source", ["drive"], indirect=True)
def test_annotations_that_are_inverted(source: Path, tmp_path: Path) -> None:
    save(Image.fromarray(255 - annotation()), source / "training" / "1st_manual" / "22_manual1.gif")
    with pytest.raises(DriveSegError, match=r"22_manual1\.gif: expected vessels in white on black, got 100% of the"):
        prepare(SMALL["drive"], source, tmp_path / "out")


def test_output_and_source_must_be_apart(source: Path, tmp_path: Path) -> None:
    for output_dir in (source, source / "prepared"):
        with pytest.raises(DriveSegError, match="lies in SOURCE"):
            prepare(SMALL["chase_db1"], source, output_dir)
    (tmp_path / "alias").symlink_to(source)
    with pytest.raises(DriveSegError, match="lies in SOURCE"):
        prepare(SMALL["chase_db1"], source, tmp_path / "alias" / "out")
    inner = Path(shutil.copytree(source, tmp_path / "out" / "training"))
    with pytest.raises(DriveSegError, match="which is written to"):
        prepare(SMALL["chase_db1"], inner, tmp_path / "out")


def test_output_of_another_dataset_is_left_alone(pristine: dict[str, Path], tmp_path: Path) -> None:
    prepare(SMALL["stare"], pristine["stare"], tmp_path / "out")
    with pytest.raises(DriveSegError, match=r"dataset\.json is not of CHASE_DB1"):
        prepare(SMALL["chase_db1"], pristine["chase_db1"], tmp_path / "out")


def test_source_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DriveSegError, match="there is no file or folder"):
        prepare(SMALL["chase_db1"], tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DriveSegError, match=r"notes\.txt is neither a folder nor an archive"):
        prepare(SMALL["chase_db1"], tmp_path / "notes.txt", tmp_path / "out")


@pytest.mark.parametrize("name", MAKERS)
def test_help_says_where_the_data_are(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(DATASETS[name], ["--help"])
    assert exit_info.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in (DATASETS[name].homepage, "SOURCE", "OUTPUT_DIR", "Licence:", "doi:", "dataset.json"):
        assert words in shown


def test_script_ends_with_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "prepare_chase_db1.py"), str(tmp_path / "nowhere"), str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=SCRIPTS.parent, timeout=120)
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1 and "nowhere" in ended.stderr
    ended = subprocess.run([*command, "--debug"], capture_output=True, text=True, cwd=SCRIPTS.parent, timeout=120)
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr


def test_real_chase_db1(tmp_path: Path) -> None:
    source = real_data("CHASE_DB1")
    notices = prepare(DATASETS["chase_db1"], source, tmp_path)
    assert not any("outside" in notice for notice in notices)
    cases = load_datalist(tmp_path, "test", {"label": "1st_manual", "second": "2nd_manual"})
    assert [case["case_id"] for case in cases] == [f"Image_{child}{eye}" for child in (11, 12, 13, 14) for eye in "LR"]
    for case in cases:
        assert Path(case["image"]).read_bytes() == (source / f"{case['case_id']}.jpg").read_bytes()
        for key, ending in (("label", "1stHO"), ("second", "2ndHO")):
            original = read(source / f"{case['case_id']}_{ending}.png")
            np.testing.assert_array_equal(read(case[key]), original * np.uint8(255))


@pytest.mark.slow
def test_real_hrf(tmp_path: Path) -> None:
    source = real_data("HRF")
    notices = prepare(DATASETS["hrf"], source, tmp_path)
    assert not any("outside" in notice for notice in notices)
    assert [len(load_datalist(tmp_path, section)) for section in ("validation", "test")] == [6, 15]
    case = load_datalist(tmp_path, "test")[2]
    assert case["case_id"] == "01_h"
    np.testing.assert_array_equal(read(case["fov"]), read(source / "mask" / "01_h_mask.tif")[..., 0])
    np.testing.assert_array_equal(read(case["label"]), read(source / "manual1" / "01_h.tif"))
