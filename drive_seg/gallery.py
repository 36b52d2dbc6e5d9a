"""A page with every photograph beside its vessels, for looking through a folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from drive_seg.files import write_text

__all__ = ["write_gallery"]

TEMPLATE = Path(__file__).parent / "templates" / "gallery.html"

_logger = logging.getLogger(__name__)


def write_gallery(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Write the page; without jinja2, which the extra ``report`` installs, a message says that there is none.

    Args:
        path: the page; the pictures lie in the same folder.
        entries: of one photograph each: ``case_id``, ``photograph`` (its path), and either ``failed`` (why) or
            ``width_px``, ``height_px``, ``measures`` (of which ``quality`` is shown) and ``saved`` (names of its files,
            ``thumbnail`` among them). Without any thumbnail there is nothing to show, and no page.
    """
    segmented = [entry for entry in entries if "thumbnail" in entry.get("saved", {})]
    if not segmented:
        path.unlink(missing_ok=True)
        return
    try:
        import jinja2
    except ModuleNotFoundError:
        _logger.info("no gallery.html: it needs pip install 'drive-seg[report]'")
        return
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["urlencode"] = lambda name: quote(os.fsencode(name))  # jinja's own takes no name but Unicode
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    failed = [entry for entry in entries if "failed" in entry]
    write_text(path, template.render(segmented=segmented, failed=failed))
