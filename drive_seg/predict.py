"""Segment files and folders, a few photographs or a hundred thousand, in one process or many.

A photograph that fails is listed, and the rest are finished; a restarted run does only what is missing, and at the end,
one at a time, what was being worked on when a process was killed. Each process records its progress in its own journal,
``progress_<rank>.jsonl``; the first process combines them.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import sys
import time
import traceback
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from drive_seg import __version__
from drive_seg.classes import in_names, names_of_classes
from drive_seg.configs import SPECIAL, config_files, path_value, read_configs, without_descriptions
from drive_seg.data import Case
from drive_seg.distributed import (
    PATIENCE,
    from_first,
    gather,
    get_rank,
    get_world_size,
    join_process_group,
    leave_process_group,
    lost_contact,
    meet,
    same_for_all,
)
from drive_seg.errors import DriveSegError, first_cause
from drive_seg.files import make_folder, remove, remove_leftovers, sha256, take_lock, write_text
from drive_seg.output_folder import OutputFolder, entry_of
from drive_seg.photographs import left_out, photograph_cases, with_fov_masks
from drive_seg.pictures import PICTURES
from drive_seg.result_tables import SETTINGS, failures, write_tables
from drive_seg.segmenter import Segmenter
from drive_seg.versions import software

__all__ = ["segment_photographs"]

PLACES = ("bundle_root", "dataset_dir", "output_dir", "checkpoint")
"""Config keys that say where things are."""

OF_MONAI = ("dataset", "dataloader", "key_metric", "weights", "handlers", "evaluator", "run")
"""Config keys that only MONAI's own engine uses."""

NOT_HERE = {
    "dataset_dir": "expected photographs and folders without an option before them",
    "save": "predict writes what it finds, expected --pictures and --measure; drive_seg.load() leaves it in memory",
}
"""Config keys that mean nothing when photographs are segmented into a folder, and what is meant instead."""

KINDS = (*PICTURES, "vessels.nii")
TRIES = 3
"""How often a photograph is begun at which its process may have ended; the others are finished first."""

ENDED = (
    f"its process ended each of the {TRIES} times that this photograph was worked on, perhaps for lack of memory; "
    "to try it again, choose another output folder or save the photograph anew"
)
SEEN_LATE = 60.0
"""Seconds in which what a process has written may still be missing for another machine, on network file systems."""

LOST = "photograph or results are no longer as they were when this run wrote them, run it again"


def segment_photographs(
    root: Path,
    paths: str | os.PathLike | Sequence[str | os.PathLike],
    output_dir: Path,
    overrides: Mapping[str, Any],
    names: Sequence[str] = ("inference",),
    fov_dir: Path | None = None,
) -> list[tuple[str, str]]:
    """Segment files and folders; photographs that fail are reported, and the rest are finished.

    Under torchrun, the processes share the photographs. Results that an earlier run wrote to ``output_dir`` are kept if
    weights, settings and photograph are unchanged.

    Args:
        root: the bundle.
        paths: photographs and folders of photographs, one or several.
        output_dir: folder for the results, with ``vessels.csv``, one row per photograph, ``gallery.html`` to look at,
            and ``failed.csv`` if any failed; these include earlier runs if the settings are the same and the
            photographs are still there. ``settings.json`` records what the results were made with.
        overrides: config keys and their values.
        names: configs, the base first.
        fov_dir: folder of FOV masks, see ``drive_seg.photographs.with_fov_masks``; without a mask, the field of view of
            a photograph is estimated.

    Returns:
        Photograph and reason for each failure in this run, of all processes.

    Raises:
        DriveSegError: if there is no photograph, an override or the weights do not fit, another run is writing to
            ``output_dir``, or that folder holds some of the photographs or the results of namesakes; of several
            processes, also if they have different weights, settings or photographs, one has ended, or, after all else
            is written, if the results of some are missing.
    """
    for key, instead in NOT_HERE.items():
        if key in overrides:
            raise DriveSegError(f"{key}: {instead}")
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    values = {"bundle_root": str(root), "output_dir": path_value(output_dir), **overrides}
    files = config_files(root, *names)
    try:
        if get_world_size() > 1:  # first of all, so that the others are told if one fails
            join_process_group(PATIENCE, read_configs(files, values).get_parsed_content("device"))
        cases = photograph_cases(paths)
        if fov_dir is not None:
            cases = with_fov_masks(cases, fov_dir)
        make_folder(output_dir)
        _refuse_among_photographs(output_dir, cases)
        with _alone_in(output_dir) if get_rank() == 0 else nullcontext():
            return _segment(files, values, paths, cases, output_dir)
    except Exception as error:
        leave_process_group(together=False)  # or gloo's threads may end the process with a signal, not exit code 1
        lost = lost_contact(error)
        if lost is None:
            raise
        raise lost from error


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Lock a folder: two runs in it would replace each other's pictures, and neither's tables would list them all."""
    lock = FileLock(folder / ".predict.lock")
    take_lock(lock)
    try:
        yield
    finally:
        lock.release()


def _segment(
    files: Sequence[str],
    values: Mapping[str, Any],
    paths: Sequence[str | os.PathLike],
    cases: Sequence[Case],
    output_dir: Path,
) -> list[tuple[str, str]]:
    rank, world_size = get_rank(), get_world_size()
    segmenter = Segmenter.from_config(files, values, many=True)  # even for one: its last bits depend on the threads
    for sentence in [*left_out(paths), *_without_mask(cases)] if rank == 0 else ():
        _tell(sentence)
    made_with = _made_with(files, values, segmenter)
    paths_sha256 = hashlib.sha256(json.dumps(cases).encode()).hexdigest()  # because there may be a hundred thousand
    same_for_all({**made_with, "number of photographs": len(cases), "SHA-256 of the photographs' paths": paths_sha256})
    parser = read_configs(files, values)
    classes = names_of_classes(*(parser.get_parsed_content(key) for key in ("num_classes", "class_names")))
    about = {
        **made_with,
        "checkpoint": segmenter.checkpoint,
        "command": shlex.join(sys.argv),
        "device": _of_all(str(segmenter.device)),
        "precision": _of_all(segmenter.precision),
        "machine": _of_all(f"{platform.system()} {platform.machine()}"),
        "versions": {name: _of_all(version) for name, version in software().items()},
    }
    settings_id = hashlib.sha256(json.dumps(made_with).encode()).hexdigest()[:16]
    found = _to_do(OutputFolder(output_dir, settings_id), cases, classes) if rank == 0 else None
    cases, todo, suspects, corrected = from_first(found)
    folder = OutputFolder(output_dir, settings_id)
    share = todo[rank::world_size]
    # By one process: torchrun ends the others with one that is killed, and their photographs would be suspects, too.
    alone = suspects if rank == 0 else []
    _work(segmenter, folder, [share, *([case] for case in alone)], len(share) + len(alone))
    missing_processes = meet(folder.growth)
    if not missing_processes:
        leave_process_group()
    # Nothing is exchanged from here on, so that the tables are written whoever has vanished.
    latest = folder.latest(cases)
    until = time.monotonic() + (SEEN_LATE if world_size > 1 and not missing_processes else 0)
    while len(latest) < len(cases) and time.monotonic() < until:
        time.sleep(1)
        folder = OutputFolder(output_dir, settings_id)
        latest = folder.latest(cases)
    for file, copy in corrected if rank == 0 else ():
        if file.is_file() and sha256(file) == sha256(copy):  # not corrected after all
            remove(copy)
        else:
            _tell(f"{copy}: a result that was changed by hand, kept under this name")
    lost = [case for case in cases if case["case_id"] not in latest]
    for case in lost:  # deleted or changed by somebody, or the file system has lost it
        latest[case["case_id"]] = {**folder.identity(case), "failed": LOST}
        if rank == 0 and world_size == 1:
            _tell(f"drive-seg: {case['image']}: {LOST}")
    if rank == 0:
        before = write_tables(output_dir, [*latest.values(), *_of_earlier_runs(folder, cases)], classes)
        if before is not None:
            _tell(f"{output_dir / 'vessels.csv'}: as it was measured before, kept as {before.name}")
        write_text(output_dir / SETTINGS, json.dumps(about, indent=2) + "\n")
        _tell_of_remarks([entry for entry in latest.values() if "failed" not in entry])
    if rank == 0 and world_size > 1 and lost:
        silent = ", ".join(map(str, missing_processes))
        ended = f" (without sign of life: process {silent})" if silent else ""
        raise DriveSegError(
            f"{len(lost)} of {len(cases)} photographs have no result in {output_dir}: expected one folder that all "
            f"processes see, processes that do not end early{ended}, and photographs and results that stay as they are"
            "; see failed.csv, and run it again for the rest"
        )
    return failures(latest[case["case_id"]] for case in cases)


def _to_do(
    folder: OutputFolder, cases: Sequence[Case], classes: Sequence[str]
) -> tuple[list[Case], list[Case], list[Case], list[tuple[Path, Path]]]:
    """What there is to do, and what was kept before.

    Returns:
        Cases, named as their results; those without, and apart from them those at which a process may have ended; and
        as ``OutputFolder.keep_corrected``.
    """
    cases = folder.named_as_before(cases)  # a folder may have gained a photograph since
    kinds = (*KINDS, *(f"probability_{in_names(name)}" for name in classes))
    pictures = {f"{case['case_id']}_{kind}" for case in cases for kind in kinds}
    remove_leftovers(folder.path, {*pictures, "vessels", "failed", "gallery", "settings"})
    done = folder.latest(cases)
    folder.refuse_to_replace(cases)
    missing = {"failed": ""}
    reasons = {case["case_id"]: done.get(case["case_id"], missing).get("failed") for case in cases}
    given_up = [case for case in cases if reasons[case["case_id"]] == ENDED]
    todo = [case for case in cases if reasons[case["case_id"]] not in (None, ENDED)]
    begun = folder.begun(todo)
    for case in todo:
        if begun.get(case["case_id"], 0) >= TRIES:
            folder.journal(0).add({**folder.identity(case), "failed": ENDED})
            given_up.append(case)
    for case in given_up:
        _tell(f"drive-seg: {case['image']}: {ENDED}")
    todo = [case for case in todo if begun.get(case["case_id"], 0) < TRIES]
    corrected = folder.keep_corrected(todo)
    if finished := sum("failed" not in entry for entry in done.values()):
        _tell(f"{finished} of {len(cases)} are done already in {folder.path}")
    suspects = sorted((case for case in todo if case["case_id"] in begun), key=lambda case: begun[case["case_id"]])
    if suspects:
        _tell(f"one at a time at the end, because a run has ended at them: {len(suspects)}")
    return cases, [case for case in todo if case["case_id"] not in begun], suspects, corrected


def _work(segmenter: Segmenter, folder: OutputFolder, groups: Iterable[Sequence[Case]], total: int) -> None:
    """Segment groups of photographs one after the other, and note in the journal what is begun and what came of it.

    Photographs are noted as they were when they were begun: one that was replaced since has not been segmented.
    """
    journal = folder.journal(get_rank())
    under_way: dict[str, dict[str, Any]] = {}

    def noted(group: Sequence[Case]) -> Iterator[Case]:
        for case in group:
            under_way[case["case_id"]] = folder.identity(case)
            journal.add({**under_way[case["case_id"]], "begun": 1})
            yield case

    hidden = None if get_rank() == 0 else True  # None: where there is no terminal

    def segmented() -> Generator[tuple[Case, Any], None, None]:
        for group in groups:
            yield from segmenter.each(noted(group), keep=entry_of, catch=Exception)

    outcomes = segmented()
    try:
        for case, outcome in tqdm(outcomes, total=total, unit="photograph", disable=hidden):
            identity = under_way[case["case_id"]]
            if not isinstance(outcome, Exception):
                journal.add({**identity, **outcome})
                del under_way[case["case_id"]]
                continue
            reason = str(outcome)
            if not isinstance(outcome, DriveSegError):  # a bug here, which must cost only one photograph
                tqdm.write("".join(traceback.format_exception(outcome)), file=sys.stderr)
                cause = first_cause(outcome)
                reason = f"{case['image']}: {type(cause).__name__}: {cause}"
            # Tables have a separate column for the photograph.
            journal.add({**identity, "failed": reason.removeprefix(f"{case['image']}: ")})
            del under_way[case["case_id"]]
            tqdm.write(f"drive-seg: {reason}", file=sys.stderr)
    except (Exception, KeyboardInterrupt):  # which is no photograph's fault
        for identity in under_way.values():
            with suppress(DriveSegError):  # such as a full disk, which may be why the run ends
                journal.add({**identity, "begun": -1})
        raise
    finally:
        outcomes.close()  # ends the threads, before what they use goes


def _tell(sentence: str) -> None:
    """Print to stderr, as stdout is for what a command returns."""
    print(sentence, file=sys.stderr)  # noqa: T201


def _of_all(text: str) -> str:
    """What all processes say: machines may differ in what they have installed."""
    return ", ".join(sorted(set(gather(text))))


def _made_with(files: Sequence[str], values: Mapping[str, Any], segmenter: Segmenter) -> dict[str, Any]:
    """All that a result depends on besides the photograph; overrides that repeat the config change nothing."""
    config = without_descriptions(read_configs(files, values).get())
    config = {key: value for key, value in config.items() if key not in PLACES + OF_MONAI}
    plain = {
        key: value
        for key, value in config.items()
        if key != "imports" and not isinstance(value, dict) and not str(value).startswith(SPECIAL)
    }
    return {
        "drive_seg": __version__,
        "weights_sha256": sha256(segmenter.checkpoint),
        "engine": _of_all(segmenter.engine),
        "settings": plain,
        "config_sha256": hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest(),
    }


def _without_mask(cases: Sequence[Case]) -> list[str]:
    missing = sum("fov" not in case for case in cases)
    if missing in (0, len(cases)):
        return []
    return [f"{missing} of {len(cases)} photographs have no mask there; their field of view is estimated"]


def _refuse_among_photographs(output_dir: Path, cases: Sequence[Case]) -> None:
    """Refuse to write beside photographs: the next run would read results as photographs, and might replace some."""
    folder = output_dir.resolve()
    for case in cases:
        if Path(case["image"]).parent.resolve() == folder:
            raise DriveSegError(
                f"{output_dir}: {Path(case['image']).name} lies there, choose an output folder without photographs "
                "that are to be segmented"
            )


def _of_earlier_runs(folder: OutputFolder, cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Entries of photographs that this run was not given; those that are out of date are only counted."""
    others = folder.other_cases(cases)
    entries = list(folder.latest(others).values())
    if len(entries) < len(others):
        _tell(
            f"{folder.path}: left out of its tables, because settings, photographs or results are no longer those of "
            f"an earlier run: {len(others) - len(entries)} of {len(others)} photographs"
        )
    return entries


def _tell_of_remarks(entries: Sequence[Mapping[str, Any]]) -> None:
    remarks = sum(bool(entry["measures"].get("quality")) for entry in entries)
    if remarks:
        _tell(f"photographs with a remark in the column quality of vessels.csv: {remarks} of {len(entries)}")
