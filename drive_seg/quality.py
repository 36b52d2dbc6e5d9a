"""Whether a photograph is good enough to be measured: a few named problems, judged at one scale for every camera.

The vessel mask of a bad photograph looks like that of a retina with few vessels, and a picture of anything else gives a
mask, too. The checks find obvious problems with the view, the light, the focus or the mask; they do not replace looking
at the picture.
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
"""All problems, in the order in which they are reported."""

_DIAMETER = 500
"""Diameter of the field of view, in pixels, on the copy used to judge light and focus; fundus cameras give more."""

_CORNER = 50
"""Diameter over the side of the squares checked in the bounding box's corners, which a circle comes nowhere near."""

_FULLEST = 1.05
"""Largest area of a field of view, as a share of a circle of its diameter; with more it has lost all four sides."""

_BURNT = 250
"""Green value from which nothing can be distinguished: cameras and JPEG saturate between this and 255."""


@dataclass(frozen=True)
class QualityCheck:
    """Finds problems with a photograph and its mask.

    A picture that is all field of view shows the middle of a photograph or no retina at all, so its scale is a guess.
    Light and focus are judged in the green channel, in which vessels stand out. The bundle's limits are far from the
    values of sound photographs; figures below are for all 28 photographs of CHASE_DB1 and all 45 of HRF, none of which
    is flagged.

    Args:
        fov_share: area of the field of view, as a share of a circle of its diameter, 0 to 1, below which it counts as
            cut off. So does a view with retina in a corner of its box. Either way, the diameter and with it the scale
            are guesses. The photographs have at least 0.83.
        smallest_diameter: diameter of the field of view, in pixels, below which the photograph is too small, because
            fine vessels are narrower than the single pixels they are drawn with. The photographs have 892 to 3262.
        darkest: median of green in the field of view, 0 to 255, below which the photograph is too dark. Vessels are
            darker than their surroundings by about a sixth, hence by 4 of 256 levels at the bundle's limit of 24, which
            is as much as noise and JPEG leave uncertain. The photographs have 38 to 100.
        burnt_share: share of the field of view with saturated green, 0 to 1, above which the photograph is too bright.
            The optic disc, often the only overexposed part, is about 2 % of a view of 45 degrees. The photographs have
            at most 0.84 %.
        sharpness: value of ``sharpness`` below which the photograph is too blurred. The photographs have 0.67 to 0.93.
            Copies blurred by a Gaussian with a standard deviation of 0.5 % of the FOV's diameter, half the width of a
            large vessel, have at most 0.46; with 0.3 %, they have 0.50 to 0.63.
        smallest_vessel_share, largest_vessel_share: share of the field of view that is vessel, 0 to 1, below which
            there is hardly any and above which there are implausibly many. The manual annotations have 6 % to 13 %.
        smallest_mm, largest_mm: range of plausible diameters of the field of view on the retina; outside it, the pixel
            spacing cannot be right. Cameras see 20 to 200 degrees, of about 0.3 mm each.
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
        """The problems of a photograph, from ``PROBLEMS``; empty for a good one.

        Args:
            photograph: (H, W, 3), uint8, RGB.
            fov: (H, W), non-zero on the retina; pixels outside are ignored.
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
        """A circle, even without its top and bottom, leaves the corners of its box free; a cropped one does not."""
        inside = fov[fov_box(fov)]
        diameter = max(inside.shape)
        side = max(1, diameter // _CORNER)
        corners = [inside[rows, columns] for rows in (slice(side), slice(-side, None))
                   for columns in (slice(side), slice(-side, None))]  # fmt: skip
        share = np.count_nonzero(inside) / (math.pi / 4 * diameter**2)
        return not self.fov_share <= share <= _FULLEST or any(corner.mean() > 0.5 for corner in corners)


def sharpness(photograph: np.ndarray, fov: np.ndarray) -> float:
    """Ratio of fine to coarse detail, independent of contrast, brightness and resolution.

    Green is scaled to a field of view 500 pixels across and smoothed by Gaussians of 1, 2 and 4 pixels. The result is
    the standard deviation, over the field of view without its rim, of the detail lost from 1 to 2 divided by that of
    the detail lost from 2 to 4: bands as wide as small and as large vessels. Sensor noise and JPEG blocks are finer
    than either, and the contrast cancels.

    Args:
        photograph: (H, W, 3), uint8, RGB.
        fov: (H, W), bool.

    Returns:
        The ratio, from 0 to about 1; 0 if there is no detail at all.

    Raises:
        ValueError: if the field of view is empty.
    """
    return _sharpness(*_small_green(photograph, fov))


def _small_green(photograph: np.ndarray, fov: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Green and field of view, cropped to the latter and scaled to make it 500 pixels across."""
    box = fov_box(fov)
    height, width = (side.stop - side.start for side in box)
    scale = _DIAMETER / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    green = Image.fromarray(np.ascontiguousarray(photograph[box][..., 1])).resize(size, Image.Resampling.BILINEAR)
    inside = Image.fromarray(fov[box]).resize(size, Image.Resampling.NEAREST)
    return np.asarray(green, np.float32), np.asarray(inside, bool)


def _sharpness(green: np.ndarray, inside: np.ndarray) -> float:
    # The step at the rim would be the sharpest detail, so a border of three times the widest Gaussian is left out.
    core = ndimage.minimum_filter(inside, size=25, mode="constant")
    one, two, four = (ndimage.gaussian_filter(green, sigma) for sigma in (1, 2, 4))
    fine, coarse = (one - two)[core], (two - four)[core]
    if not core.any() or coarse.std() < 1e-3:
        return 0.0
    return float(fine.std() / coarse.std())
