"""Between tensors and arrays."""

from __future__ import annotations

import numpy as np
import torch

__all__ = ["to_numpy"]


def to_numpy(image: torch.Tensor | np.ndarray) -> np.ndarray:
    """The same numbers as an array, wherever the tensor is."""
    return np.asarray(image.detach().cpu()) if isinstance(image, torch.Tensor) else np.asarray(image)
