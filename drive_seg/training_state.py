"""The state of a training, ``last.pt``: all that it needs to resume.

Whoever trains holds a lock on the folder, so that no other training writes into it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from ignite.engine import Engine, Events

from drive_seg import __version__
from drive_seg.checkpoints import load_checkpoint, save_checkpoint
from drive_seg.distributed import gather, restart_count, same_for_all, torchrun_job
from drive_seg.errors import DriveSegError, first_line
from drive_seg.files import keep, remove_leftovers, take_lock
from drive_seg.settings import where_they_differ

__all__ = ["TrainingState", "restarted"]

_logger = logging.getLogger(__name__)


class TrainingState:
    """Saves after every epoch what a training needs to resume, and resumes from it on request.

    An epoch's random numbers depend on the seed and the epoch alone (``EpochSeed``), so no random state is saved. A
    running training holds a lock beside the file, which the operating system frees however the process ends.

    Args:
        path: file to save to and to resume from, such as ``models/last.pt``.
        parts: objects with a ``state_dict`` by name: network, optimizer, schedule, …; None for what a config omits.
        evaluator: evaluator whose best metric is saved, too.
        resume: continue from ``path``, or start if it does not exist yet. If False, it must not exist, so that no
            training overwrites another, unless that has not finished an epoch. A trainer that is run for more epochs,
            as in every round of a federated training, simply continues.
        settings: values by config key (numbers, texts and lists of them) that must stay the same when a training is
            resumed: what the state itself restores, or what would make it another training.
        best: file of the best weights. One that exists at the start is kept under another name, with its list, even
            one of this training, if it was killed after writing it and before its first state. The state is then saved
            at the start, too: the training may start from these weights, which it replaces before it saves an epoch.
        output_dir: folder of the training's other files, locked, too.
        writes: False in all but one of several processes, which load but neither lock nor save.
    """

    def __init__(
        self,
        path: str,
        parts: Mapping[str, Any],
        evaluator: Engine,
        resume: bool = False,
        settings: Mapping[str, Any] | None = None,
        best: str | None = None,
        output_dir: str | None = None,
        writes: bool = True,
    ) -> None:
        self.path = Path(path)
        self.parts = {name: part for name, part in parts.items() if part is not None}
        self.evaluator = evaluator
        self.resume = resume
        self.settings = dict(settings or {})
        self.best = None if best is None else Path(best)
        self.writes = writes
        folders = [self.path.parent, *([] if output_dir is None else [Path(output_dir)])]
        self._locks = {folder.resolve(): FileLock(folder / f".{self.path.name}.lock") for folder in folders}

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, after the handlers whose state is to be saved."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)
        engine.add_event_handler(Events.COMPLETED, self.release)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._release_and_raise)

    def start(self, engine: Engine) -> None:
        """Take the locks, and restore the state if this run resumes.

        Raises:
            DriveSegError: if another training uses the folder, if the state to resume from is of another network or
                optimizer, of other settings or not the same for all processes, if these have different settings or
                cases, or if there is an earlier training that is not to be resumed. If another version of drive-seg
                wrote a state that is refused, both versions are named.
        """
        if self.writes:
            self._take_locks()
        if engine.state.epoch > 0:
            return
        same_for_all(self.settings)
        content = load_checkpoint(self.path) if self.resume and self.path.exists() else None
        epochs = gather(_epoch_of(content))
        if len(set(epochs)) > 1:
            raise DriveSegError(
                f"{self.path}: expected one folder for all processes, of which some find no state there or that of "
                f"another epoch ({', '.join('none' if epoch is None else str(epoch) for epoch in epochs)})"
            )
        if content is not None:
            self._load(engine, content)
            return
        if self.resume:
            _logger.warning("%s: nothing to resume from yet, the training starts from the beginning", self.path)
        elif self.writes and self.path.exists() and _epoch_of(load_checkpoint(self.path)) != 0:
            raise DriveSegError(
                f"{self.path}: belongs to an earlier training, resume it (--resume) or choose another output folder"
            )
        if self.writes and self.best is not None and self.best.exists():
            kept = keep(self.best, self.best.with_suffix(".json"))
            if kept is not None:
                _logger.warning("%s: is there from before this training, kept as %s", self.best, kept.name)
            self.save(engine)

    def save(self, engine: Engine) -> None:
        """Write the state, after an epoch or before the first one."""
        state = engine.state
        if not self.writes:
            return
        content = {name: part.state_dict() for name, part in self.parts.items()}
        content["settings"] = self.settings
        content["version"] = __version__
        content["progress"] = {
            "epoch": state.epoch,
            "iteration": state.iteration,
            "best_metric": float(self.evaluator.state.best_metric),
            "best_metric_epoch": int(self.evaluator.state.best_metric_epoch),
            **({} if torchrun_job() is None else {"job": torchrun_job()}),
        }
        save_checkpoint(content, self.path)

    def release(self, engine: Engine) -> None:
        """Release the folders for another training."""
        for lock in self._locks.values():
            lock.release()

    def _release_and_raise(self, engine: Engine, error: BaseException) -> None:
        self.release(engine)
        raise error

    def _take_locks(self) -> None:
        for folder, lock in self._locks.items():
            take_lock(lock)
            remove_leftovers(folder, ("last", "model", "history", "curves"))

    def _load(self, engine: Engine, content: Mapping[str, Any]) -> None:
        begun_with = content.get("settings", {})
        for name, value in self.settings.items():
            if name in begun_with and begun_with[name] != value:
                before, now = where_they_differ(f"{begun_with[name]}", f"{value}")
                raise DriveSegError(
                    f"{self.path}: {name}: expected {before}, with which the training was begun, got {now}; for "
                    "another training choose another output folder (--pretrained starts it from these weights)"
                    f"{_of_another_version(content)}"
                )
        try:
            for name, part in self.parts.items():
                part.load_state_dict(content[name])
            progress = content["progress"]
            engine.state.epoch = progress["epoch"]
            engine.state.iteration = progress["iteration"]
            self.evaluator.state.best_metric = progress["best_metric"]
            self.evaluator.state.best_metric_epoch = progress["best_metric_epoch"]
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise DriveSegError(
                f"{self.path}: cannot be resumed from, it is not the state of a training with these settings "
                f"({first_line(error)}){_of_another_version(content)}"
            ) from error


def _epoch_of(content: Mapping[str, Any] | None) -> int | None:
    progress = None if content is None else content.get("progress")
    return progress.get("epoch") if isinstance(progress, Mapping) else None


def _of_another_version(content: Mapping[str, Any]) -> str:
    """Tells of the version that wrote a state, if it is not this one: what differs may not be of the user's making."""
    version = content.get("version", "of another version")
    return "" if version == __version__ else f"; the state was written by drive-seg {version}, this is {__version__}"


def restarted(path: str | os.PathLike) -> bool:
    """True if torchrun has restarted the processes after a failure and ``path`` is a state of this same run.

    A run refuses the state of an earlier training, which torchrun takes for a failure; the restart must not resume it.
    All processes give the same answer: on several machines, those of a healthy one are restarted, too, without being
    told so.
    """
    ours = Path(path).is_file() and load_checkpoint(path).get("progress", {}).get("job") == torchrun_job()
    answers = gather((restart_count() > 0, ours))
    return any(again for again, _ in answers) and answers[0][1]
