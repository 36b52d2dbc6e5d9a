"""The quality check: nothing of a sound photograph, and what was done to a spoilt one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from builders import disc, shipped_quality_check
from PIL import Image, ImageFilter
from realdata import real_data

from drive_seg.demo import RETINA
from drive_seg.fov import estimate_fov, fov_diameter
from drive_seg.phantom import Phantom, make_phantom
from drive_seg.quality import (
    CUT_OFF,
    FEW_VESSELS,
    IN_PIECES,
    LITTLE_CONTRAST,
    MANY_VESSELS,
    MORE_BESIDE,
    NO_BORDER,
    TOO_BLURRED,
    TOO_BRIGHT,
    TOO_DARK,
    TOO_SMALL,
    QualityCheck,
    quality_figures,
)
from drive_seg.readers import read_image

CHECK = shipped_quality_check()


def problems(photograph: np.ndarray, fov: np.ndarray, mask: np.ndarray, check: QualityCheck = CHECK) -> list[str]:
    return check.problems(quality_figures(photograph, fov, mask), fov, mask)


def blurred(photograph: np.ndarray, sigma: float) -> np.ndarray:
    return np.asarray(Image.fromarray(photograph).filter(ImageFilter.GaussianBlur(sigma)))


def brightened(photograph: np.ndarray, factor: float = 1, offset: float = 0) -> np.ndarray:
    return (photograph.astype(float) * factor + offset).clip(0, 255).astype(np.uint8)


def sharpness(photograph: np.ndarray, fov: np.ndarray) -> float:
    return quality_figures(photograph, fov, fov)["sharpness"]


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(0)


def test_each_problem_alone(phantom: Phantom) -> None:
    image, fov, vessels = phantom.image, phantom.fov, phantom.vessels
    assert problems(image, fov, vessels) == []
    assert TOO_DARK in problems(brightened(image, 0.15), fov, vessels)
    assert TOO_BRIGHT in problems(brightened(image, offset=220), fov, vessels)
    assert problems(blurred(image, 0.005 * fov_diameter(fov)), fov, vessels) == [TOO_BLURRED]
    assert problems(brightened(image, 0.1, 80), fov, vessels) == [LITTLE_CONTRAST]
    assert problems(image, fov, np.zeros_like(fov)) == [FEW_VESSELS]


def test_vessels_in_pieces_by_hand() -> None:
    """Of a view 600 pixels across, half is 300; diagonal neighbours are connected."""
    fov = np.ones((600, 600), bool)
    photograph = np.full((600, 600, 3), 90, np.uint8)

    def share(*pieces: tuple[int, int, int, int]) -> float:
        mask = np.zeros_like(fov)
        for top, bottom, left, right in pieces:
            mask[top:bottom, left:right] = True
        return quality_figures(photograph, fov, mask)["connected_share"]

    assert share() == 1, "no vessels are in no pieces"
    assert share((0, 300, 10, 12)) == 1
    assert share((0, 299, 10, 11)) == 0
    assert share((0, 150, 10, 12), (150, 300, 12, 14)) == 1, "corner to corner"
    assert share((0, 400, 10, 13), (500, 550, 300, 308)) == 1200 / 1600
    large = np.kron(np.eye(600, dtype=bool), np.ones((5, 5), bool))  # 3000 pixels across, connected by corners
    large[1500:1502] = False
    everywhere = np.ones_like(large)
    of_large = quality_figures(np.full((*large.shape, 3), 90, np.uint8), everywhere, large)
    assert of_large["connected_share"] == 1, "gaps below a thousandth of the diameter do not count"
    stripes = np.zeros_like(fov)
    stripes[::20, :290] = True
    assert IN_PIECES in problems(photograph, fov, stripes)
    stripes[:, 0] = True
    assert IN_PIECES not in problems(photograph, fov, stripes)


def test_a_second_eye_beside_the_first(phantom: Phantom) -> None:
    dark = np.zeros_like(phantom.fov)
    pair = np.concatenate([phantom.image, phantom.image], axis=1)
    fov, vessels = (np.concatenate([array, dark], axis=1) for array in (phantom.fov, phantom.vessels))
    assert problems(pair, fov, vessels) == [MORE_BESIDE]
    assert quality_figures(pair, fov, vessels)["beside_share"] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("level", [60, 128, 245])
def test_frames_strips_and_small_masks_are_no_second_eye(phantom: Phantom, level: int) -> None:
    def beside(photograph: np.ndarray, fov: np.ndarray) -> float:
        return quality_figures(photograph, fov, fov)["beside_share"]

    noise = np.random.default_rng(0).normal(level, 3, phantom.image.shape).clip(0, 255).astype(np.uint8)
    fov = phantom.fov
    assert beside(np.where(fov[..., None], phantom.image, noise), fov) < 0.001, (
        "a bright frame, but for specks of noise"
    )
    height, width = fov.shape
    strip = np.full((height // 5, width, 3), level, np.uint8)
    assert beside(np.concatenate([phantom.image, strip]), np.pad(fov, ((0, height // 5), (0, 0)))) == 0, "text below"
    wide = ((width // 8, width // 8), (width // 8, width // 8))
    margin = np.pad(phantom.image, (*wide, (0, 0)), constant_values=level)
    assert beside(margin, np.pad(fov, wide)) == 0, "a margin"
    small = disc(height, width, height // 2, width // 2, 0.4 * height)
    assert beside(phantom.image, small) == 0, "a mask that leaves out the rim"


def test_a_view_thinner_than_its_small_copy_has_figures() -> None:
    line = np.zeros((4000, 4000), bool)
    line[2000] = line[:, 2000] = True
    figures = quality_figures(np.full((4000, 4000, 3), 90, np.uint8), line, line)
    assert (figures["green_median"], figures["burnt_share"], figures["sharpness"]) == (90, 0, 0)


def test_a_picture_without_a_border_and_a_small_one(phantom: Phantom) -> None:
    everywhere = np.ones_like(phantom.fov)
    assert NO_BORDER in problems(phantom.image, everywhere, phantom.vessels)
    small = make_phantom(0, 350, 340)
    assert TOO_SMALL in problems(small.image, small.fov, small.vessels)
    assert estimate_fov(skimage.data.cat()).all(), "nothing of it looks like the end of a retina"


@pytest.mark.parametrize(("rows", "columns", "cut"), [
    ((0, 1), (0, 1), False),
    ((0.13, 0.87), (0, 1), False),  # as cameras cut off top and bottom
    ((0.25, 0.75), (0, 1), True),
    ((0, 0.5), (0, 0.5), True),
    ((0.1, 0.9), (0.1, 0.9), True),
    ((0, 1), (0.4, 1), True),
])  # fmt: skip
def test_what_is_cropped_is_cut_off(rows: tuple[float, float], columns: tuple[float, float], cut: bool) -> None:
    """A circle of 600 pixels of which the given part is left."""
    fov = disc(620, 620, 310, 310, 300)
    top, bottom, left, right = (10 + round(600 * share) for share in (*rows, *columns))
    seen = fov[top:bottom, left:right]
    assert (CUT_OFF in problems(np.full((*seen.shape, 3), 90, np.uint8), seen, seen)) is cut


def test_several_problems_in_their_order(phantom: Phantom) -> None:
    found = problems(np.zeros_like(phantom.image), phantom.fov, np.zeros_like(phantom.fov))
    assert found == [TOO_DARK, TOO_BLURRED, LITTLE_CONTRAST, FEW_VESSELS]


def test_pixels_outside_the_field_of_view_change_nothing(phantom: Phantom) -> None:
    before = sharpness(phantom.image, phantom.fov)
    image = phantom.image.copy()
    image[~phantom.fov] = np.random.default_rng(0).integers(0, 256, (np.count_nonzero(~phantom.fov), 3))
    assert problems(image, phantom.fov, phantom.vessels | ~phantom.fov) == []
    assert sharpness(image, phantom.fov) == pytest.approx(before, rel=0.01), "a pixel of the rim at most is mixed"


def test_limits_by_hand() -> None:
    fov = np.ones((600, 600), bool)
    mask = np.zeros_like(fov)
    mask[:12] = True  # 2 % of 600 rows
    noise = np.random.default_rng(0).integers(-20, 21, (600, 600, 1))
    for level, dark in ((40, False), (10, True)):
        photograph = np.clip(noise + level, 0, 255).astype(np.uint8).repeat(3, axis=2)
        assert (TOO_DARK in problems(photograph, fov, mask)) is dark
    photograph[:30], photograph[30:60] = 255, 250  # 10 % burnt
    assert TOO_BRIGHT in problems(photograph, fov, mask)
    assert quality_figures(photograph, fov, mask)["burnt_share"] == pytest.approx(0.1, abs=0.005)
    assert TOO_BRIGHT not in problems(photograph, fov, mask, replace(CHECK, burnt_share=0.11))
    assert FEW_VESSELS not in problems(photograph, fov, mask)
    assert FEW_VESSELS in problems(photograph, fov, mask, replace(CHECK, smallest_vessel_share=0.021))
    assert MANY_VESSELS in problems(photograph, fov, mask, replace(CHECK, largest_vessel_share=0.019))
    assert MANY_VESSELS in problems(photograph, fov, fov), "the whole retina"


def test_only_the_eye_counts_not_the_camera() -> None:
    small, large = make_phantom(3, 700, 700), make_phantom(3, 1400, 1400)
    of_large = sharpness(large.image, large.fov)
    halved = np.asarray(Image.fromarray(large.image).resize((700, 700), Image.Resampling.BOX))
    assert sharpness(halved, small.fov) == pytest.approx(of_large, rel=0.05)
    half = brightened(large.image, 0.5)
    assert sharpness(half, large.fov) == pytest.approx(of_large, rel=0.05)
    contrasts = [quality_figures(image, large.fov, large.fov)["contrast"] for image in (half, large.image)]
    assert contrasts[0] == pytest.approx(contrasts[1], rel=0.05)
    values = [sharpness(blurred(large.image, share * 1400), large.fov) for share in (0.002, 0.004, 0.008)]
    assert of_large > values[0] > values[1] > values[2]


def test_nothing_to_see_is_not_sharp() -> None:
    fov = np.ones((300, 300), bool)
    assert sharpness(np.full((300, 300, 3), 90, np.uint8), fov) == 0
    line = np.zeros((300, 300), bool)
    line[150] = True
    assert sharpness(np.full((300, 300, 3), 90, np.uint8), line) == 0


def test_arrays_that_do_not_fit(phantom: Phantom) -> None:
    with pytest.raises(ValueError, match="of one size"):
        problems(phantom.image, phantom.fov, phantom.vessels[1:])
    with pytest.raises(ValueError, match="of one size"):
        problems(phantom.image[..., 0], phantom.fov, phantom.vessels)
    with pytest.raises(ValueError, match="field of view is empty"):
        problems(phantom.image, np.zeros_like(phantom.fov), phantom.vessels)


def check_photograph(path: Path, spoil: bool = True) -> None:
    """A real photograph is sound; darkened, brightened or blurred it is not."""
    image = read_image(path)
    fov = estimate_fov(image)
    tenth = np.zeros_like(fov)
    tenth[:, ::10] = True  # of the pixels are vessels
    assert problems(image, fov, tenth) == [], path.name
    if not spoil:
        return
    assert TOO_DARK in problems(brightened(image, 0.2), fov, tenth), path.name
    assert TOO_BRIGHT in problems(brightened(image, offset=220), fov, tenth), path.name
    assert problems(blurred(image, 0.005 * fov_diameter(fov)), fov, tenth) in (
        [TOO_BLURRED],
        [TOO_BLURRED, LITTLE_CONTRAST],
    ), path.name


def test_scikit_images_photograph() -> None:
    check_photograph(RETINA)


def test_photographs_of_chase_db1() -> None:
    photographs = sorted(real_data("CHASE_DB1").glob("*.jpg"))
    assert len(photographs) == 28
    for number, path in enumerate(photographs):
        check_photograph(path, spoil=number % 4 == 0)


@pytest.mark.slow
def test_photographs_of_hrf() -> None:
    photographs = sorted((real_data("HRF") / "images").iterdir())
    assert len(photographs) == 45
    for number, path in enumerate(photographs):
        check_photograph(path, spoil=number % 4 == 0)  # of all three groups, which follow each other in turn
