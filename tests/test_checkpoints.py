"""Files that are whole or not there, and weights that fit or are refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

from drive_seg.checkpoints import load_checkpoint, load_weights, save_checkpoint
from drive_seg.errors import DriveSegError, user_error
from drive_seg.files import replacing, write_text
from drive_seg.networks import UNet


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    write_text(path, "old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old" and temporary.suffix == ".txt" and temporary.parent == path.parent
    assert path.read_text() == "new" and names(path.parent) == ["a.txt"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("half")
        _ = 1 / 0
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DriveSegError, match=r"a\.txt: cannot be written"):
        write_text(tmp_path / "file" / "a.txt", "")


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.pt"
    save_checkpoint({"a": torch.ones(2)}, path)

    def fails(content: object, target: Path) -> None:
        target.write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(DriveSegError, match=r"model\.pt: cannot be written \(\[enforce fail"):
        save_checkpoint({"a": torch.zeros(2)}, path)
    assert torch.equal(load_checkpoint(path)["a"], torch.ones(2)) and names(tmp_path) == ["model.pt"]


def test_weights_come_back(tmp_path: Path) -> None:
    first, second = UNet(base_channels=2), UNet(base_channels=2)
    save_checkpoint(first.state_dict(), tmp_path / "model.pt")
    load_weights(second, tmp_path / "model.pt")
    save_checkpoint({"network": first.state_dict(), "progress": {"epoch": 3}}, tmp_path / "last.pt")
    third = load_weights(UNet(base_channels=2), tmp_path / "last.pt")
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]) and torch.equal(value, third.state_dict()[name])


def test_unfitting_weights_are_refused(tmp_path: Path) -> None:
    save_checkpoint(UNet(base_channels=4).state_dict(), tmp_path / "model.pt")
    with pytest.raises(DriveSegError, match=r"model\.pt: the weights do not fit the network, are base_channels"):
        load_weights(UNet(base_channels=2), tmp_path / "model.pt")


@pytest.mark.parametrize("content", [b"", b"these are not weights", b"PK\x03\x04 nor these"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(DriveSegError, match=r"model\.pt: is not a checkpoint"):
        load_checkpoint(tmp_path / "model.pt")


def test_a_missing_checkpoint_and_a_bare_tensor(tmp_path: Path) -> None:
    with pytest.raises(DriveSegError, match="there is no such checkpoint"):
        load_checkpoint(tmp_path / "none.pt")
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


def test_the_cause_of_an_error_is_found() -> None:
    inner = DriveSegError("the file")
    try:
        try:
            raise inner
        except DriveSegError as error:
            raise RuntimeError("applying transform") from error
    except RuntimeError as outer:
        assert user_error(outer) is inner
    assert user_error(ValueError("a bug")) is None
