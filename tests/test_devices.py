"""Devices, and how networks run on them."""

from __future__ import annotations

import os

import pytest
import torch

from drive_seg.devices import autocast, best_device, fast_dtype, memory_format, usable_cores
from drive_seg.errors import DriveSegError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_torchruns_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    for number, each in ((None, 8), (3, 2), (8, 1), (20, 1)):
        if number:
            monkeypatch.setenv("LOCAL_WORLD_SIZE", str(number))
        assert usable_cores() == each


@pytest.mark.parametrize(
    ("there", "taken"), [(None, "cpu"), ("cuda", "cuda:1"), ("xpu", "xpu:1"), ("mps", "cpu")], ids=str
)
def test_the_device_that_is_taken(there: str | None, taken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes' worth of accelerators; Apple's are for those who ask for them."""
    accelerator = None if there is None else torch.device(there)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: accelerator)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert best_device() == torch.device(taken)


class TestFastDtype:
    @pytest.mark.parametrize(("capabilities", "dtype"), [
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"avx512_f": True, "avx512_bf16": False}, torch.float32),
        ({}, torch.float32),
    ])  # fmt: skip
    def test_cpu(self, monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], dtype: torch.dtype) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
        assert fast_dtype(CPU) is dtype

    def test_cpu_of_a_torch_that_cannot_tell(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
        assert fast_dtype(CPU) is torch.float32

    @pytest.mark.parametrize(("capability", "dtype"), [
        ((6, 1), torch.float32), ((7, 0), torch.float16), ((7, 5), torch.float16),
        ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16),
    ])  # fmt: skip
    def test_cuda(self, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
        assert fast_dtype(CUDA) is dtype

    def test_gpus_whose_float16_is_broken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        for name, dtype in {"NVIDIA GeForce GTX 1650": torch.float32, "Tesla T4": torch.float16}.items():
            monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
            assert fast_dtype(CUDA) is dtype

    def test_any_other_device(self) -> None:
        assert fast_dtype(torch.device("mps")) is torch.float32

    @pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
    @pytest.mark.parametrize(("precision", "dtype"), [
        ("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16),
    ])  # fmt: skip
    def test_a_named_precision_is_taken(self, device: torch.device, precision: str, dtype: torch.dtype) -> None:
        assert fast_dtype(device, precision) is dtype

    @pytest.mark.parametrize("precision", ["half", "fp32", "", "Auto"])
    def test_unknown(self, precision: str) -> None:
        with pytest.raises(DriveSegError) as raised:
            fast_dtype(CPU, precision)
        assert str(raised.value) == f"precision: expected auto, float32, bfloat16, float16, got {precision!r}"


def test_channels_last_but_on_apples_gpus() -> None:
    assert memory_format(CPU) is memory_format(CUDA) is torch.channels_last
    assert memory_format(torch.device("mps")) is torch.contiguous_format


def test_autocast() -> None:
    with autocast(CPU, "float32"):
        assert not torch.is_autocast_enabled("cpu")
    with autocast(CPU, "bfloat16"):
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") is torch.bfloat16
    assert not torch.is_autocast_enabled("cpu")
