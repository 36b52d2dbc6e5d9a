"""Compares two evaluations of the same cases, case by case: is the difference more than chance?"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import wilcoxon

from drive_seg.bootstrap import Bootstrap
from drive_seg.errors import DriveSegError
from drive_seg.persons import person
from drive_seg.scores import FOV, PREDICTION, REGIONS

__all__ = ["compare", "read_summary"]


def read_summary(path: str | os.PathLike) -> dict[str, Any]:
    """The ``summary.json`` of an evaluation.

    Args:
        path: the file, or the folder it is in.

    Raises:
        DriveSegError: if there is none or it is not an evaluation's.
    """
    file = Path(path)
    file = file / "summary.json" if file.is_dir() else file
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DriveSegError(f"{file}: expected the summary.json of drive-seg evaluate, got none ({error})") from error
    except ValueError as error:
        raise DriveSegError(f"{file}: expected the summary.json of drive-seg evaluate, got other content") from error
    if not isinstance(summary, dict) or not {"protocol", "cases", "settings", "scoring", "rows"} <= summary.keys():
        raise DriveSegError(f"{file}: expected the summary.json of drive-seg evaluate, got other content")
    return summary


def compare(first: Mapping[str, Any], second: Mapping[str, Any], region: str = FOV) -> dict[str, Any]:
    """Paired differences of two summaries' predictions, ``second`` minus ``first``; intervals as in the first one.

    Args:
        first, second: summaries, see ``read_summary``.
        region: ``fov`` or ``whole``.

    Returns:
        ``figures``: for each name, ``cases`` (number in which both are defined), ``first`` and ``second`` (their means
        over these), ``difference`` (mean), ``sd`` (n - 1), ``ci``, and ``p`` of the two-sided Wilcoxon signed-rank test
        of the persons' mean differences, because both eyes of a person are alike; ``cases``: rows of ``case_id`` and
        every figure's difference; ``persons``: their number; ``level`` of the intervals; ``only``: cases that one of
        the two lacks; ``unlike``: pairs of what both state differently of protocol, settings, weights, config and
        version, and how many photographs are other files. NaN is the sd of one case, the interval of one person, and p
        if no person's mean differs.

    Raises:
        DriveSegError: if the two have no case in common, were scored against different references, do not have the
            region, or have photographs of different sizes under one id.
    """
    bootstrap = Bootstrap(**{key: first["scoring"][key] for key in ("samples", "seed", "level")})
    references = [summary["protocol"].get("reference") for summary in (first, second)]
    if references[0] != references[1]:
        raise DriveSegError(f"expected one reference for both evaluations, got {references[0]} and {references[1]}")
    scores = [_scores(summary, region) for summary in (first, second)]
    common = sorted(scores[0].keys() & scores[1].keys())
    if not common:
        raise DriveSegError("expected evaluations of the same cases, got two without a case in common")
    _check_sizes(first, second, common)
    names = [name for name in scores[0][common[0]] if name in scores[1][common[0]]]
    about = {case["case_id"]: case for case in first["cases"]}
    persons = np.array([person(about[case]) for case in common])
    values = {name: np.array([[of[case].get(name) for of in scores] for case in common], float) for name in names}
    return {
        "figures": {name: _paired(pairs, persons, bootstrap) for name, pairs in values.items()},
        "cases": [
            {"case_id": case, **{name: float(pairs[i, 1] - pairs[i, 0]) for name, pairs in values.items()}}
            for i, case in enumerate(common)
        ],
        "persons": len(set(persons)),
        "level": bootstrap.level,
        "only": [sorted(scores[0].keys() - scores[1].keys()), sorted(scores[1].keys() - scores[0].keys())],
        "unlike": _unlike(first, second, common),
    }


def _scores(summary: Mapping[str, Any], region: str) -> dict[str, dict[str, float | None]]:
    if region not in REGIONS:
        raise DriveSegError(f"region: expected {' or '.join(REGIONS)}, got {region!r}")
    found = {case["case_id"]: case["scores"][PREDICTION].get(region) for case in summary["cases"]}
    if None in found.values():
        raise DriveSegError(f"region: expected evaluations of the region {region}, got one that has left it out")
    return found


def _check_sizes(first: Mapping[str, Any], second: Mapping[str, Any], common: Sequence[str]) -> None:
    sizes = [
        {case["case_id"]: f"{case.get('width')}×{case.get('height')}" for case in summary["cases"]}
        for summary in (first, second)
    ]
    for case in common:
        if sizes[0][case] != sizes[1][case]:
            raise DriveSegError(
                f"case {case}: expected the same photograph in both evaluations, got {sizes[0][case]} and "
                f"{sizes[1][case]} pixels"
            )


def _paired(pairs: np.ndarray, persons: np.ndarray, bootstrap: Bootstrap) -> dict[str, Any]:
    there = ~np.isnan(pairs).any(axis=1)
    defined, persons = pairs[there], persons[there]
    differences = defined[:, 1] - defined[:, 0]
    of_persons = np.array([differences[persons == name].mean() for name in np.unique(persons)])
    n = len(differences)
    means = defined.mean(axis=0) if n else np.full(2, np.nan)
    return {
        "cases": n,
        "first": float(means[0]),
        "second": float(means[1]),
        "difference": float(differences.mean()) if n else math.nan,
        "sd": float(differences.std(ddof=1)) if n > 1 else math.nan,
        "ci": list(bootstrap.interval(differences, persons)),
        "p": float(wilcoxon(of_persons).pvalue) if of_persons.any() else math.nan,
    }


def _unlike(first: Mapping[str, Any], second: Mapping[str, Any], common: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    def stated(summary: Mapping[str, Any]) -> dict[str, Any]:
        return {
            **{key: value for key, value in summary["protocol"].items() if isinstance(value, (str, int, float))},
            **{key: "; ".join(summary["protocol"].get(key, ())) for key in ("scored", "warnings")},
            "fov_source": ", ".join(f"{n} {name}" for name, n in summary["protocol"].get("fov_source", {}).items()),
            **summary["settings"],
            "class_names": ", ".join(summary["scoring"].get("class_names") or ()),
            "checkpoint": ", ".join(checkpoint["sha256"][:12] for checkpoint in summary.get("checkpoints", ())),
            "config": summary.get("config_sha256", "")[:12],
            "drive-seg": summary.get("versions", {}).get("drive-seg"),
        }

    one, other = stated(first), stated(second)
    unlike = {key: (one[key], other[key]) for key in one if key in other and one[key] != other[key]}
    # The same photograph in another format is another file.
    files = [
        {case["case_id"]: case.get("photograph_sha256") for case in summary["cases"]} for summary in (first, second)
    ]
    others = sum(None not in (files[0][case], files[1][case]) and files[0][case] != files[1][case] for case in common)
    return unlike | ({"photographs": (f"{len(common)} files", f"{others} of these differ")} if others else {})
