"""Without any extra, everything works but what the extras are for, and that names its extra."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from builders import KINDS, finding_some, listed, results, small
from packaging.requirements import Requirement
from pictures import save_dicom
from running import table

from drive_seg.phantom import make_phantom
from drive_seg.pictures import save_png

OF_OTHERS = {"federated", "mlflow"}
"""Extras for programs that are not ours: NVFLARE and MONAI's ``--tracking mlflow``."""

WITHOUT = """
import json, sys
sys.modules.update(dict.fromkeys(json.loads(sys.argv[1])))
from drive_seg.cli import main
for command in json.loads(sys.argv[2]):
    try:
        main(command)
    except SystemExit as stop:
        print(end="\\f" + json.dumps(stop.code or 0) + "\\f", file=sys.stderr, flush=True)
"""


def modules_of_extras() -> dict[str, list[str]]:
    """What can be imported of every extra, but for development and what is needed without it, too."""
    about = importlib.metadata.metadata("drive-seg")
    needed = [Requirement(text) for text in about.get_all("Requires-Dist") or ()]
    always = {one.name for one in needed if one.marker is None}
    distributions = importlib.metadata.packages_distributions()
    found = {}
    for extra in set(about.get_all("Provides-Extra") or ()) - {"dev"}:
        own = {one.name.lower() for one in needed if one.marker and one.marker.evaluate({"extra": extra})} - always
        found[extra] = [module for module, owners in distributions.items() if own & {one.lower() for one in owners}]
        assert found[extra] or extra == "federated", "which is not to be had for newer Pythons"
    return found


@pytest.mark.slow
def test_without_any_extra(phantoms: Path, tmp_path: Path) -> None:
    torch.save(finding_some(small(base_channels=4, depth=3)).state_dict(), tmp_path / "model.pt")
    eye, dicom = tmp_path / "eye.png", tmp_path / "eye.dcm"
    save_png(make_phantom(0, 150, 141).image, eye)
    save_dicom(dicom, make_phantom(0, 150, 141).image)
    network = ["--base_channels=4", "--depth=3"]
    common = [*network, "--fov_diameter=128", "--precision=float32"]
    weights = ["--checkpoint", str(tmp_path / "model.pt")]
    training = ["--patch_size=64", "--max_epochs=1", "--val_interval=1", "--warmup_steps=1"]
    commands = {
        "photographs": ["predict", str(eye), *common, *weights],
        "training": ["train", "--dataset-dir", str(phantoms), *common, *training],
        "scores": ["evaluate", "--dataset-dir", str(phantoms), *common, *weights],
        "dicom": ["predict", str(dicom), *common, *weights],
        "openvino": ["predict", str(eye), *common, *weights, "--engine=openvino"],
        "onnx": ["export", *network, *weights, "--format=onnx"],
    }
    extras = modules_of_extras()
    absent = sorted({module for modules in extras.values() for module in modules})
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, json.dumps(absent)]
        + [json.dumps([[*command, "--output-dir", str(tmp_path / name)] for name, command in commands.items()])],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-3000:]
    said = dict(zip(commands, done.stderr.split("\f")[::2], strict=False))
    ended = dict(zip(commands, map(json.loads, done.stderr.split("\f")[1::2]), strict=True))

    assert [ended[name] for name in ("photographs", "training", "scores")] == [0, 0, 0], done.stderr
    assert set(results(tmp_path / "photographs")) == {f"eye_{kind}" for kind in KINDS}
    assert listed(tmp_path / "photographs") == ["eye.png"]
    assert len(table(tmp_path / "training" / "history.csv")) == 1 and (tmp_path / "training" / "model.pt").is_file()
    assert len(table(tmp_path / "scores" / "metrics.csv")) > 0
    told = {
        "report": [line for name in ("photographs", "training", "scores") for line in lines(said[name], "report")],
        "dicom": lines(said["dicom"], "dicom"),
        "openvino": lines(ended["openvino"], "openvino"),
        "export": lines(ended["onnx"], "export"),
    }
    assert {extra: len(sentences) for extra, sentences in told.items()} == {
        "report": 3, "dicom": 1, "openvino": 1, "export": 1
    }  # fmt: skip
    assert extras.keys() == told.keys() | OF_OTHERS
    for name, missing in (("photographs", "gallery.html"), ("training", "curves.png"), ("scores", "report.html")):
        assert not (tmp_path / name / missing).exists()
        assert missing in "".join(lines(said[name], "report"))


def lines(said: str, extra: str) -> list[str]:
    """The lines that name an extra."""
    return [line for line in said.splitlines() if f"drive-seg[{extra}]" in line]
