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


def read(file: Path, num_classes: int) -> dict[str, Any]:
    """The case as the bundle's evaluation reads it."""
    names = "train", "evaluate"
    parser = read_configs(config_files(bundle_root(), *names), {"num_classes": num_classes, "class_names": None})
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
def test_is_read_as_what_it_is(tmp_path: Path, drawn: np.ndarray, num_classes: int, expected: np.ndarray) -> None:
    Image.fromarray(drawn.astype(np.uint8)).save(tmp_path / "second.png")
    second = read(tmp_path / "second.png", num_classes)["second"]
    assert second.dtype == torch.uint8 and np.array_equal(second[0], expected)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_is_left_out_if_it_cannot_be_read(tmp_path: Path, num_classes: int, caplog: pytest.LogCaptureFixture) -> None:
    Image.fromarray(np.zeros((5, 9), np.uint8)).save(tmp_path / "second.png")
    assert "second" not in read(tmp_path / "second.png", num_classes)
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("the second observer of case 1 is left out") and "second.png" in warning
