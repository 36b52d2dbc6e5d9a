"""Handlers on bare ignite engines."""

from __future__ import annotations

import io
import random
import re
import sys

import numpy as np
import pytest
import torch
from builders import engine_without_work, evaluator_after, optimizer
from ignite.engine import Engine, Events
from monai.data import CacheDataset
from monai.transforms import Compose
from running import AddNoise

from drive_seg.datasets import SeededCacheDataset
from drive_seg.handlers import AnnotatedClasses, EpochSeed, LastValidation, TrainingProgress


def test_epoch_seed_makes_an_epoch_the_same_wherever_the_run_began() -> None:
    def draws(first_epoch: int) -> list[tuple[float, ...]]:
        samples = SeededCacheDataset([0.0] * 4, Compose([AddNoise(float)]), seed=0, cache_rate=0.0)
        seen: list[tuple[float, ...]] = []
        engine = Engine(
            lambda engine, batch: seen.append(
                (random.random(), np.random.random_sample(), float(torch.rand(())), samples[batch])  # noqa: NPY002
            )
        )
        EpochSeed(5, samples).attach(engine)
        engine.load_state_dict({"epoch": first_epoch, "max_epochs": 3, "epoch_length": 1})
        engine.run([0])
        return seen

    whole, resumed = draws(0), draws(1)
    assert len(whole) == 3
    assert whole[1:] == resumed
    assert len(set(whole)) == 3


def test_a_dataset_that_is_not_seeded_trains_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(lambda engine, batch: batch)
    EpochSeed(5, CacheDataset([0.0], Compose([AddNoise(float)]), progress=False)).attach(engine)
    assert "CacheDataset is not seeded by epoch" in caplog.text
    engine.run([0], max_epochs=1)


@pytest.mark.parametrize(("best_epoch", "validated"), [(-1, [3]), (2, [])])
def test_a_training_that_is_ended_early_is_validated_if_it_never_was(best_epoch: int, validated: list[int]) -> None:
    evaluator = evaluator_after(0.5, best_epoch)
    runs: list[int] = []
    evaluator.run = runs.append
    trainer = engine_without_work([1.0] * 5)
    LastValidation(evaluator).attach(trainer)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=5), trainer.terminate)
    trainer.run([0, 1], max_epochs=4)
    assert runs == validated


@pytest.mark.parametrize("terminal", [True, False])
def test_the_progress_bar_of_a_resumed_training(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    written = io.StringIO()
    written.isatty = lambda: terminal  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setenv("COLUMNS", "200")
    engine = engine_without_work([3.0, 0.25])
    TrainingProgress(optimizer(), evaluator_after(0.75, epoch=1)).attach(engine)
    engine.load_state_dict({"epoch": 1, "max_epochs": 2, "epoch_length": 2})
    engine.run([0, 1])
    if not terminal:
        assert written.getvalue() == ""
        return
    begun, *_, ended = written.getvalue().strip().split("\r")
    assert re.match(r"training: +50%\|.*\| 2/4 \[", begun)
    assert re.match(r"training: 100%\|.*\| 4/4 \[00:0\d<00:00, ", ended), "time taken and time left"
    assert ended.endswith("step/s, epoch=2, loss=0.2500, lr=0.25, best=0.7500]")


@pytest.mark.parametrize(("num_classes", "labels", "told"), [
    (3, [[0, 1, 255], [0, 1, 1]], "class 2 occurs in none of the 2 annotations of 'av', expected classes 1 to 2"),
    (4, [[0, 1, 255]], "class 2 or class 3 occurs in none of the 1 annotations"),
    (3, [[0, 1, 255], [0, 2, 0]], ""),
    (2, [[0, 0, 0]], ""),
])  # fmt: skip
def test_classes_that_no_annotation_has(
    caplog: pytest.LogCaptureFixture, num_classes: int, labels: list[list[int]], told: str
) -> None:
    cases = [{"label": torch.tensor(label, dtype=torch.uint8)} for label in labels]
    dataset = SeededCacheDataset(cases, Compose([]), seed=0, progress=False)
    engine = Engine(lambda engine, batch: None)
    AnnotatedClasses(dataset, num_classes, "av").attach(engine)
    for epochs in (1, 2):  # rounds of a federated training
        engine.run([0], max_epochs=epochs)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [warning[: len(told)] for warning in warnings] == ([told] if told else [])
