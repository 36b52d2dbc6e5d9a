"""One network of the weights of several trainings."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

from drive_seg.checkpoints import load_weights, save_checkpoint
from drive_seg.errors import DriveSegError

__all__ = ["average_weights"]

_logger = logging.getLogger(__name__)


def average_weights(
    network: nn.Module,
    paths: Sequence[str | os.PathLike],
    images: Iterable[torch.Tensor],
    output: str | os.PathLike,
    device: torch.device | str = "cpu",
) -> None:
    """Write the mean of the weights of one network's trainings, of which the later ones began with the earlier ones.

    It often does better than either on photographs that neither knew (Wortsman et al., Robust fine-tuning of zero-shot
    models, CVPR 2022). The statistics of batch norm are no mean of theirs and are taken anew.

    Args:
        network: what the weights are of, on ``device``; holds other weights afterwards.
        paths: state dicts, two or more, see ``drive_seg.checkpoints.load_weights``.
        images: batches (B, C, H, W), float32, as in training; their statistics become those of batch norm.
        output: where the mean goes, such as ``models/model.pt``.
        device: where the network is.

    Raises:
        DriveSegError: if there are fewer than two files, one does not fit the network, or ``output`` is there already.
    """
    if isinstance(paths, (str, os.PathLike)) or len(paths) < 2:
        raise DriveSegError(f"weights: expected two or more files of weights, got {paths!r}")
    if Path(output).exists():
        raise DriveSegError(f"{output}: is there already, expected another folder (--ckpt_dir)")
    averaged = AveragedModel(network)
    for path in paths:
        averaged.update_parameters(load_weights(network, path))
    update_bn(images, averaged, torch.device(device))
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(averaged.module.state_dict(), output)
    _logger.info("%s: the mean of the weights of %s", output, ", ".join(map(str, paths)))
