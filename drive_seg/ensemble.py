"""Several networks as one: the mean of their probabilities."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from ignite.engine import Engine, Events
from torch import nn

from drive_seg.checkpoints import load_weights
from drive_seg.errors import DriveSegError

__all__ = ["Ensemble", "EnsembleLoader"]


class Ensemble(nn.Module):
    """Copies of a network, each to get weights of its own, such as those of the folds of a cross-validation.

    Args:
        network: any network that puts out logits.
        members: how many copies.
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

        Their softmax is that mean, so that they take the place of logits.
        """
        logarithms = torch.stack([member(image).float().log_softmax(dim=1) for member in self.members])
        return logarithms.logsumexp(dim=0) - math.log(len(self.members))


class EnsembleLoader:
    """Loads the weights of an ensemble's members when an engine starts.

    Args:
        network: an ``Ensemble``.
        paths: weights, one file a member.
    """

    def __init__(self, network: Ensemble, paths: Sequence[str]) -> None:
        self.network = network
        self.paths = list(paths)

    def attach(self, engine: Engine) -> None:
        """Run at the start of ``engine``."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Load.

        Raises:
            DriveSegError: if there are not as many files as members, or one is missing or does not fit.
        """
        if len(self.paths) != len(self.network.members):
            raise DriveSegError(f"expected weights for {len(self.network.members)} networks, got {len(self.paths)}")
        for member, path in zip(self.network.members, self.paths, strict=True):
            load_weights(member, path)
