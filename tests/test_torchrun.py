"""Trainings and evaluations under torchrun: as one process does them, and after a process has died."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import one_thread
from ignite.engine import Events
from running import at_a_free_port, overrides, same_content, save_weights, state_of, table, together, workflow_of

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


def monai_run(
    bundle: Path, names: list[str], run_id: str, values: dict[str, Any], overlay: Path | None = None
) -> list[str]:
    """MONAI's command, as arguments of torchrun."""
    configs = [str(bundle / "configs" / f"{name}.json") for name in names] + ([str(overlay)] if overlay else [])
    arguments = [part for key, value in values.items() for part in (f"--{key}", str(value))]
    return [
        "-m",
        "monai.bundle",
        "run",
        run_id,
        "--bundle_root",
        str(bundle),
        "--config_file",
        str(configs),
        *arguments,
    ]


def torchrun(
    processes: int,
    bundle: Path,
    names: list[str],
    run_id: str,
    values: dict[str, Any],
    overlay: Path | None = None,
    fails: bool = False,
) -> str:
    """Run an id in several processes, which may be started again once; what they write to stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max_restarts=1"]
        + [f"--nproc_per_node={processes}", *monai_run(bundle, names, run_id, values, overlay)],
        capture_output=True,
        text=True,
        timeout=300,
        env=ENVIRONMENT,
    )
    assert (done.returncode != 0) == fails, done.stderr[-4000:]
    return done.stderr


def in_this_process(bundle: Path, names: list[str], run_id: str, values: dict[str, Any]) -> None:
    """As ``torchrun`` does in several; takes keys that the configs do not have, as MONAI's command does."""
    with one_thread():
        workflow_of(bundle, names, run_id=run_id, **values).run()


def test_two_processes_train_and_evaluate_as_one(bundle: Path, phantoms: Path, tmp_path: Path) -> None:
    """5 cases train, in batches of 4: neither the batch nor the number of processes goes into their number."""
    folders = {processes: tmp_path / str(processes) for processes in (1, 2)}
    for processes, folder in folders.items():
        values = overrides(phantoms, folder, max_epochs=3, precision="float32", batch_size=4, threshold=0.3)
        values["network_def#norm"] = "$None"  # batch statistics are of a process's own batch on CPUs
        if processes == 1:
            in_this_process(bundle, ["train"], "training", values)
        else:
            torchrun(processes, bundle, ["train", "multi_gpu_train"], "training", values)
    weights = [torch.load(folder / "last.pt", weights_only=True)["network"] for folder in folders.values()]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-6, rtol=1e-4, msg=name)
    histories = [table(folder / "history.csv") for folder in folders.values()]
    for row, other in zip(*histories, strict=True):
        assert float(row["loss"]) == pytest.approx(float(other["loss"]), rel=1e-5)
        assert float(row["val_dice"]) == pytest.approx(float(other["val_dice"]), abs=1e-5)

    for processes, folder in folders.items():
        values = overrides(phantoms, folder, precision="float32", section="training")
        values |= {"network_def#norm": "$None", "checkpoint": str(folders[1] / "model.pt")}
        if processes == 1:
            in_this_process(bundle, ["train", "evaluate"], "evaluating", values)
        else:
            torchrun(processes, bundle, ["train", "evaluate", "multi_gpu_evaluate"], "evaluating", values)
    scores = [table(folder / "metrics.csv") for folder in folders.values()]
    assert scores[0] == scores[1] and len(scores[0]) == 5, "every case once"


def test_two_processes_choose_the_threshold_that_one_chooses(bundle: Path, phantoms: Path, tmp_path: Path) -> None:
    weights = save_weights(tmp_path / "model.pt")
    choices = []
    for processes in (1, 2):
        values = overrides(phantoms, tmp_path / str(processes), precision="float32", section="training")
        values |= {"checkpoint": weights}
        if processes == 1:
            in_this_process(bundle, ["train", "evaluate", "choose_threshold"], "choosing", values)
        else:
            names = ["train", "evaluate", "multi_gpu_evaluate", "choose_threshold"]
            torchrun(processes, bundle, names, "choosing", values)
        choices.append(json.loads((tmp_path / str(processes) / "threshold.json").read_text()))
    assert choices[0] == choices[1] and len(choices[0]["cases"]) == 5


def test_a_case_that_one_machine_lacks(phantoms: Path, tmp_path: Path) -> None:
    """It would be left out, and those after it scored by the wrong process; and only the first process says so."""
    weights = save_weights(tmp_path / "model.pt")
    shutil.copytree(phantoms, tmp_path / "less")
    for file in (tmp_path / "less" / "test").glob("*/02_*"):
        file.unlink()
    command = ["-m", "drive_seg.cli", "evaluate", "--checkpoint", weights, "--base_channels=4"]
    command += ["--depth=3", "--output-dir", str(tmp_path / "out"), "--dataset-dir"]
    (code, said), (other_code, other_said) = together([*command, str(phantoms)], [*command, str(tmp_path / "less")])
    assert code == other_code == 1, (code, said[-2000:], other_code, other_said[-2000:])
    assert "drive-seg: cases: expected the same in all processes, got " in said, said[-2000:]
    assert "drive-seg:" not in other_said and not (tmp_path / "out" / "metrics.csv").exists()


class KilledOnce:
    """Kills one of the processes with ``kill -9`` at an iteration, unless torchrun has started them again."""

    def __init__(self, rank: int, iteration: int) -> None:
        self.rank = rank
        self.iteration = iteration

    def attach(self, engine: Any) -> None:
        if int(os.environ["RANK"]) == self.rank and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            engine.add_event_handler(Events.ITERATION_COMPLETED(once=self.iteration), self.kill)

    def kill(self, engine: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_torchrun_starts_killed_processes_again_to_the_same_end(
    bundle: Path, five_phantoms: Path, tmp_path: Path
) -> None:
    names = ["train", "multi_gpu_train"]
    values = {"batch_size": 2, "max_epochs": 6}  # a patch a process, two iterations an epoch
    torchrun(2, bundle, names, "training", overrides(five_phantoms, tmp_path / "whole", **values))

    # The first process writes the checkpoints. A start for which there is nothing to resume yet may ask to, too.
    for rank, others in ((0, {}), (1, {"resume": "true"})):
        killer = {"_target_": "test_torchrun.KilledOnce", "rank": rank, "iteration": 7}
        overlay = tmp_path / f"kill{rank}.json"
        overlay.write_text(json.dumps({"+train#handlers": [killer]}))
        killed = tmp_path / f"killed{rank}"
        written = torchrun(2, bundle, names, "training", overrides(five_phantoms, killed, **values, **others), overlay)
        assert f"exitcode: -9) local_rank: {rank}" in written
        assert same_content(state_of(tmp_path / "whole"), state_of(killed)), f"killed: {rank}"

    # A start that is refused is a failure to torchrun, too; when it starts the processes again it is refused again.
    before = {
        path.name: path.read_bytes() for path in (tmp_path / "whole").glob("*.*") if path.suffix in (".pt", ".csv")
    }
    another = overrides(five_phantoms, tmp_path / "whole", **{**values, "max_epochs": 8})
    assert "belongs to an earlier training" in torchrun(2, bundle, names, "training", another, fails=True)
    assert before == {name: (tmp_path / "whole" / name).read_bytes() for name in before} and len(before) == 3


@pytest.mark.slow
def test_two_machines_go_on_together_after_one_has_failed(bundle: Path, five_phantoms: Path, tmp_path: Path) -> None:
    """torchrun tells a machine of its own failures alone; here two of its agents stand for two machines."""
    values = {"batch_size": 2, "max_epochs": 12}
    names = ["train", "multi_gpu_train"]
    torchrun(2, bundle, names, "training", overrides(five_phantoms, tmp_path / "whole", **values))

    overlay = tmp_path / "kill.json"
    overlay.write_text(
        json.dumps({"+train#handlers": [{"_target_": "test_torchrun.KilledOnce", "rank": 0, "iteration": 7}]})
    )
    arguments = monai_run(bundle, names, "training", overrides(five_phantoms, tmp_path / "killed", **values), overlay)
    environment = {**ENVIRONMENT, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}

    def start(port: int) -> list[subprocess.Popen]:
        machine = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
        machine += ["--max_restarts=3", "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}"]
        machine += ["--rdzv-id=two machines", *arguments]
        return [subprocess.Popen(machine, stderr=subprocess.PIPE, text=True, env=environment) for _ in range(2)]

    machines = at_a_free_port(start, timeout=300)
    assert [code for code, _ in machines] == [0, 0], [said[-3000:] for _, said in machines]
    assert any("exitcode: -9" in said for _, said in machines)
    assert [row["epoch"] for row in table(tmp_path / "killed" / "history.csv")] == [str(n + 1) for n in range(12)]
    assert same_content(state_of(tmp_path / "whole"), state_of(tmp_path / "killed"))
