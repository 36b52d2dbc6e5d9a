"""The course of a training as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drive_seg.curves import save_curves


def test_curves(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [
        {"epoch": epoch, "loss": 1 / epoch, "learning_rate": 0.1, "val_dice": "" if epoch % 2 else 0.5}
        for epoch in range(1, 5)
    ]
    save_curves(rows, "val_dice", tmp_path / "curves.png")
    picture = np.asarray(Image.open(tmp_path / "curves.png"))
    assert picture.ndim == 3 and picture.shape[0] > 200 and len(np.unique(picture)) > 10
    save_curves(rows[:1], "val_dice", tmp_path / "curves.png")
    assert not np.array_equal(Image.open(tmp_path / "curves.png"), picture), "never validated, and drawn anew"
