"""Mixed precision on any device, and the training step.

MONAI's engines switch on mixed precision for CUDA only. Here the precision belongs to the inferer, so that
trainer, evaluator and any other program that takes the inferer from the bundle run the network alike.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from ignite.engine import Engine
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys
from torch import nn

from drive_seg.errors import DriveSegError

__all__ = ["TrainingStep", "autocast", "fast_dtype", "memory_format", "number_type", "on_device", "steps_now"]

SMALLEST_SCALE = 2.0**-10
"""Scale of float16 gradients that no training falls below; each non-finite gradient halves it, from 65,536 on."""

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def fast_dtype(device: torch.device, precision: str = "auto") -> torch.dtype:
    """The dtype to run the network's convolutions in.

    Args:
        device: device it runs on.
        precision: ``float32``, ``bfloat16`` or ``float16``; ``auto`` takes bfloat16 where the hardware computes in it
            (CPUs with AMX or AVX-512 BF16, CUDA from compute capability 8.0), float16 on CUDA from 7.0, except the
            GTX 16 series, else float32.

    Raises:
        DriveSegError: if the precision is not one of these.
    """
    if precision in PRECISIONS:
        return PRECISIONS[precision]
    if precision != "auto":
        raise DriveSegError(f"precision: expected auto, {', '.join(PRECISIONS)}, got {precision!r}")
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        if major >= 8:
            return torch.bfloat16
        # The GTX 16 series gets NaN from convolutions in float16 (pytorch/pytorch#58123).
        broken = "GTX 16" in torch.cuda.get_device_name(device)
        return torch.float16 if major == 7 and not broken else torch.float32
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"):
            return torch.bfloat16
    return torch.float32


def number_type(device: torch.device | str, precision: str = "auto") -> str:
    """The name of ``fast_dtype``: ``float32``, ``bfloat16`` or ``float16``."""
    return str(fast_dtype(torch.device(device), precision)).removeprefix("torch.")


def autocast(device: torch.device, precision: str = "auto") -> contextlib.AbstractContextManager[Any]:
    """A context in which the network runs in ``fast_dtype``; its weights stay float32."""
    dtype = fast_dtype(device, precision)
    if dtype is torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def memory_format(device: torch.device) -> torch.memory_format:
    """The order of pixels and channels in memory in which convolutions are fastest: channels last.

    On Apple's GPUs, where the gradients of pooling and batch normalisation are wrong in that order
    (pytorch/pytorch#175189 and #175190), it is the usual one.
    """
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def on_device(network: nn.Module, device: torch.device | str) -> nn.Module:
    """The network on a device, in its ``memory_format``."""
    device = torch.device(device)
    return network.to(device, memory_format=memory_format(device))  # type: ignore[call-overload]  # declared for 4D


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
