"""How wide a vessel is at a point of its centreline, the same for measurements and for scores."""

from __future__ import annotations

import numpy as np

__all__ = ["calibres"]

BIAS = 0.5
"""What twice the greatest distance to the background beside a centreline exceeds the calibre by, in pixels."""


def calibres(pixels: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Twice the greatest distance to the background in the 3×3 pixels around each, less 0.5; (n,), float64, pixels.

    Distances go from pixel centre to pixel centre, which alone gives one more than the width where it is odd and the
    vessel runs along the grid, and the width where it is even; over all angles the correction leaves an error of less
    than a pixel. A line of single pixels has 1.5.

    Args:
        pixels: of centrelines, (2, n), row and column; none at the border of the picture.
        background: (2, H, W), row and column of the background's nearest pixel, from every pixel. Distances are taken
            from it where they are asked for: over a whole photograph they cost as much as the search for it.
    """
    squared = np.zeros(pixels.shape[1], int)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            row, column = pixels + np.array([[down], [right]])
            nearest = background[:, row, column]
            squared = np.maximum(squared, (nearest[0] - row) ** 2 + (nearest[1] - column) ** 2)
    return 2 * np.sqrt(squared) - BIAS
