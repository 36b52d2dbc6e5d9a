"""Segment files and folders, a few photographs or a hundred thousand, in one process or in many.

A photograph that fails is listed and the others are finished; a run that is started again does what is missing. Each
process notes what it has done in a journal of its own, ``progress_<rank>.jsonl``; the first puts them together.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch import distributed
from tqdm import tqdm

from drive_seg import __version__
from drive_seg.configs import config_files
from drive_seg.data import Case, left_out, photographs, with_fov_masks
from drive_seg.distributed import finish, start
from drive_seg.errors import DriveSegError, first_cause
from drive_seg.files import make_folder, remove_leftovers, sha256, write_csv
from drive_seg.gallery import write_gallery
from drive_seg.journal import Journal, read_journals
from drive_seg.segmenter import Segmenter

__all__ = ["segment_photographs"]

JOURNALS = "progress_*.jsonl"
KINDS = ("vessels", "vessels.nii", "probability", "overlay", "thumbnail")
LONGEST_RUN = timedelta(days=365)
"""That a process which is done waits for the others: their shares take as long as they take."""


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
            ``failed.csv`` if one failed.
        overrides: config keys and their values.
        names: configs, the base first.
        fov_dir: folder of FOV masks, see ``drive_seg.data.with_fov_masks``; where a photograph has none, its field of
            view is found.

    Returns:
        Photograph and reason of those that failed, in all processes.

    Raises:
        DriveSegError: if there is no photograph, an override or the weights do not fit, or ``output_dir`` holds
            photographs or results of others of the same names.
    """
    cases = photographs(paths)
    if fov_dir is not None:
        cases = with_fov_masks(cases, fov_dir)
    make_folder(output_dir)
    _refuse_among_photographs(output_dir, cases)
    values = {"bundle_root": str(root), "output_dir": str(output_dir), **overrides}
    files = config_files(root, *names)
    segmenter = Segmenter.from_config(files, values, many=True)  # also of one: its last bits depend on the threads
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    for sentence in [*left_out(paths), *_without_mask(cases)] if rank == 0 else ():
        print(sentence, file=sys.stderr)  # noqa: T201
    if processes > 1:
        start(LONGEST_RUN)
    settings = _fingerprint(files, overrides, segmenter)
    if rank == 0:
        remove_leftovers(output_dir, {f"{case['case_id']}_{kind}" for case in cases for kind in KINDS})
    done = _latest(output_dir, cases, settings)
    _refuse_results_of_others(output_dir, cases)
    if processes > 1:
        distributed.barrier()  # nobody notes anything before all have read what is done
    todo = [case for case in cases if "failed" in done.get(case["case_id"], {"failed": ""})]
    if len(todo) < len(cases) and rank == 0:
        print(f"{len(cases) - len(todo)} of {len(cases)} are done already in {output_dir}", file=sys.stderr)  # noqa: T201
    journal = Journal(output_dir / JOURNALS.replace("*", str(rank)))
    share = todo[rank::processes]
    shown = None if rank == 0 else True
    outcomes = segmenter.each(share, keep=_entry, catch=Exception)
    for case, outcome in tqdm(outcomes, total=len(share), unit="photograph", disable=shown):
        if not isinstance(outcome, Exception):
            journal.add({**_identity(case, settings), **outcome})
            continue
        reason = str(outcome)
        if not isinstance(outcome, DriveSegError):  # a mistake of this program, which costs one photograph and no more
            tqdm.write("".join(traceback.format_exception(outcome)), file=sys.stderr)
            cause = first_cause(outcome)
            reason = f"{case['image']}: {type(cause).__name__}: {cause}"
        journal.add({**_identity(case, settings), "failed": reason})
        tqdm.write(f"drive-seg: {reason}", file=sys.stderr)
    if processes > 1:
        distributed.barrier()
    latest = _latest(output_dir, cases, settings)
    entries = [latest[case["case_id"]] for case in cases if case["case_id"] in latest]
    failed = [(entry["photograph"], entry["failed"]) for entry in entries if "failed" in entry]
    if rank == 0:
        _write_tables(output_dir, entries, failed)
    finish()
    return failed


def _fingerprint(files: Sequence[str], overrides: Mapping[str, Any], segmenter: Segmenter) -> str:
    """Of everything that a result depends on beside the photograph."""
    parts = {
        "version": __version__,
        "overrides": {key: str(value) for key, value in sorted(overrides.items()) if key != "checkpoint"},
        "configs": [sha256(file) for file in files],
        "weights": sha256(segmenter.checkpoint),
        "engine": segmenter.engine,
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _identity(case: Case, settings: str) -> dict[str, Any]:
    about: dict[str, Any] = {"case_id": case["case_id"], "photograph": case["image"], "settings": settings, "fov": None}
    try:
        about["bytes"], about["modified_ns"] = _stamp(case["image"])
        if "fov" in case:
            about["fov"] = [case["fov"], *_stamp(case["fov"])]
    except OSError:  # gone since the folder was listed, which its error tells
        pass
    return about


def _without_mask(cases: Sequence[Case]) -> list[str]:
    missing = sum("fov" not in case for case in cases)
    if missing in (0, len(cases)):
        return []
    return [f"{missing} of {len(cases)} photographs have no mask there, their field of view is found"]


def _entry(result: Mapping[str, Any]) -> dict[str, Any]:
    height, width = result["pred"].shape[1:]
    saved = {kind: Path(path).name for kind, path in result.get("saved", {}).items()}
    measures = {name: _rounded(value) for name, value in result.get("measures", {}).items()}
    stamps = {Path(path).name: _stamp(path) for path in result.get("saved", {}).values()}
    return {"width_px": int(width), "height_px": int(height), "measures": measures, "saved": saved, "stamps": stamps}


def _stamp(path: str | os.PathLike) -> list[int]:
    """Bytes and time of a file, which another run's result under the same name does not have."""
    status = Path(path).stat()
    return [status.st_size, status.st_mtime_ns]


def _rounded(value: Any) -> Any:
    """JSON knows no NaN; an empty field says that there is nothing to measure."""
    if not isinstance(value, float):
        return value
    return round(value, 6) if math.isfinite(value) else None


def _latest(output_dir: Path, cases: Sequence[Case], settings: str) -> dict[str, dict[str, Any]]:
    """By case id, what is noted of the photographs as they are now: done, if the files are still there, or failed."""
    wanted = {case["case_id"]: _identity(case, settings) for case in cases}
    present = _stamps(output_dir)
    found: dict[str, dict[str, Any]] = {}
    for entry in read_journals(output_dir, JOURNALS):
        identity = wanted.get(entry.get("case_id", ""))
        if identity is None or not identity.items() <= entry.items():
            continue
        # The journals of several processes have no common order; what succeeded once outlasts a failure.
        if "failed" in entry:
            found.setdefault(entry["case_id"], entry)
        elif _is_there(entry, present):
            found[entry["case_id"]] = entry
    return found


def _stamps(folder: Path) -> dict[str, list[int]]:
    return {file.name: _stamp(file.path) for file in os.scandir(folder) if file.is_file()}


def _is_there(entry: Mapping[str, Any], present: Mapping[str, list[int]]) -> bool:
    stamps = entry.get("stamps", {})
    return set(stamps) == set(entry["saved"].values()) and all(present.get(name) == stamps[name] for name in stamps)


def _refuse_among_photographs(output_dir: Path, cases: Sequence[Case]) -> None:
    """Results beside photographs would be taken for photographs by the next run, and might replace some of them."""
    folder = output_dir.resolve()
    for case in cases:
        if Path(case["image"]).parent.resolve() == folder:
            raise DriveSegError(
                f"{output_dir}: {Path(case['image']).name} lies there, expected an output folder without photographs "
                "that are to be segmented"
            )


def _refuse_results_of_others(output_dir: Path, cases: Sequence[Case]) -> None:
    """Two photographs of one name, in two runs with one output folder, would have the same files."""
    wanted = {case["case_id"]: case["image"] for case in cases}
    present = _stamps(output_dir)
    for entry in read_journals(output_dir, JOURNALS):
        name, photograph = entry.get("case_id", ""), Path(str(entry.get("photograph")))
        if name not in wanted or "failed" in entry or not _is_there(entry, present):
            continue
        if photograph.exists() and not _same_file(photograph, Path(wanted[name])):
            raise DriveSegError(
                f"{output_dir}: {name} is of {photograph}, whose results those of {wanted[name]} would replace; "
                "expected another output folder"
            )


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return one == other


def _write_tables(output_dir: Path, entries: Sequence[Mapping[str, Any]], failed: Sequence[tuple[str, str]]) -> None:
    listing = output_dir / "failed.csv"
    if failed:
        write_csv(listing, [{"photograph": photograph, "reason": reason} for photograph, reason in failed])
    else:
        listing.unlink(missing_ok=True)
    rows = [{"photograph": entry["photograph"], **entry["measures"]} for entry in entries if entry.get("measures")]
    if rows:
        write_csv(output_dir / "vessels.csv", rows)
    else:
        (output_dir / "vessels.csv").unlink(missing_ok=True)
    write_gallery(output_dir / "gallery.html", entries)
