"""Inferers: how a network is run on an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, SimpleInferer, SlidingWindowInferer
from monai.utils import fall_back_tuple
from torch.utils._pytree import tree_map_only

from drive_seg.devices import autocast, fast_dtype, memory_format
from drive_seg.errors import ArgumentError, DriveSegError

__all__ = ["FlipInferer", "LargeImageInferer", "PrecisionInferer"]

MIRRORINGS = [(dims, transposed) for transposed in (False, True) for dims in ((), (-1,), (-2,), (-1, -2))]
"""Axes that are flipped, and whether rows and columns are then swapped."""


class PrecisionInferer(Inferer):
    """Runs another inferer in the device's fast precision and the network's fast memory format.

    That is ``drive_seg.devices.memory_format``, unless the network has another ``memory_format``.

    Args:
        inferer: inferer that runs the network, MONAI's ``SimpleInferer`` by default.
        precision: ``auto``, ``float32``, ``bfloat16`` or ``float16``, see ``drive_seg.devices.fast_dtype``.
    """

    def __init__(self, inferer: Inferer | None = None, precision: str = "auto") -> None:
        super().__init__()
        self.inferer = SimpleInferer() if inferer is None else inferer
        self.precision = precision
        fast_dtype(torch.device("cpu"), precision)  # refuses an unknown one here, not in the first step

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Images (B, C, H, W), float32 → logits (B, num_classes, H, W), float32.

        A list, tuple or dictionary of logits, as of a network with deep supervision, stays one.
        """
        images = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        if images.dim() == 4:
            images = images.contiguous(memory_format=getattr(network, "memory_format", memory_format(images.device)))
        with autocast(images.device, self.precision):
            logits = _in_float32(self.inferer(images, network, *args, **kwargs))
        if not isinstance(inputs, MetaTensor):
            return logits
        # Postprocessing undoes the preprocessing by the image's metadata.
        return tree_map_only(torch.Tensor, lambda one: MetaTensor(one).copy_meta_from(inputs), logits)


class LargeImageInferer(Inferer):
    """Runs the network on the whole image if it fits into ``roi_size``, else in sliding windows.

    MONAI's ``SlidingWindowInferer`` pads a smaller side up to the window; the network takes any size.

    Args:
        roi_size: largest height and width, in pixels, to run at once; None, 0 or less for a side: any.
        kwargs: as for ``monai.inferers.SlidingWindowInferer``.
    """

    def __init__(self, roi_size: Sequence[int] | int, **kwargs: Any) -> None:
        super().__init__()
        self.roi_size = roi_size
        self.kwargs = kwargs
        SlidingWindowInferer(roi_size, **kwargs)  # refuses wrong ones here, not at the first large image

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Images (B, C, H, W) → logits (B, num_classes, H, W)."""
        sides = tuple(inputs.shape[2:])
        window = tuple(map(min, sides, fall_back_tuple(self.roi_size, sides)))
        if window == sides:
            return network(inputs, *args, **kwargs)
        return SlidingWindowInferer(window, **self.kwargs)(inputs, network, *args, **kwargs)


class FlipInferer(Inferer):
    """Mean of the logits over an image and its mirror images.

    Args:
        inferer: inferer that runs the network on each of them.
        flips: number of images. 4, or True: the image, mirrored left-right, up-down, and both. 8: these and their
            transposes, all symmetries of a square. 1, or False: the image alone.

    Raises:
        DriveSegError: if ``flips`` is anything else.
    """

    def __init__(self, inferer: Inferer, flips: bool | int | str = True) -> None:
        super().__init__()
        # MONAI's command line turns true and false into strings.
        flips = {"true": True, "false": False}.get(flips, flips) if isinstance(flips, str) else flips
        number = {True: 4, False: 1}[flips] if isinstance(flips, bool) else flips
        if number not in (1, 4, 8):
            raise DriveSegError(f"flips: expected true, false, 1, 4 or 8, got {flips!r}")
        self.inferer = inferer
        self.mirrorings = MIRRORINGS[: int(number)]

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Images (B, C, H, W) → logits (B, num_classes, H, W), float32.

        Raises:
            ArgumentError: if there is more than one output of the network, unless the image alone is asked for.
        """
        if len(self.mirrorings) == 1:
            return _in_float32(self.inferer(inputs, network, *args, **kwargs))
        total: torch.Tensor | None = None
        for dims, transposed in self.mirrorings:
            view = inputs.flip(dims) if dims else inputs
            view = view.transpose(-1, -2) if transposed else view
            logits = self.inferer(view, network, *args, **kwargs)
            if not isinstance(logits, torch.Tensor):
                raise ArgumentError(f"flips: expected a network with one output, got a {type(logits).__name__}")
            logits = logits.float()
            logits = logits.transpose(-1, -2) if transposed else logits
            logits = logits.flip(dims) if dims else logits
            total = logits if total is None else total + logits
        assert total is not None
        return total / len(self.mirrorings)


def _in_float32(logits: Any) -> Any:
    return tree_map_only(torch.Tensor, torch.Tensor.float, logits)
