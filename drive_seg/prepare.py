"""Public datasets as distributed by their sites → the DRIVE layout with a ``dataset.json``.

A script in ``data_scripts/`` states the facts of one dataset and calls ``main``. Nothing is guessed: the facts include
each case's section, the number of files and the size of the photographs. A source that differs is refused, and the
error names the file.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from drive_seg.archives import files_in, read_file, unpacked
from drive_seg.data import DATASET_JSON, FIRST_MANUAL, Case, write_dataset_json
from drive_seg.errors import DriveSegError
from drive_seg.files import replacing
from drive_seg.fov import estimate_fov
from drive_seg.rasters import FORMATS, grey_levels

LABELS = {"0": "background", "1": "vessel"}

_COPIED_SUFFIXES = frozenset({".jpg", ".jpeg", ".tif", ".tiff", ".png", ".gif"})


@dataclass(frozen=True)
class FileKind:
    """Where one kind of file is found and whether it may be missing.

    Attributes:
        pattern: regular expression for the end of the path, starting at the first letter of a folder or file, with a
            group named ``case``; upper and lower case are the same.
        name: such a path to show to people, with ``{case}`` and ``{folder}`` (``training`` or ``test``) to fill in.
        required_in: the folders (``training``, ``test``) in which every case must have one. Elsewhere, either all cases
            have one or none.
        some: whether only some of the cases may have one. Then cases without an annotation are left out, and missing
            FOV masks are estimated.
    """

    pattern: str
    name: str
    required_in: tuple[str, ...] = ("training", "test")
    some: bool = False


@dataclass(frozen=True)
class Dataset:
    """The facts of one public dataset.

    Attributes:
        name: the name it is known by, written to ``dataset.json``.
        description: one or two sentences for ``--help`` and ``dataset.json``.
        homepage: address of its site.
        download: how to get it and what SOURCE may be.
        licence: terms of use, in short.
        reference: the paper to cite, with its DOI.
        size: width and height of every picture in pixels.
        kinds: by folder name in the DRIVE layout: ``images``, ``1st_manual``, ``2nd_manual``, ``mask``. Without
            ``mask``, FOV masks are estimated.
        training, validation, test: case ids of the sections, which together are all cases.
        split: where this split comes from.
        archives: names of the archives that its site splits it into; given one, those beside it are used, too.
        unchanged: whether annotations and masks are copied as they are, because they already follow the layout.
    """

    name: str
    description: str
    homepage: str
    download: str
    licence: str
    reference: str
    size: tuple[int, int]
    kinds: Mapping[str, FileKind]
    training: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    split: str
    archives: tuple[str, ...] = ()
    unchanged: bool = False

    def sections(self) -> dict[str, tuple[str, ...]]:
        """Case ids by section."""
        return {"training": self.training, "validation": self.validation, "test": self.test}


def main(dataset: Dataset, arguments: Sequence[str] | None = None) -> int:
    """The command line of a script in ``data_scripts/``; returns the exit status."""
    parser = _parser(dataset)
    options = parser.parse_args(arguments)
    try:
        for notice in prepare(dataset, options.source, options.output_dir):
            print(notice)
    except DriveSegError as error:
        if options.debug:
            raise
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted, run it again to go on", file=sys.stderr)
        return 130
    return 0


def prepare(dataset: Dataset, source: str | Path, output_dir: str | Path) -> list[str]:
    """Verify ``source`` and write it to ``output_dir`` in the DRIVE layout with a ``dataset.json``.

    Photographs are stored without loss: JPEG, TIFF and PNG files byte for byte, others as PNG. Annotations and FOV
    masks become 8-bit PNG of 0 and 255, unless ``dataset.unchanged``. Existing files with the same content are not
    touched, so an interrupted run can be repeated. ``source`` is only read.

    Args:
        dataset: facts of the expected dataset.
        source: folder or archive as distributed by the site.
        output_dir: folder to write to, made if missing.

    Returns:
        Sentences for the user that say what was left out, estimated and written.

    Raises:
        DriveSegError: if ``source`` is not what ``dataset`` says, an archive is unsafe, or a file cannot be written.
    """
    source, output_dir = Path(source), Path(output_dir)
    _check_places(dataset, source, output_dir)
    notices: list[str] = []
    with unpacked(source, dataset.archives) as roots:
        files = _find_files(dataset, source, roots)
        sections = _verified_sections(dataset, source, files, notices)
        estimated: list[str] = []
        written: dict[str, list[Case]] = {section: [] for section in sections}
        work = [(section, case) for section, cases in sections.items() for case in cases]
        for section, case in tqdm(work, desc=dataset.name, unit="case", disable=None):
            partners = {kind: found[case] for kind, found in files.items() if case in found}
            written[section].append(_write_case(dataset, section, case, partners, output_dir, notices))
            if "mask" not in partners:
                estimated.append(case)
    if estimated:
        which = "all cases" if len(estimated) == len(work) else ", ".join(estimated)
        notices.append(f"No published FOV mask, so estimated: {which}")
    write_dataset_json(
        output_dir,
        written,
        LABELS,
        name=dataset.name,
        description=dataset.description,
        homepage=dataset.homepage,
        licence=dataset.licence,
        reference=dataset.reference,
        split=dataset.split,
        estimatedFov=estimated,
    )
    counts = ", ".join(f"{len(cases)} {section}" for section, cases in written.items())
    notices.append(f"{output_dir}: {dataset.name} with {counts} cases")
    return notices


def read_binary(path: Path, content: bytes, size: tuple[int, int]) -> np.ndarray:
    """An annotation or FOV mask, (H, W), bool.

    Palettes are looked up, as when the file is read for training.

    Raises:
        DriveSegError: if the file cannot be read, is not of ``size`` (width, height), is in colours, or does not have
            exactly two values, black and one other.
    """
    picture = _open(path, content, size)
    pixels = grey_levels(picture) if picture.mode == "P" else np.asarray(picture)
    if pixels.ndim == 3:
        if (pixels != pixels[..., :1]).any():
            raise DriveSegError(f"{path}: expected black and white, got colours")
        pixels = pixels[..., 0]
    values = np.unique(pixels)
    if len(values) != 2 or values[0] != 0:
        found = f"{len(values)} values from {int(values[0])} to {int(values[-1])}"
        raise DriveSegError(f"{path}: expected a picture of two values, 0 and one other, got {found}")
    return pixels > 0


def _parser(dataset: Dataset) -> argparse.ArgumentParser:
    paragraphs = [
        f"Put {dataset.name} into the DRIVE layout. {dataset.description}",
        f"Where to get it: {dataset.download} {dataset.homepage}",
        f"Licence: {dataset.licence}",
        f"Cite: {dataset.reference}",
        f"Split: {dataset.split}",
        "What is written to OUTPUT_DIR: training/ and test/ with the folders images, 1st_manual, 2nd_manual (where "
        "there is a second observer) and mask (field of view), and dataset.json, which lists the training, validation "
        "and test cases with paths relative to it. Validation cases lie in training/. Photographs keep every pixel. "
        "SOURCE is verified and only read. The script may be run again: finished files are kept.",
    ]
    parser = argparse.ArgumentParser(
        description="\n\n".join(textwrap.fill(paragraph, 100) for paragraph in paragraphs),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", type=Path, help="folder or archive as the site hands it out")
    parser.add_argument("output_dir", metavar="OUTPUT_DIR", type=Path, help="folder to write to, outside SOURCE")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _check_places(dataset: Dataset, source: Path, output_dir: Path) -> None:
    if not source.exists():
        raise DriveSegError(f"SOURCE: there is no file or folder {source}")
    source, output_dir = source.resolve(), output_dir.resolve()
    if source.is_dir() and source in (output_dir, *output_dir.parents):
        raise DriveSegError(
            f"OUTPUT_DIR: {output_dir} lies in SOURCE {source}, which is only read: choose a folder outside it"
        )
    for folder in ("training", "test"):
        if output_dir / folder in (source, *source.parents):
            raise DriveSegError(
                f"SOURCE: {source} lies in {output_dir / folder}, which is written to: choose another OUTPUT_DIR"
            )
    if output_dir.exists() and not output_dir.is_dir():
        raise DriveSegError(f"OUTPUT_DIR: {output_dir} is a file, expected a folder or nothing there")
    existing = output_dir / DATASET_JSON
    if existing.is_file():
        try:
            name = json.loads(existing.read_text(encoding="utf-8")).get("name")
        except (OSError, ValueError, AttributeError):
            name = None
        if name != dataset.name:
            raise DriveSegError(f"OUTPUT_DIR: {existing} is not of {dataset.name}: choose another folder or remove it")


def _find_files(dataset: Dataset, source: Path, roots: Sequence[Path]) -> dict[str, dict[str, Path]]:
    """Files by kind and case."""
    patterns = {kind: re.compile(f"(?:.*/)?{it.pattern}", re.IGNORECASE) for kind, it in dataset.kinds.items()}
    spelling = {case.lower(): case for cases in dataset.sections().values() for case in cases}
    found: dict[str, dict[str, Path]] = {kind: {} for kind in patterns}
    for root, path in [(folder, path) for folder in roots for path in files_in(folder)]:
        below = path.relative_to(root).as_posix()
        for kind, pattern in patterns.items():
            match = pattern.fullmatch(below)
            if match is None:
                continue
            case = spelling.get(match["case"].lower())
            if case is None:
                raise DriveSegError(f"{path} is no case of {dataset.name}, expected one of its {len(spelling)}")
            other = found[kind].setdefault(case, path)
            if other != path and read_file(other) != read_file(path):
                raise DriveSegError(f"{other} and {path} differ, expected one {kind} file for case {case}")
    return found


def _verified_sections(
    dataset: Dataset, source: Path, files: Mapping[str, Mapping[str, Path]], notices: list[str]
) -> dict[str, list[str]]:
    """Case ids by section, without those left out for lack of an annotation."""
    sections = {section: list(cases) for section, cases in dataset.sections().items()}
    folders = {"training": sections["training"] + sections["validation"], "test": sections["test"]}
    for kind, it in dataset.kinds.items():
        for folder, cases in folders.items():
            there = [case for case in cases if case in files[kind]]
            missing = sorted(set(cases) - set(there))
            if not missing or it.some:
                continue
            if folder in it.required_in or there:
                names = [it.name.format(case=case, folder=folder) for case in missing]
                raise DriveSegError(
                    f"{source}: expected {len(cases)} {folder} files for {kind} of {dataset.name}, "
                    f"found {len(there)}: there is no {_some_of(names)}"
                    + ("" if there else f". What SOURCE may be: {dataset.download}")
                )
            notices.append(f"{source} has no {kind} in {folder}: none is written")
    if dataset.kinds[FIRST_MANUAL].some:
        left_out = [case for cases in sections.values() for case in cases if case not in files[FIRST_MANUAL]]
        if left_out:
            notices.append(f"Left out, because there is no annotation: {', '.join(sorted(left_out))}")
        sections = {section: [case for case in cases if case not in left_out] for section, cases in sections.items()}
        for section, cases in sections.items():
            if not cases:
                raise DriveSegError(f"{source}: no {section} case of {dataset.name} has an annotation")
    return sections


def _some_of(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _write_case(
    dataset: Dataset,
    section: str,
    case: str,
    partners: Mapping[str, Path],
    output_dir: Path,
    notices: list[str],
) -> Case:
    folder = "test" if section == "test" else "training"
    written: Case = {"case_id": case}

    def store(kind: str, name: str, content: bytes) -> None:
        path = output_dir / folder / kind / name
        _keep_or_write(path, content)
        written[{"images": "image", "mask": "fov"}.get(kind, kind)] = str(path)

    path = partners["images"]
    content = read_file(path)
    photograph = _open(path, content, dataset.size)
    if photograph.mode not in ("RGB", "RGBA"):
        raise DriveSegError(f"{path}: expected a colour photograph (RGB), got mode {photograph.mode}")
    suffix = path.suffix.lower()
    if suffix in _COPIED_SUFFIXES:
        store("images", f"{case}_{folder}{suffix}", content)
    else:
        store("images", f"{case}_{folder}.png", _png(photograph))

    drawn = {}
    for kind, path in partners.items():
        if kind == "images":
            continue
        content = read_file(path)
        drawn[kind] = read_binary(path, content, dataset.size)
        if kind != "mask" and drawn[kind].mean() > 0.5:
            raise DriveSegError(
                f"{path}: expected vessels in white on black, got {drawn[kind].mean():.0%} of the picture white"
            )
        ending = f"{folder}_mask" if kind == "mask" else f"manual{kind[0]}"
        if dataset.unchanged:
            store(kind, f"{case}_{ending}{path.suffix.lower()}", content)
        else:
            store(kind, f"{case}_{ending}.png", _png(Image.fromarray(drawn[kind].astype(np.uint8) * 255)))

    if "mask" not in drawn:
        try:
            drawn["mask"] = estimate_fov(np.asarray(photograph.convert("RGB")))
        except ValueError as error:
            raise DriveSegError(f"{partners['images']}: {error}") from error
        store("mask", f"{case}_{folder}_mask.png", _png(Image.fromarray(drawn["mask"].astype(np.uint8) * 255)))
    vessels = drawn.get(FIRST_MANUAL)
    if vessels is not None:
        outside = (vessels & ~drawn["mask"]).sum() / vessels.sum()
        if outside > 0.02:
            notices.append(
                f"{written['fov']}: {outside:.1%} of the annotated vessel pixels lie outside, please check it"
            )
    return written


def _open(path: Path, content: bytes, size: tuple[int, int]) -> Image.Image:
    """The decoded picture; its size is checked first, which is cheap and bounds the memory."""
    try:
        picture = Image.open(io.BytesIO(content), formats=FORMATS)
        if picture.size != size:
            raise DriveSegError(f"{path}: expected {_size(size)} pixels, got {_size(picture.size)}")
        picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DriveSegError(f"{path}: cannot be read as a picture ({error})") from error
    return picture


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _keep_or_write(path: Path, content: bytes) -> None:
    if path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content:
        return
    with replacing(path) as temporary:
        temporary.write_bytes(content)
