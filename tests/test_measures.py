from __future__ import annotations

import math

import numpy as np
import pytest
from builders import disc, tensor
from skimage.draw import line, polygon

from drive_seg.errors import DriveSegError
from drive_seg.measures import MeasureVesselsd, box_dimension, measure_vessels

EVERYWHERE = np.ones((400, 400), dtype=bool)


def bar(width: float, degrees: float, length: float = 240) -> np.ndarray:
    """A straight vessel through the centre of 400×400 pixels."""
    along = np.array([math.sin(math.radians(degrees)), math.cos(math.radians(degrees))])
    across = np.array([along[1], -along[0]])
    corners = [200 + a * along * length / 2 + b * across * width / 2 for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    mask = np.zeros((400, 400), dtype=bool)
    mask[polygon(*np.array(corners).T)] = True
    return mask


@pytest.mark.parametrize("degrees", [0, 17, 30, 45, 72, 90])
@pytest.mark.parametrize("width", [5, 9, 14])
def test_straight_bar(width: int, degrees: float) -> None:
    mask = bar(width, degrees)
    measures = measure_vessels(mask, EVERYWHERE)
    assert measures["calibre_p50_px"] == pytest.approx(mask.sum() / 240, abs=1.0), "as it was drawn, on whole pixels"
    # Thinning takes about half a width off either end or forks there; a chain of pixels is up to 8 % longer.
    assert 240 - 2 * width <= measures["skeleton_length_px"] <= 1.09 * 240 + 2 * width
    assert 1.0 <= measures["tortuosity"] < 1.09
    assert measures["vessel_density"] == mask.sum() / 400**2


def test_one_pixel_wide_by_hand() -> None:
    mask = np.zeros((20, 30), dtype=bool)
    mask[4, 3:15] = True  # 12 pixels, 11 links
    measures = measure_vessels(mask, np.ones_like(mask))
    assert measures["skeleton_length_px"] == 11
    assert measures["end_points"] == 2 and measures["branch_points"] == 0
    assert measures["calibre_mean_px"] == 1.5, "2 × 1 - 0.5: right to half a pixel"
    assert measures["tortuosity"] == 1
    assert measures["vessel_density"] == 12 / 600


def test_a_diagonal_and_a_corner() -> None:
    diagonal = np.eye(30, dtype=bool)
    measures = measure_vessels(diagonal, np.ones_like(diagonal))
    assert measures["skeleton_length_px"] == pytest.approx(29 * math.sqrt(2))
    assert measures["tortuosity"] == pytest.approx(1)
    corner = np.zeros((60, 60), dtype=bool)
    corner[10, 10:51] = corner[10:51, 50] = (
        True  # 40 right and 40 down; the chord is 40 √2; thinning may cut the corner
    )
    tortuosity = measure_vessels(corner, np.ones_like(corner))["tortuosity"]
    assert tortuosity == pytest.approx(80 / (40 * math.sqrt(2)), rel=0.01)


def test_y_has_three_ends_and_one_branching() -> None:
    figure = np.zeros((200, 200), dtype=bool)
    for end in ((180, 100), (20, 40), (20, 160)):
        figure[line(100, 100, *end)] = True
    measures = measure_vessels(figure, np.ones_like(figure))
    assert measures["end_points"] == 3 and measures["branch_points"] == 1


def test_a_semicircle_is_half_pi_as_long_as_its_chord() -> None:
    ring = disc(300, 300, 150, 150, 101) & ~disc(300, 300, 150, 150, 98)
    ring[151:] = False
    measures = measure_vessels(ring, np.ones_like(ring))
    assert measures["tortuosity"] == pytest.approx(math.pi / 2, rel=0.07)
    assert measures["end_points"] == 2


def test_a_ring_has_neither_ends_nor_a_tortuosity() -> None:
    ring = disc(300, 300, 150, 150, 101) & ~disc(300, 300, 150, 150, 98)
    measures = measure_vessels(ring, np.ones_like(ring))
    assert measures["end_points"] == 0 and math.isnan(measures["tortuosity"])
    assert measures["skeleton_length_px"] == pytest.approx(2 * math.pi * 99.5, rel=0.08)


def test_dimensions_of_a_point_a_line_and_an_area() -> None:
    point, row = np.zeros((2, 512, 512), dtype=bool)
    point[100, 100] = row[200] = True
    assert box_dimension(point) == pytest.approx(0)
    assert box_dimension(row) == pytest.approx(1)
    assert box_dimension(np.ones((512, 512), dtype=bool)) == pytest.approx(2)
    sierpinski = np.array([[1]])
    for _ in range(9):
        sierpinski = np.block([[sierpinski, np.zeros_like(sierpinski)], [sierpinski, sierpinski]])
    assert box_dimension(sierpinski > 0) == pytest.approx(math.log2(3), abs=1e-6)


def test_millimetres() -> None:
    mask = bar(9, 30)
    measures = measure_vessels(mask, EVERYWHERE, 0.005)
    for name in ("skeleton_length", "calibre_mean", "calibre_p90", "fov_diameter"):
        assert measures[f"{name}_mm"] == pytest.approx(0.005 * measures[f"{name}_px"])
    assert not any(name.endswith("_mm") for name in measure_vessels(mask, EVERYWHERE))


def test_only_the_field_of_view_counts() -> None:
    mask, fov = bar(9, 0), disc(400, 400, 200, 200, 80)
    assert measure_vessels(mask, fov) == measure_vessels(mask & fov, fov)


def test_no_vessel() -> None:
    measures = measure_vessels(np.zeros((64, 64), dtype=bool), np.ones((64, 64), dtype=bool))
    assert measures["vessel_density"] == measures["skeleton_length_px"] == measures["end_points"] == 0
    assert all(math.isnan(measures[name]) for name in ("calibre_mean_px", "fractal_dimension", "tortuosity"))


@pytest.mark.parametrize("spacing", [0, -1.0, math.nan])
def test_spacing_is_positive(spacing: float) -> None:
    with pytest.raises(ValueError, match="pixel_spacing_mm: expected a positive number"):
        measure_vessels(EVERYWHERE, EVERYWHERE, spacing)
    with pytest.raises(DriveSegError, match="pixel_spacing_mm"):
        MeasureVesselsd(spacing)


def test_of_a_case() -> None:
    mask = bar(9, 30)
    case = {"pred": tensor(mask[None].astype(np.uint8) * 2), "fov": tensor(EVERYWHERE[None].astype(np.uint8))}
    assert MeasureVesselsd(0.01)(case)["measures"] == measure_vessels(mask, EVERYWHERE, 0.01)
