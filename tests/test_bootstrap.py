"""Intervals of means, by hand and against what statistics says of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from builders import shipped_bootstrap

from drive_seg.errors import DriveSegError


@pytest.mark.parametrize(("settings", "complaint"), [
    ({"level": 95}, "level: expected a share between 0 and 1, such as 0.95, got 95"),
    ({"samples": 0}, "samples: expected at least 1, got 0"),
    ({"seed": -1}, "seed: expected a whole number from 0, got -1"),
])  # fmt: skip
def test_an_interval_that_cannot_be_is_refused_at_once(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DriveSegError, match=complaint):
        shipped_bootstrap(**settings)


def test_bootstrap_of_equal_values_has_no_width() -> None:
    assert shipped_bootstrap().interval(np.full(4, 0.5)) == (0.5, 0.5)


def test_bootstrap_draws_persons() -> None:
    """Two eyes that are alike tell no more than one; of one person there is no interval."""
    values = np.random.default_rng(0).normal(size=8)
    persons = [f"{number}" for number in range(8)]
    bootstrap = shipped_bootstrap()
    once = bootstrap.interval(values)
    assert bootstrap.interval(np.tile(values, 2), persons * 2) == pytest.approx(once)
    assert bootstrap.interval(values, persons) == pytest.approx(once)
    of_two = bootstrap.interval(values, ["a"] * 6 + ["b"] * 2)
    assert of_two == pytest.approx(sorted([values[:6].mean(), values[6:].mean()])), "all of either, at the ends"
    assert all(map(math.isnan, bootstrap.interval(values, ["a"] * 8)))


def test_of_few_persons_the_interval_is_too_narrow() -> None:
    """As ``Bootstrap`` says: of 8 normal values one of 95 % holds the mean in 88 % of samples."""
    bootstrap, generator = shipped_bootstrap(samples=500), np.random.default_rng(0)
    intervals = [bootstrap.interval(generator.normal(size=8)) for _ in range(1000)]
    assert np.mean([low <= 0 <= high for low, high in intervals]) == pytest.approx(0.88, abs=0.03)


def test_bootstrap_covers_the_mean_of_a_normal_sample() -> None:
    values = np.random.default_rng(0).normal(size=200)
    low, high = shipped_bootstrap(samples=4000).interval(values)
    error = values.std(ddof=1) / math.sqrt(200)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.02)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.02)
