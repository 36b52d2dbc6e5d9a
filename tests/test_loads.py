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
