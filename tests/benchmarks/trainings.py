"""Trainings with the shipped ``train.json`` and other values, with their time and Dice."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow

from drive_seg.configs import bundle_root, check_overrides, config_files


class Course:
    """Times a training without its validations, and ends it when a validation reaches the goal.

    Attributes:
        seconds: wall-clock time of the training alone.
        core_seconds: processor time of this process in that time, over all threads.
        dice: validation Dice by epoch, per-image mean inside the field of view, 0 to 1.
    """

    def __init__(self, goal: float = 1.0, metric_name: str = "val_dice") -> None:
        self.goal = goal
        self.metric_name = metric_name
        self.seconds = 0.0
        self.core_seconds = 0.0
        self.dice: dict[int, float] = {}
        self._since = (0.0, 0.0)

    @property
    def best(self) -> float:
        """The highest validation Dice."""
        return max(self.dice.values())

    @property
    def last(self) -> float:
        """The last validation Dice."""
        return self.dice[max(self.dice)]

    def attach(self, trainer: Engine, evaluator: Engine) -> None:
        """Follow a trainer and the evaluator that it calls."""
        trainer.add_event_handler(Events.STARTED, self._start)
        evaluator.add_event_handler(Events.STARTED, self._stop)
        evaluator.add_event_handler(Events.COMPLETED, self._judge, trainer)
        evaluator.add_event_handler(Events.COMPLETED, self._start)

    def _start(self, engine: Engine) -> None:
        self._since = (time.perf_counter(), time.process_time())

    def _stop(self, engine: Engine) -> None:
        self.seconds += time.perf_counter() - self._since[0]
        self.core_seconds += time.process_time() - self._since[1]

    def _judge(self, evaluator: Engine, trainer: Engine) -> None:
        self.dice[trainer.state.epoch] = float(evaluator.state.metrics[self.metric_name])
        if self.dice[trainer.state.epoch] >= self.goal:
            trainer.terminate()


def train(overrides: Mapping[str, Any], overlay: Mapping[str, Any] | None = None, goal: float = 1.0) -> Course:
    """Train into a temporary folder.

    Args:
        overrides: keys of ``train.json`` and their values.
        overlay: contents of a config to apply after ``train.json``, which may have keys of its own.
        goal: validation Dice at which the training ends.
    """
    files = config_files(bundle_root(), "train")
    check_overrides(files, overrides)
    with tempfile.TemporaryDirectory() as folder:
        if overlay:
            files.append(str(Path(folder) / "overlay.json"))
            Path(files[-1]).write_text(json.dumps(overlay))
        workflow = ConfigWorkflow(
            config_file=files,
            workflow_type="train",
            logging_file=False,
            bundle_root=str(bundle_root()),
            **{"ckpt_dir": folder, "output_dir": folder, **overrides},
        )
        workflow.initialize()
        course = Course(goal)
        course.attach(*map(workflow.parser.get_parsed_content, ("train::trainer", "validate::evaluator")))
        workflow.run()
    return course
