"""The bundle and its weights as one zip file, in the form that ``python -m monai.bundle download`` takes."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drive_seg.archives import write_archive
from drive_seg.checkpoints import load_checkpoint
from drive_seg.classes import names_of_classes
from drive_seg.configs import check_overrides, config_as_used, config_files, config_keys, path_value, read_configs
from drive_seg.errors import DriveSegError, unwrapped
from drive_seg.export import FILE_NAMES, export_network
from drive_seg.files import replacing, sha256
from drive_seg.learnt_cases import another_scale, learnt_scale

__all__ = ["NAME", "package_bundle"]

_logger = logging.getLogger(__name__)

NAME = "drive_vessel_segmentation"
"""Name of the bundle; MONAI looks for a folder of this name in the zip file."""

# The file itself explains its entries, for whoever unpacks it.
_LARGE_FILES = """\
# Weights are too large for a repository and travel with this archive. "python -m monai.bundle download" unpacks the
# archive and does not read this file; "download_large_files" compares every file with its SHA-256 (hash_val), and
# would fetch from url only one that is missing. Nothing is, so url is empty.
large_files:
"""

_MODEL_CARD = """\
# Retinal vessel segmentation

Weights of another training than those that drive-seg ships (models/model.pt, SHA-256 {sha256}). What
they were trained on, what they reach, and under which licence they may be used is not known here: whoever passes them
on writes it into this file, and the figures into configs/metadata.json as eval_metrics.

Not a medical device: for research, not for diagnosis.
"""


def package_bundle(
    root: Path, output_dir: Path, checkpoint: Path | None = None, overrides: Mapping[str, Any] | None = None
) -> Path:
    """Write ``drive_vessel_segmentation_v<version>.zip``: configs, docs, licence and weights.

    The same bundle and weights give the same bytes. The model card and the data licence apply to the bundle's own
    weights and are left out for others. The figures apply to these weights as the bundle uses them, so overrides leave
    the figures out, too.

    Args:
        root: the bundle, whose ``metadata.json`` gives the version.
        output_dir: folder for the zip file.
        checkpoint: state dict of the network in ``inference.json``; None for ``models/model.pt`` of the bundle.
        overrides: keys of ``inference.json`` or ``train.json`` and their values, such as ``base_channels``, to set in
            the packed configs.

    Returns:
        The zip file.

    Raises:
        DriveSegError: if a file is missing, the weights do not fit the network in ``inference.json``, or an override
            names a key that neither config has or a value that does not fit, or the zip file exists with other content.
    """
    overrides = dict(overrides or {})
    weights = checkpoint or root / "models" / "model.pt"
    if "network" in load_checkpoint(weights):
        raise DriveSegError(f"{weights}: is the state of a training, expected weights alone, a model.pt")
    (metadata,) = config_files(root, "metadata")
    version = json.loads(Path(metadata).read_text(encoding="utf-8"))["version"]
    if not (root / "LICENSE").is_file():
        raise DriveSegError(f"{root / 'LICENSE'}: there is no such file, expected a bundle in {root}")

    path = output_dir / f"{NAME}_v{version}.zip"
    with tempfile.TemporaryDirectory() as scratch:
        check_overrides(config_files(root, "inference", "train"), overrides)
        as_used = {**_known(overrides, *config_files(root, "inference")), "checkpoint": path_value(weights)}
        _check_values(root, as_used, _known(overrides, *config_files(root, "train")))
        others = sha256(weights) != _sha256_of_own(root)
        changed = _configs_of_others(root, overrides, weights if others else None) if others or overrides else {}
        for name in ("inference", "metadata"):  # model.ts holds them, too
            file = Path(scratch) / "configs" / f"{name}.json"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(changed.get(f"configs/{file.name}") or (root / "configs" / file.name).read_bytes())
        (scripted,) = export_network(Path(scratch), Path(scratch), as_used, ["torchscript"])
        models = {"models/model.pt": weights, f"models/{FILE_NAMES['torchscript']}": scripted.path}
        members: dict[str, bytes | Path] = {
            "LICENSE": root / "LICENSE",
            "large_files.yml": _large_files(models).encode(),
            **models,
            **{file.relative_to(root).as_posix(): file for name in ("configs", "docs") for file in _files(root / name)},
        }
        learnt = weights.with_suffix(".json")
        scale = learnt_scale([weights])
        if learnt.is_file() and not others:
            members["models/model.json"] = learnt
        elif scale is not None:  # without the photographs: whoever has one could tell that it was used
            members["models/model.json"] = (json.dumps({"fov_diameter": scale}) + "\n").encode()
        if others:
            members = {name: content for name, content in members.items() if not name.startswith("docs/")}
            members["docs/README.md"] = _MODEL_CARD.format(sha256=sha256(weights)).encode()
        members.update(changed)
        with replacing(path) as temporary:
            write_archive(temporary, {f"{NAME}/{name}": content for name, content in members.items()})
            if path.is_file() and sha256(path) != sha256(temporary):
                raise DriveSegError(f"{path}: is there already with other content, expected another --output-dir")
    return path


def _known(overrides: Mapping[str, Any], config: str) -> dict[str, Any]:
    """The overrides of keys that a config has."""
    known = config_keys(json.loads(Path(config).read_text(encoding="utf-8")))
    return {key: value for key, value in overrides.items() if key.replace("#", "::") in known}


def _check_values(root: Path, overrides: Mapping[str, Any], of_train: Mapping[str, Any]) -> None:
    """Make what ``inference.json`` describes and the readers of ``train.json``.

    Values that do not fit are refused there, before anybody else has them.
    """
    parser = read_configs(config_files(root, "inference"), {"bundle_root": str(root), **overrides, "save": True})
    with unwrapped():
        read_configs(config_files(root, "train"), {"bundle_root": str(root), **of_train}).get_parsed_content(
            "read_case"
        )
        for name in ("preprocessing", "inferer", "postprocessing"):
            parser.get_parsed_content(name)
    scale = another_scale([parser.get_parsed_content("checkpoint")], parser.get_parsed_content("fov_diameter"))
    if scale is not None:
        _logger.warning("%s", scale)


def _sha256_of_own(root: Path) -> str | None:
    """Hash of the weights that the card and figures apply to; trainings may have replaced the file since."""
    (metadata,) = config_files(root, "metadata")
    return json.loads(Path(metadata).read_text(encoding="utf-8")).get("weights_sha256")


def _configs_of_others(root: Path, overrides: Mapping[str, Any], others: Path | None) -> dict[str, bytes]:
    """The configs and metadata for weights that are not the bundle's, or that are used with overrides."""
    members = {}
    for file in config_files(root, "train", "inference"):
        members[f"configs/{Path(file).name}"] = config_as_used(file, _known(overrides, file)).encode()
    metadata = json.loads((root / "configs" / "metadata.json").read_text(encoding="utf-8"))
    metadata.pop("eval_metrics", None)
    if others is not None:
        metadata["weights_sha256"] = sha256(others)
        metadata["changelog"] = {metadata["version"]: "weights of another training, see docs/README.md"}
        metadata["data_source"] = "weights: another training, see docs/README.md"
    train = config_files(root, "train")
    parser = read_configs(train, _known(overrides, *train))
    classes, named = (parser.get_parsed_content(key) for key in ("num_classes", "class_names"))
    vessel_classes = names_of_classes(classes, named)
    if classes != metadata["network_data_format"]["outputs"]["pred"]["num_channels"] or named is not None:
        names = {str(value): name for value, name in enumerate(["background", *vessel_classes])}
        formats = metadata["network_data_format"]
        formats["outputs"]["pred"].update(num_channels=classes, channel_def=names)
        mask, probability = (formats["post_processed_outputs"][key] for key in ("pred", "probability"))
        mask.update(value_range=[0, classes - 1], channel_def={"0": "class values"})
        vessels = {str(value - 1): names[str(value)] for value in range(1, classes)}
        probability.update(num_channels=classes - 1, channel_def=vessels)
        metadata["label_classes"] = ", ".join(f"{value} {name}" for value, name in names.items())
        metadata["pred_classes"] = f"{classes} channels of logits: {metadata['label_classes']}"
    members["configs/metadata.json"] = (json.dumps(metadata, indent=4) + "\n").encode()
    return members


def _large_files(models: dict[str, Path]) -> str:
    entries = (
        f'- path: "{name}"\n  url: ""\n  hash_val: "{sha256(file)}"\n  hash_type: "sha256"\n'
        for name, file in sorted(models.items())
    )
    return _LARGE_FILES + "".join(entries)


def _files(folder: Path) -> list[Path]:
    # Editors and file managers leave hidden files behind.
    return [file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".")]
