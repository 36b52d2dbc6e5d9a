"""What the documents beside the README name is there: commands, modules and measurements."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from builders import shipped_quality_check
from conftest import ROOT

import drive_seg
from drive_seg.configs import check_overrides, config_files, parse_overrides
from drive_seg.measures import MeasureVesselsd
from drive_seg.phantom import make_phantom

CONFIGS = {"evaluate": ("train", "evaluate"), "predict": ("inference",), "export": ("inference",)}
OPTIONS = ("dataset-dir", "output-dir", "checkpoint", "config")


def commands(document: Path) -> list[str]:
    text = re.sub(r"\\\n\s*", "", document.read_text(encoding="utf-8"))
    text = re.sub(r'"\$\{(EARLIER|BOTH)\[@\]\}"', "", text)
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if re.match(r"(\S*/)?(python (-m monai|tests/)|torchrun |drive-seg )", line)]


@pytest.mark.parametrize(
    "command",
    [command for path in sorted((ROOT / "bundle" / "docs").glob("*.md")) for command in commands(path)],
)
def test_a_command_names_what_there_is(bundle: Path, command: str) -> None:
    words = shlex.split(command)
    if "monai.bundle" in words:
        arguments = words[words.index("monai.bundle") + 2 :]
        values = parse_overrides(arguments if arguments[0].startswith("--") else arguments[1:])
        names = values.pop("config_file")
        files = [str(bundle / "configs" / Path(name).name) for name in (names if isinstance(names, list) else [names])]
        assert all(Path(file).is_file() for file in files)
        check_overrides(files, values)
        return
    options = [word.lstrip("-").replace("#", "::") for word in words if word.startswith("--")]
    if "drive-seg" in words[0]:
        keys = [option for option in options if option not in OPTIONS]
        check_overrides(config_files(bundle, *CONFIGS.get(words[1], ("train",))), dict.fromkeys(keys))
        return
    script = (ROOT / words[1]).read_text(encoding="utf-8")
    keys = [option for option in options if f'"--{option}"' not in script]
    check_overrides(config_files(bundle, "train", "inference"), dict.fromkeys(keys))


def test_the_map_of_the_package_names_every_module() -> None:
    named = re.findall(r"``(\w+)``", drive_seg.__doc__ or "")
    assert sorted(named) == sorted(path.stem for path in (ROOT / "drive_seg").glob("[a-z]*.py"))


def test_every_measurement_is_explained() -> None:
    columns = re.findall(r"`(\w+)`", (ROOT / "bundle" / "docs" / "measures.md").read_text(encoding="utf-8"))
    phantom = make_phantom(1, 150, 141)
    case = {"pred": phantom.vessels[None], "fov": phantom.fov[None], "photograph": phantom.image.transpose(2, 0, 1)}
    measured = MeasureVesselsd(shipped_quality_check(), pixel_spacing_mm=0.01)(case)["measures"]
    assert {"photograph", "case_id", *measured} <= set(columns)


def test_readme_and_card_state_the_figures_of_the_metadata() -> None:
    metadata = json.loads((ROOT / "bundle" / "configs" / "metadata.json").read_text(encoding="utf-8"))
    card = (ROOT / "bundle" / "docs" / "README.md").read_text(encoding="utf-8")
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    for dataset, title in {"chase_db1": "CHASE_DB1, 8 images", "hrf": "HRF, 15 images"}.items():
        stated = {tuple(re.findall(r"0\.\d{4}", line)) for line in card.splitlines() if line.startswith(f"| {title} |")}
        for adapted in ("", "_adapted"):
            dice, auc = (
                f"{metadata['eval_metrics'][f'mean_{name}_{dataset}{adapted}']:.4f}" for name in ("dice", "roc_auc")
            )
            assert (dice, auc) in {figures[:2] for figures in stated}, f"{dice} and {auc} of {title}{adapted}"
            assert dice in readme and auc in readme
