"""The command line refuses what cannot be done, in one sentence."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running import refused, small_overrides

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_unknown_key_suggests_the_nearest(phantoms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(["train", "--dataset-dir", str(phantoms), "--learning_rat", "0.1"], capsys)
    assert "learning_rat" in message and "did you mean learning_rate?" in message


def test_unknown_nested_key(phantoms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(["train", "--dataset-dir", str(phantoms), "--optimizer#momentun", "0.1"], capsys)
    assert "did you mean optimizer::momentum?" in message


def test_missing_checkpoint(phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photograph = str(phantoms / "test" / "images" / "01_test.tif")
    message = refused(["predict", photograph, "--checkpoint", str(tmp_path / "none.pt")], capsys)
    assert "none.pt: there is no such checkpoint" in message


def test_empty_and_missing_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "DRIVE layout" in refused(["train", "--dataset-dir", str(tmp_path)], capsys)
    assert "nowhere" in refused(["train", "--dataset-dir", str(tmp_path / "nowhere")], capsys)
    assert "holds no photograph" in refused(["predict", str(tmp_path)], capsys)


def test_values_that_a_component_refuses(phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["train", "--dataset-dir", str(phantoms), "--output-dir", str(tmp_path / "run")]
    assert "base_channels: expected a whole number" in refused([*common, "--base_channels", "0"], capsys)
    assert "precision: expected auto" in refused([*common, "--precision", "half"], capsys)


@pytest.mark.parametrize(("key", "value", "said"), [
    ("max_epochs", "many", "max_epochs: expected a number, such as 350 in the config, got 'many'"),
    ("max_epochs", "0", "max_epochs: "),
    ("val_interval", "0", "val_interval: expected a whole number from 1"),
    ("learning_rate", "nan", "learning_rate: expected a number, such as 0.05 in the config, got 'nan'"),
    ("learning_rate", "NaN", "learning_rate: expected a number, such as 0.05 in the config, got nan"),
    ("optimizer", '{"_target_": "torch.optim.Addam"}', "torch.optim.Addam"),
    ("device", "cuda:99", "device: there is no cuda:99 here, expected cpu"),
    ("device", "meta", "device: there is no meta here, expected cpu"),
    ("device", "gpu", "device: expected cpu, cuda, cuda:1 or another of torch's, got 'gpu'"),
    ("patch_size", "[384, null]", "patch_size: expected numbers, such as [384, 384] in the config, got [384, None]"),
    ("patch_size", "[64, 64, 64]", "patch_size: expected height and width, or one number for both, got [64, 64, 64]"),
    ("patch_size", "0", "patch_size: expected height and width, or one number for both, got 0"),
    ("patch_size", "4", "UNet: expected every side to have at least"),
    ("seed", "-1", "seed: expected a whole number from 0, got -1"),
    ("ignore_index", "1", "ignore_index: expected a whole number from 2, the number of classes, to 255, got 1"),
    ("adaptation", "2", "adaptation: expected a number from 0 to 1, got 2"),
    ("num_classes", "1", "num_classes: expected 2 or more, background and vessel, got 1"),
    ("base_channels", "0", "base_channels: expected a whole number of at least 1, got 0"),
    ("fov_diameter", "abc", "fov_diameter: expected numbers, such as [640, 1280] in the config, got 'abc'"),
    ("loss#lambda_dice", "much", "loss::lambda_dice: expected a number, such as 1.0 in the config, got 'much'"),
])  # fmt: skip
def test_values_that_make_no_sense(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: str, said: str
) -> None:
    command = ["train", "--dataset-dir", str(phantoms), "--output-dir", str(tmp_path / "run"), *small_overrides()]
    assert said in refused([*command, f"--{key}={value}"], capsys)


def test_a_config_that_is_no_json(phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bundle" / "configs").mkdir(parents=True)
    (tmp_path / "bundle" / "configs" / "train.json").write_text('{"seed": 0,,}')
    command = ["train", "--dataset-dir", str(phantoms), "--bundle-root", str(tmp_path / "bundle")]
    assert "configs/train.json: cannot be read as JSON" in refused(command, capsys)


def test_a_demo_leaves_a_training_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "last.pt").write_bytes(b"of many hours")
    message = refused(["demo", "--output-dir", str(tmp_path)], capsys)
    assert "last.pt: is of a training that is not a demo's" in message
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_folders_that_cannot_be_written_to(phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    output = ["--output-dir", str(tmp_path / "file" / "run")]
    assert "cannot be written to" in refused(["train", "--dataset-dir", str(phantoms), *output], capsys)
    photograph = str(phantoms / "test" / "images" / "01_test.tif")
    assert "cannot be written to" in refused(["predict", photograph, *output], capsys)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        ("truncate", "21_training.tif"),
        ("text", "21_training.tif"),
        ("resize", "21_manual1"),
        ("grey", "21_manual1"),
        ("black", "21_training.tif"),
    ],
)
def test_bad_cases_end_the_training_with_the_file_named(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: str, expected: str
) -> None:
    dataset = tmp_path / "dataset"
    shutil.copytree(phantoms, dataset)
    photograph = dataset / "training" / "images" / "21_training.tif"
    annotation = dataset / "training" / "1st_manual" / "21_manual1.gif"
    if spoil == "truncate":
        photograph.write_bytes(photograph.read_bytes()[:2000])
    elif spoil == "text":
        photograph.write_text("these are not pixels")
    elif spoil == "resize":
        with Image.open(annotation) as image:
            smaller = image.resize((100, 100))
        smaller.save(annotation)
    elif spoil == "grey":
        ramp = np.tile(np.linspace(0, 255, 141).astype(np.uint8), (150, 1))
        Image.fromarray(ramp).save(annotation)
    elif spoil == "black":
        Image.fromarray(np.zeros((150, 141, 3), np.uint8)).save(photograph)
        for mask in (dataset / "training" / "mask").iterdir():
            mask.unlink()
    arguments = ["train", "--dataset-dir", str(dataset), "--output-dir", str(tmp_path / "run"), *small_overrides()]
    assert expected in refused(arguments, capsys)
