"""Draws the course of a training."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from drive_seg.files import replacing

__all__ = ["save_curves"]


def save_curves(rows: Sequence[Mapping[str, Any]], metric_name: str, path: str | os.PathLike) -> None:
    """Draw loss, validation metric and learning rate over the epochs of a training.

    Args:
        rows: rows of ``History``: ``epoch``, ``loss``, ``learning_rate`` and ``metric_name`` (empty if not validated).
        metric_name: column of the validation metric.
        path: PNG file to write.

    Raises:
        ModuleNotFoundError: if matplotlib, which the extra ``report`` installs, is missing.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    epochs = [row["epoch"] for row in rows]
    validated = [row for row in rows if row[metric_name] != ""]
    curves = (
        ("training loss", epochs, [row["loss"] for row in rows], "C0-"),
        (f"{metric_name}, in the FOV", [r["epoch"] for r in validated], [r[metric_name] for r in validated], "C2.-"),
        ("learning rate", epochs, [row["learning_rate"] for row in rows], "C1-"),
    )
    for place, (title, x, y, style) in zip(figure.subplots(1, len(curves)), curves, strict=True):
        place.plot(x, y, style)
        place.set(title=title, xlabel="epoch")
        place.grid(alpha=0.3)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
