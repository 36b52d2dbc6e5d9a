"""Measures of shapes whose geometry is known; a pixel belongs to a shape if its centre lies in it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import disc, shipped_quality_check
from scipy import ndimage

from drive_seg.errors import DriveSegError
from drive_seg.measures import MeasureVesselsd, fractal_dimension, measure_vessels
from drive_seg.phantom import make_phantom
from drive_seg.quality import TOO_SMALL, quality_figures

CHECK = shipped_quality_check()
SIZE = 300
ROWS, COLUMNS = np.mgrid[:SIZE, :SIZE].astype(float)
EVERYWHERE = np.ones((SIZE, SIZE), bool)
NO_VESSELS = {
    "vessel_density_share": 0.0,
    "skeleton_length_px": 0.0,
    "calibre_mean_px": math.nan,
    "calibre_p10_px": math.nan,
    "calibre_p50_px": math.nan,
    "calibre_p90_px": math.nan,
    "length_density_per_px": 0.0,
    "branch_points": 0.0,
    "end_points": 0.0,
    "fractal_dimension": math.nan,
    "tortuosity": math.nan,
}


def bar(start: tuple[float, float], degrees: float, length: float, width: float) -> np.ndarray:
    """A straight vessel from a (row, column) on, with square ends."""
    direction = np.exp(1j * math.radians(degrees))
    along = ((COLUMNS - start[1]) + 1j * (ROWS - start[0])) / direction
    return (along.real >= 0) & (along.real <= length) & (np.abs(along.imag) <= width / 2)


def same(found: Mapping[str, float], expected: Mapping[str, float]) -> None:
    assert list(found) == list(expected)
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-12)


@pytest.mark.parametrize(("degrees", "width"), [
    (0, 5), (10, 5), (22.5, 5), (30, 5), (45, 5), (60, 5), (90, 5), (30, 2), (30, 3), (30, 8), (30, 11),
])  # fmt: skip
def test_a_straight_bar(degrees: float, width: int) -> None:
    direction = np.exp(1j * math.radians(degrees))
    start = (150.3 - 100 * direction.imag, 150.2 - 100 * direction.real)  # no border runs through pixel centres
    found = measure_vessels(bar(start, degrees, 200, width), EVERYWHERE)
    # Half the width is lost at either end, 200 - width; less of it where the skeleton runs into a corner.
    assert 200 - width - 2 <= found["skeleton_length_px"] <= 202
    assert found["calibre_mean_px"] == pytest.approx(width, abs=1)
    assert found["calibre_p50_px"] == pytest.approx(width, abs=1)
    assert (found["branch_points"], found["end_points"]) == (0, 2)
    assert 1 <= found["tortuosity"] < 1.012
    # 200 × width of 300 × 300 pixels; the pixels whose centres lie in a bar are an area of 201 × (width + 1) at most.
    assert 199 * (width - 1) <= found["vessel_density_share"] * SIZE**2 <= 201 * (width + 1)


def test_a_bar_along_the_grid_by_hand() -> None:
    vessels = np.zeros((SIZE, SIZE), bool)
    vessels[100:107, 50:250] = True
    found = measure_vessels(vessels, EVERYWHERE, pixel_spacing_mm=0.01)
    assert found["vessel_density_share"] == 7 * 200 / 300**2
    # The middle row is 4 pixels from the nearest background: 2 × 4 - 0.5.
    assert found["calibre_p10_px"] == found["calibre_p50_px"] == found["calibre_p90_px"] == 7.5
    assert found["calibre_p50_mm"] == pytest.approx(0.075)
    assert found["skeleton_length_mm"] == pytest.approx(found["skeleton_length_px"] * 0.01)
    assert [name for name in found if name.endswith("_mm")] == [
        name.replace("_px", "_mm") for name in found if name.endswith("_px")
    ]


def test_quantiles_of_two_calibres() -> None:
    vessels = np.zeros((SIZE, SIZE), bool)
    vessels[50:55, 20:280] = True
    vessels[200:211, 20:280] = True
    found = measure_vessels(vessels, EVERYWHERE)
    # 5 and 11 pixels wide, half of the length each: 2 × 3 - 0.5 and 2 × 6 - 0.5, mean 8.5.
    assert (found["calibre_p10_px"], found["calibre_p90_px"]) == (5.5, 11.5)
    assert found["calibre_mean_px"] == pytest.approx(8.5, abs=0.15)


@pytest.mark.parametrize("turn", [0, 20, 45, 77])
def test_a_y(turn: float) -> None:
    vessels = disc(SIZE, SIZE, 150, 150, 3)
    for degrees in (0, 120, 240):
        vessels |= bar((150, 150), turn + degrees, 100, 6)
    found = measure_vessels(vessels, EVERYWHERE)
    assert (found["branch_points"], found["end_points"]) == (1, 3)
    # Three arms of 100, each up to 3 pixels short.
    assert 3 * (100 - 3) - 6 <= found["skeleton_length_px"] <= 3 * 100 + 6
    assert found["tortuosity"] < 1.015


def test_a_ring_with_two_vessels() -> None:
    ring = np.abs(np.hypot(ROWS - 150, COLUMNS - 150) - 80) <= 3
    found = measure_vessels(ring, EVERYWHERE)
    assert found["skeleton_length_px"] == pytest.approx(2 * math.pi * 80, rel=0.01)
    assert (found["branch_points"], found["end_points"]) == (0, 0)
    assert math.isnan(found["tortuosity"]), "it ends where it began"
    both = ring | bar((150, 10), 0, 65, 6) | bar((150, 225), 0, 65, 6)
    found = measure_vessels(both, EVERYWHERE)
    assert (found["branch_points"], found["end_points"]) == (2, 2)
    # Two half circles, π/2 each, and two straight lines of 140 - 80 pixels, weighted by their lengths.
    half = math.pi * 80
    expected = (2 * half * math.pi / 2 + 2 * 60 * 1) / (2 * half + 2 * 60)
    assert found["tortuosity"] == pytest.approx(expected, rel=0.015)


@pytest.mark.parametrize("degrees", [60, 120, 180, 270])
def test_an_arc_of_a_circle(degrees: float) -> None:
    radius, width = 100, 6
    angle = np.degrees(np.arctan2(ROWS - 150, COLUMNS - 150)) % 360
    arc = (np.abs(np.hypot(ROWS - 150, COLUMNS - 150) - radius) <= width / 2) & (angle <= degrees)
    found = measure_vessels(arc, EVERYWHERE)
    # Up to half the width is lost at either end. Arc r·a over chord 2·r·sin(a/2): 1.047, 1.209, 1.571, 3.332.
    longest = math.radians(degrees)
    shortest = longest - width / radius
    ratio = [angle / 2 / math.sin(angle / 2) for angle in (shortest, longest)]
    assert ratio[0] * 0.99 <= found["tortuosity"] <= ratio[1] * 1.02, "2 %: a skeleton may end in a corner"
    assert radius * shortest - 2 <= found["skeleton_length_px"] <= radius * longest + 2


def test_short_branches_have_no_tortuosity() -> None:
    vessels = np.zeros((SIZE, SIZE), bool)
    vessels[100, 20:200] = True
    straight = measure_vessels(vessels, EVERYWHERE)
    vessels[200, 20:23] = vessels[201, 23:25] = True  # 4.2 pixels, less than 2 % of 300
    assert measure_vessels(vessels, EVERYWHERE)["tortuosity"] == straight["tortuosity"] == 1
    alone = vessels.copy()
    alone[100] = False
    assert math.isnan(measure_vessels(alone, EVERYWHERE)["tortuosity"])


def test_a_rough_border_has_no_branches() -> None:
    vessels = np.zeros((SIZE, SIZE), bool)
    vessels[140:160, 20:280] = True
    vessels[136:140, 60:280:40] = vessels[160:163, 75:270:40] = True
    found = measure_vessels(vessels, EVERYWHERE)
    assert (found["branch_points"], found["end_points"]) == (0, 2)
    vessels[100:140, 150:153] = True  # 50 pixels from the centreline, more than the 20 of the calibre
    found = measure_vessels(vessels, EVERYWHERE)
    assert (found["branch_points"], found["end_points"]) == (1, 3)


def test_what_is_left_of_a_twig_may_be_roughness_itself() -> None:
    """A T on a vessel 20 pixels wide: its arms, shorter than it is thick, go first, and then its stem."""
    vessels = np.zeros((SIZE, SIZE), bool)
    vessels[140:160, 20:280] = True
    vessels[137:140, 149:152] = vessels[132:137, 145:156] = True
    found = measure_vessels(vessels, EVERYWHERE)
    assert (found["branch_points"], found["end_points"]) == (0, 2)


def test_the_calibre_is_not_measured_where_lines_cross() -> None:
    vessels = np.zeros((SIZE, SIZE), bool)
    vessels[150, 110:191] = vessels[110:191, 150] = True
    found = measure_vessels(vessels, EVERYWHERE)
    # Four arms of 40 pixels. From where they cross, the background is √2 away, which counts in the pixel beside it.
    assert found["branch_points"] == 1
    assert found["calibre_mean_px"] == pytest.approx(1.5 + 4 * (2 * math.sqrt(2) - 2) / 160)


@pytest.mark.parametrize(("diameter", "bent"), [(300, True), (3000, False)])
def test_waves_of_less_than_a_hundredth_of_the_diameter_are_roughness(diameter: int, bent: bool) -> None:
    """A zigzag of 24 pixels: 8 % of 300 and 0.8 % of 3000."""
    vessels = np.zeros((60, diameter), bool)
    columns = np.arange(20, diameter - 20)
    row = 26 + np.rint(np.abs(columns % 24 - 12) / 2).astype(int)
    for line in (row - 1, row, row + 1):
        vessels[line, columns] = True
    assert (measure_vessels(vessels, np.ones_like(vessels))["tortuosity"] > 1.02) is bent


def test_drawn_by_hand() -> None:
    vessels = np.zeros((SIZE, SIZE), bool)
    vessels[100, 50:151] = True
    vessels[range(101, 151), range(49, -1, -1)] = True  # diagonal, on from the line's first pixel
    found = measure_vessels(vessels, EVERYWHERE)
    # One chain with a corner at (100, 50): 100 steps of 1 and 50 of √2, cut where the moving average rounds the corner.
    assert found["skeleton_length_px"] == pytest.approx(100 + 50 * math.sqrt(2), abs=2)
    assert found["end_points"] == 2 and found["branch_points"] == 0
    assert found["calibre_mean_px"] == pytest.approx(1.5, abs=0.05)


def test_a_single_pixel() -> None:
    vessels = np.zeros((SIZE, SIZE), bool)
    vessels[7, 9] = True
    expected = {
        **NO_VESSELS,
        "vessel_density_share": 1 / SIZE**2,
        **dict.fromkeys(("calibre_mean_px", "calibre_p10_px", "calibre_p50_px", "calibre_p90_px"), 1.5),
        "end_points": 1.0,
        "fractal_dimension": 0.0,
    }
    found = measure_vessels(vessels, EVERYWHERE)
    assert abs(found.pop("fractal_dimension") - expected.pop("fractal_dimension")) < 1e-12
    same(found, expected)


def test_no_vessel() -> None:
    same(measure_vessels(~EVERYWHERE, EVERYWHERE), NO_VESSELS)
    assert math.isnan(measure_vessels(~EVERYWHERE, EVERYWHERE, 0.01)["calibre_mean_mm"])


def test_all_vessel() -> None:
    found = measure_vessels(EVERYWHERE, EVERYWHERE)
    assert found["vessel_density_share"] == 1 and found["calibre_p90_px"] > 200


def test_pixels_outside_the_field_of_view_change_nothing() -> None:
    phantom = make_phantom(3, 200, 190)
    inside = measure_vessels(phantom.vessels & phantom.fov, phantom.fov)
    noise = np.random.default_rng(0).random(phantom.fov.shape) < 0.3
    same(measure_vessels(phantom.vessels | (noise & ~phantom.fov), phantom.fov), inside)


def test_black_around_the_photograph_changes_nothing() -> None:
    phantom = make_phantom(3, 200, 190)
    larger = [np.pad(array, 150) for array in (phantom.vessels, phantom.fov)]
    same(measure_vessels(*larger), measure_vessels(phantom.vessels, phantom.fov))


def test_turned_and_mirrored_alike() -> None:
    phantom = make_phantom(4, 400, 380)
    one = measure_vessels(phantom.vessels, phantom.fov)
    for vessels, fov in (
        (phantom.vessels.T, phantom.fov.T),
        (phantom.vessels[::-1], phantom.fov[::-1]),
        (phantom.vessels[:, ::-1], phantom.fov[:, ::-1]),
    ):
        other = measure_vessels(vessels, fov)
        assert other["vessel_density_share"] == one["vessel_density_share"]
        for name in ("skeleton_length_px", "calibre_mean_px", "fractal_dimension", "tortuosity"):
            assert other[name] == pytest.approx(one[name], rel=0.02), name
        assert fractal_dimension(vessels, [3, 7.5, 20]) == fractal_dimension(phantom.vessels, [3, 7.5, 20])
        for name in ("branch_points", "end_points"):
            assert other[name] == pytest.approx(one[name], rel=0.1), name


def test_twice_the_resolution_measures_alike() -> None:
    phantom = make_phantom(5, 500, 480)
    double = [np.kron(array, np.ones((2, 2), bool)) for array in (phantom.vessels, phantom.fov)]
    one, two = measure_vessels(phantom.vessels, phantom.fov, 0.02), measure_vessels(*double, pixel_spacing_mm=0.01)
    assert two["vessel_density_share"] == one["vessel_density_share"]
    for name in ("skeleton_length_mm", "fractal_dimension", "tortuosity"):
        assert two[name] == pytest.approx(one[name], rel=0.03), name
    assert two["calibre_p50_mm"] == pytest.approx(one["calibre_p50_mm"], abs=0.02)


def test_a_phantoms_branches_have_their_calibres() -> None:
    phantom = make_phantom(6, 900, 900)
    found = measure_vessels(phantom.vessels, phantom.fov)
    # Twice the area over the length of the border: right for any straight or bent ribbon, whatever its skeleton is.
    border = np.count_nonzero(phantom.vessels & ~ndimage.binary_erosion(phantom.vessels))
    by_area = 2 * np.count_nonzero(phantom.vessels) / border
    assert found["calibre_mean_px"] == pytest.approx(by_area, rel=0.25)


def test_dimensions() -> None:
    sizes = [4, 8, 16, 32, 64]
    # (512/4)², …, (512/64)² boxes; 512/4, …, 512/64 boxes; one box whatever its size.
    assert fractal_dimension(np.ones((512, 512), bool), sizes) == pytest.approx(2)
    assert fractal_dimension(np.eye(512, dtype=bool), sizes) == pytest.approx(1)
    assert fractal_dimension(np.ones((1, 512), bool), sizes) == pytest.approx(1)
    assert fractal_dimension(np.ones((1, 1), bool), sizes) == pytest.approx(0)
    assert math.isnan(fractal_dimension(np.zeros((5, 5), bool), sizes))


def test_dimension_of_sierpinskis_carpet() -> None:
    carpet = np.ones((1, 1), bool)
    for _ in range(5):
        tile = np.ones((3, 3), bool)
        tile[1, 1] = False
        carpet = np.kron(tile, carpet)
    # 8 copies of a third of the size.
    assert fractal_dimension(carpet, [1, 3, 9, 27]) == pytest.approx(math.log(8) / math.log(3))


@pytest.mark.parametrize("spacing", [0.0, -1.0, math.nan, math.inf])
def test_spacings_that_are_none(spacing: float) -> None:
    with pytest.raises(ValueError, match="pixel_spacing_mm: expected a positive number"):
        measure_vessels(EVERYWHERE, EVERYWHERE, spacing)


def test_arrays_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="of one shape"):
        measure_vessels(EVERYWHERE, EVERYWHERE[:-1])
    with pytest.raises(ValueError, match="field of view is empty"):
        measure_vessels(EVERYWHERE, ~EVERYWHERE)


def test_eight_megapixels_take_seconds() -> None:
    phantom = make_phantom(0, 584, 876)
    large = [np.kron(array, np.ones((4, 4), bool)) for array in (phantom.vessels, phantom.fov)]
    begun = time.process_time()
    measure_vessels(*large)
    assert time.process_time() - begun < 15, "it is about one second"


def case_of(vessels: np.ndarray, photograph: np.ndarray, fov: np.ndarray) -> dict[str, torch.Tensor]:
    return {
        "pred": torch.from_numpy(vessels[None].astype(np.uint8)),
        "fov": torch.from_numpy(fov[None].astype(np.uint8)),
        "photograph": torch.from_numpy(photograph.transpose(2, 0, 1).copy()),
    }


def test_a_case_is_a_row() -> None:
    phantom = make_phantom(1, 300, 280)
    case = case_of(phantom.vessels, phantom.image, phantom.fov)
    row = MeasureVesselsd(CHECK, pixel_spacing_mm=0.03)(case)["measures"]
    assert "measures" not in case
    expected = measure_vessels(phantom.vessels, phantom.fov, 0.03)
    figures = quality_figures(phantom.image, phantom.fov, phantom.vessels)
    about = ["width_px", "height_px", "fov_diameter_px", "fov_area_px"]
    assert list(row) == [*about, "pixel_spacing_mm", *expected, *figures, "quality"]
    assert (row["width_px"], row["height_px"], row["quality"]) == (280, 300, TOO_SMALL)
    assert row["pixel_spacing_mm"] == 0.03
    assert {name: row[name] for name in (*expected, *figures)} == {**expected, **figures}
    assert list(MeasureVesselsd(CHECK)(case)["measures"])[:5] == [*about, "vessel_density_share"], "no millimetres"


def test_columns_of_single_classes_follow_those_of_all_vessels() -> None:
    phantom = make_phantom(1, 300, 280)
    case = case_of(phantom.artery_vein, phantom.image, phantom.fov)
    together = MeasureVesselsd(CHECK, pixel_spacing_mm=0.03)(case)["measures"]
    row = MeasureVesselsd(CHECK, 0.03, num_classes=3, class_names=["artery", "small vein"])(case)["measures"]
    expected = {}
    for value, name in ((1, "artery"), (2, "small_vein")):
        alone = measure_vessels(phantom.artery_vein == value, phantom.fov, 0.03)
        left_out = {"branch_points", "end_points", "fractal_dimension", "tortuosity"}
        expected |= {f"{key}_{name}": alone[key] for key in alone.keys() - left_out}
    assert set(list(row)[len(together) :]) == expected.keys()
    assert row == {**together, **expected}
    assert "vessel_density_share_class_2" in MeasureVesselsd(CHECK, num_classes=3)(case)["measures"]
    shares = [row[f"vessel_density_share{end}"] for end in ("", "_artery", "_small_vein")]
    assert shares[0] == pytest.approx(sum(shares[1:]))


@pytest.mark.parametrize(("spacing", "told"), [(None, False), (0.03, False), (0.005, True), (0.5, True)])
def test_a_spacing_that_no_retina_can_have(spacing: float | None, told: bool) -> None:
    phantom = make_phantom(1, 300, 280)
    row = MeasureVesselsd(CHECK, spacing)(case_of(phantom.vessels, phantom.image, phantom.fov))["measures"]
    assert ("implausible pixel spacing" in row["quality"]) is told


def test_the_cameras_angle_gives_each_photograph_its_spacing() -> None:
    """30 degrees are 9 mm, however many pixels they have."""
    for side in (300, 600):
        phantom = make_phantom(1, side, side)
        case = case_of(phantom.vessels, phantom.image, phantom.fov)
        row = MeasureVesselsd(CHECK, camera_angle=30, mm_per_degree=0.3)(case)["measures"]
        assert row["pixel_spacing_mm"] == pytest.approx(9 / row["fov_diameter_px"])
        assert row["skeleton_length_mm"] == pytest.approx(row["skeleton_length_px"] * row["pixel_spacing_mm"])
        assert "spacing" not in row["quality"]
    with pytest.raises(DriveSegError, match="pixel_spacing_mm, camera_angle: expected one of them"):
        MeasureVesselsd(CHECK, pixel_spacing_mm=0.01, camera_angle=30)


def test_length_over_area() -> None:
    phantom = make_phantom(1, 300, 280)
    row = measure_vessels(phantom.vessels, phantom.fov, 0.03)
    assert row["length_density_per_px"] == pytest.approx(row["skeleton_length_px"] / phantom.fov.sum())
    assert row["length_density_per_mm"] == pytest.approx(row["skeleton_length_mm"] / (phantom.fov.sum() * 0.03**2))


def test_problems_are_joined_and_their_limits_set() -> None:
    phantom = make_phantom(1, 300, 280)
    case = case_of(phantom.vessels, phantom.image, phantom.fov)
    strict = replace(CHECK, smallest_diameter=1, darkest=256, smallest_vessel_share=1)
    assert MeasureVesselsd(quality=strict)(case)["measures"]["quality"] == "too dark; hardly any vessel"


@pytest.mark.parametrize("wrong", [0, -0.1, "fine", math.nan, True])
def test_spacings_and_angles_that_a_config_must_not_have(wrong: object) -> None:
    with pytest.raises(DriveSegError, match="pixel_spacing_mm: expected millimetres above 0 or null, got"):
        MeasureVesselsd(CHECK, pixel_spacing_mm=wrong)  # type: ignore[arg-type]
    with pytest.raises(DriveSegError, match="camera_angle: expected degrees above 0 or null, got"):
        MeasureVesselsd(CHECK, camera_angle=wrong)  # type: ignore[arg-type]
    with pytest.raises(DriveSegError, match="mm_per_degree: expected millimetres above 0 or null, got"):
        MeasureVesselsd(CHECK, camera_angle=30, mm_per_degree=wrong)  # type: ignore[arg-type]
    with pytest.raises(DriveSegError, match="mm_per_degree: expected millimetres above 0 with camera_angle, got null"):
        MeasureVesselsd(CHECK, camera_angle=30)


def test_class_values_are_vessels() -> None:
    classes = np.zeros((60, 60), np.uint8)
    classes[20, 5:55], classes[40, 5:55] = 1, 2
    for fov in (np.ones((60, 60), bool), np.ones((60, 60), np.float32)):
        assert measure_vessels(classes, fov) == measure_vessels(classes > 0, fov != 0)
    with pytest.raises(ValueError, match="sizes: expected two or more, got 1"):
        fractal_dimension(classes > 0, [5])
