"""Choose the threshold on validation cases, never on test cases."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events

from drive_seg.arrays import to_numpy
from drive_seg.distributed import gather
from drive_seg.errors import DriveSegError
from drive_seg.files import sha256, write_text
from drive_seg.learnt_cases import learnt_cases, photograph_id
from drive_seg.metrics import ProbabilityCounts

__all__ = ["ThresholdChoice", "best_threshold"]

_logger = logging.getLogger(__name__)


def best_threshold(cases: list[ProbabilityCounts], steps: int) -> tuple[float, float]:
    """The threshold with the highest mean Dice over cases, and that Dice.

    Args:
        cases: counts by case; those without vessel pixels are left out.
        steps: the thresholds tried are 1/steps, 2/steps, …; of equally good ones, the middle one is taken.

    Raises:
        DriveSegError: if no case has a vessel pixel.
    """
    thresholds = np.arange(1, steps) / steps
    with_vessels = [case for case in cases if case.positives.any()]
    if not with_vessels:
        raise DriveSegError("threshold: expected validation cases with vessels to choose on, got none")
    dice = np.mean([case.dice(thresholds) for case in with_vessels], axis=0)
    best = np.flatnonzero(dice == dice.max())
    chosen = int(best[len(best) // 2])
    return float(thresholds[chosen]), float(dice[chosen])


class ThresholdChoice:
    """Chooses the threshold with ``best_threshold`` inside the field of view, over the cases of all processes.

    Args:
        path: file to record the choice in, such as ``threshold.json``.
        dataset_dir: folder of the dataset, for the record.
        section: section of the cases it is chosen on; ``test`` is refused.
        checkpoint: weights that give the probabilities, one file or several.
        steps: as for ``best_threshold``.
        writes: False in all but one of several processes.

    Raises:
        DriveSegError: if ``steps`` leaves no threshold between 0 and 1.
    """

    def __init__(
        self,
        path: str,
        dataset_dir: str,
        section: str,
        checkpoint: str | list[str],
        steps: int,
        writes: bool = True,
    ) -> None:
        if steps < 2:
            raise DriveSegError(f"steps: expected at least 2, got {steps}")
        self.path = Path(path)
        self.dataset_dir = dataset_dir
        self.section = section
        self.checkpoints = [checkpoint] if isinstance(checkpoint, str) else list(checkpoint)
        self.steps = steps
        self.writes = writes
        self.choice: dict[str, Any] = {}
        self._cases: dict[str, tuple[ProbabilityCounts, str]] = {}

    def attach(self, engine: Engine) -> None:
        """Attach to the evaluator."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def start(self, engine: Engine) -> None:
        """Refuse test cases.

        Raises:
            DriveSegError: if the section is ``test``.
        """
        self._cases = {}
        self._refuse(self.section)

    def collect(self, engine: Engine) -> None:
        """Count the probabilities of each case in a batch."""
        if isinstance(engine.state.output, Mapping):
            raise DriveSegError(f"threshold: cannot be chosen without every case, {engine.state.output['error']}")
        for batch, output in zip(engine.state.batch, engine.state.output, strict=True):
            case = {**batch, **output}
            self._refuse(str(case["section"]))
            probability = to_numpy(case["probability"]).sum(axis=0).clip(0, 1)
            label, fov = (to_numpy(case[key])[0] for key in ("reference", "fov"))
            counts = ProbabilityCounts.of(probability, label, fov != 0)
            self._cases[str(case["case_id"])] = counts, photograph_id(case)

    def finish(self, engine: Engine) -> None:
        """Choose the threshold and write the file."""
        # With fewer cases than processes, every process has counted all of them.
        merged = {case_id: case for part in gather(self._cases) for case_id, case in part.items()}
        self._cases = {case_id: merged[case_id] for case_id in sorted(merged)}  # the order of summing matters
        threshold, dice = best_threshold([counts for counts, _ in self._cases.values()], self.steps)
        trained_on = (learnt_cases(self.checkpoints) or {}).get("training", set())
        self.choice = {
            "threshold": threshold,
            "criterion": "highest mean Dice inside the field of view",
            "dice": dice,
            "dataset_dir": self.dataset_dir,
            "section": self.section,
            "cases": list(self._cases),
            "photographs": [photograph for _, photograph in self._cases.values()],
            "trained_on": [case_id for case_id, (_, photograph) in self._cases.items() if photograph in trained_on],
            "checkpoint_sha256": [sha256(path) for path in self.checkpoints],
        }
        if self.writes:
            chosen_on = f"{len(self._cases)} {self.section} cases"
            _logger.info("threshold %.2f, chosen on %s (Dice %.4f)", threshold, chosen_on, dice)
            if self.choice["trained_on"]:
                _logger.warning("the threshold may not suit other cases: %s", self._trained_on())
            write_text(self.path, json.dumps(self.choice, indent=2) + "\n")

    def overrides(self) -> dict[str, Any]:
        """The choice as overrides for an evaluation: ``threshold``, ``threshold_source``, ``threshold_photographs``."""
        choice = self.choice
        source = (
            f"chosen on {len(choice['cases'])} {choice['section']} cases of {choice['dataset_dir']} "
            f"({', '.join(choice['cases'])}): {choice['criterion']}"
        )
        if choice["trained_on"]:
            source += f"; {self._trained_on()}"
        overrides = {"threshold_source": source, "threshold_photographs": choice["photographs"]}
        return {"threshold": choice["threshold"], **overrides}

    def _trained_on(self) -> str:
        return f"the network was trained on {len(self.choice['trained_on'])} of the cases that chose it"

    def _refuse(self, section: str) -> None:
        if section == "test":
            raise DriveSegError("threshold: may not be chosen on test cases, expected the section validation, got test")
