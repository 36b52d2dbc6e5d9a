"""Where to find the real photographs that some tests use: none are in the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def real_data(name: str) -> Path:
    """The folder of a public dataset (``CHASE_DB1``, ``HRF``) as distributed.

    It is looked for in the folder named by the environment variable ``DRIVE_SEG_DATA``, and the test fails if it is not
    there; else in ``shared/data`` beside the repository, and the test is skipped if it is not there.
    """
    named = os.environ.get("DRIVE_SEG_DATA")
    folder = Path(named or Path(__file__).resolve().parents[2] / "shared" / "data") / name
    if not folder.is_dir():
        (pytest.fail if named else pytest.skip)(f"{name} is not in {folder.parent} (set DRIVE_SEG_DATA)")
    return folder
