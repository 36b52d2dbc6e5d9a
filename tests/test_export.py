"""Exported files are loaded by what they are meant for and must give the network's logits at sizes of all kinds."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from conftest import ROOT
from monai.data import load_net_with_metadata
from running import refused, succeeds
from torch.torch_version import TorchVersion

from drive_seg import export as export_module
from drive_seg.errors import DriveSegError
from drive_seg.export import FILE_NAMES, TOLERANCE, available_formats, export_network
from drive_seg.networks import UNet

SMALL = {"base_channels": 4, "depth": 3, "adaptation": 0.5}
SMALL_FLAGS = ["--base_channels", "4", "--depth", "3", "--adaptation", "0.5"]
SIZES = [(1, 40, 40), (1, 41, 40), (3, 45, 51), (1, 48, 72), (2, 113, 98)]


def small_network() -> UNet:
    """With statistics and logits of the size that a training leaves, so that differences show."""
    torch.manual_seed(3)
    network = UNet(**SMALL)
    with torch.no_grad():
        for _ in range(3):
            network(2 * torch.randn(2, 3, 48, 40) + 0.5)
        network.output.conv.weight.mul_(400)
    return network.eval()


@pytest.fixture(scope="module")
def network() -> UNet:
    return small_network()


@pytest.fixture(scope="module")
def weights(network: UNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state of a training, of which the network is taken."""
    path = tmp_path_factory.mktemp("weights") / "last.pt"
    torch.save({"network": network.state_dict(), "progress": {"epoch": 1}}, path)
    return path


@pytest.fixture(scope="module")
def exported(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        succeeds(["export", "--checkpoint", str(weights), "--output-dir", str(folder), *SMALL_FLAGS])
    lines = said.getvalue().splitlines()
    assert [line.split(":")[0] for line in lines] == [str(folder / name) for name in FILE_NAMES.values()]
    for line in lines:
        assert 0 <= float(line.split("logit ")[1].split()[0]) <= TOLERANCE
    return folder


def loaded(folder: Path, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    path = folder / FILE_NAMES[name]
    if name == "torchscript":
        return torch.jit.load(path)
    if name == "pt2":
        return torch.export.load(path).module()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(["logits"], {"image": image.numpy()})[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", FILE_NAMES)
def test_logits_at_any_batch_height_and_width(exported: Path, network: UNet, name: str) -> None:
    compute = loaded(exported, name)
    smallest = [(1, 8, 9)] if name == "torchscript" else []
    with torch.no_grad():
        for batch, height, width in [*SIZES, *smallest]:
            image = torch.randn(batch, 3, height, width)
            logits = network(image)
            assert logits.abs().max() > 1, "differences would not show"
            torch.testing.assert_close(compute(image), logits, rtol=0, atol=1e-4)


def test_nothing_but_the_files_is_written(exported: Path) -> None:
    assert sorted(path.name for path in exported.iterdir()) == sorted(FILE_NAMES.values())


def test_torchscript_and_pt2_say_what_they_are(exported: Path, bundle: Path) -> None:
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    _, read, extra = load_net_with_metadata(str(exported / "model.ts"), more_extra_files=["inference.json"])
    assert read["version"] == metadata["version"] and "network_data_format" in read
    config = json.loads(extra["inference.json"])
    assert config["network_def"]["_target_"] == "drive_seg.networks.UNet"
    assert {key: config[key] for key in SMALL} == SMALL, "as exported, not as in the bundle"
    assert config["checkpoint"] == "$str(@bundle_root) + '/models/model.pt'"
    files: dict[str, Any] = {"metadata.json": "", "inference.json": ""}
    torch.export.load(exported / "model.pt2", extra_files=files)
    assert json.loads(files["metadata.json"]) == metadata
    assert json.loads(files["inference.json"]) == config


def test_onnx_names_its_axes_and_is_valid(exported: Path) -> None:
    model = onnx.load(exported / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    for value, name, channels in ((model.graph.input[0], "image", 3), (model.graph.output[0], "logits", 2)):
        assert value.name == name
        dims = value.type.tensor_type.shape.dim
        assert [dim.dim_param for dim in dims] == ["batch", "", "height", "width"] and dims[1].dim_value == channels


@pytest.mark.parametrize("name", FILE_NAMES.values())
def test_no_paths_of_the_machine_inside(exported: Path, name: str) -> None:
    content = (exported / name).read_bytes()
    for path in (ROOT, Path(torch.__file__).parent):
        assert str(path).encode() not in content


def test_torchscript_is_the_same_every_time(
    exported: Path, weights: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Types get other names in a process that has compiled other networks before.
    torch.jit.script(UNet(base_channels=2, depth=2))
    (tmp_path / "monai.py").write_text("raise RuntimeError('another')\n")
    monkeypatch.chdir(tmp_path)
    (again,) = export_network(bundle, tmp_path, {"checkpoint": str(weights), **SMALL}, ["torchscript"])
    assert again.path.read_bytes() == (exported / "model.ts").read_bytes()


@pytest.mark.parametrize("error", [1.0, float("nan")])
def test_a_file_that_computes_something_else_is_not_written(
    weights: Path, network: UNet, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: float
) -> None:
    def writes_another(network: UNet, path: Path, *rest: str) -> Callable[[torch.Tensor], torch.Tensor]:
        path.write_bytes(b"wrong")
        return lambda image: network(image) + error

    monkeypatch.setattr(export_module, "_to_pt2", writes_another)
    (tmp_path / "model.pt2").write_bytes(b"earlier")
    with pytest.raises(DriveSegError, match=r"model\.pt2: is not written because its logits differ"):
        list(export_network(bundle, tmp_path, {"checkpoint": str(weights), **SMALL}, ["pt2"]))
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"earlier"]


def test_without_onnx(weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(export_module, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    assert available_formats() == ["torchscript", "pt2"]
    message = refused(["export", "--checkpoint", str(weights), "--format", "onnx", *SMALL_FLAGS], capsys)
    assert "needs onnxscript" in message and "drive-seg[export]" in message


def test_what_is_left_out_is_told(
    bundle: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(export_module, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.12.1+cpu"))
    names = [made.path.name for made in export_network(bundle, tmp_path, {"checkpoint": str(weights), **SMALL})]
    assert names == ["model.ts"]
    assert (
        "model.pt2 is not written, it needs torch 2.13 (here is 2.12.1+cpu): install drive-seg[export]" in caplog.text
    )
    assert "model.onnx is not written" in caplog.text and "and onnxscript" in caplog.text


def test_with_older_torch(weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.12.1+cpu"))
    assert available_formats() == ["torchscript"]
    message = refused(["export", "--checkpoint", str(weights), "--format", "pt2", *SMALL_FLAGS], capsys)
    assert "needs torch 2.13 (here is 2.12.1+cpu)" in message and "drive-seg[export]" in message


def test_what_is_refused(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["export", "--output-dir", str(tmp_path), "--checkpoint"]
    assert "got 'tensorrt'" in refused([*given, str(weights), "--format", "tensorrt"], capsys)
    assert "do not fit" in refused([*given, str(weights)], capsys)
    assert "no such checkpoint" in refused([*given, str(tmp_path / "absent.pt")], capsys)
    assert "did you mean depth" in refused([*given, str(weights), "--dept", "3"], capsys)
    assert not list(tmp_path.iterdir())


def test_another_network_is_refused(bundle: Path, weights: Path, tmp_path: Path) -> None:
    root = tmp_path / "bundle"
    shutil.copytree(bundle / "configs", root / "configs")
    config = root / "configs" / "inference.json"
    values = json.loads(config.read_text(encoding="utf-8"))
    values["network_def"]["spatial_dims"] = 3
    config.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(DriveSegError, match=r"inference\.json: expected a two-dimensional"):
        list(export_network(root, tmp_path / "out", {"checkpoint": str(weights)}))
