"""Run the bundle's trainings and evaluations from Python; the command line is a thin layer over this."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow

from drive_seg.configs import SPECIAL, check_overrides, config_files, literal
from drive_seg.devices import check_device
from drive_seg.distributed import (
    get_rank,
    get_world_size,
    leave_process_group,
    lost_contact,
    torchrun_job,
)
from drive_seg.errors import DriveSegError, first_cause, user_error
from drive_seg.evaluation import CaseScores
from drive_seg.files import make_folder, remove

__all__ = ["evaluate_weights", "quiet", "run_workflow"]


def quiet() -> None:
    """Log for people, on stderr: messages from this project, and only problems from others."""
    warnings.filterwarnings("ignore", module="(monai|ignite|torch)")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for name in ("SupervisedTrainer", "SupervisedEvaluator", "TolerantEvaluator"):  # they log what they raise
        logging.getLogger(f"ignite.engine.engine.{name}").setLevel(logging.CRITICAL)
    logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)  # it warns that no logging file is used
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision, which is not used, is missing
    logging.getLogger("drive_seg").setLevel(logging.INFO)


def run_workflow(root: Path, names: Sequence[str], run_id: str, overrides: Mapping[str, Any]) -> ConfigWorkflow:
    """Run one id of the bundle's configs; under torchrun, with the overlay for several processes.

    Args:
        root: the bundle.
        names: configs, the base first, such as ``["train", "evaluate"]``, see ``config_files``.
        run_id: such as ``training``.
        overrides: config keys and their values.

    Returns:
        The workflow after its run; its ``parser`` gives access to every part.

    Raises:
        DriveSegError: if an override has a key that the configs lack or a value that does not fit, or a folder cannot
            be written to, or another process of the run has ended.
    """
    if torchrun_job() is not None or get_world_size() > 1:
        names = [*names, "multi_gpu_evaluate" if "evaluate" in names else "multi_gpu_train"]
    files = config_files(root, *names)
    values = {"bundle_root": str(root), **overrides}
    check_overrides(files, values)
    if "device" in values and not str(values["device"]).startswith(SPECIAL):
        check_device(values["device"])
    for key in ("output_dir", "ckpt_dir"):
        if key in values:
            values[key] = str(values[key])  # a folder may be named 2026
            if not values[key].startswith(SPECIAL):
                make_folder(values[key])
    workflow = ConfigWorkflow(
        config_file=files, workflow_type="train", run_id=run_id, logging_file=False, **literal(values)
    )
    try:
        workflow.initialize()
        workflow.run()
        workflow.finalize()
    except Exception as error:
        leave_process_group(together=False)  # or gloo's threads may end the process with a signal, not exit code 1
        refused = _refused_value(error)
        if refused is None:
            raise
        raise refused from error
    return workflow


_ABSENT = ("Cannot locate", "not compiled with CUDA", "No CUDA GPUs are available", "no NVIDIA driver")
"""Messages of MONAI about a missing class and of PyTorch about a missing device."""


def _refused_value(error: BaseException) -> DriveSegError | None:
    """The reason why a component refused a value, if MONAI could not make it or the training could not start.

    Such a component may be the one that first needs another process, which has ended.
    """
    if user_error(error) is not None:
        return None
    if (lost := lost_contact(error)) is not None:
        return lost
    reason = f"{first_cause(error)}".strip()
    if "every should be" in reason:  # ignite's word for an interval
        return DriveSegError(f"val_interval: expected a whole number from 1, {reason}")
    if reason.startswith("Argument max_epochs"):  # from ignite, which checks it only after everything is made
        return DriveSegError(f"max_epochs: {reason}")
    if any(words in reason for words in _ABSENT):
        return DriveSegError(f"the config names a class or device that does not exist: {reason.splitlines()[0]}")
    if "Failed to instantiate component" not in str(error):
        return None
    component = str(error).split("'")[1]
    return DriveSegError(f"{component.rpartition('.')[2]} got values that it does not take: {first_cause(error)}")


def evaluate_weights(
    root: Path, overrides: Mapping[str, Any], threshold: str | None = None, overlays: Sequence[str] = ()
) -> CaseScores:
    """Score weights, or an ensemble where ``checkpoint`` is a list of several.

    Args:
        root: the bundle.
        overrides: config keys and their values.
        threshold: a probability; ``auto``: chosen on the validation cases, whatever is scored; None: the config's.
        overlays: configs to lay over those of an evaluation, see ``drive_seg.configs.overlays``.

    Returns:
        The scores, with ``summary`` and the ``unscored`` cases.

    Raises:
        DriveSegError: if an override, the weights or the dataset do not fit.
    """
    values = dict(overrides)
    checkpoint = values.get("checkpoint")
    members = ["ensemble"] if isinstance(checkpoint, list) and len(checkpoint) > 1 else []
    base = ["train", "evaluate", *overlays, *members]
    if isinstance(checkpoint, list) and not members:
        values["checkpoint"] = checkpoint[0]
    if threshold == "auto":
        if values.get("fold") is not None:
            raise DriveSegError(
                "threshold: auto needs validation cases apart from those that are scored, of which a fold has none; "
                "expected a number"
            )
        of_choice = {key: value for key, value in values.items() if key != "section"}
        chosen = run_workflow(root, [*base, "choose_threshold"], "choosing", of_choice)
        values.update(chosen.parser.get_parsed_content("choice").overrides())
    elif threshold is not None:
        values["threshold"] = _probability(threshold)
    values["scores#config_files"] = config_files(root, *base)  # for the record
    done = run_workflow(root, base, "evaluating_all", values)
    if threshold != "auto" and get_rank() == 0 and "output_dir" in values:
        remove(Path(str(values["output_dir"])) / "threshold.json")  # of an earlier evaluation
    return done.parser.get_parsed_content("scores")


def _probability(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise DriveSegError(f"threshold: expected a probability from 0 to 1 or auto, got {text!r}") from error
