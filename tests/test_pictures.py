"""Pictures of small arrays, pixel by pixel, and the files of a photograph's result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from drive_seg.classes import names_of_classes
from drive_seg.configs import bundle_root, config_files
from drive_seg.errors import DriveSegError
from drive_seg.pictures import (
    CLASS_COLOURS,
    FALSE_NEGATIVE,
    FALSE_POSITIVE,
    KIND_COLOURS,
    ONE_CLASS,
    TRUE_POSITIVE,
    SaveVesselsd,
    agreement,
    overlay,
    overlay_colours,
    save_png,
)
from drive_seg.readers import read_image

ARTERY, VEIN = KIND_COLOURS["artery"], KIND_COLOURS["vein"]


def read(path: str | Path) -> tuple[str, np.ndarray]:
    with Image.open(path) as image:
        return image.mode, np.asarray(image)


@pytest.mark.parametrize(("shape", "dtype", "mode"), [
    ((5, 7), np.uint8, "L"), ((5, 7), np.uint16, "I;16"), ((5, 7, 3), np.uint8, "RGB"),
])  # fmt: skip
def test_what_is_saved_is_read_back(tmp_path: Path, shape: tuple[int, ...], dtype: type, mode: str) -> None:
    array = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    save_png(array, tmp_path / "deep" / "picture.png")
    found, back = read(tmp_path / "deep" / "picture.png")
    assert found == mode and back.dtype == dtype
    np.testing.assert_array_equal(back, array)


def test_a_failure_leaves_the_picture_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    save_png(np.full((2, 3), 7, np.uint8), path)
    with pytest.raises(TypeError):
        save_png(np.zeros((2, 3, 5), np.complex64), path)
    assert (read(path)[1] == 7).all() and [file.name for file in tmp_path.iterdir()] == ["picture.png"]


def test_overlay_by_hand() -> None:
    photograph = np.full((1, 2, 3), (100, 50, 200), np.uint8)
    drawn = overlay(photograph, np.array([[0, 1]]))
    assert ONE_CLASS == (0, 255, 200)
    # 0.4 × 100 + 0.6 × 0, 0.4 × 50 + 0.6 × 255, 0.4 × 200 + 0.6 × 200
    assert drawn.dtype == np.uint8 and drawn.tolist() == [[[100, 50, 200], [40, 173, 200]]]


def test_overlay_colours_vessels_only() -> None:
    photograph = np.full((2, 3, 3), 100, np.uint8)
    mask = np.array([[0, 1, 0], [0, 0, 0]])
    drawn = overlay(photograph, mask)
    assert drawn[0, 1].tolist() == [round(0.4 * 100 + 0.6 * value) for value in ONE_CLASS]
    assert (np.delete(drawn.reshape(6, 3), 1, axis=0) == 100).all() and (photograph == 100).all()


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_overlay_of_several_classes(classes: int) -> None:
    photograph, mask = np.full((1, classes + 1, 3), 100, np.uint8), np.arange(classes + 1, dtype=np.uint8)[None]
    colours = overlay_colours(names_of_classes(classes + 1))
    assert colours == [CLASS_COLOURS[value % 5] for value in range(classes)]
    drawn = overlay(photograph, mask, colours)
    assert drawn[0].tolist() == [[100] * 3] + [[round(40 + 0.6 * part) for part in colour] for colour in colours]


@pytest.mark.parametrize(("names", "expected"), [
    (["artery", "vein"], [ARTERY, VEIN]),
    (["Veins", "ARTERIES"], [VEIN, ARTERY]),
    (["vein", "other", "another"], [VEIN, CLASS_COLOURS[0], CLASS_COLOURS[2]]),
    (["artery"], [ONE_CLASS]),
])  # fmt: skip
def test_arteries_are_red_and_veins_blue(names: list[str], expected: list[tuple[int, int, int]]) -> None:
    assert overlay_colours(names) == expected


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, bool])
def test_overlay_without_vessels_is_the_photograph(dtype: type) -> None:
    photograph = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    assert np.array_equal(overlay(photograph, np.zeros((2, 3), dtype)), photograph)


def test_agreement() -> None:
    pred = np.array([[1, 1, 0, 0, 1, 2]])
    label = np.array([[1, 0, 1, 0, 1, 1]])
    counted = np.array([[True, True, True, True, False, True]])
    colours = [TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE, (0, 0, 0), (48, 48, 48), TRUE_POSITIVE]
    picture = agreement(pred, label, counted)
    assert picture.dtype == np.uint8 and picture.shape == (1, 6, 3)
    assert picture[0].tolist() == [list(colour) for colour in colours]


def test_agreement_outside_is_grey_whatever_is_there() -> None:
    counted = np.zeros((2, 2), bool)
    for pred, label in ((0, 255), (1, 0), (1, 1)):
        assert (agreement(np.full((2, 2), pred), np.full((2, 2), label), counted) == 48).all()


def result(height: int = 5, width: int = 7, classes: int = 2) -> dict[str, Any]:
    """One dark row of three vessel pixels in a photograph in which no two pixels are alike."""
    pred = torch.zeros(1, height, width, dtype=torch.uint8)
    pred[0, 1, 2:5] = classes - 1
    probability = torch.zeros(classes - 1, height, width)
    probability[:, 1, 2:5] = 0.75 / (classes - 1)
    pixels = torch.arange(3 * height * width, dtype=torch.uint8).reshape(3, height, width)
    photograph = MetaTensor(pixels, meta={"filename_or_obj": "eyes/a.b.jpg"})
    return {"case_id": "a.b", "pred": pred, "probability": probability, "photograph": photograph}


def saver_to(folder: Path, **changes: Any) -> SaveVesselsd:
    """With the pictures that are written by default."""
    defaults = {"pictures": ["vessels", "probability", "overlay", "thumbnail"], "thumbnail_side": 360}
    return SaveVesselsd(str(folder), **{**defaults, **changes})


def test_saved_files_hold_what_was_found(tmp_path: Path) -> None:
    case = result()
    saved = saver_to(tmp_path / "out")(case)["saved"]
    names = ["a.b_overlay.jpg", "a.b_probability.png", "a.b_thumbnail.jpg", "a.b_vessels.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert sorted(Path(path).name for path in saved.values()) == names
    mode, mask = read(saved["vessels"])
    assert mode == "L"
    assert mask.shape == (5, 7) and mask[1].tolist() == [0, 0, 255, 255, 255, 0, 0] and mask.sum() == 3 * 255
    mode, probability = read(saved["probability"])
    assert mode == "I;16"
    assert probability[1, 2] == 49151  # 0.75 × 65535 = 49151.25
    assert probability.sum(dtype=np.int64) == 3 * 49151
    photograph = case["photograph"].numpy().transpose(1, 2, 0)
    shown, expected = read(saved["overlay"])[1].astype(int), overlay(photograph, mask // 255).astype(int)
    assert shown.shape == expected.shape
    assert abs(shown - expected).mean() < 5 < abs(shown - photograph).max() / 10, "nearly: it is a JPEG file"


def test_several_classes_are_saved_as_class_values_that_can_be_seen(tmp_path: Path) -> None:
    saver = saver_to(tmp_path, class_names=["artery", "vein"], save_nifti=True)
    saved = saver(result(classes=3))["saved"]
    mode, mask = read(saved["vessels"])
    assert mode == "P" and mask[1].tolist() == [0, 0, 2, 2, 2, 0, 0] and mask.sum() == 6
    np.testing.assert_array_equal(read_image(saved["vessels"], "classes"), mask)
    np.testing.assert_array_equal(read_image(saved["nifti"], "classes"), mask)
    (config,) = config_files(bundle_root(), "artery_vein")
    colours = json.loads(Path(config).read_text(encoding="utf-8"))["class_colours"]
    np.testing.assert_array_equal(read_image(saved["vessels"], "classes", colours), mask)
    with Image.open(saved["vessels"]) as image:
        seen = np.asarray(image.convert("RGB"))
    save_png(seen, tmp_path / "edited.png")
    np.testing.assert_array_equal(read_image(tmp_path / "edited.png", "classes", colours), mask)
    assert seen[1, 2].tolist() == list(VEIN) and not seen[0].any()
    assert read(saved["probability"])[1][1, 2] == 49151, "of the vessel classes together"


def test_the_probability_of_each_class(tmp_path: Path) -> None:
    case = result(classes=3)
    case["probability"][1] /= 3
    saved = saver_to(tmp_path, pictures="class_probabilities", class_names=["artery", "vein"])(case)["saved"]
    assert [Path(path).name for path in saved.values()] == ["a.b_probability_artery.png", "a.b_probability_vein.png"]
    # 0.375 × 65535 = 24575.6, 0.125 × 65535 = 8191.9
    assert [read(path)[1][1, 2] for path in saved.values()] == [24576, 8192]
    saved = saver_to(tmp_path, pictures="class_probabilities")(result())["saved"]
    assert [Path(path).name for path in saved.values()] == ["a.b_probability_class_1.png"]


@pytest.mark.parametrize("vessel", [1.001, -0.001])
def test_probabilities_a_little_beyond_their_range_do_not_wrap(tmp_path: Path, vessel: float) -> None:
    case = result()
    case["probability"][0] = vessel
    saved = saver_to(tmp_path)(case)["saved"]
    assert set(np.unique(read(saved["probability"])[1])) == {65535 if vessel > 0.5 else 0}


def test_keys_and_names(tmp_path: Path) -> None:
    case = result()
    del case["case_id"]
    case = {f"my_{key}": value for key, value in case.items()}
    saver = saver_to(
        tmp_path,
        pred_key="my_pred",
        probability_key="my_probability",
        photograph_key="my_photograph",
        output_key="files",
    )
    files = saver(case)["files"]
    assert Path(files["vessels"]).name == "a.b_vessels.png", "without a case id, the file's name is taken"
    assert "files" not in case


@pytest.mark.parametrize("photograph", [torch.zeros(3, 5, 7), MetaTensor(torch.zeros(3, 5, 7))])
def test_a_photograph_without_a_file_is_refused(tmp_path: Path, photograph: torch.Tensor) -> None:
    with pytest.raises(DriveSegError, match=r"^save: expected a photograph from a file, .* got an array$"):
        saver_to(tmp_path)({**result(), "photograph": photograph})


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    wrong = {**result(), "pred": torch.zeros(1, 7, 5, dtype=torch.uint8)}
    with pytest.raises(DriveSegError, match=r"a\.b\.jpg: the mask has the size \(7, 5\), expected \(5, 7\)$"):
        saver_to(tmp_path)(wrong)
    assert not list(tmp_path.iterdir())
