"""Several networks as one: the mean of their probabilities."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from drive_seg.errors import DriveSegError

__all__ = ["Ensemble"]


class Ensemble(nn.Module):
    """Copies of a network, each with its own weights, such as those of the folds of a cross-validation.

    Args:
        network: any network that outputs logits.
        members: number of copies.
    """

    def __init__(self, network: nn.Module, members: int) -> None:
        super().__init__()
        if members < 1:
            raise DriveSegError(
                f"members: expected one network or more, got {members}; --checkpoint names their weights"
            )
        self.members = nn.ModuleList(copy.deepcopy(network) for _ in range(members))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) → (B, num_classes, H, W), logarithms of the mean probabilities.

        Their softmax is that mean, so they can replace logits.
        """
        logarithms = torch.stack([member(image).float().log_softmax(dim=1) for member in self.members])
        return logarithms.logsumexp(dim=0) - math.log(len(self.members))
