"""Crop photographs to the field of view and scale them to its diameter, and back; arrays are (C, H, W)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform, create_translate
from monai.transforms.utils import scale_affine
from monai.utils import MetaKeys, TraceKeys, ensure_tuple, ensure_tuple_rep
from skimage.morphology import skeletonize

from drive_seg.arrays import like, to_numpy, without_metadata
from drive_seg.errors import DriveSegError
from drive_seg.fov import fov_box

__all__ = ["ScaleToFOVd", "resize", "shrink_annotation"]


def resize(image: torch.Tensor, size: Sequence[int], nearest: bool = False) -> torch.Tensor:
    """Resample a picture to another size.

    Args:
        image: (C, H, W), any number type; whole numbers stay whole.
        size: new height and width, pixels.
        nearest: take the nearest pixel, for class values; otherwise bilinear, with averaging when it shrinks.

    Returns:
        (C, *size), of the type of ``image``.
    """
    if tuple(image.shape[1:]) == tuple(size):
        return image
    # For other types, PyTorch has no interpolation or rounds towards 0; for bytes it has one on CPUs alone.
    kept = (torch.uint8, torch.float32, torch.float64) if image.device.type == "cpu" else (torch.float32, torch.float64)
    batch = (image if image.dtype in kept else image.double())[None]
    if nearest:
        scaled = torch.nn.functional.interpolate(batch, size=tuple(size), mode="nearest-exact")[0]
    else:
        scaled = torch.nn.functional.interpolate(batch, size=tuple(size), mode="bilinear", antialias=True)[0]
    if scaled.dtype == image.dtype:
        return scaled
    return (scaled if image.is_floating_point() else scaled.round()).to(image.dtype)


def shrink_annotation(label: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Shrink an annotation to what might have been drawn on the smaller photograph: no vessel is thinner than a pixel.

    A pixel has the class that covers most of it; background gives way to a vessel whose centreline runs through it. By
    area alone, vessels narrower than half a pixel would be lost; by the nearest pixel, they would be torn to pieces.

    Args:
        label: (1, H, W), class values; 0 is background.
        size: new height and width, pixels, neither larger than it was.

    Returns:
        (1, *size), of the type of ``label``.
    """
    height, width = label.shape[1:]
    values = to_numpy(label)[0]
    shrunk, largest = np.zeros(tuple(size), values.dtype), np.zeros(tuple(size), np.float32)
    centrelines = np.zeros_like(shrunk)
    for value in np.unique(values):
        of_class = values == value
        share = resize(torch.from_numpy(of_class[None].astype(np.float32)), size)[0].numpy()
        shrunk[share > largest] = value
        np.maximum(largest, share, out=largest)
        if value != 0:
            rows, columns = np.nonzero(skeletonize(of_class))
            # the pixels in which the centres of the large ones lie
            places = (2 * rows + 1) * size[0] // (2 * height), (2 * columns + 1) * size[1] // (2 * width)
            centrelines[places] = np.where(centrelines[places] == 0, value, centrelines[places])  # the first class
    return torch.from_numpy(np.where(shrunk == 0, centrelines, shrunk)[None]).to(label.device)


class ScaleToFOVd(MapTransform, InvertibleTransform):
    """Crop to the field of view and scale it to a given diameter, or into a given range of diameters.

    Cameras differ tenfold in resolution; this shows the network every retina at about the same scale. MONAI's crop and
    resize would need two steps, take ten times as long, and scale up again in blocks.

    Args:
        keys: arrays to crop and scale, (C, H, W).
        diameter: diameter of the field of view afterwards, pixels. Two numbers are the smallest and largest diameter
            that are kept, so that a small photograph is not enlarged more than needed and a large one keeps its fine
            vessels. None: only crop.
        fov_key: FOV mask at the photograph's own size, (1, H, W), non-zero inside.
        margin: pixels of zeros to add around the field of view after scaling.
        nearest: for each key, whether to take the nearest pixel (class values) rather than to interpolate.
        annotation_key: key of an annotation that is shrunk by ``shrink_annotation`` instead; None: there is none.
        zoom_key: key of a further scale factor, if the case has it, to learn from a photograph at several sizes.
        allow_missing_keys: accept cases without some of the keys.

    Raises:
        DriveSegError: if the diameter or the margin is not as above.
    """

    def __init__(
        self,
        keys: KeysCollection,
        diameter: int | Sequence[int] | None,
        fov_key: str = "fov",
        margin: int = 0,
        nearest: Sequence[bool] | bool = False,
        annotation_key: str | None = None,
        zoom_key: str = "zoom",
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        if diameter is not None:
            limits = ensure_tuple(diameter)
            numbers = all(isinstance(limit, (int, float)) and limit >= 1 for limit in limits)
            if not numbers or not (len(limits) == 1 or (len(limits) == 2 and limits[0] <= limits[1])):
                raise DriveSegError(
                    "fov_diameter (diameter): expected a positive number of pixels, the smallest and the largest of "
                    f"them, or null, got {diameter!r}"
                )
        if margin < 0:
            raise DriveSegError(f"margin: expected 0 or more pixels, got {margin}")
        self.diameter = diameter
        self.annotation_key = annotation_key
        self.zoom_key = zoom_key
        self.fov_key = fov_key
        self.margin = margin
        self.nearest = ensure_tuple_rep(nearest, len(self.keys))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The case cropped and scaled, each key (C, height, width) with the margin; ``inverse`` undoes it.

        Affines follow, as those of MONAI's spatial transforms do.
        """
        case = dict(data)
        rows, columns = fov_box(to_numpy(without_metadata(case[self.fov_key]))[0] > 0)
        box = (rows.start, rows.stop, columns.start, columns.stop)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        scale = self._scale(max(height, width)) * float(case.get(self.zoom_key, 1.0))
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        affine = (
            create_translate(2, (rows.start, columns.start))
            @ scale_affine((height, width), size)
            @ create_translate(2, (-self.margin, -self.margin))
        )
        for key, nearest in self.key_iterator(case, self.nearest):
            image = case[key]
            pixels = without_metadata(image)
            cropped = pixels[:, rows, columns]
            if key == self.annotation_key and scale < 1:
                cropped = shrink_annotation(cropped, size)
            else:
                cropped = resize(cropped, size, nearest)
            scaled = MetaTensor(torch.nn.functional.pad(cropped, [self.margin] * 4))
            if isinstance(image, MetaTensor):
                scaled.copy_meta_from(image)
            extra = {"box": box, "nearest": nearest, "affine": scaled.affine}
            self.push_transform(scaled, affine=affine, orig_size=tuple(pixels.shape[1:]), extra_info=extra)
            case[key] = scaled
        return case

    def _scale(self, diameter: int) -> float:
        if self.diameter is None:
            return 1.0
        limits = ensure_tuple(self.diameter)
        return min(max(diameter, limits[0]), limits[-1]) / diameter

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The case at the photograph's own size; the part cropped away is 0."""
        case = dict(data)
        # Missing keys are always allowed here: MONAI's Invertd switches the check off and on for all threads.
        for key in (key for key in self.keys if key in case):
            image = case[key]
            trace = self.pop_transform(image)
            extra = trace[TraceKeys.EXTRA_INFO]
            top, bottom, left, right = extra["box"]
            height, width = trace[TraceKeys.ORIG_SIZE]
            inner = without_metadata(image)[:, self.margin : -self.margin or None, self.margin : -self.margin or None]
            box = resize(inner, (bottom - top, right - left), extra["nearest"])
            whole = torch.nn.functional.pad(box, [left, width - right, top, height - bottom])
            case[key] = like(whole, image)
            case[key].meta = {**image.meta, MetaKeys.AFFINE: extra["affine"]}
        return case
