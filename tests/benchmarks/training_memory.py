"""Resident memory of a long training: 200 short epochs with everything the shipped config attaches.

    python tests/benchmarks/training_memory.py

Trains a small ``train.json`` on phantoms, with validation every other epoch. Prints this process's resident memory at
some epochs, and its growth from the first of them to the last. Memory is read from /proc, so this runs only on Linux.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
from pathlib import Path
from typing import Any

from ignite.engine import Events
from monai.bundle import ConfigWorkflow

from drive_seg.configs import bundle_root, config_files
from drive_seg.phantom import write_phantom_dataset
from drive_seg.workflows import quiet

SMALL = {"base_channels": 4, "depth": 3, "fov_diameter": 128, "patch_size": [64, 64], "val_interval": 2}


def resident_mib() -> float:
    """Current resident memory of this process, MiB, from Linux's /proc/self/status."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


def memory_at(epochs: list[int], folder: Path) -> dict[int, float]:
    """Train up to the last of ``epochs``; return the resident memory in MiB at the end of each of them."""
    write_phantom_dataset(folder / "phantoms", training=5, test=1, seed=0, height=130, width=121)
    written = {key: str(folder / "out") for key in ("ckpt_dir", "output_dir")}
    workflow = ConfigWorkflow(
        config_file=config_files(bundle_root(), "train"),
        workflow_type="train",
        logging_file=False,
        bundle_root=str(bundle_root()),
        dataset_dir=str(folder / "phantoms"),
        max_epochs=max(epochs),
        **SMALL,
        **written,
    )
    workflow.initialize()
    trainer = workflow.parser.get_parsed_content("train#trainer")
    memory: dict[int, float] = {}

    def note(engine: Any) -> None:
        if engine.state.epoch in epochs:
            gc.collect()  # garbage that Python would free later is not growth
            memory[engine.state.epoch] = resident_mib()

    trainer.add_event_handler(Events.EPOCH_COMPLETED, note)
    workflow.run()
    return memory


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, nargs="+", default=[20, 50, 100, 150, 200], help="where to look")
    options = parser.parse_args()
    if not sys.platform.startswith("linux"):
        parser.error("resident memory is read from /proc, which only Linux has")
    quiet()
    with tempfile.TemporaryDirectory() as temporary:
        memory = memory_at(options.epochs, Path(temporary))
    print("| epoch | resident, MiB |")
    print("| --- | --- |")
    for epoch, mib in memory.items():
        print(f"| {epoch} | {mib:.1f} |")
    first, last = min(memory), max(memory)
    print(f"\ngrowth from epoch {first} to {last}: {memory[last] - memory[first]:+.1f} MiB")


if __name__ == "__main__":
    main()
