"""Weights that are written and read, fit or are refused, and start a training."""

from __future__ import annotations

import os
import pickle
import signal
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import names, same_weights, small
from ignite.engine import Engine
from ignite.metrics import Average
from monai.engines import SupervisedEvaluator
from running import another_in_the_second_process

from drive_seg import checkpoints
from drive_seg.checkpoints import (
    BestModelSaver,
    PretrainedWeights,
    WeightsCheckpointLoader,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from drive_seg.errors import CommonError, DriveSegError

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")),
]


@pytest.mark.parametrize("device", DEVICES)
def test_tensors_are_on_the_cpu_and_without_a_graph(tmp_path: Path, device: str) -> None:
    network = small().to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.randn(2, 3, 8, 8, device=device)).sum().backward()
    optimizer.step()
    content = {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lists": [torch.ones(2, device=device), (torch.nn.Parameter(torch.ones(1, device=device)), 3)],
        "plain": "text",
    }
    save_checkpoint(content, tmp_path / "last.pt")
    loaded = torch.load(tmp_path / "last.pt", weights_only=True)  # no map_location: as they are in the file
    assert loaded["plain"] == "text" and loaded["lists"][1][1] == 3
    momenta = [state["momentum_buffer"] for state in loaded["optimizer"]["state"].values()]
    assert len(momenta) == len(list(network.parameters()))
    for tensor in (*loaded["network"].values(), *momenta, loaded["lists"][0], loaded["lists"][1][0]):
        assert tensor.device.type == "cpu" and not tensor.requires_grad
    for name, value in network.state_dict().items():
        assert torch.equal(loaded["network"][name], value.cpu())


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="the system has no limit of a file's size")
def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    """A limit of a file's size stands in for the disk's: the system refuses to write further in the same way."""
    import resource

    path = tmp_path / "model.pt"
    save_checkpoint({"a": torch.ones(2)}, path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(DriveSegError, match=r"model\.pt: cannot be written \(File too large\)$"):
            save_checkpoint({"a": torch.zeros(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert torch.equal(load_checkpoint(path)["a"], torch.ones(2)) and names(tmp_path) == ["model.pt"]


def test_what_torch_makes_of_an_error_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(content: object, file: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(DriveSegError, match=r"model\.pt: cannot be written \(\[enforce fail"):
        save_checkpoint({"a": torch.zeros(2)}, tmp_path / "model.pt")
    assert names(tmp_path) == []


def test_what_torch_makes_of_an_interruption_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(content: object, file: object) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint({"a": torch.zeros(2)}, tmp_path / "model.pt")
    assert names(tmp_path) == []


@pytest.mark.parametrize("wrap", [
    lambda weights: weights,
    lambda weights: {"network": weights, "progress": {"epoch": 3}},
    lambda weights: {"network": small(seed=2).state_dict(), "moving_average": {"network": weights, "steps": 5}},
], ids=["weights", "state", "state-with-average"])  # fmt: skip
def test_weights_come_back(tmp_path: Path, wrap: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    network = small()
    save_checkpoint(wrap(network.state_dict()), tmp_path / "model.pt")
    other = small(seed=1)
    assert not same_weights(other, network)
    assert load_weights(other, tmp_path / "model.pt") is other
    assert same_weights(other, network)


@pytest.mark.parametrize(("content", "hint"), [
    (small(base_channels=4).state_dict(), "expected --base_channels 4)"),
    (small(depth=2, num_classes=3).state_dict(), "expected --depth 2 --num_classes 3)"),
    (small(in_channels=1).state_dict(), "are they of this project's UNet? "),
    ({}, "are they of this project's UNet? "),
    ({"network": {}}, "are they of this project's UNet? "),
    ({"network": [1, 2]}, "are they of this project's UNet? "),
    ({"network": torch.ones(2)}, "are they of this project's UNet? "),
    ({"first.0.weight": "text"}, "are they of this project's UNet? "),
    ({"output.conv.weight": "text"}, "are they of this project's UNet? "),
    ({3: torch.ones(2)}, "are they of this project's UNet? "),
], ids=[
    "width", "depth", "channels", "empty", "empty-network", "list", "tensor", "text", "output", "number"
])  # fmt: skip
def test_weights_of_another_network_are_refused(tmp_path: Path, content: dict[str, Any], hint: str) -> None:
    save_checkpoint(content, tmp_path / "model.pt")
    with pytest.raises(DriveSegError) as raised:
        load_weights(small(), tmp_path / "model.pt")
    assert str(raised.value).startswith(f"{tmp_path / 'model.pt'}: the weights do not fit the network ({hint}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"these are not weights", b"PK\x03\x04 nor these", b"\x80\x02]q\x00."])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(DriveSegError, match=r"model\.pt: is not a checkpoint of tensors and plain values \(") as raised:
        load_checkpoint(tmp_path / "model.pt")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_half_a_checkpoint_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "model.pt"
    save_checkpoint(small().state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DriveSegError, match=r"model\.pt: is not a checkpoint"):
        load_checkpoint(path)


def test_a_checkpoint_with_other_bytes_in_the_middle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    save_checkpoint(small().state_dict(), path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
    place = content.index(largest.filename.encode()) + len(largest.filename) + largest.file_size // 2
    content[place] ^= 1
    path.write_bytes(content)
    torch.load(path, weights_only=True)  # takes it without a word
    with pytest.raises(DriveSegError, match=rf"model\.pt: is damaged, {largest.filename} in it differs"):
        load_checkpoint(path)


def test_torchscript_is_no_checkpoint(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        torch.jit.script(torch.nn.Linear(1, 1)).save(tmp_path / "model.ts")
    with pytest.raises(DriveSegError, match=r"model\.ts: is TorchScript, expected weights, such as model\.pt$"):
        load_checkpoint(tmp_path / "model.ts")


def test_a_missing_checkpoint_and_a_bare_tensor(tmp_path: Path) -> None:
    with pytest.raises(DriveSegError, match=r"is a folder, expected a checkpoint in it, such as .*model\.pt$"):
        load_checkpoint(tmp_path)
    with pytest.raises(DriveSegError, match=r"none\.pt: there is no such checkpoint$"):
        load_weights(small(), tmp_path / "none.pt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(DriveSegError, match="expected a dictionary, got Tensor"):
        load_checkpoint(tmp_path / "tensor.pt")


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch harmed",)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Harmful()}, "model.pt")
    Path("plain.pt").write_bytes(pickle.dumps(Harmful()))
    for name in ("model.pt", "plain.pt"):
        with pytest.raises(DriveSegError, match="is not a checkpoint"):
            load_checkpoint(name)
    assert not Path("harmed").exists()
    torch.load("model.pt", weights_only=False)
    assert Path("harmed").exists(), "the file would have done harm"


def test_weights_are_loaded_as_an_engine_starts(tmp_path: Path) -> None:
    network, other = small(), small(seed=1)
    save_checkpoint(network.state_dict(), tmp_path / "model.pt")
    engine = Engine(lambda engine, batch: same_weights(network, other))
    WeightsCheckpointLoader(other, str(tmp_path / "model.pt")).attach(engine)
    assert not same_weights(network, other), "nothing is read before"
    engine.run([0], max_epochs=1)
    assert engine.state.output is True


def test_a_path_of_weights(tmp_path: Path) -> None:
    save_checkpoint(small(seed=1).state_dict(), tmp_path / "model.pt")
    network = small(seed=2)
    engine = Engine(lambda engine, batch: None)
    WeightsCheckpointLoader(network, tmp_path / "model.pt").attach(engine)
    engine.run([0])
    assert same_weights(network, small(seed=1)) and engine.state.loaded_weights == [str(tmp_path / "model.pt")]


def test_another_network_is_not_told_of_this_projects(tmp_path: Path) -> None:
    save_checkpoint({"weight": torch.ones(3)}, tmp_path / "model.pt")
    for network, told in ((small(), True), (torch.nn.Linear(2, 1), False)):
        with pytest.raises(DriveSegError, match="do not fit the network") as raised:
            load_weights(network, tmp_path / "model.pt")
        assert ("this project's UNet" in str(raised.value)) is told


def validator(network: torch.nn.Module, path: Path) -> tuple[SupervisedEvaluator, list[float]]:
    """An evaluator that saves its best weights, and the list of the metrics that its validations give."""
    metrics: list[float] = []
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[{"image": torch.zeros(1, 3, 8, 8)}],
        network=network,
        key_val_metric={"val_dice": Average(output_transform=lambda output: metrics.pop(0))},
        val_handlers=[BestModelSaver(network, str(path))],
    )
    return evaluator, metrics


def saved_bias(path: Path) -> float:
    return load_checkpoint(path)["output.conv.bias"][0].item()


def fill_bias(network: torch.nn.Module, value: float) -> None:
    with torch.no_grad():
        network.output.conv.bias.fill_(value)


def test_the_best_model_is_kept(tmp_path: Path) -> None:
    network, folder = small(), tmp_path / "models"
    evaluator, metrics = validator(network, folder / "model.pt")
    kept = []
    for epoch, metric in ((1, 0.0), (2, 0.0), (3, 0.7), (4, 0.6)):
        fill_bias(network, epoch)
        metrics.append(metric)
        evaluator.run(epoch)
        kept.append(saved_bias(folder / "model.pt"))
    assert kept == [1, 1, 3, 3]
    assert names(folder) == ["model.pt"]
    (folder / "model.json").write_text("{}")
    metrics.append(0.8)
    evaluator.run(5)
    assert names(folder) == ["model.pt"], "the list of others is removed"
    assert set(load_checkpoint(folder / "model.pt")) == set(network.state_dict()), "a plain state dict"


def test_an_epoch_that_is_validated_again_saves_only_better_weights(tmp_path: Path) -> None:
    """As after a training, or in federated validation, where the epoch of every round may be 1."""
    network = small()
    evaluator, metrics = validator(network, tmp_path / "model.pt")
    kept = []
    for number, metric in enumerate((0.5, 0.4, 0.5, 0.6, 0.1)):
        fill_bias(network, number)
        metrics.append(metric)
        evaluator.run(1)
        kept.append(saved_bias(tmp_path / "model.pt"))
    assert kept == [0, 0, 0, 3, 3]


def test_a_best_metric_that_is_restored_saves_nothing(tmp_path: Path) -> None:
    network, path = small(), tmp_path / "model.pt"
    evaluator, metrics = validator(network, path)
    evaluator.state.best_metric, evaluator.state.best_metric_epoch = 0.5, 3  # as TrainingState does
    metrics.extend([0.4, 0.5, 0.6])
    for epoch, saved in ((3, False), (4, False), (5, True)):
        evaluator.run(epoch)
        assert path.exists() is saved, epoch


@pytest.mark.parametrize(("path", "resume", "begun", "loaded"), [
    (None, False, False, False),
    ("model.pt", False, False, True),
    ("model.pt", True, False, True),
    ("model.pt", True, True, False),
    ("gone.pt", True, True, False),
])  # fmt: skip
def test_what_a_training_starts_from(tmp_path: Path, path: str | None, resume: bool, begun: bool, loaded: bool) -> None:
    save_checkpoint(small(seed=1).state_dict(), tmp_path / "model.pt")
    if begun:
        (tmp_path / "last.pt").touch()
    network = small(seed=2)
    engine = Engine(lambda engine, batch: None)
    start = None if path is None else str(tmp_path / path)
    PretrainedWeights(network, start, str(tmp_path / "last.pt"), resume).attach(engine)
    engine.run([0], max_epochs=1)
    assert same_weights(network, small(seed=1 if loaded else 2))
    network.load_state_dict(small(seed=3).state_dict())
    engine.run([0], max_epochs=2)
    assert same_weights(network, small(seed=3)), "loaded again in a later round"


def test_a_state_that_only_another_process_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None loads the weights then, so that all come to what refuses this state together."""
    save_checkpoint(small(seed=1).state_dict(), tmp_path / "model.pt")
    monkeypatch.setattr(checkpoints, "gather", lambda mine: [mine, True])
    network, engine = small(seed=2), Engine(lambda engine, batch: None)
    PretrainedWeights(network, str(tmp_path / "model.pt"), str(tmp_path / "last.pt"), resume=True).attach(engine)
    engine.run([0], max_epochs=1)
    assert same_weights(network, small(seed=2))


def test_pretrained_weights_that_do_not_fit(tmp_path: Path) -> None:
    save_checkpoint(small(base_channels=4).state_dict(), tmp_path / "model.pt")
    for path, message in (
        ("model.pt", "do not fit the network .expected --base_channels 4"),
        ("gone.pt", "no such checkpoint"),
    ):
        engine = Engine(lambda engine, batch: None)
        PretrainedWeights(small(), str(tmp_path / path), str(tmp_path / "last.pt")).attach(engine)
        with pytest.raises(DriveSegError, match=f"{path}.*{message}"):
            engine.run([0], max_epochs=1)


def test_other_classes_are_learnt_from_the_weights_but_for_the_output_layer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = small(seed=1).state_dict()
    save_checkpoint(weights, tmp_path / "model.pt")
    start, state = str(tmp_path / "model.pt"), str(tmp_path / "last.pt")
    network = small(seed=2, num_classes=3)
    engine = Engine(lambda engine, batch: None)
    PretrainedWeights(network, start, state, new_output_layer=True).attach(engine)
    with caplog.at_level("INFO", "drive_seg"):
        engine.run([0], max_epochs=1)
    assert f"the training starts from the weights of {start}, but for the output layer, which is new" in caplog.text
    fresh = small(seed=2, num_classes=3).state_dict()
    for name, value in network.state_dict().items():
        assert torch.equal(value, (fresh if name.startswith("output.") else weights)[name]), name


@pytest.mark.parametrize(("make", "new_output_layer", "message"), [
    (partial(small, num_classes=3), False, "expected --num_classes 2 or --new_output_layer true, to learn other "),
    (partial(small, num_classes=3, base_channels=4), True, r"expected --base_channels 2\)"),
    (partial(torch.nn.Linear, 2, 2), True, "new_output_layer: expected false, because the network has no layer named "),
], ids=["other classes", "other width", "other network"])  # fmt: skip
def test_pretrained_weights_of_other_classes(
    tmp_path: Path, make: Callable[[], torch.nn.Module], new_output_layer: bool, message: str
) -> None:
    save_checkpoint(small().state_dict(), tmp_path / "model.pt")
    engine = Engine(lambda engine, batch: None)
    start, state = str(tmp_path / "model.pt"), str(tmp_path / "last.pt")
    PretrainedWeights(make(), start, state, new_output_layer=new_output_layer).attach(engine)
    with pytest.raises(DriveSegError, match=message):
        engine.run([0], max_epochs=1)


def test_processes_that_would_start_from_other_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    another_in_the_second_process("SHA-256 of the pretrained weights", monkeypatch)
    network = small()
    save_checkpoint(network.state_dict(), tmp_path / "model.pt")
    engine = Engine(lambda engine, batch: None)
    PretrainedWeights(network, str(tmp_path / "model.pt"), str(tmp_path / "last.pt")).attach(engine)
    with pytest.raises(CommonError, match=r"^SHA-256 of the pretrained weights: expected the same in all processes"):
        engine.run([0], max_epochs=1)
