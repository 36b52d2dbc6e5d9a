"""Errors that libraries wrap in their own."""

from __future__ import annotations

import pytest

from drive_seg.errors import DriveSegError, first_cause, unwrapped


def test_an_unwrapped_error_keeps_its_own_cause() -> None:
    missing, refused = FileNotFoundError("eye.png"), DriveSegError("eye.png: there is no such file")
    with pytest.raises(DriveSegError) as raised, unwrapped():
        try:
            raise refused from missing
        except DriveSegError as error:
            raise RuntimeError("applying transform") from error
    assert raised.value is refused and first_cause(refused) is missing, "and no endless circle of causes"


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), unwrapped():
        raise ZeroDivisionError
    with unwrapped():
        pass
