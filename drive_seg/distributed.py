"""Training and evaluation in several processes, as torchrun starts them."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import distributed, nn

from drive_seg.devices import best_device
from drive_seg.errors import CommonError, DriveSegError, first_cause
from drive_seg.settings import where_they_differ

__all__ = [
    "FirstProcessBuffers",
    "from_first",
    "gather",
    "get_rank",
    "get_world_size",
    "join_process_group",
    "leave_process_group",
    "lost_contact",
    "meet",
    "restart_count",
    "same_for_all",
    "share_of_batch",
    "torchrun_job",
    "warn_of_launcher",
]

JOINING = 600.0
"""Seconds that processes wait for each other to come: starting takes less than a minute, even on a slow disk."""

PATIENCE = 3600.0
"""Seconds without any sign of life after which a process is given up; a photograph takes minutes at most."""

REPORT_EVERY = 300.0
LOOK_EVERY = 0.5
"""Seconds between reports about who is waited for, and between looks whether they have come."""

_logger = logging.getLogger(__name__)

_groups = itertools.count()
"""Numbers of the process groups joined one after the other, the same in all processes."""

_store: distributed.Store | None = None
"""Where the processes of the present group leave notes for each other."""


def join_process_group(timeout: float | None = None, device: torch.device | str | None = None) -> None:
    """Join the process group that torchrun's environment describes.

    Over NCCL where each process has a GPU; over gloo on CPUs and where processes share a GPU. A GPU without a number,
    ``cuda``, is this process's own from then on.

    Args:
        timeout: how long a process waits for the others once all have joined, seconds; None: torch's own, minutes.
        device: where this process computes; None: ``best_device``.

    Raises:
        DriveSegError: if the device is neither a CPU nor a CUDA GPU, the environment does not say how to find the other
            processes, or one of them does not come.
    """
    global _store
    if distributed.is_initialized():
        return
    device = best_device() if device is None else torch.device(device)
    if device.type not in ("cpu", "cuda"):
        raise DriveSegError(f"device: expected cpu or cuda where processes share the work, got {device} (--device cpu)")
    if device.type == "cuda":
        torch.cuda.set_device(best_device() if device.index is None else device)
    if "SLURM_JOB_ID" in os.environ and "LOCAL_RANK" in os.environ:
        os.environ["SLURM_LOCALID"] = os.environ["LOCAL_RANK"]  # which ignite takes in place of torchrun's
    store, rank, world_size = _rendezvous()
    store.set_timeout(timedelta(seconds=JOINING))
    if os.environ.get("LOCAL_WORLD_SIZE") == str(world_size):
        # torchrun keeps its store across restarts, and restarted processes would look for each other at the addresses
        # of the dead ones. Several machines count their restarts separately, so this does not work there.
        store = distributed.PrefixStore(f"restart{restart_count()}", store)
    # The addresses of a group that has been left are of no use to the next one, either.
    store = distributed.PrefixStore(f"group{next(_groups)}", store)
    backend = "nccl" if _each_has_a_gpu(store, rank, world_size, device) else "gloo"
    longest = None if timeout is None else timedelta(seconds=timeout)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=longest)
    _store = store


@functools.cache
def _rendezvous() -> tuple[distributed.Store, int, int]:
    """The store over which the processes find each other, this process's rank and how many they are.

    Once only: where a process of ours serves the store, it would end with that process's first group, while others look
    for it to form the next one.
    """
    try:
        return next(distributed.rendezvous("env://", timeout=timedelta(seconds=JOINING)))
    except ValueError as error:
        raise DriveSegError(
            f"expected torchrun, or RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in the environment ({error})"
        ) from error
    except distributed.DistError as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = f"{error}".split("\n")[0]
        raise DriveSegError(
            f"{place}: the processes cannot find each other there, see their logs ({reason})"
        ) from error


def _each_has_a_gpu(store: distributed.Store, rank: int, world_size: int, device: torch.device) -> bool:
    """Whether every process has a GPU of its own, without which NCCL refuses; all give the same answer."""
    own = ""
    if device.type == "cuda":
        # Not its number: each process may see one GPU alone, and call it 0.
        own = f"{socket.gethostname()} {torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
    store.set(f"gpu{rank}", own)
    try:
        gpus = [store.get(f"gpu{other}") for other in range(world_size)]
    except distributed.DistStoreError as error:
        missing = [other for other in range(world_size) if not store.check([f"gpu{other}"])]
        raise DriveSegError(
            f"{_named(missing)} did not come within {JOINING / 60:g} minutes, see the log there"
        ) from error
    return all(gpus) and len(set(gpus)) == world_size


def _named(ranks: Sequence[int]) -> str:
    return f"process{'es' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def leave_process_group(together: bool = True) -> None:
    """Leave the process group, all processes together, because the first may still be writing.

    Args:
        together: False leaves at once, after an error; but not over NCCL, which would wait for the others.
    """
    global _store
    if distributed.is_initialized() and (together or distributed.get_backend() == "gloo"):
        if together:
            distributed.barrier()
        distributed.destroy_process_group()
        _store = None


def gather(part: Any) -> list[Any]:
    """Every process's ``part``, by rank, in all processes; only this one's if there are no others.

    Args:
        part: anything that can be pickled.
    """
    if not distributed.is_available() or not distributed.is_initialized():
        return [part]
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, part)
    return parts


def from_first(part: Any) -> Any:
    """The first process's ``part`` in all processes; this one's if there are no others.

    Args:
        part: anything that can be pickled.
    """
    parts = [part]
    if distributed.is_available() and distributed.is_initialized():
        distributed.broadcast_object_list(parts, src=0)
    return parts[0]


def same_for_all(values: Mapping[str, Any]) -> None:
    """Check that all processes have the same values, such as weights and cases: machines may have different files.

    Args:
        values: by name, compared as texts.

    Raises:
        CommonError: in all processes, naming the first value that differs, and who has another than the first process.
    """
    parts = gather((socket.gethostname(), {name: f"{value}" for name, value in values.items()}))
    first_host, expected = parts[0]
    for name, value in expected.items():
        others = [rank for rank, (_, theirs) in enumerate(parts) if theirs.get(name) != value]
        if others:
            hosts = sorted({parts[rank][0] for rank in others})
            one, other = where_they_differ(value, f"{parts[others[0]][1].get(name)}")
            raise CommonError(
                f"{name}: expected the same in all processes, got {one} in process 0 on {first_host}, {other} in "
                f"{_named(others)} on {', '.join(hosts)}"
            )


def meet(progress: Callable[[], Any]) -> list[int]:
    """Wait for the other processes, which may take any time as long as there is progress.

    Unlike after a barrier, one that has vanished, as after a power cut, keeps nobody waiting for ever.

    Args:
        progress: returns what changes while anybody works, such as the sizes of files.

    Returns:
        Ranks of the processes that were given up, because nothing has changed for ``PATIENCE`` or they cannot be
        reached; of none if all have come.
    """
    if _store is None:  # alone, or in a group that somebody else has formed
        gather(None)
        return []
    rank = get_rank()
    waiting = [other for other in range(get_world_size()) if other != rank]
    seen, changed, told = None, 0.0, time.monotonic()
    try:
        _store.set(f"met{rank}", "")
        while waiting := [other for other in waiting if not _store.check([f"met{other}"])]:
            now, state = time.monotonic(), progress()
            if state != seen or not changed:
                seen, changed = state, now
            if now - changed > PATIENCE:
                break
            if rank == 0 and now - told > REPORT_EVERY:
                told = now
                _logger.warning("waiting for %s", _named(waiting))
            time.sleep(LOOK_EVERY)
    except distributed.DistError:  # whoever keeps the notes has ended or cannot be reached
        pass
    return waiting


_LOST = ("Connection closed by peer", "Connection reset", "Timed out waiting", "Application timeout")
"""Messages of gloo about a process that has ended."""


def lost_contact(error: BaseException) -> DriveSegError | None:
    """What to tell the user if an error comes from another process's end; None if it does not."""
    cause = first_cause(error)
    if not isinstance(cause, RuntimeError):
        return None
    reason = f"{cause}"
    if not isinstance(cause, distributed.DistError) and not any(words in reason for words in _LOST):
        return None
    first = reason.split("\n")[0]
    return DriveSegError(f"another process of this run has ended or cannot be reached, see its log ({first})")


def share_of_batch(batch_size: int, world_size: int) -> int:
    """How many patches of a batch each process takes.

    Args:
        batch_size: patches per step, over all processes.
        world_size: number of processes.

    Raises:
        DriveSegError: if the batch cannot be shared out evenly: its size would not be the one asked for.
    """
    if batch_size < 1 or batch_size % world_size:
        raise DriveSegError(
            f"batch_size: expected a multiple of {world_size}, the number of processes that share it, got {batch_size}"
            if world_size > 1
            else f"batch_size: expected 1 or more patches, got {batch_size}"
        )
    return batch_size // world_size


def get_world_size() -> int:
    """How many processes torchrun has started on all machines; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def get_rank() -> int:
    """This process's rank, its number from 0; 0 without torchrun."""
    return int(os.environ.get("RANK", 0))


def warn_of_launcher() -> None:
    """Warn, in the first of them, if srun or mpirun has started several processes that know nothing of each other."""
    if "WORLD_SIZE" in os.environ:
        return
    for size, rank in (("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"), ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")):
        tasks = int(os.environ.get(size, 1))
        if tasks > 1 and os.environ.get(rank) == "0":
            _logger.warning("%d processes each do the whole work; expected one torchrun on each machine", tasks)


def restart_count() -> int:
    """How often torchrun has restarted the processes after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def torchrun_job() -> str | None:
    """Identifier of this run of torchrun, the same in all its restarts; None without torchrun.

    On several machines it is just the run's ``--rdzv-id``, which must then be different for each run.
    """
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    if run is None or os.environ.get("LOCAL_WORLD_SIZE") != os.environ.get("WORLD_SIZE"):
        return run
    return f"{run} {socket.gethostname()} {os.getppid()}"


class FirstProcessBuffers:
    """Gives all processes the first one's batch statistics before they validate.

    On CPUs every process has its own, and together they would score a network that is never saved.

    Args:
        network: network whose buffers are broadcast.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Attach to the evaluator."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Broadcast."""
        for buffer in self.network.buffers():
            distributed.broadcast(buffer, src=0)
