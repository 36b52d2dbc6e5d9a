"""MONAI's ``--tracking mlflow`` on the shipped training and evaluation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import mlflow
import pytest
from running import SMALL_NETWORK, run_bundle, save_weights, small_overrides, table


def tracked_run(output: Path) -> tuple[mlflow.MlflowClient, Any]:
    """The one run that MLflow has recorded in an output folder."""
    client = mlflow.MlflowClient(f"sqlite:///{output}/mlruns.db")
    (run,) = client.search_runs([client.get_experiment_by_name("monai_experiment").experiment_id])
    return client, run


def expected(output: Path) -> dict[str, dict[int, float]]:
    """The same from history.csv; there is one iteration an epoch."""
    rows = {int(row["epoch"]): row for row in table(output / "history.csv")}
    found = {
        tracked: {epoch: pytest.approx(float(row[column]), rel=1e-6) for epoch, row in rows.items() if row[column]}
        for tracked, column in {"train_loss": "loss", "val_dice": "val_dice", "lr_group_0": "learning_rate"}.items()
    }
    # MONAI asks for the learning rate after the schedule has set that of the next step.
    found["lr_group_0"] = {epoch - 1: rate for epoch, rate in found["lr_group_0"].items() if epoch > 1}
    return found


@pytest.mark.slow
def test_mlflow_has_what_the_history_has(bundle: Path, phantoms: Path, tmp_path: Path) -> None:
    folders = ["--dataset_dir", str(phantoms), "--ckpt_dir", str(tmp_path), "--output_dir", str(tmp_path)]
    run_bundle("training", bundle, ["train"], *folders, *small_overrides(), "--batch_size", "5", "--tracking", "mlflow")
    client, run = tracked_run(tmp_path)
    assert run.info.status == "FINISHED"
    for name, values in expected(tmp_path).items():
        history = client.get_metric_history(run.info.run_id, name)
        recorded = {metric.step: metric.value for metric in history}
        if name == "lr_group_0":
            del recorded[max(recorded)]  # of a step that is not taken
        assert recorded == values


@pytest.mark.slow
def test_mlflow_has_the_means_of_an_evaluation(bundle: Path, phantoms: Path, tmp_path: Path) -> None:
    save_weights(tmp_path / "model.pt", seed=2)
    folders = ["--dataset_dir", str(phantoms), "--ckpt_dir", str(tmp_path), "--output_dir", str(tmp_path)]
    small = [part for key, value in SMALL_NETWORK.items() for part in (f"--{key}", str(value))]
    run_bundle("evaluating", bundle, ["train", "evaluate"], *folders, *small, "--tracking", "mlflow")
    (means,) = (
        row["per_image"]
        for row in json.loads((tmp_path / "summary.json").read_text())["rows"]
        if (row["comparison"], row["region"]) == ("prediction", "fov")
    )
    _, run = tracked_run(tmp_path)
    assert run.data.metrics["dice"] > 0
    defined = {name: value for name, value in run.data.metrics.items() if not math.isnan(value)}
    assert defined == {name: pytest.approx(of["mean"]) for name, of in means.items() if of["mean"] is not None}
