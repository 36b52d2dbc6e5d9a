"""Event handlers: randomness, missing classes, the last validation, and a progress bar."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.utils import manual_seed
from monai.engines import Evaluator
from torch.utils.data import Dataset
from tqdm import tqdm

from drive_seg.arrays import without_metadata
from drive_seg.classes import names_of_classes
from drive_seg.datasets import OrderlyCacheDataset, SeededCacheDataset
from drive_seg.errors import DriveSegError
from drive_seg.history import learning_rate, loss_of

__all__ = ["AnnotatedClasses", "EpochSeed", "LastValidation", "TrainingProgress"]

_logger = logging.getLogger(__name__)


class AnnotatedClasses:
    """Warns when a training starts of classes that no annotation has: other annotations may be meant.

    Args:
        dataset: the training dataset; without a cache nothing is checked, because all files would be read once more.
        num_classes: number of classes, background included; with 2, an annotation without vessels is told of already.
        annotation: name of the annotations, for the warning.
        class_names: names of the vessel classes, see ``drive_seg.classes.names_of_classes``.

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
        found = {value for case in cached for value in torch.unique(without_metadata(case["label"])).tolist()}
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
        # Global states, too, which third-party transforms may use.
        manual_seed(int(np.random.SeedSequence([self.seed, engine.state.epoch]).generate_state(1)[0]))
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
            "lr": f"{learning_rate(self.optimizer):.2g}",
        }
        if self.evaluator.state.best_metric_epoch > 0:
            shown["best"] = f"{self.evaluator.state.best_metric:.4f}"
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update()

    def close(self, engine: Engine) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()
