"""Segment files and folders, a few photographs or a hundred thousand, in one process or in many.

A photograph that fails is listed and the others are finished; a run that is started again does what is missing. Each
process notes what it has done in a journal of its own, ``progress_<rank>.jsonl``; the first puts them together.
"""

from __future__ import annotations

import csv
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
from drive_seg.files import keep, make_folder, remove_leftovers, sha256, take_lock, write_csv, write_text
from drive_seg.gallery import write_gallery
from drive_seg.output_folder import OutputFolder, entry_of, named_as_before
from drive_seg.photographs import left_out, photograph_cases, with_fov_masks
from drive_seg.pictures import PICTURES
from drive_seg.segmenter import Segmenter
from drive_seg.versions import software

__all__ = ["segment_photographs"]

SETTINGS = "settings.json"
ELSEWHERE = ("bundle_root", "dataset_dir", "output_dir", "checkpoint", "handlers", "evaluator", "run")
"""Keys of the config that say where things are, or what MONAI's own engine does with them."""

KINDS = (*PICTURES, "vessels.nii")
LONGEST_RUN = 365 * 24 * 3600.0
"""Seconds that a process which is done waits for the others: their shares take as long as they take."""


def segment_photographs(
    root: Path,
    paths: Sequence[str | os.PathLike],
    output_dir: Path,
    overrides: Mapping[str, Any],
    names: Sequence[str] = ("inference",),
    fov_dir: Path | None = None,
) -> list[tuple[str, str]]:
    """Segment files and folders; one that fails is reported and the others are finished.

    Under torchrun the processes share the photographs out. What an earlier run has finished in ``output_dir``, with
    the same weights and settings and from the same bytes, is not done again.

    Args:
        root: the bundle.
        paths: photographs and folders of photographs.
        output_dir: where the results go, with ``vessels.csv``, one row a photograph, ``gallery.html`` to look at, and
            ``failed.csv`` if one failed; these tell of earlier runs, too, if the settings are the same and the
            photographs are still there. ``settings.json`` says what all of it was made with.
        overrides: config keys and their values.
        names: configs, the base first.
        fov_dir: folder of FOV masks, see ``drive_seg.photographs.with_fov_masks``; where a photograph has none, its
            field of view is found.

    Returns:
        Photograph and reason of those of this run that failed, in all processes.

    Raises:
        DriveSegError: if there is no photograph, an override or the weights do not fit, another run is writing into
            ``output_dir``, or it holds photographs or results of others of the same names.
    """
    cases = photograph_cases(paths)
    if fov_dir is not None:
        cases = with_fov_masks(cases, fov_dir)
    make_folder(output_dir)
    _refuse_among_photographs(output_dir, cases)
    with _alone_in(output_dir) if get_rank() == 0 else nullcontext():
        return _segment(root, paths, cases, output_dir, overrides, names)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Two runs in one folder would replace each other's pictures, and neither's tables would tell of all of them."""
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
        cases = from_first(cases)  # a folder may have got another photograph since
    segmenter = Segmenter.from_config(files, values, many=True)  # also of one: its last bits depend on the threads
    for sentence in [*left_out(paths), *_without_mask(cases)] if rank == 0 else ():
        print(sentence, file=sys.stderr)  # noqa: T201
    made_with = from_first(_made_with(files, values, segmenter))  # machines may differ in what they have installed
    precisions = sorted(set(gather(segmenter.precision)))
    folder = OutputFolder(output_dir, hashlib.sha256(json.dumps(made_with).encode()).hexdigest()[:16])
    if rank == 0:
        remove_leftovers(output_dir, {f"{case['case_id']}_{kind}" for case in cases for kind in KINDS})
    done = folder.latest(cases)
    folder.refuse_to_replace(cases)
    if world_size > 1:
        distributed.barrier()  # nobody notes anything before all have read what is done
    todo = [case for case in cases if "failed" in done.get(case["case_id"], {"failed": ""})]
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
        if not isinstance(outcome, DriveSegError):  # a mistake of this program, which costs one photograph and no more
            tqdm.write("".join(traceback.format_exception(outcome)), file=sys.stderr)
            cause = first_cause(outcome)
            reason = f"{case['image']}: {type(cause).__name__}: {cause}"
        # Tables have a column for the photograph.
        journal.add({**folder.identity(case), "failed": reason.removeprefix(f"{case['image']}: ")})
        tqdm.write(f"drive-seg: {reason}", file=sys.stderr)
    if world_size > 1:
        distributed.barrier()
    latest = folder.latest(cases)
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
    leave_process_group()
    return _failures(latest[case["case_id"]] for case in cases if case["case_id"] in latest)


def _made_with(files: Sequence[str], values: Mapping[str, Any], segmenter: Segmenter) -> dict[str, Any]:
    """All that a result depends on beside the photograph: what was set by hand as it is in the config is the same."""
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
    """Results beside photographs would be taken for photographs by the next run, and might replace some of them."""
    folder = output_dir.resolve()
    for case in cases:
        if Path(case["image"]).parent.resolve() == folder:
            raise DriveSegError(
                f"{output_dir}: {Path(case['image']).name} lies there, choose an output folder without photographs "
                "that are to be segmented"
            )


def _of_earlier_runs(folder: OutputFolder, cases: Sequence[Case]) -> list[dict[str, Any]]:
    """What is noted of photographs that this run was not given; those it does not hold for any more are counted."""
    others = folder.other_cases(cases)
    entries = list(folder.latest(others).values())
    if len(entries) < len(others):
        print(  # noqa: T201
            f"{folder.path}: left out of its tables, because settings, photographs or results are no longer those of "
            f"an earlier run: {len(others) - len(entries)} of {len(others)} photographs",
            file=sys.stderr,
        )
    return entries


def _failures(entries: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    return [(entry["photograph"], entry["failed"]) for entry in entries if "failed" in entry]


def _keep_what_gets_lost(table: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A run with other settings measures anew, and what an earlier one has measured may have taken days."""
    if not table.is_file():
        return
    with table.open(encoding="utf-8", newline="") as file:
        before = {tuple(sorted(row.items(), key=str)) for row in csv.DictReader(file)}
    written = ({key: "" if value is None else str(value) for key, value in row.items()} for row in rows)
    if before - {tuple(sorted(row.items(), key=str)) for row in written} and (copy := keep(table)) is not None:
        print(f"{table}: as it was measured before, kept as {copy.name}", file=sys.stderr)  # noqa: T201
        settings = table.with_name(SETTINGS)
        if settings.is_file():
            suffix = copy.stem.removeprefix(table.stem)
            write_text(settings.with_stem(f"{settings.stem}{suffix}"), settings.read_text(encoding="utf-8"))


def _write_tables(output_dir: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """In the order of the photographs' paths, whichever run each is of."""
    entries = sorted(entries, key=lambda entry: str(entry["photograph"]))
    listing, failed = output_dir / "failed.csv", _failures(entries)
    if failed:
        write_csv(listing, [{"photograph": photograph, "reason": reason} for photograph, reason in failed])
    else:
        listing.unlink(missing_ok=True)
    rows = [
        {"photograph": entry["photograph"], "case_id": entry["case_id"], **entry["measures"]}
        for entry in entries
        if entry.get("measures")
    ]
    table = output_dir / "vessels.csv"
    _keep_what_gets_lost(table, rows)
    if rows:
        write_csv(table, rows)
    else:
        table.unlink(missing_ok=True)
    write_gallery(output_dir / "gallery.html", entries)
