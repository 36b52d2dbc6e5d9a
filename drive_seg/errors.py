"""Exceptions meant for users rather than programmers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class DriveSegError(Exception):
    """Something the user can fix: a file, a config key or an argument that is not as expected.

    The message is one sentence that names the file or key, what was expected and what was found. The
    command line prints it without a traceback; any other exception is a bug and keeps its own.
    """


class CommonError(DriveSegError):
    """An error that all processes of a run raise alike, so that it is enough if the first one prints it."""


class ArgumentError(DriveSegError, ValueError):
    """A value out of range: a ``ValueError``, as programs expect, and an error the user can fix in a config."""


def user_error(error: BaseException) -> DriveSegError | None:
    """The ``DriveSegError`` at the root of ``error``, if there is one.

    MONAI wraps what a transform raises in a ``RuntimeError``, several layers deep, and keeps the original as its
    cause. An error raised while another was being handled is a bug of its own.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, DriveSegError):
            return seen
        seen = seen.__cause__
    return None


@contextlib.contextmanager
def unwrapped() -> Iterator[None]:
    """Raise the ``DriveSegError`` inside what MONAI wraps around it, rather than the wrapping."""
    mendable = None
    try:
        yield
    except Exception as error:
        mendable = user_error(error)
        if mendable is None or mendable is error:
            raise
    if mendable is not None:  # not from the wrapping, whose cause it is: they would be each other's cause, without end
        raise mendable


def first_cause(error: BaseException) -> BaseException:
    """The original error behind those raised from it, such as MONAI's about a transform."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def first_line(error: BaseException) -> str:
    """The first line of an error's message, with the error's type if it holds no words."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return first if any(map(str.isalpha, first)) else f"{type(error).__name__} {first}".strip()
