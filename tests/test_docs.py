"""What the README and the documents beside it name is there: commands, modules and measurements."""

from __future__ import annotations

import doctest
import importlib
import importlib.metadata
import inspect
import json
import re
import shlex
from pathlib import Path

import monai.bundle
import pytest
import typer
from builders import shipped_quality_check
from conftest import ROOT
from monai.bundle import ConfigParser
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS
from torch.distributed.run import get_args_parser

import drive_seg
from drive_seg.cli import app
from drive_seg.configs import check_overrides, config_files, config_keys, parse_overrides, split_overrides
from drive_seg.measures import MeasureVesselsd
from drive_seg.phantom import make_phantom

DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "bundle" / "docs").glob("*.md")))
MODULES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "drive_seg").glob("[a-z]*.py"))}
CONFIGS = {
    "train": ("train",),
    "evaluate": ("train", "evaluate"),
    "predict": ("inference",),
    "export": ("inference",),
    "package": ("inference", "train"),
}
"""Whose keys the commands of ``drive-seg`` take."""

PLAIN = ("python3 -m venv .venv", ".venv/bin/pytest", "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1")


def commands(document: Path) -> list[str]:
    """The commands of its bash blocks, and of indented lines, each in one line."""
    text = re.sub(r"\\\n\s*", "", document.read_text(encoding="utf-8"))
    for name, words in re.findall(r"^ *([A-Z]+)=\((.*?)\)$", text, flags=re.DOTALL | re.MULTILINE):
        text = text.replace(f'"${{{name}[@]}}"', " ".join(words.split()))
    blocks = re.findall(r"^```bash\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    indented = re.findall(r"^ {4,}((?:\S*/)?(?:python|torchrun|drive-seg) .*)$", text, flags=re.MULTILINE)
    lines = [re.sub(r"\s+# .*", "", line) for block in blocks for line in block.splitlines()]
    return [command for line in [*lines, *indented] for command in line.split(" && ") if command.strip()]


@pytest.mark.parametrize("command", [command for document in DOCUMENTS for command in commands(document)])
def test_a_command_is_one_that_there_is(bundle: Path, command: str) -> None:
    program, *words = shlex.split(command)
    program = Path(program).name
    for word in words:
        if word.startswith(("bundle/", "data_scripts/", "tests/")):
            assert (ROOT / word).exists()
    if program == "torchrun":
        given = get_args_parser().parse_args(words)
        program, words = "python", ["-m"] * given.module + [given.training_script, *given.training_script_args]
    if program == "python" and words[:2] == ["-m", "drive_seg.cli"]:
        program, words = "drive-seg", words[2:]
    if program == "drive-seg":
        check_own(bundle, *words)
    elif program == "python" and words[:3] == ["-m", "monai.bundle", "run"]:
        check_monais(bundle, *words[3:])
    elif program == "python" and words[0].endswith(".py"):
        script = (ROOT / words[0]).read_text(encoding="utf-8")
        options = [word for word in words if word.startswith("--")]
        keys = [option.removeprefix("--") for option in options if f'"{option}"' not in script]
        check_overrides(config_files(bundle, "train", "inference"), dict.fromkeys(keys))
    elif program == "pip" and words[0] == "install":
        extras = {word[2:-1] for word in words if word.startswith(".[")}
        assert extras <= set(importlib.metadata.metadata("drive-seg").get_all("Provides-Extra") or ())
        assert "-c" not in words or (ROOT / words[words.index("-c") + 1]).is_file()
    elif command not in PLAIN:
        pytest.fail("nothing here can check it")


def check_own(bundle: Path, name: str, *words: str) -> None:
    """Options of its own, and keys of the configs that it takes."""
    context = typer.main.get_command(app).commands[name].make_context(name, list(words))
    overrides = split_overrides(context.params.get("paths", ()))[1] | parse_overrides(context.args)
    if overrides:
        laid_over = context.params.get("config") or ()
        check_overrides(config_files(bundle, *CONFIGS[name], *laid_over), overrides)


def check_monais(bundle: Path, *words: str) -> None:
    run_ids, values = split_overrides(words)
    named = values.pop("config_file")
    root = {"bundle": ROOT, ".": bundle}[values["bundle_root"]]
    files = [str(root / name) for name in (named if isinstance(named, list) else [named])]
    check_overrides(files, values)
    parser = ConfigParser()
    parser.read_config(files)
    assert all(run_id in parser for run_id in run_ids or ["run"])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.parent.name + "/" + document.name)
def test_an_option_in_a_sentence_is_one_that_there_is(bundle: Path, document: Path) -> None:
    """Of ours, a key of some config, or an option of the programs that the documents name."""
    configs = [path for path in sorted((bundle / "configs").glob("*.json")) if path.stem != "metadata"]
    keys = {key for path in configs for key in config_keys(json.loads(path.read_text(encoding="utf-8")))}
    ours = [typer.main.get_command(app), *typer.main.get_command(app).commands.values()]
    options = {option for command in ours for parameter in command.params for option in parameter.opts}
    options |= {option for action in get_args_parser()._actions for option in action.option_strings}
    scripts = [path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "benchmarks").glob("*.py")]
    options |= {option for script in scripts for option in re.findall(r'"(--[\w-]+)"', script)}
    keys |= {*inspect.signature(monai.bundle.download).parameters, *DEFAULT_MLFLOW_SETTINGS["configs"], "tracking"}
    options |= {f"--{key}" for key in keys} | {"--extra-index-url"}

    sentences = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    named = [word for code in re.findall(r"`([^`]+)`", sentences) for word in re.findall(r"(?<!\S)--[\w#-]+", code)]
    assert [option for option in named if option.replace("#", "::") not in options] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.parent.name + "/" + document.name)
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", document.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        if path.startswith("http"):
            continue
        target = document.parent / path if path else document
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings], link


@pytest.mark.parametrize("name", [name for name, text in MODULES.items() if ">>>" in text])
def test_examples_in_docstrings(name: str) -> None:
    results = doctest.testmod(importlib.import_module(f"drive_seg.{name}"))
    assert results.attempted > 0 and results.failed == 0


def test_the_map_of_the_package_names_every_module() -> None:
    named = re.findall(r"``(\w+)``", drive_seg.__doc__ or "")
    assert sorted(named) == list(MODULES)


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
    (compared,) = re.findall(r"\bdice +(0\.\d{4}) ", readme)  # in half precision
    assert float(compared) == pytest.approx(metadata["eval_metrics"]["mean_dice_chase_db1"], abs=5e-4)
