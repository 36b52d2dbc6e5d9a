"""Inferers and precision, with networks whose answer is known."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.engines import SupervisedTrainer

from drive_seg.engines import TrainingStep, autocast, fast_dtype
from drive_seg.errors import DriveSegError
from drive_seg.inference import FlipInferer, LargeImageInferer, PrecisionInferer
from drive_seg.losses import DiceCELoss
from drive_seg.networks import UNet

CPU = torch.device("cpu")


def pointwise(images: torch.Tensor) -> torch.Tensor:
    return torch.cat([-images[:, :1], images[:, 1:2] * 2], dim=1)


def columns(images: torch.Tensor) -> torch.Tensor:
    """Not the same for a mirror image: every pixel minus the one to its left."""
    return images[:, :2] - images[:, :2].roll(1, dims=-1)


def test_logits_are_float32_and_keep_what_is_known_of_the_image() -> None:
    image = MetaTensor(torch.rand(1, 3, 32, 40), meta={"filename_or_obj": "eye.tif"})
    logits = PrecisionInferer()(image, UNet(base_channels=4).eval())
    assert logits.dtype is torch.float32 and logits.shape == (1, 2, 32, 40)
    assert isinstance(logits, MetaTensor) and logits.meta["filename_or_obj"] == "eye.tif"
    assert not isinstance(PrecisionInferer()(image.as_tensor(), UNet(base_channels=4).eval()), MetaTensor)


def test_bfloat16_is_close_to_float32() -> None:
    torch.manual_seed(0)
    network, image = UNet(base_channels=4).eval(), torch.rand(1, 3, 48, 48)
    with torch.inference_mode():
        exact = PrecisionInferer(precision="float32")(image, network)
        half = PrecisionInferer(precision="bfloat16")(image, network)
        torch.testing.assert_close(exact, network(image), atol=1e-5, rtol=1e-4)
    assert 0 < (half - exact).abs().max() < 0.05


def test_precision_by_what_the_cpu_has(monkeypatch: pytest.MonkeyPatch) -> None:
    for capabilities, expected in (
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"avx512_f": True}, torch.float32),
        ({}, torch.float32),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found, raising=False)
        assert fast_dtype(CPU) is expected
    assert fast_dtype(CPU, "bfloat16") is torch.bfloat16
    with pytest.raises(DriveSegError, match="expected auto, float32, bfloat16, float16, got 'half'"):
        PrecisionInferer(precision="half")


def test_autocast_of_float32_is_nothing() -> None:
    with autocast(CPU, "float32"):
        assert not torch.is_autocast_enabled("cpu")
    with autocast(CPU, "bfloat16"):
        assert torch.is_autocast_enabled("cpu")


def test_whole_images_where_they_fit_and_windows_where_they_do_not() -> None:
    sizes: list[tuple[int, ...]] = []

    def network(images: torch.Tensor) -> torch.Tensor:
        sizes.append(tuple(images.shape[2:]))
        return pointwise(images)

    image = torch.rand(1, 3, 50, 70)
    whole = LargeImageInferer([50, 70])(image, network)
    assert sizes == [(50, 70)] and torch.equal(whole, pointwise(image))
    sizes.clear()
    windows = LargeImageInferer([32, 32], overlap=0.25, mode="gaussian")(image, network)
    assert len(sizes) > 1 and set(sizes) == {(32, 32)}
    torch.testing.assert_close(windows, whole)


def test_flips_are_averaged() -> None:
    image = torch.rand(2, 3, 6, 8)
    expected = sum(columns(image.flip(dims)).flip(dims) for dims in ((), (-1,), (-2,), (-1, -2))) / 4
    torch.testing.assert_close(FlipInferer(PrecisionInferer(precision="float32"))(image, columns), expected)
    torch.testing.assert_close(FlipInferer(PrecisionInferer(precision="float32"))(image, pointwise), pointwise(image))
    alone = FlipInferer(PrecisionInferer(precision="float32"), flips=False)(image, columns)
    assert torch.equal(alone, columns(image))


def trained(batches: list[int], accumulate: int, clip: float | None = None, rate: float = 0.1) -> torch.nn.Module:
    """A network without batch statistics after one epoch over six fixed images, in batches of these sizes."""
    torch.manual_seed(0)
    network = UNet(base_channels=2, depth=1, norm=None)
    images, labels = torch.rand(6, 3, 8, 8), (torch.rand(6, 1, 8, 8) > 0.7).float()
    data = [
        {"image": image, "label": label}
        for image, label in zip(images.split(batches), labels.split(batches), strict=True)
    ]
    SupervisedTrainer(
        device=CPU,
        max_epochs=1,
        train_data_loader=data,
        network=network,
        loss_function=DiceCELoss(),
        optimizer=torch.optim.SGD(network.parameters(), lr=rate),
        inferer=PrecisionInferer(precision="float32"),
        iteration_update=TrainingStep(max_gradient_norm=clip),
        accumulation_steps=accumulate,
        decollate=False,
    ).run()
    return network


@pytest.mark.parametrize(("batches", "steps"), [([2, 2, 2], 3), ([3, 3], 2), ([1] * 6, 6)])
def test_accumulated_gradients_are_those_of_one_batch(batches: list[int], steps: int) -> None:
    together, one_by_one = trained([6], 1), trained(batches, steps)
    for parameter, other in zip(together.parameters(), one_by_one.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, atol=1e-6, rtol=1e-5)


def test_the_last_group_of_an_epoch_may_be_smaller() -> None:
    # Groups of two: the third batch is alone, and its gradient must count in full.
    whole, parts = trained([4, 2], 1), trained([2, 2, 2], 2)
    for parameter, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, atol=1e-6, rtol=1e-5)


def test_gradients_are_clipped() -> None:
    torch.manual_seed(0)
    before = UNet(base_channels=2, depth=1, norm=None)
    after = trained([6], 1, clip=0.01, rate=1.0)
    moved = torch.cat([(a - b).flatten() for a, b in zip(after.parameters(), before.parameters(), strict=True)]).norm()
    assert moved.item() == pytest.approx(0.01, rel=1e-3)


def test_a_loss_that_is_not_finite_never_reaches_the_weights() -> None:
    network = UNet(base_channels=2, depth=1)
    before = {name: value.clone() for name, value in network.named_parameters()}
    trainer = SupervisedTrainer(
        device=CPU,
        max_epochs=1,
        train_data_loader=[{"image": torch.full((1, 3, 8, 8), torch.nan), "label": torch.zeros(1, 1, 8, 8)}],
        network=network,
        loss_function=DiceCELoss(),
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        iteration_update=TrainingStep(),
        decollate=False,
    )
    with pytest.raises(DriveSegError, match="the loss became nan in epoch 1, iteration 1"):
        trainer.run()
    assert all(torch.equal(value, before[name]) for name, value in network.named_parameters())
