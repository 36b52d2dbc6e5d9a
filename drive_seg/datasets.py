"""A cached dataset whose augmentation does not depend on how the work is shared out."""

from __future__ import annotations

from typing import Any

import numpy as np
from monai.data import CacheDataset
from monai.transforms import Randomizable

__all__ = ["SeededCacheDataset"]


class SeededCacheDataset(CacheDataset):
    """MONAI's ``CacheDataset`` with random transforms that follow from the seed, the epoch and the case alone.

    So the patches of an epoch are the same in one process or eight, with workers or without, and in a resumed run.

    Args:
        seed: any whole number from 0.
        args, kwargs: as for ``monai.data.CacheDataset``.
    """

    def __init__(self, *args: Any, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose random numbers the next samples get."""
        self.epoch = epoch

    def _transform(self, index: int) -> Any:
        if isinstance(self.transform, Randomizable):
            state = np.random.SeedSequence([self.seed, self.epoch, index]).generate_state(1)
            self.transform.set_random_state(seed=int(state[0]))
        return super()._transform(index)
