"""How far a network that was converted for another runtime is from the original."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from drive_seg.networks import UNet

__all__ = ["Compute", "largest_difference"]

Compute = Callable[[torch.Tensor], torch.Tensor]


@torch.no_grad()
def largest_difference(
    network: UNet,
    converted: Compute,
    sizes: Iterable[tuple[int, int, int]],
    of: Compute = torch.Tensor.float,
) -> float:
    """Largest absolute difference between the outputs of two networks, on noise, in float32; nan if any is nan.

    Args:
        network: the original.
        converted: called with the same images, (B, in_channels, H, W), float32; returns logits (B, num_classes, H, W).
        sizes: (B, H, W) of each test image.
        of: what of the logits is compared, such as their softmax; by default, the logits.
    """
    generator = torch.Generator().manual_seed(0)
    differences = []
    for batch, height, width in sizes:
        noise = torch.randn(batch, network.in_channels, height, width, generator=generator)
        with torch.autocast("cpu", enabled=False):  # an inferer may have it on
            one, other = of(network(noise)), of(converted(noise))
        differences.append((one - other).abs().max())
    return torch.stack(differences).max().item()
