"""Batch normalisation that takes part of its statistics from the photograph, for cameras a network has not seen.

The feature means and variances learnt from one camera are off for another, whose features are darker, flatter or more
alike. A photograph has enough pixels to estimate its own.

Source: S. Schneider et al., "Improving robustness against common corruptions by covariate shift adaptation", NeurIPS
2020, arXiv:2006.16971, from which this mixture of both statistics is taken.
"""

# No "from __future__ import annotations": TorchScript does not evaluate annotations of methods it leaves out.
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
    "largest_share",
]

EVERY = 4
"""Only one row in this many is measured: neighbours are alike, and measuring all takes longer than normalising."""


def _along_rows(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """One value per channel, (B, C, 1, …, 1), for arithmetic with x (B, C, *spatial); repeated along rows on a CPU.

    With channels last in memory, PyTorch would work through x pixel by pixel, whose 16 channels are too few to be fast.
    With a value for each pixel of a row, it works through rows.
    """
    if not torch.jit.is_scripting():
        whole_rows = x.device.type == "cpu" and x.stride(1) == 1
        if whole_rows and not torch.compiler.is_compiling() and not torch.jit.is_tracing():
            return values.movedim(1, -1).repeat([1] * (x.dim() - 2) + [x.shape[-1], 1]).movedim(-1, 1)
    return values


class _Adaptive(_BatchNorm):
    """Normalises like its other base class in training, and with the mixed statistics in evaluation.

    Attributes:
        share: weight of the photograph's own statistics, 0 to 1; the training's have the rest.
    """

    share = 0.0
    every: Final = EVERY

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, *spatial), any number type → the same; each image is normalised separately in evaluation."""
        if self.training or self.share == 0:
            return self._plain(x)
        assert self.running_mean is not None and self.running_var is not None
        one_each = [-1] + [1] * (x.dim() - 2)
        measured = x[:, :, :: self.every].float()
        everywhere = list(range(2, x.dim()))
        mean = measured.mean(dim=everywhere, keepdim=True)
        # var_mean is slower on a CPU.
        variance = (measured - _along_rows(mean, x)).square().mean(dim=everywhere, keepdim=True)
        mean = self.share * mean + (1 - self.share) * self.running_mean.reshape(one_each)
        variance = self.share * variance + (1 - self.share) * self.running_var.reshape(one_each)
        scale = self.weight.reshape(one_each) * torch.rsqrt(variance + self.eps)
        shift = self.bias.reshape(one_each) - mean * scale
        return x * _along_rows(scale.to(x.dtype), x) + _along_rows(shift.to(x.dtype), x)

    @torch.jit.unused  # TorchScript does not know super()
    def _plain(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)

    def extra_repr(self) -> str:
        """The arguments that ``print`` shows."""
        return f"{super().extra_repr()}, share={self.share}"


class AdaptiveBatchNorm2d(_Adaptive, nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d`` with mixed statistics, (B, C, H, W)."""


class AdaptiveBatchNorm3d(_Adaptive, nn.BatchNorm3d):
    """``torch.nn.BatchNorm3d`` with mixed statistics, (B, C, D, H, W)."""


class AdaptiveSyncBatchNorm(_Adaptive, nn.SyncBatchNorm):
    """``torch.nn.SyncBatchNorm`` with mixed statistics."""


_ADAPTIVE: dict[type[nn.Module], type[_Adaptive]] = {
    plain: adaptive
    for adaptive in (AdaptiveBatchNorm2d, AdaptiveBatchNorm3d, AdaptiveSyncBatchNorm)
    for plain in (adaptive, adaptive.__bases__[1])
}


def adapt_batch_norm(module: nn.Module, share: float) -> nn.Module:
    """Make a network's batch normalisation adapt to the photograph; works like ``convert_sync_batchnorm``.

    Args:
        module: a network, modified in place, or a batch normalisation; weights and running statistics are required and
            keep their names and places.
        share: weight of the photograph's own statistics, 0 to 1.

    Returns:
        The network, or the layer that replaces the batch normalisation.

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
    """Like ``torch.nn.SyncBatchNorm.convert_sync_batchnorm``, but adaptive layers stay adaptive."""
    shares = {name: layer.share for name, layer in network.named_modules() if isinstance(layer, _Adaptive)}
    network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for name, share in shares.items():
        network.set_submodule(name, adapt_batch_norm(network.get_submodule(name), share))
    return network


def largest_share(network: nn.Module) -> float:
    """The largest share that one of a network's layers takes from the photograph; 0 if none adapts."""
    return max((layer.share for layer in network.modules() if isinstance(layer, _Adaptive)), default=0.0)
