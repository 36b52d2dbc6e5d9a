"""Handlers on bare ignite engines."""

from __future__ import annotations

import io
import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import evaluator_with
from ignite.engine import Engine, Events
from monai.data import CacheDataset
from monai.transforms import Compose
from running import AddNoise, table

from drive_seg.datasets import SeededCacheDataset
from drive_seg.handlers import AnnotatedClasses, EpochSeed, History, LastValidation, TrainingProgress, loss_of


def engine_without_work(losses: list[float]) -> Engine:
    values = iter(losses)
    return Engine(lambda engine, batch: {"loss": torch.tensor(next(values))})


def test_epoch_seed_makes_an_epoch_the_same_wherever_the_run_began() -> None:
    def draws(first_epoch: int) -> list[tuple[float, ...]]:
        samples = SeededCacheDataset([0.0] * 4, Compose([AddNoise(float)]), cache_rate=0.0)
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


def evaluator_after(metric: float, epoch: int) -> Engine:
    """An evaluator whose last validation, of this epoch, is its best."""
    evaluator = evaluator_with(metric, epoch, epoch)
    evaluator.state.metrics = {"val_dice": metric}
    evaluator.state.key_metric_name = "val_dice"
    return evaluator


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


def optimizer(rate: float = 0.25) -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)


def test_history_has_one_row_an_epoch_with_the_mean_loss(tmp_path: Path) -> None:
    history = History(str(tmp_path / "history.csv"), optimizer(), evaluator_after(0.75, epoch=2))
    engine = engine_without_work([1.0, 3.0, 0.5, 0.25])
    history.attach(engine)
    engine.run([0, 1], max_epochs=2)
    rows = table(tmp_path / "history.csv")
    assert [(row["epoch"], row["iteration"], float(row["loss"])) for row in rows] == [
        ("1", "2", 2.0),
        ("2", "4", 0.375),
    ]
    assert [row["val_dice"] for row in rows] == ["", "0.75"], "only the second epoch was validated"
    assert {float(row["learning_rate"]) for row in rows} == {0.25}
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_history_goes_on_with_the_rows_of_earlier_epochs(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    first = engine_without_work([1.0, 2.0, 9.0])
    History(str(path), optimizer(), evaluator_after(0.5, 0)).attach(first)
    first.run([0], max_epochs=3)
    resumed = engine_without_work([3.0, 4.0])
    History(str(path), optimizer(), evaluator_after(0.5, 0)).attach(resumed)
    # the state of the third epoch had not been saved
    resumed.load_state_dict({"epoch": 2, "max_epochs": 4, "epoch_length": 1})
    resumed.run([0])
    assert [float(row["loss"]) for row in table(path)] == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("rows_are_there", [True, False])
def test_curves_of_a_training_that_was_resumed_after_its_last_epoch(tmp_path: Path, rows_are_there: bool) -> None:
    path, curves = tmp_path / "history.csv", tmp_path / "curves.png"
    first = engine_without_work([1.0, 2.0, 9.0])
    History(str(path), optimizer(), evaluator_after(0.5, 3)).attach(first)
    first.run([0], max_epochs=3)
    drawn, table = curves.read_bytes(), path.read_bytes()
    curves.unlink()
    if not rows_are_there:
        path.unlink()
    resumed = engine_without_work([])
    History(str(path), optimizer(), evaluator_after(0.5, 0)).attach(resumed)
    resumed.load_state_dict({"epoch": 3, "max_epochs": 3, "epoch_length": 1})
    resumed.fire_event(Events.COMPLETED)
    if rows_are_there:
        assert curves.read_bytes() == drawn and path.read_bytes() == table
    else:
        assert not list(tmp_path.iterdir())


def test_history_has_the_rate_of_the_epochs_last_step(tmp_path: Path) -> None:
    steps = optimizer(rate=0.25)
    engine = engine_without_work([1.0] * 4)

    def halve(engine: Engine) -> None:
        steps.param_groups[0]["lr"] /= 2

    engine.add_event_handler(Events.ITERATION_COMPLETED, halve)
    History(str(tmp_path / "history.csv"), steps, evaluator_after(0.5, 0)).attach(engine)
    engine.run([0, 1], max_epochs=2)
    assert [float(row["learning_rate"]) for row in table(tmp_path / "history.csv")] == [0.125, 0.03125]


def test_history_without_a_key_metric_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    evaluator = evaluator_after(0.5, 0)
    evaluator.state.key_metric_name = None
    for begun, losses in ((0, [1.0, 2.0]), (2, [3.0])):
        engine = engine_without_work(losses)
        History(str(path), optimizer(), evaluator).attach(engine)
        engine.load_state_dict({"epoch": begun, "max_epochs": begun + len(losses), "epoch_length": 1})
        engine.run([0])
    assert [(float(row["loss"]), row["key_metric"]) for row in table(path)] == [(1.0, ""), (2.0, ""), (3.0, "")]


def test_a_table_that_cannot_be_written_does_not_end_a_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a table that is open in Excel on Windows; what the first epoch could not write, the second does."""
    path = tmp_path / "history.csv"
    path.mkdir()
    (tmp_path / "curves.png").mkdir()
    engine = engine_without_work([1.0, 2.0])
    History(str(path), optimizer(), evaluator_after(0.5, 0)).attach(engine)
    engine.add_event_handler(Events.EPOCH_COMPLETED(once=1), lambda: path.rmdir())
    engine.run([0], max_epochs=2)
    assert [row["epoch"] for row in table(path)] == ["1", "2"]
    assert f"{path}: cannot be written (" in caplog.text and "curves.png: cannot be written (" in caplog.text


def test_history_of_another_process_writes_nothing(tmp_path: Path) -> None:
    history = History(str(tmp_path / "history.csv"), optimizer(), evaluator_after(0.5, 0), writes=False)
    engine = engine_without_work([1.0])
    history.attach(engine)
    engine.run([0], max_epochs=1)
    assert len(history.rows) == 1 and not list(tmp_path.iterdir())


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


def test_loss_of() -> None:
    assert loss_of({"loss": torch.tensor(1.5, requires_grad=True).detach()}) == 1.5
    assert loss_of([{"loss": 1.5}, {"loss": 1.5}]) == 1.5


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
    dataset = SeededCacheDataset(cases, Compose([]), progress=False)
    engine = Engine(lambda engine, batch: None)
    AnnotatedClasses(dataset, num_classes, "av").attach(engine)
    for epochs in (1, 2):  # rounds of a federated training
        engine.run([0], max_epochs=epochs)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [warning[: len(told)] for warning in warnings] == ([told] if told else [])
