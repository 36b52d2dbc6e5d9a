"""Minutes of training until a validation Dice is reached, this project's against stock MONAI's.

    python tests/benchmarks/time_to_dice.py --dataset-dir data/CHASE_DB1

Both are built from the shipped ``train.json``: the same network, patches, loss, optimizer, schedule, batch and seed.
Stock is MONAI's documented way: ``SupervisedTrainer`` with its own iteration and inferer, float32, contiguous tensors.
What counts is the time of the training alone: reading and caching the images and the validations, whose Dice is the
per-image mean inside the field of view, are left out. The two run one after the other, so the machine must be quiet.
Further ``--key value`` pairs override the config of both.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow

from drive_seg.configs import bundle_root, check_overrides, config_files, parse_overrides
from drive_seg.workflows import quiet

STOCK = {
    "precision": "float32",
    "network": "$@network_def.to(@device)",
    "train::inferer": {"_target_": "SimpleInferer", "_desc_": "MONAI's default"},
    "train::trainer::iteration_update": None,
}


class TimeToDice:
    """Measures a training without its validations, and ends it when a validation reaches the goal.

    Args:
        goal: Dice to reach, from 0 to 1.
        metric_name: the evaluator's metric.
    """

    def __init__(self, goal: float, metric_name: str = "val_dice") -> None:
        self.goal = goal
        self.metric_name = metric_name
        self.seconds = 0.0
        self.dice = 0.0
        self.epochs = 0
        self._since = 0.0

    def attach(self, trainer: Engine, evaluator: Engine) -> None:
        """Follow a trainer and the evaluator that it calls."""
        trainer.add_event_handler(Events.STARTED, self._start)
        evaluator.add_event_handler(Events.STARTED, self._stop)
        evaluator.add_event_handler(Events.COMPLETED, self._judge, trainer)
        evaluator.add_event_handler(Events.COMPLETED, self._start)

    def _start(self, engine: Engine) -> None:
        self._since = time.perf_counter()

    def _stop(self, engine: Engine) -> None:
        self.seconds += time.perf_counter() - self._since

    def _judge(self, evaluator: Engine, trainer: Engine) -> None:
        self.dice = float(evaluator.state.metrics[self.metric_name])
        self.epochs = trainer.state.epoch
        if self.dice >= self.goal:
            trainer.terminate()


def time_to_dice(goal: float, overrides: dict[str, Any]) -> TimeToDice:
    """Train ``train.json`` with these overrides until ``goal``, or to its end."""
    files = config_files(bundle_root(), "train")
    check_overrides(files, overrides)
    with tempfile.TemporaryDirectory() as folder:
        workflow = ConfigWorkflow(
            config_file=files,
            workflow_type="train",
            logging_file=False,
            bundle_root=str(bundle_root()),
            **{"ckpt_dir": folder, "output_dir": folder, **overrides},
        )
        workflow.initialize()
        clock = TimeToDice(goal)
        trainer, evaluator = map(workflow.parser.get_parsed_content, ("train::trainer", "validate::evaluator"))
        clock.attach(trainer, evaluator)
        workflow.run()
    return clock


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset-dir", type=Path, required=True, help="dataset in the DRIVE layout")
    parser.add_argument("--dice", type=float, default=0.75, help="validation Dice to reach")
    parser.add_argument("--every", type=int, default=5, help="epochs between validations")
    options, further = parser.parse_known_args()
    common = {"dataset_dir": str(options.dataset_dir), "val_interval": options.every, **parse_overrides(further)}

    quiet()
    clocks = {}
    for name, overrides in {"ours": common, "stock": {**common, **STOCK}}.items():
        print(f"training: {name}", file=sys.stderr)
        clocks[name] = time_to_dice(options.dice, overrides)
    print(f"validated every {common['val_interval']} epochs; validations are not counted")
    print("| | epochs | validation Dice | minutes |")
    print("| --- | --- | --- | --- |")
    for name, clock in clocks.items():
        print(f"| {name} | {clock.epochs} | {clock.dice:.4f} | {clock.seconds / 60:.2f} |")
    missed = [name for name, clock in clocks.items() if clock.dice < options.dice]
    if missed:
        sys.exit(f"a Dice of {options.dice} was not reached: {', '.join(missed)}")
    print(f"\nstock takes {clocks['stock'].seconds / clocks['ours'].seconds:.2f} times as long")


if __name__ == "__main__":
    main()
