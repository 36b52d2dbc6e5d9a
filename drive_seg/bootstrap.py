"""Intervals for means over cases, some of which belong to the same person."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from drive_seg.errors import DriveSegError

__all__ = ["Bootstrap"]


@dataclass(frozen=True)
class Bootstrap:
    """Percentile bootstrap of a mean over cases (Efron & Tibshirani, 1993, ch. 13).

    Persons are drawn with replacement, each with all of their cases, because both eyes of a person are alike. With
    few persons the intervals are too narrow: a 95 % interval of 8 independent normal values covers the mean in 88 % of
    samples.

    Args:
        samples: number of resamples.
        seed: any whole number from 0.
        level: share of the resampled means that the interval covers.
    """

    samples: int
    seed: int
    level: float

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise DriveSegError(f"samples: expected at least 1, got {self.samples}")
        if not isinstance(self.seed, int) or self.seed < 0:
            raise DriveSegError(f"seed: expected a whole number from 0, got {self.seed!r}")
        if not 0 < self.level < 1:
            raise DriveSegError(f"level: expected a share between 0 and 1, such as 0.95, got {self.level}")

    def interval(self, values: np.ndarray, persons: Sequence[str] | np.ndarray | None = None) -> tuple[float, float]:
        """Lower and upper end of the interval for the mean; NaN for fewer than two persons.

        Args:
            values: (n,), one per case, all defined.
            persons: the person of each value, n; None: all differ.
        """
        names, of_person = np.unique(np.arange(len(values)) if persons is None else persons, return_inverse=True)
        if len(names) < 2:
            return math.nan, math.nan
        interval = stats.bootstrap(
            (np.bincount(of_person, values), np.bincount(of_person)),
            lambda sums, counts, axis: sums.sum(axis) / counts.sum(axis),
            paired=True,
            vectorized=True,
            method="percentile",
            n_resamples=self.samples,
            confidence_level=self.level,
            random_state=np.random.default_rng(self.seed),
        ).confidence_interval
        return float(interval.low), float(interval.high)
