"""Transforms that MONAI lacks: finding the field of view, checking labels, and leaving out what lies outside.

Operations on one array are a function, followed by a thin dictionary transform. Arrays are channel first, (C, H, W).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ImageMetaKey

from drive_seg.arrays import as_tensor, check_one_image, like, to_numpy, without_metadata, zeros_and_ones
from drive_seg.errors import ArgumentError, DriveSegError
from drive_seg.fov import estimate_fov

__all__ = ["EnsureFOVd", "EnsureLabeld", "IgnoreOutsideFOVd", "NormalizeInFOVd", "normalize_in_fov"]

_logger = logging.getLogger(__name__)

MOST_VESSELS = 0.5
"""Share of the field of view above which an annotation may be inverted: vessels take about a tenth."""

MOST_BETWEEN = 0.4
"""Share of a FOV mask that may be neither black nor white; photographs of CHASE_DB1 and HRF have 0.53 and more."""


class EnsureFOVd(MapTransform):
    """Give every case a FOV mask of its image's size with values 0 and 1, estimating it if there is none.

    Args:
        image_key: photograph, (3, H, W), uint8.
        fov_key: FOV mask, (1, H, W); pixels above half of its brightest value are inside. The result is uint8.

    Raises:
        DriveSegError: if the mask differs in size from the image, is empty or looks like a photograph, or no field of
            view is found.
    """

    def __init__(self, image_key: str = "image", fov_key: str = "fov") -> None:
        super().__init__(image_key)  # MONAI Deploy asks the first transform whether it takes dictionaries
        self.image_key = image_key
        self.fov_key = fov_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The case with its FOV mask, (1, H, W), uint8, 0 and 1."""
        case = dict(data)
        image = case[self.image_key]
        if self.fov_key in case:
            fov = as_tensor(case[self.fov_key])
            _check_same_size(fov, self.fov_key, image)
            # JPEG leaves faint specks around a mask; a soft rim is split at half its height.
            levels = without_metadata(fov)[:1]
            if levels.dtype is not torch.uint8:
                levels = levels.float().nan_to_num()
            inside = levels > levels.max() / 2
            if not inside.any():
                raise DriveSegError(f"{_file_of(fov)}: {self.fov_key}: expected a field of view, got an empty mask")
            white = levels.max().item()
            between = ((levels > white / 5) & (levels < white * 4 / 5)).float().mean().item()
            if between > MOST_BETWEEN:
                raise DriveSegError(
                    f"{_file_of(fov)}: {self.fov_key}: expected a mask, black and white, got {between:.0%} of grey, as "
                    "photographs have"
                )
        else:
            try:
                inside = torch.from_numpy(estimate_fov(to_numpy(without_metadata(image)).transpose(1, 2, 0)))[None]
            except ValueError as error:
                raise DriveSegError(f"{_file_of(image)}: {self.image_key}: {error}") from error
        mask = without_metadata(inside).to(without_metadata(image).device, torch.uint8)
        case[self.fov_key] = MetaTensor(mask, meta=dict(getattr(image, "meta", {})))
        return case


class EnsureLabeld(MapTransform):
    """Check annotations and turn their pixels into class values.

    An annotation without vessels, or with implausibly many, is logged: it may be inverted.

    Args:
        keys: annotations, (1, H, W), whole numbers from 0 to 255 of any type.
        num_classes: with 2, pixels have two values, 0 for background and any other for vessel, which becomes 1; with
            more, pixels are class values below ``num_classes``.
        ignore_index: with more than 2 classes, a further value that pixels may have: of vessels whose class is unknown,
            as where arteries cross veins, but not of all vessels of an annotation; None: there is none.
        image_key: the image whose size they must have.
        fov_key: FOV mask, (1, H, W), if the case has one.
        allow_missing_keys: accept cases without an annotation.

    Raises:
        DriveSegError: naming both files if the sizes differ, and the annotation if its values do not fit.
    """

    def __init__(
        self,
        keys: KeysCollection,
        num_classes: int,
        image_key: str = "image",
        fov_key: str = "fov",
        ignore_index: int | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if num_classes < 2:
            raise DriveSegError(f"num_classes: expected 2 or more, background and vessel, got {num_classes}")
        self.num_classes = num_classes
        self.image_key = image_key
        self.fov_key = fov_key
        self.ignore_index = ignore_index

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The case with its annotations as class values, (1, H, W), uint8."""
        case = dict(data)
        for key in self.key_iterator(case):
            label = as_tensor(case[key])
            _check_same_size(label, key, case[self.image_key])
            numbers = without_metadata(label)
            whole = numbers.to(torch.uint8)
            if numbers.dtype not in (torch.uint8, torch.bool) and (whole.double() != numbers.double()).any():
                raise DriveSegError(f"{_file_of(label)}: {key}: expected whole numbers from 0 to 255, got others")
            values = torch.bincount(whole.flatten(), minlength=256).nonzero().flatten().tolist()
            label = like(whole, label)
            case[key] = label
            if self.num_classes == 2:
                if len(values) > 2 or values[0] != 0:
                    raise DriveSegError(
                        f"{_file_of(label)}: {key}: expected a binary annotation, 0 and one other value, "
                        f"got {_some(values)}"
                    )
                case[key] = (label > 0).to(torch.uint8)
            elif any(value >= self.num_classes for value in self._of_known_class(values)):
                unknown = f", {self.ignore_index} where some vessel's is unknown" if self.ignore_index else ""
                raise DriveSegError(
                    f"{_file_of(label)}: {key}: expected class values 0 to {self.num_classes - 1}{unknown}, "
                    f"got {_some(values)}"
                )
            _tell_of_odd_share(label, key, case.get(self.fov_key))
        return case

    def _of_known_class(self, values: list[int]) -> list[int]:
        """Without the value for an unknown class, unless it is that of all vessels, as where another one was meant."""
        known = [value for value in values if value != self.ignore_index]
        return known if any(known) else values


def _tell_of_odd_share(label: torch.Tensor, key: Hashable, fov: torch.Tensor | None) -> None:
    inside = torch.ones(1) if fov is None else without_metadata(fov) != 0
    share = float((without_metadata(label) != 0).logical_and(inside).sum() / inside.expand(label.shape).sum())
    if not 0 < share <= MOST_VESSELS:
        _logger.warning(
            "%s: %s: %.0f %% of the field of view are vessels, please check it", _file_of(label), key, 100 * share
        )


def normalize_in_fov(image: torch.Tensor, fov: torch.Tensor) -> torch.Tensor:
    """Normalise each channel to mean 0 and standard deviation 1 inside the field of view, and 0 outside.

    Args:
        image: (C, H, W), any number type.
        fov: (1, H, W), non-zero inside.

    Returns:
        (C, H, W), float32. A channel that is constant inside becomes 0, as does an image without a field of view.

    Raises:
        ArgumentError: if there is more than one image.
    """
    check_one_image(image, "image")
    inside = zeros_and_ones(fov).float()
    count = max(float(inside.sum()), 1.0)
    normalized = image.to(torch.float32, copy=True)
    # Sums over all pixels, times 0 or 1, because selecting the pixels inside takes much longer.
    mean = normalized.mul_(inside).sum(dim=(1, 2), keepdim=True) / count
    normalized.sub_(mean).mul_(inside)
    # Not torch.sqrt of a sum: it calls MKL, whose first use by two threads at once is sometimes off by a fortieth of a
    # percent, so that a repeated run would differ.
    deviation = torch.linalg.vector_norm(normalized, dim=(1, 2), keepdim=True) / math.sqrt(count)
    differs = deviation > 1e-6 * mean.abs()  # by more than the rounding of the mean
    return normalized.mul_(torch.where(differs, 1 / deviation, torch.zeros_like(deviation)))


class NormalizeInFOVd(MapTransform):
    """``normalize_in_fov`` for a case, as light and colour differ between cameras and eyes; without the black frame.

    Args:
        keys: images, (C, H, W).
        fov_key: FOV mask, (1, H, W).
        allow_missing_keys: accept cases without an image.
    """

    def __init__(self, keys: KeysCollection, fov_key: str = "fov", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.fov_key = fov_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The case with its images normalised, (C, H, W), float32."""
        case = dict(data)
        for key in self.key_iterator(case):
            case[key] = like(
                normalize_in_fov(without_metadata(case[key]), without_metadata(case[self.fov_key])), case[key]
            )
        return case


class IgnoreOutsideFOVd(MapTransform):
    """Set labels outside the field of view to a value that losses and metrics ignore.

    Args:
        keys: labels, (1, H, W), of a type that holds ``ignore_index``; booleans become uint8.
        fov_key: FOV mask, (1, H, W), non-zero inside.
        ignore_index: the value, 255 by the project's convention.
        num_classes: number of classes, background included, whose values it cannot be.
        allow_missing_keys: accept cases without an annotation.

    Raises:
        DriveSegError: if ``ignore_index`` is a class value or above 255, or a label is of a type that cannot hold it.
    """

    def __init__(
        self,
        keys: KeysCollection,
        fov_key: str = "fov",
        ignore_index: int = 255,
        num_classes: int = 2,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if not isinstance(ignore_index, int) or not num_classes <= ignore_index <= 255:
            raise ArgumentError(
                f"ignore_index: expected a whole number from {num_classes}, the number of classes, to 255, "
                f"got {ignore_index!r}"
            )
        self.fov_key = fov_key
        self.ignore_index = ignore_index

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The case with ``ignore_index`` outside the field of view."""
        case = dict(data)
        for key in self.key_iterator(case):
            label = as_tensor(case[key])
            label = label.to(torch.uint8) if label.dtype is torch.bool else label
            if not label.is_floating_point() and torch.iinfo(label.dtype).max < self.ignore_index:
                raise DriveSegError(f"{_file_of(label)}: {key}: cannot hold {self.ignore_index}, got {label.dtype}")
            case[key] = label.masked_fill(without_metadata(case[self.fov_key]) == 0, self.ignore_index)
        return case


def _check_same_size(partner: torch.Tensor, key: str, image: torch.Tensor) -> None:
    if partner.shape[1:] != image.shape[1:]:
        raise DriveSegError(
            f"{_file_of(partner)}: {key}: expected the size of {_file_of(image)}, "
            f"{image.shape[2]}×{image.shape[1]}, got {partner.shape[2]}×{partner.shape[1]}"
        )


def _file_of(image: Any) -> str:
    return str(getattr(image, "meta", {}).get(ImageMetaKey.FILENAME_OR_OBJ, "the array that was given"))


def _some(values: Sequence[int]) -> str:
    shown = ", ".join(map(str, values[:6]))
    return f"{shown}, … ({len(values)} values)" if len(values) > 6 else shown
