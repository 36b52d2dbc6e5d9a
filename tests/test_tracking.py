"""MONAI's ``--tracking mlflow`` on the shipped training."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import monai.handlers.mlflow_handler
import pytest
from monai.bundle import create_workflow
from test_bundle import SMALL, run_bundle, small_overrides


class Client:
    """What MONAI's handler calls of MLflow's client, which like the real one takes numbers only."""

    def __init__(self, tracking_uri: str, logged: dict[str, dict[int, float]]) -> None:
        self.tracking_uri = tracking_uri
        self.logged = logged
        self.run = SimpleNamespace(info=SimpleNamespace(run_id="1"), data=SimpleNamespace(params={}))

    def get_experiment_by_name(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(experiment_id="1", lifecycle_stage="active")

    def search_runs(self, experiment: str) -> list[SimpleNamespace]:
        return []

    def create_run(self, **kwargs: Any) -> SimpleNamespace:
        return self.run

    def get_run(self, run_id: str) -> SimpleNamespace:
        return self.run

    def log_batch(self, run_id: str, metrics: list[tuple], params: list[tuple], tags: list) -> None:
        for key, value, _, step in metrics:
            self.logged.setdefault(key, {})[step] = float(value)

    def set_terminated(self, run_id: str, status: str) -> None:
        pass


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[int, float]]:
    """The values of every metric by step, from a stand-in for MLflow, which only the extra ``mlflow`` installs."""
    values: dict[str, dict[int, float]] = {}
    entities = SimpleNamespace(
        Metric=lambda *parts: parts,
        Param=lambda *parts: parts,
        LifecycleStage=SimpleNamespace(ACTIVE="active"),
        RunStatus=SimpleNamespace(FINISHED=1, to_string=lambda status: "FINISHED"),
    )
    stand_in = SimpleNamespace(entities=entities, MlflowClient=lambda tracking_uri: Client(tracking_uri, values))
    monkeypatch.setattr(monai.handlers.mlflow_handler, "mlflow", stand_in)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return values


def expected(output: Path) -> dict[str, dict[int, float]]:
    """The same from history.csv; there is one iteration an epoch."""
    with (output / "history.csv").open() as file:
        rows = {int(row["epoch"]): row for row in csv.DictReader(file)}
    return {
        tracked: {epoch: pytest.approx(float(row[column]), rel=1e-6) for epoch, row in rows.items()}
        for tracked, column in {"train_loss": "loss", "val_dice": "val_dice"}.items()
    }


def test_tracking_finds_trainer_and_validator(
    bundle: Path, phantoms: Path, tmp_path: Path, logged: dict[str, dict[int, float]]
) -> None:
    workflow = create_workflow(
        config_file=str(bundle / "configs" / "train.json"),
        workflow_type="train",
        bundle_root=str(bundle),
        tracking="mlflow",
        logging_file=False,
        **{**SMALL, "batch_size": 5, "dataset_dir": str(phantoms)},
        **{"ckpt_dir": str(tmp_path), "output_dir": str(tmp_path)},
    )
    workflow.run()
    assert workflow.parser.get_parsed_content("tracking_uri") == f"sqlite:///{tmp_path}/mlruns.db"
    assert logged.pop("lr_group_0").keys() == {1, 2}
    assert logged == expected(tmp_path)


@pytest.mark.slow
def test_mlflow_itself(bundle: Path, phantoms: Path, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="drive-seg[mlflow] is not installed; a stand-in is tested above")
    folders = ["--dataset_dir", str(phantoms), "--ckpt_dir", str(tmp_path), "--output_dir", str(tmp_path)]
    run_bundle("training", bundle, ["train"], *folders, *small_overrides(), "--batch_size", "5", "--tracking", "mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlruns.db")
    (run,) = client.search_runs([client.get_experiment_by_name("monai_experiment").experiment_id])
    assert run.info.status == "FINISHED"
    for name, values in expected(tmp_path).items():
        history = client.get_metric_history(run.info.run_id, name)
        assert {metric.step: metric.value for metric in history} == values
