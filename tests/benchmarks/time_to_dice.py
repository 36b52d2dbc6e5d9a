"""Minutes of training until a validation Dice is reached, this project's against stock MONAI's.

    python tests/benchmarks/time_to_dice.py --dataset-dir data/CHASE_DB1

Both are built from the shipped ``train.json``: the same network, patches, loss, optimizer, schedule, batch and seed.
Stock is MONAI's documented way: ``SupervisedTrainer`` with its own iteration and inferer, float32, contiguous tensors.
What counts is the time of the training alone: reading and caching the images and the validations, whose Dice is the
per-image mean inside the field of view, are left out. The two run one after the other, each in a process of its own, so
the machine must be quiet.
Further ``--key value`` pairs override the config of both.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from trainings import Course, train

from drive_seg.configs import parse_overrides
from drive_seg.workflows import quiet

STOCK = {
    "settings": ["$monai.utils.set_determinism(seed=@seed)"],
    "precision": "float32",
    "network": "$@network_def.to(@device)",
    "train::inferer": {"_target_": "SimpleInferer", "_desc_": "MONAI's default"},
    "train::trainer::iteration_update": None,
}


def course_alone(overrides: dict[str, Any], goal: float) -> Course:
    """A training in a process of its own, so that what it sets for its process is nobody else's."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=quiet) as pool:
        return pool.submit(train, overrides, goal=goal).result()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset-dir", type=Path, required=True, help="dataset in the DRIVE layout")
    parser.add_argument("--dice", type=float, default=0.75, help="validation Dice to reach")
    parser.add_argument("--every", type=int, default=5, help="epochs between validations")
    options, further = parser.parse_known_args()
    common = {"dataset_dir": str(options.dataset_dir), "val_interval": options.every, **parse_overrides(further)}

    courses = {}
    for name, overrides in {"ours": common, "stock": {**common, **STOCK}}.items():
        print(f"training: {name}", file=sys.stderr)
        courses[name] = course_alone(overrides, options.dice)
    print(f"validated every {common['val_interval']} epochs; validations are not counted")
    print("| | epochs | validation Dice | minutes |")
    print("| --- | --- | --- | --- |")
    for name, course in courses.items():
        print(f"| {name} | {max(course.dice)} | {course.last:.4f} | {course.seconds / 60:.2f} |")
    missed = [name for name, course in courses.items() if course.last < options.dice]
    if missed:
        sys.exit(f"a Dice of {options.dice} was not reached: {', '.join(missed)}")
    print(f"\nstock takes {courses['stock'].seconds / courses['ours'].seconds:.2f} times as long")


if __name__ == "__main__":
    main()
