"""The tables and the gallery of an output folder, written from the entries of its journals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from drive_seg.files import csv_text, encoded, keep, remove, write_csv, write_text
from drive_seg.gallery import write_gallery
from drive_seg.measure_table import table_row
from drive_seg.pictures import overlay_colours

__all__ = ["SETTINGS", "failures", "write_tables"]

SETTINGS = "settings.json"
"""What the results were made with; kept together with a table that is kept."""


def failures(entries: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Photograph and reason of the entries that failed."""
    return [(entry["photograph"], entry["failed"]) for entry in entries if "failed" in entry]


def write_tables(folder: Path, entries: Iterable[Mapping[str, Any]], classes: Sequence[str]) -> Path | None:
    """Write ``vessels.csv``, ``failed.csv`` and ``gallery.html`` in order of the photographs' paths.

    Args:
        folder: folder of the results; a table or page that would be empty is removed.
        entries: of the journals, whichever run each is from.
        classes: names of the vessel classes.

    Returns:
        The copy that was made of ``vessels.csv`` if it loses lines: a run with other settings measures anew, and the
        rows may have taken days. None if there was no need for one.
    """
    entries = sorted(entries, key=lambda entry: str(entry["photograph"]))
    rows = [
        table_row(entry["photograph"], entry["case_id"], entry["measures"])
        for entry in entries
        if entry.get("measures")
    ]
    table = folder / "vessels.csv"
    text = csv_text(rows) if rows else ""
    copy = keep(table, table.with_name(SETTINGS)) if _loses_lines(table, text) else None
    if text:
        write_text(table, text)
    else:
        remove(table)
    listing, failed = folder / "failed.csv", failures(entries)
    if failed:
        write_csv(listing, [{"photograph": photograph, "reason": reason} for photograph, reason in failed])
    else:
        remove(listing)
    legend = dict(zip(classes, overlay_colours(classes), strict=True)) if len(classes) > 1 else {}
    write_gallery(folder / "gallery.html", entries, legend)
    return copy


def _loses_lines(table: Path, text: str) -> bool:
    """Whether a table has lines that its new text lacks; bytes, because somebody may have edited the table."""
    return table.is_file() and not set(table.read_bytes().split(b"\n")) <= set(encoded(text).split(b"\n"))
