"""What it is worth to enlarge small photographs before the network sees them.

    .venv/bin/python tests/benchmarks/small_photographs.py --dataset-dir data/CHASE_DB1 data/HRF

Validation photographs are shrunk, with their annotations, until the field of view is as wide as that of a camera of
low resolution, by averaging pixels. The shipped weights segment them with several smallest values of ``fov_diameter``,
and a table in Markdown says the Dice against the shrunk annotation, inside the field of view, per-image mean,
threshold 0.5. No test image is read.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from statistics import mean

import numpy as np
from PIL import Image

import drive_seg
from drive_seg.data import load_datalist
from drive_seg.fov import fov_diameter
from drive_seg.metrics import confusion
from drive_seg.readers import read_image
from drive_seg.segmenter import Segmenter
from drive_seg.workflows import quiet

Pictures = tuple[np.ndarray, np.ndarray, np.ndarray]


def shrunk(dataset_dir: str, diameter: int) -> Iterator[Pictures]:
    """Photograph (H, W, 3), annotation and field of view (H, W), of each validation case."""
    for case in load_datalist(dataset_dir, "validation", {"label": "1st_manual"}):
        photograph = Image.fromarray(read_image(case["image"]))
        masks = [Image.fromarray(read_image(case[key], "binary").squeeze() > 0) for key in ("label", "fov")]
        scale = diameter / fov_diameter(np.asarray(masks[1]))
        size = round(photograph.width * scale), round(photograph.height * scale)
        label, fov = (np.asarray(mask.convert("L").resize(size, Image.Resampling.BOX)) > 127 for mask in masks)
        yield np.asarray(photograph.resize(size, Image.Resampling.BOX)), label, fov


def score(segment: Segmenter, photograph: np.ndarray, label: np.ndarray, fov: np.ndarray) -> float:
    """Dice inside the field of view, 0 to 1."""
    return confusion(segment(photograph, fov).mask, label, fov).scores()["dice"]


def main() -> None:
    """Segment, score and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset-dir", nargs="+", required=True, help="datasets in the DRIVE layout, with FOV masks")
    parser.add_argument("--diameter", type=int, default=540, help="of the shrunk field of view, pixels; DRIVE has 540")
    parser.add_argument("--smallest", type=int, nargs="+", default=[540, 640, 720, 800, 960])
    arguments = parser.parse_args()
    quiet()
    cases = {folder: list(shrunk(folder, arguments.diameter)) for folder in arguments.dataset_dir}
    print("| enlarged to, pixels | " + " | ".join(f"{name}, {len(cases[name])} images" for name in cases) + " |")
    print("| --- |" + " --- |" * len(cases))
    for smallest in arguments.smallest:
        segment = drive_seg.load(fov_diameter=[smallest, max(smallest, 1280)])
        dice = [mean(score(segment, *pictures) for pictures in several) for several in cases.values()]
        print(f"| {smallest} | " + " | ".join(f"{value:.4f}" for value in dice) + " |", flush=True)


if __name__ == "__main__":
    main()
