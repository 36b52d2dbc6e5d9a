"""MONAI's ``--tracking mlflow`` on the shipped training."""

from __future__ import annotations

import csv
from pathlib import Path

import mlflow
import pytest
from test_bundle import run_bundle, small_overrides


def expected(output: Path) -> dict[str, dict[int, float]]:
    """The same from history.csv; there is one iteration an epoch."""
    with (output / "history.csv").open() as file:
        rows = {int(row["epoch"]): row for row in csv.DictReader(file)}
    columns = {"train_loss": "loss", "val_dice": "val_dice", "lr_group_0": "learning_rate"}
    return {
        tracked: {epoch: pytest.approx(float(row[column]), rel=1e-6) for epoch, row in rows.items() if row[column]}
        for tracked, column in columns.items()
    }


@pytest.mark.slow
def test_mlflow_has_what_the_history_has(bundle: Path, phantoms: Path, tmp_path: Path) -> None:
    folders = ["--dataset_dir", str(phantoms), "--ckpt_dir", str(tmp_path), "--output_dir", str(tmp_path)]
    run_bundle("training", bundle, ["train"], *folders, *small_overrides(), "--batch_size", "5", "--tracking", "mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlruns.db")
    (run,) = client.search_runs([client.get_experiment_by_name("monai_experiment").experiment_id])
    assert run.info.status == "FINISHED"
    for name, values in expected(tmp_path).items():
        history = client.get_metric_history(run.info.run_id, name)
        assert {metric.step: metric.value for metric in history} == values
