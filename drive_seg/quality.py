"""Whether a photograph is good enough to be measured: a few named problems, judged at one scale for every camera.

A vessel mask of a bad photograph looks like one of a retina with few vessels, and one of a picture of something else
looks like a mask, too. The checks find what is plainly wrong with the view, the light, the focus or the mask; they do
not replace looking at the picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from drive_seg.fov import fov_box, fov_diameter

__all__ = [
    "CUT_OFF",
    "FEW_VESSELS",
    "IMPLAUSIBLE_SPACING",
    "MANY_VESSELS",
    "NO_BORDER",
    "PROBLEMS",
    "TOO_BLURRED",
    "TOO_BRIGHT",
    "TOO_DARK",
    "TOO_SMALL",
    "QualityCheck",
    "sharpness",
]

NO_BORDER = "no border of the field of view"
CUT_OFF = "field of view cut off"
TOO_SMALL = "too small"
TOO_DARK = "too dark"
TOO_BRIGHT = "too bright"
TOO_BLURRED = "too blurred"
FEW_VESSELS = "hardly any vessel"
MANY_VESSELS = "implausibly many vessels"
IMPLAUSIBLE_SPACING = "implausible pixel spacing"
PROBLEMS = (
    *(NO_BORDER, CUT_OFF, TOO_SMALL, TOO_DARK, TOO_BRIGHT, TOO_BLURRED),
    *(FEW_VESSELS, MANY_VESSELS, IMPLAUSIBLE_SPACING),
)
"""All that can be found, in the order in which they are named."""

_DIAMETER = 500
"""Of the field of view on the copy that light and focus are judged on, pixels: less than any fundus camera gives."""

_CORNER = 50
"""How many times the corners that are looked at fit into the diameter: less than the border of any mask is off by."""

_FULLEST = 1.05
"""Share of a circle of its diameter that a field of view can have; more has lost its sides and its top and bottom."""

_BURNT = 250
"""Green value from which on nothing is told apart: cameras and JPEG end between this and 255."""


@dataclass(frozen=True)
class QualityCheck:
    """Finds problems of a photograph and its mask.

    Where all of a picture is field of view, it is the middle of a photograph or none of a retina at all, and its scale
    is a guess. Light and focus are judged in the green channel, in which vessels stand out. The bundle's limits are far
    from what sound photographs have; the figures are those of all 28 photographs of CHASE_DB1 and all 45 of HRF, of
    which none is flagged.

    Args:
        fov_share: area of the field of view, of that of a circle of its diameter, 0 to 1, below which it is cut off, as
            where a corner of its box is retina: its diameter, and with it the scale, is then a guess, too. The
            photographs have 0.83 at least.
        smallest_diameter: of the field of view, pixels, below which it is too small. Fine vessels are then narrower
            than the single pixels that they are drawn with. The photographs have 892 to 3262.
        darkest: median of green in the field of view below which it is too dark, 0 to 255. Vessels are darker than
            their surroundings by about a sixth, hence by 4 of 256 levels at the bundle's limit of 24, which is what
            noise and JPEG leave uncertain. The photographs have 38 to 100.
        burnt_share: share of the field of view, 0 to 1, with green at its upper end above which it is too bright. The
            optic disc, which is often overexposed alone, is about 2 % of a view of 45 degrees. The photographs have
            0.84 % at most.
        sharpness: value of ``sharpness`` below which it is too blurred. The photographs have 0.67 to 0.93; copies
            of them that are blurred by a Gaussian with a standard deviation of 0.5 % of the FOV's diameter, which is
            half the width of a large vessel, 0.46 at most, with 0.3 % 0.50 to 0.63.
        smallest_vessel_share, largest_vessel_share: share of the field of view that is vessel, 0 to 1, below which
            there is hardly any and above which there are too many to be. The manual annotations have 6 % to 13 %.
        smallest_mm, largest_mm: across the field of view on the retina, outside of which the pixel spacing cannot be
            right: cameras see 20 to 200 degrees, of about 0.3 mm each.
    """

    fov_share: float
    smallest_diameter: float
    darkest: float
    burnt_share: float
    sharpness: float
    smallest_vessel_share: float
    largest_vessel_share: float
    smallest_mm: float
    largest_mm: float

    def assess(
        self, photograph: np.ndarray, fov: np.ndarray, mask: np.ndarray, pixel_spacing_mm: float | None = None
    ) -> list[str]:
        """The problems of a photograph, out of ``PROBLEMS``; none of a good one.

        Args:
            photograph: (H, W, 3), uint8, RGB.
            fov: (H, W), non-zero on the retina; what lies outside has no influence.
            mask: (H, W), non-zero on vessels.
            pixel_spacing_mm: size of a pixel on the retina; None: unknown.

        Raises:
            ValueError: if the shapes differ or the field of view is empty.
        """
        if photograph.shape != (*fov.shape, 3) or mask.shape != fov.shape:
            raise ValueError(
                "expected a photograph (H, W, 3), a field of view and a mask of one size, "
                f"got {photograph.shape}, {fov.shape} and {mask.shape}"
            )
        mask, fov = mask != 0, fov != 0
        green, inside = _small_green(photograph, fov)
        values = green[inside]
        vessel_share = np.count_nonzero(mask & fov) / np.count_nonzero(fov)
        found = {
            NO_BORDER: bool(fov.all()),
            CUT_OFF: not fov.all() and self._is_cut_off(fov),
            TOO_SMALL: fov_diameter(fov) < self.smallest_diameter,
            TOO_DARK: np.median(values) < self.darkest,
            TOO_BRIGHT: np.mean(values >= _BURNT) > self.burnt_share,
            TOO_BLURRED: _sharpness(green, inside) < self.sharpness,
            FEW_VESSELS: vessel_share < self.smallest_vessel_share,
            MANY_VESSELS: vessel_share > self.largest_vessel_share,
            IMPLAUSIBLE_SPACING: pixel_spacing_mm is not None
            and not self.smallest_mm <= fov_diameter(fov) * pixel_spacing_mm <= self.largest_mm,
        }
        return [problem for problem in PROBLEMS if found[problem]]

    def _is_cut_off(self, fov: np.ndarray) -> bool:
        """A circle, also without its top and bottom, leaves the corners of its box free; what was cropped does not."""
        inside = fov[fov_box(fov)]
        diameter = max(inside.shape)
        side = max(1, diameter // _CORNER)
        corners = [inside[rows, columns] for rows in (slice(side), slice(-side, None))
                   for columns in (slice(side), slice(-side, None))]  # fmt: skip
        share = np.count_nonzero(inside) / (math.pi / 4 * diameter**2)
        return not self.fov_share <= share <= _FULLEST or any(corner.mean() > 0.5 for corner in corners)


def sharpness(photograph: np.ndarray, fov: np.ndarray) -> float:
    """How much finer detail there is than coarser, whatever contrast, brightness and resolution are.

    Green is scaled to a field of view of 500 pixels across and smoothed by Gaussians of 1, 2 and 4 pixels. The result
    is the standard deviation, over the field of view without its rim, of what gets lost from 1 to 2 divided by that of
    what gets lost from 2 to 4: bands as wide as small and as large vessels. Sensor noise and JPEG's blocks are
    smaller than either, and the contrast cancels.

    Args:
        photograph: (H, W, 3), uint8, RGB.
        fov: (H, W), bool.

    Returns:
        From 0 to about 1; 0 where there is no detail at all.

    Raises:
        ValueError: if the field of view is empty.
    """
    return _sharpness(*_small_green(photograph, fov))


def _small_green(photograph: np.ndarray, fov: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Green and field of view, cropped to the latter and scaled so that it is 500 pixels across."""
    box = fov_box(fov)
    height, width = (side.stop - side.start for side in box)
    scale = _DIAMETER / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    green = Image.fromarray(np.ascontiguousarray(photograph[box][..., 1])).resize(size, Image.Resampling.BILINEAR)
    inside = Image.fromarray(fov[box]).resize(size, Image.Resampling.NEAREST)
    return np.asarray(green, np.float32), np.asarray(inside, bool)


def _sharpness(green: np.ndarray, inside: np.ndarray) -> float:
    # The step at the rim would be the sharpest detail of all: three times the widest Gaussian is kept away from it.
    core = ndimage.minimum_filter(inside, size=25, mode="constant")
    one, two, four = (ndimage.gaussian_filter(green, sigma) for sigma in (1, 2, 4))
    fine, coarse = (one - two)[core], (two - four)[core]
    if not core.any() or coarse.std() < 1e-3:
        return 0.0
    return float(fine.std() / coarse.std())
