"""Overrides: read from a command line, checked against the configs."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

from drive_seg import configs, data
from drive_seg.configs import bundle_root, check_overrides, config_files, parse_overrides, split_overrides
from drive_seg.errors import DriveSegError


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--a", "3"], {"a": 3}),
        (["--a=0.5"], {"a": 0.5}),
        (["--a", "1e-3"], {"a": 0.001}),
        (["--a", "true", "--b", "null"], {"a": True, "b": None}),
        (["--a", "True"], {"a": True}),
        (["--a", "[64, 64]"], {"a": [64, 64]}),
        (["--a", "['x', 'y']"], {"a": ["x", "y"]}),
        (["--a", "float32"], {"a": "float32"}),
        (["--a", "$@b + 1"], {"a": "$@b + 1"}),
        (["--a", "-1"], {"a": -1}),
        (["--a#b#0", "1"], {"a::b::0": 1}),
        (["--a", "x=y"], {"a": "x=y"}),
    ],
)
def test_overrides_are_read(arguments: list[str], expected: dict[str, object]) -> None:
    assert parse_overrides(arguments) == expected


@pytest.mark.parametrize("arguments", [["a"], ["--"], ["--a"], ["--a", "1", "b"]])
def test_what_is_no_override_is_refused(arguments: list[str]) -> None:
    with pytest.raises(DriveSegError, match="expected"):
        parse_overrides(arguments)


def test_paths_and_overrides_are_parted() -> None:
    assert split_overrides(["--t=1", "a", "--k", "v", "b"]) == (["a", "b"], ["--t=1", "--k", "v"])


@pytest.mark.parametrize(
    "key", ["max_epochs", "optimizer#lr", "optimizer::momentum", "train#random_transforms#0#roi_size", "validate"]
)
def test_known_keys_pass(bundle: Path, key: str) -> None:
    check_overrides(config_files(bundle, "train"), {key: 1})


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("max_epoch", "max_epochs"), ("optimizer#learning", ""), ("patchsize", "patch_size"), ("train#datset", "")],
)
def test_unknown_keys_are_refused(bundle: Path, key: str, nearest: str) -> None:
    with pytest.raises(DriveSegError, match="no such key") as raised:
        check_overrides(config_files(bundle, "train"), {key: 1})
    assert nearest in str(raised.value)


def test_an_overlay_adds_its_keys(bundle: Path) -> None:
    with pytest.raises(DriveSegError):
        check_overrides(config_files(bundle, "train"), {"checkpoint": "x"})
    check_overrides(config_files(bundle, "train", "evaluate"), {"checkpoint": "x"})


def test_missing_config(bundle: Path) -> None:
    assert bundle_root() == bundle
    with pytest.raises(DriveSegError, match=r"nothing\.json"):
        config_files(bundle, "nothing")


@pytest.mark.parametrize("module", [configs, data])
def test_examples_in_docstrings(module: object) -> None:
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert result.attempted and not result.failed
