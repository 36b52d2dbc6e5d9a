"""What ``pip install .`` installs: the package, and in it the bundle, which lies beside it in a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from conftest import ROOT

PATHS = """
import drive_seg
from drive_seg.cli import main
from drive_seg.configs import bundle_root

print(bundle_root())
main(["predict", "--help"])
"""


def below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_it_holds_all_that_the_commands_need(bundle: Path, tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("drive_seg-*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as content:
        content.extractall(site)
    code = {name for name in below(ROOT / "drive_seg") if "__pycache__" not in name}
    # Trainings write into a checkout's bundle, too, and none of that is installed.
    shipped = {"LICENSE", "models/model.pt", "models/model.json"}
    shipped |= {f"configs/{name}" for name in below(bundle / "configs")}
    shipped |= {f"docs/{name}" for name in below(bundle / "docs")}
    assert below(site / "drive_seg") == code | {f"bundle/{name}" for name in shipped}
    (facts,) = site.glob("drive_seg-*.dist-info")
    assert "drive-seg = drive_seg.cli:main" in (facts / "entry_points.txt").read_text()

    elsewhere = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", PATHS], cwd=tmp_path, env=elsewhere, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.startswith(str(site / "drive_seg" / "bundle")) and "--fov-dir" in done.stdout, done.stderr
