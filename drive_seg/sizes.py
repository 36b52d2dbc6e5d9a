"""Permitted sizes of photographs."""

from __future__ import annotations

import os

from drive_seg.errors import DriveSegError

__all__ = ["MOST_PIXELS", "check_size"]

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
