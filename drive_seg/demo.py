"""The demo: from phantom photographs to a segmented real one, with the bundle's own configs and commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image, ImageOps
from skimage.util import montage

from drive_seg.configs import config_files, path_value
from drive_seg.data import load_datalist
from drive_seg.errors import DriveSegError
from drive_seg.files import remove
from drive_seg.phantom import write_phantom_dataset
from drive_seg.pictures import agreement, save_png
from drive_seg.predict import segment_photographs
from drive_seg.readers import read_image
from drive_seg.workflows import run_workflow

__all__ = ["RETINA", "run_demo"]

RETINA = Path(skimage.data.data_dir) / "retina.jpg"
"""A photograph in the public domain (CC0) that comes with scikit-image."""

GREY = (24, 24, 24)
"""Colour around pictures that are side by side."""


def run_demo(root: Path, output_dir: Path, say: Callable[[str], None]) -> None:
    """Draw phantoms, train on them briefly, score the result and segment a real photograph.

    Args:
        root: the bundle; its ``demo.json`` says how many phantoms to draw and how long to train.
        output_dir: folder to write into; ``demo.png`` is the picture to look at first.
        say: called with a sentence before each step and with what to look at after the last.

    Raises:
        DriveSegError: if the folder holds a training that is not a demo's.
    """
    phantoms = output_dir / "phantoms"
    results = output_dir / "results"
    numbers = json.loads(Path(config_files(root, "demo")[0]).read_text(encoding="utf-8"))["phantoms"]
    state = output_dir / "last.pt"
    if state.exists() and not phantoms.is_dir():
        raise DriveSegError(f"{state}: is of a training that is not a demo's, expected another folder")
    remove(state)  # an earlier demo's, which nobody wants to resume
    say(f"1/4 drawing {numbers['training']} phantom photographs to learn from and {numbers['test']} to test on")
    write_phantom_dataset(phantoms, **numbers)

    folder = path_value(output_dir)
    folders = {"dataset_dir": path_value(phantoms), "ckpt_dir": folder, "output_dir": folder}
    say("2/4 training")
    run_workflow(root, ["train", "demo"], "training", folders)
    say("3/4 scoring the test phantoms")
    run_workflow(root, ["train", "evaluate", "demo"], "evaluating", folders)
    say("4/4 segmenting a test phantom with these weights and a real photograph with the ones that are shipped")
    case = load_datalist(phantoms, "test")[0]
    weights = {"checkpoint": path_value(output_dir / "model.pt")}
    # In a folder of its own: runs with different weights replace each other's table of measures.
    segment_photographs(root, [case["image"]], results / "phantom", weights, names=("inference", "demo"))
    segment_photographs(root, [RETINA], results, {})

    picture = output_dir / "demo.png"
    pred = read_image(results / "phantom" / f"{Path(case['image']).stem}_vessels.png", "binary")
    agreed = agreement(pred, read_image(case["label"], "binary"), read_image(case["fov"], "binary") > 0)
    rows = [
        [read_image(case["image"]), agreed],
        [read_image(RETINA), read_image(results / f"{RETINA.stem}_overlay.jpg")],
    ]
    save_png(_contact_sheet(rows), picture)
    say(
        f"Look at {picture}: a phantom and where mask and annotation agree (white), differ by a vessel too much\n"
        f"(orange) or too little (blue); below, a real photograph and the vessels that the shipped weights find.\n"
        f"Figures: {output_dir / 'metrics.csv'}; training: {output_dir / 'history.csv'}."
    )


def _contact_sheet(rows: list[list[np.ndarray]], side: int = 640, gap: int = 8) -> np.ndarray:
    """Pictures of any size in a grid, each fitted into a square of ``side`` pixels."""
    squares = [ImageOps.pad(Image.fromarray(picture), (side, side), color=GREY) for row in rows for picture in row]
    shape = len(rows), len(rows[0])
    return montage([*map(np.asarray, squares)], grid_shape=shape, padding_width=gap, fill=GREY, channel_axis=-1)
