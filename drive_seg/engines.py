"""The training step: mixed precision on any device, and an end to a training that diverges."""

from __future__ import annotations

import math
from typing import Any

import torch
from ignite.engine import Engine
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys

from drive_seg.devices import fast_dtype
from drive_seg.errors import DriveSegError

__all__ = ["TrainingStep", "steps_now"]

SMALLEST_SCALE = 2.0**-10
"""Scale of float16 gradients that no training falls below; each non-finite gradient halves it, from 65,536 on."""


class TrainingStep:
    """One training iteration, the ``iteration_update`` for ``SupervisedTrainer``.

    It works like MONAI's own, with these differences: the precision is the inferer's, on any device; the loss is
    computed in float32 outside autocast; gradients are set to None between steps, and clipped after they are unscaled
    and accumulated; and a loss or gradient that is not finite ends the run before it can reach the weights. The
    trainer's ``amp`` and ``optim_set_to_none`` have no effect.

    Args:
        max_gradient_norm: norm that the gradient is clipped to; None: no clipping.
    """

    def __init__(self, max_gradient_norm: float | None = None) -> None:
        self.max_gradient_norm = max_gradient_norm
        # Only float16 needs its gradients scaled up; the scaler is created with the first loss.
        self.scaler: torch.amp.GradScaler | None = None
        self._earlier: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """The scaler's state; empty if there is none."""
        return self._earlier if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the scaler's state, even before the scaler exists."""
        self._earlier = dict(state)
        self.scaler = None

    def __call__(self, engine: SupervisedTrainer, batchdata: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Images, labels, logits and loss of the batch, as MONAI's engines put them into ``engine.state.output``."""
        images, labels, *rest = engine.prepare_batch(
            batchdata, engine.state.device, engine.non_blocking, **engine.to_kwargs
        )
        args, kwargs = rest or ((), {})
        output: dict[str, Any] = {CommonKeys.IMAGE: images, CommonKeys.LABEL: labels}
        engine.state.output = output
        engine.network.train()

        place, group_length = _place_in_group(engine)
        if place == 0:
            engine.optimizer.zero_grad(set_to_none=True)

        logits = engine.inferer(images, engine.network, *args, **kwargs)
        output[CommonKeys.PRED] = logits
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        loss = engine.loss_function(logits, labels).mean()
        output[CommonKeys.LOSS] = loss
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        if not math.isfinite(loss.item()):
            raise _not_finite("loss", loss.item(), engine)

        scaler = self._scaler_for(engine)
        scaler.scale(loss / group_length).backward()
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        if place == group_length - 1:
            self._check_gradients(engine, scaler)
            scaler.step(engine.optimizer)
            scaler.update()
            if scaler.is_enabled() and scaler.get_scale() < SMALLEST_SCALE:
                raise _not_finite("gradient", math.nan, engine)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output  # as the event's handlers, such as the one that decollates, have left it

    def _check_gradients(self, engine: SupervisedTrainer, scaler: torch.amp.GradScaler) -> None:
        """Clip the gradients, and end the run if they are not finite, which a finite loss does not rule out."""
        scaler.unscale_(engine.optimizer)
        parameters = [parameter for parameter in engine.network.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        # Scaled gradients overflow now and then; the scaler then skips the step, however often.
        if not scaler.is_enabled() and not math.isfinite(norm.item()):
            raise _not_finite("gradient", norm.item(), engine)
        if self.max_gradient_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.max_gradient_norm, norm)

    def _scaler_for(self, engine: SupervisedTrainer) -> torch.amp.GradScaler:
        if self.scaler is None:
            device = engine.state.device
            dtype = fast_dtype(device, getattr(engine.inferer, "precision", "float32"))
            self.scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
            if self._earlier and self.scaler.is_enabled():
                self.scaler.load_state_dict(self._earlier)
        return self.scaler


def steps_now(engine: Engine) -> bool:
    """Whether the optimizer steps in this iteration, rather than adding its gradients to those of the next one."""
    place, group_length = _place_in_group(engine)
    return place == group_length - 1


def _place_in_group(engine: Engine) -> tuple[int, int]:
    """Place, from 0, and size of this iteration's group of summed gradients, which is smaller at an epoch's end."""
    accumulate = getattr(engine, "accumulation_steps", 1)
    position = (engine.state.iteration - 1) % engine.state.epoch_length
    place = position % accumulate
    return place, min(accumulate, engine.state.epoch_length - (position - place))


def _not_finite(what: str, value: float, engine: SupervisedTrainer) -> DriveSegError:
    return DriveSegError(
        f"the {what} became {value} in epoch {engine.state.epoch}, iteration {engine.state.iteration}: "
        "expected a finite number; the checkpoints written so far are whole, try a lower learning rate"
    )
