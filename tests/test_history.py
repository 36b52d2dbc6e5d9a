"""The table of a training, on bare ignite engines, and its curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from builders import engine_without_work, evaluator_after, optimizer
from ignite.engine import Engine, Events
from matplotlib.figure import Figure
from PIL import Image
from running import table

from drive_seg.history import History, RecordEpochs, loss_of, save_curves


def test_loss_of() -> None:
    assert loss_of({"loss": torch.tensor(1.5, requires_grad=True).detach()}) == 1.5
    assert loss_of([{"loss": 1.5}, {"loss": 1.5}]) == 1.5


def test_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[dict[str, list[list[float]]]] = []
    save = Figure.savefig

    def noted(figure: Figure, *arguments: Any, **keywords: Any) -> None:
        drawn.append({axes.get_title(): axes.lines[0].get_xydata().tolist() for axes in figure.axes})
        save(figure, *arguments, **keywords)

    monkeypatch.setattr(Figure, "savefig", noted)
    rows = [
        {"epoch": 1, "loss": 0.8, "learning_rate": 0.1, "val_dice": ""},
        {"epoch": 2, "loss": 0.4, "learning_rate": 0.2, "val_dice": 0.5},
        {"epoch": 3, "loss": 0.3, "learning_rate": 0.1, "val_dice": ""},
        {"epoch": 4, "loss": 0.2, "learning_rate": 0.0, "val_dice": 0.75},
    ]
    picture = tmp_path / "curves.png"
    for count in (1, 4):  # never validated, and drawn anew
        save_curves(rows[:count], "val_dice", picture)
        losses, rates = ([[row["epoch"], row[name]] for row in rows[:count]] for name in ("loss", "learning_rate"))
        dice = [[2, 0.5], [4, 0.75]] if count == 4 else []
        expected = {"training loss": losses, "val_dice, in the FOV": dice, "learning rate": rates}
        assert drawn.pop() == expected and not drawn
        with Image.open(picture) as saved:
            assert saved.format == "PNG" and saved.size == (990, 330), "9 in × 3 in with 110 dots an inch"


def test_history_has_one_row_an_epoch_with_the_mean_loss(tmp_path: Path) -> None:
    engine = engine_without_work([1.0, 3.0, 0.5, 0.25])
    RecordEpochs(History(str(tmp_path / "history.csv")), optimizer(), evaluator_after(0.75, epoch=2)).attach(engine)
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
    """Whatever has become of the file meanwhile: of its three rows one was not in the state that was saved."""
    path = tmp_path / "history.csv"
    history, resumed = History(str(path)), History(str(path))
    first = engine_without_work([1.0, 2.0, 9.0])
    RecordEpochs(history, optimizer(), evaluator_after(0.5, 0)).attach(first)
    first.add_event_handler(Events.EPOCH_COMPLETED(once=2), lambda: resumed.load_state_dict(history.state_dict()))
    first.run([0], max_epochs=3)
    path.write_text("epoch;loss\n1;1,0\n")
    second = engine_without_work([3.0, 4.0])
    RecordEpochs(resumed, optimizer(), evaluator_after(0.5, 0)).attach(second)
    second.load_state_dict({"epoch": 2, "max_epochs": 4, "epoch_length": 1})
    second.run([0])
    assert [float(row["loss"]) for row in table(path)] == [1.0, 2.0, 3.0, 4.0]
    assert len(history.rows) == 3, "those of one training are not the other's"


@pytest.mark.parametrize("rows_are_there", [True, False])
def test_curves_of_a_training_that_was_resumed_after_its_last_epoch(tmp_path: Path, rows_are_there: bool) -> None:
    path, curves = tmp_path / "history.csv", tmp_path / "curves.png"
    history, resumed = History(str(path)), History(str(path))
    first = engine_without_work([1.0, 2.0, 9.0])
    RecordEpochs(history, optimizer(), evaluator_after(0.5, 3)).attach(first)
    first.run([0], max_epochs=3)
    drawn = curves.read_bytes()
    curves.unlink()
    if rows_are_there:
        resumed.load_state_dict(history.state_dict())
    second = engine_without_work([])
    RecordEpochs(resumed, optimizer(), evaluator_after(0.5, 0)).attach(second)
    second.load_state_dict({"epoch": 3, "max_epochs": 3, "epoch_length": 1})
    second.fire_event(Events.COMPLETED)
    assert curves.read_bytes() == drawn if rows_are_there else not curves.exists()


def test_history_has_the_rate_of_the_epochs_last_step(tmp_path: Path) -> None:
    steps = optimizer(rate=0.25)
    engine = engine_without_work([1.0] * 4)

    def halve(engine: Engine) -> None:
        steps.param_groups[0]["lr"] /= 2

    engine.add_event_handler(Events.ITERATION_COMPLETED, halve)
    RecordEpochs(History(str(tmp_path / "history.csv")), steps, evaluator_after(0.5, 0)).attach(engine)
    engine.run([0, 1], max_epochs=2)
    assert [float(row["learning_rate"]) for row in table(tmp_path / "history.csv")] == [0.125, 0.03125]


def test_history_without_a_key_metric_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    evaluator = evaluator_after(0.5, 0)
    evaluator.state.key_metric_name = None
    history = History(str(path))
    for begun, losses in ((0, [1.0, 2.0]), (2, [3.0])):
        engine = engine_without_work(losses)
        RecordEpochs(history, optimizer(), evaluator).attach(engine)
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
    RecordEpochs(History(str(path)), optimizer(), evaluator_after(0.5, 0)).attach(engine)
    engine.add_event_handler(Events.EPOCH_COMPLETED(once=1), lambda: path.rmdir())
    engine.run([0], max_epochs=2)
    assert [row["epoch"] for row in table(path)] == ["1", "2"]
    assert f"{path}: cannot be written (" in caplog.text and "curves.png: cannot be written (" in caplog.text


def test_history_of_another_process_writes_nothing(tmp_path: Path) -> None:
    history = History(str(tmp_path / "history.csv"), writes=False)
    engine = engine_without_work([1.0])
    RecordEpochs(history, optimizer(), evaluator_after(0.5, 0)).attach(engine)
    engine.run([0], max_epochs=1)
    assert len(history.rows) == 1 and not list(tmp_path.iterdir())
