"""Event handlers: randomness, missing classes, the last validation, a progress bar, and the history of a training."""

from __future__ import annotations

import csv
import logging
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator
from torch.utils.data import Dataset
from tqdm import tqdm

from drive_seg.arrays import plain
from drive_seg.classes import class_names as names_of_classes
from drive_seg.curves import save_curves
from drive_seg.datasets import OrderlyCacheDataset, SeededCacheDataset
from drive_seg.distributed import gather
from drive_seg.errors import DriveSegError
from drive_seg.files import write_csv

__all__ = ["AnnotatedClasses", "EpochSeed", "History", "LastValidation", "TrainingProgress", "loss_of"]

_logger = logging.getLogger(__name__)


class AnnotatedClasses:
    """Warns when a training starts of classes that no annotation has: other annotations may be meant.

    Args:
        dataset: the training dataset; without a cache nothing is checked, because all files would be read once more.
        num_classes: number of classes, background included; with 2, an annotation without vessels is told of already.
        annotation: name of the annotations, for the warning.
        class_names: names of the vessel classes, see ``drive_seg.classes.class_names``.

    Raises:
        ArgumentError: if the names do not fit the number of classes.
    """

    def __init__(
        self, dataset: Dataset, num_classes: int, annotation: str, class_names: Sequence[str] | None = None
    ) -> None:
        self.dataset = dataset
        self.num_classes = num_classes
        self.annotation = annotation
        self.names = names_of_classes(num_classes, class_names)

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        if self.num_classes > 2:
            engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Look at the labels in memory, unless the training goes on from an earlier epoch."""
        if engine.state.epoch > 0:
            return
        cached = self.dataset.cached if isinstance(self.dataset, OrderlyCacheDataset) else []
        found = {value for case in cached for value in torch.unique(plain(case["label"])).tolist()}
        absent = [name for value, name in enumerate(self.names, start=1) if value not in found]
        if cached and absent:
            _logger.warning(
                "%s occurs in none of the %d annotations of %r, expected classes 1 to %d (--annotation?)",
                " or ".join(absent), len(cached), self.annotation, self.num_classes - 1,
            )  # fmt: skip


class EpochSeed:
    """Reseeds the random numbers at every epoch's start from the seed and the epoch's number.

    An epoch is thus the same whether or not the training was resumed before it.

    Args:
        seed: any whole number from 0.
        dataset: the training dataset, whose transforms have random states of their own. Unless it is a
            ``SeededCacheDataset``, these are not reseeded, so that a resumed training does not repeat one that was not
            resumed, which is logged.
    """

    def __init__(self, seed: int, dataset: Dataset) -> None:
        if not isinstance(seed, int) or seed < 0:
            raise DriveSegError(f"seed: expected a whole number from 0, got {seed!r}")
        self.seed = seed
        self.dataset = dataset
        if not isinstance(dataset, SeededCacheDataset):
            kind = type(dataset).__name__
            _logger.warning("%s is not seeded by epoch: a resumed training will not repeat one that was not", kind)

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed."""
        seed = int(np.random.SeedSequence([self.seed, engine.state.epoch]).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - for third-party transforms that use the global state
        torch.manual_seed(seed)
        if isinstance(self.dataset, SeededCacheDataset):
            self.dataset.set_epoch(engine.state.epoch)


class LastValidation:
    """Validates at the end of a training if MONAI's ``ValidationHandler`` has not done so.

    Otherwise a training shorter than its validation interval would have no best weights. One that is ended before its
    last epoch by ignite's ``Engine.terminate``, as ``EarlyStopHandler`` does, is validated only if it never was: its
    unfinished epoch is repeated when it is resumed.

    Args:
        evaluator: evaluator to run.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, after the handler that validates."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)
        engine.add_event_handler(Events.TERMINATE, self.validate_once)

    def __call__(self, engine: Engine) -> None:
        """Validate after the last epoch."""
        if engine.state.epoch == engine.state.max_epochs:
            self.validate(engine)

    def validate_once(self, engine: Engine) -> None:
        """Validate if there are no best weights yet."""
        if self.evaluator.state.best_metric_epoch < 1:
            self.validate(engine)

    def validate(self, engine: Engine) -> None:
        """Validate unless this epoch is validated already."""
        if self.evaluator.state.epoch != engine.state.epoch:
            self.evaluator.run(engine.state.epoch)


class TrainingProgress:
    """A progress bar with loss, learning rate, best Dice and time left; nothing if there is no terminal.

    Args:
        optimizer: optimizer whose learning rate is shown.
        evaluator: evaluator whose key metric is shown.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, evaluator: Engine) -> None:
        self.optimizer = optimizer
        self.evaluator = evaluator
        self.bar: tqdm | None = None

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.update)
        engine.add_event_handler(Events.COMPLETED, self.close)

    def start(self, engine: Engine) -> None:
        """Open the bar at the iteration the training starts from."""
        total = engine.state.max_epochs * engine.state.epoch_length
        self.bar = tqdm(total=total, initial=engine.state.iteration, desc="training", unit="step", disable=None)

    def update(self, engine: Engine) -> None:
        """Advance by one step."""
        if self.bar is None or self.bar.disable:
            return
        shown = {
            "epoch": engine.state.epoch,
            "loss": f"{loss_of(engine.state.output):.4f}",
            "lr": f"{_learning_rate(self.optimizer):.2g}",
        }
        if self.evaluator.state.best_metric_epoch > 0:
            shown["best"] = f"{self.evaluator.state.best_metric:.4f}"
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update()

    def close(self, engine: Engine) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()


class History:
    """Writes a CSV row per epoch: mean loss, learning rate, validation metric, time; validated epochs are logged.

    At the end, they are drawn as ``curves.png`` beside it. A resumed training keeps the rows of earlier epochs.

    Args:
        path: CSV file, rewritten after every epoch.
        optimizer: optimizer whose learning rate in an epoch's last step is recorded.
        evaluator: MONAI's evaluator, whose key metric is recorded under its name, in the epochs that were validated.
        writes: False in all but one of several processes: the rows are kept, nothing is written or logged.
    """

    def __init__(
        self,
        path: str,
        optimizer: torch.optim.Optimizer,
        evaluator: Engine,
        writes: bool = True,
    ) -> None:
        self.path = path
        self.writes = writes
        self.optimizer = optimizer
        self.evaluator = evaluator
        self.rows: list[dict[str, Any]] = []
        self._losses: list[float] = []
        self._rate = 0.0
        self._started = 0.0

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, after the handler that validates."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_STARTED, self.note_rate)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.record)
        engine.add_event_handler(Events.TERMINATE, self.complete)
        engine.add_event_handler(Events.COMPLETED, self.draw)

    def start(self, engine: Engine) -> None:
        """Prepare for an epoch."""
        if not self.rows and engine.state.epoch > 1:
            self._read_earlier(engine.state.epoch)
        self._losses = []
        self._started = time.perf_counter()

    def note_rate(self, engine: Engine) -> None:
        """Keep the learning rate before the schedule changes it for the next iteration."""
        self._rate = _learning_rate(self.optimizer)

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
        self.rows.append(row)
        self._write(engine)

    def complete(self, engine: Engine) -> None:
        """Add the metric to the row of the last epoch if it was validated after it had been written."""
        if self.rows and self.rows[-1]["epoch"] == engine.state.epoch and self.rows[-1][self.metric_name] == "":
            self.rows[-1][self.metric_name] = self._metric(engine)
            self._write(engine)

    @property
    def metric_name(self) -> str:
        """The column of the key metric, which stays empty if the evaluator has none."""
        return self.evaluator.state.key_metric_name or "key_metric"

    def _metric(self, engine: Engine) -> float | str:
        validated = self.evaluator.state.epoch == engine.state.epoch
        metric = self.evaluator.state.metrics.get(self.metric_name) if validated else None
        return "" if metric is None else float(metric)

    def _write(self, engine: Engine) -> None:
        if not self.writes:
            return
        try:
            write_csv(self.path, self.rows)
        except DriveSegError as error:  # a table that is open in Excel is no reason to end a training
            _logger.warning("%s; the training goes on, and every epoch writes all rows anew", error)
        row = self.rows[-1]
        if row[self.metric_name] != "":
            _logger.info(
                "epoch %d of %d: loss %.4f, %s %.4f",
                row["epoch"], engine.state.max_epochs, row["loss"], self.metric_name, row[self.metric_name],
            )  # fmt: skip

    def draw(self, engine: Engine) -> None:
        """Draw the curves beside the table, if matplotlib is installed."""
        if not self.writes:
            return
        if not self.rows:  # resumed after its last epoch
            self._read_earlier(engine.state.epoch + 1)
        if not self.rows:
            return
        picture = Path(self.path).with_name("curves.png")
        try:
            save_curves(self.rows, self.metric_name, picture)
        except ModuleNotFoundError:
            _logger.info("%s is not drawn, for that install drive-seg[report]", picture.name)
        except DriveSegError as error:  # the weights are there
            _logger.warning("%s", error)

    def _read_earlier(self, epoch: int) -> None:
        if not Path(self.path).is_file():
            return
        with Path(self.path).open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if int(row["epoch"]) < epoch:
                    self.rows.append({name: _number(value) for name, value in row.items()})


def loss_of(output: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> float:
    """The loss in the trainer's output of an iteration, decollated (the loss is in every item) or not."""
    first = output if isinstance(output, Mapping) else output[0]
    return float(first["loss"])


def _number(text: str) -> int | float | str:
    return text if text == "" else int(text) if text.isdecimal() else float(text)


def _learning_rate(optimizer: torch.optim.Optimizer) -> float:
    return float(optimizer.param_groups[0]["lr"])
