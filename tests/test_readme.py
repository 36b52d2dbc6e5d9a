"""What the README says can be done is done here."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from drive_seg.compare import read_summary
from drive_seg.phantom import make_phantom
from drive_seg.pictures import save_png
from drive_seg.segmenter import Segmentation

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)


def test_two_commands_on_the_first_screen() -> None:
    first_screen = README.split("\n## ")[0]
    blocks = [block for language, block in re.findall(r"```(\w+)\n(.*?)```", first_screen, flags=re.DOTALL)]
    assert len(blocks) == 2
    assert all(len(block.strip().splitlines()) == 1 for block in blocks)
    assert blocks[0].strip().endswith("drive-seg demo") and blocks[1].strip().endswith("pytest")


def test_ci_runs_the_readmes_test_command() -> None:
    found = [line for line in README.splitlines() if "/pytest" in line]
    assert len(found) == 1, ".ci/run takes the one line with /pytest"
    assert "/pytest" in (ROOT / ".ci" / "run").read_text()


def test_constraints_pin_every_dependency() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    project = (ROOT / "pyproject.toml").read_text()
    wanted = re.findall(r'^    "([a-z][\w-]*)>=', project, flags=re.MULTILINE)
    assert wanted and not [name for name in wanted if name.lower() not in pinned]


def test_python_example(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = (block for language, block in BLOCKS if language == "python")
    monkeypatch.chdir(tmp_path)
    phantom = make_phantom(0, 150, 141)
    save_png(phantom.image, tmp_path / "eye.jpg")
    save_png(phantom.vessels.astype(np.uint8) * 255, tmp_path / "corrected" / "eye_vessels.png")
    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)  # the README is ours
    result = names["result"]
    assert isinstance(result, Segmentation)
    assert result.mask.shape == result.probability.shape == result.fov.shape == (150, 141)
    assert "vessel_density_share" in names["measured"]
    assert 0.05 < names["measures"]["vessel_density_share"] < 0.3


@pytest.mark.slow
def test_demo(bundle: Path, tmp_path: Path) -> None:
    """As it is but for its length: with fewer phantoms and a fifth of the steps."""
    root, output = shutil.copytree(bundle, tmp_path / "bundle"), tmp_path / "out"
    config = root / "configs" / "demo.json"
    values = {**json.loads(config.read_text()), "max_epochs": 40, "val_interval": 20, "warmup_steps": 10}
    config.write_text(json.dumps({**values, "phantoms": {"training": 10, "test": 2, "seed": 0}}))
    done = subprocess.run(
        [sys.executable, "-m", "drive_seg.cli", "demo", "--output-dir", str(output), "--bundle-root", str(root)],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (output / "demo.png").stat().st_size > 100_000
    assert (output / "results" / "retina_vessels.png").is_file()
    assert not list(output.rglob("vessels_*.csv")), "neither's measures replace the other's"
    (row,) = (
        row for row in read_summary(output)["rows"] if (row["comparison"], row["region"]) == ("prediction", "fov")
    )
    assert row["cases"] == 2 and row["per_image"]["dice"]["mean"] > 0.6, "80 epochs of twice as many reach 0.8 and more"
