"""The output of an evaluation: tables, and a summary from which it can be repeated."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from ignite.engine import Engine, Events

from drive_seg.arrays import to_numpy
from drive_seg.bootstrap import Bootstrap
from drive_seg.distributed import gather, same_for_all
from drive_seg.errors import CommonError, DriveSegError
from drive_seg.files import remove, remove_leftovers, sha256, take_lock, write_csv, write_text
from drive_seg.learnt_cases import another_scale, learnt_cases, photograph_id
from drive_seg.persons import person
from drive_seg.scores import (
    COMPARISONS,
    FOV,
    PREDICTION,
    REGIONS,
    CaseResult,
    Scoring,
    case_row,
    of_fewer,
    score_case,
    summarise,
)
from drive_seg.versions import software

__all__ = ["CaseScores"]

FEW = 20
"""Persons below which percentile intervals are noticeably too narrow, see ``drive_seg.bootstrap.Bootstrap``."""

WRITTEN = frozenset({*COMPARISONS, "metrics", "summary", "report", "threshold"})
"""Names, without suffix, of what an evaluation writes."""

OF_MACHINE = ("dataset_dir", "threshold_source", "device")
"""What may differ between processes: where their machines have the files and what computes."""

_logger = logging.getLogger(__name__)


class CaseScores:
    """Scores every case of an evaluation; writes a row for each and a summary of all.

    ``metrics.csv`` compares the prediction with the reference, ``second_observer.csv`` the second observer with the
    reference, and ``prediction_against_second.csv`` the prediction with the second observer, one row per case each.
    ``summary.json`` has the means, standard deviations, intervals and pooled figures, the protocol, and what it takes
    to repeat them. If several processes share the cases, the first one writes.

    Args:
        output_dir: folder to write into, one evaluation at a time; tables of an earlier one there are removed.
        scoring: what to compute for a case.
        bootstrap: how to compute the intervals.
        protocol: how the figures came about, to be stated: ``threshold``, ``threshold_source``, ``reference``, ….
        settings: everything else in the config that the figures depend on.
        config_files: files whose bytes are hashed.
        writes: False in all but one of several processes.
    """

    def __init__(
        self,
        output_dir: str,
        scoring: Scoring,
        bootstrap: Bootstrap,
        protocol: Mapping[str, Any],
        settings: Mapping[str, Any],
        config_files: Sequence[str] = (),
        writes: bool = True,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.checkpoints: list[str] = []
        self.scoring = scoring
        self.bootstrap = bootstrap
        self.protocol = dict(protocol)
        self.settings = dict(settings)
        self.config_files = [Path(file) for file in config_files]
        self.writes = writes
        self._lock = FileLock(self.output_dir / ".evaluation.lock")
        self.results: list[CaseResult] = []
        self.unscored: dict[str, str] = {}
        self.summary: dict[str, Any] = {}

    def attach(self, engine: Engine) -> None:
        """Attach to the evaluator."""
        engine.add_event_handler(Events.STARTED, self.reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        # Not when the run is completed: by then MONAI's handlers for MLflow and TensorBoard have logged the metrics.
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.finish)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._release_and_raise)

    def reset(self, engine: Engine) -> None:
        """Forget an earlier run; its files stay until this one's are there, since it may yet fail.

        Raises:
            DriveSegError: if processes score with different settings, or another evaluation uses the folder.
        """
        if self.writes:
            take_lock(self._lock)
            remove_leftovers(self.output_dir, WRITTEN)
            if not engine.has_event_handler(self.release, Events.COMPLETED):  # after all others, such as the report's
                engine.add_event_handler(Events.COMPLETED, self.release)
        about = {**self.protocol, **self.settings, **vars(self.scoring)}
        same_for_all({name: value for name, value in about.items() if name not in OF_MACHINE})
        self.results, self.unscored, self.summary = [], {}, {}

    def collect(self, engine: Engine) -> None:
        """Score the cases of an iteration."""
        if isinstance(engine.state.output, Mapping):
            self._leave_out(str(engine.state.batch["case_id"][0]), engine.state.output["error"])
            return
        for batch, output in zip(engine.state.batch, engine.state.output, strict=True):
            case = {**batch, **output}
            try:
                self.results.append(self._score(case))
            except DriveSegError as error:
                self._leave_out(str(case["case_id"]), str(error))

    def finish(self, engine: Engine) -> None:
        """Gather the scores of all processes, write them, and log the means."""
        # No files if a federated site scores weights sent by its server.
        self.checkpoints = list(getattr(engine.state, "loaded_weights", ()))
        self._gather()
        self.results.sort(key=lambda result: result.case_id)
        rows = summarise(self.results, self.scoring, self.bootstrap)
        self.summary = self._summary(rows)
        for row in rows:
            if (row["comparison"], row["region"]) == (PREDICTION, FOV):
                engine.state.metrics.update({name: spread["mean"] for name, spread in row["per_image"].items()})
        if not self.writes:
            return
        for name in (*(table_name(comparison) for comparison in COMPARISONS), "summary.json"):
            remove(self.output_dir / name)  # all, so that tables of two evaluations never lie beside each other
        for comparison in COMPARISONS:
            scored = [result for result in self.results if comparison in result.scores]
            if scored:
                table = [case_row(result, comparison, self.scoring.bins) for result in scored]
                write_csv(self.output_dir / table_name(comparison), table)
        write_text(self.output_dir / "summary.json", json.dumps(self.summary, indent=2, allow_nan=False) + "\n")
        for row in rows:
            _logger.info(
                "%s, %s, per-image mean of %d: %s",
                COMPARISONS[row["comparison"]],
                REGIONS[row["region"]],
                row["cases"],
                ", ".join(
                    f"{name} {spread['mean']:.4f}{of_fewer(spread['defined'], row['cases'])}"
                    for name, spread in row["per_image"].items()
                ),
            )

    def release(self, engine: Engine) -> None:
        """Release the folder for another evaluation."""
        self._lock.release()

    def _release_and_raise(self, engine: Engine, error: BaseException) -> None:
        self.release(engine)
        raise error

    def raise_if_incomplete(self) -> None:
        """Raise an error if a case could not be scored, once all processes have finished writing.

        Raises:
            CommonError: naming these cases.
        """
        gather(None)  # torchrun ends all processes when the first one fails
        if self.unscored:
            raise CommonError(
                f"{len(self.unscored)} of {len(self.unscored) + len(self.results)} cases could not be scored "
                f"({', '.join(self.unscored)}), see the log above and {self.output_dir / 'summary.json'}"
            )

    def _score(self, case: Mapping[str, Any]) -> CaseResult:
        result = score_case(
            str(case["case_id"]),
            to_numpy(case["pred"])[0],
            to_numpy(case["reference"])[0],
            to_numpy(case["fov"])[0],
            to_numpy(case["probability"]).sum(axis=0).clip(0, 1),
            to_numpy(case["second"])[0] if "second" in case else None,
            scoring=self.scoring,
        )
        result.about = {key: str(case[key]) for key in ("section", "fov_source", "photograph")}
        result.about["photograph_sha256"] = photograph_id(case)
        result.about["person"] = person(case)
        return result

    def _leave_out(self, case_id: str, reason: str) -> None:
        self.unscored[case_id] = reason
        _logger.error("case %s is not scored: %s", case_id, reason)

    def _gather(self) -> None:
        parts = gather((self.results, self.unscored))
        # With fewer cases than processes every process has scored all of them.
        self.results = list({result.case_id: result for results, _ in parts for result in results}.values())
        self.unscored = {case_id: reason for _, unscored in parts for case_id, reason in unscored.items()}

    def _warnings(self, sources: Sequence[str]) -> list[str]:
        """Reasons why the figures are, or may be, too high or too low."""
        warnings = []
        scored = [result.about.get("photograph_sha256") for result in self.results]
        chosen_on = sum(photograph in (self.protocol.get("threshold_photographs") or ()) for photograph in scored)
        learnt = learnt_cases(self.checkpoints) if self.checkpoints else None
        if learnt is not None:
            for role, what in (("training", "the network was trained"), ("validation", "the weights were chosen")):
                known = sum(photograph in learnt[role] for photograph in scored)
                if known:
                    warnings.append(f"these figures are optimistic: {what} on {known} of {len(scored)} scored cases")
        elif any(source != "test" for source in sources):
            warnings.append(
                "cases that are not test cases were scored: if they trained the network or chose its weights, these "
                "figures are optimistic"
            )
        scale = another_scale(self.checkpoints, self.settings.get("fov_diameter"))
        if scale is not None:
            warnings.append(scale)
        if chosen_on:
            warnings.append(
                f"these figures are optimistic: the threshold was chosen on {chosen_on} of the scored cases"
            )
        return warnings

    def _summary(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        configs = {file.name: sha256(file) for file in self.config_files}
        protocol = {key: value for key, value in self.protocol.items() if key != "dataset_dir"}
        resolved = {"protocol": protocol, "settings": self.settings, "scoring": vars(self.scoring), "configs": configs}
        sources = sorted({result.about.get("section", "") for result in self.results})
        fovs = [result.about.get("fov_source", "") for result in self.results]
        warnings = self._warnings(sources)
        persons = len({result.person for result in self.results})
        summary = {
            "protocol": {
                **self.protocol,
                "scored": sources,
                "cases": len(self.results),
                "persons": persons,
                "warnings": warnings,
                "classes": "vessel against background"
                + (
                    "; figures named after a class are of this class against all else, without vessels of unknown class"
                    if self.scoring.num_classes > 2
                    else ""
                ),
                "averaging": "per_image: mean over cases; pooled: counts of all cases summed first, then divided",
                "regions": {
                    **REGIONS,
                    "outside": "nothing is predicted outside the field of view; annotations are taken as drawn",
                },
                "fov_source": {source: fovs.count(source) for source in sorted(set(fovs))},
                "interval": f"{self.bootstrap.level:.0%} percentile bootstrap of the mean over cases, "
                f"{self.bootstrap.samples} samples of {persons} persons with all of their cases, "
                f"seed {self.bootstrap.seed}{'; with so few persons it is too narrow' if persons < FEW else ''}",
            },
            "rows": rows,
            "cases": [_case_summary(result, self.scoring.bins) for result in self.results],
            "unscored": [{"case_id": case_id, "reason": reason} for case_id, reason in self.unscored.items()],
            "settings": self.settings,
            "scoring": {**vars(self.scoring), **vars(self.bootstrap)},
            "checkpoints": [{"path": path, "sha256": sha256(path)} for path in self.checkpoints],
            "config_sha256": hashlib.sha256(json.dumps(resolved, sort_keys=True, default=str).encode()).hexdigest(),
            "config_files": configs,
            "versions": software(),
            "machine": f"{platform.system()} {platform.machine()}",
            "command": shlex.join(sys.argv),
        }
        return _for_json(summary)


def table_name(comparison: str) -> str:
    """The name of the file with a comparison's rows."""
    return "metrics.csv" if comparison == PREDICTION else f"{comparison}.csv"


def _case_summary(result: CaseResult, bins: int) -> dict[str, Any]:
    figures = {
        comparison: {region: scores.figures(bins) for region, scores in regions.items()}
        for comparison, regions in result.scores.items()
    }
    size = {"height": result.shape[0], "width": result.shape[1], "fov_diameter": result.diameter}
    return {"case_id": result.case_id, **result.about, **size, "scores": figures}


def _for_json(value: Any) -> Any:
    """The same value for JSON, which has neither NaN nor infinity: they become null."""
    if isinstance(value, Mapping):
        return {str(key): _for_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_for_json(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)
