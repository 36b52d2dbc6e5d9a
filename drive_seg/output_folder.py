"""The results in an output folder, as recorded in the journals of the processes that wrote them.

Photographs and results are identified by path, size and modification time: a file that has changed since, or a
namesake, does not count as done.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from drive_seg.data import Case
from drive_seg.errors import DriveSegError
from drive_seg.files import keep
from drive_seg.journal import Journal, read_journals
from drive_seg.measure_table import rounded

__all__ = ["OutputFolder", "entry_of", "named_as_before"]

JOURNALS = "progress_*.jsonl"

CORRECTED = frozenset({"vessels", "fov"})
"""Results that people correct by hand."""

Entry = dict[str, Any]


class OutputFolder:
    """The journals of a folder and the files they list.

    Args:
        path: the folder, which must exist.
        settings: text that identifies everything a result depends on besides its photograph.
    """

    def __init__(self, path: Path, settings: str) -> None:
        self.path = path
        self.settings = settings

    def journal(self, rank: int) -> Journal:
        """The journal of a process, open for adding entries."""
        return Journal(self.path / JOURNALS.replace("*", str(rank)))

    def identity(self, case: Case) -> Entry:
        """Identifies a photograph and its field of view; recorded together with the outcome."""
        about: Entry = {"case_id": case["case_id"], "photograph": case["image"], "settings": self.settings, "fov": None}
        try:
            about["bytes"], about["modified_ns"] = _stamp(case["image"])
            if "fov" in case:
                about["fov"] = [case["fov"], *_stamp(case["fov"])]
        except OSError:  # deleted since the folder was listed, as its error will say
            pass
        return about

    def latest(self, cases: Sequence[Case]) -> dict[str, Entry]:
        """Entries that match the photographs as they are now, by case id: done, if all files are there, or failed."""
        wanted = {case["case_id"]: self.identity(case) for case in cases}
        present = _stamps(self.path)
        found: dict[str, Entry] = {}
        for entry in _entries(self.path):
            identity = wanted.get(entry["case_id"])
            if identity is None or not identity.items() <= entry.items():
                continue
            # The journals of several processes have no common order; a success overrides any failure.
            if "failed" in entry:
                found.setdefault(entry["case_id"], entry)
            elif _is_there(entry, present):
                found[entry["case_id"]] = entry
        return found

    def keep_corrected(self, cases: Sequence[Case]) -> list[Path]:
        """Copy masks and fields of view that somebody has changed since they were written, which may be hours of work.

        Args:
            cases: those whose results are about to be replaced.

        Returns:
            The copies, see ``drive_seg.files.keep``.
        """
        names = {case["case_id"] for case in cases}
        written: dict[str, list[list[int]]] = {}
        for entry in _entries(self.path):
            if entry["case_id"] in names:
                for kind in CORRECTED.intersection(entry.get("saved", {})):
                    name = entry["saved"][kind]
                    written.setdefault(name, []).append(entry["stamps"].get(name))
        present = _stamps(self.path)
        changed = [name for name, stamps in written.items() if name in present and present[name] not in stamps]
        return [copy for name in sorted(changed) if (copy := keep(self.path / name)) is not None]

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
        """Refuse to overwrite the results that an earlier run wrote for another photograph of the same name.

        Raises:
            DriveSegError: if the results of one of ``cases`` would replace those of another photograph.
        """
        wanted = {case["case_id"].casefold(): case["image"] for case in cases}  # some file systems ignore case
        present = _stamps(self.path)
        for entry in _entries(self.path):
            name, photograph = entry["case_id"].casefold(), Path(entry["photograph"])
            if name not in wanted or "failed" in entry or not _is_there(entry, present):
                continue
            if photograph.exists() and not _same_file(photograph, Path(wanted[name])):
                raise DriveSegError(
                    f"{self.path}: {entry['case_id']} is of {photograph}, whose results those of {wanted[name]} would "
                    "replace; expected another output folder"
                )


def named_as_before(path: Path, cases: Sequence[Case]) -> list[Case]:
    """The cases, each renamed as its earlier results in a folder if there are any.

    A name depends on which photographs are given together, such as two namesakes in different folders; without this,
    the results of a run with fewer of them would remain beside those of the next.
    """
    before = {entry["photograph"]: entry["case_id"] for entry in _entries(path) if "failed" not in entry}
    named = [{**case, "case_id": before.get(case["image"], case["case_id"])} for case in cases]
    distinct = {case["case_id"].casefold() for case in named}
    return named if len(distinct) == len(named) else list(cases)


def entry_of(result: Mapping[str, Any]) -> Entry:
    """The journal entry of a photograph, from its segmented case."""
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
    """Size and modification time of a file, which tell it from another run's result of the same name."""
    status = Path(path).stat()
    return [status.st_size, status.st_mtime_ns]


def _stamps(folder: Path) -> dict[str, list[int]]:
    found = {}
    for file in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):  # a leftover that the first process is removing
            if file.is_file():
                found[file.name] = _stamp(file.path)
    return found


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
