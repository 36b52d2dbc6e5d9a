"""The bundle with its weights as one zip file, in the form that ``python -m monai.bundle download`` takes."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from drive_seg.checkpoints import load_checkpoint
from drive_seg.configs import config_files
from drive_seg.errors import DriveSegError
from drive_seg.export import FILE_NAMES, export_network, write_archive
from drive_seg.files import replacing, sha256

__all__ = ["NAME", "package_bundle"]

NAME = "drive_vessel_segmentation"
"""Name of the bundle; MONAI looks for a folder of this name in the zip file."""

# What the entries are for stands in the file itself, where the one who unpacks it looks.
_LARGE_FILES = """\
# Weights are too large for a repository and travel with this archive. "python -m monai.bundle download" unpacks the
# archive and does not read this file; "download_large_files" compares every file with its SHA-256 (hash_val), and
# would fetch from url only one that is missing. Nothing is, so url is empty.
large_files:
"""


def package_bundle(root: Path, output_dir: Path, checkpoint: Path | None = None) -> Path:
    """Write ``drive_vessel_segmentation_v<version>.zip``: configs, docs, licence and weights.

    The same bundle and weights give the same bytes.

    Args:
        root: the bundle; the version is that of its ``metadata.json``.
        output_dir: where the zip file goes.
        checkpoint: state dict of the network in ``inference.json``; None for ``models/model.pt`` of the bundle.

    Returns:
        The zip file.

    Raises:
        DriveSegError: if a file is missing, or the weights are not those of the network in ``inference.json``.
    """
    weights = checkpoint or root / "models" / "model.pt"
    if "network" in load_checkpoint(weights):
        raise DriveSegError(f"{weights}: is the state of a training, expected weights alone, a model.pt")
    (metadata,) = config_files(root, "metadata")
    version = json.loads(Path(metadata).read_text(encoding="utf-8"))["version"]
    if not (root / "LICENSE").is_file():
        raise DriveSegError(f"{root / 'LICENSE'}: there is no such file, expected a bundle in {root}")

    path = output_dir / f"{NAME}_v{version}.zip"
    with tempfile.TemporaryDirectory() as scratch:
        (scripted,) = export_network(root, Path(scratch), {"checkpoint": str(weights)}, ["torchscript"])
        models = {"models/model.pt": weights, f"models/{FILE_NAMES['torchscript']}": scripted.path}
        members: dict[str, bytes | Path] = {
            "LICENSE": root / "LICENSE",
            "large_files.yml": _large_files(models).encode(),
            **models,
            **{file.relative_to(root).as_posix(): file for name in ("configs", "docs") for file in _files(root / name)},
        }
        with replacing(path) as temporary:
            write_archive(temporary, {f"{NAME}/{name}": content for name, content in members.items()})
    return path


def _large_files(models: dict[str, Path]) -> str:
    entries = (
        f'- path: "{name}"\n  url: ""\n  hash_val: "{sha256(file)}"\n  hash_type: "sha256"\n'
        for name, file in sorted(models.items())
    )
    return _LARGE_FILES + "".join(entries)


def _files(folder: Path) -> list[Path]:
    # Editors and file managers leave hidden files behind.
    return [file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".")]
