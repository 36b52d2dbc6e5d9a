"""Inferers: how a network is run on an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, SimpleInferer, SlidingWindowInferer

from drive_seg.engines import autocast, fast_dtype

__all__ = ["FlipInferer", "LargeImageInferer", "PrecisionInferer"]


class PrecisionInferer(Inferer):
    """Runs another inferer in the precision and memory format the device is fast at.

    Args:
        inferer: what runs the network, MONAI's ``SimpleInferer`` by default.
        precision: ``auto``, ``float32``, ``bfloat16`` or ``float16``, see ``drive_seg.engines.fast_dtype``.
    """

    def __init__(self, inferer: Inferer | None = None, precision: str = "auto") -> None:
        super().__init__()
        self.inferer = SimpleInferer() if inferer is None else inferer
        self.precision = precision
        fast_dtype(torch.device("cpu"), precision)

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Images (B, C, H, W), float32 → logits (B, num_classes, H, W), float32."""
        images = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        if images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        with autocast(images.device, self.precision):
            logits = self.inferer(images, network, *args, **kwargs)
        logits = logits.float()
        # Postprocessing undoes the preprocessing from what the image's metadata tell of it.
        return MetaTensor(logits, meta=inputs.meta) if isinstance(inputs, MetaTensor) else logits


class LargeImageInferer(SlidingWindowInferer):
    """The whole image at once where it fits into ``roi_size``, sliding windows over it where it does not.

    MONAI's ``SlidingWindowInferer`` pads a smaller image up to the window; the network takes any size.

    Args:
        roi_size: largest height and width that go through the network at once, pixels.
        kwargs: as for ``monai.inferers.SlidingWindowInferer``.
    """

    def __init__(self, roi_size: Sequence[int] | int, **kwargs: Any) -> None:
        super().__init__(roi_size=roi_size, **kwargs)

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Images (B, C, H, W) → logits (B, num_classes, H, W)."""
        sides = inputs.shape[2:]
        limits = [self.roi_size] * len(sides) if isinstance(self.roi_size, int) else self.roi_size
        if all(side <= limit for side, limit in zip(sides, limits, strict=True)):
            return network(inputs, *args, **kwargs)
        return super().__call__(inputs, network, *args, **kwargs)


class FlipInferer(Inferer):
    """Mean of the logits over the image and its mirror images (left-right, up-down, both).

    Args:
        inferer: what runs the network on each of them.
        flips: False runs it on the image alone.
    """

    def __init__(self, inferer: Inferer, flips: bool = True) -> None:
        super().__init__()
        self.inferer = inferer
        self.flips = flips

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Images (B, C, H, W) → logits (B, num_classes, H, W)."""
        logits = self.inferer(inputs, network, *args, **kwargs).float()
        if not self.flips:
            return logits
        mirrorings = ((-1,), (-2,), (-1, -2))
        for dims in mirrorings:
            logits = logits + self.inferer(inputs.flip(dims), network, *args, **kwargs).flip(dims)
        return logits / (1 + len(mirrorings))
