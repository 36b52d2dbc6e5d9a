"""Records what is done of a long list, so that a killed run continues where it stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drive_seg.errors import DriveSegError

__all__ = ["Journal", "read_journals"]


class Journal:
    """A file of JSON lines, one per thing done; a line cut off when the process was killed is ignored.

    Args:
        path: the file; entries already in it stay.
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
                # The line break comes first, to separate the entry from a line that was cut off before.
                file.write("\n" + json.dumps(entry))
        except OSError as error:
            raise DriveSegError(f"{self.path}: cannot be written ({error.strerror or error})") from error


def read_journals(folder: Path, pattern: str) -> list[dict[str, Any]]:
    """The entries of all journals in a folder, file by file, in the order they were written.

    Raises:
        DriveSegError: if one cannot be read.
    """
    entries = []
    for path in sorted(folder.glob(pattern)):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise DriveSegError(f"{path}: cannot be read ({error.strerror or error})") from error
        for line in text.split("\n"):
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                entries.append(entry)
    return entries
