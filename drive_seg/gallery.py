"""A page with every photograph beside its vessels, for looking through a folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drive_seg.files import remove, write_text
from drive_seg.pages import render

__all__ = ["write_gallery"]

_logger = logging.getLogger(__name__)


def write_gallery(
    path: Path, entries: Sequence[Mapping[str, Any]], legend: Mapping[str, Sequence[int]] | None = None
) -> None:
    """Write the page; without jinja2, which the extra ``report`` installs, only log that there is none.

    Args:
        path: the page; the pictures lie in the same folder.
        entries: one per photograph: ``case_id``, ``photograph`` (its path), and either ``failed`` (why) or
            ``width_px``, ``height_px``, ``measures`` (of which ``quality`` is shown) and ``saved`` (names of its files,
            ``thumbnail`` among them). Without any thumbnail there is nothing to show, and no page is written.
        legend: colours of the vessel classes, (red, green, blue), by name, where there are several.
    """
    segmented = [entry for entry in entries if "thumbnail" in entry.get("saved", {})]
    if not segmented:
        remove(path)
        return
    failed = [entry for entry in entries if "failed" in entry]
    remarks = sum(bool(entry["measures"].get("quality")) for entry in segmented)
    try:
        write_text(path, render("gallery.html", segmented=segmented, remarks=remarks, failed=failed, legend=legend))
    except ModuleNotFoundError:
        remove(path)  # an earlier run's page shows what is no longer there
        _logger.info("no gallery.html: it needs pip install 'drive-seg[report]'")
