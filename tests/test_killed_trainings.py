"""Trainings that are killed, at chosen and at random moments, and end as those that were not."""

from __future__ import annotations

import multiprocessing
import random
import signal
import statistics
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from running import names_of, overrides, same_content, save_weights, state_of, table, train

from drive_seg import checkpoints, learnt_cases
from drive_seg.files import sha256
from drive_seg.learnt_cases import write_learnt_cases
from drive_seg.training_state import TrainingState


def start_weights(folder: Path) -> None:
    """Weights to fine-tune in place, and their list."""
    folder.mkdir()
    save_weights(folder / "model.pt", seed=5)
    write_learnt_cases(folder / "model.pt", {"training": ["0123456789abcdef"], "validation": []})


@pytest.mark.parametrize(("where", "name", "then"), [
    (checkpoints, "save_checkpoint", lambda content, path: Path(path).name == "model.pt"),
    (learnt_cases, "write_learnt_cases", lambda *arguments: True),
    (TrainingState, "save", lambda state, engine: engine.state.epoch == 1),
], ids=["before model.pt", "before model.json", "before last.pt"])  # fmt: skip
def test_fine_tuning_in_place_that_is_killed_in_its_first_epoch(
    bundle: Path,
    five_phantoms: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: Any,
    name: str,
    then: Callable[..., bool],
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        start_weights(folder)
    train(bundle, overrides(five_phantoms, whole, max_epochs=2, pretrained=str(whole / "model.pt")))
    values = overrides(five_phantoms, killed, max_epochs=2, pretrained=str(killed / "model.pt"))
    as_it_is = getattr(where, name)

    def killed_then(*arguments: Any) -> None:
        if then(*arguments):
            raise KeyboardInterrupt
        as_it_is(*arguments)

    monkeypatch.setattr(where, name, killed_then)
    with pytest.raises(KeyboardInterrupt):
        train(bundle, values)
    monkeypatch.undo()
    train(bundle, {**values, "resume": True})
    assert same_content(state_of(whole), state_of(killed)) and names_of(whole) == names_of(killed)


def replaced(path: Path, times: int, process: BaseProcess) -> None:
    """Wait until a process has replaced a file this many times; fails if it ends before."""
    before, until = content_of(path), time.monotonic() + 120
    while times:
        assert process.is_alive() and time.monotonic() < until, f"{path} was not replaced {times} times more"
        time.sleep(0.005)
        now = content_of(path)
        times -= now != before
        before = now


def content_of(path: Path) -> int | None:
    """When the content of a file was written."""
    return path.stat().st_mtime_ns if path.exists() else None


def train_once(bundle: str, dataset: str, output: str) -> None:
    torch.set_num_threads(1)
    values = {"max_epochs": 100, "resume": True, "pretrained": f"{output}/model.pt"}
    train(Path(bundle), overrides(Path(dataset), Path(output), **values))


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_the_same(bundle: Path, five_phantoms: Path, tmp_path: Path) -> None:
    """While it starts, or in the course of an epoch after it has saved its state up to three times."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["drive_seg.workflows", "test_killed_trainings"])

    def start(output: Path) -> BaseProcess:
        process = context.Process(target=train_once, args=(str(bundle), str(five_phantoms), str(output)))
        process.start()
        return process

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        start_weights(folder)
    warm_up = context.Process()  # the server's imports take longer than those of a process it forks
    warm_up.start()
    warm_up.join()
    begun = time.monotonic()
    process = start(whole)
    replaced(whole / "last.pt", 1, process)
    start_up = time.monotonic() - begun
    process.join(240)
    assert process.exitcode == 0

    epoch = statistics.median(float(row["seconds"]) for row in table(whole / "history.csv"))
    moments = random.Random(0)
    for _ in range(20):
        process = start(killed)
        states = moments.randint(0, 3)
        replaced(killed / "last.pt", states, process)
        time.sleep(moments.uniform(0, epoch if states else start_up))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the training is too short to be killed in the middle"
    process = start(killed)
    process.join(240)
    assert process.exitcode == 0
    assert same_content(state_of(whole), state_of(killed))
    (kept,) = killed.glob("model_????????.pt")
    assert kept.stem == f"model_{sha256(kept)[:8]}", "whole, and not of this training"
    assert names_of(whole) == names_of(killed), "no half-written file is left"
