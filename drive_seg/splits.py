"""Which cases are scored, and the folds of a cross-validation.

Folds are made of the cases for training and validation only, never of test cases. Both eyes of a person are always in
the same fold.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path

from drive_seg.data import DATASET_JSON, Case, check_no_overlap, load_datalist, of_several, read_sections
from drive_seg.errors import DriveSegError
from drive_seg.names import as_path
from drive_seg.persons import person

__all__ = ["cases_to_score", "fold_cases", "parse_fold"]

PUBLISHED, ESTIMATED = "published mask", "estimated"

_logger = logging.getLogger(__name__)


def cases_to_score(
    dataset_dir: str | os.PathLike,
    section: str = "test",
    annotations: Mapping[str, str | None] | None = None,
    validation_every: int = 5,
    fold: str | None = None,
) -> list[Case]:
    """The cases of a section, with details that an evaluation reports.

    If no test case is annotated, as in DRIVE's present distribution, the held-out validation cases are scored instead,
    and a warning is logged: if they chose the weights, the figures are optimistic.

    Args:
        dataset_dir, annotations, validation_every: as for ``load_datalist``, but one dataset only.
        section: ``test``, ``validation`` or ``training``.
        fold: ``k/n``, to score the cases that this fold holds out of the training instead.

    Returns:
        Cases as from ``load_datalist``. Each also has ``photograph``, the path of its image, which remains after the
        image is loaded; ``section``, the one it belongs to; and ``fov_source``, ``published mask`` or ``estimated``. A
        case without the annotation ``label`` is included if others have it, so that the evaluation can report it.

    Raises:
        DriveSegError: as ``load_datalist``, or if there is no case to score.
    """
    dataset_dir = as_path(dataset_dir)
    if not isinstance(dataset_dir, (str, os.PathLike)):
        raise DriveSegError("dataset_dir: expected one folder, datasets are scored one at a time")
    source = section
    if fold is not None:
        source = f"fold {fold}"
        cases = fold_cases(dataset_dir, fold, "validation", annotations)
    else:
        cases = load_datalist(dataset_dir, section, annotations, validation_every)
        if section == "test" and not any("label" in case for case in cases):
            source = "validation"
            cases = load_datalist(dataset_dir, source, annotations, validation_every)
            _logger.warning(
                "%s has no annotated test cases%s: scoring the %d held-out validation cases instead "
                "(where they trained the network or chose its weights, the figures are optimistic)",
                dataset_dir,
                f" by its {DATASET_JSON}" if (Path(dataset_dir) / DATASET_JSON).is_file() else "",
                len(cases),
            )  # fmt: skip
    if not cases:
        raise DriveSegError(f"{dataset_dir}: expected cases to score, got none in the section {source}")
    estimated = _estimated(Path(dataset_dir))
    for case in cases:
        case["photograph"] = case["image"]
        case["section"] = source
        case["fov_source"] = PUBLISHED if "fov" in case and case["case_id"] not in estimated else ESTIMATED
    return cases


def fold_cases(
    dataset_dir: str | os.PathLike | Sequence[str | os.PathLike],
    fold: str,
    section: str,
    annotations: Mapping[str, str | None] | None = None,
) -> list[Case]:
    """The cases of one fold of a cross-validation over all cases that are not for test.

    Args:
        dataset_dir, annotations: as for ``load_datalist``; several datasets are split separately, so that the fold of
            each is the same as when it is scored alone.
        fold: ``k/n``, the k-th of n folds, from 1: every n-th person, starting with the k-th, is held out, in the order
            of their names' SHA-256, because the order of the names may be one of diseases.
        section: ``validation`` for those held out, ``training`` for the others.

    Raises:
        DriveSegError: as ``load_datalist``, if there are fewer persons than folds, if a training and a validation case
            have the same id, or if an image of several datasets would be in both.
    """
    number, folds = parse_fold(fold)
    if section not in ("training", "validation"):
        raise DriveSegError(f"section: a fold has training and validation cases, got {section!r}")
    dataset_dir = as_path(dataset_dir)
    if not isinstance(dataset_dir, (str, os.PathLike)):
        sections = {
            name: of_several(dataset_dir, partial(fold_cases, fold=fold, section=name, annotations=annotations))
            for name in ("training", "validation")
        }
        check_no_overlap(", ".join(map(str, dataset_dir)), sections)
        return sections[section]
    # The dataset's own split between the two does not matter here.
    parts = [part for part, held in read_sections(Path(dataset_dir), None).items() if held and part != "test"]
    both = [case for part in parts for case in load_datalist(dataset_dir, part, annotations, None)]
    cases = sorted(both, key=lambda case: case["case_id"])
    twice = sorted(case_id for case_id, count in Counter(case["case_id"] for case in cases).items() if count > 1)
    if twice:
        raise DriveSegError(
            f"{dataset_dir}: expected training and validation cases of different ids to make folds of, got twice: "
            f"{', '.join(twice)} (case_id in {DATASET_JSON} names them)"
        )
    persons = sorted(set(map(person, cases)), key=lambda name: sha256(name.encode(errors="surrogateescape")).digest())
    if len(persons) < folds:
        raise DriveSegError(f"{dataset_dir}: expected at least {folds} persons for {folds} folds, got {len(persons)}")
    held_out = set(persons[number - 1 :: folds])
    return [case for case in cases if (person(case) in held_out) == (section == "validation")]


def parse_fold(fold: str) -> tuple[int, int]:
    """Number of the fold, from 1, and number of folds.

    >>> parse_fold("2/5")
    (2, 5)

    Raises:
        DriveSegError: if it is not ``k/n`` with 1 ≤ k ≤ n and n ≥ 2.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", str(fold))
    number, folds = (int(part) for part in match.groups()) if match else (0, 0)
    if not 1 <= number <= folds or folds < 2:
        raise DriveSegError(f"fold: expected k/n with k from 1 to n and n from 2, such as 1/5, got {fold!r}")
    return number, folds


def _estimated(dataset_dir: Path) -> Sequence[str]:
    path = dataset_dir / DATASET_JSON
    return json.loads(path.read_text(encoding="utf-8-sig")).get("estimatedFov", []) if path.is_file() else []
