"""The exceptions that are meant for people rather than for programmers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class DriveSegError(Exception):
    """Something the user can mend: a file, a config key or an argument that is not what was expected.

    The message is one sentence that names the file or key, what was expected and what was found. The
    command line prints it without a traceback; everything else that is raised is a bug and keeps its own.
    """


class ArgumentError(DriveSegError, ValueError):
    """A value out of its range that a program or a config may have given: what both expect."""


def user_error(error: BaseException) -> DriveSegError | None:
    """The ``DriveSegError`` at the root of ``error``, if there is one.

    MONAI wraps what a transform raises into a ``RuntimeError``, several layers deep, and keeps the
    original as its cause. An error that came up while another was handled is a bug of its own.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, DriveSegError):
            return seen
        seen = seen.__cause__
    return None


@contextlib.contextmanager
def unwrapped() -> Iterator[None]:
    """Raise the ``DriveSegError`` at the root of what MONAI wraps around it, rather than the wrapping."""
    try:
        yield
    except Exception as error:
        mendable = user_error(error)
        if mendable is None or mendable is error:
            raise
        raise mendable from error


def first_cause(error: BaseException) -> BaseException:
    """The error that others, such as MONAI's of the transform it came from, were raised for."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
