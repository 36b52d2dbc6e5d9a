"""Permitted sizes of photographs and patches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from drive_seg.errors import DriveSegError

__all__ = ["MOST_PIXELS", "check_size", "patch_sides"]

MOST_PIXELS = 100_000_000
"""Fundus cameras give up to about 20 million, montages somewhat more; a file of a few bytes can declare any size."""


def check_size(path: str | os.PathLike, height: int, width: int) -> None:
    """Refuse a picture that is empty or too large to be a photograph, before allocating memory for it.

    Raises:
        DriveSegError: naming the file.
    """
    if height < 1 or width < 1 or height * width > MOST_PIXELS:
        raise DriveSegError(
            f"{path}: expected at most {MOST_PIXELS // 1_000_000} million pixels, got {width} × {height}"
        )


def patch_sides(patch_size: Sequence[int] | int) -> list[int]:
    """Height and width of a patch, in pixels, from both numbers or one for both.

    Raises:
        DriveSegError: if it is neither.
    """
    sides: list[Any] = list(patch_size) if isinstance(patch_size, (list, tuple)) else [patch_size] * 2
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise DriveSegError(f"patch_size: expected height and width, or one number for both, got {patch_size!r}")
    return sides
