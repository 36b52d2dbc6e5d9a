"""Batch normalisation by a mixture of the training's statistics and the photograph's own."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from drive_seg.adaptation import (
    EVERY,
    AdaptiveBatchNorm2d,
    AdaptiveBatchNorm3d,
    AdaptiveSyncBatchNorm,
    adapt_batch_norm,
    convert_sync_batchnorm,
)
from drive_seg.errors import ArgumentError
from drive_seg.networks import UNet


def trained(layer: nn.BatchNorm2d | nn.BatchNorm3d, sides: tuple[int, ...]) -> nn.Module:
    torch.manual_seed(0)
    nn.init.uniform_(layer.weight, 0.5, 2)
    nn.init.normal_(layer.bias)
    for _ in range(3):
        layer(3 * torch.randn(4, layer.num_features, *sides) + 1)
    return layer.eval()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("plain", "sides"), [(nn.BatchNorm2d(3), (9, 6)), (nn.BatchNorm3d(3), (9, 4, 5))])
def test_each_image_is_normalised_by_the_mixture(plain: nn.Module, sides: tuple[int, ...], share: float) -> None:
    layer = adapt_batch_norm(copy.deepcopy(trained(plain, sides)), share)
    x = 2 * torch.randn(2, 3, *sides) + torch.tensor([0.0, 5.0]).reshape(2, 1, *[1] * len(sides))
    with torch.no_grad():
        result = layer(x).numpy()
    for image, normalized in zip(x.numpy(), result, strict=True):
        for channel in range(3):
            rows = image[channel][::EVERY]
            mean = share * rows.mean() + (1 - share) * float(layer.running_mean[channel])
            variance = share * rows.var() + (1 - share) * float(layer.running_var[channel])
            expected = (image[channel] - mean) / np.sqrt(variance + layer.eps)
            expected = expected * float(layer.weight[channel].detach()) + float(layer.bias[channel].detach())
            np.testing.assert_allclose(normalized[channel], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("plain", "sides", "memory_format"),
    [
        (nn.BatchNorm2d(3), (9, 6), torch.channels_last),
        (nn.BatchNorm3d(3), (9, 4, 5), torch.channels_last_3d),
    ],
)
def test_the_order_in_memory_does_not_matter(
    plain: nn.Module, sides: tuple[int, ...], memory_format: torch.memory_format
) -> None:
    layer = adapt_batch_norm(trained(plain, sides), 0.3)
    x = 2 * torch.randn(2, 3, *sides) + 5
    with torch.no_grad():
        result = layer(x.to(memory_format=memory_format))
        torch.testing.assert_close(result, layer(x), rtol=1e-5, atol=1e-5)
    assert result.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_what_it_is_and_measures_in_float32(dtype: torch.dtype) -> None:
    layer = adapt_batch_norm(trained(nn.BatchNorm2d(3), (8, 8)), 0.5)
    x = 300 + 10 * torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        half = layer(x.to(dtype))
        assert half.dtype == dtype
        # The input's own rounding, of up to 1 at 300 in bfloat16, spread over the standard deviation of 10 and less.
        assert (half.float() - layer(x.to(dtype).float())).abs().max() < 0.3


def test_training_is_that_of_batch_normalisation() -> None:
    plain = trained(nn.BatchNorm2d(3), (8, 8)).train()
    adaptive = adapt_batch_norm(copy.deepcopy(plain), 0.5).train()
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(adaptive(x), plain(x))
    ours, theirs = adaptive.state_dict(), plain.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert int(ours["num_batches_tracked"]) == 4


def adaptive_layers(network: nn.Module) -> dict[str, float]:
    kinds = (AdaptiveBatchNorm2d, AdaptiveBatchNorm3d, AdaptiveSyncBatchNorm)
    return {name: layer.share for name, layer in network.named_modules() if isinstance(layer, kinds)}


def test_the_unet_adapts_below_half_the_size_and_in_its_last_layer() -> None:
    stages = ["encoder.1", "encoder.2", "decoder.0"]
    expected = {f"{stage}.convs.{place}" for stage in stages for place in (1, 4)} | {"decoder.2.convs.4"}
    layers = adaptive_layers(UNet(base_channels=2, depth=3, adaptation=0.3))
    assert layers == dict.fromkeys(expected, 0.3)
    assert set(adaptive_layers(UNet(base_channels=2, depth=1, adaptation=1))) == {"decoder.0.convs.4"}
    assert adaptive_layers(UNet(base_channels=2, depth=3, adaptation=0)) == {}
    volumes = UNet(base_channels=2, depth=1, spatial_dims=3, adaptation=1).eval()
    assert volumes(torch.zeros(1, 3, 4, 4, 4)).shape == (1, 2, 4, 4, 4)


def test_weights_of_either_fit_the_other() -> None:
    plain, adaptive = UNet(base_channels=2, depth=2), UNet(base_channels=2, depth=2, adaptation=0.5)
    adaptive.load_state_dict(plain.state_dict())
    plain.load_state_dict(adaptive.state_dict())


def learnt(adaptation: float) -> UNet:
    torch.manual_seed(0)
    network = UNet(base_channels=4, depth=2, adaptation=adaptation)
    for _ in range(20):
        network(torch.randn(2, 3, 32, 32))
    return network.eval()


@torch.no_grad()
def test_by_its_own_statistics_alone_a_flatter_and_darker_image_is_the_same() -> None:
    layer = adapt_batch_norm(trained(nn.BatchNorm2d(3), (8, 8)), 1.0)
    x = torch.randn(1, 3, 64, 48)
    torch.testing.assert_close(layer(0.3 * x - 2), layer(x), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_images_of_a_batch_do_not_know_of_each_other() -> None:
    network = learnt(0.5)
    images = torch.randn(3, 3, 40, 33) * torch.tensor([1.0, 4.0, 0.1]).reshape(3, 1, 1, 1)
    alone = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(network(images), alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_smallest_image_has_one_row_at_the_bottom() -> None:
    assert learnt(1.0)(torch.randn(1, 3, 4, 4)).isfinite().all()


@torch.no_grad()
def test_synchronised_over_gpus_it_goes_on_adapting() -> None:
    network = learnt(0.5)
    synchronised = convert_sync_batchnorm(copy.deepcopy(network))
    layers = dict(synchronised.named_modules())
    assert adaptive_layers(synchronised) == adaptive_layers(network)
    assert all(isinstance(layers[name], AdaptiveSyncBatchNorm) for name in adaptive_layers(network))
    assert type(layers["first.1"]) is nn.SyncBatchNorm
    image = torch.randn(1, 3, 40, 33)
    torch.testing.assert_close(synchronised(image), network(image))


@pytest.mark.parametrize("share", [-0.1, 1.5, "much", True, float("nan")])
def test_a_share_out_of_its_range(share: object) -> None:
    with pytest.raises(ArgumentError, match=r"^adaptation: expected a number from 0 to 1, got "):
        UNet(base_channels=2, depth=1, adaptation=share)  # type: ignore[arg-type]


@pytest.mark.parametrize("left_out", [{"affine": False}, {"track_running_stats": False}])
def test_normalisation_without_what_is_mixed(left_out: dict[str, bool]) -> None:
    with pytest.raises(ValueError, match="expected batch normalisation with running statistics and weights"):
        adapt_batch_norm(nn.Sequential(nn.BatchNorm2d(2, **left_out)), 0.5)


def test_without_normalisation_there_is_nothing_to_adapt() -> None:
    with pytest.raises(ArgumentError, match=r"^adaptation: expected 0 where norm is None, got 0.5$"):
        UNet(base_channels=2, depth=1, norm=None, adaptation=0.5)
