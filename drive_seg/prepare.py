"""Public datasets as their sites hand them out → the DRIVE layout with a ``dataset.json``.

A script in ``data_scripts/`` states the facts of one dataset and calls ``main``. Nothing is guessed: which case is
in which section, how many files there are and how large a photograph is all stand in the facts, and a source
that differs is refused with the name of the file.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import re
import shutil
import stat
import sys
import tarfile
import tempfile
import textwrap
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from tqdm import tqdm

from drive_seg.data import DATASET_JSON, FIRST_OBSERVER, Case, write_dataset_json
from drive_seg.errors import DriveSegError
from drive_seg.files import replacing
from drive_seg.fov import estimate_fov

LABELS = {"0": "background", "1": "vessel"}
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MAX_UNPACKED_BYTES = 8 * 2**30
MAX_UNPACKED_FILES = 20_000

_COPIED_SUFFIXES = frozenset({".jpg", ".jpeg", ".tif", ".tiff", ".png", ".gif"})
_MAX_NESTING = 3


@dataclass(frozen=True)
class FileKind:
    """Where one kind of file is found and whether it may be missing.

    Attributes:
        pattern: regular expression for the end of the path, from a folder's or file's first letter on, with a
            group named ``case``; upper and lower case are the same.
        name: such a path to show to people, with ``{case}`` and ``{folder}`` (``training`` or ``test``) to fill in.
        required_in: the folders (``training``, ``test``) in which every case must have one. Elsewhere
            either all cases have one or none has.
        some: if a part of the cases may have one. Then a case without an annotation is left out, and a
            FOV mask that is missing is estimated.
    """

    pattern: str
    name: str
    required_in: tuple[str, ...] = ("training", "test")
    some: bool = False


@dataclass(frozen=True)
class Dataset:
    """The facts of one public dataset.

    Attributes:
        name: as it is known; stands in ``dataset.json``.
        description: one or two sentences for ``--help`` and ``dataset.json``.
        homepage: address of its site.
        download: how to get it and what SOURCE may be.
        licence: terms of use, in short.
        reference: the paper to cite, with its DOI.
        size: width and height of every picture in pixels.
        kinds: by folder name in the DRIVE layout: ``images``, ``1st_manual``, ``2nd_manual``, ``mask``. Without
            ``mask``, FOV masks are estimated.
        training, validation, test: case ids of the sections, which together are all there are.
        split: where this split comes from.
        archives: names of the archives that its site splits it into: given one, those beside it are used, too.
        unchanged: whether annotations and masks are copied as they are because they are in the layout already.
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
    masks become 8-bit PNG of 0 and 255, unless ``dataset.unchanged``. Files that are there already with the same
    content are not touched, so a run that was interrupted can be repeated. ``source`` is only read.

    Args:
        dataset: what is expected.
        source: folder or archive as the site hands it out.
        output_dir: folder to write to, made if it is missing.

    Returns:
        Sentences for the user: what was left out, estimated and written.

    Raises:
        DriveSegError: if ``source`` is not what ``dataset`` says, an archive is unsafe, or a file cannot be written.
    """
    source, output_dir = Path(source), Path(output_dir)
    _check_places(dataset, source, output_dir)
    notices: list[str] = []
    with _unpacked(source, dataset.archives) as roots:
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

    Palette pictures are judged by their indices: some of DRIVE's hold {0, 1} with a palette that is nearly black.

    Raises:
        DriveSegError: if it cannot be read, is not ``size`` (width, height), has more than black and one other
            value, or has only one.
    """
    pixels = np.asarray(_open(path, content, size))
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


def _is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVE_SUFFIXES)


@contextlib.contextmanager
def _unpacked(source: Path, beside: Sequence[str]) -> Iterator[list[Path]]:
    """Folders that hold everything in ``source``, archives in archives included; temporary ones go away afterwards."""
    with tempfile.TemporaryDirectory(prefix="drive-seg-") as temporary:
        if source.is_dir():
            roots, archives = [source], _archives_in(source)
        elif _is_archive(source):
            roots, archives = [], [source]
            if source.name.lower() in beside:
                archives += [p for p in sorted(source.parent.iterdir()) if p.name.lower() in beside and p != source]
        else:
            raise DriveSegError(f"SOURCE: {source} is neither a folder nor an archive ({', '.join(ARCHIVE_SUFFIXES)})")
        budget = _Budget()
        for nesting in range(_MAX_NESTING):
            unpacked = []
            for number, archive in enumerate(archives):
                # Named for the archive, because some hold their files without the folder they belong to.
                folder = Path(temporary, f"{nesting}-{number}", archive.name.split(".")[0])
                folder.mkdir(parents=True)
                _unpack(archive, folder, budget)
                unpacked.append(folder.parent)
            roots += unpacked
            archives = [archive for folder in unpacked for archive in _archives_in(folder)]
        yield roots


def _archives_in(folder: Path) -> list[Path]:
    return [path for path in _files_in(folder) if _is_archive(path)]


def _files_in(folder: Path) -> list[Path]:
    """Files below ``folder`` in order of name, without hidden ones such as macOS adds to archives (``._name``)."""
    return sorted(p for p in folder.rglob("*") if not p.name.startswith(".") and p.is_file())


class _Budget:
    """How much may still be unpacked: a small archive can hold petabytes."""

    def __init__(self) -> None:
        self.bytes = MAX_UNPACKED_BYTES
        self.files = MAX_UNPACKED_FILES

    def take(self, archive: Path, size: int) -> None:
        self.bytes -= size
        self.files -= 1
        if self.bytes < 0 or self.files < 0:
            raise DriveSegError(
                f"{archive}: refused, it unpacks to more than {MAX_UNPACKED_BYTES / 2**30:g} GiB "
                f"or {MAX_UNPACKED_FILES} files"
            )


def _unpack(archive: Path, folder: Path, budget: _Budget) -> None:
    try:
        if archive.name.lower().endswith(".zip"):
            _unpack_zip(archive, folder, budget)
        else:
            _unpack_tar(archive, folder, budget)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, NotImplementedError) as error:
        raise DriveSegError(f"{archive}: cannot be unpacked ({error})") from error


def _check_member(archive: Path, name: str) -> None:
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name or ":" in "".join(parts[:1]):
        raise DriveSegError(f"{archive}: refused, its member {name!r} would be written outside the folder")


def _unpack_zip(archive: Path, folder: Path, budget: _Budget) -> None:
    with zipfile.ZipFile(archive) as content:
        members = content.infolist()
        for member in members:
            # orig_filename, because zipfile cuts names at a null byte and turns separators.
            _check_member(archive, member.orig_filename)
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise DriveSegError(f"{archive}: refused, its member {member.filename!r} is a link or device")
            if member.flag_bits & 1:
                raise DriveSegError(f"{archive}: its member {member.filename!r} is encrypted, expected plain files")
            budget.take(archive, member.file_size)
        for member in members:
            if not member.is_dir():
                target = folder.joinpath(*PurePosixPath(member.filename).parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                with content.open(member) as packed, target.open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)


def _unpack_tar(archive: Path, folder: Path, budget: _Budget) -> None:
    with tarfile.open(archive) as content:
        for member in content:
            if not (member.isfile() or member.isdir()):
                raise DriveSegError(f"{archive}: refused, its member {member.name!r} is a link or device")
            if member.isfile():
                _check_member(archive, member.name)
            budget.take(archive, member.size)
            content.extract(member, folder, filter="data")


def _find_files(dataset: Dataset, source: Path, roots: Sequence[Path]) -> dict[str, dict[str, Path]]:
    """Files by kind and case."""
    patterns = {kind: re.compile(f"(?:.*/)?{it.pattern}", re.IGNORECASE) for kind, it in dataset.kinds.items()}
    spelling = {case.lower(): case for cases in dataset.sections().values() for case in cases}
    found: dict[str, dict[str, Path]] = {kind: {} for kind in patterns}
    for root, path in [(folder, path) for folder in roots for path in _files_in(folder)]:
        below = path.relative_to(root).as_posix()
        for kind, pattern in patterns.items():
            match = pattern.fullmatch(below)
            if match is None:
                continue
            case = spelling.get(match["case"].lower())
            if case is None:
                raise DriveSegError(f"{path} is no case of {dataset.name}, expected one of its {len(spelling)}")
            other = found[kind].setdefault(case, path)
            if other != path and _read(other) != _read(path):
                raise DriveSegError(f"{other} and {path} differ, expected one {kind} file for case {case}")
    return found


def _verified_sections(
    dataset: Dataset, source: Path, files: Mapping[str, Mapping[str, Path]], notices: list[str]
) -> dict[str, list[str]]:
    """Case ids by section, less those that are left out for want of an annotation."""
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
                )
            notices.append(f"{source} has no {kind} in {folder}: none is written")
    if dataset.kinds[FIRST_OBSERVER].some:
        left_out = [case for cases in sections.values() for case in cases if case not in files[FIRST_OBSERVER]]
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
    content = _read(path)
    photograph = _open(path, content, dataset.size)
    if photograph.mode != "RGB":
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
        content = _read(path)
        drawn[kind] = read_binary(path, content, dataset.size)
        ending = f"{folder}_mask" if kind == "mask" else f"manual{kind[0]}"
        if dataset.unchanged:
            store(kind, f"{case}_{ending}{path.suffix.lower()}", content)
        else:
            store(kind, f"{case}_{ending}.png", _png(Image.fromarray(drawn[kind].astype(np.uint8) * 255)))

    if "mask" not in drawn:
        try:
            drawn["mask"] = estimate_fov(np.asarray(photograph))
        except ValueError as error:
            raise DriveSegError(f"{partners['images']}: {error}") from error
        store("mask", f"{case}_{folder}_mask.png", _png(Image.fromarray(drawn["mask"].astype(np.uint8) * 255)))
    vessels = drawn.get(FIRST_OBSERVER)
    if vessels is not None:
        outside = (vessels & ~drawn["mask"]).sum() / vessels.sum()
        if outside > 0.02:
            notices.append(f"{written['fov']}: {outside:.1%} of the annotated vessel pixels lie outside, look at it")
    return written


def _read(path: Path) -> bytes:
    try:
        if path.suffix.lower() == ".gz":
            with gzip.open(path) as packed:
                content = packed.read(MAX_UNPACKED_BYTES // 32 + 1)
            if len(content) > MAX_UNPACKED_BYTES // 32:
                raise DriveSegError(f"{path}: refused, it unpacks to more than {MAX_UNPACKED_BYTES // 32} bytes")
            return content
        return path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DriveSegError(f"{path}: cannot be read ({error})") from error


def _open(path: Path, content: bytes, size: tuple[int, int]) -> Image.Image:
    """The whole picture, decoded; its size is checked first, because that is cheap and bounds the memory."""
    try:
        picture = Image.open(io.BytesIO(content))
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
