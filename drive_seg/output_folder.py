"""The results in an output folder, as recorded in the journals of the processes that wrote them.

Photographs and results are identified by path, size and, within the two seconds that some file systems round it to,
modification time: a file that has changed since, or a namesake, does not count as done. Results are looked up by the
names they were written under and never in a list of the folder, because some file systems list names with accents in
another spelling.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from drive_seg.data import Case
from drive_seg.errors import DriveSegError
from drive_seg.files import keep
from drive_seg.journal import Journal, read_journals
from drive_seg.measure_table import rounded
from drive_seg.names import alike

__all__ = ["OutputFolder", "entry_of"]

JOURNALS = "progress_*.jsonl"

CORRECTED = {
    "vessels": "_vessels.png",
    "fov": "_fov.png",
    "nifti": "_vessels.nii.gz",
    "dicom_seg": "_vessels.dcm",
}
"""Results that people correct by hand, and how their files' names end in ``drive_seg.pictures.SaveVesselsd``."""

CLOCK_NS = 2_000_000_000
"""Difference of modification times that says nothing: network shares and USB sticks round the time of a file, to 2 s at
most, once it has left the cache. What was corrected by hand or made anew is later, or of another size."""

Entry = dict[str, Any]


class OutputFolder:
    """The journals of a folder, as they are when first asked about, and the files they list.

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

    def named_as_before(self, cases: Sequence[Case]) -> list[Case]:
        """The cases, each renamed as its earlier results if there are any.

        A name depends on which photographs are given together, such as two namesakes in different folders; without
        this, the results of a run with fewer of them would remain beside those of the next.
        """
        before = {entry["photograph"]: entry["case_id"] for entry in self._outcomes() if "failed" not in entry}
        named = [{**case, "case_id": before.get(case["image"], case["case_id"])} for case in cases]
        distinct = {alike(case["case_id"]) for case in named}
        return named if len(distinct) == len(named) else list(cases)

    def latest(self, cases: Sequence[Case]) -> dict[str, Entry]:
        """Entries that match the photographs as they are now, by case id: done, if all files are there, or failed."""
        wanted = {case["case_id"]: self.identity(case) for case in cases}
        found: dict[str, Entry] = {}
        for entry in self._outcomes():
            identity = wanted.get(entry["case_id"])
            if identity is None or not _is_of(entry, identity):
                continue
            # The journals of several processes have no common order; a success overrides any failure.
            if "failed" in entry:
                if "failed" in found.get(entry["case_id"], entry):
                    found[entry["case_id"]] = entry
            elif self._has(entry):
                found[entry["case_id"]] = entry
        return found

    def begun(self, cases: Sequence[Case]) -> dict[str, int]:
        """How often photographs were begun without an outcome, by case id; only those that were.

        These were being worked on when a process was killed, perhaps because of one of them.
        """
        wanted = {case["case_id"]: case for case in cases}
        count: Counter[str] = Counter()
        for entry in self._entries:
            case = wanted.get(entry["case_id"])
            if case is None or entry.get("settings") != self.settings:
                continue
            if _is_of(entry, self.identity(case)):
                count[case["case_id"]] += entry.get("begun", -1)
        return dict(+count)

    def growth(self) -> list[int]:
        """Sizes of the journals, which grow as long as a process works."""
        return [path.stat().st_size for path in sorted(self.path.glob(JOURNALS))]

    def keep_corrected(self, cases: Sequence[Case]) -> list[tuple[Path, Path]]:
        """Copy masks and fields of view that somebody may have changed, which may be hours of work.

        Those are all that are not as they were written, and all of which no journal tells.

        Args:
            cases: those whose results are about to be replaced.

        Returns:
            Pairs of a file and its copy, see ``drive_seg.files.keep``. Where the new result turns out to be the same,
            the copy may be deleted.
        """
        names = {case["case_id"] for case in cases}
        written: dict[str, list[list[int]]] = {f"{name}{end}": [] for name in names for end in CORRECTED.values()}
        for entry in self._outcomes():
            if entry["case_id"] in names:
                for kind in CORRECTED.keys() & entry.get("saved", {}).keys():
                    name = entry["saved"][kind]
                    written.setdefault(name, []).append(entry["stamps"][name])
        changed = [
            self.path / name
            for name, stamps in sorted(written.items())
            if (self.path / name).is_file() and not any(_is_as_written(self.path / name, stamp) for stamp in stamps)
        ]
        return [(file, copy) for file in changed if (copy := keep(file)) is not None]

    def other_cases(self, cases: Sequence[Case]) -> list[Case]:
        """Photographs of earlier runs, whatever the settings, that are not among ``cases`` and still exist."""
        names, photographs = {case["case_id"] for case in cases}, {case["image"] for case in cases}
        found: dict[str, Case] = {}
        for entry in self._outcomes():
            name, photograph = entry["case_id"], entry["photograph"]
            if name not in names and photograph not in photographs and _exists(Path(photograph), if_unknown=False):
                mask = {"fov": entry["fov"][0]} if entry.get("fov") else {}
                found[name] = {"case_id": name, "image": photograph, **mask}
        return list(found.values())

    def refuse_to_replace(self, cases: Sequence[Case]) -> None:
        """Refuse to overwrite the results that an earlier run wrote for another photograph of the same name.

        Raises:
            DriveSegError: if the results of one of ``cases`` would replace those of another photograph.
        """
        wanted = {alike(case["case_id"]): case["image"] for case in cases}
        for entry in self._outcomes():
            name, photograph = alike(entry["case_id"]), Path(entry["photograph"])
            if name not in wanted or "failed" in entry or not self._has(entry):
                continue
            if _exists(photograph, if_unknown=True) and not _same_file(photograph, Path(wanted[name])):
                raise DriveSegError(
                    f"{self.path}: {entry['case_id']} is of {photograph}, whose results those of {wanted[name]} would "
                    "replace; expected another output folder"
                )

    @cached_property
    def _entries(self) -> list[Entry]:
        """Read once, which takes seconds where there are many thousands of photographs."""
        return [entry for entry in read_journals(self.path, JOURNALS) if {"case_id", "photograph"} <= entry.keys()]

    def _outcomes(self) -> Iterator[Entry]:
        return (entry for entry in self._entries if "begun" not in entry)

    def _has(self, entry: Entry) -> bool:
        """Whether all files of an entry are there as they were written."""
        stamps = entry.get("stamps", {})
        return set(stamps) == set(entry.get("saved", {}).values()) and all(
            _is_as_written(self.path / name, stamp) for name, stamp in stamps.items()
        )


def entry_of(result: Mapping[str, Any]) -> Entry:
    """The journal entry of a photograph, from its segmented case."""
    height, width = result["pred"].shape[1:]
    saved = {kind: Path(path).name for kind, path in result.get("saved", {}).items()}
    measures = rounded(result.get("measures", {}))
    stamps = {Path(path).name: _stamp(path) for path in result.get("saved", {}).values()}
    return {"width_px": int(width), "height_px": int(height), "measures": measures, "saved": saved, "stamps": stamps}


def _stamp(path: str | os.PathLike) -> list[int]:
    """Size and modification time of a file, which tell it from another run's result of the same name."""
    status = Path(path).stat()
    return [status.st_size, status.st_mtime_ns]


def _is_as_written(path: Path, stamp: Sequence[int]) -> bool:
    try:
        return _same_stamp(_stamp(path), stamp)
    except OSError:
        return False


def _same_stamp(one: Sequence[int], other: Sequence[int]) -> bool:
    return one[0] == other[0] and abs(one[1] - other[1]) <= CLOCK_NS


def _is_of(entry: Entry, identity: Entry) -> bool:
    """Whether an entry is of this photograph and field of view; of one that is gone, only the path is compared."""
    if any(entry.get(key) != identity[key] for key in ("case_id", "photograph", "settings")):
        return False
    stamps = [[about.get("bytes", -1), about.get("modified_ns", 0)] for about in (entry, identity)]
    if "bytes" in identity and not _same_stamp(*stamps):
        return False
    before, now = entry.get("fov"), identity["fov"]
    if before is None or now is None:
        return before is now
    return before[0] == now[0] and _same_stamp(before[1:], now[1:])


def _exists(path: Path, if_unknown: bool) -> bool:
    try:
        return path.exists()
    except OSError:  # on a share that is not connected, say, or in somebody's folder
        return if_unknown


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return one == other
