"""The dataset that training patches come from."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import CacheDataset, get_track_meta
from monai.transforms import Compose, Lambda, OneOf, RandLambdad, Randomizable, Transform
from running import AddNoise

from drive_seg.configs import config_files
from drive_seg.datasets import OrderlyCacheDataset, SeededCacheDataset, WholeBatchSampler
from drive_seg.errors import DriveSegError, first_cause


def test_an_error_comes_when_all_threads_are_done() -> None:
    done = []

    def careful(item: int) -> int:
        if item == 0:
            raise ValueError("no case")
        time.sleep(0.05)
        done.append(item)
        return item

    with pytest.raises(RuntimeError) as raised:
        OrderlyCacheDataset(range(6), Compose([Lambda(careful)]), num_workers=3, progress=False)
    assert "no case" in str(first_cause(raised.value)) and sorted(done) == [1, 2, 3, 4, 5]
    whole = OrderlyCacheDataset(range(1, 4), Compose([Lambda(careful)]), num_workers=3, progress=False)
    assert list(whole) == [1, 2, 3]
    later = OrderlyCacheDataset(range(2), Compose([Lambda(careful)]), progress=False, runtime_cache=True)
    assert later[1] == 1
    with pytest.raises(RuntimeError):
        later[0]


class AddNoiseInside(Randomizable, Transform):
    """Hands its random state on in a way of its own."""

    def __init__(self) -> None:
        self.inside = [AddNoise(float)]

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> AddNoiseInside:
        self.inside[0].set_random_state(seed, state)
        return self

    def __call__(self, data: float) -> float:
        return self.inside[0](data)


TRANSFORMS = {
    "alone": lambda: [AddNoise(float)],
    "in a Compose": lambda: [Compose([AddNoise(float), AddNoise(float)])],
    "in its own way": lambda: [AddNoiseInside()],
}


@pytest.mark.parametrize("transforms", TRANSFORMS)
def test_samples_follow_from_seed_epoch_and_case_alone(transforms: str) -> None:
    def dataset(seed: int = 0) -> SeededCacheDataset:
        return SeededCacheDataset([0.0] * 4, Compose(TRANSFORMS[transforms]()), seed=seed, cache_rate=0.0)

    samples = dataset()
    samples.set_epoch(3)
    forwards = [samples[index] for index in range(4)]
    backwards = [samples[index] for index in reversed(range(4))][::-1]
    assert forwards == backwards and len(set(forwards)) == 4
    assert [samples[index] for index in range(-4, 0)] == forwards
    samples.set_epoch(4)
    assert set(forwards).isdisjoint(samples[index] for index in range(4))
    assert set(forwards).isdisjoint(dataset(seed=1)[index] for index in range(4))


STAYING = """
from monai.data import DataLoader
from monai.transforms import Compose
from running import AddNoise

from drive_seg.datasets import SeededCacheDataset

samples = SeededCacheDataset([0.0] * 4, Compose([AddNoise(float)]), seed=0, progress=False)
loader = DataLoader(samples, batch_size=1, num_workers=2, persistent_workers=True)
drawn = []
for epoch in (3, 4):
    samples.set_epoch(epoch)
    drawn.append([float(sample) for sample in loader])
    assert drawn[-1] == [samples[index] for index in range(4)]
assert set(drawn[0]).isdisjoint(drawn[1])
"""


def test_workers_that_stay_are_told_the_epoch() -> None:
    # In a process of its own, because torch handles the ends of all children of one that has had workers.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", STAYING], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]


def test_two_transforms_draw_different_numbers() -> None:
    def drawn(*transforms: Transform) -> float:
        return SeededCacheDataset([0.0], Compose(transforms), seed=0, cache_rate=0.0)[0]

    one = drawn(AddNoise(float))
    assert drawn(AddNoise(float), Compose([AddNoise(float)])) - one not in (0, one)


@pytest.mark.parametrize("names", [("train",), ("train", "any_camera")], ids=lambda names: names[-1])
def test_patches_are_those_of_monai_with_the_same_seed(bundle: Path, phantoms: Path, names: tuple[str, ...]) -> None:
    parser = ConfigParser()
    parser.read_config(config_files(bundle, *names))
    parser.update({"bundle_root": str(bundle), "dataset_dir": str(phantoms), "patch_size": [64, 96], "seed": 5})
    samples = parser.get_parsed_content("train::dataset")
    samples.set_epoch(2)
    for index in range(len(samples)):
        patch = samples[index]
        seed = np.random.SeedSequence([5, 2, index]).generate_state(1)[0]
        samples.transform.set_random_state(seed=int(seed))
        expected = CacheDataset._transform(samples, index)
        for key in ("image", "label"):
            assert type(patch[key]) is torch.Tensor, "no metadata"
            assert torch.equal(patch[key], expected[key])


@pytest.mark.parametrize(("settings", "tracked"), [
    ({"track_meta": False}, False),
    ({}, True),
    ({"track_meta": False, "cache_num": 1}, True),
    ({"track_meta": False, "runtime_cache": True}, True),
], ids=["cached", "as MONAI", "not cached", "cached later"])  # fmt: skip
def test_only_patches_of_cached_cases_have_no_metadata(settings: dict[str, Any], tracked: bool) -> None:
    """Whoever reads a file names it in an error by its metadata."""

    class Fail(AddNoise):
        def __call__(self, data: float) -> float:
            raise ValueError(f"tracked: {get_track_meta()}")

    samples = SeededCacheDataset([0.0, 0.0], Compose([Fail(float)]), seed=0, **settings)
    assert get_track_meta()
    with pytest.raises(RuntimeError) as caught:
        samples[1]
    assert f"tracked: {tracked}" in str(caught.value.__cause__)
    assert get_track_meta(), "left as it was"


def test_a_transform_that_needs_metadata() -> None:
    transform = Compose([OneOf([RandLambdad("image", abs)])])
    with pytest.raises(DriveSegError, match=r"^train#dataset#track_meta: expected true, which RandLambdad needs"):
        SeededCacheDataset([{"image": torch.zeros(1, 2, 2)}], transform, seed=0, track_meta=False, progress=False)
    samples = SeededCacheDataset([{"image": -torch.ones(1, 2, 2)}], transform, seed=0, progress=False)
    assert samples[0]["image"].sum() == 4


def test_a_case_that_fills_up_the_last_batch_is_another_sample() -> None:
    samples = SeededCacheDataset([0.0] * 3, Compose([AddNoise(float)]), seed=0, progress=False)

    def drawn(processes: int) -> dict[int, set[float]]:
        values: dict[int, set[float]] = {case: set() for case in range(3)}
        for rank in range(processes):
            for index in WholeBatchSampler(samples, 8, processes, rank, shuffle=True, seed=3):
                values[int(index)].add(samples[index])
        return values

    whole = drawn(1)
    assert sorted(map(len, whole.values())) == [2, 3, 3], "8 different samples of 3 cases"
    assert all(samples[case] in values for case, values in whole.items()), "the first one is that of the case alone"
    assert drawn(2) == drawn(4) == whole


def test_indices_go_to_workers_and_other_datasets() -> None:
    indices = list(WholeBatchSampler(range(3), 2, 1, 0, shuffle=False))
    assert indices == [0, 1, 2, 0] and [range(3)[index] for index in indices] == indices
    assert [index.repetition for index in pickle.loads(pickle.dumps(indices))] == [0, 0, 0, 1]


@pytest.mark.parametrize("cases", [1, 3, 4, 16, 21, 22, 111])
@pytest.mark.parametrize("batch_size", [2, 4])
def test_steps_are_the_same_in_one_process_and_many(cases: int, batch_size: int) -> None:
    def steps(processes: int) -> list[list[int]]:
        shares = []
        for rank in range(processes):
            sampler = WholeBatchSampler(range(cases), batch_size, processes, rank, shuffle=True, seed=3)
            sampler.set_epoch(2)
            shares.append(list(sampler))
            assert len(shares[-1]) == len(sampler)
        each = batch_size // processes
        starts = range(0, len(shares[0]), each)
        return [sorted(index for share in shares for index in share[start : start + each]) for start in starts]

    whole = steps(1)
    assert all(len(step) == batch_size for step in whole)
    assert {index for step in whole for index in step} == set(range(cases)) and len(whole) == -(-cases // batch_size)
    for processes in {2, batch_size}:
        assert steps(processes) == whole
