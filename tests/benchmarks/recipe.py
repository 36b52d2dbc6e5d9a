"""What each choice of the recipe does to validation Dice, and what it costs.

    python tests/benchmarks/recipe.py --dataset-dir data/CHASE_DB1 --output recipe.csv --jobs 2 --max_epochs 50

Trains ``train.json`` once for every row of ``recipe.json``, each with the keys of its row, and prints a table; no test
case is read. Each training has one thread, so that as many of them as there are cores may run beside each other, and
its cost is in minutes of one core, reading and validations left out. Rows that stand in the output file already are not
trained again; ``--rows`` names some. Further ``--key value`` pairs override the config of all.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from trainings import train

from drive_seg.configs import parse_overrides
from drive_seg.workflows import quiet

ROWS = Path(__file__).with_suffix(".json")


def row(name: str, overlay: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """One training, as a row of the output file."""
    torch.set_num_threads(1)
    quiet()
    course = train(overrides, overlay)
    return {
        "choice": name,
        "epochs": max(course.dice),
        "best_dice": f"{course.best:.4f}",
        "last_dice": f"{course.last:.4f}",
        "core_minutes": f"{course.core_seconds / 60:.2f}",
    }


def done(path: Path) -> dict[str, dict[str, str]]:
    """Rows of the output file by choice."""
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        return {entry["choice"]: entry for entry in csv.DictReader(file)}


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset-dir", type=Path, required=True, help="dataset in the DRIVE layout")
    parser.add_argument("--output", type=Path, required=True, help="CSV file, a row a choice; it is added to")
    parser.add_argument("--jobs", type=int, default=1, help="trainings beside each other, one thread each")
    parser.add_argument("--rows", nargs="+", help="choices to train; all of recipe.json by default")
    options, further = parser.parse_known_args()
    choices = json.loads(ROWS.read_text())
    overrides = {"dataset_dir": str(options.dataset_dir), **parse_overrides(further)}

    missing = [name for name in options.rows or choices if name not in done(options.output)]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for finished in as_completed([pool.submit(row, name, choices[name], overrides) for name in missing]):
            entry = finished.result()
            header = not options.output.exists()
            with options.output.open("a", newline="") as file:
                writer = csv.DictWriter(file, list(entry))
                if header:
                    writer.writeheader()
                writer.writerow(entry)
            print(f"{entry['choice']}: {entry['last_dice']}", file=sys.stderr)
    rows = done(options.output)
    print("| choice | epochs | validation Dice, best | at the end | minutes of a core |")
    print("| --- | --- | --- | --- | --- |")
    for name in choices:
        if name in rows:
            columns = ("epochs", "best_dice", "last_dice", "core_minutes")
            print(f"| {name} | " + " | ".join(rows[name][column] for column in columns) + " |")


if __name__ == "__main__":
    main()
