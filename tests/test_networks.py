"""The U-Net: shapes, counts, what it refuses, and that it runs alike however it is run."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from functools import partial
from itertools import groupby
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from drive_seg.networks import ConvBlock, DecoderStage, EncoderStage, OutputLayer, UNet

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d, nn.Conv3d, nn.ConvTranspose3d)


def small(**arguments: Any) -> UNet:
    return UNet(**{"base_channels": 4, "depth": 2, **arguments}).eval()


def test_layers_and_parameters_at_the_defaults() -> None:
    network = UNet()
    assert sum(isinstance(layer, CONVOLUTIONS) for layer in network.modules()) == 23  # 9 blocks of 2, 4 up, 1 output

    first = 9 * (3 * 64 + 64 * 64) + 4 * 64  # two 3×3 convolutions, two norms with a weight and a bias each
    encoder = sum(9 * (c * 2 * c + 2 * c * 2 * c) + 4 * 2 * c for c in (64, 128, 256, 512))
    decoder = sum((4 * 2 * c * c + c) + 9 * (2 * c * c + c * c) + 4 * c for c in (512, 256, 128, 64))
    output = 64 * 2 + 2
    assert first + encoder + decoder + output == 31_037_698
    assert sum(parameter.numel() for parameter in network.parameters()) == 31_037_698


def test_parameters_come_in_the_order_of_the_figure() -> None:
    names = [name.split(".") for name, _ in UNet(base_channels=4).named_parameters()]
    assert [part for part, _ in groupby(name[0] for name in names)] == ["first", "encoder", "decoder", "output"]
    for part in ("encoder", "decoder"):
        stages = [name[1] for name in names if name[0] == part]
        assert [stage for stage, _ in groupby(stages)] == ["0", "1", "2", "3"]
    widths = [parameter.shape[0] for name, parameter in UNet(base_channels=4).named_parameters() if "convs.0.w" in name]
    assert widths == [8, 16, 32, 64, 32, 16, 8, 4]


SIZES = [(565, 584), (584, 565), (37, 41), (16, 16), (17, 31), (33, 16), (64, 48)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_an_image_comes_out_at_its_own_size(size: tuple[int, int]) -> None:
    with torch.inference_mode():
        assert small(depth=4)(torch.randn(1, 3, *size)).shape == (1, 2, *size)


@pytest.mark.parametrize(("num_classes", "in_channels", "depth"), [
    (2, 3, 1), (2, 3, 2), (2, 3, 3), (2, 3, 4), (1, 3, 2), (3, 3, 2), (2, 1, 2),
])  # fmt: skip
def test_channels_and_depth(num_classes: int, in_channels: int, depth: int) -> None:
    network = small(num_classes=num_classes, in_channels=in_channels, depth=depth)
    assert len(network.encoder) == len(network.decoder) == depth
    with torch.inference_mode():
        assert network(torch.randn(2, in_channels, 21, 18)).shape == (2, num_classes, 21, 18)


def test_three_dimensions() -> None:
    network = small(spatial_dims=3, in_channels=1)
    with torch.inference_mode():
        assert network(torch.randn(1, 1, 9, 10, 11)).shape == (1, 2, 9, 10, 11)


@pytest.mark.parametrize("norm", ["batch", None])
def test_convolutions_have_a_bias_only_without_normalisation(norm: str | None) -> None:
    network = small(norm=norm)
    blocks = [block for block in network.modules() if isinstance(block, ConvBlock)]
    convolutions = [layer for block in blocks for layer in block if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 2 * 5
    assert all((layer.bias is None) == (norm == "batch") for layer in convolutions)
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules()) == (norm == "batch")


@pytest.mark.parametrize("padded", [True, False])
def test_blocks(padded: bool) -> None:
    lost = 0 if padded else 4  # two valid 3×3 convolutions
    x = torch.randn(1, 6, 20, 31)
    assert ConvBlock(2, 6, 5, padded=padded)(x).shape == (1, 5, 20 - lost, 31 - lost)
    assert EncoderStage(2, 6, 5, padded=padded)(x).shape == (1, 5, 10 - lost, 15 - lost)
    assert OutputLayer(2, 6, 3)(x).shape == (1, 3, 20, 31)
    below = torch.randn(1, 8, 10, 15)
    up = DecoderStage(2, 8, 6, 5, padded=padded)(below, x)
    assert up.shape == ((1, 5, 20, 31) if padded else (1, 5, 20 - lost, 30 - lost))


def test_decoder_stage_puts_the_encoders_features_beside_the_upsampled_ones() -> None:
    stage = DecoderStage(2, in_channels=2, skip_channels=1, out_channels=1)
    nn.init.constant_(stage.up.weight, 1.0)
    nn.init.zeros_(stage.up.bias)
    seen: list[torch.Tensor] = []
    stage.convs.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    skip = torch.arange(15.0).reshape(1, 1, 3, 5)
    stage(torch.tensor([[[[1.0, 2.0]], [[10.0, 20.0]]]]), skip)
    assert torch.equal(seen[0][:, :1], skip)
    # 1 + 10 and 2 + 20, each over 2×2 pixels; the third row and the fifth column repeat their neighbours
    assert seen[0][0, 1].tolist() == [[11.0, 11.0, 22.0, 22.0, 22.0]] * 3


def plainly(stage: DecoderStage, below: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
    """What a stage computes for features that fit, as PyTorch's own layers do it."""
    return stage.convs(torch.cat([skip, stage.up(below)], dim=1))


def test_the_gradient_of_a_skip_connection_comes_in_one_piece() -> None:
    channels_last = {"memory_format": torch.channels_last}
    stage = DecoderStage(2, in_channels=8, skip_channels=4, out_channels=4).to(**channels_last)
    below, features = (torch.randn(shape).to(**channels_last) for shape in ((2, 8, 4, 5), (2, 4, 8, 10)))

    def gradient(forward: Callable[..., torch.Tensor]) -> torch.Tensor:
        skip = features.clone().requires_grad_()
        seen: list[torch.Tensor] = []
        copied = skip.view_as(skip)
        copied.register_hook(seen.append)
        forward(below, copied).square().sum().backward()
        assert torch.equal(seen[0], skip.grad)
        return seen[0]

    ours, plain = gradient(stage), gradient(partial(plainly, stage))
    assert ours.is_contiguous(**channels_last)
    assert not plain.is_contiguous(**channels_last), "a slice, which is why"
    assert torch.equal(ours, plain)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-12)])
def test_upsampling_has_the_gradients_of_the_layer_itself(dims: int, dtype: torch.dtype, tolerance: float) -> None:
    stage = DecoderStage(dims, in_channels=4, skip_channels=2, out_channels=2).to(dtype)
    below = torch.randn(2, 4, *[3, 5, 4][:dims], dtype=dtype, requires_grad=True)
    skip = torch.randn(2, 2, *[6, 10, 8][:dims], dtype=dtype)
    wanted = [below, *stage.parameters()]
    ours, plain = (
        torch.autograd.grad(output.pow(3).sum(), wanted) for output in (stage(below, skip), plainly(stage, below, skip))
    )
    torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance)


def test_the_gradient_of_the_upsampling_bias_is_summed_in_float32() -> None:
    """In bfloat16, 0.001 more is lost in a sum from 0.5 on, and a sum of 16.12 becomes 16.125."""
    stage = DecoderStage(2, in_channels=2, skip_channels=1, out_channels=1)
    stage.convs = nn.Identity()
    below, skip = torch.randn(1, 2, 63, 64, requires_grad=True), torch.zeros(1, 1, 126, 128, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = stage(below, skip)
    assert output.dtype is torch.bfloat16
    output.backward(torch.full_like(output, 0.001))
    exact = float(torch.tensor(0.001, dtype=torch.bfloat16)) * 126 * 128
    torch.testing.assert_close(stage.up.bias.grad, torch.tensor([exact]), rtol=1e-5, atol=0)


def test_gradients_by_functions(trained_a_little: UNet) -> None:
    """With other weights than the network's own, and of each image of a batch, as ``torch.func`` computes them."""
    images = torch.randn(2, 3, 17, 16)

    def loss(weights: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
        return functional_call(trained_a_little, weights, (image[None],)).square().mean()

    weights = {name: parameter.detach().clone() for name, parameter in trained_a_little.named_parameters()}
    of_each = vmap(grad(loss), in_dims=(None, 0))(weights, images)
    others = {name: values.clone().requires_grad_() for name, values in weights.items()}
    for number, image in enumerate(images):
        trained_a_little.zero_grad()
        trained_a_little(image[None]).square().mean().backward()
        exact = {name: parameter.grad for name, parameter in trained_a_little.named_parameters()}
        torch.testing.assert_close({name: values[number] for name, values in of_each.items()}, exact)
        given = torch.autograd.grad(loss(others, image), list(others.values()))
        torch.testing.assert_close(dict(zip(others, given, strict=True)), exact)


def test_unpadded_crops_the_encoders_features_at_the_centre() -> None:
    stage = DecoderStage(2, in_channels=2, skip_channels=1, out_channels=1, padded=False)
    seen: list[torch.Tensor] = []
    stage.convs.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    skip = torch.arange(100.0).reshape(1, 1, 10, 10)
    stage(torch.randn(1, 2, 3, 4), skip)
    assert torch.equal(seen[0][0, 0], skip[0, 0, 2:8, 1:9])  # 10 to 6 rows, 10 to 8 columns


def test_unpadded_design_of_the_paper() -> None:
    with torch.inference_mode():
        assert small(depth=4, padded=False)(torch.randn(1, 3, 572, 572)).shape == (1, 2, 388, 388)


@pytest.mark.parametrize(("depth", "padded", "smallest"), [
    (1, True, 2), (2, True, 4), (4, True, 16),
    (1, False, 18),  # 18 → 14 → 7 → 3 → 6 → 2
    (2, False, 44),  # 44 → 40 → 20 → 16 → 8 → 4 → 8 → 4 → 8 → 4
    (4, False, 188),
])  # fmt: skip
def test_smallest_size(depth: int, padded: bool, smallest: int) -> None:
    network = small(depth=depth, padded=padded, base_channels=2)
    with torch.inference_mode():
        out = network(torch.randn(1, 3, smallest, smallest + 1))
        assert min(out.shape[2:]) >= 1
        for size in ((smallest - 1, smallest + 1), (smallest + 1, smallest - 1)):
            with pytest.raises(ValueError, match=rf"at least {smallest} pixels \(depth {depth}\), got {smallest - 1}$"):
                network(torch.randn(1, 3, *size))


def test_one_pixel_less_than_the_smallest_unpadded_size_leaves_nothing() -> None:
    network = small(depth=1, padded=False)
    network.smallest_size = 0
    with pytest.raises(RuntimeError):
        network(torch.randn(1, 3, 17, 17))  # 17 → 13 → 6 → 2 → 4 → 0


@pytest.mark.parametrize(("shape", "message"), [
    ((1, 4, 16, 16), "UNet: expected 3 channels, got 4"),
    ((3, 16, 16), r"UNet: expected 4 dimensions \(batch, channel, 2 spatial\), got 3"),
    ((1, 3, 4, 16, 16), r"UNet: expected 4 dimensions \(batch, channel, 2 spatial\), got 5"),
])  # fmt: skip
def test_input_that_does_not_fit(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small()(torch.randn(*shape))


@pytest.mark.parametrize(("name", "value"), [
    *((name, 0) for name in ("in_channels", "num_classes", "base_channels")),
    *(("depth", value) for value in (0, -1, 1.5, 2.0, "2", None)),
])  # fmt: skip
def test_counts_are_whole_numbers_from_1(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected a whole number of at least 1, got {value!r}$"):
        UNet(**{"base_channels": 4, name: value})


@pytest.mark.parametrize(("arguments", "message"), [
    ({"spatial_dims": 1}, "spatial_dims: expected 2 or 3, got 1"),
    ({"spatial_dims": 4}, "spatial_dims: expected 2 or 3, got 4"),
    ({"norm": "instance"}, "norm: expected 'batch' or None, got 'instance'"),
])  # fmt: skip
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet(base_channels=4, **arguments)


@pytest.fixture
def trained_a_little() -> UNet:
    """Batch statistics that are not 0 and 1, so that leaving them out would show."""
    network = small().train()
    with torch.no_grad():
        for _ in range(5):
            network(3 * torch.randn(2, 3, 16, 16) + 1)
    return network.eval()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_torchscript(trained_a_little: UNet) -> None:
    scripted = torch.jit.script(trained_a_little)
    for size in ((37, 41), (16, 64)):
        x = torch.randn(1, 3, *size)
        torch.testing.assert_close(scripted(x), trained_a_little(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # sizes are Python numbers
def test_traced_where_gradients_are_wanted(trained_a_little: UNet) -> None:
    image = torch.randn(1, 3, 32, 48)
    traced = torch.jit.trace(trained_a_little.eval(), image)
    torch.testing.assert_close(traced(image), trained_a_little(image))


def test_export_with_any_size(trained_a_little: UNet) -> None:
    # Below twice the smallest size the features at the bottom are one pixel, which torch.export specialises on.
    sides = {side: torch.export.Dim(name, min=8, max=4096) for side, name in ((2, "height"), (3, "width"))}
    exported = torch.export.export(trained_a_little, (torch.randn(1, 3, 36, 52),), dynamic_shapes={"x": sides})
    for size in ((37, 41), (8, 64), (50, 9)):
        x = torch.randn(1, 3, *size)
        torch.testing.assert_close(exported.module()(x), trained_a_little(x))


def test_compiles_into_one_graph(trained_a_little: UNet) -> None:
    torch.compiler.reset()
    compiled = torch.compile(trained_a_little, backend="eager", fullgraph=True)
    try:
        for size in ((37, 41), (40, 33)):
            x = torch.randn(1, 3, *size)
            torch.testing.assert_close(compiled(x), trained_a_little(x))
    finally:
        torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_a_compiled_network_learns() -> None:
    torch.compiler.reset()
    network = UNet(base_channels=2, depth=2).train()
    compiled = torch.compile(copy.deepcopy(network))
    x = torch.randn(2, 3, 33, 47)  # padded on its way up
    try:
        for each in (network, compiled):
            each(x).square().mean().backward()
    finally:
        torch.compiler.reset()
    for one, other in zip(network.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-5)


def test_channels_last_computes_the_same(trained_a_little: UNet) -> None:
    x = torch.randn(1, 3, 37, 41)
    contiguous = trained_a_little(x)
    network = trained_a_little.to(memory_format=torch.channels_last)
    torch.testing.assert_close(network(x.contiguous(memory_format=torch.channels_last)), contiguous)


def test_one_patch_can_be_overfitted() -> None:
    label = torch.zeros(1, 32, 33, dtype=torch.long)
    label[0, 5:28, 7:10] = 1
    label[0, 20:22, 3:30] = 1
    image = torch.rand(1, 3, 32, 33) - label[:, None]
    network = small().train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.2, momentum=0.9)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(image), label)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.3 and losses[-1] < 0.02


@pytest.mark.parametrize("norm", ["batch", None])
@pytest.mark.parametrize("padded", [True, False])
def test_gradients_reach_every_parameter(norm: str | None, padded: bool) -> None:
    network = small(norm=norm, padded=padded, base_channels=8).train()
    logits = network(torch.randn(2, 3, 53, 60))
    (logits * torch.randn_like(logits)).sum().backward()
    without = [name for name, parameter in network.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert not without
