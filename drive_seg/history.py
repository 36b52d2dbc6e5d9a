"""The history of a training: a table with a row for every epoch, and its curves."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from drive_seg.distributed import gather
from drive_seg.errors import DriveSegError
from drive_seg.files import replacing, write_csv

__all__ = ["History", "RecordEpochs", "learning_rate", "loss_of", "save_curves"]

_logger = logging.getLogger(__name__)


def loss_of(output: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> float:
    """The loss in the trainer's output of an iteration, decollated (the loss is in every item) or not."""
    first = output if isinstance(output, Mapping) else output[0]
    return float(first["loss"])


def learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """The optimizer's learning rate, of its first group of parameters."""
    return float(optimizer.param_groups[0]["lr"])


def save_curves(rows: Sequence[Mapping[str, Any]], metric_name: str, path: str | os.PathLike) -> None:
    """Draw loss, validation metric and learning rate over the epochs of a training.

    Args:
        rows: of a ``History``: ``epoch``, ``loss``, ``learning_rate`` and ``metric_name`` (empty if not validated).
        metric_name: column of the validation metric.
        path: PNG file to write.

    Raises:
        ModuleNotFoundError: if matplotlib, which the extra ``report`` installs, is missing.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    epochs = [row["epoch"] for row in rows]
    validated = [row for row in rows if row[metric_name] != ""]
    curves = (
        ("training loss", epochs, [row["loss"] for row in rows], "C0-"),
        (f"{metric_name}, in the FOV", [r["epoch"] for r in validated], [r[metric_name] for r in validated], "C2.-"),
        ("learning rate", epochs, [row["learning_rate"] for row in rows], "C1-"),
    )
    for place, (title, x, y, style) in zip(figure.subplots(1, len(curves)), curves, strict=True):
        place.plot(x, y, style)
        place.set(title=title, xlabel="epoch")
        place.grid(alpha=0.3)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


class History:
    """A table with a row for every epoch, and its curves. The rows are kept for a resumed training with its state.

    Args:
        path: CSV file; ``curves.png`` is drawn beside it.
        writes: False in all but one of several processes: the rows are kept, nothing is written.

    Attributes:
        rows: one dictionary for every epoch so far.
    """

    def __init__(self, path: str, writes: bool = True) -> None:
        self.path = Path(path)
        self.writes = writes
        self.rows: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        """The rows so far: the file may be edited before the training is resumed."""
        return {"rows": self.rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the rows of earlier epochs."""
        self.rows = [dict(row) for row in state["rows"]]

    def write(self) -> None:
        """Write the table, all rows anew."""
        if not self.writes:
            return
        try:
            write_csv(self.path, self.rows)
        except DriveSegError as error:  # a table that is open in Excel is no reason to end a training
            _logger.warning("%s; the training goes on, and every epoch writes all rows anew", error)

    def draw(self, metric_name: str) -> None:
        """Draw the curves, if matplotlib is installed; arguments as for ``save_curves``."""
        if not self.writes or not self.rows:
            return
        picture = self.path.with_name("curves.png")
        try:
            save_curves(self.rows, metric_name, picture)
        except ModuleNotFoundError:
            _logger.info("%s is not drawn, for that install drive-seg[report]", picture.name)
        except DriveSegError as error:  # the weights are there
            _logger.warning("%s", error)


class RecordEpochs:
    """Keeps a ``History``: mean loss, learning rate, validation metric and time of every epoch.

    Validated epochs are logged. At the end, the curves are drawn.

    Args:
        history: the table.
        optimizer: optimizer whose learning rate in an epoch's last step is recorded.
        evaluator: MONAI's evaluator, whose key metric is recorded under its name, in the epochs that were validated.
    """

    def __init__(self, history: History, optimizer: torch.optim.Optimizer, evaluator: Engine) -> None:
        self.history = history
        self.optimizer = optimizer
        self.evaluator = evaluator
        self._losses: list[float] = []
        self._rate = 0.0
        self._started = 0.0

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, after the handler that validates and before ``TrainingState``."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_STARTED, self.note_rate)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.record)
        engine.add_event_handler(Events.TERMINATE, self.complete)
        engine.add_event_handler(Events.COMPLETED, self.draw)

    def start(self, engine: Engine) -> None:
        """Prepare for an epoch."""
        self._losses = []
        self._started = time.perf_counter()

    def note_rate(self, engine: Engine) -> None:
        """Keep the learning rate before the schedule changes it for the next iteration."""
        self._rate = learning_rate(self.optimizer)

    def collect(self, engine: Engine) -> None:
        """Keep the loss of an iteration."""
        self._losses.append(loss_of(engine.state.output))

    def record(self, engine: Engine) -> None:
        """Write the row of an epoch."""
        losses = gather(sum(self._losses) / len(self._losses))
        row = {
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "loss": sum(losses) / len(losses),
            "learning_rate": self._rate,
            self.metric_name: self._metric(engine),
            "seconds": round(time.perf_counter() - self._started, 3),
        }
        self.history.rows.append(row)
        self._write(engine)

    def complete(self, engine: Engine) -> None:
        """Add the metric to the row of the last epoch if it was validated after it had been written."""
        rows = self.history.rows
        if rows and rows[-1]["epoch"] == engine.state.epoch and rows[-1][self.metric_name] == "":
            rows[-1][self.metric_name] = self._metric(engine)
            self._write(engine)

    def draw(self, engine: Engine) -> None:
        """Draw the curves."""
        self.history.draw(self.metric_name)

    @property
    def metric_name(self) -> str:
        """The column of the key metric, which stays empty if the evaluator has none."""
        return self.evaluator.state.key_metric_name or "key_metric"

    def _metric(self, engine: Engine) -> float | str:
        validated = self.evaluator.state.epoch == engine.state.epoch
        metric = self.evaluator.state.metrics.get(self.metric_name) if validated else None
        return "" if metric is None else float(metric)

    def _write(self, engine: Engine) -> None:
        self.history.write()
        row = self.history.rows[-1]
        if self.history.writes and row[self.metric_name] != "":
            _logger.info(
                "epoch %d of %d: loss %.4f, %s %.4f",
                row["epoch"], engine.state.max_epochs, row["loss"], self.metric_name, row[self.metric_name],
            )  # fmt: skip
