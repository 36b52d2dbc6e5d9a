"""The course of a training as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from drive_seg.curves import save_curves


def test_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[dict[str, list[list[float]]]] = []
    save = Figure.savefig

    def noted(figure: Figure, *arguments: Any, **keywords: Any) -> None:
        drawn.append({axes.get_title(): axes.lines[0].get_xydata().tolist() for axes in figure.axes})
        save(figure, *arguments, **keywords)

    monkeypatch.setattr(Figure, "savefig", noted)
    rows = [
        {"epoch": 1, "loss": 0.8, "learning_rate": 0.1, "val_dice": ""},
        {"epoch": 2, "loss": 0.4, "learning_rate": 0.2, "val_dice": 0.5},
        {"epoch": 3, "loss": 0.3, "learning_rate": 0.1, "val_dice": ""},
        {"epoch": 4, "loss": 0.2, "learning_rate": 0.0, "val_dice": 0.75},
    ]
    picture = tmp_path / "curves.png"
    for count in (1, 4):  # never validated, and drawn anew
        save_curves(rows[:count], "val_dice", picture)
        losses, rates = ([[row["epoch"], row[name]] for row in rows[:count]] for name in ("loss", "learning_rate"))
        dice = [[2, 0.5], [4, 0.75]] if count == 4 else []
        expected = {"training loss": losses, "val_dice, in the FOV": dice, "learning rate": rates}
        assert drawn.pop() == expected and not drawn
        with Image.open(picture) as saved:
            assert saved.format == "PNG" and saved.size == (990, 330), "9 in × 3 in with 110 dots an inch"
