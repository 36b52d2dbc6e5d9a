"""Pictures of small arrays, pixel by pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from drive_seg.errors import DriveSegError
from drive_seg.pictures import (
    CLASS_COLOURS,
    FALSE_NEGATIVE,
    FALSE_POSITIVE,
    ONE_CLASS,
    TRUE_POSITIVE,
    SaveVesselsd,
    agreement,
    overlay,
)


def test_overlay_colours_vessels_only() -> None:
    photograph = np.full((2, 3, 3), 100, np.uint8)
    mask = np.array([[0, 1, 0], [0, 0, 0]])
    drawn = overlay(photograph, mask)
    assert drawn[0, 1].tolist() == [round(0.4 * 100 + 0.6 * value) for value in ONE_CLASS]
    assert (np.delete(drawn.reshape(6, 3), 1, axis=0) == 100).all() and (photograph == 100).all()
    drawn = overlay(photograph, mask * 2)
    assert drawn[0, 1].tolist() == [round(0.4 * 100 + 0.6 * value) for value in CLASS_COLOURS[1]]


def test_overlay_without_vessels_is_the_photograph() -> None:
    photograph = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    assert np.array_equal(overlay(photograph, np.zeros((2, 3), np.uint8)), photograph)


def test_agreement() -> None:
    pred = np.array([[1, 1, 0, 0, 1]])
    label = np.array([[1, 0, 1, 0, 1]])
    counted = np.array([[True, True, True, True, False]])
    colours = [TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE, (0, 0, 0), (48, 48, 48)]
    assert agreement(pred, label, counted)[0].tolist() == [list(colour) for colour in colours]


def result(height: int = 5, width: int = 7, classes: int = 2) -> dict[str, object]:
    pred = torch.zeros(1, height, width, dtype=torch.uint8)
    pred[0, 1, 2:5] = classes - 1
    probability = torch.zeros(classes, height, width)
    probability[0] = 1
    probability[0, 1, 2:5] = 0.25
    probability[-1, 1, 2:5] = 0.75
    photograph = MetaTensor(torch.zeros(3, height, width, dtype=torch.uint8), meta={"filename_or_obj": "eyes/a.b.jpg"})
    return {"case_id": "a.b", "pred": pred, "probability": probability, "photograph": photograph}


def test_saved_files_hold_what_was_found(tmp_path: Path) -> None:
    saved = SaveVesselsd(str(tmp_path))(result())["saved"]
    assert sorted(saved) == ["overlay", "probability", "vessels"]
    with Image.open(tmp_path / "a.b_vessels.png") as image:
        mask = np.asarray(image)
    assert mask.shape == (5, 7) and mask[1].tolist() == [0, 0, 255, 255, 255, 0, 0] and mask.sum() == 3 * 255
    with Image.open(tmp_path / "a.b_probability.png") as image:
        assert image.mode == "I;16" and np.asarray(image)[1, 2] == round(0.75 * 65535)
    with Image.open(tmp_path / "a.b_overlay.png") as image:
        assert image.size == (7, 5)


def test_several_classes_are_saved_as_class_values(tmp_path: Path) -> None:
    SaveVesselsd(str(tmp_path))(result(classes=3))
    with Image.open(tmp_path / "a.b_vessels.png") as image:
        assert set(np.unique(np.asarray(image))) == {0, 2}


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    wrong = {**result(), "pred": torch.zeros(1, 5, 6, dtype=torch.uint8)}
    with pytest.raises(DriveSegError, match=r"a\.b\.jpg: the mask has the size"):
        SaveVesselsd(str(tmp_path))(wrong)
