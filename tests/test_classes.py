"""Vessel classes: their names, their colours, and a training on arteries and veins drawn in colour."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image
from running import SMALL, refused, run_bundle, small_overrides, succeeds

from drive_seg.classes import classes_by_colour, names_of_classes
from drive_seg.errors import DriveSegError


@pytest.fixture(scope="module")
def coloured(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms whose arteries are red and veins blue, with a green and a white spot of vessel on every one."""
    folder = Path(shutil.copytree(phantoms, tmp_path_factory.mktemp("coloured") / "av"))
    colours = np.array([(0, 0, 0), (255, 0, 0), (0, 0, 255)], np.uint8)
    for path in folder.glob("*/av/*.png"):
        pixels = colours[np.asarray(Image.open(path))]
        rows, columns = np.nonzero(pixels.any(axis=2))
        pixels[rows[:40], columns[:40]] = (0, 255, 0)
        pixels[rows[-40:], columns[-40:]] = (255, 255, 255)
        Image.fromarray(pixels).save(path)
    return folder


def test_names_of_the_vessel_classes() -> None:
    assert names_of_classes(2) == ["class 1"]
    assert names_of_classes(3, ("artery", "vein ")) == ["artery", "vein"]


@pytest.mark.parametrize("names", [
    ["vein"], ["artery", "vein", "both"], ["vein", "vein"], "av", [1, 2], ["", "vein"],
    ["disc/cup", "disc cup"], ["A", "a"], ["vein", "vein "],
])  # fmt: skip
def test_names_that_do_not_fit_the_number_of_classes(names: object) -> None:
    with pytest.raises(DriveSegError, match=r"class_names: expected 2 different names, .* num_classes 3"):
        names_of_classes(3, names)


@pytest.mark.parametrize(("colours", "message"), [
    ([[255, 0, 0]], "class_colours: expected colours by class value"),
    ({"artery": [255, 0, 0]}, "class_colours: expected class values from 0 to 255, got 'artery'"),
    ({"256": [255, 0, 0]}, "class_colours: expected class values from 0 to 255, got '256'"),
    ({"1": "red"}, "class_colours: 1: expected a colour, .* got 'red'"),
    ({"1": [255, 0]}, "class_colours: 1: expected a colour"),
    ({"1": [[255, 0, 256]]}, "class_colours: 1: expected a colour"),
    ({"1": [255, 0, 0], "2": [[0, 0, 0], [255, 0, 0]]}, "class_colours: expected one class for the colour"),
])  # fmt: skip
def test_colours_that_are_none(colours: Any, message: str) -> None:
    with pytest.raises(DriveSegError, match=message):
        classes_by_colour(colours)


def test_vessels_of_unknown_class_teach_and_cost_nothing(bundle: Path, coloured: Path, tmp_path: Path) -> None:
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / f"{name}.json") for name in ("train", "artery_vein")])
    folders = {key: str(tmp_path) for key in ("ckpt_dir", "output_dir")}
    parser.update({**SMALL, **folders, "bundle_root": str(bundle), "dataset_dir": str(coloured), "device": "cpu"})
    label = torch.as_tensor(parser.get_parsed_content("validate#dataset")[0]["label"])
    photograph = parser.get_parsed_content("validate#dataset#data")[0]
    drawn = np.asarray(Image.open(photograph["label"]))
    unknown = torch.from_numpy((drawn == (0, 255, 0)).all(axis=2) | (drawn == (255, 255, 255)).all(axis=2))
    assert unknown.sum() == 80 and (label[0][unknown] == 255).all()
    metric = parser.get_parsed_content("validate#key_metric")["val_dice"].metric_fn
    right = torch.stack([(label[0] == value).float() for value in range(3)])
    assert right.argmax(dim=0)[unknown].max() == 0
    for value in range(3):
        guess = torch.where(unknown, torch.eye(3)[value][:, None, None], right)
        assert metric([guess], [label])[0].tolist() == [1, 1], "whatever is predicted there"


def test_monais_command_takes_the_overlay(bundle: Path, coloured: Path, tmp_path: Path) -> None:
    folders = ["--dataset_dir", str(coloured), "--ckpt_dir", str(tmp_path), "--output_dir", str(tmp_path)]
    run_bundle("training", bundle, ["train", "artery_vein"], *folders, *small_overrides(), "--device", "cpu")
    assert torch.load(tmp_path / "model.pt", weights_only=True)["output.conv.weight"].shape[0] == 3


def test_more_classes_than_annotations_have(
    phantoms: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """The annotation's name may have been forgotten, and that of vessels alone, 0 and 255, be meant."""
    command = ["train", "--dataset-dir", str(phantoms), "--output-dir", str(tmp_path), *small_overrides()]
    said = refused([*command, "--num_classes", "3"], capsys)
    assert "expected class values 0 to 2, 255 where some vessel's is unknown, got 0, 255" in said
    succeeds([*command, "--num_classes", "4", "--annotation", "av", "--class_names", "['artery','vein','nerve']"])
    assert "nerve occurs in none of the 5 annotations of 'av', expected classes 1 to 3" in caplog.text
    said = refused([*command, "--config", "artery_vein", "--num_classes", "4"], capsys)
    assert "class_names: expected 3 different names" in said


def test_train_and_evaluate_take_the_overlay(phantoms: Path, coloured: Path, tmp_path: Path) -> None:
    """From weights for vessels alone, which know what they have learnt, and on to a second training from a file."""
    further = tmp_path / "further.json"
    further.write_text(json.dumps({"max_epochs": "@epochs", "epochs": 1}), encoding="utf-8")
    with_overlay = ["--config", "artery_vein", "--config", str(further), *small_overrides()[:-6], "--warmup_steps", "1"]
    start = ["--pretrained", str(tmp_path / "vessels" / "model.pt"), "--new_output_layer", "true"]
    for command in (
        ["train", "--dataset-dir", str(phantoms), "--output-dir", str(tmp_path / "vessels"), *small_overrides()],
        ["train", "--dataset-dir", str(coloured), "--output-dir", str(tmp_path / "av"), *with_overlay, *start],
        ["evaluate", "--dataset-dir", str(coloured), "--checkpoint", str(tmp_path / "av" / "model.pt"),
         "--output-dir", str(tmp_path / "scores"), *with_overlay],
    ):  # fmt: skip
        succeeds(command)
    learnt = json.loads((tmp_path / "av" / "model.json").read_text(encoding="utf-8"))
    assert len(learnt["training_sha256"]) == 5
    summary = json.loads((tmp_path / "scores" / "summary.json").read_text(encoding="utf-8"))
    assert {"artery_vein.json", "further.json"} <= set(summary["config_files"])


@pytest.mark.parametrize(("config", "content", "message"), [
    ("artery-vein", None, "--config artery-vein: there is no such file, expected JSON, or one of any_camera, arte"),
    ("train", None, "--config train: there is no such file"),
    ("choose_threshold", None, "expected JSON, or one of any_camera, artery_vein"),
    ("av.json", None, "--config av.json: there is no such file"),
    ("av.json", {"max_epoch": 3}, "av.json: max_epoch: the config has no such key, did you mean max_epochs?"),
    ("av.json", [3], "av.json: expected an object of keys, got list"),
])  # fmt: skip
def test_configs_that_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    config: str, content: Any, message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(config).write_text(json.dumps(content), encoding="utf-8")
    for command in ("train", "evaluate"):
        assert message in refused([command, "--dataset-dir", "data", "--config", config], capsys)
