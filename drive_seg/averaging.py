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
from drive_seg.learnt_cases import learnt_cases, write_learnt_cases

__all__ = ["AverageEveryStep", "MovingAverage", "average_weights"]

_logger = logging.getLogger(__name__)


class MovingAverage:
    """Exponential moving average of a network's weights over the steps of its training.

    While the learning rate is high the weights go to and fro from step to step; their average goes less, and is sooner
    where they are going. It is to be validated and saved in the network's place. At the end of a schedule that ends
    near 0 the two are all but the same. ignite's ``EMAHandler`` begins with the network as it was made, not with the
    weights that a training starts from, and cannot be resumed while its decay still grows.

    Args:
        network: which is trained.
        decay: what stays of the average in a step, 0 to below 1; less in the first steps, of which n have been,
            (1 + n) / (10 + n), as in TensorFlow's ``ExponentialMovingAverage``. 0: the weights themselves.

    Attributes:
        network: a copy of it with the averages, of batch norm's statistics, too.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise DriveSegError(f"decay: expected 0 or more and less than 1, got {decay}")
        self.trained = network
        self.decay = decay
        self._averaged = AveragedModel(network, multi_avg_fn=self._average, use_buffers=True)

    @property
    def network(self) -> nn.Module:
        """With the averages of the steps so far."""
        return self._averaged.module

    def reset(self) -> None:
        """Forget the steps so far."""
        self._averaged.n_averaged.zero_()

    def update(self) -> None:
        """Take in the weights after a step; the first ones are the average."""
        self._averaged.update_parameters(self.trained)

    def state_dict(self) -> dict[str, Any]:
        """The network's, and how many steps it is the average of."""
        return {"network": self.network.state_dict(), "steps": int(self._averaged.n_averaged)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
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
        average: of the network that is trained.
    """

    def __init__(self, average: MovingAverage) -> None:
        self.average = average

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, before ``TrainingState``, which puts the average of a resumed training back."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def start(self, engine: Engine) -> None:
        """What comes is another training, or another round of a federated one, with other weights."""
        self.average.reset()

    def __call__(self, engine: Engine) -> None:
        """Take in the weights, if this iteration has changed them."""
        if steps_now(engine):
            self.average.update()


def average_weights(
    network: nn.Module,
    paths: Sequence[str | os.PathLike],
    images: Iterable[torch.Tensor],
    output: str | os.PathLike,
    device: torch.device | str = "cpu",
) -> None:
    """Write the mean of the weights of one network's trainings, of which the later ones began with the earlier ones.

    Beside it lie the cases that any of the trainings has learnt, if all of them tell, see ``drive_seg.learnt_cases``.

    It often does better than either on photographs that neither knew (Wortsman et al., Robust fine-tuning of zero-shot
    models, CVPR 2022). The statistics of batch norm are no mean of theirs and are taken anew.

    Args:
        network: what the weights are of, on ``device``; holds other weights afterwards.
        paths: state dicts, two or more, see ``drive_seg.checkpoints.load_weights``.
        images: batches (B, C, H, W), float32, as in training; their statistics become those of batch norm.
        output: where the mean goes, such as ``models/model.pt``.
        device: where the network is.

    Raises:
        DriveSegError: if there are fewer than two files, one does not fit the network, or ``output`` is there already;
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
    save_checkpoint(averaged.module.state_dict(), output)
    write_learnt_cases(output, learnt_cases(paths))
    _logger.info("%s: the mean of the weights of %s", output, ", ".join(map(str, paths)))
