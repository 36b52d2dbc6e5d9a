from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from running import overrides, together, train

from drive_seg import distributed
from drive_seg.distributed import (
    _each_has_a_gpu,
    join_process_group,
    lost_contact,
    meet,
    same_for_all,
    share_of_batch,
    warn_of_launcher,
)
from drive_seg.errors import CommonError, DriveSegError, user_error
from drive_seg.phantom import write_phantom_dataset


@pytest.mark.parametrize(("batch_size", "world_size", "share"), [(4, 1, 4), (4, 2, 2), (4, 4, 1), (1, 1, 1)])
def test_each_process_takes_its_share_of_the_batch(batch_size: int, world_size: int, share: int) -> None:
    assert share_of_batch(batch_size, world_size) == share


@pytest.mark.parametrize(("batch_size", "world_size"), [(2, 4), (4, 3), (0, 2)])
def test_a_batch_that_cannot_be_shared_out(batch_size: int, world_size: int) -> None:
    with pytest.raises(DriveSegError, match=f"batch_size: expected a multiple of {world_size}, .* got {batch_size}"):
        share_of_batch(batch_size, world_size)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_of_nothing(batch_size: int) -> None:
    with pytest.raises(DriveSegError, match=f"batch_size: expected 1 or more patches, got {batch_size}"):
        share_of_batch(batch_size, 1)


def test_a_training_says_so_before_it_begins(bundle: Path, tmp_path: Path) -> None:
    write_phantom_dataset(tmp_path / "data", training=2, test=1, seed=0, height=130, width=121)
    with pytest.raises(Exception) as raised:
        train(bundle, overrides(tmp_path / "data", tmp_path / "out", batch_size=2, world_size=3))
    assert "batch_size: expected a multiple of 3" in str(user_error(raised.value))
    assert not (tmp_path / "out" / "last.pt").exists()


BUFFERS = """
import sys
from pathlib import Path
import torch
from ignite.engine import Engine
from torch import distributed, nn
from drive_seg.distributed import FirstProcessBuffers, leave_process_group, join_process_group

join_process_group()
network = nn.BatchNorm2d(2)
network.running_mean.fill_(distributed.get_rank() + 3.0)
network.num_batches_tracked.fill_(distributed.get_rank() + 7)
evaluator = Engine(lambda engine, batch: (network.running_mean.tolist(), int(network.num_batches_tracked)))
FirstProcessBuffers(network).attach(evaluator)
evaluator.run([0])
Path(sys.argv[1], str(distributed.get_rank())).write_text(str(evaluator.state.output))
leave_process_group()
"""


def test_all_processes_validate_with_the_batch_statistics_of_the_first(tmp_path: Path) -> None:
    (tmp_path / "buffers.py").write_text(BUFFERS)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*torchrun, str(tmp_path / "buffers.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["([3.0, 3.0], 7)"] * 2


def test_processes_that_have_different_values(monkeypatch: pytest.MonkeyPatch) -> None:
    same_for_all({"threshold": 0.5})  # one process alone

    def gather(part: tuple[str, dict[str, str]]) -> list[tuple[str, dict[str, str]]]:
        """What the processes of two machines have, of which the second has another threshold."""
        _, values = part
        return [("one", values), ("two", {**values, "threshold": "0.4"}), ("two", {**values, "threshold": "0.4"})]

    monkeypatch.setattr(distributed, "gather", gather)
    same_for_all({"flips": True})
    expected = "expected the same in all processes, got 0.5 in process 0 on one, 0.4 in processes 1, 2 on two"
    with pytest.raises(CommonError, match=f"^threshold: {re.escape(expected)}$"):
        same_for_all({"flips": True, "threshold": 0.5})


def test_a_process_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "JOINING", 0.6)
    store = torch.distributed.HashStore()
    store.set_timeout(timedelta(seconds=0.6))
    with pytest.raises(DriveSegError, match=r"^processes 1, 2 did not come within 0\.01 minutes, see the log there$"):
        _each_has_a_gpu(store, 0, 3, torch.device("cpu"))


@pytest.mark.parametrize("missing", [{"WORLD_SIZE": "2", "RANK": "0"}, {"MASTER_ADDR": "localhost"}], ids=len)
def test_an_environment_that_lacks_something(missing: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in missing.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DriveSegError, match=r"^expected torchrun, or RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT"):
        join_process_group(device="cpu")


@pytest.fixture
def first_of_three(monkeypatch: pytest.MonkeyPatch) -> torch.distributed.Store:
    """This process is the first one of three, which leave their notes in the store."""
    store = torch.distributed.HashStore()
    monkeypatch.setattr(distributed, "_store", store)
    for name, value in (("PATIENCE", 0.3), ("REPORT_EVERY", 0.1), ("LOOK_EVERY", 0.02)):
        monkeypatch.setattr(distributed, name, value)
    monkeypatch.setenv("WORLD_SIZE", "3")
    return store


def test_processes_that_work_are_waited_for(
    first_of_three: torch.distributed.Store, caplog: pytest.LogCaptureFixture
) -> None:
    first_of_three.set("met1", "")
    threading.Timer(1.0, first_of_three.set, ("met2", "")).start()
    assert meet(time.monotonic) == [] and "waiting for process 2" in caplog.text


def test_processes_that_have_vanished_are_given_up(first_of_three: torch.distributed.Store) -> None:
    first_of_three.set("met1", "")
    began = time.monotonic()
    assert meet(lambda: "as before") == [2] and 0.3 < time.monotonic() - began < 5


def test_a_store_that_is_lost(first_of_three: torch.distributed.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(self: object, keys: list[str]) -> bool:
        raise torch.distributed.DistNetworkError("Connection was likely closed")

    monkeypatch.setattr(torch.distributed.HashStore, "check", lost)
    assert meet(lambda: None) == [1, 2]


@pytest.mark.parametrize(
    ("environment", "warned"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}, True),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}, True),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "WORLD_SIZE": "4"}, False),
    ],
    ids=["alone", "srun", "another of srun", "mpirun", "torchrun in srun"],
)
def test_several_processes_without_torchrun(
    environment: dict[str, str], warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    warn_of_launcher()
    assert ("4 processes each do the whole work; expected one torchrun" in caplog.text) == warned


def test_alone_nobody_is_waited_for() -> None:
    assert meet(lambda: None) == []


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[pair.cc:538] Connection closed by peer [127.0.0.1]:1234\nmore"), True),
        (RuntimeError("Timed out waiting 1000ms for recv operation to complete"), True),
        (torch.distributed.DistBackendError("NCCL communicator was aborted"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("Connection reset by peer"), False),
    ],
)
def test_the_end_of_another_process_is_told(error: Exception, lost: bool) -> None:
    told = lost_contact(error)
    assert (told is not None) == lost
    if told is not None:
        assert str(told).startswith("another process of this run has ended or cannot be reached, see its log (")
        assert "more" not in str(told)


WAITING = """
import sys, time
from torch import distributed
from drive_seg.distributed import join_process_group

join_process_group(float(sys.argv[1]))
if distributed.get_rank() == 1:
    time.sleep(4)
distributed.barrier()
"""


@pytest.mark.parametrize(("longest", "meet"), [(1, False), (60, True)])
def test_how_long_a_process_waits_for_the_others(tmp_path: Path, longest: float, meet: bool) -> None:
    (tmp_path / "waiting.py").write_text(WAITING)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*torchrun, str(tmp_path / "waiting.py"), str(longest)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode == 0) is meet, done.stderr[-2000:]
    assert meet or "timed out" in done.stderr.lower() or "timeout" in done.stderr.lower()


GROUPS = """
import os, time
import ignite.distributed as idist
from torch import distributed
from drive_seg.distributed import leave_process_group, gather, join_process_group

destroy = distributed.destroy_process_group

def destroy_late(*group):
    if distributed.get_rank() == 0:
        time.sleep(0.3)
    destroy(*group)

distributed.destroy_process_group = destroy_late
place = os.environ["LOCAL_RANK"]
for number in range(3):
    join_process_group()
    assert gather(distributed.get_rank()) == [0, 1]
    if number == 2:
        assert idist.get_local_rank() == int(place) and os.environ["LOCAL_RANK"] == place
    leave_process_group()
    assert gather("alone") == ["alone"]
"""


def test_groups_one_after_the_other(tmp_path: Path) -> None:
    """As an evaluation after the choice of its threshold has them."""
    (tmp_path / "groups.py").write_text(GROUPS)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run([*torchrun, str(tmp_path / "groups.py")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    "environment", [{}, {"SLURM_JOB_ID": "1"}, {"SLURM_JOB_ID": "1", "SLURM_LOCALID": "0"}], ids=len
)
def test_groups_whose_store_is_served_by_the_first_process(tmp_path: Path, environment: dict[str, str]) -> None:
    """As on several machines; and in a job of SLURM, whose word for the local rank ignite would take."""
    (tmp_path / "groups.py").write_text(GROUPS)
    for code, said in together([str(tmp_path / "groups.py")], [str(tmp_path / "groups.py")], **environment):
        assert code == 0, said[-2000:]


@pytest.mark.parametrize(("uuids", "each"), [(["a", "b"], True), (["a", "a"], False), (["a", None], False)])
def test_nccl_needs_a_gpu_for_each_process(
    uuids: list[str | None], each: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever number a process's GPU has: with CUDA_VISIBLE_DEVICES every process may call its own 0."""
    store = torch.distributed.HashStore()
    here = threading.local()
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=here.uuid))

    def ask(rank: int) -> bool:
        here.uuid = uuids[rank]
        device = torch.device("cpu" if here.uuid is None else "cuda:0")
        return _each_has_a_gpu(store, rank, len(uuids), device)

    with ThreadPoolExecutor(len(uuids)) as pool:
        assert list(pool.map(ask, range(len(uuids)))) == [each] * len(uuids)


def test_devices_that_processes_cannot_share_the_work_on() -> None:
    with pytest.raises(
        DriveSegError, match=r"^device: expected cpu or cuda where processes share the work, got mps \("
    ):
        join_process_group(device="mps")
