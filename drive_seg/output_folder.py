"""What an output folder holds of photographs, told by the journals of the processes that segmented them into it.

A photograph is known by its path, size and time, and so are its results: what has changed since, or is another's
of the same name, is not taken for done.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from drive_seg.data import Case
from drive_seg.errors import DriveSegError
from drive_seg.journal import Journal, read_journals
from drive_seg.measure_table import rounded

__all__ = ["OutputFolder", "entry_of", "named_as_before"]

JOURNALS = "progress_*.jsonl"

Entry = dict[str, Any]


class OutputFolder:
    """The journals of a folder and the files they tell of.

    Args:
        path: the folder, which exists.
        settings: of everything that a result depends on beside its photograph, as a text.
    """

    def __init__(self, path: Path, settings: str) -> None:
        self.path = path
        self.settings = settings

    def journal(self, rank: int) -> Journal:
        """That of a process, to add to."""
        return Journal(self.path / JOURNALS.replace("*", str(rank)))

    def identity(self, case: Case) -> Entry:
        """What tells a photograph and its field of view from others, to be noted with what became of it."""
        about: Entry = {"case_id": case["case_id"], "photograph": case["image"], "settings": self.settings, "fov": None}
        try:
            about["bytes"], about["modified_ns"] = _stamp(case["image"])
            if "fov" in case:
                about["fov"] = [case["fov"], *_stamp(case["fov"])]
        except OSError:  # gone since the folder was listed, which its error tells
            pass
        return about

    def latest(self, cases: Sequence[Case]) -> dict[str, Entry]:
        """By case id, what is noted of the photographs as they are now: done, if the files are there, or failed."""
        wanted = {case["case_id"]: self.identity(case) for case in cases}
        present = _stamps(self.path)
        found: dict[str, Entry] = {}
        for entry in _entries(self.path):
            identity = wanted.get(entry["case_id"])
            if identity is None or not identity.items() <= entry.items():
                continue
            # The journals of several processes have no common order; what succeeded once outlasts a failure.
            if "failed" in entry:
                found.setdefault(entry["case_id"], entry)
            elif _is_there(entry, present):
                found[entry["case_id"]] = entry
        return found

    def other_cases(self, cases: Sequence[Case]) -> list[Case]:
        """Photographs of earlier runs, whatever the settings, that are not among ``cases`` and still exist."""
        names, photographs = {case["case_id"] for case in cases}, {case["image"] for case in cases}
        found: dict[str, Case] = {}
        for entry in _entries(self.path):
            name, photograph = entry["case_id"], entry["photograph"]
            if name not in names and photograph not in photographs and Path(photograph).exists():
                mask = {"fov": entry["fov"][0]} if entry.get("fov") else {}
                found[name] = {"case_id": name, "image": photograph, **mask}
        return list(found.values())

    def refuse_to_replace(self, cases: Sequence[Case]) -> None:
        """Two photographs of one name, in two runs with one output folder, would have the same files.

        Raises:
            DriveSegError: if the results of one of ``cases`` would replace those of another photograph.
        """
        wanted = {case["case_id"]: case["image"] for case in cases}
        present = _stamps(self.path)
        for entry in _entries(self.path):
            name, photograph = entry["case_id"], Path(entry["photograph"])
            if name not in wanted or "failed" in entry or not _is_there(entry, present):
                continue
            if photograph.exists() and not _same_file(photograph, Path(wanted[name])):
                raise DriveSegError(
                    f"{self.path}: {name} is of {photograph}, whose results those of {wanted[name]} would replace; "
                    "expected another output folder"
                )


def named_as_before(path: Path, cases: Sequence[Case]) -> list[Case]:
    """The cases, those that have results in a folder under the names that these have.

    A name depends on the photographs that are given together, such as two of one name in folders of their own; without
    this, the results of a run with fewer of them would stay beside those of the next.
    """
    before = {entry["photograph"]: entry["case_id"] for entry in _entries(path) if "failed" not in entry}
    named = [{**case, "case_id": before.get(case["image"], case["case_id"])} for case in cases]
    distinct = {case["case_id"].casefold() for case in named}
    return named if len(distinct) == len(named) else list(cases)


def entry_of(result: Mapping[str, Any]) -> Entry:
    """What is noted of a photograph that was segmented, by the case that came out."""
    height, width = result["pred"].shape[1:]
    saved = {kind: Path(path).name for kind, path in result.get("saved", {}).items()}
    measures = rounded(result.get("measures", {}))
    stamps = {Path(path).name: _stamp(path) for path in result.get("saved", {}).values()}
    return {"width_px": int(width), "height_px": int(height), "measures": measures, "saved": saved, "stamps": stamps}


def _entries(path: Path) -> Iterator[Entry]:
    for entry in read_journals(path, JOURNALS):
        if {"case_id", "photograph"} <= entry.keys():
            yield entry


def _stamp(path: str | os.PathLike) -> list[int]:
    """Bytes and time of a file, which another run's result under the same name does not have."""
    status = Path(path).stat()
    return [status.st_size, status.st_mtime_ns]


def _stamps(folder: Path) -> dict[str, list[int]]:
    return {file.name: _stamp(file.path) for file in os.scandir(folder) if file.is_file()}


def _is_there(entry: Mapping[str, Any], present: Mapping[str, list[int]]) -> bool:
    stamps = entry.get("stamps", {})
    return set(stamps) == set(entry.get("saved", {}).values()) and all(
        present.get(name) == stamps[name] for name in stamps
    )


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return one == other
