"""Whether a photograph is good enough to be measured: a few named problems, judged at one scale for every camera.

The vessel mask of a bad photograph looks like that of a retina with few vessels, and a picture of anything else gives a
mask, too. The checks find obvious problems with the view, the light, the focus or the mask; they do not replace looking
at the picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from drive_seg.fov import fov_box, fov_diameter

__all__ = [
    "CUT_OFF",
    "FEW_VESSELS",
    "IMPLAUSIBLE_SPACING",
    "IN_PIECES",
    "LITTLE_CONTRAST",
    "MANY_VESSELS",
    "MORE_BESIDE",
    "NO_BORDER",
    "TOO_BLURRED",
    "TOO_BRIGHT",
    "TOO_DARK",
    "TOO_SMALL",
    "QualityCheck",
    "quality_figures",
]

NO_BORDER = "no border of the field of view"
CUT_OFF = "field of view cut off"
MORE_BESIDE = "another picture beside the field of view"
TOO_SMALL = "too small"
TOO_DARK = "too dark"
TOO_BRIGHT = "too bright"
TOO_BLURRED = "too blurred"
LITTLE_CONTRAST = "hardly any contrast"
FEW_VESSELS = "hardly any vessel"
MANY_VESSELS = "implausibly many vessels"
IN_PIECES = "vessels in pieces"
IMPLAUSIBLE_SPACING = "implausible pixel spacing"

_DIAMETER = 500
"""Diameter of the field of view, in pixels, on the copy used to judge light and focus; fundus cameras give more."""

_CORNER = 50
"""Diameter over the side of the squares checked in the bounding box's corners, which a circle comes nowhere near."""

_FULLEST = 1.05
"""Largest area of a field of view, as a share of a circle of its diameter; with more it has lost all four sides."""

_BURNT = 250
"""Green value from which nothing can be distinguished: cameras and JPEG saturate between this and 255."""

_FINE = 1000
"""Diameter of the field of view, in pixels, up to which vessels are connected at the mask's own size: labels of 33
megapixels would take hundreds of megabytes."""

_COARSE = 250
"""Diameter of the field of view, in pixels, at which its surroundings are judged, which may be far larger."""

_SPAN = 0.5
"""Extent of a large part of the vessel tree, as a share of the field of view's diameter: nothing else spans as much."""


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
        beside_share: ``beside_share`` above which another picture, such as a second eye, lies beside the field of view
            and is not measured. The photographs have 0.
        smallest_diameter: diameter of the field of view, in pixels, below which the photograph is too small, because
            fine vessels are narrower than the single pixels they are drawn with. The photographs have 892 to 3262.
        darkest: ``green_median`` below which the photograph is too dark. Vessels are darker than their surroundings by
            about a sixth, hence by 4 of 256 levels at the bundle's limit of 24, which is as much as noise and JPEG
            leave uncertain. The photographs have 38 to 100.
        burnt_share: ``burnt_share`` above which the photograph is too bright. The optic disc, often the only
            overexposed part, is about 2 % of a view of 45 degrees. The photographs have at most 0.84 %.
        sharpness: ``sharpness`` below which the photograph is too blurred. The photographs have 0.67 to 0.93. Copies
            blurred by a Gaussian with a standard deviation of 0.5 % of the FOV's diameter, half the width of a large
            vessel, have at most 0.46; with 0.3 %, they have 0.50 to 0.63.
        contrast: ``contrast`` below which there is hardly any, as in haze. The photographs have 0.030 to 0.091.
        smallest_vessel_share, largest_vessel_share: share of the field of view that is vessel, 0 to 1, below which
            there is hardly any and above which there are implausibly many. The manual annotations have 6 % to 13 %.
        connected_share: ``connected_share`` below which the vessels are in pieces, as in pictures of anything else and
            where noise hides them. Masks by the shipped weights have at least 0.82 for the photographs. Those by
            earlier weights had at least 0.54 for views of 20 degrees cut out of 14 of them, and at most 0.44 for
            eight of scikit-image's pictures of other things, cut round.
        smallest_mm, largest_mm: range of plausible diameters of the field of view on the retina; outside it, the pixel
            spacing cannot be right. Cameras see 20 to 200 degrees, of about 0.3 mm each.
    """

    fov_share: float
    beside_share: float
    smallest_diameter: float
    darkest: float
    burnt_share: float
    sharpness: float
    contrast: float
    smallest_vessel_share: float
    largest_vessel_share: float
    connected_share: float
    smallest_mm: float
    largest_mm: float

    def problems(
        self,
        figures: Mapping[str, float],
        fov: np.ndarray,
        mask: np.ndarray,
        pixel_spacing_mm: float | None = None,
    ) -> list[str]:
        """The problems of a photograph, in the order of their constants above; empty for a good one.

        Args:
            figures: its ``quality_figures``.
            fov: (H, W), non-zero on the retina.
            mask: (H, W), non-zero on vessels; pixels outside the field of view are ignored.
            pixel_spacing_mm: size of a pixel on the retina; None: unknown.
        """
        mask, fov = mask != 0, fov != 0
        vessel_share = np.count_nonzero(mask & fov) / np.count_nonzero(fov)
        found = {
            NO_BORDER: bool(fov.all()),
            CUT_OFF: not fov.all() and self._is_cut_off(fov),
            MORE_BESIDE: figures["beside_share"] > self.beside_share,
            TOO_SMALL: fov_diameter(fov) < self.smallest_diameter,
            TOO_DARK: figures["green_median"] < self.darkest,
            TOO_BRIGHT: figures["burnt_share"] > self.burnt_share,
            TOO_BLURRED: figures["sharpness"] < self.sharpness,
            LITTLE_CONTRAST: figures["contrast"] < self.contrast,
            FEW_VESSELS: vessel_share < self.smallest_vessel_share,
            MANY_VESSELS: vessel_share > self.largest_vessel_share,
            IN_PIECES: figures["connected_share"] < self.connected_share,
            IMPLAUSIBLE_SPACING: pixel_spacing_mm is not None
            and not self.smallest_mm <= fov_diameter(fov) * pixel_spacing_mm <= self.largest_mm,
        }
        return [problem for problem, is_there in found.items() if is_there]

    def _is_cut_off(self, fov: np.ndarray) -> bool:
        """A circle, even without its top and bottom, leaves the corners of its box free; a cropped one does not."""
        inside = fov[fov_box(fov)]
        diameter = max(inside.shape)
        side = max(1, diameter // _CORNER)
        corners = [inside[rows, columns] for rows in (slice(side), slice(-side, None))
                   for columns in (slice(side), slice(-side, None))]  # fmt: skip
        share = np.count_nonzero(inside) / (math.pi / 4 * diameter**2)
        return not self.fov_share <= share <= _FULLEST or any(corner.mean() > 0.5 for corner in corners)


def quality_figures(photograph: np.ndarray, fov: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """The numbers that a photograph is judged by, independent of its resolution.

    Light and detail are those of green, scaled to a field of view 500 pixels across. Detail is what is lost by
    smoothing: from a Gaussian of 1 pixel to one of 2, which is as wide as small vessels, and from there to one of 4, as
    wide as large ones. Sensor noise and JPEG blocks are finer than either.

    Args:
        photograph: (H, W, 3), uint8, RGB.
        fov: (H, W), non-zero on the retina.
        mask: (H, W), non-zero on vessels; pixels outside the field of view are ignored.

    Returns:
        - ``green_median``: median inside the field of view, 0 to 255.
        - ``burnt_share``: share of the field of view, 0 to 1, where green is saturated.
        - ``sharpness``: fine over coarse detail, standard deviations over the field of view without its rim, so that
          the contrast cancels; 0 to about 1; 0 if there is no detail at all.
        - ``contrast``: standard deviation of the fine and coarse detail together over the median, so that a factor of
          brightness cancels; 0 and more.
        - ``beside_share``: area of the largest bright part outside the field of view, as a share of the field of
          view's; 0 and more. Bright is what is nearer to the median inside than to the frame's black, or brighter.
          Strips and margins, which fill less than half of the square around them, and what touches the field of view
          do not count.
        - ``connected_share``: share of the vessels' area in connected parts whose bounding box has a diagonal of at
          least half the field of view's diameter, 0 to 1; 1 for an empty mask, which is not in pieces.

    Raises:
        ValueError: if the shapes differ or the field of view is empty.
    """
    if photograph.shape != (*fov.shape, 3) or mask.shape != fov.shape:
        raise ValueError(
            "expected a photograph (H, W, 3), a field of view and a mask of one size, "
            f"got {photograph.shape}, {fov.shape} and {mask.shape}"
        )
    fov = fov != 0
    green, inside = _small_green(photograph, fov)
    values = green[inside] if inside.any() else photograph[fov][:, 1]  # a view too thin for its small copy
    median = float(np.median(values))
    sharpness, contrast = _detail(green, inside)
    return {
        "green_median": median,
        "burnt_share": float(np.mean(values >= _BURNT)),
        "sharpness": sharpness,
        "contrast": contrast / max(median, 1),
        "beside_share": _largest_beside(photograph[..., 1], fov, median) / int(np.count_nonzero(fov)),
        "connected_share": _connected_share((mask != 0) & fov, fov_diameter(fov)),
    }


def _largest_beside(green: np.ndarray, fov: np.ndarray, retina: float) -> float:
    """Area of the largest picture beside the field of view, pixels; ``retina`` is the level inside."""
    step = max(1, int(fov_diameter(fov)) // _COARSE)
    green, fov = green[::step, ::step], fov[::step, ::step]
    frame = green[~fov]
    black = float(np.percentile(frame, 5)) if frame.size else retina
    if retina <= black + 2:  # nothing tells a picture from the frame
        return 0.0
    labels, _ = ndimage.label((green > (black + retina) / 2) & ~fov)
    areas = np.bincount(labels.ravel())
    areas[labels[ndimage.binary_dilation(fov, iterations=2)]] = 0  # a rim that a mask leaves out
    sides = [max(side.stop - side.start for side in box) for box in ndimage.find_objects(labels)]
    pictures = [area for area, side in zip(areas[1:], sides, strict=True) if area > side**2 / 2]
    return float(max(pictures, default=0)) * step**2


def _small_green(photograph: np.ndarray, fov: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Green and field of view, cropped to the latter and scaled to make it 500 pixels across."""
    box = fov_box(fov)
    height, width = (side.stop - side.start for side in box)
    scale = _DIAMETER / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    green = Image.fromarray(np.ascontiguousarray(photograph[box][..., 1])).resize(size, Image.Resampling.BILINEAR)
    inside = Image.fromarray(fov[box]).resize(size, Image.Resampling.NEAREST)
    return np.asarray(green, np.float32), np.asarray(inside, bool)


def _detail(green: np.ndarray, inside: np.ndarray) -> tuple[float, float]:
    """Fine over coarse detail, and the standard deviation of both together."""
    # The step at the rim would be the sharpest detail, so a border of three times the widest Gaussian is left out.
    core = ndimage.minimum_filter(inside, size=25, mode="constant")
    if not core.any():
        return 0.0, 0.0
    one, two, four = (ndimage.gaussian_filter(green, sigma)[core] for sigma in (1, 2, 4))
    coarse = float((two - four).std())
    return (0.0 if coarse < 1e-3 else float((one - two).std()) / coarse), float((one - four).std())


def _connected_share(vessels: np.ndarray, diameter: float) -> float:
    step = max(1, int(diameter) // _FINE)
    for axis in (0, 1):
        vessels = np.logical_or.reduceat(vessels, np.arange(0, vessels.shape[axis], step), axis=axis)
    labels, parts = ndimage.label(vessels, np.ones((3, 3)))
    if not parts:
        return 1.0
    areas = np.bincount(labels.ravel())[1:]
    sides = step * np.array([[side.stop - side.start for side in box] for box in ndimage.find_objects(labels)])
    return float(areas[np.hypot(*sides.T) >= _SPAN * diameter].sum() / areas.sum())
