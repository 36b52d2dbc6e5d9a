"""Batch normalisation that takes part of its statistics from the photograph, for cameras a network has not seen.

What a network has learnt of one camera, the means and variances of its features included, is off for another, whose
features are darker, flatter or more alike. A photograph has pixels enough to say what they are in itself.

Source: S. Schneider et al., "Improving robustness against common corruptions by covariate shift adaptation", NeurIPS
2020, arXiv:2006.16971, whose mixture of both statistics this is.
"""

# No "from __future__ import annotations": TorchScript reads the annotations of what it leaves out as they are.
from typing import Final

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from drive_seg.errors import ArgumentError

__all__ = [
    "EVERY",
    "AdaptiveBatchNorm2d",
    "AdaptiveBatchNorm3d",
    "AdaptiveSyncBatchNorm",
    "adapt_batch_norm",
    "convert_sync_batchnorm",
]

EVERY = 4
"""One row in so many is measured: neighbours are alike, and to measure all would take longer than to normalise."""


class _Adaptive(_BatchNorm):
    """Normalises as its other base class in training, and by the mixture when the network is evaluated.

    Attributes:
        share: of the photograph's own statistics, 0 to 1; the rest are those of the training.
    """

    share = 0.0
    every: Final = EVERY

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, *spatial), any number type → the same, each image of the batch by itself when evaluated."""
        if self.training or self.share == 0:
            return self._plain(x)
        assert self.running_mean is not None and self.running_var is not None
        one_each = [-1] + [1] * (x.dim() - 2)
        measured = x[:, :, :: self.every].float()
        variance, mean = torch.var_mean(measured, dim=list(range(2, x.dim())), correction=0, keepdim=True)
        mean = self.share * mean + (1 - self.share) * self.running_mean.reshape(one_each)
        variance = self.share * variance + (1 - self.share) * self.running_var.reshape(one_each)
        scale = self.weight.reshape(one_each) * torch.rsqrt(variance + self.eps)
        shift = self.bias.reshape(one_each) - mean * scale
        return x * scale.to(x.dtype) + shift.to(x.dtype)

    @torch.jit.unused  # TorchScript does not know super()
    def _plain(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)

    def extra_repr(self) -> str:
        """What ``print`` shows of it."""
        return f"{super().extra_repr()}, share={self.share}"


class AdaptiveBatchNorm2d(_Adaptive, nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d`` with the mixture, (B, C, H, W)."""


class AdaptiveBatchNorm3d(_Adaptive, nn.BatchNorm3d):
    """``torch.nn.BatchNorm3d`` with the mixture, (B, C, D, H, W)."""


class AdaptiveSyncBatchNorm(_Adaptive, nn.SyncBatchNorm):
    """``torch.nn.SyncBatchNorm`` with the mixture."""


_ADAPTIVE: dict[type[nn.Module], type[_Adaptive]] = {
    plain: adaptive
    for adaptive in (AdaptiveBatchNorm2d, AdaptiveBatchNorm3d, AdaptiveSyncBatchNorm)
    for plain in (adaptive, adaptive.__bases__[1])
}


def adapt_batch_norm(module: nn.Module, share: float) -> nn.Module:
    """Let every batch normalisation of a network adapt to the photograph, as ``convert_sync_batchnorm`` does its own.

    Args:
        module: a network, which is changed, or a batch normalisation with weights and running statistics, which keep
            their names and places.
        share: of the photograph's own statistics, 0 to 1.

    Returns:
        The network, or what takes the place of the batch normalisation.

    Raises:
        ArgumentError: if the share is out of its range, or a batch normalisation has no statistics or weights.
    """
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise ArgumentError(f"adaptation: expected a number from 0 to 1, got {share!r}")
    adaptive = _ADAPTIVE.get(type(module))
    if adaptive is None or not isinstance(module, _BatchNorm):
        for name, child in list(module.named_children()):
            module.add_module(name, adapt_batch_norm(child, share))
        return module
    if module.running_mean is None or module.weight is None:
        raise ArgumentError("adaptation: expected batch normalisation with running statistics and weights")
    converted = adaptive(module.num_features)
    vars(converted).update(vars(module))
    converted.share = float(share)
    return converted


def convert_sync_batchnorm(network: nn.Module) -> nn.Module:
    """As ``torch.nn.SyncBatchNorm.convert_sync_batchnorm``; what adapts goes on adapting."""
    shares = {name: layer.share for name, layer in network.named_modules() if isinstance(layer, _Adaptive)}
    network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for name, share in shares.items():
        network.set_submodule(name, adapt_batch_norm(network.get_submodule(name), share))
    return network
