"""Conversions between arrays, tensors and MONAI's tensors, and between masks and numbers."""

from __future__ import annotations

import numpy as np
import torch
from monai.data import MetaTensor

from drive_seg.errors import ArgumentError

__all__ = ["as_tensor", "check_one_image", "like", "to_numpy", "without_metadata", "zeros_and_ones"]


def to_numpy(image: torch.Tensor | np.ndarray) -> np.ndarray:
    """The same numbers as an array, wherever the tensor is."""
    return np.asarray(image.detach().cpu()) if isinstance(image, torch.Tensor) else np.asarray(image)


def without_metadata(image: torch.Tensor | np.ndarray) -> torch.Tensor:
    """The same numbers as a tensor without metadata of files and transforms, and without their overhead."""
    return image.as_tensor() if isinstance(image, MetaTensor) else as_tensor(image)


def as_tensor(image: torch.Tensor | np.ndarray) -> torch.Tensor:
    """An array as a tensor; a tensor as it is, with its metadata.

    An array that PyTorch does not accept (read-only, mirrored or in another byte order) is copied.
    """
    if isinstance(image, torch.Tensor):
        return image
    image = np.asarray(image)
    fits = image.flags.writeable and image.dtype.isnative and all(step >= 0 for step in image.strides)
    return torch.as_tensor(image if fits else np.array(image, dtype=image.dtype.newbyteorder("="), order="C"))


def like(pixels: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """The pixels with the metadata and transforms of ``image``, from which they were made, if it has any."""
    if not isinstance(image, MetaTensor):
        return pixels
    return MetaTensor(pixels, meta=image.meta, applied_operations=image.applied_operations)


def zeros_and_ones(mask: torch.Tensor) -> torch.Tensor:
    """1 where a mask of any type is not 0, else 0, as uint8.

    Comparing with 0 and multiplying by booleans both take PyTorch many times as long on a CPU.
    """
    return mask.bool().view(torch.uint8)


def check_one_image(image: torch.Tensor, name: str) -> None:
    """Raise an ``ArgumentError`` for anything but (C, H, W), such as a batch, whose axes would be mixed up."""
    if image.dim() != 3:
        raise ArgumentError(f"{name}: expected (C, H, W), got {tuple(image.shape)}")
