"""A cached dataset, and the order of its cases, that do not depend on how the work is shared out."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, DistributedSampler, get_track_meta, set_track_meta
from monai.transforms import Compose, Randomizable
from monai.utils import MAX_SEED

__all__ = ["OrderlyCacheDataset", "SeededCacheDataset", "WholeBatchSampler"]


class OrderlyCacheDataset(CacheDataset):
    """MONAI's ``CacheDataset``, whose first error comes when its threads are done.

    MONAI's own leaves them at work when one of them fails, and a process that then ends may be aborted by the system
    after it has said what was wrong.
    """

    _filling = False

    def _load_cache_item(self, idx: int) -> Any:
        try:
            return super()._load_cache_item(idx)
        except Exception as error:
            if not self._filling:  # one by one, as the items are asked for
                raise
            return _Failure(error)

    def _fill_cache(self, indices: Any = None) -> list[Any]:
        self._filling = True
        try:
            cache = super()._fill_cache(indices)
        finally:
            self._filling = False
        for item in cache:
            if isinstance(item, _Failure):
                raise item.error
        return cache


@dataclass(frozen=True)
class _Failure:
    error: Exception


class SeededCacheDataset(OrderlyCacheDataset):
    """``OrderlyCacheDataset`` with random transforms that follow from the seed, the epoch and the case alone.

    So the patches of an epoch are the same in one process or eight, with workers or without, and in a resumed run.

    Args:
        seed: any whole number from 0.
        track_meta: whether the random transforms of a cached case keep its metadata, which nobody needs of a patch and
            which take a quarter of their time. MONAI's switch for that is the process's: without metadata, no other
            thread may run transforms that need them while a patch is made, and MONAI's ``RandLambdad``, which looks
            for them in any case, cannot be among these.
        args, kwargs: as for ``monai.data.CacheDataset``.
    """

    def __init__(self, *args: Any, seed: int = 0, track_meta: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seed = seed
        self.track_meta = track_meta
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # a loader's workers, which stay, see it, too
        self.transform.set_random_state(seed=0)  # random states of their own, where MONAI's classes share one

    @property
    def epoch(self) -> int:
        """Whose random numbers the next samples get."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, in this process and in the workers of its loaders."""
        self._epoch.fill_(epoch)

    def _transform(self, index: int) -> Any:
        state = np.random.SeedSequence([self.seed, self.epoch, index]).generate_state(1)
        _reseed(self.transform, int(state[0]))
        if self.track_meta or self.runtime_cache or self.hash_as_key or index % len(self) >= self.cache_num:
            return super()._transform(index)  # the file may have to be read first, and errors name it by its metadata
        with _plain_tensors():
            return super()._transform(index)


class WholeBatchSampler(DistributedSampler):
    """MONAI's ``DistributedSampler`` for steps of whole batches: where the cases of an epoch do not fill the last one,
    its first cases do.

    So the steps are the same in one process or eight, which MONAI's are only where the number of cases is a multiple
    of that of the processes.

    Args:
        dataset: the cases.
        batch_size: cases of a step, over all processes; a multiple of their number.
        num_replicas: number of processes.
        rank: number of this one.
        kwargs: as for ``torch.utils.data.DistributedSampler``.
    """

    def __init__(self, dataset: Sized, batch_size: int, num_replicas: int, rank: int, **kwargs: Any) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, **kwargs)
        self.total_size = math.ceil(len(dataset) / batch_size) * batch_size
        self.num_samples = self.total_size // num_replicas


def _reseed(part: Randomizable, seed: int) -> None:
    """``part.set_random_state(seed)``, but without new random states: each takes 0.1 ms, and there are dozens."""
    if not type(part).set_random_state.__module__.startswith("monai."):
        part.set_random_state(seed=seed)  # nobody knows what it does
        return
    part.R.seed(seed % MAX_SEED)
    if isinstance(part, Compose):
        for one in part.transforms:
            if isinstance(one, Randomizable):
                _reseed(one, int(part.R.randint(MAX_SEED, dtype="uint32")))
    else:
        for one in vars(part).values():
            if isinstance(one, Randomizable):
                _reseed(one, seed)


_switching = threading.RLock()


@contextlib.contextmanager
def _plain_tensors() -> Iterator[None]:
    with _switching:  # two threads that take turns in other order would leave it off
        before = get_track_meta()
        set_track_meta(False)
        try:
            yield
        finally:
            set_track_meta(before)
