"""Small datasets in the layouts distributed by their sites, and the facts that the scripts state about each."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import importlib.util
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from builders import disc
from PIL import Image

from drive_seg.prepare import Dataset

SCRIPTS = Path(__file__).resolve().parents[1] / "data_scripts"
SIZE = (100, 84)
"""Width and height of the generated photographs: unequal, to notice swapped axes, and small, to be quick."""


def facts(name: str) -> Dataset:
    spec = importlib.util.spec_from_file_location(f"prepare_{name}", SCRIPTS / f"prepare_{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.DATASET


DATASETS = {name: facts(name) for name in ("chase_db1", "hrf", "drive", "stare")}
SMALL = {name: dataclasses.replace(dataset, size=SIZE) for name, dataset in DATASETS.items()}


def circle() -> np.ndarray:
    return disc(SIZE[1], SIZE[0], 41, 52, 38)


def photograph(number: int) -> Image.Image:
    picture = np.where(circle()[..., None], np.array([150 + number, 80, 40]), 2).astype(np.uint8)
    picture[30, 30:60] = 60
    return Image.fromarray(picture)


def annotation(value: int = 255) -> np.ndarray:
    drawn = np.zeros(SIZE[::-1], dtype=np.uint8)
    drawn[30, 30:60] = value
    return drawn


def save(picture: Image.Image, path: Path) -> None:
    """Save in the format of the suffix; with ``.gz`` as gzipped PPM."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        buffer = io.BytesIO()
        picture.save(buffer, format="PPM")
        path.write_bytes(gzip.compress(buffer.getvalue(), mtime=0))
    else:
        picture.save(path)


def make_chase_db1(root: Path) -> None:
    for number, name in enumerate(f"Image_{child:02d}{eye}" for child in range(1, 15) for eye in "LR"):
        save(photograph(number), root / f"{name}.jpg")
        save(Image.fromarray(annotation() > 0), root / f"{name}_1stHO.png")
        save(Image.fromarray(annotation()), root / f"{name}_2ndHO.png")


def make_hrf(root: Path) -> None:
    for number, name in enumerate(f"{eye:02d}_{group}" for group in ("h", "dr", "g") for eye in range(1, 16)):
        save(photograph(number), root / "images" / f"{name}{'.JPG' if '_dr' in name else '.jpg'}")
        save(Image.fromarray(annotation()), root / "manual1" / f"{name}.tif")
        if not name.endswith("_g"):
            mask = np.repeat(circle()[..., None] * np.uint8(255), 3, axis=2)
            save(Image.fromarray(mask), root / "mask" / f"{name}_mask.tif")


def make_drive(root: Path) -> None:
    for case in range(1, 41):
        folder = root / ("training" if case > 20 else "test")
        save(photograph(case), folder / "images" / f"{case:02d}_{folder.name}.tif")
        save(Image.fromarray(circle() * np.uint8(255)), folder / "mask" / f"{case:02d}_{folder.name}_mask.gif")
        if case > 20:
            save(Image.fromarray(annotation()), folder / "1st_manual" / f"{case:02d}_manual1.gif")


def make_stare(root: Path) -> None:
    stare = DATASETS["stare"]
    for number, case in enumerate(sorted(stare.training + stare.validation + stare.test)):
        ending = ".ppm.gz" if number % 2 else ".ppm"
        save(photograph(number), root / "stare-images" / f"{case}{ending}")
        save(Image.fromarray(annotation()).convert("RGB"), root / "labels-ah" / f"{case}.ah{ending}")
        save(Image.fromarray(annotation()).convert("RGB"), root / "labels-vk" / f"{case}.vk{ending}")


MAKERS: dict[str, Callable[[Path], None]] = {
    "chase_db1": make_chase_db1,
    "hrf": make_hrf,
    "drive": make_drive,
    "stare": make_stare,
}


def fingerprints(folder: Path) -> dict[str, tuple[str, int]]:
    """SHA-256 and modification time of every file below a folder, by its path in it."""
    return {
        path.relative_to(folder).as_posix(): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
