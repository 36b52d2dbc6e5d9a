"""The loss against torch's and MONAI's where nothing is ignored, by hand, and with ignored pixels."""

from __future__ import annotations

from math import log

import pytest
import torch
from monai.losses import DiceLoss

from drive_seg.losses import DiceCELoss


def batch(num_classes: int = 2, images: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    logits = torch.randn(images, num_classes, 9, 7, requires_grad=True)
    return logits, torch.randint(0, num_classes, (images, 1, 9, 7))


@pytest.mark.parametrize(("num_classes", "dtype"), [
    (2, torch.uint8), (3, torch.uint8), (4, torch.uint8), (2, torch.int64), (2, torch.float32),
], ids=str)  # fmt: skip
def test_cross_entropy_plus_dice_where_nothing_is_ignored(num_classes: int, dtype: torch.dtype) -> None:
    logits, label = batch(num_classes)
    cross_entropy = torch.nn.functional.cross_entropy(logits, label[:, 0])
    dice = DiceLoss(include_background=False, to_onehot_y=True, softmax=True)(logits, label)
    label = label.to(dtype)
    torch.testing.assert_close(DiceCELoss()(logits, label), cross_entropy + dice)
    torch.testing.assert_close(DiceCELoss(lambda_ce=0.5, lambda_dice=2.0)(logits, label), cross_entropy / 2 + dice * 2)


def test_by_hand() -> None:
    # A logit of ±ln 3 against 0 is a probability of 3/4 or 1/4; the fourth pixel is ignored.
    vessel = torch.tensor([log(3), -log(3), log(3), 50.0]).reshape(1, 1, 2, 2)
    logits = torch.cat([torch.zeros_like(vessel), vessel], dim=1)
    label = torch.tensor([1, 0, 0, 255]).reshape(1, 1, 2, 2)
    cross_entropy = -(log(3 / 4) + log(3 / 4) + log(1 / 4)) / 3
    dice = 1 - 2 * 3 / 4 / ((3 / 4 + 1 / 4 + 3 / 4) + 1)  # 1 - 6/11
    assert dice == pytest.approx(5 / 11)
    assert DiceCELoss(lambda_dice=0)(logits, label).item() == pytest.approx(cross_entropy, abs=1e-6)
    assert DiceCELoss(lambda_ce=0)(logits, label).item() == pytest.approx(dice, abs=1e-5)
    assert DiceCELoss()(logits, label).item() == pytest.approx(cross_entropy + dice, abs=1e-5)


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("ignore_index", [255, -1, 7])
def test_ignored_pixels_change_nothing(num_classes: int, ignore_index: int) -> None:
    logits, label = batch(num_classes)
    ignored = torch.rand(label.shape) < 0.4
    label[ignored] = ignore_index
    loss = DiceCELoss(ignore_index)(logits, label)
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[ignored.expand_as(logits)].any()
    assert logits.grad[~ignored.expand_as(logits)].abs().min() > 0

    others = torch.where(ignored, 100 * torch.randn_like(logits), logits.detach())
    torch.testing.assert_close(DiceCELoss(ignore_index)(others, label), loss)


def test_ignored_pixels_are_as_if_cut_away() -> None:
    logits, label = batch()
    cut = DiceCELoss()(logits[:, :, :, :4], label[:, :, :, :4])
    label[:, :, :, 4:] = 255
    torch.testing.assert_close(DiceCELoss()(logits, label), cut)


def test_nothing_to_count() -> None:
    logits, label = batch()
    loss = DiceCELoss()(logits, torch.full_like(label, 255))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None and not logits.grad.any()


def test_an_image_without_a_pixel_to_count_leaves_the_others_alone() -> None:
    logits, label = batch(images=2)
    alone = DiceCELoss()(logits[1:], label[1:])
    label[0] = 255
    torch.testing.assert_close(DiceCELoss()(logits, label), (0 + alone) / 2)


def test_mean_over_images_not_over_the_batchs_pixels() -> None:
    logits, label = batch()
    label[0, :, 1:] = 255  # 7 pixels count in the first image, 63 in each other
    parts = [DiceCELoss()(logits[i : i + 1], label[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(DiceCELoss()(logits, label), torch.stack(parts).mean())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_logits_give_a_float32_loss(dtype: torch.dtype) -> None:
    logits, label = batch()
    low = logits.detach().to(dtype)
    loss = DiceCELoss()(low, label)
    assert loss.dtype is torch.float32 and loss.ndim == 0
    torch.testing.assert_close(loss, DiceCELoss()(low.float(), label))


def test_right_logits_are_better_than_wrong_ones() -> None:
    _, label = batch()
    right = torch.nn.functional.one_hot(label[:, 0], 2).permute(0, 3, 1, 2) * 20.0
    assert DiceCELoss()(right, label).item() < 1e-4
    assert DiceCELoss()(right.flip(1), label).item() > 10
