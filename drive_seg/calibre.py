"""Vessel width at points of the centreline, computed alike for measurements and scores."""

from __future__ import annotations

import numpy as np

__all__ = ["calibres"]

BIAS = 0.5
"""Pixels by which twice the greatest distance to the background beside a centreline exceeds the calibre."""


def calibres(pixels: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Twice the greatest distance to the background in the 3×3 pixels around each, minus 0.5; (n,), float64, pixels.

    Distances are between pixel centres. For a vessel along the grid, twice the distance alone is one more than an odd
    width, and exactly an even one; over all angles, the correction leaves an error of less than a pixel. A line of
    single pixels measures 1.5.

    Args:
        pixels: centreline pixels, (2, n), row and column; none at the border of the picture.
        background: (2, H, W), row and column of the background pixel nearest to every pixel. Distances are computed
            from it only where needed: over a whole photograph they cost as much as finding it.
    """
    squared = np.zeros(pixels.shape[1], int)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            row, column = pixels + np.array([[down], [right]])
            nearest = background[:, row, column]
            squared = np.maximum(squared, (nearest[0] - row) ** 2 + (nearest[1] - column) ** 2)
    return 2 * np.sqrt(squared) - BIAS
