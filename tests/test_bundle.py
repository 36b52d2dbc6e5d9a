"""The shipped configs on generated photographs, through MONAI's own commands."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from monai.bundle import ConfigParser
from monai.transforms import Compose
from PIL import Image
from running import SMALL, overrides, run_bundle, small_overrides, table, workflow_of
from skimage import measure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from drive_seg.networks import UNet
from drive_seg.phantom import write_phantom_dataset
from drive_seg.predict import segment_photographs
from drive_seg.segmenter import Segmenter

CONFIGS = sorted(path.stem for path in (ROOT / "bundle" / "configs").glob("*.json") if path.stem != "metadata")


def read(bundle: Path, name: str) -> dict[str, Any]:
    return json.loads((bundle / "configs" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def trained(bundle: Path, phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``python -m monai.bundle run training`` leaves after two short epochs on a raw DRIVE layout."""
    output = tmp_path_factory.mktemp("trained")
    run_bundle(
        "training", bundle, ["train"],
        "--dataset_dir", str(phantoms), "--ckpt_dir", str(output), "--output_dir", str(output), *small_overrides(),
    )  # fmt: skip
    return output


def test_training_leaves_weights_state_history_and_events(trained: Path) -> None:
    weights = torch.load(trained / "model.pt", weights_only=True)
    UNet(base_channels=4, depth=3).load_state_dict(weights)
    assert all(isinstance(value, torch.Tensor) and value.device.type == "cpu" for value in weights.values())
    state = torch.load(trained / "last.pt", weights_only=True)
    assert state["progress"]["epoch"] == 2
    rows = table(trained / "history.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(0 <= float(row["val_dice"]) <= 1 and float(row["loss"]) > 0 for row in rows)
    events = EventAccumulator(str(trained))
    events.Reload()
    assert {"train_loss", "val_dice"} <= set(events.Tags()["scalars"])


def test_inference_keeps_size_and_orientation(trained: Path, bundle: Path, phantoms: Path, tmp_path: Path) -> None:
    photographs = phantoms / "test" / "images"
    run_bundle(
        "run", bundle, ["inference"], "--dataset_dir", str(photographs), "--output_dir", str(tmp_path),
        "--checkpoint", str(trained / "model.pt"), "--base_channels", "4", "--depth", "3", "--fov_diameter", "128",
    )  # fmt: skip
    for photograph in photographs.iterdir():
        with Image.open(photograph) as source, Image.open(tmp_path / f"{photograph.stem}_vessels.png") as mask:
            assert source.size == mask.size == (141, 150)
        with Image.open(tmp_path / f"{photograph.stem}_probability.png") as probability:
            assert probability.mode == "I;16"
        assert (tmp_path / f"{photograph.stem}_overlay.jpg").is_file()
    rows = table(tmp_path / "vessels.csv")
    assert [row["photograph"] for row in rows] == sorted(map(str, photographs.iterdir()))
    assert [row["case_id"] for row in rows] == sorted(photograph.stem for photograph in photographs.iterdir())
    assert all(0 <= float(row["vessel_density_share"]) <= 1 for row in rows)
    values = {"checkpoint": str(trained / "model.pt"), "base_channels": 4, "depth": 3, "fov_diameter": 128}
    segment_photographs(bundle, [photographs], tmp_path / "predict", {**values, "engine": "torch", "pictures": []})
    other = tmp_path / "predict" / "vessels.csv"
    assert other.read_bytes() == (tmp_path / "vessels.csv").read_bytes(), "whichever way it was made"


def test_flags_and_several_weights_as_monais_command_hands_them_on(
    trained: Path, bundle: Path, phantoms: Path, tmp_path: Path
) -> None:
    """It makes texts of true and false, of which either would be true to Python."""
    photographs = phantoms / "test" / "images"
    weights = [str(trained / "model.pt")] * 2
    run_bundle(
        "run", bundle, ["inference", "ensemble"], "--dataset_dir", str(photographs), "--output_dir", str(tmp_path),
        "--checkpoint", str(weights), "--base_channels", "4", "--depth", "3", "--fov_diameter", "128",
        "--measure", "false", "--save_nifti", "false", "--flips", "true", "--pictures", "['vessels']",
    )  # fmt: skip
    expected = {f"{photograph.stem}_vessels.png" for photograph in photographs.iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == expected


def test_two_datasets_at_several_sizes_train_with_the_strong_augmentation(
    bundle: Path, phantoms: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    write_phantom_dataset(other, training=5, test=0, seed=3, height=180, width=200)
    values = overrides(phantoms, tmp_path, max_epochs=1) | {"dataset_dir": [str(phantoms), str(other)]}
    workflow = workflow_of(bundle, ["train", "any_camera"], **values)
    assert not workflow.check_properties()
    cases = workflow.parser.get_parsed_content("train#dataset").data
    assert (
        len(cases) == len(read(bundle, "any_camera")["zooms"]) * (5 + 4)
        and len({case["case_id"] for case in cases}) == 9
    )
    workflow.run()
    assert (tmp_path / "model.pt").is_file()


def test_vessels_stay_whole_in_small_copies_for_any_camera(bundle: Path, phantoms: Path, tmp_path: Path) -> None:
    pieces = {}
    for overlay in ("train", "any_camera"):
        parser = ConfigParser(read(bundle, "train"))
        parser.update({**read(bundle, overlay), **SMALL, "bundle_root": str(bundle), "dataset_dir": str(phantoms)})
        load = Compose(
            parser.get_parsed_content("read_case") + parser.get_parsed_content("train#deterministic_transforms")
        )
        label = load({**parser.get_parsed_content("train#cases")[0], "zoom": 0.25})["label"][0]
        pieces[overlay] = measure.label((label == 1).numpy(), connectivity=2).max()
    assert pieces["any_camera"] < pieces["train"]


def test_nothing_is_learnt_or_validated_outside_the_field_of_view(bundle: Path, phantoms: Path, tmp_path: Path) -> None:
    folders = {key: str(tmp_path) for key in ("ckpt_dir", "output_dir")}
    parser = ConfigParser(read(bundle, "train"))
    parser.update({**SMALL, **folders, "bundle_root": str(bundle), "dataset_dir": str(phantoms)})
    load = Compose(parser.get_parsed_content("read_case") + parser.get_parsed_content("train#deterministic_transforms"))
    label = load(parser.get_parsed_content("train#cases")[0])["label"][0]
    margin = 64 // 6
    for strip in (label[:margin], label[-margin:], label[:, :margin], label[:, -margin:]):
        assert (strip == 255).all(), "the margin around the photograph"
    validated = Compose(
        parser.get_parsed_content("read_case") + parser.get_parsed_content("validate#deterministic_transforms")
    )(parser.get_parsed_content("validate#dataset#data")[0])["label"]
    metric = parser.get_parsed_content("validate#key_metric")["val_dice"].metric_fn
    vessels, background = torch.where(validated == 255, 1, validated), torch.zeros_like(validated)
    one_hot = [torch.stack([1 - mask[0], mask[0]]) for mask in (vessels, background)]
    scores = [float(metric([mask], [validated])[0]) for mask in one_hot]
    assert scores == [1, 0], "of the vessels alone"


def test_several_classes_train_from_the_same_config(bundle: Path, phantoms: Path, tmp_path: Path) -> None:
    values = overrides(phantoms, tmp_path, max_epochs=1, num_classes=3, annotation="av")
    workflow = workflow_of(bundle, ["train"], **values)
    workflow.run()
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    assert weights["output.conv.weight"].shape[0] == 3
    assert 0 <= workflow.parser.get_parsed_content("validate#evaluator").state.metrics["val_dice"] <= 1


def test_geometry_from_file_to_mask(bundle: Path, tmp_path: Path) -> None:
    """A network that only thresholds must give back the drawn figure at its place in the saved file."""
    rows, columns = np.mgrid[:180, :300]
    fov = (rows - 90) ** 2 + (columns - 140) ** 2 < 80**2
    drawn = np.zeros((180, 300), dtype=bool)
    drawn[40:100, 130:136] = True
    drawn[94:100, 130:180] = True  # an L: no mirror image or rotation of it looks the same
    image = np.where(fov[..., None], np.array([200, 120, 60]), 0).astype(np.uint8)
    image[drawn] = (120, 30, 20)
    Image.fromarray(image).save(tmp_path / "figure.tif")

    class Threshold(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            dark = -x[:, 1:2] - 1
            return torch.cat([-dark, dark], dim=1) * 10

    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser.update({"output_dir": str(tmp_path), "fov_diameter": 320})
    parts = [parser.get_parsed_content(name) for name in ("preprocessing", "inferer", "postprocessing")]
    Segmenter(Threshold(), *parts, device=torch.device("cpu")).segment_case({"image": str(tmp_path / "figure.tif")})
    with Image.open(tmp_path / "figure_vessels.png") as saved:
        mask = np.asarray(saved) > 0
    assert mask.shape == (180, 300)
    overlap = 2 * (mask & drawn).sum() / (mask.sum() + drawn.sum())
    assert overlap > 0.9
    for other in (drawn[::-1], drawn[:, ::-1], drawn[::-1, ::-1]):
        assert 2 * (mask & other).sum() / (mask.sum() + other.sum()) < 0.5


def test_train_and_inference_agree_on_what_they_share(bundle: Path) -> None:
    train, inference = read(bundle, "train"), read(bundle, "inference")
    shared = ["num_classes", "base_channels", "depth", "precision", "fov_diameter", "threshold", "flips", "device"]
    for key in shared:
        assert train[key] == inference[key], key
    for key in ("_target_", "in_channels", "num_classes", "base_channels", "depth", "adaptation"):
        assert train["network_def"][key] == inference["network_def"][key], key
    assert train["validate"]["inferer"] == inference["inferer"]
    of_training = [step for step in train["read_case"] if step.get("keys") != "label"]
    of_inference = inference["preprocessing"]["transforms"]
    assert [step["_target_"] for step in of_training] == [step["_target_"] for step in of_inference[:3]]


def test_all_of_monais_properties_resolve(bundle: Path, phantoms: Path, tmp_path: Path) -> None:
    for name, dataset in (("train", phantoms), ("inference", phantoms / "test" / "images")):
        workflow = workflow_of(bundle, [name], dataset_dir=str(dataset), output_dir=str(tmp_path))
        assert not workflow.check_properties()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_value_says_why(bundle: Path, name: str) -> None:
    config = read(bundle, name)
    for key, value in config.items():
        if key in (
            "_desc_",
            "imports",
            "initialize",
            "run",
            "training",
            "evaluating",
            "train",
            "validate",
            "finalize",
        ):
            continue
        if "#" in key and not isinstance(value, (str, int, float)):
            continue  # an overlay's list or component; its parts are looked at below
        component = isinstance(value, dict) and "_target_" in value
        assert component or key in config["_desc_"], f"{name}: {key} has no description"
    for where, component in components(config):
        described = component.get("_desc_", "")
        assert isinstance(described, str) and len(described) > 8, f"{name}: {where} has no description"
    meant = [text for text in config["_desc_"].values() if re.match(r"[$%]", text) or set("#@") & set(text)]
    assert not meant, "MONAI would take them for expressions"


def components(value: Any, where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict):
        if "_target_" in value:
            yield where, value
        for key, item in value.items():
            yield from components(item, f"{where}#{key}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from components(item, f"{where}#{number}")


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)


OURS = {
    "loss_of": "history",
    "case_described": "learnt_cases",
    "described": "settings",
    "network_described": "settings",
    "convert_sync_batchnorm": "adaptation",
}
"""What configs import of this project for their expressions, and the file that it is in."""


def test_both_overlays_for_many_processes_join_and_leave_alike(bundle: Path) -> None:
    """MONAI Label asks for the training's by its name, so the evaluation's cannot be laid over it."""
    training, evaluation = (read(bundle, f"multi_gpu_{name}") for name in ("train", "evaluate"))
    assert evaluation["initialize"][0].pop("timeout") == 24 * 3600, "cases take as long as they take"
    *evaluation["initialize"], compared = evaluation["initialize"]
    assert compared["_target_"] == "drive_seg.distributed.same_for_all", "a training's state compares its own cases"
    for overlay in (training, evaluation):
        overlay["initialize"][0].pop("_desc_")
    shared = ("rank", "world_size", "initialize", "finalize")
    assert {key: training[key] for key in shared} == {key: evaluation[key] for key in shared}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_name_only_known_code(bundle: Path, name: str) -> None:
    config = read(bundle, name)
    for where, component in components(config):
        target = component["_target_"]
        package = target.split(".")[0]
        assert "." not in target or package in ("monai", "torch", "ignite", "drive_seg"), f"{where}: {target}"
    forbidden = {"os", "subprocess", "eval", "exec", "open", "compile", "__import__", "getattr", "globals"}
    for text in strings(config):
        if not text.startswith("$"):
            continue
        expression = re.sub(r"@\w+(?:(?:#|::)\w+)*", "reference", text[1:])
        names = {node.id for node in ast.walk(ast.parse(expression)) if isinstance(node, ast.Name)}
        imported = {
            alias.name
            for node in ast.walk(ast.parse(expression))
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for alias in node.names
        }
        modules = {node.module for node in ast.walk(ast.parse(expression)) if isinstance(node, ast.ImportFrom)}
        assert not (names | imported) & forbidden, text
        assert imported <= {"sys", "warnings", "torch", "monai", "str2bool", *OURS}, text
        assert modules <= {"monai.utils", *(f"drive_seg.{OURS[name]}" for name in imported & OURS.keys())}, text
