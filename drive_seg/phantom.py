"""Synthetic fundus photographs with exact annotations, for tests, examples and trying things out without a dataset.

They show nobody's eye, so they may be shared freely. At a glance they look like photographs of about 45 degrees; a
network trained on them learns what vessels look like, but not how to read a real photograph.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from drive_seg.data import DATASET_JSON
from drive_seg.errors import DriveSegError
from drive_seg.files import replacing
from drive_seg.names import list_images
from drive_seg.phantom_photograph import Drawing, View, draw, photograph
from drive_seg.phantom_vessels import (
    ARTERY,
    VEIN,
    Branch,
    grow_vessels,
    random_anatomy,
    redrawn_branches,
    visible_branches,
)

__all__ = ["ARTERY", "VEIN", "Branch", "Phantom", "make_phantom", "write_phantom_dataset"]

SMALLEST = 64
"""Pixels along the shorter side below which no eye is recognisable."""

_DESCRIPTION_TAG = 270
_DESCRIPTION = "drive-seg phantom, made up: nobody's eye"
"""Written into every photograph, and checked before one is overwritten."""


@dataclass(frozen=True)
class Phantom:
    """A synthetic photograph and its ground truth. A pixel is vessel if its centre lies inside a vessel.

    Attributes:
        image: (H, W, 3), uint8, RGB.
        vessels: (H, W), bool, every vessel in the field of view, down to a width of one pixel.
        artery_vein: (H, W), uint8, 0 background, 1 artery, 2 vein; where they cross, the one on top in the photograph.
            Above 0 exactly where ``vessels`` is True.
        fov: (H, W), bool, the circle of retina.
        second_observer: (H, W), bool, ``vessels`` as another observer might draw them: the finest missed, ends cut
            short, borders and centrelines off by a fraction of a pixel.
        branches: the branches that ``vessels`` was drawn from, parents before their children; see ``Branch``.
        disc: centre of the optic disc, (row, column) in pixels.
        disc_radius: mean radius of the optic disc in pixels.
        fovea: centre of the macula, (row, column) in pixels.
    """

    image: np.ndarray
    vessels: np.ndarray
    artery_vein: np.ndarray
    fov: np.ndarray
    second_observer: np.ndarray
    branches: tuple[Branch, ...]
    disc: tuple[float, float]
    disc_radius: float
    fovea: tuple[float, float]


def make_phantom(seed: int, height: int = 584, width: int = 565) -> Phantom:
    """A synthetic fundus photograph: the same pixels for the same arguments, another eye for another seed.

    The same seed at another size is the same eye; with fewer pixels, the finest branches are left out, because they
    would be narrower than one pixel. Side, landmarks, pigment, light, sharpness and contrast vary.

    Args:
        seed: any whole number from 0.
        height: height of the photograph in pixels; ``SMALLEST`` (64) or more.
        width: width of the photograph, likewise.

    Raises:
        DriveSegError: if the seed is negative or the size too small.
    """
    _check_size(seed, height, width)
    eye_rng, view_rng, look_rng, observer_rng = (
        np.random.default_rng(part) for part in np.random.SeedSequence(seed).spawn(4)
    )
    shape = (height, width)
    anatomy = random_anatomy(eye_rng)
    grown = grow_vessels(anatomy, eye_rng)

    radius = min(shape) / 2 * float(view_rng.uniform(0.92, 0.975))
    play = min(shape) / 2 - radius - 1
    row, column = (float((size - 1) / 2 + play * view_rng.uniform(-0.8, 0.8)) for size in shape)
    mirror = float(view_rng.choice([-1.0, 1.0]))

    def pixel(place: complex) -> tuple[float, float]:
        return row + radius * place.imag, column + radius * mirror * place.real

    view = View(shape, (row, column), radius, pixel(anatomy.disc), pixel(anatomy.fovea), radius * anatomy.disc_radius)
    branches = visible_branches([branch.placed(view.centre, radius, mirror) for branch in grown], radius)
    fov = view.distance(view.centre) <= radius

    drawings = _drawings(branches, view, view_rng)
    artery, vein = drawings[ARTERY], drawings[VEIN]
    artery_on_top = (artery.depth <= 0) & ((vein.depth > 0) | (artery.rank > vein.rank))
    vessels = ((artery.depth <= 0) | (vein.depth <= 0)) & fov
    second = redrawn_branches(branches, radius, observer_rng)
    return Phantom(
        image=photograph(view, drawings, artery_on_top, look_rng),
        vessels=vessels,
        artery_vein=np.where(vessels, np.where(artery_on_top, ARTERY, VEIN), 0).astype(np.uint8),
        fov=fov,
        second_observer=(draw(second, [0.0] * len(second), shape).depth <= 0) & fov,
        branches=tuple(branches),
        disc=view.disc,
        disc_radius=view.disc_radius,
        fovea=view.fovea,
    )


def write_phantom_dataset(
    output_dir: str | os.PathLike,
    training: int = 20,
    test: int = 20,
    seed: int = 0,
    height: int = 584,
    width: int = 565,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> None:
    """Write phantoms in DRIVE's layout and formats, so that anything that reads DRIVE reads them.

    For every case: ``images`` (RGB tif), ``1st_manual`` and ``mask`` (palette gif, raw values 0 and 255), ``av``
    (palette png, raw values 0 background, 1 artery, 2 vein), and for test cases ``2nd_manual`` (palette gif, raw values
    0 and 1, as in DRIVE). There is no ``dataset.json``.

    Test cases are numbered from 01. Training cases are numbered from 21, or, with more than 20 test cases, from the
    number after the last of them, so that no number is used twice. Every number has as many digits as the largest one,
    and at least two. The n-th training or test case of a seed is the same eye however many cases there are.

    Args:
        output_dir: made if missing. The files of an earlier run with the same numbers of cases are replaced, with the
            same bytes if all arguments are the same.
        training: number of training cases.
        test: number of test cases.
        seed: any whole number from 0.
        height: height of the photographs in pixels.
        width: width of the photographs in pixels.
        progress: wraps the sequence of case numbers, as ``tqdm`` does.

    Raises:
        DriveSegError: if an argument is out of range, the folder cannot be written to, or it holds photographs or a
            ``dataset.json`` that this run would not write: real data is never mixed in or overwritten.
    """
    if min(training, test) < 0 or training + test == 0:
        raise DriveSegError(f"training and test: expected at least one case in all, got {training} and {test}")
    _check_size(seed, height, width)
    root = Path(output_dir)
    first_training = max(21, test + 1)
    sections = dict.fromkeys(range(1, test + 1), "test")
    sections.update(dict.fromkeys(range(first_training, first_training + training), "training"))
    digits = max(2, len(str(max(sections))))
    names = {number: f"{number:0{digits}d}" for number in sections}
    _check_nothing_else(root, {root / section / "images" / f"{names[number]}_{section}.tif"
                               for number, section in sections.items()})  # fmt: skip
    for number in progress(list(sections)):
        section = sections[number]
        place = number - 1 if section == "test" else number - first_training
        stream = np.random.SeedSequence([seed, ("training", "test").index(section), place])
        phantom = make_phantom(int(stream.generate_state(1, np.uint64)[0]), height, width)
        _write_case(root / section, names[number], section, phantom)


def _check_size(seed: int, height: int, width: int) -> None:
    if seed < 0:
        raise DriveSegError(f"seed: expected a whole number from 0, got {seed}")
    if min(height, width) < SMALLEST:
        raise DriveSegError(f"height and width: expected {SMALLEST} pixels or more, got {height} and {width}")


def _check_nothing_else(root: Path, planned: set[Path]) -> None:
    if (root / DATASET_JSON).exists():
        raise DriveSegError(f"{root / DATASET_JSON}: belongs to another dataset, expected an empty folder")
    for section in ("training", "test"):
        for path in list_images(root / section / "images"):
            if path not in planned or not _is_phantom(path):
                raise DriveSegError(f"{path}: is not of the dataset to be written, expected an empty folder")


def _is_phantom(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return str(getattr(image, "tag_v2", {}).get(_DESCRIPTION_TAG, "")) == _DESCRIPTION
    except OSError:
        return False


def _write_case(folder: Path, name: str, section: str, phantom: Phantom) -> None:
    with replacing(folder / "images" / f"{name}_{section}.tif") as temporary:
        Image.fromarray(phantom.image).save(temporary, format="TIFF", tiffinfo={_DESCRIPTION_TAG: _DESCRIPTION})
    black_and_white = ((0, (0, 0, 0)), (255, (255, 255, 255)))
    palettes = {
        f"mask/{name}_{section}_mask.gif": (255 * phantom.fov, black_and_white),
        f"1st_manual/{name}_manual1.gif": (255 * phantom.vessels, black_and_white),
        f"av/{name}_av.png": (phantom.artery_vein, ((0, (0, 0, 0)), (1, (255, 0, 0)), (2, (0, 0, 255)))),
    }
    if section == "test":
        palettes[f"2nd_manual/{name}_manual2.gif"] = (phantom.second_observer, ((0, (0, 0, 0)), (1, (255, 255, 255))))
    for file, (values, palette) in palettes.items():
        _write_palette_image(folder / file, values.astype(np.uint8), dict(palette))


def _write_palette_image(path: Path, values: np.ndarray, palette: dict[int, tuple[int, int, int]]) -> None:
    """Write (H, W), uint8, with unchanged raw values.

    Pillow merges equal palette entries and renumbers the pixels, and reads a palette of all grey levels in order as a
    grey image. Unused entries therefore differ from each other and from black, white and grey.
    """
    entries = [palette.get(index, (index, 0, 128)) for index in range(max(palette) + 1)]
    image = Image.frombytes("P", values.shape[::-1], np.ascontiguousarray(values).tobytes())
    image.putpalette([level for entry in entries for level in entry])
    with replacing(path) as temporary:
        image.save(temporary, optimize=False)


def _drawings(branches: Sequence[Branch], view: View, rng: np.random.Generator) -> dict[int, Drawing]:
    """Separate drawings of arteries and veins, ranked by which is on top: a whole tree lies above or below another.

    Arteries pass above veins at about seven of ten crossings.
    """
    ranks: list[float] = []
    for branch in branches:
        if branch.parent is None:
            ranks.append(float(rng.uniform(0.0, 1.0)) + (0.25 if branch.kind == ARTERY else 0.0))
        else:
            ranks.append(ranks[branch.parent])
    return {
        kind: draw(
            [branch for branch in branches if branch.kind == kind],
            [rank for rank, branch in zip(ranks, branches, strict=True) if branch.kind == kind],
            view.shape,
        )
        for kind in (ARTERY, VEIN)
    }
