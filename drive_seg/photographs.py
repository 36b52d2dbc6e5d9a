"""Photographs without annotations, from anywhere: files and folders become cases with unique names."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from drive_seg.data import Case
from drive_seg.errors import DriveSegError
from drive_seg.names import IMAGE_SUFFIXES, alike, as_path, by_case, case_id, list_images, picture_name

__all__ = ["left_out", "photograph_cases", "with_fov_masks"]

_LONGEST_NAME = 200
"""Bytes of a case id: file systems allow 255 for a file name, endings included."""


def photograph_cases(paths: str | os.PathLike | Sequence[str | os.PathLike]) -> list[Case]:
    """Cases of photographs without annotations: the given files, and every image file in the given folders.

    Args:
        paths: one file or folder, or several.

    Returns:
        Dictionaries with ``case_id`` and ``image``, in the order given, each file once. The case id is the file's name
        without suffix; where several would be the same, the suffix is added, then the folder's name, then a hash.

    Raises:
        DriveSegError: if a path does not exist or may not be read, or there is no photograph at all.
    """
    files: dict[Path, Path] = {}  # by the file that links resolve to; the value keeps the given name
    paths = as_path(paths)
    for path in map(Path, [paths] if isinstance(paths, (str, os.PathLike)) else map(as_path, paths)):
        try:
            is_folder, is_file = path.is_dir(), path.is_file()
        except OSError as error:  # in a folder that may not be read
            raise DriveSegError(f"{path}: cannot be read ({error.strerror or error})") from error
        if is_folder:
            found = list_images(path)
            if not found:
                within = "; folders in it are not searched" if any(p.is_dir() for p in path.iterdir()) else ""
                raise DriveSegError(
                    f"{path}: holds no photograph, expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}{within}"
                )
        elif is_file:
            found = [path]
        else:
            raise DriveSegError(f"{path}: there is no such file or folder")
        for file in found:
            files.setdefault(_itself(file), file.absolute())
    if not files:
        raise DriveSegError("expected at least one photograph, got none")
    names = _unique_names(list(files.values()))
    return [{"case_id": name, "image": str(file)} for name, file in zip(names, files.values(), strict=True)]


def _itself(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # a link to itself, which will be reported when it is read
        return path.absolute()


def _unique_names(files: Sequence[Path]) -> list[str]:
    spellings = (
        lambda file: file.name.replace(".", "_"),
        lambda file: f"{file.parent.name}_{file.name.replace('.', '_')}",
        lambda file: f"{picture_name(file)[: _LONGEST_NAME // 4]}_{sha256(os.fsencode(file)).hexdigest()[:16]}",
    )
    names = [picture_name(file) for file in files]
    for spelling in spellings:
        counts = Counter(map(alike, names))
        names = [
            spelling(file) if counts[alike(name)] > 1 or len(os.fsencode(name)) > _LONGEST_NAME else name
            for file, name in zip(files, names, strict=True)
        ]
    return [unicodedata.normalize("NFC", name) for name in names]


def with_fov_masks(cases: Sequence[Case], folder: str | os.PathLike) -> list[Case]:
    """The cases of ``photograph_cases``, with ``fov`` added to those that have a mask in ``folder``.

    Masks are matched by name, as in the DRIVE layout: ``21_mask.gif`` or ``21.png`` belongs to ``21_training.tif``.
    Photographs of the same name from different folders are matched by the names of their results, and so are fields of
    view as ``drive_seg.pictures.SaveVesselsd`` writes them, ``21_training_fov.png``.

    Raises:
        DriveSegError: if no photograph has a mask there, or a name belongs to several photographs or masks.
    """
    if not Path(folder).is_dir():
        raise DriveSegError(f"{folder}: there is no such folder, expected one of FOV masks")
    masks = by_case(list_images(folder))
    named = Counter(case_id(case["image"]) for case in cases)
    found = []
    for case in cases:
        own, of_file = case["case_id"], case_id(case["image"])
        if f"{own}_fov" in masks:
            own += "_fov"
        if own not in masks and of_file in masks and named[of_file] > 1:
            raise DriveSegError(
                f"{masks[of_file]}: is of one of {named[of_file]} photographs of that name, expected {own}_mask.png "
                f"for {case['image']}"
            )
        mask = masks.get(own, masks.get(of_file))
        found.append(case if mask is None else {**case, "fov": str(mask.absolute())})
    if not any("fov" in case for case in found):
        raise DriveSegError(
            f"{folder}: holds no mask of the photographs, expected files such as {case_id(cases[0]['image'])}_mask.png"
        )
    return found


def left_out(paths: Sequence[str | os.PathLike]) -> list[str]:
    """One sentence for each folder among ``paths`` with contents that ``photograph_cases`` passes over."""
    told = []
    for folder in (path for path in map(Path, paths) if path.is_dir()):
        taken = set(list_images(folder))
        others = [path for path in folder.iterdir() if path not in taken and not path.name.startswith(".")]
        folders = sum(path.is_dir() for path in others)
        if others:
            told.append(
                f"{folder}: left out, files of other kinds: {len(others) - folders}, "
                f"folders in it, which are not searched: {folders}"
            )
    return told
