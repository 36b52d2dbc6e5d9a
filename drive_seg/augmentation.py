"""Patches: their sizes, and random transforms that MONAI lacks, JPEG compression artefacts and faster resampling."""

from __future__ import annotations

import io
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandAffined, RandomizableTransform
from PIL import Image

from drive_seg.arrays import to_numpy
from drive_seg.errors import DriveSegError

__all__ = ["RandAffineFloat32d", "RandJPEGd", "compress", "patch_sides"]


def patch_sides(patch_size: Sequence[int] | int) -> list[int]:
    """Height and width of a patch, in pixels, from both numbers or one for both.

    Raises:
        DriveSegError: if it is neither.
    """
    sides: list[Any] = list(patch_size) if isinstance(patch_size, (list, tuple)) else [patch_size] * 2
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise DriveSegError(f"patch_size: expected height and width, or one number for both, got {patch_size!r}")
    return sides


def compress(image: torch.Tensor, quality: int) -> torch.Tensor:
    """Save an image as JPEG and read it back: blocks of 8 pixels, ringing at edges, colour at half the resolution.

    Args:
        image: (3, H, W), float, any range; its minimum and maximum are mapped to 0 and 255 for the encoder.
        quality: of Pillow's JPEG encoder, 1 (worst) to 95.

    Returns:
        (3, H, W), float32. A constant image is returned as it is.
    """
    low, high = image.min(), image.max()
    if not high > low:
        return image
    pixels = ((image - low) * (255 / (high - low))).round().to(torch.uint8)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(to_numpy(pixels.permute(1, 2, 0)))).save(file, "JPEG", quality=quality)
    decoded = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).to(image.device)
    return decoded.float() * ((high - low) / 255) + low


class RandJPEGd(RandomizableTransform, MapTransform):
    """``compress`` at random: clinics keep photographs as JPEG files, often of low quality.

    Args:
        keys: images, (3, H, W), float.
        quality: the worst and the best quality, 1 to 95.
        prob: probability that a case is compressed.
        allow_missing_keys: accept cases without an image.

    Raises:
        DriveSegError: if an image has not three channels.
    """

    def __init__(
        self, keys: KeysCollection, quality: Sequence[int], prob: float = 0.1, allow_missing_keys: bool = False
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        if len(quality) != 2 or not 1 <= quality[0] <= quality[1] <= 95:
            raise DriveSegError(f"quality: expected the worst and the best of 1 to 95, got {list(quality)}")
        self.quality = tuple(quality)
        self._chosen = self.quality[1]

    def randomize(self, data: Any = None) -> None:
        """Draw whether to compress, and how much."""
        super().randomize(data)
        self._chosen = int(self.R.randint(self.quality[0], self.quality[1] + 1))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The case with its images compressed or unchanged; (3, H, W), float."""
        case = dict(data)
        self.randomize()
        for key in self.key_iterator(case):
            if len(case[key]) != 3:
                raise DriveSegError(f"{key}: expected the three channels of a JPEG file, got {len(case[key])}")
            if self._do_transform:
                case[key] = compress(torch.as_tensor(case[key]), self._chosen)
        return case


class RandAffineFloat32d(RandAffined):
    """MONAI's ``RandAffined``, computed in float32 instead of float64, which takes little more than half the time.

    Args:
        args, kwargs: as for ``monai.transforms.RandAffined``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rand_affine.resampler.dtype = torch.float32
