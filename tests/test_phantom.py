"""Phantoms: what is annotated is what is in the photograph, and the files are like DRIVE's."""

from __future__ import annotations

import runpy
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from public_datasets import fingerprints
from scipy import ndimage

from drive_seg.data import load_datalist
from drive_seg.errors import DriveSegError
from drive_seg.names import case_id
from drive_seg.phantom import ARTERY, VEIN, Branch, Phantom, make_phantom, write_phantom_dataset
from drive_seg.phantom_photograph import draw

SCRIPT = ROOT / "data_scripts" / "make_phantom.py"
SEEDS = range(5)


@pytest.fixture(scope="module")
def phantoms() -> list[Phantom]:
    return [make_phantom(seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantom_dataset(folder, training=6, test=2, seed=3, height=113, width=97)
    return folder


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path in it."""
    return {name: digest for name, (digest, _) in fingerprints(folder).items()}


def raw(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "P"
        return np.asarray(image)


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * np.count_nonzero(first & second) / (np.count_nonzero(first) + np.count_nonzero(second))


def test_same_seed_same_pixels_and_other_seed_other_eye() -> None:
    first, again, other = make_phantom(5, 160, 150), make_phantom(5, 160, 150), make_phantom(6, 160, 150)
    for name in ("image", "vessels", "artery_vein", "fov", "second_observer"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
        assert (getattr(first, name) != getattr(other, name)).any(), name
    assert len(first.branches) == len(again.branches)
    np.testing.assert_array_equal(first.branches[-1].points, again.branches[-1].points)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 128), (131, 257), (300, 201), (584, 565)])
def test_shapes_types_and_values_at_every_size(height: int, width: int) -> None:
    phantom = make_phantom(1, height, width)
    assert phantom.image.shape == (height, width, 3)
    assert phantom.image.dtype == np.uint8
    assert phantom.artery_vein.dtype == np.uint8
    for plane in (phantom.vessels, phantom.fov, phantom.second_observer):
        assert plane.shape == (height, width)
        assert plane.dtype == bool
    assert set(np.unique(phantom.artery_vein)) == {0, ARTERY, VEIN}
    assert 0.04 < phantom.vessels[phantom.fov].mean() < 0.2


def test_annotations_agree_and_stay_inside_the_field_of_view(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        np.testing.assert_array_equal(phantom.artery_vein > 0, phantom.vessels)
        assert not phantom.vessels[~phantom.fov].any()
        assert not phantom.second_observer[~phantom.fov].any()
        for kind in (ARTERY, VEIN):
            assert (phantom.artery_vein == kind).sum() > 0.25 * phantom.vessels.sum()


def test_field_of_view_is_a_whole_circle_with_black_around_it(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        rows, columns = np.nonzero(phantom.fov)
        diameter = rows.max() - rows.min() + 1
        assert abs(columns.max() - columns.min() + 1 - diameter) <= 1
        assert phantom.fov.sum() == pytest.approx(np.pi / 4 * diameter**2, rel=0.01)
        assert not phantom.fov[[0, -1]].any()
        assert not phantom.fov[:, [0, -1]].any()
        outside = ~ndimage.binary_dilation(phantom.fov, iterations=4)
        assert phantom.image[outside].mean() < 8
        assert phantom.image[outside].std() > 0.2
        assert phantom.image[phantom.fov][:, 0].mean() > 80


def test_vessels_cover_as_much_as_in_real_annotations(phantoms: list[Phantom]) -> None:
    shares = [phantom.vessels[phantom.fov].mean() for phantom in phantoms]
    assert all(0.07 < share < 0.15 for share in shares), shares


def test_vessels_are_as_fine_as_one_pixel_and_as_wide_as_seven(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        opened = ndimage.binary_opening(phantom.vessels, np.ones((2, 2)))
        assert (phantom.vessels & ~opened).sum() > 300
        assert ndimage.distance_transform_edt(phantom.vessels).max() > 3.5


def test_vessels_are_darker_than_what_is_around_them_in_green(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        green = phantom.image[..., 1].astype(float)
        beside = ndimage.binary_erosion(phantom.fov, iterations=8) & ~ndimage.binary_dilation(phantom.vessels)
        weight = ndimage.gaussian_filter(beside.astype(float), 6.0)
        background = ndimage.gaussian_filter(green * beside, 6.0) / np.maximum(weight, 1e-6)
        inside = phantom.vessels & (weight > 0.1)
        contrast = (background - green) / np.maximum(background, 1)
        veins = contrast[inside & (phantom.artery_vein == VEIN)].mean()
        arteries = contrast[inside & (phantom.artery_vein == ARTERY)].mean()
        assert arteries > 0.06
        assert veins > 1.15 * arteries
        assert (contrast[inside] > 0).mean() > 0.85


def test_macula_is_dark_and_holds_no_vessels_and_the_disc_is_bright(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        green = phantom.image[..., 1].astype(float)
        rows, columns = np.indices(phantom.fov.shape)
        from_disc = np.hypot(rows - phantom.disc[0], columns - phantom.disc[1]) / phantom.disc_radius
        from_fovea = np.hypot(rows - phantom.fovea[0], columns - phantom.fovea[1]) / phantom.disc_radius
        assert not phantom.vessels[from_fovea < 0.4].any()
        bare = phantom.fov & ~ndimage.binary_dilation(phantom.vessels, iterations=2)
        around = green[bare & (from_fovea > 1.2) & (from_fovea < 2.0)].mean()
        assert green[from_fovea < 0.4].mean() < 0.9 * around
        assert green[bare & (from_disc < 0.8)].mean() > 1.4 * green[bare & (from_disc > 1.8) & (from_disc < 2.5)].mean()


def test_branches_are_the_geometry_of_the_annotation(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        redrawn = draw(phantom.branches, [0.0] * len(phantom.branches), phantom.fov.shape).depth <= 0
        np.testing.assert_array_equal(redrawn & phantom.fov, phantom.vessels)
        for number, branch in enumerate(phantom.branches):
            assert branch.points.shape == (len(branch.radius), 2)
            assert (np.diff(branch.radius) <= 1e-9).all()
            assert branch.radius.min() >= 0.5
            if branch.parent is None:
                assert branch.level == 0
                continue
            parent = phantom.branches[branch.parent]
            assert branch.parent < number
            assert (parent.kind, parent.level) == (branch.kind, branch.level - 1)
            gap = np.linalg.norm(parent.points - branch.points[0], axis=1)
            assert gap.min() < 1e-6
            assert branch.radius[0] <= parent.radius[gap.argmin()]


def test_trunks_taper_and_veins_are_wider_than_arteries(phantoms: list[Phantom]) -> None:
    widest: dict[int, list[float]] = {ARTERY: [], VEIN: []}
    for phantom in phantoms:
        for kind, radii in widest.items():
            trunk = max((branch for branch in phantom.branches if branch.kind == kind), key=lambda b: b.radius[0])
            assert trunk.radius[-1] < 0.8 * trunk.radius[0]
            radii.append(trunk.radius[0])
    assert 0.6 < np.mean(widest[ARTERY]) / np.mean(widest[VEIN]) < 0.9


def test_murrays_law_holds_at_a_bifurcation(phantoms: list[Phantom]) -> None:
    checked = 0
    for branch in phantoms[0].branches:
        if branch.parent is None or branch.radius[0] < 1.0:
            continue
        parent = phantoms[0].branches[branch.parent]
        place = np.linalg.norm(parent.points - branch.points[0], axis=1).argmin()
        if len(parent.radius) - place < 35:  # the last 30 points taper towards the end
            continue
        before, after = parent.radius[place - 1], parent.radius[place]
        assert before**3 == pytest.approx(after**3 + branch.radius[0] ** 3, rel=0.02)
        checked += 1
    assert checked > 5


def test_second_observer_misses_fine_vessels_and_shifts_borders(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        assert 0.7 < dice(phantom.vessels, phantom.second_observer) < 0.93
        wide = ndimage.binary_opening(phantom.vessels, np.ones((3, 3)))
        fine = phantom.vessels & ~ndimage.binary_dilation(wide, iterations=2)
        assert phantom.second_observer[wide].mean() > 0.85
        assert phantom.second_observer[fine].mean() < 0.8
        assert (phantom.second_observer & ~phantom.vessels).any()


def test_eyes_are_left_and_right_and_colours_differ(phantoms: list[Phantom]) -> None:
    sides = {phantom.disc[1] > phantom.fovea[1] for phantom in phantoms}
    assert sides == {True, False}
    colours = np.array([phantom.image[phantom.fov].mean(axis=0) for phantom in phantoms])
    assert colours[:, 1].std() > 3


def test_same_seed_is_the_same_eye_at_another_size() -> None:
    small, large = make_phantom(2, 300, 300).vessels, make_phantom(2, 600, 600).vessels
    wide = ndimage.distance_transform_edt(large)[::2, ::2] > 2.5
    assert ndimage.binary_dilation(small)[wide].mean() > 0.97


def test_straight_vessel_has_the_pixels_whose_centres_it_covers() -> None:
    line = Branch(VEIN, np.array([[4.0, 3.0], [4.0, 9.0]]), np.array([1.5, 1.5]), 0, None)
    drawing = draw([line], [0.0], (9, 13))
    expected = np.zeros((9, 13), dtype=bool)
    expected[3:6, 2:11] = True  # 1.5 above and below row 4, round ends reach columns 1.5 and 10.5
    expected[[3, 3, 5, 5], [2, 10, 2, 10]] = True  # sqrt(1 + 1) < 1.5
    np.testing.assert_array_equal(drawing.depth <= 0, expected)
    assert drawing.depth[4, 6] == pytest.approx(-1.5)
    assert drawing.depth[6, 6] == pytest.approx(0.5)
    assert np.isinf(drawing.depth[8, 6])


def test_tapering_vessel_has_its_radius_in_between() -> None:
    cone = Branch(ARTERY, np.array([[6.0, 2.0], [6.0, 12.0]]), np.array([3.0, 1.0]), 0, None)
    drawing = draw([cone], [0.0], (13, 16))
    assert drawing.radius[6, 2:13:5].tolist() == pytest.approx([3.0, 2.0, 1.0])
    assert (drawing.depth[:, 7] <= 0).sum() == 5


def test_time() -> None:
    make_phantom(0)
    start = time.process_time()
    make_phantom(1)
    assert time.process_time() - start < 3.0


@pytest.mark.parametrize("arguments", [(-1,), (0, 63, 500), (0, 500, 0)])
def test_arguments_out_of_range_are_named(arguments: tuple[int, ...]) -> None:
    with pytest.raises(DriveSegError, match=r"expected .* got"):
        make_phantom(*arguments)


def test_dataset_has_drives_files_and_no_others(dataset: Path) -> None:
    training = {
        f"training/{name.format(number)}"
        for number in range(21, 27)
        for name in ("images/{}_training.tif", "1st_manual/{}_manual1.gif", "mask/{}_training_mask.gif", "av/{}_av.png")
    }
    test = {
        f"test/{name.format(number)}"
        for number in ("01", "02")
        for name in (
            "images/{}_test.tif",
            "1st_manual/{}_manual1.gif",
            "2nd_manual/{}_manual2.gif",
            "mask/{}_test_mask.gif",
            "av/{}_av.png",
        )
    }
    assert set(digests(dataset)) == training | test


def test_files_hold_the_raw_values_of_drive(dataset: Path) -> None:
    with Image.open(dataset / "test/images/01_test.tif") as image:
        assert (image.format, image.mode, image.size) == ("TIFF", "RGB", (97, 113))
    vessels = raw(dataset / "test/1st_manual/01_manual1.gif")
    fov = raw(dataset / "test/mask/01_test_mask.gif")
    second = raw(dataset / "test/2nd_manual/01_manual2.gif")
    classes = raw(dataset / "test/av/01_av.png")
    assert set(np.unique(vessels)) == set(np.unique(fov)) == {0, 255}
    assert set(np.unique(second)) == {0, 1}
    assert set(np.unique(classes)) == {0, 1, 2}
    np.testing.assert_array_equal(classes > 0, vessels == 255)
    assert 0.3 < dice(vessels == 255, second == 1) < 0.99


def test_palettes_show_white_vessels_red_arteries_and_blue_veins(dataset: Path) -> None:
    for name in ("1st_manual/01_manual1.gif", "2nd_manual/01_manual2.gif", "mask/01_test_mask.gif"):
        with Image.open(dataset / "test" / name) as image:
            assert set(np.unique(np.asarray(image.convert("L")))) == {0, 255}
    with Image.open(dataset / "test/av/01_av.png") as image:
        colours, indices = np.asarray(image.convert("RGB")), np.asarray(image)
    assert (colours[indices == ARTERY] == (255, 0, 0)).all()
    assert (colours[indices == VEIN] == (0, 0, 255)).all()


@pytest.mark.parametrize("annotation", ["1st_manual", "av"])
def test_datalist_pairs_every_case(dataset: Path, annotation: str) -> None:
    for section, count in (("training", 5), ("validation", 1), ("test", 2)):
        cases = load_datalist(dataset, section, {"label": annotation})
        assert len(cases) == count
        for case in cases:
            assert {case_id(case[key]) for key in ("image", "label", "fov")} == {case["case_id"]}
    assert all("second" in case for case in load_datalist(dataset, "test", {"second": "2nd_manual"}))


def test_another_run_writes_the_same_bytes_and_nothing_is_left_over(dataset: Path) -> None:
    before = digests(dataset)
    write_phantom_dataset(dataset, training=6, test=2, seed=3, height=113, width=97)
    assert digests(dataset) == before
    images = [digest for name, digest in before.items() if "/images/" in name]
    assert len(set(images)) == 8


def test_numbers_do_not_collide_when_there_are_many_test_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = make_phantom(0, 64, 64)
    monkeypatch.setattr("drive_seg.phantom.make_phantom", lambda *_: tiny)
    write_phantom_dataset(tmp_path, training=3, test=98, height=64, width=64)
    training = sorted(path.name for path in (tmp_path / "training/images").iterdir())
    assert training == ["099_training.tif", "100_training.tif", "101_training.tif"]
    assert (tmp_path / "test/images/098_test.tif").is_file()


def test_number_of_cases_does_not_change_the_eyes(dataset: Path, tmp_path: Path) -> None:
    write_phantom_dataset(tmp_path, training=1, test=0, seed=3, height=113, width=97)
    assert digests(tmp_path).items() <= digests(dataset).items()


def test_real_photographs_are_neither_overwritten_nor_mixed_with(tmp_path: Path) -> None:
    real = tmp_path / "training/images/21_training.tif"
    real.parent.mkdir(parents=True)
    Image.new("RGB", (64, 64), "red").save(real)
    with pytest.raises(DriveSegError, match=r"21_training\.tif"):
        write_phantom_dataset(tmp_path, training=1, test=0, height=64, width=64)
    assert digests(tmp_path).keys() == {"training/images/21_training.tif"}


def test_dataset_of_no_cases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DriveSegError, match="at least one case"):
        write_phantom_dataset(tmp_path, training=0, test=0)


def test_script_writes_a_dataset_and_says_in_one_sentence_what_is_wrong(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = runpy.run_path(str(SCRIPT))
    out = str(tmp_path / "out")
    small = [out, "--training", "1", "--test", "1", "--seed", "3", "--width", "97", "--height", "113"]
    assert script["main"](small) == 0
    assert capsys.readouterr().err == ""
    assert digests(tmp_path / "out").items() <= digests(dataset).items()
    assert script["main"]([*small, "--width", "3"]) == 1
    assert capsys.readouterr().err == "height and width: expected 64 pixels or more, got 113 and 3\n"


def test_importing_is_light() -> None:
    code = "import drive_seg.phantom, sys; print({'torch', 'monai'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=120
    )
    assert done.stdout.strip() == "set()"
