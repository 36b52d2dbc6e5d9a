"""Devices: which there are, and the number type and order of memory in which networks are fastest on them.

MONAI's engines switch on mixed precision for CUDA only. Here the precision belongs to the inferer, so that
trainer, evaluator and any other program that takes the inferer from the bundle run the network alike.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

import torch
from torch import nn

from drive_seg.errors import DriveSegError

__all__ = [
    "autocast",
    "best_device",
    "check_device",
    "fast_dtype",
    "memory_format",
    "number_type",
    "on_device",
    "usable_cores",
]

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def best_device() -> torch.device:
    """The accelerator (CUDA, XPU, …) for this process's local rank, or the CPU if there is none.

    If there are more processes than accelerators, they share them. Apple's GPUs (MPS) are used only on request
    (``--device mps``): nobody has run this project on them.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None or accelerator.type == "mps":
        return torch.device("cpu")
    return torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", 0)) % torch.accelerator.device_count())


def check_device(name: object) -> None:
    """Check that the device of a given name is there.

    Raises:
        DriveSegError: if it is not, or if torch knows no such name.
    """
    try:
        device = torch.device(name)  # type: ignore[call-overload]
    except (RuntimeError, TypeError) as error:
        raise DriveSegError(f"device: expected cpu, cuda, cuda:1 or another of torch's, got {name!r}") from error
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    kind, count = ("cpu", 0) if accelerator is None else (accelerator.type, torch.accelerator.device_count())
    if device.type not in ("cpu", kind) or (device.type == kind and (device.index or 0) >= max(count, 1)):
        there = "" if accelerator is None else f" or {kind} ({count} of them)"
        raise DriveSegError(f"device: there is no {name} here, expected cpu{there}")


def usable_cores() -> int:
    """How many cores this process may count on, sharing the machine's with torchrun's other processes; at least 1."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


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
