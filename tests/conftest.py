"""Fixtures shared by several test files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Converted networks of tests do not go into the home of whoever runs them."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Weights do not depend on which tests ran before."""
    if "torch" in sys.modules:
        import torch

        torch.manual_seed(0)


@pytest.fixture(scope="session")
def bundle() -> Path:
    """The bundle of this checkout."""
    return ROOT / "bundle"


@pytest.fixture
def elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command writes into the working directory does not stay."""
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DRIVE-layout folder of small phantoms, 6 for training (1 of them for validation) and 2 for test."""
    from drive_seg.phantom import write_phantom_dataset

    folder = tmp_path_factory.mktemp("phantoms")
    write_phantom_dataset(folder, training=6, test=2, seed=7, height=150, width=141)
    return folder


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A generated source of each public dataset by name; tests that change one must copy it first."""
    from public_datasets import MAKERS

    root = tmp_path_factory.mktemp("pristine")
    for name, maker in MAKERS.items():
        maker(root / name)
    return {name: root / name for name in MAKERS}


@pytest.fixture(scope="session")
def five_phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms, 4 for training (one batch of 4, or two of 2), 1 for validation and 1 for test."""
    from drive_seg.phantom import write_phantom_dataset

    folder = tmp_path_factory.mktemp("five")
    write_phantom_dataset(folder, training=5, test=1, seed=3, height=130, width=121)
    return folder


@pytest.fixture(scope="session")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny pictures with the names of DRIVE's files."""
    from builders import write_drive_layout

    return write_drive_layout(tmp_path_factory.mktemp("drive"))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """DRIVE's files with only 6 training and 2 test cases, for tests that change them."""
    from builders import write_drive_layout

    return write_drive_layout(tmp_path, training=range(21, 27), test=range(1, 3))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five photographs and one that is none."""
    from PIL import Image

    from drive_seg.phantom import make_phantom

    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for number in range(5):
        Image.fromarray(make_phantom(number, 150, 141).image).save(photographs / f"{number}.png")
    (photographs / "broken.png").write_bytes(b"not an image")
    return photographs


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, object]:
    """Of a small network for ``folder``, with weights of its own."""
    import torch
    from builders import finding_some, small

    torch.save(finding_some(small(base_channels=4, depth=3)).state_dict(), tmp_path / "model.pt")
    return {
        "base_channels": 4,
        "depth": 3,
        "fov_diameter": 128,
        "precision": "float32",
        "engine": "torch",
        "checkpoint": str(tmp_path / "model.pt"),
    }
