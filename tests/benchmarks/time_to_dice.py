"""Minutes of training to reach a validation Dice, this project compared with stock MONAI.

    python tests/benchmarks/time_to_dice.py --dataset-dir data/CHASE_DB1

Both are built from the shipped ``train.json``: the same network, patches, loss, optimizer, schedule, batch and seed.
Stock is MONAI's documented way: ``SupervisedTrainer`` with its own iteration and inferer, float32, contiguous tensors,
and the weights of the last step, not their average.

Only training time counts, without reading and caching the images and without validations, whose Dice is the per-image
mean inside the field of view. Trainings run one after the other, each in a process of its own, so the machine must be
otherwise idle. The first validation above the goal varies by many epochs between seeds, hence several seeds. Further
``--key value`` pairs override the config of both.
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
    "moving_average::_disabled_": True,
    "train::handlers::2::_disabled_": True,  # updates the average
    "validate::evaluator::network": "@network",
    "validate::handlers::0::network": "@network",
}


def course_alone(overrides: dict[str, Any], overlay: dict[str, Any], goal: float) -> Course:
    """A training in a process of its own, so that its process-wide settings affect no other."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=quiet) as pool:
        return pool.submit(train, overrides, overlay, goal).result()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset-dir", type=Path, required=True, help="dataset in the DRIVE layout")
    parser.add_argument("--dice", type=float, default=0.75, help="validation Dice to reach")
    parser.add_argument("--every", type=int, default=5, help="epochs between validations")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds to train each with")
    options, further = parser.parse_known_args()
    common = {"dataset_dir": str(options.dataset_dir), "val_interval": options.every, **parse_overrides(further)}

    courses: dict[str, list[Course]] = {"ours": [], "stock": []}
    print(f"validated every {common['val_interval']} epochs; validations are not counted")
    print("| seed | | epochs | validation Dice | minutes |")
    print("| --- | --- | --- | --- | --- |")
    for seed in options.seeds:
        for name, keys in {"ours": {}, "stock": STOCK}.items():
            print(f"training: {name}, seed {seed}", file=sys.stderr)
            course = course_alone({**common, "seed": seed}, keys, options.dice)
            if course.last < options.dice:
                sys.exit(f"{name}, seed {seed}: a Dice of {options.dice} was not reached")
            minutes = course.seconds / 60
            print(f"| {seed} | {name} | {max(course.dice)} | {course.last:.4f} | {minutes:.2f} |", flush=True)
            courses[name].append(course)
    print(f"\n| mean of {len(options.seeds)} | epochs | minutes | seconds an epoch |")
    print("| --- | --- | --- | --- |")
    times = {}
    for name, of_name in courses.items():
        epochs = sum(max(course.dice) for course in of_name)
        times[name] = sum(course.seconds for course in of_name)
        minutes = times[name] / 60 / len(of_name)
        print(f"| {name} | {epochs / len(of_name):.0f} | {minutes:.2f} | {times[name] / epochs:.2f} |")
    print(f"\nstock takes {times['stock'] / times['ours']:.2f} times as long")


if __name__ == "__main__":
    main()
