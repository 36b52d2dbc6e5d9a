"""Overrides: read from a command line, parted from paths, checked against the configs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from drive_seg import configs
from drive_seg.configs import bundle_root, check_overrides, config_files, literal, parse_overrides, split_overrides
from drive_seg.errors import DriveSegError


@pytest.mark.parametrize(
    "text", ["a#b", "#", "a@b#c", "it's \\#", "both \"'#", "ä#\n", "plain", "a@b", "$1 + 1", "@two"]
)
def test_what_monai_reads_of_a_literal(text: str) -> None:
    parser = ConfigParser({"two": 2})
    parser.update({"one": literal([text])})
    expected = {"$1 + 1": 2, "@two": 2}.get(text, text)
    assert parser.get_parsed_content("one") == [expected]


@pytest.mark.parametrize(("arguments", "expected"), [
    ([], {}),
    (["--a", "3"], {"a": 3}),
    (["--a=0.5"], {"a": 0.5}),
    (["--a", "1e-3"], {"a": 0.001}),
    (["--a", "true", "--b", "null"], {"a": True, "b": None}),
    (["--a", "True", "--b=None"], {"a": True, "b": None}),
    (["--a", "[64, 64]"], {"a": [64, 64]}),
    (["--a", "['x', 'y']"], {"a": ["x", "y"]}),
    (["--a", '{"label": "av"}'], {"a": {"label": "av"}}),
    (["--a", "(1, 2)"], {"a": (1, 2)}),
    (["--a", "'3'"], {"a": "3"}),
    (["--a", "float32"], {"a": "float32"}),
    (["--a", "/data/DRIVE"], {"a": "/data/DRIVE"}),
    (["--a", "01_test"], {"a": "01_test"}),
    (["--a", "2026_01_05"], {"a": "2026_01_05"}),
    (["--a", "{[1]: 2}"], {"a": "{[1]: 2}"}),
    (["--a", ""], {"a": ""}),
    (["--a="], {"a": ""}),
    (["--a", "$@b + 1"], {"a": "$@b + 1"}),
    (["--a", "-1"], {"a": -1}),
    (["--a", "-x"], {"a": "-x"}),
    (["--a=--b"], {"a": "--b"}),
    (["--a#b#0", "1"], {"a::b::0": 1}),
    (["--a::b=1"], {"a::b": 1}),
    (["--a", "x=y"], {"a": "x=y"}),
    (["--a=x=y"], {"a": "x=y"}),
    (["--a", "b#c"], {"a": "b#c"}),
    (["--a", "1", "--a", "2"], {"a": 2}),
])  # fmt: skip
def test_overrides_are_read(arguments: list[str], expected: dict[str, object]) -> None:
    before = list(arguments)
    parsed = parse_overrides(arguments)
    assert parsed == expected
    assert [type(value) for value in parsed.values()] == [type(value) for value in expected.values()]
    assert arguments == before


@pytest.mark.parametrize(("arguments", "message"), [
    (["a"], "'a': expected --KEY VALUE, where KEY is a key of the config"),
    (["-a", "1"], "'-a': expected --KEY VALUE"),
    (["--"], "'--': expected --KEY VALUE"),
    (["--a", "1", "b"], "'b': expected --KEY VALUE"),
    (["--a"], "--a: expected a value after it"),
    (["--a", "1", "--b"], "--b: expected a value after it"),
    (["--resume", "--max_epochs", "3"], "--resume: expected a value after it"),
])  # fmt: skip
def test_what_is_no_override_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(DriveSegError) as raised:
        parse_overrides(arguments)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(("arguments", "paths", "overrides"), [
    ([], [], {}),
    (["a", "b"], ["a", "b"], {}),
    (["--t=1", "a", "--k", "v", "b"], ["a", "b"], {"t": 1, "k": "v"}),
    (["--k", "-1", "a"], ["a"], {"k": -1}),
    (["a", "--k=--b"], ["a"], {"k": "--b"}),
])  # fmt: skip
def test_paths_and_overrides_are_parted(arguments: list[str], paths: list[str], overrides: dict[str, Any]) -> None:
    assert split_overrides(arguments) == (paths, overrides)


@pytest.mark.parametrize("value", ["no", "False ", 0, 1, None])
def test_what_is_true_or_false(tmp_path: Path, value: Any) -> None:
    """A text would be true, whatever it says; MONAI takes no number for either."""
    config = tmp_path / "config.json"
    config.write_text('{"measure": true}')
    for fine in (False, 8, "$@a > 1", "@a"):
        check_overrides([str(config)], {"measure": fine})
    with pytest.raises(DriveSegError, match=f"^measure: expected true or false, got {value!r}$"):
        check_overrides([str(config)], {"measure": value})


def test_a_fraction_where_whole_numbers_are_counted(files: list[str]) -> None:
    check_overrides(files, {"max_epochs": 4, "optimizer#lr": 0.5})
    for value in (1.5, 4.0):  # a batch of 4.0 photographs is what nothing takes
        with pytest.raises(DriveSegError, match=r"^max_epochs: expected a whole number .*, such as 3 in the config"):
            check_overrides(files, {"max_epochs": value})


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """A base config, and an overlay that spells nested keys in one and merges a list."""
    contents: list[dict[str, Any]] = [
        {
            "_desc_": {"max_epochs": "how long", "only_described": "no such value"},
            "max_epochs": 3,
            "optimizer": {"_target_": "torch.optim.SGD", "_desc_": "plain", "lr": 0.1},
            "train": {"handlers": [{"_target_": "A", "path": "a"}, {"_target_": "B"}]},
        },
        {"checkpoint": "model.pt", "train#sampler": {"rank": 0}, "+train::handlers": [{"name": "c"}]},
    ]
    paths = [tmp_path / f"{number}.json" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_text(json.dumps(content))
    return [str(path) for path in paths]


@pytest.mark.parametrize("key", [
    "max_epochs", "optimizer", "optimizer#lr", "optimizer::lr", "optimizer#_target_",
    "train#handlers#0#path", "train::handlers::1", "checkpoint", "train#sampler#rank", "train#handlers#2#name",
])  # fmt: skip
def test_known_keys_pass(files: list[str], key: str) -> None:
    check_overrides(files, {key: 1})


@pytest.mark.parametrize(("key", "hint"), [
    ("max_epoch", ", did you mean max_epochs?"),
    ("optimiser#lr", ", did you mean optimizer::lr?"),
    ("train#handlers#0#pth", ", did you mean train::handlers::0::path?"),
    ("chekpoint", ", did you mean checkpoint?"),
    ("train#handlers#0#name", ", did you mean train::handlers::2::name?"),
    ("train#handlers#2#path", ", did you mean train::handlers::0::path?"),
    ("zzz", ""),
    ("", ""),
    ("_desc_#only_described", None),
    ("_desc_", None),
])  # fmt: skip
def test_unknown_keys_are_refused(files: list[str], key: str, hint: str | None) -> None:
    with pytest.raises(DriveSegError) as raised:
        check_overrides(files, {"max_epochs": 1, key: 1})
    message = f"{key}: the config has no such key"
    assert str(raised.value).startswith(message) if hint is None else str(raised.value) == message + hint


def test_an_overlays_keys_are_known_only_with_it(files: list[str]) -> None:
    with pytest.raises(DriveSegError, match=r"^checkpoint: the config has no such key"):
        check_overrides(files[:1], {"checkpoint": "x"})


@pytest.mark.parametrize(
    "key", ["max_epochs", "optimizer#lr", "optimizer::momentum", "train#random_geometry#crop#roi_size", "validate"]
)
def test_keys_of_the_bundle(bundle: Path, key: str) -> None:
    check_overrides(config_files(bundle, "train"), {key: 1})


@pytest.mark.parametrize(("key", "nearest"), [
    ("max_epoch", "max_epochs"), ("optimizer#learning", "optimizer::lr"), ("patchsize", "patch_size"),
    ("train#datset", "train::dataset"), ("quite_unlike_any", None),
])  # fmt: skip
def test_keys_that_the_bundle_has_not(bundle: Path, key: str, nearest: str | None) -> None:
    hint = f", did you mean {nearest}?" if nearest else ""
    with pytest.raises(DriveSegError, match=f"^{key}: the config has no such key{re.escape(hint)}$"):
        check_overrides(config_files(bundle, "train"), {key: 1})


def test_an_overlay_of_the_bundle_adds_its_keys(bundle: Path) -> None:
    with pytest.raises(DriveSegError):
        check_overrides(config_files(bundle, "train"), {"checkpoint": "x"})
    check_overrides(config_files(bundle, "train", "evaluate"), {"checkpoint": "x"})


def test_the_bundle_lies_beside_the_package_or_in_it(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bundle_root() == bundle
    package = tmp_path / "drive_seg"
    monkeypatch.setattr(configs, "__file__", str(package / "configs.py"))
    with pytest.raises(DriveSegError, match=f"^there is no bundle in {package} or beside it"):
        bundle_root()
    for root in (tmp_path / "bundle", package / "bundle"):
        (root / "configs").mkdir(parents=True)
        (root / "configs" / "train.json").touch()
        assert bundle_root() == root


def test_config_files(bundle: Path) -> None:
    assert config_files(bundle, "train", "evaluate") == [
        str(bundle / "configs" / "train.json"),
        str(bundle / "configs" / "evaluate.json"),
    ]
    with pytest.raises(DriveSegError, match=r"nothing\.json: there is no such config, expected a bundle in "):
        config_files(bundle, "train", "nothing")


def test_evaluation_and_inference_scale_as_validation_does(bundle: Path) -> None:
    """The evaluation replaces one transform by its place in the list, and the inference has a list of its own."""

    def parts(names: tuple[str, ...], key: str) -> list[dict[str, Any]]:
        parser = ConfigParser()
        parser.read_config(config_files(bundle, *names))
        return [dict(part) for part in parser[key]]

    validation = parts(("train",), "validate#deterministic_transforms")
    evaluation = parts(("train", "evaluate"), "validate#deterministic_transforms")
    assert [part["_target_"] for part in evaluation] == [part["_target_"] for part in validation]
    assert evaluation[1:-1] == validation[1:-1]
    inference = parts(("inference",), "preprocessing#transforms")
    scaling = [part["_target_"] for part in validation[1:-1]]
    place = [part["_target_"] for part in inference].index(scaling[0])
    assert inference[place : place + len(scaling)] == validation[1:-1]


@pytest.mark.parametrize("overlays", [[], ["any_camera"]])
@pytest.mark.parametrize("side", [128, 384])
def test_patches_can_reach_the_rim_of_the_retina(bundle: Path, overlays: list[str], side: int) -> None:
    parser = ConfigParser()
    parser.read_config(config_files(bundle, "train", *overlays))
    parser.update({"bundle_root": str(bundle), "patch_size": [side, side]})
    region = parser.get_parsed_content("train#random_geometry#crop").cropper.roi_size
    margin = parser.get_parsed_content("train#deterministic_transforms#0").margin
    assert all(margin >= (length - side) / 2 > 0 for length in region), "a patch is the middle of its region"


def test_one_number_is_both_sides_of_a_patch(bundle: Path) -> None:
    parser = ConfigParser()
    parser.read_config(config_files(bundle, "train"))
    parser.update({"bundle_root": str(bundle), "patch_size": 64})
    crop, affine = (parser.get_parsed_content(f"train#random_geometry#{name}") for name in ("crop", "affine"))
    image, label = torch.rand(3, 100, 120), torch.zeros(1, 100, 120)
    patch = affine(crop({"image": image, "label": label}))
    assert patch["image"].shape == (3, 64, 64)
    assert patch["label"].shape == (1, 64, 64)
