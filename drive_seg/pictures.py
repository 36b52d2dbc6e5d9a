"""Pictures to look at, as JPEG files, and masks and probability maps for further use, as PNG files.

Arrays are rows first, (H, W) or (H, W, 3). Colour-blind readers can tell the colours apart (Okabe & Ito, 2008).
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Hashable, Mapping, Sequence
from itertools import chain, cycle
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import Transform
from monai.utils import ensure_tuple
from PIL import Image

from drive_seg.arrays import to_numpy
from drive_seg.classes import in_names, names_of_classes, vessel_kind
from drive_seg.dicom import is_dicom
from drive_seg.dicom_seg import save_dicom_seg
from drive_seg.errors import DriveSegError
from drive_seg.files import replacing
from drive_seg.names import picture_name
from drive_seg.nifti import save_nifti

__all__ = ["SaveVesselsd", "agreement", "overlay", "overlay_colours", "save_jpeg", "save_png", "save_thumbnail"]

PICTURES = ("vessels", "probability", "class_probabilities", "fov", "overlay", "thumbnail")
"""The pictures that ``SaveVesselsd`` can write."""

ONE_CLASS = (0, 255, 200)
"""Colour of vessels, one that no retina has."""

CLASS_COLOURS = ((240, 228, 66), (0, 114, 178), (204, 121, 167), (86, 180, 233), (255, 255, 255))
"""Colours of several classes: yellow, blue, …"""

KIND_COLOURS = {"artery": (255, 40, 120), "vein": (0, 135, 255)}
"""Colours of arteries and veins: red and blue by convention, a red that is not that of the retina."""

OPACITY = 0.6
"""Opacity of the colour over the photograph: the vessel's own shade stays visible through it."""

# Distinct in greyscale print, too: 255, 162, 87 and 114 of 255.
TRUE_POSITIVE = (255, 255, 255)
FALSE_POSITIVE = (230, 159, 0)
FALSE_NEGATIVE = (0, 114, 178)
WRONG_CLASS = (210, 75, 60)


def save_png(array: np.ndarray, path: str | os.PathLike, colours: Sequence[tuple[int, int, int]] | None = None) -> None:
    """Write an (H, W) uint8 or uint16 or (H, W, 3) uint8 array as PNG, whole or not at all.

    Args:
        array: the pixels.
        path: the file.
        colours: colours in which programs show the values from 1 on of an (H, W) uint8 array; 0 is black. The file
            still holds the values, as palette indices. None: grey levels.
    """
    image = Image.fromarray(array)
    if colours is not None:
        image.putpalette([0, 0, 0, *chain.from_iterable(colours)])
    with replacing(path) as temporary:
        # Run lengths compress masks and maps better and faster than zlib's quickest search for repetitions.
        image.save(temporary, format="PNG", compress_level=1, compress_type=zlib.Z_RLE)


def save_jpeg(array: np.ndarray, path: str | os.PathLike, quality: int = 92) -> None:
    """Write an (H, W, 3) uint8 array as JPEG with colours at full resolution, whole or not at all.

    For a photograph, it takes a tenth of the time and a fifth of the space of PNG.
    """
    with replacing(path) as temporary:
        Image.fromarray(array).save(temporary, format="JPEG", quality=quality, subsampling=0)


def save_thumbnail(pictures: Sequence[np.ndarray], side: int, path: str | os.PathLike) -> None:
    """Write pictures (H, W, 3), uint8, of one size side by side as a small JPEG file.

    Args:
        pictures: from left to right.
        side: longer side of each, pixels; smaller pictures are not enlarged.
        path: the file, written whole or not at all.
    """
    small = []
    for picture in map(Image.fromarray, pictures):
        factor = max(picture.size) // side
        reduced = picture.reduce(factor) if factor > 1 else picture
        reduced.thumbnail((side, side), Image.Resampling.BILINEAR)
        small.append(np.asarray(reduced))
    save_jpeg(np.concatenate(small, axis=1), path, quality=85)


def overlay_colours(names: Sequence[str]) -> list[tuple[int, int, int]]:
    """Colours of the vessel classes: turquoise of a single one; red of arteries, blue of veins; others yellow, blue, ….

    Beside arteries or veins there are three more colours, else five; further classes have these again.

    Args:
        names: of the vessel classes, in the order of their values.
    """
    if len(names) == 1:
        return [ONE_CLASS]
    named = [KIND_COLOURS.get(vessel_kind(name)) for name in names]
    others = cycle(CLASS_COLOURS[::2] if any(named) else CLASS_COLOURS)  # no second blue beside veins
    return [colour or next(others) for colour in named]


def overlay(
    photograph: np.ndarray, mask: np.ndarray, colours: Sequence[tuple[int, int, int]] = (ONE_CLASS,)
) -> np.ndarray:
    """The photograph with its vessels coloured, which unlike outlines is visible at any magnification.

    Args:
        photograph: (H, W, 3), uint8.
        mask: (H, W), class values, 0 for background.
        colours: of the vessel classes, see ``overlay_colours``.

    Returns:
        (H, W, 3), uint8.
    """
    drawn = photograph.copy()
    for value, colour in enumerate(colours, 1):
        inside = mask == value
        drawn[inside] = ((1 - OPACITY) * drawn[inside] + OPACITY * np.array(colour)).round().astype(np.uint8)
    return drawn


def _16_bits(probability: np.ndarray) -> np.ndarray:
    return np.rint(probability.clip(0, 1) * 65535).astype(np.uint16)


def _shows(path: Path, array: np.ndarray) -> bool:
    try:
        with Image.open(path) as image:
            return np.array_equal(np.asarray(image), array)
    except OSError:  # there is none, or none that can be read
        return False


def agreement(pred: np.ndarray, label: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Picture of the agreement: white for vessels in both, orange for predicted only, blue for annotated only.

    Args:
        pred: (H, W), non-zero where a vessel is predicted.
        label: (H, W), non-zero where a vessel is annotated.
        counted: (H, W), True where a pixel counts; the rest is dark grey.

    Returns:
        (H, W, 3), uint8.
    """
    predicted, annotated = (pred != 0) & counted, (label != 0) & counted
    picture = np.where(counted[..., None], np.uint8(0), np.uint8(48)).repeat(3, axis=2)
    picture[predicted & annotated] = TRUE_POSITIVE
    picture[predicted & ~annotated] = FALSE_POSITIVE
    picture[~predicted & annotated] = FALSE_NEGATIVE
    return picture


class SaveVesselsd(Transform):
    """Writes the results for a photograph, in the photograph's own size and orientation.

    ``<name>_vessels.png`` is the mask, 0 and 255 (several classes: the class values, as indices of a palette that has
    the overlay's colours); ``<name>_probability.png`` the probability of vessel in 16 bits, 0 to 65535, and
    ``<name>_probability_<class>.png`` that of each vessel class; ``<name>_fov.png`` the field of view, 0 and 255;
    ``<name>_overlay.jpg`` the photograph with its vessels coloured; ``<name>_thumbnail.jpg`` the photograph and the
    overlay side by side, small. On request, ``<name>_vessels.nii.gz`` holds the class values at the photograph's place
    in space, see ``save_nifti``, and ``<name>_vessels.dcm`` is a DICOM Segmentation object, see ``save_dicom_seg``.

    Args:
        output_dir: folder to write into.
        pred_key: mask, (1, H, W), class values.
        probability_key: probability maps of the vessel classes, (num_classes - 1, H, W).
        photograph_key: photograph, (3, H, W), uint8, whose metadata give the file name.
        output_key: key for the paths of the written files.
        pictures: which of ``vessels``, ``probability``, ``class_probabilities``, ``fov``, ``overlay`` and ``thumbnail``
            to write.
        thumbnail_side: longer side of each picture in the thumbnail, pixels.
        save_nifti: also write the mask as NIfTI.
        save_dicom_seg: also write the mask of a DICOM photograph as a DICOM Segmentation object; other photographs have
            no patient and study for it to refer to.
        fov_key: field of view, (1, H, W), non-zero inside; only needed for its picture.
        class_names: names of the vessel classes, see ``drive_seg.classes.names_of_classes``.

    Raises:
        DriveSegError: if ``pictures`` names any other picture.
    """

    def __init__(
        self,
        output_dir: str,
        pred_key: str = "pred",
        probability_key: str = "probability",
        photograph_key: str = "photograph",
        output_key: str = "saved",
        *,
        pictures: Sequence[str] | str,
        thumbnail_side: int,
        save_nifti: bool = False,
        save_dicom_seg: bool = False,
        fov_key: str = "fov",
        class_names: Sequence[str] | None = None,
    ) -> None:
        wrong = [name for name in ensure_tuple(pictures) if name not in PICTURES]
        if wrong:
            raise DriveSegError(f"pictures: expected some of {', '.join(PICTURES)}, got {wrong[0]!r}")
        self.pictures = ensure_tuple(pictures)
        self.output_dir = Path(output_dir)
        self.pred_key = pred_key
        self.probability_key = probability_key
        self.fov_key = fov_key
        self.photograph_key = photograph_key
        self.output_key = output_key
        self.thumbnail_side = thumbnail_side
        self.save_nifti = save_nifti
        self.save_dicom_seg = save_dicom_seg
        self.class_names = class_names

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The case with the paths of the written files under ``output_key``.

        Raises:
            DriveSegError: if the photograph is not from a file, or the mask has another size.
        """
        case = dict(data)
        photograph = case[self.photograph_key]
        meta = getattr(photograph, "meta", {})
        if "filename_or_obj" not in meta:
            raise DriveSegError(
                "save: expected a photograph from a file, after which its pictures are called, got an array"
            )
        source = Path(str(meta["filename_or_obj"]))
        mask = to_numpy(case[self.pred_key])[0].astype(np.uint8)
        probability = to_numpy(case[self.probability_key])
        pixels = to_numpy(photograph).transpose(1, 2, 0)
        if mask.shape != pixels.shape[:2]:
            raise DriveSegError(f"{source}: the mask has the size {mask.shape}, expected {pixels.shape[:2]}")
        name = str(case.get("case_id", picture_name(source)))
        classes = names_of_classes(len(probability) + 1, self.class_names)
        colours = overlay_colours(classes)
        if {"overlay", "thumbnail"}.intersection(self.pictures):
            pixels = np.ascontiguousarray(pixels)
            coloured = overlay(pixels, mask, colours)
        saved: dict[str, Path] = {}
        if self.save_dicom_seg and is_dicom(source):  # first: it may be refused, and then nothing is written
            saved["dicom_seg"] = self.output_dir / f"{name}_vessels.dcm"
            save_dicom_seg(mask, classes, source, saved["dicom_seg"])
        for kind in self.pictures:
            if kind == "class_probabilities":
                for of_class, class_name in zip(probability, classes, strict=True):
                    one = f"probability_{in_names(class_name)}"
                    saved[one] = self.output_dir / f"{name}_{one}.png"
                    save_png(_16_bits(of_class), saved[one])
                continue
            to_look_at = kind in ("overlay", "thumbnail")
            saved[kind] = self.output_dir / f"{name}_{kind}.{'jpg' if to_look_at else 'png'}"
            if kind == "vessels":
                if len(classes) == 1:
                    save_png(mask * np.uint8(255), saved[kind])
                else:
                    save_png(mask, saved[kind], colours)
            elif kind == "probability":
                save_png(_16_bits(probability.sum(axis=0)), saved[kind])
            elif kind == "fov":
                fov = np.where(to_numpy(case[self.fov_key])[0] > 0, np.uint8(255), np.uint8(0))
                if not _shows(saved[kind], fov):  # else it may be the very mask that was given
                    save_png(fov, saved[kind])
            elif kind == "overlay":
                save_jpeg(coloured, saved[kind])
            else:
                save_thumbnail([pixels, coloured], self.thumbnail_side, saved[kind])
        if self.save_nifti:
            affine = meta.get("nifti_affine")
            saved["nifti"] = self.output_dir / f"{name}_vessels.nii.gz"
            save_nifti(mask, saved["nifti"], None if affine is None else np.asarray(affine, dtype=float))
        case[self.output_key] = {kind: str(path) for kind, path in saved.items()}
        return case
