"""The effect of each choice of the recipe on validation Dice, and its cost.

    python tests/benchmarks/recipe.py --dataset-dir data/CHASE_DB1 --output recipe.csv --jobs 2 --max_epochs 150

Trains ``train.json`` with the keys of every choice in ``recipe.json``, once per seed, and prints a table of means; no
test case is read. Each training has one thread, so that one per core may run in parallel; its cost is in minutes of one
core, without reading and validation. Trainings already in the output file are not repeated; ``--choices`` and
``--seeds`` select some. Further ``--key value`` pairs override the config of all trainings, except for keys that a
choice sets itself.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from trainings import train

from drive_seg.configs import parse_overrides
from drive_seg.workflows import quiet

CHOICES = Path(__file__).with_suffix(".json")


def training(name: str, seed: int, overlay: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Run a training and return its row of the output file."""
    torch.set_num_threads(1)
    quiet()
    keys = {key: value for key, value in overrides.items() if key not in overlay}
    course = train({**keys, "seed": seed}, overlay)
    return {
        "choice": name,
        "seed": seed,
        "epochs": max(course.dice),
        "best_dice": f"{course.best:.4f}",
        "last_dice": f"{course.last:.4f}",
        "core_minutes": f"{course.core_seconds / 60:.2f}",
    }


def done(path: Path) -> list[dict[str, str]]:
    """Rows of the output file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def line(name: str, rows: list[dict[str, str]]) -> str:
    """The trainings of one choice, as a row of the table."""
    dice = [float(row["last_dice"]) for row in rows]
    epochs = "/".join(sorted({row["epochs"] for row in rows}))
    cost = mean(float(row["core_minutes"]) for row in rows)
    each = ", ".join(f"{value:.4f}" for value in dice)
    return f"| {name} | {epochs} | {each} | {mean(dice):.4f} | {cost:.1f} |"


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset-dir", type=Path, required=True, help="dataset in the DRIVE layout")
    parser.add_argument("--output", type=Path, required=True, help="CSV file, a row a training; it is added to")
    parser.add_argument("--jobs", type=int, default=1, help="trainings beside each other, one thread each")
    parser.add_argument("--choices", nargs="+", help="choices to train; all of recipe.json by default")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="seeds to train each with (default: 0)")
    options, further = parser.parse_known_args()
    choices = json.loads(CHOICES.read_text())
    overrides = {"dataset_dir": str(options.dataset_dir), **parse_overrides(further)}

    present = {(row["choice"], int(row["seed"])) for row in done(options.output)}
    wanted = [(name, seed) for seed in options.seeds for name in options.choices or choices]
    missing = [key for key in wanted if key not in present]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        trainings = [pool.submit(training, name, seed, choices[name], overrides) for name, seed in missing]
        for finished in as_completed(trainings):
            entry = finished.result()
            header = not options.output.exists()
            with options.output.open("a", newline="") as file:
                writer = csv.DictWriter(file, list(entry))
                if header:
                    writer.writeheader()
                writer.writerow(entry)
            print(f"{entry['choice']}, seed {entry['seed']}: {entry['last_dice']}", file=sys.stderr)
    rows = done(options.output)
    print("| choice | epochs | validation Dice at the end, by seed | mean | minutes of a core |")
    print("| --- | --- | --- | --- | --- |")
    for name in choices:
        of_choice = sorted((row for row in rows if row["choice"] == name), key=lambda row: int(row["seed"]))
        if of_choice:
            print(line(name, of_choice))


if __name__ == "__main__":
    main()
