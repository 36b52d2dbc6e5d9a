"""File names: which files are images, by suffix, and which of them belong together."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drive_seg.errors import DriveSegError

__all__ = ["IMAGE_SUFFIXES", "alike", "as_path", "by_case", "case_id", "list_images", "picture_name"]

IMAGE_SUFFIXES = frozenset(
    {
        *(".tif", ".tiff", ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k", ".webp", ".bmp", ".dib", ".gif"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".nii", ".nii.gz", ".dcm"),
    }
)

_NAME_ENDING = re.compile(r"(_(training|test))?(_mask|_manual\d*|_av)?$", re.IGNORECASE)


def as_path(value: Any) -> Any:
    """An integer as text, because a folder named 2026 is a number on a command line; anything else unchanged."""
    return str(value) if type(value) is int else value


def alike(name: str) -> str:
    """The same text for all names that some file system takes for one: letter case and composed accents do not count.

    >>> alike("E\u0301.png") == alike("\u00e9.PNG")
    True
    """
    return unicodedata.normalize("NFC", name).casefold()


def case_id(path: str | os.PathLike) -> str:
    """The id of a file's case: its name without the format's suffix and without DRIVE's endings.

    >>> case_id("training/mask/21_training_mask.gif"), case_id("1st_manual/Image_01L_manual1.png")
    ('21', 'Image_01L')
    """
    stem = picture_name(path)
    return _NAME_ENDING.sub("", stem) or stem


def picture_name(path: str | os.PathLike) -> str:
    """A file's name without the suffix of its format, which is double for ``.nii.gz``.

    Accents are composed (Unicode's NFC), because some file systems take them apart: a photograph and its mask that were
    copied in different ways still belong together. Files are opened by the names that they were found under.

    >>> picture_name("a/eye.v2.jpg"), picture_name("eye.nii.gz")
    ('eye.v2', 'eye')
    """
    path = Path(path)
    name = path.name[: -len(".nii.gz")] if path.name.lower().endswith(".nii.gz") else path.stem
    return unicodedata.normalize("NFC", name)


def list_images(folder: str | os.PathLike) -> list[Path]:
    """Image files directly in ``folder``, sorted by name; hidden files, other kinds and folders are left out.

    Raises:
        DriveSegError: if the folder may not be read.
    """
    folder = Path(folder)
    endings = tuple(IMAGE_SUFFIXES)
    try:
        if not folder.is_dir():
            return []
        named = (p for p in folder.iterdir() if p.name.lower().endswith(endings) and not p.name.startswith("."))
        return sorted(p for p in named if not p.is_dir())  # a broken link is told of when it is read
    except OSError as error:
        raise DriveSegError(f"{error.filename or folder}: cannot be read ({error.strerror or error})") from error


def by_case(paths: Sequence[Path], ending: str = "") -> dict[str, Path]:
    """Files by case id.

    Args:
        paths: the files.
        ending: an end of their names that is not part of the id either, such as ``_vessels`` of masks as ``drive-seg
            predict`` writes them.

    Raises:
        DriveSegError: if two files are of one case.
    """
    found: dict[str, Path] = {}
    for path in paths:
        key, name = case_id(path), picture_name(path)
        if ending and name.endswith(ending) and name != ending:
            key = case_id(f"{name.removesuffix(ending)}.png")
        if key in found:
            raise DriveSegError(f"{found[key]} and {path} are both of case {key}, expected one file a case")
        found[key] = path
    return found
