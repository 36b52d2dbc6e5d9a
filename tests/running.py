"""Small runs of the shipped configs, in this process and in others, and what they leave, for several test files."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import finding_some, small
from conftest import ROOT
from monai.bundle import ConfigWorkflow
from monai.transforms import RandLambda

from drive_seg import distributed
from drive_seg.cli import main
from drive_seg.workflows import run_workflow

SCHEMA = ROOT / "tests" / "data" / "metadata_schema.json"
SMALL = {
    "base_channels": 4,
    "depth": 3,
    "fov_diameter": 128,
    "patch_size": [64, 64],
    "max_epochs": 2,
    "val_interval": 1,
    "warmup_steps": 2,
}
"""Of a short training."""
SMALL_NETWORK = {"base_channels": 4, "depth": 3, "fov_diameter": 128, "precision": "float32"}
"""Of an evaluation."""


def small_overrides() -> list[str]:
    """``SMALL`` on a command line."""
    return [part for key, value in SMALL.items() for part in (f"--{key}", json.dumps(value))]


def overrides(dataset: Path, output: Path, **others: Any) -> dict[str, Any]:
    """Of a training of four epochs with all its files in one folder."""
    folders = {"dataset_dir": str(dataset), "ckpt_dir": str(output), "output_dir": str(output)}
    return {**SMALL, "max_epochs": 4, **folders, **others}


def train(bundle: Path, values: dict[str, Any]) -> None:
    run_workflow(bundle, ["train"], "training", values)


def workflow_of(bundle: Path, configs: Sequence[str | Path], **values: Any) -> ConfigWorkflow:
    """MONAI's workflow, initialized, of the bundle's configs by name and of overlays by path."""
    files = [str(config if isinstance(config, Path) else bundle / "configs" / f"{config}.json") for config in configs]
    kind = "infer" if configs[0] == "inference" else "train"
    values = {"bundle_root": str(bundle), **values}
    workflow = ConfigWorkflow(config_file=files, workflow_type=kind, logging_file=False, **values)
    workflow.initialize()
    return workflow


def run_bundle(run_id: str, bundle: Path, files: list[str], *overrides: str) -> str:
    """Run an id with MONAI's own command; what it writes to stdout and stderr."""
    configs = [str(bundle / "configs" / f"{name}.json") for name in files]
    done = subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", run_id, "--bundle_root", str(bundle)]
        + ["--config_file", configs[0] if len(configs) == 1 else str(configs), *overrides],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def succeeds(arguments: list[str]) -> None:
    """Run a command that must not fail."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert not stop.value.code, stop.value.code


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail, and return the one sentence it gives."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    message = str(stop.value.code)
    assert message.startswith("drive-seg: ") and "\n" not in message, message
    assert "Traceback" not in capsys.readouterr().err
    return message


def save_weights(path: Path, seed: int = 0, **arguments: Any) -> str:
    """Weights of a small network that has learnt nothing, but thinks some pixels vessels."""
    network = finding_some(small(seed, **{"base_channels": 4, "depth": 3, **arguments}))
    torch.save(network.state_dict(), path)
    return str(path)


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open() as file:
        return list(csv.DictReader(file))


def state_of(folder: Path) -> dict[str, Any]:
    """What a training has left in its folder."""
    return {
        "history": table(folder / "history.csv"),
        "cases": json.loads((folder / "model.json").read_text()),
        **{name: torch.load(folder / name, weights_only=True) for name in ("last.pt", "model.pt")},
    }


def same_content(one: Any, other: Any) -> bool:
    """Bit for bit, but for the seconds an epoch took and the run of torchrun it was in."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            same_content(one[key], other[key]) for key in one if key not in ("seconds", "job")
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same_content, one, other))
    return bool(one == other)


def names_of(folder: Path) -> set[str]:
    """The names of a training's files, but for TensorBoard's, which differ from run to run."""
    return {path.name for path in folder.iterdir() if "tfevents" not in path.name}


class AddNoise(RandLambda):
    """Adds a random number, from the random state that MONAI gives its transforms."""

    def __call__(self, data: float) -> float:
        return data + float(self.R.uniform())


def another_in_the_second_process(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were a second process, of which the value of this name differs."""

    def gather(part: tuple[str, dict[str, str]]) -> list[tuple[str, dict[str, str]]]:
        host, values = part
        return [part, (host, {**values, **({name: "another"} if name in values else {})})]

    monkeypatch.setattr(distributed, "gather", gather)


def at_a_free_port(start: Callable[[int], list[subprocess.Popen]], timeout: float = 120) -> list[tuple[int, str]]:
    """Exit codes of processes that meet at a port, and what each wrote to stderr; those that take longer are killed.

    A second time if somebody else has taken the port before they did.
    """

    def ended(process: subprocess.Popen) -> tuple[int, str]:
        try:
            said = process.communicate(timeout=timeout)[1]
        except subprocess.TimeoutExpired:
            process.kill()
            said = process.communicate()[1]
        return process.returncode, said

    for _ in range(2):
        with socket.socket() as listener:
            listener.bind(("localhost", 0))
            port = listener.getsockname()[1]
        processes = start(port)
        try:
            with ThreadPoolExecutor(len(processes)) as pool:
                outcomes = list(pool.map(ended, processes))
        finally:
            for process in processes:
                process.kill()
        if not any(code and "address already in use" in said.lower() for code, said in outcomes):
            break
    return outcomes


def together(*commands: list[str], **environment: str) -> list[tuple[int, str]]:
    """Exit codes of Python commands that are processes 0, 1, … of one run, and what each wrote to stderr."""
    number = str(len(commands))

    def start(port: int) -> list[subprocess.Popen]:
        shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        shared |= {"WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number, "OMP_NUM_THREADS": "1"}
        return [
            subprocess.Popen(
                [sys.executable, *command],
                env={**os.environ, **shared, **environment, "RANK": rank, "LOCAL_RANK": rank},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank, command in zip(map(str, range(len(commands))), commands, strict=True)
        ]

    return at_a_free_port(start)
