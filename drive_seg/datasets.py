"""A cached dataset and a sampler that do not depend on how the work is shared out."""

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
from monai.transforms import Compose, RandLambdad, Randomizable
from monai.utils import MAX_SEED

from drive_seg.errors import ArgumentError

__all__ = ["OrderlyCacheDataset", "SeededCacheDataset", "WholeBatchSampler"]


class OrderlyCacheDataset(CacheDataset):
    """MONAI's ``CacheDataset``, but it raises the first error only when its threads are done.

    MONAI's own leaves them running when one of them fails, and a process that then ends may be aborted by the system
    after it has reported the error.
    """

    _filling = False

    @property
    def cached(self) -> list[Any]:
        """The cases in memory, as the deterministic transforms have made them."""
        return [item for item in self._cache if item is not None]

    def _load_cache_item(self, idx: int) -> Any:
        try:
            return super()._load_cache_item(idx)
        except Exception as error:
            if not self._filling:  # items are loaded one by one, on demand
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
    """``OrderlyCacheDataset`` whose random transforms depend on the seed, the epoch and the case alone.

    The patches of an epoch are thus the same in one process or eight, with worker processes or without (but not with
    worker threads, which share the transforms), and in a resumed run. A case that ``WholeBatchSampler`` takes once more
    in an epoch gets other random numbers.

    Args:
        seed: any whole number from 0.
        track_meta: whether the random transforms of a cached case keep its metadata, which a patch does not need and
            which take a quarter of their time. MONAI's switch for this is global to the process: while patches are made
            without metadata, no other thread may run transforms that need them.
        args, kwargs: as for ``monai.data.CacheDataset``.

    Raises:
        ArgumentError: without metadata, for MONAI's ``RandLambdad``, which always looks for them, wherever it is among
            the transforms.
    """

    def __init__(self, *args: Any, seed: int, track_meta: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seed = seed
        self.track_meta = track_meta
        if not track_meta and any(isinstance(part, RandLambdad) for part in _parts(self.transform)):
            raise ArgumentError("train#dataset#track_meta: expected true, which RandLambdad needs, got false")
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # seen by a loader's persistent workers, too
        self.transform.set_random_state(seed=0)  # random states of their own: MONAI's classes share one

    @property
    def epoch(self) -> int:
        """The epoch whose random numbers the next samples get."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, in this process and in the workers of its loaders."""
        self._epoch.fill_(epoch)

    def _transform(self, index: int) -> Any:
        number = index % len(self) + len(self) * getattr(index, "repetition", 0)
        state = np.random.SeedSequence([self.seed, self.epoch, number]).generate_state(1)
        _reseed(self.transform, int(state[0]))
        if self.track_meta or self.runtime_cache or self.hash_as_key or index % len(self) >= self.cache_num:
            return super()._transform(index)  # the file may have to be read first, and errors name it by its metadata
        with _plain_tensors():
            return super()._transform(index)


class WholeBatchSampler(DistributedSampler):
    """MONAI's ``DistributedSampler``, but an epoch's last batch is filled up with the epoch's first cases.

    The steps are thus the same in one process or eight; MONAI's are only if the number of cases is a multiple of the
    number of processes.

    Args:
        dataset: the cases.
        batch_size: cases per step, over all processes; a multiple of the number of processes.
        num_replicas: number of processes.
        rank: number of this process.
        kwargs: as for ``torch.utils.data.DistributedSampler``.
    """

    def __init__(self, dataset: Sized, batch_size: int, num_replicas: int, rank: int, **kwargs: Any) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, **kwargs)
        self.total_size = math.ceil(len(dataset) / batch_size) * batch_size
        self.num_samples = self.total_size // num_replicas

    def __iter__(self) -> Iterator[int]:
        """This process's share of the epoch's indices."""
        places = range(self.rank, self.total_size, self.num_replicas)
        for place, index in zip(places, super().__iter__(), strict=True):
            index = _Index(index)
            index.repetition = place // len(self.dataset)
            yield index


class _Index(int):
    """An index that any dataset takes, and how often the epoch has had its case before."""

    repetition = 0


def _parts(transform: Any) -> Iterator[Any]:
    """A transform and all that it is made of; MONAI's ``Compose.flatten`` leaves ``OneOf`` closed."""
    yield transform
    for part in getattr(transform, "transforms", ()):
        yield from _parts(part)


def _reseed(part: Randomizable, seed: int) -> None:
    """``part.set_random_state(seed)`` without new random states: there are dozens, each takes 0.1 ms."""
    if not type(part).set_random_state.__module__.startswith("monai."):
        part.set_random_state(seed=seed)  # not MONAI's, so called as it is
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
    with _switching:  # otherwise overlapping threads could leave it off
        before = get_track_meta()
        set_track_meta(False)
        try:
            yield
        finally:
            set_track_meta(before)
