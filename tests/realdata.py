"""Where the real photographs are, for tests that use them: none are in the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def real_data(name: str) -> Path:
    """The folder of one public dataset (``CHASE_DB1``, ``HRF``) as its site hands it out; skips where it is absent.

    Looked for in the folder that the environment variable ``DRIVE_SEG_DATA`` names, else in ``shared/data`` beside
    the repository.
    """
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("DRIVE_SEG_DATA") or default) / name
    if not folder.is_dir():
        pytest.skip(f"{name} is not in {folder.parent} (set DRIVE_SEG_DATA)")
    return folder
