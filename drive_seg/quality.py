"""Photographs whose masks deserve a second look: too dark, blurred, or with hardly any vessel found.

Everything is measured with the field of view scaled to 512 pixels across, so that it means the same for every camera.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.transforms import Transform
from PIL import Image
from scipy import ndimage

from drive_seg.errors import DriveSegError
from drive_seg.fov import fov_diameter

__all__ = ["AssessQualityd", "brightness_and_sharpness"]

DIAMETER = 512
MARGIN = 12
"""Pixels inside the field of view's edge that are left out: the edge itself is sharp in every photograph."""


def brightness_and_sharpness(photograph: np.ndarray, fov: np.ndarray) -> tuple[float, float]:
    """How bright a photograph is, and how much of its contrast is fine detail.

    Args:
        photograph: (H, W, 3), uint8.
        fov: (H, W), bool.

    Returns:
        Median of the brightest channel inside the field of view, 0 to 255; and the standard deviation of the green
        channel's Laplacian of Gaussian (sigma 1) over that of its local contrast (less its Gaussian mean, sigma 8).
        The sharpness of the 73 photographs of CHASE_DB1 and HRF is around 0.35, and 0.1 once they are blurred by 0.8 %
        of the diameter. A photograph that is constant has a sharpness of 0.
    """
    scale = DIAMETER / fov_diameter(fov)
    size = tuple(max(1, round(length * scale)) for length in (fov.shape[1], fov.shape[0]))
    small = np.asarray(Image.fromarray(photograph).resize(size, Image.Resampling.BOX), dtype=np.float32)
    inside = np.asarray(Image.fromarray(fov).resize(size, Image.Resampling.NEAREST))
    inner = ndimage.binary_erosion(inside, iterations=MARGIN)
    inside = inner if inner.any() else inside
    green = small[..., 1]
    detail = ndimage.gaussian_laplace(green, 1)[inside].std()
    contrast = (green - ndimage.gaussian_filter(green, 8))[inside].std()
    return float(np.median(small.max(axis=2)[inside])), float(detail / contrast) if contrast > 0 else 0.0


class AssessQualityd(Transform):
    """What is wrong with a photograph or its mask, as a list of words under the key ``quality``; empty if nothing is.

    Args:
        darkest: brightness below which it is ``too dark``, 0 to 255.
        least_sharpness: below which it is ``blurred``, see ``brightness_and_sharpness``.
        least_density: share of the field of view that is vessel, below which there is ``hardly any vessel``.
        photograph_key: (3, H, W), uint8.
        pred_key: mask, (1, H, W), class values, 0 for background.
        fov_key: FOV mask, (1, H, W).
        output_key: where the words go.
    """

    def __init__(
        self,
        darkest: float,
        least_sharpness: float,
        least_density: float,
        photograph_key: str = "photograph",
        pred_key: str = "pred",
        fov_key: str = "fov",
        output_key: str = "quality",
    ) -> None:
        limits = {"darkest": darkest, "least_sharpness": least_sharpness, "least_density": least_density}
        for name, limit in limits.items():
            if not (isinstance(limit, (int, float)) and limit >= 0):
                raise DriveSegError(f"{name}: expected a number from 0, got {limit!r}")
        self.darkest = darkest
        self.least_sharpness = least_sharpness
        self.least_density = least_density
        self.photograph_key = photograph_key
        self.pred_key = pred_key
        self.fov_key = fov_key
        self.output_key = output_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The case with what the class says done to it."""
        case = dict(data)
        photograph = np.asarray(case[self.photograph_key].cpu()).transpose(1, 2, 0)
        mask, fov = (np.asarray(case[key].cpu())[0] > 0 for key in (self.pred_key, self.fov_key))
        brightness, sharpness = brightness_and_sharpness(np.ascontiguousarray(photograph), fov)
        found = {
            "too dark": brightness < self.darkest,
            "blurred": sharpness < self.least_sharpness,
            "hardly any vessel": (mask & fov).sum() < self.least_density * fov.sum(),
        }
        case[self.output_key] = [words for words, wrong in found.items() if wrong]
        return case
