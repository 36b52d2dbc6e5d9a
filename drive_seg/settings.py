"""The settings of a training as texts, to check that a resumed training is still the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from monai.metrics import Metric
from monai.transforms import LoadImaged, Transform
from torch import nn

__all__ = ["described", "network_described", "where_they_differ"]


def described(part: Any) -> str:
    """A text that identifies a part of a training: its type and its plain values.

    Args:
        part: transforms, loss, metrics, schedule, optimizer, …, or a list or dictionary of them; nested parts are
            described, too. A function is described by its name alone, so that all lambdas of a config are alike; a
            ``functools.partial`` by its function and arguments; an optimizer by its defaults for all parameters.
    """
    if isinstance(part, Mapping):
        return f"{{{', '.join(f'{name}: {described(value)}' for name, value in part.items())}}}"
    if isinstance(part, (torch.Tensor, np.ndarray)):
        return f"{part.tolist()}"
    if isinstance(part, (list, tuple)):
        return f"[{', '.join(map(described, part))}]"
    if isinstance(part, (bool, int, float, str, type(None), torch.dtype)):
        return repr(part)
    if hasattr(part, "__qualname__"):
        return str(part.__qualname__)
    if isinstance(part, partial):
        return f"partial({described([part.func, *part.args])}, {described(part.keywords)})"
    named = part.defaults if isinstance(part, torch.optim.Optimizer) else getattr(part, "__dict__", {})
    if isinstance(part, nn.Module):
        named = named | named["_modules"] | named["_buffers"]
    if isinstance(part, LoadImaged):  # the reader asked for is the last; which others there are depends on the machine
        loader = part._loader
        named = named | {"dtype": f"{loader.dtype}", "reader": described(loader.readers[-1])}
    shown = {name: value for name, value in named.items() if not name.startswith("_") and _is_plain(value)}
    return f"{type(part).__name__}({', '.join(f'{name}={described(shown[name])}' for name in sorted(shown))})"


def network_described(network: nn.Module) -> str:
    """A network in one line: its type, sizes and number of parameters, and digits that stand for its layers.

    Such as ``UNet, base_channels 16, depth 4, 1942594 parameters, layers 2f87f281``. Batch normalisation is the same
    layer whether GPUs synchronise it or not.
    """
    sizes = [f"{name} {getattr(network, name)}" for name in ("base_channels", "depth") if hasattr(network, name)]
    parameters = sum(parameter.numel() for parameter in network.parameters())
    layers = sha256(re.sub(r"SyncBatchNorm|BatchNorm\dd", "BatchNorm", repr(network)).encode()).hexdigest()[:8]
    return ", ".join([type(network).__name__, *sizes, f"{parameters} parameters", f"layers {layers}"])


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    numbers = (bool, int, float, torch.dtype, torch.Tensor, np.ndarray)
    if isinstance(value, (*numbers, str, type(None), partial, Transform, nn.Module, Metric)):
        return True
    return callable(value) and hasattr(value, "__qualname__")


def where_they_differ(one: str, other: str) -> tuple[str, str]:
    """Both texts, shortened to the surroundings of their first difference if long."""
    differing = (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    same = next(differing, min(len(one), len(other)))
    start = 0 if max(len(one), len(other)) <= 60 else max(0, same - 30)
    return tuple(  # type: ignore[return-value]
        f"{'… ' * (start > 0)}{text[start : start + 60]}{' …' * (len(text) > start + 60)}" for text in (one, other)
    )
