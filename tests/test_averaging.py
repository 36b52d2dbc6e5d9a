"""The mean of the weights of several trainings, with batch norm's statistics taken anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_bundle import SMALL, run_bundle

from drive_seg.averaging import average_weights
from drive_seg.checkpoints import load_checkpoint, load_weights, save_checkpoint
from drive_seg.errors import DriveSegError
from drive_seg.networks import UNet


def tiny(seed: int) -> UNet:
    torch.manual_seed(seed)
    return UNet(base_channels=SMALL["base_channels"], depth=SMALL["depth"])


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{seed}.pt" for seed in range(3)]
    for seed, path in enumerate(paths):
        save_checkpoint(tiny(seed).state_dict(), path)
    return paths


def test_every_parameter_is_the_mean(files: list[Path], tmp_path: Path) -> None:
    average_weights(tiny(9), files, [torch.randn(2, 3, 32, 32)], tmp_path / "out" / "model.pt")
    mean = load_checkpoint(tmp_path / "out" / "model.pt")
    for name, _ in tiny(9).named_parameters():
        each = torch.stack([load_checkpoint(path)[name] for path in files])
        torch.testing.assert_close(mean[name], each.mean(dim=0))


def test_statistics_of_batch_norm_are_those_of_the_images(files: list[Path], tmp_path: Path) -> None:
    """In training mode the network normalises by the batch; with statistics of that one batch it does so, too."""
    images = torch.randn(4, 3, 64, 64) * 3 + 1
    average_weights(tiny(9), files, [images], tmp_path / "model.pt")
    network = load_weights(tiny(9), tmp_path / "model.pt")
    with torch.inference_mode():
        by_batch, by_statistics = network.train()(images), load_weights(tiny(9), tmp_path / "model.pt").eval()(images)
    assert (by_batch - by_statistics).abs().max() < 0.2 * by_batch.std()
    seen = load_checkpoint(tmp_path / "model.pt")
    first = next(name for name in seen if name.endswith("running_mean"))
    assert not torch.allclose(seen[first], torch.zeros_like(seen[first]), atol=1e-3)


def test_what_cannot_be_averaged(files: list[Path], tmp_path: Path) -> None:
    images = [torch.randn(1, 3, 32, 32)]
    with pytest.raises(DriveSegError, match="weights: expected two or more files"):
        average_weights(tiny(9), files[:1], images, tmp_path / "model.pt")
    with pytest.raises(DriveSegError, match="weights: expected two or more files"):
        average_weights(tiny(9), str(files[0]), images, tmp_path / "model.pt")
    with pytest.raises(DriveSegError, match="do not fit the network"):
        average_weights(UNet(base_channels=8, depth=3), files, images, tmp_path / "model.pt")
    with pytest.raises(DriveSegError, match="is there already"):
        average_weights(tiny(9), files, images, files[0])
    assert not (tmp_path / "model.pt").exists()


def test_the_bundle_averages(bundle: Path, phantoms: Path, files: list[Path], tmp_path: Path) -> None:
    run_bundle(
        "averaging", bundle, ["train", "any_camera", "average"], "--dataset_dir", str(phantoms),
        "--ckpt_dir", str(tmp_path / "mean"), "--output_dir", str(tmp_path / "mean"), "--zooms", "[1.0]",
        "--weights", json.dumps([str(path) for path in files[:2]]),
        *(part for key, value in SMALL.items() for part in (f"--{key}", json.dumps(value))),
    )  # fmt: skip
    mean = load_checkpoint(tmp_path / "mean" / "model.pt")
    pair = [load_checkpoint(path)["output.conv.weight"] for path in files[:2]]
    torch.testing.assert_close(mean["output.conv.weight"], (pair[0] + pair[1]) / 2)
