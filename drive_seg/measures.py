"""Measurements of a vessel mask: density, length, calibre, branching, fractal dimension, tortuosity.

Arrays are rows first, (H, W). All lengths are those of the mask as given: a mask drawn wider has wider vessels, so
compare figures only between masks of the same network or observer.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.transforms import Transform
from scipy import ndimage

from drive_seg.arrays import to_numpy
from drive_seg.calibre import calibres
from drive_seg.centrelines import Centrelines, centrelines
from drive_seg.classes import in_names, names_of_classes
from drive_seg.errors import DriveSegError
from drive_seg.fov import fov_box, fov_diameter
from drive_seg.quality import QualityCheck, quality_figures

__all__ = ["MeasureVesselsd", "fractal_dimension", "measure_vessels"]

SMOOTHING = 0.005
"""Half width of the moving average along a centreline, as a share of the FOV's diameter; at least 5 pixels."""

SHORTEST = 0.02
"""Arc length, as a share of the FOV's diameter, below which the tortuosity of a branch means little."""

OF_CLASSES = ("vessel_density_share", "skeleton_length", "calibre_mean", "calibre_p", "length_density")
"""Beginnings of the measures that make sense of a single vessel class. Crossings cut its vessels, so that branches and
free ends, and what is measured along branches, are those of the cuts as much as those of the vessels."""

BOX_SIZES = (1 / 128, 1 / 64, 1 / 32, 1 / 16, 1 / 8)
"""Box sizes for counting, as shares of the FOV's diameter: from a wide vessel to the space between the arcades."""


def measure_vessels(mask: np.ndarray, fov: np.ndarray, pixel_spacing_mm: float | None = None) -> dict[str, float]:
    """Measure a vessel mask inside the field of view.

    A branch with a free end that is shorter than the calibre at the point where it leaves its vessel is only roughness
    of the vessel's border. Such branches are removed, repeatedly until none is left, before anything is measured.

    Args:
        mask: (H, W), bool, True on vessels.
        fov: (H, W), bool, True on the retina; pixels outside are ignored.
        pixel_spacing_mm: size of a pixel on the retina, for the lengths in millimetres; None: unknown.

    Returns:
        The measures in this order; "Empty" gives the value for an empty mask:

        - ``vessel_density_share``: area of the vessels over that of the field of view, 0 to 1. Empty: 0.
        - ``skeleton_length_px``: total length of the centrelines (Zhang & Suen, 1984), from pixel centre to pixel
          centre. A centreline begins and ends about half a calibre inside its vessel. Like the numbers of branch and
          end points, it grows with the extent of retina that is seen. Empty: 0.
        - ``calibre_mean_px``, ``calibre_p10_px``, ``calibre_p50_px``, ``calibre_p90_px``: mean and quantiles of the
          calibre over the pixels of the centrelines except branch points. The calibre is twice the greatest distance
          to the background in the 3×3 pixels around one, less 0.5. Distances go from pixel centre to pixel centre;
          uncorrected, they would give the width where it is even, and one more where it is odd and the vessel runs
          along the grid. Corrected, the error is less than a pixel at all angles. A line of single pixels has 1.5.
          Distances on a grid are roots of whole numbers, so the quantiles come in steps, of about 0.8 pixels where
          vessels are 5 wide; the mean does not. Empty: NaN.
        - ``length_density_per_px``: ``skeleton_length_px`` over the area of the field of view, comparable between
          extents. Empty: 0.
        - ``branch_points``: places where three or more branches meet. Two vessels that cross may make one or two.
          Empty: 0.
        - ``end_points``: free ends, including those at the rim of the field of view. Empty: 0.
        - ``fractal_dimension``: that of the centrelines, see the function; boxes of 1/128 to 1/8 of the FOV's diameter.
          Empty: NaN.
        - ``tortuosity``: arc over chord, 1 for straight (Lotmar et al., Graefes Arch. 211:49, 1979; Hart et al.,
          Int. J. Med. Inform. 53:239, 1999), mean over branches weighted by their arc length. Branches shorter than 2 %
          of the FOV's diameter are left out, because pixels dominate their shape, and so are those that end where they
          began, because their chord is 0. Empty, or no branch long enough: NaN.
        - with a spacing: ``skeleton_length_mm``, the four ``calibre_…_mm`` and ``length_density_per_mm``.

    Raises:
        ValueError: if the shapes differ, the field of view is empty, or the spacing is not positive.
    """
    if mask.ndim != 2 or mask.shape != fov.shape:
        raise ValueError(f"expected a mask and a field of view of one shape (H, W), got {mask.shape} and {fov.shape}")
    if pixel_spacing_mm is not None and not 0 < pixel_spacing_mm < math.inf:
        raise ValueError(f"pixel_spacing_mm: expected a positive number of millimetres or None, got {pixel_spacing_mm}")
    mask, fov = mask != 0, fov != 0
    box = fov_box(fov)
    diameter = fov_diameter(fov)
    vessels = mask[box] & fov[box]
    density = float(np.count_nonzero(vessels) / np.count_nonzero(fov))

    # A ring of background, so that vessels that touch the border of the array end there.
    vessels = np.pad(vessels, 1)
    background = ndimage.distance_transform_edt(vessels, return_distances=False, return_indices=True)
    lines = centrelines(vessels, background, max(5, round(SMOOTHING * diameter)))

    lengths = {"skeleton_length": float(lines.lengths.sum())}
    at_centre = calibres(lines.pixels[:, lines.branch >= 0], background)
    lengths["calibre_mean"] = float(at_centre.mean()) if len(at_centre) else math.nan
    for percent in (10, 50, 90):
        lengths[f"calibre_p{percent}"] = float(np.percentile(at_centre, percent)) if len(at_centre) else math.nan
    measures = {
        "vessel_density_share": density,
        **{f"{name}_px": value for name, value in lengths.items()},
        "length_density_per_px": lengths["skeleton_length"] / np.count_nonzero(fov),
        "branch_points": int(np.count_nonzero(np.bincount(lines.ends[lines.ends >= 0]) >= 3)),
        "end_points": lines.end_points,
        "fractal_dimension": fractal_dimension(lines.skeleton, [share * diameter for share in BOX_SIZES]),
        "tortuosity": _tortuosity(lines, SHORTEST * diameter),
    }
    if pixel_spacing_mm is not None:
        measures.update({f"{name}_mm": value * pixel_spacing_mm for name, value in lengths.items()})
        measures["length_density_per_mm"] = measures["length_density_per_px"] / pixel_spacing_mm
    return measures


def fractal_dimension(structure: np.ndarray, sizes: Sequence[float]) -> float:
    """Box-counting dimension: how the number of boxes that a structure touches grows as they get smaller.

    The slope of log number against -log size, by least squares: 1 for a line, 2 for an area, in between for a tree such
    as the retinal vessels (Mainster, Eye 4:235, 1990). The grid of boxes starts at each corner of the structure's
    bounding box in turn, and the four numbers are averaged, so that an eye and its mirror image give the same result.

    Args:
        structure: (H, W), bool.
        sizes: two or more side lengths of the boxes, in pixels; fractions are allowed.

    Returns:
        The dimension; NaN for an empty structure.

    Raises:
        ValueError: if there are fewer than two sizes.
    """
    if len(sizes) < 2:
        raise ValueError(f"sizes: expected two or more, got {len(sizes)}")
    rows, columns = np.nonzero(structure)
    if not len(rows):
        return math.nan
    rows, columns = rows - rows.min(), columns - columns.min()
    corners = [(down, right) for down in (rows, rows.max() - rows) for right in (columns, columns.max() - columns)]
    numbers = [np.mean([_boxes(*corner, size) for corner in corners]) for size in sizes]
    return float(np.polyfit(-np.log(sizes), np.log(numbers), 1)[0])


def _boxes(rows: np.ndarray, columns: np.ndarray, size: float) -> int:
    """Number of boxes, laid from row 0 and column 0, that hold a pixel."""
    down, right = (rows / size).astype(int), (columns / size).astype(int)
    return int(np.count_nonzero(np.bincount(down * (right.max() + 1) + right)))


class MeasureVesselsd(Transform):
    """``measure_vessels`` and the quality check for a case, as a row of a table.

    All vessel classes are measured together. If there are several, some measures follow for each of them alone, as if
    the others were background, under names that end in the class's: ``calibre_mean_px_artery``, see ``OF_CLASSES``.

    Args:
        quality: the check that names problems of a photograph.
        pixel_spacing_mm: size of a pixel on the retina, the same for all photographs; None: unknown.
        camera_angle: degrees that the field of view is across. The size of a pixel then follows from each photograph's
            own diameter, so that photographs may differ in resolution; None: unknown.
        mm_per_degree: millimetres on the retina that a camera sees in a degree, needed with ``camera_angle``.
        pred_key: mask, (1, H, W), class values, 0 for background.
        fov_key: FOV mask, (1, H, W), non-zero inside.
        photograph_key: photograph, (3, H, W), uint8.
        output_key: key for the row: ``width_px``, ``height_px``, ``fov_diameter_px``, ``fov_area_px``,
            ``pixel_spacing_mm`` if it is known, the measures, the ``quality_figures``, ``quality``, the problems
            joined by "; ", empty if there are none, and the measures of single classes.
        num_classes: number of classes, background included.
        class_names: names of the vessel classes, see ``drive_seg.classes.names_of_classes``.

    Raises:
        DriveSegError: if the spacing, the angle or the millimetres are not positive, both of the first two are given,
            or an angle without millimetres.
    """

    def __init__(
        self,
        quality: QualityCheck,
        pixel_spacing_mm: float | None = None,
        camera_angle: float | None = None,
        mm_per_degree: float | None = None,
        pred_key: str = "pred",
        fov_key: str = "fov",
        photograph_key: str = "photograph",
        output_key: str = "measures",
        num_classes: int = 2,
        class_names: Sequence[str] | None = None,
    ) -> None:
        _check_positive("pixel_spacing_mm", pixel_spacing_mm, "millimetres")
        _check_positive("camera_angle", camera_angle, "degrees")
        _check_positive("mm_per_degree", mm_per_degree, "millimetres")
        if pixel_spacing_mm is not None and camera_angle is not None:
            raise DriveSegError("pixel_spacing_mm, camera_angle: expected one of them, the other follows from it")
        self.fov_mm = None
        if camera_angle is not None:
            if mm_per_degree is None:
                raise DriveSegError("mm_per_degree: expected millimetres above 0 with camera_angle, got null")
            self.fov_mm = mm_per_degree * camera_angle
        self.pixel_spacing_mm = pixel_spacing_mm
        self.quality = quality
        self.pred_key = pred_key
        self.fov_key = fov_key
        self.photograph_key = photograph_key
        self.output_key = output_key
        self.classes = names_of_classes(num_classes, class_names)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The case with the row of its photograph under ``output_key``."""
        case = dict(data)
        values, fov = to_numpy(case[self.pred_key])[0], to_numpy(case[self.fov_key])[0] > 0
        mask = values > 0
        photograph = to_numpy(case[self.photograph_key]).transpose(1, 2, 0)
        diameter, spacing = fov_diameter(fov), self.pixel_spacing_mm
        if self.fov_mm is not None:
            spacing = self.fov_mm / diameter
        figures = quality_figures(photograph, fov, mask)
        case[self.output_key] = {
            "width_px": fov.shape[1],
            "height_px": fov.shape[0],
            "fov_diameter_px": diameter,
            "fov_area_px": int(np.count_nonzero(fov)),
            **({} if spacing is None else {"pixel_spacing_mm": spacing}),
            **measure_vessels(mask, fov, spacing),
            **figures,
            "quality": "; ".join(self.quality.problems(figures, fov, mask, spacing)),
        }
        if len(self.classes) > 1:
            for value, name in enumerate(self.classes, 1):
                measures = measure_vessels(values == value, fov, spacing)
                kept = {f"{key}_{in_names(name)}": of for key, of in measures.items() if key.startswith(OF_CLASSES)}
                case[self.output_key].update(kept)
        return case


def _check_positive(key: str, value: object, unit: str) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not (number and 0 < value < math.inf):  # type: ignore[operator]
        raise DriveSegError(f"{key}: expected {unit} above 0 or null, got {value!r}")


def _tortuosity(lines: Centrelines, shortest: float) -> float:
    kept = (lines.lengths >= shortest) & (lines.chords > 0)
    arcs = lines.lengths[kept]
    return float((arcs**2 / lines.chords[kept]).sum() / arcs.sum()) if kept.any() else math.nan
