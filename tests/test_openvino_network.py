from __future__ import annotations

import builtins
import copy
import importlib.metadata
import importlib.util
import math
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image
from torch.torch_version import TorchVersion

import drive_seg
from drive_seg import openvino_network as module
from drive_seg.configs import config_files
from drive_seg.errors import DriveSegError
from drive_seg.networks import UNet
from drive_seg.openvino_network import OpenVINONetwork, choose_engine, difference_in_probability, openvino_network
from drive_seg.phantom import make_phantom
from drive_seg.segmenter import Segmenter

CPU = torch.device("cpu")


@pytest.fixture
def network(request: pytest.FixtureRequest) -> UNet:
    torch.manual_seed(0)
    network = UNet(base_channels=4, depth=2, adaptation=getattr(request, "param", 0.0))
    for _ in range(3):
        network(torch.randn(2, 3, 32, 32))  # batch statistics that are not the initial ones
    return network.eval()


@pytest.mark.parametrize("network", [0.0, 0.5], indirect=True)
def test_float32_is_torchs_result_at_any_size(network: UNet, tmp_path: Path) -> None:
    converted = openvino_network(network, "float32", tmp_path)
    for size in ((8, 8), (7, 31), (33, 47), (64, 48), (131, 97)):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            noise = torch.randn(1, 3, *size).contiguous(memory_format=memory_format)
            with torch.inference_mode():
                torch.testing.assert_close(converted(noise), network(noise), rtol=1e-4, atol=1e-4)


def test_each_graph_is_checked_when_it_is_first_needed(
    network: UNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[tuple[bool, ...]] = []
    check = module.difference_in_probability

    def record(one: UNet, other: Callable[[torch.Tensor], torch.Tensor], padded: tuple[bool, ...]) -> float:
        checked.append(padded)
        return check(one, other, padded)

    monkeypatch.setattr(module, "difference_in_probability", record)
    converted = openvino_network(network, "float32", tmp_path)
    converted(torch.zeros(1, 3, 40, 48))
    assert checked == [(False,)]
    monkeypatch.setattr(module, "TOLERANCE", -1.0)
    for _ in range(2):  # what failed is not kept
        with pytest.raises(DriveSegError, match="openvino's probabilities differ"):
            converted(torch.zeros(1, 3, 41, 48))
    monkeypatch.undo()
    assert converted(torch.zeros(1, 3, 41, 48)).shape == (1, 2, 41, 48)


def test_this_version_knows_the_bound_of_its_cache(network: UNet, tmp_path: Path) -> None:
    model = openvino_network(network, "float32", tmp_path).model
    openvino.Core().compile_model(model, "CPU", module.BOUNDED_CACHE)
    with pytest.raises(RuntimeError, match="NO_SUCH_PROPERTY"):
        openvino.Core().compile_model(model, "CPU", {"NO_SUCH_PROPERTY": 1})


def test_a_version_that_knows_no_bound_of_its_cache(
    network: UNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = torch.randn(1, 3, 40, 48)
    bounded = openvino_network(network, "float32", tmp_path)(noise)
    monkeypatch.setattr(module, "BOUNDED_CACHE", {"NO_SUCH_PROPERTY": 1})
    assert torch.equal(openvino_network(network, "float32", tmp_path)(noise), bounded)


@pytest.mark.parametrize("depth", [1, 4, 5])
def test_the_check_is_of_sides_without_and_with_padding(depth: int) -> None:
    network = UNet(base_channels=2, depth=depth).eval()
    sizes: list[tuple[int, int]] = []

    def record(x: torch.Tensor) -> torch.Tensor:
        sizes.append((x.shape[2], x.shape[3]))
        return network(x)

    assert difference_in_probability(network, record) == 0
    assert [any(side % 2**depth for side in size) for size in sizes] == [False, True]


def test_nan_is_a_difference(network: UNet) -> None:
    spoilt = iter((torch.nan, 1.0))
    assert math.isnan(difference_in_probability(network, lambda x: network(x) * next(spoilt)))


def test_the_check_is_in_float32(network: UNet) -> None:
    """Also within an inferer's autocast, where the graph for odd sides is first needed."""
    types: list[torch.dtype] = []

    def record(x: torch.Tensor) -> torch.Tensor:
        logits = network(x)
        types.append(logits.dtype)
        return logits

    with torch.autocast("cpu", torch.bfloat16):
        assert network(torch.zeros(1, 3, 16, 16)).dtype is torch.bfloat16
        difference_in_probability(network, record)
    assert types == [torch.float32] * 2


def test_the_fast_precision_is_near(network: UNet, tmp_path: Path) -> None:
    assert difference_in_probability(network, openvino_network(network, "auto", tmp_path)) < 0.02


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_a_copy_does_the_same(
    network: UNet, tmp_path: Path, duplicate: Callable[[OpenVINONetwork], OpenVINONetwork]
) -> None:
    converted = openvino_network(network, "float32", tmp_path, streams=2)
    other, noise = duplicate(converted), torch.randn(1, 3, 33, 48)
    assert torch.equal(other(noise), converted(noise)) and other.streams == 2
    assert sum(1 for _ in tmp_path.iterdir()) == 1, "from the same cache"


def test_metadata_go_through(network: UNet, tmp_path: Path) -> None:
    image = MetaTensor(torch.randn(1, 3, 32, 48), meta={"filename_or_obj": "eye.jpg"})
    assert openvino_network(network, "float32", tmp_path)(image).meta["filename_or_obj"] == "eye.jpg"


def test_converted_once(network: UNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = openvino_network(network, "float32", tmp_path)
    monkeypatch.setattr(openvino, "convert_model", lambda *_: pytest.fail("it was in the cache"))
    second = openvino_network(network, "float32", tmp_path)
    noise = torch.randn(1, 3, 40, 40)
    assert torch.equal(first(noise), second(noise))


def test_other_weights_are_another_network(network: UNet, tmp_path: Path) -> None:
    openvino_network(network, "float32", tmp_path)
    with torch.no_grad():
        network.output.conv.bias += 1
    assert difference_in_probability(network, openvino_network(network, "float32", tmp_path)) < 1e-4
    assert len(list(tmp_path.iterdir())) == 2


def test_a_cache_that_is_damaged_or_in_the_way(network: UNet, tmp_path: Path) -> None:
    openvino_network(network, "float32", tmp_path)
    (xml,) = tmp_path.glob("*/network.xml")
    xml.write_text("no network")
    assert difference_in_probability(network, openvino_network(network, "float32", tmp_path)) < 1e-4
    openvino.Core().read_model(xml)  # it has been replaced
    assert sum(1 for _ in tmp_path.iterdir()) == 1
    (tmp_path / "file").touch()
    assert difference_in_probability(network, openvino_network(network, "float32", tmp_path / "file")) < 1e-4


def test_a_result_that_is_not_torchs_is_refused(network: UNet, tmp_path: Path) -> None:
    """As that of another network, which lies in the place of this one."""
    for name, one in (("own", network), ("others", UNet(base_channels=4, depth=2))):
        openvino_network(one.eval(), "float32", tmp_path / name)
    (own,), (others,) = ((tmp_path / name).iterdir() for name in ("own", "others"))
    shutil.copytree(others, own, dirs_exist_ok=True)
    with pytest.raises(DriveSegError, match=r"openvino's probabilities differ from torch's by up to 0\.\d+"):
        openvino_network(network, "float32", tmp_path / "own")


def test_engines(monkeypatch: pytest.MonkeyPatch, network: UNet) -> None:
    assert choose_engine("auto", CPU, network) == "openvino"
    assert choose_engine("auto", torch.device("cuda"), network) == "torch"
    assert choose_engine("torch", CPU, network) == "torch"
    with pytest.raises(DriveSegError, match="engine: expected one of auto, torch, openvino, got 'onnx'"):
        choose_engine("onnx", CPU, network)
    with pytest.raises(DriveSegError, match="use --engine torch on cuda"):
        choose_engine("openvino", torch.device("cuda"), network)
    assert choose_engine("auto", CPU, torch.nn.Identity()) == "torch"
    with pytest.raises(DriveSegError, match="expected torch for Identity"):
        choose_engine("openvino", CPU, torch.nn.Identity())
    with monkeypatch.context() as older:
        older.setattr(torch, "__version__", TorchVersion("2.12.1+cpu"))
        assert choose_engine("auto", CPU, network) == "torch"
        with pytest.raises(DriveSegError, match=r"needs PyTorch 2\.13 or newer, found 2\.12\.1\+cpu"):
            choose_engine("openvino", CPU, network)
    with monkeypatch.context() as older:
        older.setattr(importlib.metadata, "version", lambda name: "2025.3.0")
        assert choose_engine("auto", CPU, network) == "torch"
        with pytest.raises(DriveSegError, match=r"needed in version 2025\.4 or newer, found 2025\.3\.0"):
            choose_engine("openvino", CPU, network)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert choose_engine("auto", CPU, network) == "torch"
    with pytest.raises(DriveSegError, match=r"pip install 'drive-seg\[openvino\]'"):
        choose_engine("openvino", CPU, network)


def test_without_openvino_nothing_imports_it(monkeypatch: pytest.MonkeyPatch, network: UNet, tmp_path: Path) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: object, **kwargs: object) -> object:
        assert not name.startswith("openvino")
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    torch.save(network.state_dict(), tmp_path / "model.pt")
    monkeypatch.setattr(builtins, "__import__", refuse)
    photograph = make_phantom(0, 150, 141).image
    drive_seg.load(tmp_path / "model.pt", base_channels=4, depth=2, fov_diameter=128, engine="torch")(photograph)


def test_whole_photographs_agree(network: UNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    torch.save(network.state_dict(), tmp_path / "model.pt")
    photograph = make_phantom(0, 150, 141).image
    settings = {"base_channels": 4, "depth": 2, "fov_diameter": 128, "precision": "float32", "flips": True}
    both = [drive_seg.load(tmp_path / "model.pt", engine=engine, **settings) for engine in ("torch", "openvino")]
    assert [segment.engine for segment in both] == ["torch", "openvino"]
    one, other = (segment(photograph) for segment in both)
    np.testing.assert_allclose(one.probability, other.probability, atol=1e-4)
    assert list((tmp_path / "cache" / "drive-seg").glob("*/network.xml"))


def test_a_folder_gives_what_single_photographs_give(
    bundle: Path, network: UNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a bit differs, so that a run may be broken off and taken up again, and the order stays."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    torch.save(network.state_dict(), tmp_path / "model.pt")
    settings = {"base_channels": 4, "depth": 2, "fov_diameter": 128, "engine": "openvino", "save": False}
    files = config_files(bundle, "inference")
    values = {"bundle_root": str(bundle), "checkpoint": str(tmp_path / "model.pt"), **settings}
    segment, single = (Segmenter.from_config(files, values, many=many) for many in (True, False))
    paths = [tmp_path / f"{number}.png" for number in range(12)]
    for number, path in enumerate(paths):
        Image.fromarray(make_phantom(number % 5, 150, 141).image).save(path)
    paths[7].write_bytes(b"no picture")
    cases = [{"case_id": path.stem, "image": str(path)} for path in paths]
    results = list(segment.each(cases))
    assert [case["case_id"] for case, _ in results] == [case["case_id"] for case in cases]
    for case, result in results:
        if case["case_id"] == "7":
            assert isinstance(result, DriveSegError) and "7.png" in str(result)
        else:
            ((_, alone),) = segment.each([case])
            assert torch.equal(result["probability"], alone["probability"])
            torch.testing.assert_close(
                result["probability"], single.segment_case(case)["probability"], rtol=0.0, atol=0.02
            )


def test_a_version_that_converts_padding_otherwise(
    network: UNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert = openvino.convert_model

    def without_padding(program: Any) -> Any:
        model = convert(program)
        for pad in [node for node in model.get_ops() if node.get_type_name() == "Pad"]:
            pad.output(0).replace(pad.input_value(0))
        return model

    monkeypatch.setattr(openvino, "convert_model", without_padding)
    assert difference_in_probability(network, openvino_network(network, "float32", tmp_path)) < 1e-4
