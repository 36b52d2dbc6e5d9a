"""What a vessel mask says of the vessels: how much, how wide, how branched and how winding they are.

Arrays are rows first, (H, W). Lengths are in pixels of the photograph, and in millimetres where the spacing is known.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.transforms import Transform
from scipy import ndimage
from skimage.morphology import skeletonize

from drive_seg.errors import DriveSegError
from drive_seg.fov import fov_diameter

__all__ = ["MeasureVesselsd", "box_dimension", "measure_vessels"]

EIGHT = np.ones((3, 3), dtype=int)
"""Pixels that touch at a corner belong together."""

SHORTEST = 10
"""Pixels. The chord of a shorter branch is known too coarsely to say how winding it is."""


def measure_vessels(mask: np.ndarray, fov: np.ndarray, pixel_spacing_mm: float | None = None) -> dict[str, float]:
    """Measure the vessels inside the field of view.

    Strategy: the mask is thinned to its skeleton (Zhang & Suen, 1984). Neighbouring skeleton pixels are linked, along
    a diagonal only where no way leads round the corner, so that every pixel's number of links is its degree: one at
    an end, three or more at a branching. What is left without the branchings and what touches them are the branches.

    Args:
        mask: (H, W), True where a vessel is.
        fov: (H, W), True inside the field of view.
        pixel_spacing_mm: side of a pixel, millimetres; None if it is not known.

    Returns:
        ``fov_diameter_px``; ``vessel_density``, the share of the field of view that is vessel, 0 to 1;
        ``skeleton_length_px``; ``calibre_mean_px`` and its quantiles ``calibre_p10_px``, ``calibre_p50_px`` and
        ``calibre_p90_px``: twice the distance of a skeleton pixel from the background less half a pixel, which is
        right to half a pixel; ``end_points`` and ``branch_points``, pixels that touch counted as one;
        ``fractal_dimension``, see ``box_dimension``; ``tortuosity``, arc over chord of the branches of 10 pixels and
        more, weighted by their length, 1 if all are straight. With a spacing also ``fov_diameter_mm``,
        ``skeleton_length_mm`` and the calibres
        in ``_mm``. Without any vessel lengths and counts are 0, calibres, dimension and tortuosity NaN.

    Raises:
        ValueError: if the shapes differ, the field of view is empty or the spacing is not positive.
    """
    if mask.shape != fov.shape or mask.ndim != 2:
        raise ValueError(f"expected a mask and a field of view of one shape (H, W), got {mask.shape} and {fov.shape}")
    if pixel_spacing_mm is not None and not pixel_spacing_mm > 0:
        raise ValueError(f"pixel_spacing_mm: expected a positive number of millimetres, got {pixel_spacing_mm}")
    fov = fov.astype(bool)
    if not fov.any():
        raise ValueError("expected a field of view, got an empty mask")
    mask = mask.astype(bool) & fov
    skeleton = skeletonize(mask)
    lengths = {
        "fov_diameter_px": fov_diameter(fov),
        "skeleton_length_px": _length(_links(skeleton)),
        **_calibres(mask, skeleton),
    }
    degree = _degree(skeleton)
    measures = {
        "vessel_density": float(mask.sum() / fov.sum()),
        **lengths,
        "end_points": float(np.count_nonzero(degree == 1)),
        "branch_points": float(ndimage.label(degree >= 3, EIGHT)[1]),
        "fractal_dimension": box_dimension(skeleton),
        "tortuosity": _tortuosity(skeleton & ~ndimage.binary_dilation(degree >= 3, EIGHT)),
    }
    if pixel_spacing_mm is not None:
        in_mm = {name.replace("_px", "_mm"): value * pixel_spacing_mm for name, value in lengths.items()}
        measures.update(in_mm)
    return measures


def box_dimension(figure: np.ndarray) -> float:
    """Box-counting dimension: the slope of log N over log 1/s, N of the boxes of side s holding a pixel of the figure.

    Args:
        figure: (H, W), bool. The dimension of vessels is that of their skeleton, which does not depend on their width.

    Returns:
        About 1 for a line and 2 for an area, by least squares over boxes of 4, 8, 16, … pixels up to a quarter of the
        shorter side; NaN for an empty figure or one with room for fewer than two sizes.

    Source: Liebovitch & Toth, Physics Letters A 141, 1989, doi:10.1016/0375-9601(89)90854-2.
    """
    largest = min(figure.shape) // 4
    sides = [2**power for power in range(2, 16) if 2**power <= largest]
    if len(sides) < 2 or not figure.any():
        return math.nan
    counts = []
    for side in sides:
        rows, columns = (math.ceil(length / side) for length in figure.shape)
        padded = np.zeros((rows * side, columns * side), dtype=bool)
        padded[: figure.shape[0], : figure.shape[1]] = figure
        counts.append(padded.reshape(rows, side, columns, side).any(axis=(1, 3)).sum())
    return float(-np.polyfit(np.log(sides), np.log(counts), 1)[0])


class MeasureVesselsd(Transform):
    """``measure_vessels`` for a case, under the key ``measures``.

    Args:
        pixel_spacing_mm: as there.
        pred_key: mask, (1, H, W), class values, 0 for background.
        fov_key: FOV mask, (1, H, W).
        output_key: where the measures go.
    """

    def __init__(
        self,
        pixel_spacing_mm: float | None = None,
        pred_key: str = "pred",
        fov_key: str = "fov",
        output_key: str = "measures",
    ) -> None:
        if pixel_spacing_mm is not None and not (isinstance(pixel_spacing_mm, (int, float)) and pixel_spacing_mm > 0):
            raise DriveSegError(
                f"pixel_spacing_mm: expected a positive number of millimetres or null, got {pixel_spacing_mm}"
            )
        self.pixel_spacing_mm = pixel_spacing_mm
        self.pred_key = pred_key
        self.fov_key = fov_key
        self.output_key = output_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The case with what the class says done to it."""
        case = dict(data)
        mask, fov = (np.asarray(case[key].cpu())[0] > 0 for key in (self.pred_key, self.fov_key))
        case[self.output_key] = measure_vessels(mask, fov, self.pixel_spacing_mm)
        return case


Links = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _links(skeleton: np.ndarray) -> Links:
    """Whether a pixel is linked to the one right of it, below, below right, and below left; each (H, W), bool."""
    padded = np.pad(skeleton, 1)
    here, right, left = padded[1:-1, 1:-1], padded[1:-1, 2:], padded[1:-1, :-2]
    below, below_right, below_left = padded[2:, 1:-1], padded[2:, 2:], padded[2:, :-2]
    return (
        here & right,
        here & below,
        here & below_right & ~right & ~below,
        here & below_left & ~left & ~below,
    )


def _length(links: Links) -> float:
    right, below, *diagonal = (float(np.count_nonzero(link)) for link in links)
    return right + below + math.sqrt(2) * sum(diagonal)


def _degree(skeleton: np.ndarray) -> np.ndarray:
    """Links of every pixel, (H, W), 0 off the skeleton."""
    degree = np.zeros(tuple(length + 2 for length in skeleton.shape), dtype=np.uint8)
    inner = slice(1, -1)
    ends = (
        (inner, slice(2, None)),
        (slice(2, None), inner),
        (slice(2, None), slice(2, None)),
        (slice(2, None), slice(None, -2)),
    )
    for link, end in zip(_links(skeleton), ends, strict=True):
        degree[inner, inner] += link
        degree[end] += link
    return degree[inner, inner]


def _calibres(mask: np.ndarray, skeleton: np.ndarray) -> dict[str, float]:
    names = ("calibre_mean_px", "calibre_p10_px", "calibre_p50_px", "calibre_p90_px")
    if not skeleton.any():
        return dict.fromkeys(names, math.nan)
    calibre = 2 * ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1][skeleton] - 0.5
    return dict(zip(names, map(float, (calibre.mean(), *np.quantile(calibre, (0.1, 0.5, 0.9)))), strict=True))


def _tortuosity(branches: np.ndarray) -> float:
    labels, count = ndimage.label(branches, EIGHT)
    arcs = np.zeros(count + 1)
    for link, length in zip(_links(branches), (1, 1, math.sqrt(2), math.sqrt(2)), strict=True):
        arcs += length * np.bincount(labels[link], minlength=count + 1)
    rows, columns = np.nonzero(_degree(branches) == 1)
    owner = labels[rows, columns]
    order = np.argsort(owner, kind="stable")
    rows, columns, owner = rows[order], columns[order], owner[order]
    # A branch has two ends, a closed loop none.
    first = np.flatnonzero((owner[:-1] == owner[1:]) & (np.bincount(owner, minlength=count + 1)[owner[:-1]] == 2))
    chords = np.hypot(rows[first + 1] - rows[first], columns[first + 1] - columns[first])
    arcs = arcs[owner[first]]
    counted = (arcs >= SHORTEST) & (chords > 0)
    if not counted.any():
        return math.nan
    return float(np.average(arcs[counted] / chords[counted], weights=arcs[counted]))
