"""Weights on disk.

``model.pt`` is a plain state dict of CPU tensors, the best so far. Like every checkpoint, it is written whole or not at
all and read with ``weights_only=True``.
"""

from __future__ import annotations

import logging
import os
import pickle
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from drive_seg.distributed import gather, same_for_all
from drive_seg.errors import DriveSegError, first_line
from drive_seg.files import replacing, sha256
from drive_seg.learnt_cases import LearntCases, listed
from drive_seg.networks import UNet

__all__ = [
    "BestModelSaver",
    "PretrainedWeights",
    "WeightsCheckpointLoader",
    "load_checkpoint",
    "load_weights",
    "save_checkpoint",
]

_logger = logging.getLogger(__name__)


def save_checkpoint(content: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Write ``content`` with ``torch.save``; tensors go to the CPU.

    Raises:
        DriveSegError: if the file cannot be written; an earlier one stays as it was.
    """
    with replacing(path) as temporary:
        try:
            with temporary.open("wb") as file:
                torch.save(_on_cpu(content), file)
        except RuntimeError as error:  # torch raises it for a full disk and Ctrl-C, too
            own = error.__context__  # the original error tells more
            raise (own if isinstance(own, (OSError, KeyboardInterrupt)) else OSError(f"{error}")) from error


def load_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Read what ``save_checkpoint`` wrote.

    Raises:
        DriveSegError: if there is no such file or it is not a checkpoint.
    """
    path = Path(path)
    if path.is_dir():
        raise DriveSegError(f"{path}: is a folder, expected a checkpoint in it, such as {path / 'model.pt'}")
    if not path.is_file():
        raise DriveSegError(f"{path}: there is no such checkpoint")
    _check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes may make torch raise anything
        # For pickles, torch's message says how to load them anyway, which nobody should.
        reason = "" if isinstance(error, pickle.UnpicklingError) else f" ({first_line(error)})"
        raise DriveSegError(f"{path}: is not a checkpoint of tensors and plain values{reason}") from error
    if not isinstance(content, Mapping):
        raise DriveSegError(f"{path}: expected a dictionary, got {type(content).__name__}")
    return dict(content)


def _check_archive(path: Path) -> None:
    """Refuse what ``torch.load`` takes: an archive with damaged bytes, whose checksums it ignores, and TorchScript."""
    if not zipfile.is_zipfile(path):  # the format of old versions, or no checkpoint
        return
    try:
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise DriveSegError(f"{path}: is TorchScript, expected weights, such as model.pt")
            damaged = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, zlib.error) as error:
        raise DriveSegError(f"{path}: is not a checkpoint of tensors and plain values ({first_line(error)})") from error
    if damaged is not None:
        raise DriveSegError(f"{path}: is damaged, {damaged} in it differs from its checksum")


def load_weights(network: nn.Module, path: str | os.PathLike) -> nn.Module:
    """Load a state dict, or the averaged weights of a training state, into ``network`` and return the network.

    Raises:
        DriveSegError: if the file is missing or its weights do not fit the network.
    """
    _load(network, _weights_in(path), path)
    return network


def _weights_in(path: str | os.PathLike) -> Any:
    content = load_checkpoint(path)
    average = content.get("moving_average")
    return (average if isinstance(average, Mapping) else content).get("network", content)


def _load(
    network: nn.Module, weights: Any, path: str | os.PathLike, otherwise: str = "", own: Mapping[str, Any] | None = None
) -> None:
    """Load, except for the network's own weights, or tell what would fit; for other classes also what else to do."""
    try:
        network.load_state_dict({**weights, **own} if own else weights)
    except (RuntimeError, AttributeError, TypeError) as error:
        theirs, ours = _sizes(weights), _sizes(network.state_dict())
        if own:
            theirs.pop("num_classes", None)
        wrong = [f"--{name} {value}" for name, value in theirs.items() if ours and value != ours[name]]
        if wrong and wrong[-1].startswith("--num_classes"):
            wrong.append(otherwise)
        reasons = [line.strip() for line in str(error).splitlines() if line.strip()]  # torch's first is a heading
        reason = [*reasons[1:], *reasons, type(error).__name__][0]
        if isinstance(network, UNet):
            reason = f"are they of this project's UNet? {reason}"
        hint = f"expected {' '.join(wrong).strip()}" if wrong else reason
        raise DriveSegError(f"{path}: the weights do not fit the network ({hint})") from error


def _sizes(weights: Any) -> dict[str, int]:
    """The arguments of the UNet that weights belong to; empty if they belong to something else."""
    try:
        num_classes, base_channels = weights["output.conv.weight"].shape[:2]
        depth = len({name.split(".")[1] for name in weights if name.startswith("decoder.")})
    except (KeyError, AttributeError, TypeError, ValueError, IndexError):
        return {}
    return {"base_channels": base_channels, "depth": depth, "num_classes": num_classes}


class WeightsCheckpointLoader:
    """Loads weights when an engine starts.

    MONAI's federated client recognises it by its name and leaves it out of an evaluation. The loaded files are listed
    in the engine's state as ``loaded_weights``.

    Args:
        network: network to load into; a ``drive_seg.ensemble.Ensemble`` if there are several files.
        path: state dict, see ``load_weights``, or several, one for each member of the ensemble.
    """

    def __init__(self, network: nn.Module, path: str | os.PathLike | Sequence[str]) -> None:
        self.network = network
        self.path = path

    def attach(self, engine: Engine) -> None:
        """Run at the start of ``engine``."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Load.

        Raises:
            DriveSegError: if the numbers of files and members differ, a file is missing or does not fit, or processes
                have different ones.
        """
        if isinstance(self.path, (str, os.PathLike)):
            networks, paths = [self.network], [str(self.path)]
        else:
            networks, paths = list(self.network.get_submodule("members").children()), list(map(str, self.path))
        if len(paths) != len(networks):
            raise DriveSegError(f"expected weights for {len(networks)} networks, got {len(paths)}")
        for network, path in zip(networks, paths, strict=True):
            load_weights(network, path)
        same_for_all({"SHA-256 of the weights": [sha256(path) for path in paths]})
        engine.state.loaded_weights = paths


class PretrainedWeights:
    """Loads the weights that a fine-tuning starts from, unless it resumes from its own state.

    Args:
        network: network to load into.
        path: state dict, see ``load_weights``; None: the training starts from random weights.
        state: the file that ``drive_seg.training_state.TrainingState`` resumes from.
        resume: as for ``TrainingState``.
        new_output_layer: the network keeps its own output layer, random as it is, to learn other classes.
    """

    def __init__(
        self, network: nn.Module, path: str | None, state: str, resume: bool = False, new_output_layer: bool = False
    ) -> None:
        self.network = network
        self.path = path
        self.state = Path(state)
        self.resume = resume
        self.new_output_layer = new_output_layer

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, before ``TrainingState``."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Load, unless the training goes on from an earlier epoch.

        Raises:
            DriveSegError: if the file is missing, its weights do not fit the network, the network has no layer named
                output to keep, or processes have different weights.
        """
        if self.path is None or engine.state.epoch > 0:
            return
        if any(gather(self.resume and self.state.exists())):  # if not for all, TrainingState will say so
            return
        weights = self.network.state_dict()
        own = {name: weights[name] for name in weights if self.new_output_layer and name.startswith("output.")}
        if self.new_output_layer and not own:
            raise DriveSegError("new_output_layer: expected false, because the network has no layer named output")
        otherwise = "or --new_output_layer true, to learn other classes"
        _load(self.network, _weights_in(self.path), self.path, otherwise, own)
        same_for_all({"SHA-256 of the pretrained weights": sha256(self.path)})
        _logger.info(
            "the training starts from the weights of %s%s",
            self.path,
            ", but for the output layer, which is new" if self.new_output_layer else "",
        )


class BestModelSaver:
    """Writes the network's state dict whenever validation gives the best key metric so far.

    An epoch may be validated more than once, with other weights: only the better ones are written.

    Args:
        network: network whose weights are saved.
        path: file to write, such as ``models/model.pt``.
        learnt_cases: what the weights have learnt, to be listed beside them; None: there is no list.
    """

    def __init__(self, network: nn.Module, path: str, learnt_cases: LearntCases | None = None) -> None:
        self.network = network
        self.path = path
        self.learnt_cases = learnt_cases
        self._best: tuple[Any, int] | None = None

    def attach(self, engine: Engine) -> None:
        """Attach to the evaluator that computes the key metric."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def start(self, engine: Engine) -> None:
        """Note the best validation before this one."""
        self._best = (engine.state.best_metric, engine.state.best_metric_epoch)

    def __call__(self, engine: Engine) -> None:
        """Save if this validation has become the best one."""
        if (engine.state.best_metric, engine.state.best_metric_epoch) != self._best:
            learnt = self.learnt_cases
            with listed(self.path) if learnt is None else listed(self.path, learnt.photographs, learnt.fov_diameter):
                save_checkpoint(self.network.state_dict(), self.path)


def _on_cpu(content: Any) -> Any:
    if isinstance(content, torch.Tensor):
        return content.detach().cpu()
    if isinstance(content, Mapping):
        return {key: _on_cpu(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(_on_cpu(value) for value in content)
    return content
