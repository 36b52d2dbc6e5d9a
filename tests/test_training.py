"""Whole trainings with the shipped config: resumed, refused, ended early, compiled."""

from __future__ import annotations

import json
import re
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.training_memory import memory_at
from builders import small
from ignite.engine import Events
from running import (
    names_of,
    overrides,
    refused,
    same_content,
    save_weights,
    small_overrides,
    state_of,
    succeeds,
    table,
    train,
    workflow_of,
)

from drive_seg.configs import parse_overrides
from drive_seg.errors import DriveSegError, user_error
from drive_seg.workflows import run_workflow


def break_off(bundle: Path, values: dict[str, Any], iteration: int) -> None:
    """Train up to an iteration, as if Ctrl-C were pressed in it."""
    workflow = workflow_of(bundle, ["train"], **values)

    def press(engine: Any) -> None:
        raise KeyboardInterrupt

    workflow.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=iteration), press)
    with pytest.raises(KeyboardInterrupt):
        workflow.run()


def test_resumed_training_ends_the_same_bit_for_bit(bundle: Path, five_phantoms: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    values = {"max_epochs": 6, "batch_size": 2, "threshold": 0.3}  # a Dice that rises and falls from epoch to epoch
    train(bundle, overrides(five_phantoms, whole, **values))
    assert len({row["val_dice"] for row in table(whole / "history.csv")}) > 3

    break_off(bundle, overrides(five_phantoms, parts, **values), 9)
    progress = torch.load(parts / "last.pt", weights_only=True)["progress"]
    assert progress["epoch"] == 4 and progress["best_metric"] > 0
    (parts / "history.csv").write_text("epoch;loss\n1;0,5\n")  # as Excel may save it

    train(bundle, overrides(five_phantoms, parts, resume=True, **values))
    assert same_content(state_of(whole), state_of(parts))


def test_a_folder_that_is_named_like_a_number_or_an_expression(
    bundle: Path, five_phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, expected in ((2026, "2026"), ("$@output_dir + '/weights'", "out/weights")):
        values = {**overrides(five_phantoms, tmp_path / "out", max_epochs=1), "ckpt_dir": folder}
        run_workflow(bundle, ["train"], "training", values)
        assert (tmp_path / expected / "model.pt").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2026", "out"]


def test_a_loss_of_monais_own_as_the_model_card_has_it(bundle: Path, five_phantoms: Path, tmp_path: Path) -> None:
    card = (bundle / "docs" / "README.md").read_text()
    (loss,) = (value for line in card.splitlines() for value in re.findall(r'--loss "(.*)"', line))
    train(bundle, overrides(five_phantoms, tmp_path, max_epochs=1, **parse_overrides(["--loss", loss])))
    (row,) = table(tmp_path / "history.csv")
    assert 0 < float(row["loss"]) < 1, "Dice alone"


def test_a_different_seed_gives_different_weights(bundle: Path, five_phantoms: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        run_workflow(
            bundle, ["train"], "training", overrides(five_phantoms, tmp_path / str(seed), max_epochs=1, seed=seed)
        )
    assert not same_content(state_of(tmp_path / "0"), state_of(tmp_path / "1"))


def test_a_finished_training_is_not_overwritten(bundle: Path, five_phantoms: Path, tmp_path: Path) -> None:
    train(bundle, overrides(five_phantoms, tmp_path, max_epochs=1))
    before = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(Exception) as raised:
        train(bundle, overrides(five_phantoms, tmp_path, max_epochs=1))
    assert "earlier training" in str(user_error(raised.value))
    assert (tmp_path / "last.pt").read_bytes() == before


def test_two_trainings_do_not_share_a_folder(bundle: Path, five_phantoms: Path, tmp_path: Path) -> None:
    from filelock import FileLock

    with FileLock(tmp_path / ".last.pt.lock"), pytest.raises(Exception) as raised:
        train(bundle, overrides(five_phantoms, tmp_path))
    assert "another run is writing into this folder" in str(user_error(raised.value))


@pytest.mark.parametrize(("key", "value", "said"), [
    ("base_channels", 8, "base_channels: expected 4, with which the training was begun, got 8"),
    ("network_def#in_channels", 4, "network: expected"),
])  # fmt: skip
def test_resuming_with_another_network_is_refused(
    bundle: Path, five_phantoms: Path, tmp_path: Path, key: str, value: int, said: str
) -> None:
    train(bundle, overrides(five_phantoms, tmp_path, max_epochs=1))
    with pytest.raises(Exception) as raised:
        train(bundle, overrides(five_phantoms, tmp_path, **{"max_epochs": 1, "resume": True, key: value}))
    assert said in str(user_error(raised.value))


def test_resuming_with_other_settings_is_refused(bundle: Path, five_phantoms: Path, tmp_path: Path) -> None:
    """The schedule comes back with the state, so that another rate would do nothing."""
    train(bundle, overrides(five_phantoms, tmp_path, max_epochs=1))
    changes = {
        "learning_rate": 0.001, "max_epochs": 2, "seed": 1, "patch_size": [32, 48], "fov_diameter": 100,
        "optimizer#momentum": 0.5, "optimizer#weight_decay": 0.0, "threshold": 0.4, "flips": True,
        "loss#lambda_dice": 0.0, "lr_scheduler#warmup_multiplier": 0.5,
    }  # fmt: skip
    others = [
        ("train#trainer#iteration_update#max_gradient_norm", 1.0, "training_step", "max_gradient_norm=1.0"),
        ("train#random_geometry#affine#prob", 0.125, "augmentation", "prob=0.125"),
        ("train#sampler#shuffle", False, "shuffle", "False"),
        ("validate#key_metric#val_dice#metric_fn#include_background", True, "key_metric", "include_background=True"),
        ("validate#dataset#data#section", "training", "validation_cases", "['21 ("),
    ]
    for key, value in changes.items():
        with pytest.raises(Exception) as raised:
            train(bundle, overrides(five_phantoms, tmp_path, resume=True, **{"max_epochs": 1, key: value}))
        assert f"last.pt: {key.partition('#')[0]}: expected" in str(user_error(raised.value))
    for key, value, name, shown in others:
        with pytest.raises(Exception) as raised:
            train(bundle, overrides(five_phantoms, tmp_path, resume=True, **{"max_epochs": 1, key: value}))
        assert f"last.pt: {name}: expected" in str(user_error(raised.value)) and shown in str(user_error(raised.value))
    others_are_free = {"val_interval": 3, "precision": "bfloat16", "compile": True, "device": "cpu"}
    train(bundle, overrides(five_phantoms, tmp_path, resume=True, max_epochs=1, **others_are_free))


@pytest.mark.parametrize(("epochs", "interval", "validated"), [(4, 3, ["3", "4"]), (1, 10, ["1"]), (4, 2, ["2", "4"])])
def test_the_last_epoch_is_validated(
    bundle: Path, five_phantoms: Path, tmp_path: Path, epochs: int, interval: int, validated: list[str]
) -> None:
    train(bundle, overrides(five_phantoms, tmp_path, max_epochs=epochs, val_interval=interval))
    assert [row["epoch"] for row in table(tmp_path / "history.csv") if row["val_dice"]] == validated
    assert (tmp_path / "model.pt").is_file()


def test_accumulated_gradients_give_no_warning_of_the_schedule(
    bundle: Path, five_phantoms: Path, tmp_path: Path
) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        train(bundle, overrides(five_phantoms, tmp_path, max_epochs=1, accumulation_steps=2))
    assert not any("lr_scheduler" in str(warning.message) for warning in told)


class StopAfter:
    """Ends the training, as ignite's ``EarlyStopHandler`` does, after an iteration or with the epoch it ends."""

    def __init__(self, iteration: int, with_epoch: bool) -> None:
        self.iteration = iteration
        self.with_epoch = with_epoch

    def attach(self, engine: Any) -> None:
        if self.with_epoch:
            engine.add_event_handler(Events.EPOCH_COMPLETED(once=self.iteration // 2), self.stop)
        else:
            engine.add_event_handler(Events.ITERATION_COMPLETED(once=self.iteration), self.stop)

    def stop(self, engine: Any) -> None:
        engine.terminate()


@pytest.mark.parametrize(("iteration", "with_epoch", "validated"), [
    (4, True, [False, True]),
    (5, False, [False, False]),
    (8, True, [False, False, True, False]),
    (9, False, [False, False, True, False]),
], ids=["after an epoch", "within one", "validated, after one", "validated, within one"])  # fmt: skip
def test_a_training_that_is_ended_early_is_validated_and_can_be_resumed(
    bundle: Path, five_phantoms: Path, tmp_path: Path, iteration: int, with_epoch: bool, validated: list[bool]
) -> None:
    whole, ended = tmp_path / "whole", tmp_path / "ended"
    values = {"max_epochs": 6, "val_interval": 3, "threshold": 0.3}  # the fourth epoch would be the best
    stop = {"_target_": "test_training.StopAfter", "iteration": iteration, "with_epoch": with_epoch}
    (tmp_path / "stop.json").write_text(json.dumps({"+train#handlers": [stop]}))
    workflow_of(bundle, ["train", tmp_path / "stop.json"], **overrides(five_phantoms, ended, **values)).run()
    assert (ended / "model.pt").is_file() and (ended / "model.json").is_file()
    history = table(ended / "history.csv")
    assert [row["val_dice"] != "" for row in history] == validated, "an unfinished epoch has no row"
    assert torch.load(ended / "last.pt", weights_only=True)["progress"]["epoch"] == len(history)

    train(bundle, overrides(five_phantoms, whole, **values))
    train(bundle, overrides(five_phantoms, ended, resume=True, **values))
    assert same_content(state_of(whole), state_of(ended))


def test_a_training_that_is_ended_as_it_starts_leaves_nothing(
    bundle: Path, five_phantoms: Path, tmp_path: Path
) -> None:
    workflow = workflow_of(bundle, ["train"], **overrides(five_phantoms, tmp_path))
    workflow.trainer.add_event_handler(Events.STARTED, workflow.trainer.terminate)
    workflow.run()
    assert names_of(tmp_path) == {".last.pt.lock"}


def fine_tuning(dataset: Path, output: Path, pretrained: Path) -> list[str]:
    """A command whose learning rate of 0 leaves the weights as they are."""
    folders = ["--dataset-dir", str(dataset), "--output-dir", str(output)]
    return ["train", *folders, *small_overrides(), "--learning_rate=0.0", f"--pretrained={pretrained}"]


def test_fine_tuning_starts_from_weights(phantoms: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_weights(tmp_path / "pretrained.pt", seed=5)
    succeeds(fine_tuning(phantoms, tmp_path / "mine", tmp_path / "pretrained.pt"))
    assert "the training starts from the weights of" in caplog.text
    pretrained, tuned = (torch.load(tmp_path / path, weights_only=True) for path in ("pretrained.pt", "mine/model.pt"))
    for name, _ in small(base_channels=4, depth=3).named_parameters():
        assert torch.equal(tuned[name], pretrained[name]), name


@pytest.mark.parametrize(("base_channels", "message"), [
    (16, "pretrained.pt: the weights do not fit the network (expected --base_channels 16"),
    (None, "pretrained.pt: there is no such checkpoint"),
])  # fmt: skip
def test_fine_tuning_from_what_does_not_fit(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], base_channels: int | None, message: str
) -> None:
    if base_channels is not None:
        save_weights(tmp_path / "pretrained.pt", base_channels=base_channels, depth=4)
    assert message in refused(fine_tuning(phantoms, tmp_path / "mine", tmp_path / "pretrained.pt"), capsys)
    assert not (tmp_path / "mine" / "model.pt").exists()


def test_a_training_without_a_key_metric_is_resumed(bundle: Path, five_phantoms: Path, tmp_path: Path) -> None:
    values = overrides(five_phantoms, tmp_path, **{"max_epochs": 2, "validate#evaluator#key_val_metric": None})
    for resume in (False, True):
        train(bundle, {**values, "resume": resume})
    assert [row["key_metric"] for row in table(tmp_path / "history.csv")] == ["", ""]


def test_another_key_metric_has_its_column(bundle: Path, five_phantoms: Path, tmp_path: Path) -> None:
    metric = {
        "val_distance": {
            "_target_": "IgniteMetricHandler",
            "metric_fn": {"_target_": "monai.metrics.MSEMetric"},
            "output_transform": "$monai.handlers.from_engine(['pred', 'label'])",
        }
    }
    train(bundle, overrides(five_phantoms, tmp_path, max_epochs=1, **{"validate#key_metric": metric}))
    (row,) = table(tmp_path / "history.csv")
    assert float(row["val_distance"]) > 0 and "val_dice" not in row


def test_folders_may_be_paths(bundle: Path, five_phantoms: Path, tmp_path: Path) -> None:
    values = overrides(five_phantoms, tmp_path, max_epochs=1)
    values |= {"ckpt_dir": tmp_path, "output_dir": tmp_path, "dataset_dir": five_phantoms, "bundle_root": bundle}
    runs = ((["train"], "training", "model.pt"), (["train", "evaluate"], "evaluating", "metrics.csv"))
    for names, run_id, written in runs:
        workflow_of(bundle, names, run_id=run_id, **values).run()
        assert (tmp_path / written).is_file()


@pytest.mark.parametrize(("val_interval", "message"), [
    (1, "the network gave pixels that are not a number"),
    (4, "expected a finite number"),
], ids=["validation", "loss"])  # fmt: skip
def test_a_network_that_gives_no_numbers_stops_the_run(
    bundle: Path, five_phantoms: Path, tmp_path: Path, val_interval: int, message: str
) -> None:
    values = overrides(five_phantoms, tmp_path, learning_rate=1e30, warmup_steps=0, batch_size=4)
    with pytest.raises(Exception) as raised:
        run_workflow(bundle, ["train"], "training", {**values, "val_interval": val_interval})
    assert isinstance(user_error(raised.value), DriveSegError)
    assert message in str(user_error(raised.value)) and "lower" in str(user_error(raised.value))
    assert not (tmp_path / "model.pt").exists()
    if val_interval > 1:
        weights = torch.load(tmp_path / "last.pt", weights_only=True)["network"]
        assert weights and all(value.isfinite().all() for value in weights.values())


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from Linux's /proc")
def test_memory_stays(tmp_path: Path) -> None:
    memory = memory_at([20, 80], tmp_path)
    assert memory[80] - memory[20] < 4, "MiB; keeping the 0.2 MiB of images of every epoch would add 11"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_a_compiled_training_goes_on_as_it_would_without_and_in_another_precision(
    bundle: Path, five_phantoms: Path, tmp_path: Path
) -> None:
    plain, compiled = tmp_path / "plain", tmp_path / "compiled"
    values = {"max_epochs": 3, "precision": "float32", "depth": 1, "learning_rate": 0.1}
    train(bundle, overrides(five_phantoms, plain, **values))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    try:
        break_off(bundle, overrides(five_phantoms, compiled, **values, compile=True), 3)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    finally:
        torch._dynamo.reset()
    for folder in (plain, compiled):
        assert torch.load(folder / "last.pt", weights_only=True)["network"].keys() == small().state_dict().keys()
    train(bundle, overrides(five_phantoms, compiled, **{**values, "precision": "bfloat16"}, resume=True))
    losses = [[float(row["loss"]) for row in table(folder / "history.csv")] for folder in (plain, compiled)]
    assert losses[1] == pytest.approx(losses[0], rel=0.01) and len(losses[0]) == 3
