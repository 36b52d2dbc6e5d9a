"""Segment files and folders, a few photographs or a hundred thousand, in one process or many.

A photograph that fails is listed, and the rest are finished; a restarted run does only what is missing. Each process
records its progress in its own journal, ``progress_<rank>.jsonl``; the first process combines them.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock
from torch import distributed
from tqdm import tqdm

from drive_seg import __version__
from drive_seg.configs import SPECIAL, config_files, path_value, read_configs, without_descriptions
from drive_seg.data import Case
from drive_seg.distributed import from_first, gather, get_rank, get_world_size, join_process_group, leave_process_group
from drive_seg.errors import DriveSegError, first_cause
from drive_seg.files import (
    csv_text,
    encoded,
    keep,
    make_folder,
    remove,
    remove_leftovers,
    sha256,
    take_lock,
    write_csv,
    write_text,
)
from drive_seg.gallery import write_gallery
from drive_seg.output_folder import OutputFolder, entry_of, named_as_before
from drive_seg.photographs import left_out, photograph_cases, with_fov_masks
from drive_seg.pictures import PICTURES
from drive_seg.segmenter import Segmenter
from drive_seg.versions import software

__all__ = ["segment_photographs"]

SETTINGS = "settings.json"
ELSEWHERE = ("bundle_root", "dataset_dir", "output_dir", "checkpoint", "handlers", "evaluator", "run")
"""Config keys that say where things are, or that only MONAI's own engine uses."""

NOT_HERE = {
    "dataset_dir": "expected photographs and folders without an option before them",
    "save": "predict writes what it finds, expected --pictures and --measure; drive_seg.load() leaves it in memory",
}
"""Config keys that mean nothing when photographs are segmented into a folder, and what is meant instead."""

KINDS = (*PICTURES, "vessels.nii")
LONGEST_RUN = 365 * 24 * 3600.0
"""Seconds that a finished process waits for the others, whose shares may take any time."""

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
            ``output_dir``, or that folder holds some of the photographs or the results of namesakes.
    """
    for key, instead in NOT_HERE.items():
        if key in overrides:
            raise DriveSegError(f"{key}: {instead}")
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    cases = photograph_cases(paths)
    if fov_dir is not None:
        cases = with_fov_masks(cases, fov_dir)
    make_folder(output_dir)
    _refuse_among_photographs(output_dir, cases)
    with _alone_in(output_dir) if get_rank() == 0 else nullcontext():
        return _segment(root, paths, cases, output_dir, overrides, names)


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
    root: Path,
    paths: Sequence[str | os.PathLike],
    cases: Sequence[Case],
    output_dir: Path,
    overrides: Mapping[str, Any],
    names: Sequence[str],
) -> list[tuple[str, str]]:
    cases = named_as_before(output_dir, cases)
    values = {"bundle_root": str(root), "output_dir": path_value(output_dir), **overrides}
    files = config_files(root, *names)
    rank, world_size = get_rank(), get_world_size()
    if world_size > 1:
        join_process_group(LONGEST_RUN, read_configs(files, values).get_parsed_content("device"))
        cases = from_first(cases)  # a folder may have gained a photograph since
    segmenter = Segmenter.from_config(files, values, many=True)  # even for one: its last bits depend on the threads
    for sentence in [*left_out(paths), *_without_mask(cases)] if rank == 0 else ():
        print(sentence, file=sys.stderr)  # noqa: T201
    made_with = from_first(_made_with(files, values, segmenter))  # machines may differ in what they have installed
    precisions = sorted(set(gather(segmenter.precision)))
    folder = OutputFolder(output_dir, hashlib.sha256(json.dumps(made_with).encode()).hexdigest()[:16])
    if rank == 0:
        pictures = {f"{case['case_id']}_{kind}" for case in cases for kind in KINDS}
        remove_leftovers(output_dir, {*pictures, "vessels", "failed", "gallery", "settings"})
    done = folder.latest(cases)
    folder.refuse_to_replace(cases)
    todo = [case for case in cases if "failed" in done.get(case["case_id"], {"failed": ""})]
    for copy in folder.keep_corrected(todo) if rank == 0 else ():
        print(f"{copy}: a result that was changed by hand, kept under this name", file=sys.stderr)  # noqa: T201
    if world_size > 1:
        distributed.barrier()  # no process writes to its journal before all have read what is done
    if len(todo) < len(cases) and rank == 0:
        print(f"{len(cases) - len(todo)} of {len(cases)} are done already in {output_dir}", file=sys.stderr)  # noqa: T201
    journal = folder.journal(rank)
    share = todo[rank::world_size]
    hidden = None if rank == 0 else True  # None: where there is no terminal
    outcomes = segmenter.each(share, keep=entry_of, catch=Exception)
    for case, outcome in tqdm(outcomes, total=len(share), unit="photograph", disable=hidden):
        if not isinstance(outcome, Exception):
            journal.add({**folder.identity(case), **outcome})
            continue
        reason = str(outcome)
        if not isinstance(outcome, DriveSegError):  # a bug here, which must cost only one photograph
            tqdm.write("".join(traceback.format_exception(outcome)), file=sys.stderr)
            cause = first_cause(outcome)
            reason = f"{case['image']}: {type(cause).__name__}: {cause}"
        # Tables have a separate column for the photograph.
        journal.add({**folder.identity(case), "failed": reason.removeprefix(f"{case['image']}: ")})
        tqdm.write(f"drive-seg: {reason}", file=sys.stderr)
    if world_size > 1:
        distributed.barrier()
    latest = folder.latest(cases)
    for case in cases:
        if case["case_id"] not in latest:  # deleted or changed by somebody, or the file system has lost it
            latest[case["case_id"]] = {**folder.identity(case), "failed": LOST}
            if rank == 0:
                tqdm.write(f"drive-seg: {case['image']}: {LOST}", file=sys.stderr)
    if rank == 0:
        _write_tables(output_dir, [*latest.values(), *_of_earlier_runs(folder, cases)])
        about = {
            **made_with,
            "checkpoint": segmenter.checkpoint,
            "command": shlex.join(sys.argv),
            "device": str(segmenter.device),
            "precision": ", ".join(precisions),
            "machine": f"{platform.system()} {platform.machine()}",
            "versions": software(),
        }
        write_text(output_dir / SETTINGS, json.dumps(about, indent=2) + "\n")
        _tell_of_remarks([entry for entry in latest.values() if "failed" not in entry])
    leave_process_group()
    return _failures(latest[case["case_id"]] for case in cases)


def _made_with(files: Sequence[str], values: Mapping[str, Any], segmenter: Segmenter) -> dict[str, Any]:
    """All that a result depends on besides the photograph; overrides that repeat the config change nothing."""
    config = without_descriptions(read_configs(files, values).get())
    config = {key: value for key, value in config.items() if key not in ELSEWHERE}
    return {
        "drive_seg": __version__,
        "weights_sha256": sha256(segmenter.checkpoint),
        "engine": segmenter.engine,
        "settings": {key: value for key, value in config.items() if _is_plain(value) and key != "imports"},
        "config_sha256": hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest(),
    }


def _is_plain(value: Any) -> bool:
    return not isinstance(value, dict) and not (isinstance(value, str) and value.startswith(SPECIAL))


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
        print(  # noqa: T201
            f"{folder.path}: left out of its tables, because settings, photographs or results are no longer those of "
            f"an earlier run: {len(others) - len(entries)} of {len(others)} photographs",
            file=sys.stderr,
        )
    return entries


def _tell_of_remarks(entries: Sequence[Mapping[str, Any]]) -> None:
    remarks = sum(bool(entry["measures"].get("quality")) for entry in entries)
    if remarks:
        print(  # noqa: T201
            f"photographs with a remark in the column quality of vessels.csv: {remarks} of {len(entries)}",
            file=sys.stderr,
        )


def _failures(entries: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    return [(entry["photograph"], entry["failed"]) for entry in entries if "failed" in entry]


def _keep_what_gets_lost(table: Path, text: str) -> None:
    """Keep a table before it loses lines: a run with other settings measures anew, and the rows may have taken days.

    Bytes are compared, because somebody may have edited the table.
    """
    if not table.is_file() or set(table.read_bytes().split(b"\n")) <= set(encoded(text).split(b"\n")):
        return
    if (copy := keep(table, table.with_name(SETTINGS))) is not None:
        print(f"{table}: as it was measured before, kept as {copy.name}", file=sys.stderr)  # noqa: T201


def _write_tables(output_dir: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Write the tables in order of the photographs' paths, whichever run each is from."""
    entries = sorted(entries, key=lambda entry: str(entry["photograph"]))
    rows = [
        {"photograph": entry["photograph"], "case_id": entry["case_id"], **entry["measures"]}
        for entry in entries
        if entry.get("measures")
    ]
    table = output_dir / "vessels.csv"
    text = csv_text(rows) if rows else ""
    _keep_what_gets_lost(table, text)
    if text:
        write_text(table, text)
    else:
        remove(table)
    listing, failed = output_dir / "failed.csv", _failures(entries)
    if failed:
        write_csv(listing, [{"photograph": photograph, "reason": reason} for photograph, reason in failed])
    else:
        remove(listing)
    write_gallery(output_dir / "gallery.html", entries)
