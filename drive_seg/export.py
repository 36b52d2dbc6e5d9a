"""A trained network as one file for other runtimes: TorchScript, ``torch.export`` and ONNX.

Every file computes in float32; like the network, it takes normalised images (B, C, H, W) of any batch size, height and
width and returns logits. It is compared with the network before it gets its name.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from drive_seg.archives import write_archive
from drive_seg.checkpoints import load_weights, save_checkpoint
from drive_seg.configs import config_as_used, config_files, read_configs
from drive_seg.difference import Compute, largest_difference
from drive_seg.errors import DriveSegError
from drive_seg.files import replacing
from drive_seg.networks import EXPORTED_SINCE, UNet

__all__ = [
    "FILE_NAMES",
    "TOLERANCE",
    "Exported",
    "available_formats",
    "export_network",
]

_logger = logging.getLogger(__name__)

FILE_NAMES = {"torchscript": "model.ts", "pt2": "model.pt2", "onnx": "model.onnx"}
_NEEDED_FOR_ONNX = ("onnx", "onnxscript", "onnxruntime")

TOLERANCE = 1e-3
"""Largest accepted difference of a logit; in two logits, it changes a probability by 0.0005 at most."""


@dataclass(frozen=True)
class Exported:
    """A file and how well it agrees with the network: the largest absolute difference of a logit."""

    path: Path
    difference: float


def available_formats() -> list[str]:
    """The keys of ``FILE_NAMES`` for which everything is installed."""
    return [name for name in FILE_NAMES if not _missing_for(name)]


def export_network(
    root: Path,
    output_dir: Path,
    overrides: Mapping[str, Any],
    formats: Sequence[str] = (),
) -> Iterator[Exported]:
    """Write a network with its weights, format by format.

    ``model.ts`` and ``model.pt2`` hold the bundle's ``metadata.json`` and ``inference.json``, the latter with the
    overrides, as extra files. Images must have at least ``2**depth`` pixels a side for ``model.ts``, and twice that, or
    five times with adaptation, for the others.

    Args:
        root: the bundle.
        output_dir: folder to write into; each file is written whole or not at all.
        overrides: keys of ``inference.json`` and their values, such as ``checkpoint``.
        formats: keys of ``FILE_NAMES``; empty: all that are available.

    Yields:
        Each file once it is written and compared.

    Raises:
        DriveSegError: if a format is unknown or something it needs is not installed, if an override or the weights do
            not fit, or if a file differs from the network by more than ``TOLERANCE``.
    """
    if not formats:
        for name in FILE_NAMES:
            if missing := _missing_for(name):
                needed = " and ".join(missing)
                _logger.warning("%s is not written, it needs %s: install drive-seg[export]", FILE_NAMES[name], needed)
    formats = list(dict.fromkeys(formats)) or available_formats()
    for name in formats:
        _check_format(name)
    (config,) = config_files(root, "inference")
    (metadata,) = config_files(root, "metadata")
    parser = read_configs([config], {"bundle_root": str(root), **overrides})
    network = parser.get_parsed_content("network_def")
    if not isinstance(network, UNet) or network.spatial_dims != 2:
        raise DriveSegError(f"{config}: expected a two-dimensional drive_seg.networks.UNet as network_def")
    load_weights(network, parser.get_parsed_content("checkpoint")).eval()

    for name in formats:
        # Written under its final name, which TorchScript and torch.export write into the file, then moved.
        with tempfile.TemporaryDirectory() as scratch:
            made = Path(scratch) / FILE_NAMES[name]
            used = str(Path(scratch) / Path(config).name)
            Path(used).write_text(config_as_used(config, overrides), encoding="utf-8")
            if name == "torchscript":
                compute = _to_torchscript(network, made, used, metadata)
            elif name == "pt2":
                compute = _to_pt2(network, made, used, metadata)
            else:
                compute = _to_onnx(network, made)
            path = output_dir / made.name
            difference = largest_difference(network, compute, _test_sizes(network))
            if not difference <= TOLERANCE:
                raise DriveSegError(
                    f"{path}: is not written because its logits differ from the network's by {difference:.2g}, "
                    f"more than {TOLERANCE:.2g}"
                )
            with replacing(path) as temporary:
                shutil.copyfile(made, temporary)
        yield Exported(path, difference)


def _check_format(name: str) -> None:
    if name not in FILE_NAMES:
        raise DriveSegError(f"format: expected one of {', '.join(FILE_NAMES)}, got {name!r}")
    if missing := _missing_for(name):
        raise DriveSegError(f"{name}: needs {' and '.join(missing)}, which pip install 'drive-seg[export]' brings")


def _missing_for(name: str) -> list[str]:
    missing = []
    if name != "torchscript" and torch.__version__ < EXPORTED_SINCE:
        missing.append(f"torch {EXPORTED_SINCE} (here is {torch.__version__})")
    if name == "onnx":
        missing += [package for package in _NEEDED_FOR_ONNX if find_spec(package) is None]
    return missing


def _to_torchscript(network: UNet, path: Path, config: str, metadata: str) -> Compute:
    weights = path.with_name("weights.pt")
    save_checkpoint(network.state_dict(), weights)
    arguments = path.with_name("arguments.json")
    values = {
        "net_id": "network_def",
        "filepath": str(path),
        "ckpt_file": str(weights),
        "meta_file": metadata,
        "config_file": config,
    }
    arguments.write_text(json.dumps(values), encoding="utf-8")
    # In a process of its own and without random hashes, because the compiler numbers type names across a process and
    # writes a module's constants in the order of a set of strings: the bytes would differ every time.
    done = subprocess.run(
        [sys.executable, "-m", "monai.bundle", "ckpt_export", "--args_file", str(arguments)],
        env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONSAFEPATH": "1"},  # another monai may lie in the working folder
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"monai.bundle ckpt_export failed:\n{done.stderr}")
    _normalize_torchscript(path)
    return torch.jit.load(path)


def _normalize_torchscript(path: Path) -> None:
    """Remove what depends on where the package is installed: source paths for tracebacks, and a hash of everything."""
    with zipfile.ZipFile(path) as archive:
        members: dict[str, bytes | Path] = {
            name: archive.read(name)
            for name in archive.namelist()
            if not name.endswith((".debug_pkl", "/.data/serialization_id"))
        }
    write_archive(path, members)


def _to_pt2(network: UNet, path: Path, config: str, metadata: str) -> Compute:
    exported = torch.export.export(network, _example(network), dynamic_shapes=_dynamic_shapes(network))
    for node in exported.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    extra_files = {Path(file).name: Path(file).read_text(encoding="utf-8") for file in (config, metadata)}
    torch.export.save(exported, path, extra_files=extra_files)
    return torch.export.load(path).module()


def _to_onnx(network: UNet, path: Path) -> Compute:
    import onnxruntime

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")  # torch's, about itself
        program = torch.onnx.export(
            network,
            _example(network),
            dynamo=True,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=_dynamic_shapes(network),
            verbose=False,
        )
    assert program is not None  # only the exporter without dynamo returns None
    for node in program.model.graph:
        node.metadata_props.clear()  # tracebacks, also with paths of this machine
    program.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


def _example(network: UNet) -> tuple[torch.Tensor]:
    # Sizes that do not become 0 or 1, which torch.export takes for constants, at any stage.
    side = network.smallest_exported_size
    return (torch.zeros(2, network.in_channels, 2 * side + 3, 3 * side + 5),)


def _dynamic_shapes(network: UNet) -> dict[str, dict[int, Any]]:
    least = network.smallest_exported_size
    sides = {2: torch.export.Dim("height", min=least), 3: torch.export.Dim("width", min=least)}
    return {"x": {0: torch.export.Dim("batch"), **sides}}


def _test_sizes(network: UNet) -> list[tuple[int, int, int]]:
    """Images in a batch, heights and widths, even, odd and mixed; the last one is that of DRIVE's photographs."""
    least = network.smallest_exported_size
    return [(1, least, least), (2, least + 1, least + 3), (1, least + 6, 2 * least + 5), (1, 584, 565)]
