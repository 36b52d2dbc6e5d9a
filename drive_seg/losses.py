"""The training loss."""

from __future__ import annotations

import torch
from monai.losses import DiceLoss
from torch import nn


class DiceCELoss(nn.Module):
    """Cross entropy plus Dice loss over the pixels that are not ignored, each per image, then averaged.

    Cross entropy gives every pixel a gradient from the first step on; Dice loss weighs the few vessel pixels as
    much as the many others. MONAI's loss of this name has no ``ignore_index``, which the field of view needs.
    Averaging over images, not over the batch's pixels, makes a step the same however a batch is shared out over
    devices or accumulated from smaller ones.

    Args:
        ignore_index: label value of pixels that count in neither term.
        lambda_ce: weight of the cross entropy, a mean over the pixels of an image.
        lambda_dice: weight of the Dice loss, a mean over all classes but the background.
    """

    def __init__(self, ignore_index: int = 255, lambda_ce: float = 1.0, lambda_dice: float = 1.0) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.lambda_ce = lambda_ce
        self.lambda_dice = lambda_dice
        self.cross_entropy = nn.CrossEntropyLoss(ignore_index=ignore_index, reduction="none")
        self.dice = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, ignore_index=ignore_index)

    def forward(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Logits (B, num_classes, H, W) and label (B, 1, H, W) with class values → a scalar, float32.

        An image with no pixel to count has a loss of 0 and gradients of 0.
        """
        logits = logits.float()
        counted = (label != self.ignore_index).flatten(1).sum(dim=1).clamp(min=1)
        cross_entropy = self.cross_entropy(logits, label[:, 0].long()).flatten(1).sum(dim=1) / counted
        return self.lambda_ce * cross_entropy.mean() + self.lambda_dice * self.dice(logits, label)
