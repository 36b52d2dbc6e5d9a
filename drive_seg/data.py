"""Datalists: which files make up a case, and which cases are for training, validation and testing.

Two sources are understood:

* the DRIVE layout, ``training|test/{images,1st_manual,2nd_manual,mask}``, where files belong to a case by
  name: ``21_training.tif``, ``21_manual1.gif`` and ``21_training_mask.gif`` all belong to case ``21``;
* a ``dataset.json`` beside those folders (MONAI decathlon style, paths relative to it), which alone counts if
  there is one.

Only names are examined here; the files' contents are checked on loading.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from drive_seg.errors import DriveSegError
from drive_seg.files import write_text
from drive_seg.names import as_path, by_case, case_id, list_images
from drive_seg.persons import person

_logger = logging.getLogger(__name__)

SECTIONS = ("training", "validation", "test")
FIRST_MANUAL = "1st_manual"
SECOND_MANUAL = "2nd_manual"
DATASET_JSON = "dataset.json"

_NO_FILES = ("case_id", "person")
"""Keys of a case in ``dataset.json`` that describe it; all other values are paths."""

_OF_OTHERS = ("image", *_NO_FILES)
"""Keys of a case that no folder of annotations may have as its name."""

_OTHER_NAMES = {"label": FIRST_MANUAL, "mask": "fov"}
"""Names in MONAI's datalists, and what they are called here."""

Case = dict[str, str]


def load_datalist(
    dataset_dir: str | os.PathLike | Sequence[str | os.PathLike],
    section: str,
    annotations: Mapping[str, str | None] | None = None,
    validation_every: int | None = 5,
) -> list[Case]:
    """The cases of one section, sorted by case id.

    Args:
        dataset_dir: folder in the DRIVE layout, with or without a ``dataset.json``; or several, whose cases are
            joined, with the name of the folder before each case id.
        section: ``training``, ``validation`` or ``test``.
        annotations: which annotation goes under which key, ``{"label": "1st_manual"}`` by default. Every
            training and validation case must have the one named ``label``; any other, except the second observer's,
            must exist for some case.
        validation_every: if the dataset names no validation cases, those of every n-th person in order of case id
            are held out for validation (5: cases 25, 30, 35 and 40 of DRIVE, which leaves 16), see
            ``drive_seg.persons.person``. None: nobody is held out, and validation cases, if asked for, must exist.

    Returns:
        One dictionary per case, with ``case_id`` and ``image``; ``fov`` and the keys of ``annotations`` if the files
        exist; and ``person`` if ``dataset.json`` says whose eye it is. All values are strings, paths are absolute.

    Raises:
        DriveSegError: if the folder, a partner of an image or an annotation is missing, if two files claim to be the
            same, if an image is in two sections, also of two folders, if ``validation_every`` is less than 2, or if
            there is no case for training or validation that was asked for.
    """
    if section not in SECTIONS:
        raise DriveSegError(f"section: expected one of {', '.join(SECTIONS)}, got {section!r}")
    annotations = {"label": FIRST_MANUAL} if annotations is None else dict(annotations)
    dataset_dir = as_path(dataset_dir)
    if not isinstance(dataset_dir, (str, os.PathLike)):
        of_folders = {folder: read_sections(Path(folder), validation_every) for folder in dataset_dir}
        joined = {
            name: [case for sections in of_folders.values() for case in sections.get(name, ())] for name in SECTIONS
        }
        check_no_overlap(", ".join(map(str, dataset_dir)), joined)
        return of_several(
            dataset_dir,
            lambda folder: _of_section(folder, of_folders[folder], section, annotations, validation_every),
        )
    return _of_section(
        dataset_dir, read_sections(Path(dataset_dir), validation_every), section, annotations, validation_every
    )


def _of_section(
    dataset_dir: str | os.PathLike,
    sections: Mapping[str, Sequence[Case]],
    section: str,
    annotations: Mapping[str, str | None],
    validation_every: int | None,
) -> list[Case]:
    # Not every dataset has a second observer; any other annotation was chosen deliberately.
    for key, name in annotations.items():
        if key == "label" or name != SECOND_MANUAL:
            _check_annotation(Path(dataset_dir), sections, name)
    shared = [] if validation_every is None else _in_several(sections)  # folds part persons themselves
    if shared:
        _tell_of_shared_persons(str(dataset_dir), ", ".join(shared))
    cases = sections[section]
    if section == "training" and not cases:
        raise DriveSegError(
            f"{dataset_dir}: holds no training cases, expected images in training/images or a {DATASET_JSON} that "
            "lists some"
        )
    if section == "validation" and sections["training"] and not cases:
        raise DriveSegError(
            f"{dataset_dir}: its {len(sections['training'])} training cases leave none for validation, expected "
            f"validation_every to be a whole number, at most the number of persons, got {validation_every}"
        )
    return [_with_annotations(case, section, annotations) for case in cases]


def of_several(
    dataset_dirs: Sequence[str | os.PathLike], load: Callable[[str | os.PathLike], Sequence[Case]]
) -> list[Case]:
    """The cases that ``load`` returns for each folder, with the folder's name before their ids.

    Raises:
        DriveSegError: if there is no folder or two have the same name.
    """
    names = [Path(folder).resolve().name for folder in dataset_dirs]
    if not names or len(set(names)) < len(names):
        raise DriveSegError(
            "dataset_dir: expected one or more folders of different names, "
            f"got {', '.join(map(str, dataset_dirs)) or 'none'}"
        )
    return [
        {**case, "case_id": f"{name}/{case['case_id']}"}
        for name, folder in zip(names, dataset_dirs, strict=True)
        for case in load(folder)
    ]


def at_zooms(cases: Sequence[Case], zooms: Sequence[float]) -> list[dict[str, Any]]:
    """Every case once at each size, to prepare for cameras that are not in the dataset.

    Args:
        cases: as ``load_datalist`` returns them.
        zooms: values for the ``zoom`` of a case, see ``drive_seg.scale_to_fov.ScaleToFOVd``.
    """
    return [{**case, "zoom": zoom} for zoom in zooms for case in cases]


def read_drive_layout(dataset_dir: str | os.PathLike) -> dict[str, list[Case]]:
    """All cases of a folder in the DRIVE layout by section, ``{"training": [...], "test": [...]}``.

    A case holds ``case_id``, ``image``, ``fov`` (from ``mask``) and one key for every other folder beside
    ``images``, such as ``1st_manual`` and ``2nd_manual``. A folder may be missing or empty, but one that
    has files for only some of the images is an error.
    """
    root = Path(dataset_dir)
    return {section: _read_drive_section(root / section) for section in ("training", "test")}


def write_dataset_json(
    dataset_dir: str | os.PathLike,
    sections: Mapping[str, Sequence[Mapping[str, str]]],
    labels: Mapping[str, str],
    **about: Any,
) -> Path:
    """Write ``dataset.json`` into ``dataset_dir`` and return its path.

    Args:
        dataset_dir: the folder the paths are relative to.
        sections: cases by section (``training``, ``validation``, ``test``) as ``load_datalist`` returns them, with
            annotations under the name of their folder (``1st_manual``, ``2nd_manual``, ``av``).
        labels: meaning of the label values, such as ``{"0": "background", "1": "vessel"}``.
        about: facts about the dataset, such as ``name``, ``description``, ``licence`` and ``reference``.
    """
    root = Path(dataset_dir).resolve()

    def relative(key: str, value: str) -> str:
        return value if key in _NO_FILES else Path(os.path.relpath(Path(value).resolve(), root)).as_posix()

    content = {
        **about,
        "tensorImageSize": "2D",
        "modality": {"0": "red", "1": "green", "2": "blue"},
        "labels": dict(labels),
        **{f"num{section.capitalize()}": len(sections.get(section, ())) for section in SECTIONS},
        **{
            section: [{key: relative(key, value) for key, value in case.items()} for case in sections.get(section, ())]
            for section in SECTIONS
        },
    }
    path = root / DATASET_JSON
    write_text(path, json.dumps(content, indent=2) + "\n")
    return path


def read_sections(root: Path, validation_every: int | None) -> dict[str, list[Case]]:
    """The cases of every section with all of their annotations. Arguments as for ``load_datalist``."""
    if not root.is_dir():
        raise DriveSegError(f"dataset_dir: {root} is not a folder")
    if (root / DATASET_JSON).is_file():
        sections = _read_dataset_json(root / DATASET_JSON)
    else:
        sections = read_drive_layout(root)
        if not any(sections.values()):
            raise DriveSegError(
                f"dataset_dir: {root} holds no case, expected images in training/images or test/images "
                f"(the DRIVE layout) or a {DATASET_JSON}, which a script of data_scripts makes of a download"
            )
    sections.setdefault("validation", [])
    if validation_every is not None and not sections["validation"]:
        if not isinstance(validation_every, int) or validation_every < 2:
            raise DriveSegError(f"validation_every: expected a whole number of at least 2, got {validation_every!r}")
        training = sections["training"]
        persons = list(dict.fromkeys(map(person, training)))
        held_out = set(persons[validation_every - 1 :: validation_every])
        sections["validation"] = [case for case in training if person(case) in held_out]
        sections["training"] = [case for case in training if person(case) not in held_out]
    check_no_overlap(root, sections)
    return sections


def _read_drive_section(folder: Path) -> list[Case]:
    images = by_case(list_images(folder / "images"))
    cases: dict[str, Case] = {key: {"case_id": key, "image": _itself(path)} for key, path in images.items()}
    if not folder.is_dir():
        return []
    partner_dirs = (p for p in folder.iterdir() if p.is_dir() and p.name != "images" and not p.name.startswith("."))
    for partner_dir in sorted(partner_dirs):
        # also as predict writes them: masks that were corrected by hand, to learn from
        partners = by_case(list_images(partner_dir), "_fov" if partner_dir.name == "mask" else "_vessels")
        if not partners:
            continue
        for known in (FIRST_MANUAL, SECOND_MANUAL, "mask"):
            if partner_dir.name != known and partner_dir.name.lower() == known:
                raise DriveSegError(f"{partner_dir}: expected the name {known}")
        if partner_dir.name in _OF_OTHERS:
            raise DriveSegError(
                f"{partner_dir}: expected another name, a folder beside images holds annotations or masks"
            )
        for key in sorted(images.keys() - partners.keys()):
            raise DriveSegError(
                f"{images[key]} has no partner in {partner_dir}, expected {_named(key)} there "
                f"({len(images.keys() & partners.keys())} of {len(images)} images have one; a folder beside images "
                "holds annotations or masks)"
            )
        for key in sorted(partners.keys() - images.keys()):
            raise DriveSegError(f"{partners[key]} has no image in {folder / 'images'}, expected {_named(key)} there")
        for key, path in partners.items():
            cases[key]["fov" if partner_dir.name == "mask" else partner_dir.name] = _itself(path)
    return [cases[key] for key in sorted(cases)]


def _itself(path: Path) -> str:
    """The absolute path that links lead to.

    Raises:
        DriveSegError: if there cannot be such a file.
    """
    try:
        return str(path.resolve())
    except (OSError, ValueError, RuntimeError) as error:  # such as a link to itself or a name that is too long
        raise DriveSegError(f"{str(path)!r}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _named(key: str) -> str:
    """The names that ``drive_seg.names.case_id`` takes for files of one case."""
    return f"a file named {key}, {key}_av, {key}_mask or {key}_manual1 (any number, also {key}_training_manual1)"


def _read_dataset_json(path: Path) -> dict[str, list[Case]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))  # Windows adds a byte-order mark
    except (OSError, ValueError, RecursionError) as error:
        raise DriveSegError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict) or not any(section in content for section in SECTIONS):
        raise DriveSegError(f"{path}: expected an object with the keys {', '.join(SECTIONS)}")
    for key, items in content.items():
        if key not in SECTIONS and isinstance(items, list) and any(isinstance(i, dict) and "image" in i for i in items):
            raise DriveSegError(f"{path}: {key}: holds cases, expected them in {', '.join(SECTIONS)}")
    return {section: _read_json_section(path, section, content.get(section, [])) for section in SECTIONS}


def _read_json_section(path: Path, section: str, items: Any) -> list[Case]:
    if not isinstance(items, list):
        raise DriveSegError(f"{path}: {section}: expected a list of cases, got {type(items).__name__}")
    cases: dict[str, Case] = {}
    for number, item in enumerate(items):
        where = f"{path}: {section}[{number}]"
        if isinstance(item, str):  # decathlon lists its test images as bare paths
            item = {"image": item}
        if not isinstance(item, dict):
            raise DriveSegError(f"{where}: expected a path or an object of paths, got {item!r}")
        item = {key: str(value) if key in _NO_FILES and type(value) is int else value for key, value in item.items()}
        for key, value in item.items():
            if not isinstance(value, str):
                expected = "a text" if key in _NO_FILES else "a path"
                raise DriveSegError(f"{where}: {key}: expected {expected}, got {value!r}")
        if "image" not in item:
            raise DriveSegError(f"{where}: expected the key image, got {', '.join(item) or 'nothing'}")
        case: Case = {"case_id": case_id(item["image"]), **{key: item[key] for key in _NO_FILES if key in item}}
        for key, value in item.items():
            if key in _NO_FILES:
                continue
            try:
                file = _itself(path.parent / value)
            except DriveSegError as error:
                raise DriveSegError(f"{where}: {key}: {error}") from error
            if not Path(file).is_file():
                raise DriveSegError(f"{where}: {key}: there is no file {file}")
            name = str(_OTHER_NAMES.get(key, key))
            if case.get(name, file) != file:
                raise DriveSegError(f"{where}: {key}: expected one file as {name}, got {case[name]} and {file}")
            case[name] = file
        if case["case_id"] in cases:
            raise DriveSegError(f"{where}: case {case['case_id']} is listed twice")
        cases[case["case_id"]] = case
    return [cases[key] for key in sorted(cases)]


def check_no_overlap(root: str | os.PathLike, sections: Mapping[str, Sequence[Case]]) -> None:
    """Refuse cases by section of which two sections have the same image; ``root`` is named in the error.

    Raises:
        DriveSegError: if an image is in two of them.
    """
    owner: dict[str, str] = {}
    for section, cases in sections.items():
        for case in cases:
            other = owner.setdefault(case["image"], section)
            if other != section:
                raise DriveSegError(
                    f"{root}: {case['image']} is in {other} and in {section}, expected it in one of them"
                )


def _in_several(sections: Mapping[str, Sequence[Case]]) -> list[str]:
    """Persons with cases in more than one section, by ``person`` or by two sides of one name.

    Equal names alone do not count: many datasets number training and test images from 1 each.
    """
    by_person: dict[str, list[tuple[str, Case]]] = {}
    for section, cases in sections.items():
        for case in cases:
            by_person.setdefault(person(case), []).append((section, case))
    return sorted(
        name
        for name, found in by_person.items()
        if len({section for section, _ in found}) > 1
        and (len({case["case_id"] for _, case in found}) > 1 or any("person" in case for _, case in found))
    )


@functools.cache  # a dataset is read several times
def _tell_of_shared_persons(root: str, persons: str) -> None:
    _logger.warning(
        "%s: persons with images in more than one of training, validation and test: %s; figures will be optimistic, "
        "because the eyes of one person are alike",
        root,
        persons,
    )


def _check_annotation(root: Path, sections: Mapping[str, Sequence[Case]], name: str | None) -> None:
    """Refuse an annotation that no case has, if there are any: its name must be wrong."""
    known = {key for cases in sections.values() for case in cases for key in case} - {"image", "fov", *_NO_FILES}
    if name is not None and known and name not in known:
        expected = f"expected one of {', '.join(sorted(known))}"
        unnamed = [folder for folder in SECTIONS if (root / folder / str(name)).is_dir()]
        if unnamed and (root / DATASET_JSON).is_file():
            section = unnamed[0]
            expected += f'; {root / section / str(name)} is there, but {DATASET_JSON} alone counts: expected "{name}": '
            expected += f'"{section}/{name}/…" in every case in it'
        raise DriveSegError(f"annotation: {root} has no {name!r}, {expected}")


def _with_annotations(case: Case, section: str, annotations: Mapping[str, str | None]) -> Case:
    chosen: Case = {key: case[key] for key in (*_NO_FILES, "image", "fov") if key in case}
    for key, folder in annotations.items():
        if folder in case:
            chosen[key] = case[folder]
        elif key == "label" and section != "test":
            raise DriveSegError(f"{case['image']} has no annotation {folder!r}, expected one for every {section} case")
    return chosen
