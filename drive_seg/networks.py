"""The padded U-Net, from its blocks to the whole network.

Source: O. Ronneberger, P. Fischer, T. Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation",
MICCAI 2015, doi:10.1007/978-3-319-24574-4_28. As in MONAI's networks, the convolutions are padded, so that the output
has the size of the input, and followed by batch normalisation; ``padded=False`` gives the paper's unpadded design.
"""

from __future__ import annotations

from itertools import pairwise
from numbers import Integral
from typing import Any

import torch
from monai.networks.layers.factories import Conv, Norm, Pool
from torch import nn
from torch.func import functional_call

from drive_seg.adaptation import EVERY, adapt_batch_norm
from drive_seg.errors import ArgumentError

__all__ = ["EXPORTED_SINCE", "ConvBlock", "DecoderStage", "EncoderStage", "OutputLayer", "UNet"]

EXPORTED_SINCE = "2.13"
"""First PyTorch whose ``torch.export`` takes the network for any size: earlier ones export pooling of even sizes."""


class ConvBlock(nn.Sequential):
    """Two 3×3 convolutions, each followed by normalisation and ReLU.

    Args:
        spatial_dims: 2 for (B, C, H, W), 3 for (B, C, D, H, W).
        in_channels: channels in.
        out_channels: channels out of both convolutions.
        norm: ``"batch"``, or None for none; the convolutions have a bias only without normalisation, which would
            cancel it.
        padded: pad by 1 to keep the size; otherwise every spatial side loses 4.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, norm: str | None = "batch", padded: bool = True
    ) -> None:
        if norm not in ("batch", None):
            raise ArgumentError(f"norm: expected 'batch' or None, got {norm!r}")
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            layers.append(
                Conv[Conv.CONV, spatial_dims](
                    channels, out_channels, kernel_size=3, padding=1 if padded else 0, bias=norm is None
                )
            )
            if norm == "batch":
                layers.append(Norm[Norm.BATCH, spatial_dims](out_channels))
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


class EncoderStage(nn.Module):
    """2×2 max pooling, then a ``ConvBlock``, whose arguments it takes: half the size, ``out_channels`` channels."""

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, norm: str | None = "batch", padded: bool = True
    ) -> None:
        super().__init__()
        self.pool = Pool[Pool.MAX, spatial_dims](kernel_size=2)
        self.convs = ConvBlock(spatial_dims, in_channels, out_channels, norm, padded)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, H, W) → (B, out_channels, H // 2, W // 2) when padded."""
        return self.convs(self.pool(x))


class DecoderStage(nn.Module):
    """2×2 transposed convolution, concatenation with the encoder's features, then a ``ConvBlock``.

    Args:
        in_channels: channels from below; the transposed convolution halves them.
        skip_channels: channels from the encoder.
        out_channels: channels out.
        spatial_dims, norm, padded: as in ``ConvBlock``. If padded, the upsampled features are padded to the size of
            the encoder's (by one pixel where that is odd); otherwise the encoder's are cropped at the centre.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        skip_channels: int,
        out_channels: int,
        norm: str | None = "batch",
        padded: bool = True,
    ) -> None:
        super().__init__()
        self.padded = padded
        self.padding_mode = "replicate"  # an attribute, so that a conversion can choose what suits its target
        self.up = Conv[Conv.CONVTRANS, spatial_dims](in_channels, in_channels // 2, kernel_size=2, stride=2)
        self.convs = ConvBlock(spatial_dims, in_channels // 2 + skip_channels, out_channels, norm, padded)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """Features from below and from the encoder → (B, out_channels, size of ``skip`` when padded)."""
        if torch.jit.is_scripting():
            x = self.up(x)
        else:
            x = _upsampled(self.up, x)
            skip = _with_gradient_in_one_piece(skip)
        if self.padded:
            x = _pad_to(x, skip, self.padding_mode)
        else:
            skip = _crop_to(skip, x)
        return self.convs(torch.cat([skip, x], dim=1))


class OutputLayer(nn.Module):
    """1×1 convolution from features to one logit per class."""

    def __init__(self, spatial_dims: int, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv = Conv[Conv.CONV, spatial_dims](in_channels, num_classes, kernel_size=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, H, W) → (B, num_classes, H, W)."""
        return self.conv(x)


class UNet(nn.Module):
    """U-Net whose output has the size of its input.

    With the defaults it has 23 convolution layers and 31,037,698 parameters, in the order encoder → decoder → output.

    Args:
        in_channels: channels of the image, 3 for a colour photograph.
        num_classes: number of classes including the background, hence of logits per pixel.
        base_channels: channels of the first stage; each of the ``depth`` stages below has twice as many as the last.
        depth: how often the size is halved; images must have at least ``2**depth`` pixels a side.
        spatial_dims: 2 or 3.
        norm: ``"batch"`` or None.
        padded: False gives the original design with valid convolutions and cropped skip connections, which turns
            572×572 into 388×388.
        adaptation: share of an image's own statistics in batch normalisation when the network is evaluated, 0 to 1, see
            ``drive_seg.adaptation``; applies to the stages below half the size and the last normalisation.

    Raises:
        ArgumentError: if an argument is out of its range.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 2,
        base_channels: int = 64,
        depth: int = 4,
        spatial_dims: int = 2,
        norm: str | None = "batch",
        padded: bool = True,
        adaptation: float = 0.0,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ArgumentError(f"spatial_dims: expected 2 or 3, got {spatial_dims!r}")
        counts = {
            "in_channels": in_channels,
            "num_classes": num_classes,
            "base_channels": base_channels,
            "depth": depth,
        }
        for name, value in counts.items():
            if not isinstance(value, Integral) or value < 1:
                raise ArgumentError(f"{name}: expected a whole number of at least 1, got {value!r}")

        self.in_channels = in_channels
        self.num_classes = num_classes
        self.base_channels = base_channels
        self.spatial_dims = spatial_dims
        self.depth = depth
        self.padded = padded
        self.smallest_size = 2**depth if padded else _smallest_unpadded_size(depth)

        channels = [base_channels * 2**level for level in range(depth + 1)]
        self.first = ConvBlock(spatial_dims, in_channels, channels[0], norm, padded)
        self.encoder = nn.ModuleList(
            EncoderStage(spatial_dims, above, here, norm, padded) for above, here in pairwise(channels)
        )
        self.decoder = nn.ModuleList(
            DecoderStage(spatial_dims, below, here, here, norm, padded)
            for below, here in zip(channels[:0:-1], channels[-2::-1], strict=True)
        )
        self.output = OutputLayer(spatial_dims, channels[0], num_classes)
        if adaptation:
            self._adapt(adaptation, norm)
        # torch.export makes a size of 1 constant: that of the features at the bottom, or of the rows that are measured.
        self.smallest_exported_size = self.smallest_size * (EVERY + 1 if adaptation else 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Image (B, in_channels, H, W), float → logits (B, num_classes, H, W), float.

        Raises:
            ValueError: if the rank, the number of channels or the size does not fit the network.
        """
        self._check(x)
        x = self.first(x)
        skips = [x]
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        skips.pop()
        for stage in self.decoder:
            x = stage(x, skips.pop())
        logits = self.output(x)
        return logits

    def _adapt(self, share: float, norm: str | None) -> None:
        if norm != "batch":
            raise ArgumentError(f"adaptation: expected 0 where norm is {norm!r}, got {share!r}")
        # Below half the size, and the last one: on an unseen camera as good as adapting all, at a third of the work.
        last = self.decoder[-1].get_submodule("convs")
        last.add_module("4", adapt_batch_norm(last.get_submodule("4"), share))
        for stage in (*self.encoder[1:], *self.decoder[:-2]):
            adapt_batch_norm(stage, share)

    def _check(self, x: torch.Tensor) -> None:
        if x.dim() != self.spatial_dims + 2:
            raise ArgumentError(
                f"UNet: expected {self.spatial_dims + 2} dimensions (batch, channel, {self.spatial_dims} spatial), "
                f"got {x.dim()}"
            )
        if x.shape[1] != self.in_channels:
            raise ArgumentError(f"UNet: expected {self.in_channels} channels, got {x.shape[1]}")
        for size in x.shape[2:]:
            if size < self.smallest_size:
                raise ArgumentError(
                    f"UNet: expected every side to have at least {self.smallest_size} pixels (depth {self.depth}), "
                    f"got {size}"
                )


def _is_trained_on_cpu(x: torch.Tensor) -> bool:
    return (
        x.requires_grad and x.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.jit.is_tracing()
    )


class _GradientOfBias(torch.autograd.Function):
    """Passes on an output in which a bias is contained already, and its gradient to the output and the bias."""

    generate_vmap_rule = True  # as setup_context, for torch.func

    @staticmethod
    def forward(output: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return output.view_as(output)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: torch.Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        everywhere = [dim for dim in range(gradient.dim()) if dim != 1]
        return gradient, gradient.sum(everywhere, dtype=torch.promote_types(gradient.dtype, torch.float32))


def _upsampled(up: Any, x: torch.Tensor) -> torch.Tensor:
    """The transposed convolution of x.

    On a CPU in bfloat16, PyTorch takes longer for the gradient of its bias than for the rest of its backward pass
    (seen in 2.13). Summing it here, in float32, makes a training step a twenty-fifth shorter.
    """
    if not _is_trained_on_cpu(x):
        return up(x)
    bias = up.bias
    output = functional_call(up, {"bias": bias.detach()}, (x,))
    return _GradientOfBias.apply(output, bias)


def _with_gradient_in_one_piece(x: torch.Tensor) -> torch.Tensor:
    """The same values, with the gradient copied on its way back.

    The gradient of a concatenation is a slice. On a CPU, adding it to the gradient of the pooling takes three times as
    long as copying it first, a thirtieth of a training step.
    """
    if not _is_trained_on_cpu(x):
        return x
    x = x.view_as(x)
    x.register_hook(_in_one_piece)
    return x


def _in_one_piece(gradient: torch.Tensor | None) -> torch.Tensor | None:
    return None if gradient is None else gradient.clone()


def _pad_to(x: torch.Tensor, skip: torch.Tensor, mode: str) -> torch.Tensor:
    # Padding by nothing still copies. Exported graphs have no branches: they serve odd and even sizes alike.
    if torch.jit.is_scripting():
        fits = x.shape[2:] == skip.shape[2:]
    else:
        # Compiled, padding has no gradient, and on a GPU one that differs from run to run.
        if torch.compiler.is_dynamo_compiling() or (x.is_cuda and x.requires_grad):
            return _with_last_repeated(x, skip)
        fits = not torch.compiler.is_exporting() and x.shape[2:] == skip.shape[2:]
    if fits:
        return x
    if x.dim() == 5:
        pads = [
            0, skip.shape[4] - x.shape[4], 0, skip.shape[3] - x.shape[3], 0, skip.shape[2] - x.shape[2],
        ]  # fmt: skip
    else:
        pads = [0, skip.shape[3] - x.shape[3], 0, skip.shape[2] - x.shape[2]]
    return nn.functional.pad(x, pads, mode=mode)


def _with_last_repeated(x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
    """Pad upsampled features, which lack at most one pixel per side."""
    for dim in range(2, x.dim()):
        if x.shape[dim] < skip.shape[dim]:
            x = torch.cat([x, x.narrow(dim, x.shape[dim] - 1, 1)], dim=dim)
    return x


def _crop_to(skip: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    for dim in range(2, x.dim()):
        skip = skip.narrow(dim, (skip.shape[dim] - x.shape[dim]) // 2, x.shape[dim])
    return skip


def _smallest_unpadded_size(depth: int) -> int:
    # Each decoder stage turns n pixels into 2n - 4, so the bottom must end with 3 (one stage) or 4 pixels to leave at
    # least one at the top; on the way down, the two valid convolutions of each stage take 4.
    size = (3 if depth == 1 else 4) + 4
    for _ in range(depth):
        size = size * 2 + 4
    return size
