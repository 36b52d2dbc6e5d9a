"""The field of view: found in drawn and real photographs, its box and its diameter."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from builders import disc, overlap
from PIL import Image, ImageDraw
from realdata import real_data
from scipy import ndimage

from drive_seg.fov import estimate_fov, fov_box, fov_diameter

HRF_HEALTHY = [f"{eye:02d}_h" for eye in range(1, 16)]


def photograph(fov: np.ndarray, seed: int = 0) -> np.ndarray:
    """A retina of uneven brightness with a dark macula, a bright optic disc and dark vessels, black outside ``fov``."""
    random = np.random.default_rng(seed)
    height, width = fov.shape
    shade = ndimage.zoom(random.uniform(0.6, 1, (4, 5)), (height / 4, width / 5), order=1)[:height, :width]
    retina = shade[..., None] * np.array([200, 90, 40])
    retina[disc(height, width, 0.5 * height, 0.4 * width, 0.06 * width)] *= 0.4
    retina[disc(height, width, 0.5 * height, 0.65 * width, 0.05 * width)] = (255, 230, 150)
    retina[int(0.3 * height) : int(0.3 * height) + max(2, height // 80)] *= 0.5
    retina[:, int(0.7 * width) : int(0.7 * width) + max(2, width // 80)] *= 0.5
    picture = np.where(fov[..., None], retina, 0) + random.normal(3, 1.5, (height, width, 3))
    return np.clip(picture, 0, 255).astype(np.uint8)


CENTRED = disc(420, 500, 210, 250, 195)
SHAPES = {
    "whole circle": CENTRED,
    "off centre, small": disc(420, 500, 130, 340, 110),
    "cut by the picture at top and bottom": disc(400, 600, 200, 300, 280),
    "cut by the picture on one side": disc(420, 400, 210, 330, 190),
    "a quarter, centre outside": disc(300, 300, 320, 320, 290),
    "straight cuts with black beyond": CENTRED & (np.abs(np.arange(420) - 210) < 150)[:, None],
    "slanted cut with black beyond": CENTRED & (0.5 * np.arange(420)[:, None] + np.arange(500) < 500),
    "nearly the whole picture": disc(584, 565, 292, 282, 285),
}


@pytest.mark.parametrize("fov", SHAPES.values(), ids=SHAPES.keys())
def test_known_shapes_are_found(fov: np.ndarray) -> None:
    found = estimate_fov(photograph(fov))
    assert found.dtype == bool
    assert found.shape == fov.shape
    assert overlap(found, fov) > 0.99


@pytest.mark.parametrize("angle", [5, 45, 90, 200])
def test_rotated(angle: int) -> None:
    fov = SHAPES["cut by the picture at top and bottom"]
    picture = ndimage.rotate(photograph(fov), angle, order=1)
    rotated = ndimage.rotate(fov, angle, order=0)
    assert overlap(estimate_fov(picture), rotated) > 0.98


def with_noise(picture: np.ndarray, spread: float) -> np.ndarray:
    noise = np.random.default_rng(1).normal(spread / 2, spread, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def with_text(picture: np.ndarray) -> np.ndarray:
    drawn = Image.fromarray(picture)
    pen = ImageDraw.Draw(drawn)
    pen.text((6, 4), "OD 2001-01-01", fill="white", font_size=16)
    pen.rectangle((460, 380, 490, 410), fill="yellow")
    return np.asarray(drawn)


def with_dim_side(picture: np.ndarray, left: float = 0.05, right: float = 2.5) -> np.ndarray:
    return (picture * np.clip(np.linspace(left, right, picture.shape[1]), 0, 1)[:, None]).astype(np.uint8)


def with_lesion_at_the_rim(picture: np.ndarray) -> np.ndarray:
    return np.where(disc(420, 500, 210, 440, 30)[..., None], picture // 8, picture)


CHANGES = {
    "noise": lambda picture: with_noise(picture, 6),
    "strong noise": lambda picture: with_noise(picture, 15),
    "text": with_text,
    "text and noise": lambda picture: with_noise(with_text(picture), 8),
    "dim side": with_dim_side,
    # Where it gets too dark, it ends in a straight line, as does a circle with a cut.
    "half in the dark": lambda picture: with_dim_side(picture, -0.6, 1),
    # To the right, black is as bright as dim retina to the left.
    "raised black with a dim side": lambda picture: with_dim_side(picture * 0.9 + 25, 0, 2.3),
    "dark lesion at the rim": with_lesion_at_the_rim,
    "underexposed": lambda picture: picture // 4,
    "raised black": lambda picture: (picture * 0.9 + 20).astype(np.uint8),
    "one channel": lambda picture: picture[..., 0],
    "one channel, three axes": lambda picture: picture[..., :1],
    "float to 1": lambda picture: (picture / 255).astype(np.float32),
    "float to 255": lambda picture: picture.astype(np.float64),
    "12 bits in uint16": lambda picture: picture.astype(np.uint16) * 16,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_photographs_are_like(change: Callable[[np.ndarray], np.ndarray]) -> None:
    picture = change(photograph(CENTRED))
    before = picture.copy()
    assert overlap(estimate_fov(picture), CENTRED) > 0.98
    np.testing.assert_array_equal(picture, before)


@pytest.mark.parametrize("side", [64, 97, 200, 1200])
def test_any_resolution(side: int) -> None:
    fov = disc(side, side + 9, side * 0.5, side * 0.52, side * 0.45)
    assert overlap(estimate_fov(photograph(fov)), fov) > 0.98


def test_what_is_no_circle_is_drawn_as_its_convex_hull() -> None:
    rows, columns = np.ogrid[:400, :600]
    ellipse = ((rows - 200) / 150) ** 2 + ((columns - 300) / 240) ** 2 <= 1
    found = estimate_fov(photograph(ellipse))
    assert overlap(found, ellipse) > 0.97
    assert (ndimage.label(found)[1], ndimage.label(~found)[1]) == (1, 1)


def lit(fov: np.ndarray) -> np.ndarray:
    return np.where(fov[..., None], np.array([180, 90, 40]), 2).astype(np.uint8)


def test_what_is_no_circle_is_in_its_place_at_full_resolution() -> None:
    """The copy that is searched has pixels of 8: the ends of the hull are no more exact than that, its centre is."""
    rows, columns = np.ogrid[:1500, :2000]
    ellipse = ((rows - 700) / 550) ** 2 + ((columns - 980) / 880) ** 2 <= 1
    found = estimate_fov(lit(ellipse))
    assert np.abs(np.argwhere(found).mean(axis=0) - (700, 980)).max() < 1
    assert overlap(found, ellipse) > 0.985


def test_a_straight_cut_is_found_from_end_to_end() -> None:
    """All of it says where it is, since in its middle a vessel of 50 pixels is as dark as what is cut off."""
    rows, columns = np.ogrid[:1500, :2000]
    beyond = np.cos(0.3) * (rows - 750) + np.sin(0.3) * (columns - 1000) - 600
    along = np.cos(0.3) * (columns - 1000) - np.sin(0.3) * (rows - 750)
    fov = disc(1500, 2000, 750, 1000, 700) & (beyond <= 0)
    found = estimate_fov(lit(fov & ((np.abs(along) > 25) | (beyond < -80))))
    # The cut is 2 · √(700² - 600²) = 721 long, so that a pixel of it is 721 of 1.5 million: 0.0005.
    assert overlap(found, fov) > 0.999


def test_mask_has_no_holes_and_no_islands() -> None:
    found = estimate_fov(photograph(CENTRED))
    assert ndimage.label(found)[1] == 1
    assert (ndimage.binary_fill_holes(found) == found).all()


def test_inside_of_the_circle_is_all_true() -> None:
    assert estimate_fov(photograph(np.ones((300, 340), dtype=bool))).all()


def test_a_dim_side_without_black_is_no_border() -> None:
    picture = photograph(np.ones((300, 340), dtype=bool))
    picture[:, :80] = picture[:, :80] * 0.15
    assert estimate_fov(picture).all()


@pytest.mark.parametrize("radius", [100, 130])
def test_light_that_fades_from_the_middle_is_no_border(radius: int) -> None:
    """Its levels are circles, none of which is sharp."""
    rows, columns = np.ogrid[:300, :340]
    light = np.clip(1 - 0.7 * (np.hypot(rows - 150, columns - 170) / radius) ** 3, 0, 1)
    picture = photograph(np.ones((300, 340), dtype=bool)) * light[..., None]
    assert estimate_fov(with_noise(picture, 25)).all()


def test_same_photograph_same_answer() -> None:
    picture = photograph(CENTRED)
    np.testing.assert_array_equal(estimate_fov(picture), estimate_fov(picture))


def text_on_black() -> np.ndarray:
    return with_text(np.zeros((420, 500, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((60, 80, 3), dtype=np.uint8),
        np.full((60, 80, 3), 9, dtype=np.uint8),
        np.zeros((60, 80), dtype=np.float32),
        np.random.default_rng(0).integers(0, 14, (60, 80, 3)).astype(np.uint8),
        text_on_black(),
    ],
    ids=["black", "nearly black", "float", "noise", "text"],
)
def test_nothing_lit_is_refused(picture: np.ndarray) -> None:
    with pytest.raises(ValueError, match="no field of view found"):
        estimate_fov(picture)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((20, 20, 4), dtype=np.uint8), r"shape \(H, W, 3\) or \(H, W\).*got \(20, 20, 4\)"),
        (np.zeros(20, dtype=np.uint8), r"got \(20,\)"),
        (np.full((9, 30_000), 200, dtype=np.uint8), r"no field of view found: .* too narrow for one, 30000×9 pixels$"),
        (np.zeros((20, 20), dtype=bool), "got bool"),
        (np.zeros((20, 20), dtype=np.int64), "got int64"),
    ],
)
def test_what_is_no_photograph_is_refused(picture: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate_fov(picture)


def test_box_and_diameter_of_a_hand_drawn_mask() -> None:
    fov = np.zeros((6, 9), dtype=bool)
    fov[1, 3:5] = fov[2, 2:8] = fov[4, 4] = True
    assert fov_box(fov) == (slice(1, 5), slice(2, 8))
    assert fov[fov_box(fov)].shape == (4, 6)
    assert fov_diameter(fov) == 6.0


def test_diameter_of_a_circle_cut_at_top_and_bottom() -> None:
    # Columns 300 - 280 to 300 + 280, both ends included.
    assert fov_diameter(disc(400, 600, 200, 300, 280.5)) == 561.0


def test_box_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"empty.*\(4, 5\)"):
        fov_box(np.zeros((4, 5), dtype=bool))
    with pytest.raises(ValueError, match="empty"):
        fov_diameter(np.zeros((4, 5), dtype=bool))


@pytest.mark.parametrize("case", HRF_HEALTHY)
def test_published_masks_of_hrf(case: str) -> None:
    folder = real_data("HRF")
    photo = np.asarray(Image.open(folder / "images" / f"{case}.jpg"))
    published = np.asarray(Image.open(folder / "mask" / f"{case}_mask.tif"))[..., 0] > 127
    assert overlap(estimate_fov(photo), published) > 0.995


def test_circles_of_chase_db1_hold_the_annotations() -> None:
    folder = real_data("CHASE_DB1")
    photographs: list[Path] = sorted(folder.glob("*.jpg"))[::3]
    for path in photographs:
        fov = estimate_fov(np.asarray(Image.open(path)))
        vessels = np.asarray(Image.open(path.with_name(f"{path.stem}_1stHO.png"))) > 0
        # Observers draw a few strokes out over the rim, 0.6 % of the vessel pixels at most.
        assert (vessels & ~fov).sum() < 0.01 * vessels.sum()
        assert 885 < fov_diameter(fov) < 925


def test_eight_megapixels_take_a_moment() -> None:
    fov = disc(2336, 3504, 1168, 1750, 1630)
    picture = np.where(fov[..., None], np.array([180, 90, 40]), 2).astype(np.uint8)
    started = time.process_time()
    estimate_fov(picture)
    assert time.process_time() - started < 1.0  # it takes 0.06 s
