"""What has been done of a long list, kept so that a run that was killed goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drive_seg.errors import DriveSegError

__all__ = ["Journal", "read_journals"]


class Journal:
    """A file of JSON lines, one for each thing done; a line that a kill has cut off is as good as none.

    Args:
        path: the file; what it holds already stays.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, entry: Mapping[str, Any]) -> None:
        """Append one entry and hand it to the operating system.

        Raises:
            DriveSegError: if the file cannot be written.
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                # Begun with the line break, so that it stands apart from a line that was cut off before.
                file.write("\n" + json.dumps(entry))
        except OSError as error:
            raise DriveSegError(f"{self.path}: cannot be written ({error.strerror or error})") from error


def read_journals(folder: Path, pattern: str) -> list[dict[str, Any]]:
    """The entries of all journals of a folder, each file's in the order they were written."""
    entries = []
    for path in sorted(folder.glob(pattern)):
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                entries.append(entry)
    return entries
