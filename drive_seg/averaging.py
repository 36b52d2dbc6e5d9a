"""Means of weights: over the steps of one training, and over several trainings."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from drive_seg.checkpoints import load_weights, save_checkpoint
from drive_seg.distributed import get_world_size
from drive_seg.engines import steps_now
from drive_seg.errors import DriveSegError
from drive_seg.learnt_cases import learnt_cases, learnt_scale, listed

__all__ = ["AverageEveryStep", "MovingAverage", "average_weights"]

_logger = logging.getLogger(__name__)


class MovingAverage:
    """Exponential moving average of a network's weights over its training steps.

    While the learning rate is high, the weights fluctuate from step to step; their average fluctuates less and
    converges sooner. Validate and save it in the network's place. At the end of a schedule that ends near 0, the two
    are all but the same. ignite's ``EMAHandler`` begins with the network as constructed, not with the weights that a
    training starts from, and cannot be resumed while its decay is still growing.

    Args:
        network: the network being trained.
        decay: share of the average kept in each step, 0 to below 1; after n steps at most (1 + n) / (10 + n), as in
            TensorFlow's ``ExponentialMovingAverage``. 0: the weights themselves.

    Attributes:
        network: a copy of it with the averages, batch-norm statistics included.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise DriveSegError(f"decay: expected 0 or more and less than 1, got {decay}")
        self.trained = network
        self.decay = decay
        self._averaged = AveragedModel(network, multi_avg_fn=self._average, use_buffers=True)

    @property
    def network(self) -> nn.Module:
        """The copy with the averages of the steps so far."""
        return self._averaged.module

    def reset(self) -> None:
        """Forget the steps so far."""
        self._averaged.n_averaged.zero_()

    def update(self) -> None:
        """Add the weights after a step; the first ones become the average."""
        self._averaged.update_parameters(self.trained)

    def state_dict(self) -> dict[str, Any]:
        """The averaged network's state dict, and the number of steps averaged."""
        return {"network": self.network.state_dict(), "steps": int(self._averaged.n_averaged)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        self.network.load_state_dict(state["network"])
        self._averaged.n_averaged.fill_(state["steps"])

    def _average(self, averages: Any, current: Any, steps: torch.Tensor | int) -> None:
        if not averages[0].is_floating_point():  # how many batches batch norm has seen
            torch._foreach_copy_(averages, current)
            return
        number = int(self._averaged.n_averaged)  # the same as steps, but on the CPU, so that no step waits for a GPU
        get_ema_multi_avg_fn(min(self.decay, (1 + number) / (10 + number)))(averages, current, steps)


class AverageEveryStep:
    """Keeps a ``MovingAverage`` up to date.

    Args:
        average: average of the network being trained.
    """

    def __init__(self, average: MovingAverage) -> None:
        self.average = average

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, before ``TrainingState``, which restores the average of a resumed training."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def start(self, engine: Engine) -> None:
        """Start anew: another training, or another round of a federated one, starts with other weights."""
        self.average.reset()

    def __call__(self, engine: Engine) -> None:
        """Add the weights, if this iteration has changed them."""
        if steps_now(engine):
            self.average.update()


def average_weights(
    network: nn.Module,
    paths: Sequence[str | os.PathLike],
    images: Iterable[torch.Tensor],
    output: str | os.PathLike,
    device: torch.device | str = "cpu",
) -> None:
    """Write the mean of the weights of successive trainings, each started from the previous one's weights.

    The cases that any of the trainings has learnt are listed beside it, if they are known for all of them, see
    ``drive_seg.learnt_cases``.

    The mean often does better than each of them on photographs that none has seen (Wortsman et al., Robust fine-tuning
    of zero-shot models, CVPR 2022). Its batch-norm statistics are not the mean of theirs and are computed anew.

    Args:
        network: the network that the weights belong to, on ``device``; its own weights are overwritten.
        paths: state dicts, two or more, see ``drive_seg.checkpoints.load_weights``.
        images: batches (B, C, H, W), float32, as in training; batch-norm statistics are computed from them.
        output: file to write, such as ``models/model.pt``.
        device: device of the network.

    Raises:
        DriveSegError: if there are fewer than two files, one does not fit the network, or ``output`` exists already;
            under torchrun.
    """
    if isinstance(paths, (str, os.PathLike)) or len(paths) < 2:
        raise DriveSegError(f"weights: expected two or more files of weights, got {paths!r}")
    if get_world_size() > 1:  # each would see its own share of the images
        raise DriveSegError("averaging: expected one process, it is not made for torchrun")
    if Path(output).exists():
        raise DriveSegError(f"{output}: is there already, expected another folder (--ckpt_dir)")
    averaged = AveragedModel(network)
    for path in paths:
        averaged.update_parameters(load_weights(network, path))
    update_bn(images, averaged, torch.device(device))
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    with listed(output, learnt_cases(paths), learnt_scale(paths)):
        save_checkpoint(averaged.module.state_dict(), output)
    _logger.info("%s: the mean of the weights of %s", output, ", ".join(map(str, paths)))
