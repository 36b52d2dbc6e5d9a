"""A second observer whose annotation may be of another kind than the reference, or of none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from drive_seg.configs import bundle_root, config_files, read_configs

CLASSES = np.array([[0, 1, 2, 2], [0, 0, 1, 255]], np.uint8)


def read(file: Path, num_classes: int, class_colours: dict[str, Any] | None = None) -> dict[str, Any]:
    """The case as the bundle's evaluation reads it."""
    values = {"num_classes": num_classes, "class_colours": class_colours}
    parser = read_configs(config_files(bundle_root(), "train", "evaluate"), values)
    *_, reading = parser.get_parsed_content("read_references")
    return reading({"case_id": "1", "image": torch.zeros(3, *CLASSES.shape), "second": str(file)})


@pytest.mark.parametrize(("drawn", "num_classes", "expected"), [
    (CLASSES, 3, CLASSES),
    (np.where(CLASSES, 255, 0), 3, np.where(CLASSES, 255, 0)),
    (np.where(CLASSES, 1, 0), 3, np.where(CLASSES, 255, 0)),
    (np.where(CLASSES, 100, 0), 3, np.where(CLASSES, 255, 0)),
    (np.zeros_like(CLASSES), 3, np.zeros_like(CLASSES)),
    (np.where(CLASSES, 255, 0), 2, np.where(CLASSES, 1, 0)),
], ids=["classes", "vessels", "raw indices", "grey", "empty", "one class"])  # fmt: skip
def test_is_read_as_what_it_is(
    tmp_path: Path, drawn: np.ndarray, num_classes: int, expected: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    Image.fromarray(drawn.astype(np.uint8)).save(tmp_path / "second.png")
    second = read(tmp_path / "second.png", num_classes)["second"]
    assert second.dtype == torch.uint8 and np.array_equal(second[0], expected)
    assert not [record for record in caplog.records if "second observer" in record.message]


def test_is_read_by_the_colours_of_the_reference(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    colours = {"1": [255, 0, 0], "2": [0, 0, 255], "255": [255, 255, 255]}
    palette = np.zeros((256, 3), np.uint8)
    palette[list(map(int, colours))] = list(colours.values())
    Image.fromarray(palette[CLASSES]).save(tmp_path / "second.png")
    assert np.array_equal(read(tmp_path / "second.png", 3, colours)["second"][0], CLASSES)
    Image.fromarray(np.where(CLASSES, 255, 0).astype(np.uint8)).save(tmp_path / "vessels.png")
    assert np.array_equal(read(tmp_path / "vessels.png", 3, colours)["second"][0], np.where(CLASSES, 255, 0))
    Image.fromarray(palette[CLASSES] // 2).save(tmp_path / "others.png")
    assert "second" not in read(tmp_path / "others.png", 3, colours)
    assert "others.png: " in caplog.text and "class_colours does not name" in caplog.text


@pytest.mark.parametrize("num_classes", [2, 3])
def test_is_left_out_if_it_cannot_be_read(tmp_path: Path, num_classes: int, caplog: pytest.LogCaptureFixture) -> None:
    Image.fromarray(np.zeros((5, 9), np.uint8)).save(tmp_path / "second.png")
    assert "second" not in read(tmp_path / "second.png", num_classes)
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("the second observer of case 1 is left out") and "second.png" in warning
