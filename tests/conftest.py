"""Fixtures shared by several test files."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def bundle() -> Path:
    """The bundle of this checkout."""
    return ROOT / "bundle"


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
