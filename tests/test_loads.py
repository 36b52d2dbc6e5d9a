"""The bundle in the hands of MONAI and of what is built on it: metadata, load, create_workflow, MonaiAlgo, apps."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from jsonschema import ValidationError, validate
from monai.bundle import verify_metadata, verify_net_in_out
from test_bundle import SMALL

from drive_seg.networks import UNet

SCHEMA = ROOT / "tests" / "data" / "metadata_schema.json"


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_metadata_is_verified_by_monais_command(bundle: Path, tmp_path: Path) -> None:
    """With the schema already where it would be downloaded to, and its hash, MONAI needs no network."""
    schema = shutil.copy(SCHEMA, tmp_path / "schema.json")
    digest = hashlib.md5(SCHEMA.read_bytes(), usedforsecurity=False).hexdigest()
    command = [sys.executable, "-m", "monai.bundle", "verify_metadata", "--hash_val", digest]
    done = subprocess.run(
        [*command, "--meta_file", str(bundle / "configs" / "metadata.json"), "--filepath", str(schema)],
        capture_output=True, text=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "metadata is verified with no error" in done.stdout + done.stderr


@pytest.mark.parametrize(("key", "value"), [
    ("version", None),
    ("version", "first"),
    ("monai_version", 1.6),
    ("required_packages_version", ["pillow"]),
    ("network_data_format", {"inputs": {"image": {"type": "image"}}, "outputs": {}}),
    ("auhtors", "somebody"),
])  # fmt: skip
def test_the_schema_notices_what_is_wrong(bundle: Path, tmp_path: Path, key: str, value: Any) -> None:
    metadata = read(bundle / "configs" / "metadata.json")
    metadata = {**metadata, key: value} if value is not None else {k: v for k, v in metadata.items() if k != key}
    with pytest.raises(ValidationError):
        validate(instance=metadata, schema=read(SCHEMA))
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    digest = hashlib.md5(SCHEMA.read_bytes(), usedforsecurity=False).hexdigest()
    with pytest.raises(ValueError, match="against schema"):
        verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=str(SCHEMA), hash_val=digest)


def test_metadata_names_the_versions_that_were_tested(bundle: Path) -> None:
    metadata = read(bundle / "configs" / "metadata.json")
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.split("==") for line in lines if re.match(r"^[\w-]+==", line))
    own = re.search(r'__version__ = "(.+)"', (ROOT / "drive_seg" / "__init__.py").read_text(encoding="utf-8"))
    assert own is not None and metadata["version"] == own[1] and own[1] in metadata["changelog"]
    named = {
        "monai": metadata["monai_version"],
        "torch": metadata["pytorch_version"],
        "numpy": metadata["numpy_version"],
    }
    for package, version in {**metadata["required_packages_version"], **named}.items():
        assert version == (own[1] if package == "drive-seg" else tested[package]), package


@pytest.mark.parametrize("name", ["train", "inference"])
def test_the_network_is_as_metadata_says(bundle: Path, name: str) -> None:
    files = {kind: str(bundle / "configs" / f"{kind}.json") for kind in (name, "metadata")}
    verify_net_in_out("network_def", meta_file=files["metadata"], config_file=files[name], device="cpu", n=2)
    with pytest.raises(ValueError, match="output channel number"):
        verify_net_in_out(
            "network_def", meta_file=files["metadata"], config_file=files[name], device="cpu", num_classes=3
        )


def small_network(seed: int) -> UNet:
    torch.manual_seed(seed)
    return UNet(base_channels=SMALL["base_channels"], depth=SMALL["depth"])


def drive_seg(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "drive_seg.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def fine_tune(dataset: Path, output: Path, pretrained: Path, **others: Any) -> subprocess.CompletedProcess[str]:
    values = {**SMALL, "max_epochs": 1, "learning_rate": 0.0, "pretrained": str(pretrained), **others}
    overrides = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]
    return drive_seg("train", "--dataset-dir", str(dataset), "--output-dir", str(output), *overrides)


def test_fine_tuning_starts_from_weights(phantoms: Path, tmp_path: Path) -> None:
    """Without a step the weights that a training ends with are those it started from."""
    torch.save(small_network(5).state_dict(), tmp_path / "pretrained.pt")
    done = fine_tune(phantoms, tmp_path / "mine", tmp_path / "pretrained.pt")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "the training starts from the weights of" in done.stderr
    tuned = torch.load(tmp_path / "mine" / "model.pt", weights_only=True)
    for name, weight in small_network(5).named_parameters():
        assert torch.equal(tuned[name], weight), name


@pytest.mark.parametrize(("base_channels", "message"), [
    (16, "pretrained.pt: the weights do not fit the network, are base_channels, depth and num_classes those of the"),
    (None, "pretrained.pt: there is no such checkpoint"),
])  # fmt: skip
def test_fine_tuning_from_what_does_not_fit(
    phantoms: Path, tmp_path: Path, base_channels: int | None, message: str
) -> None:
    if base_channels is not None:
        torch.save(UNet(base_channels=base_channels).state_dict(), tmp_path / "pretrained.pt")
    done = fine_tune(phantoms, tmp_path / "mine", tmp_path / "pretrained.pt")
    assert done.returncode == 1 and message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 or "Traceback" not in done.stderr
    assert not (tmp_path / "mine" / "model.pt").exists()
