"""The benefit of enlarging small photographs before the network sees them.

    .venv/bin/python tests/benchmarks/small_photographs.py --dataset-dir data/CHASE_DB1 data/HRF

Validation photographs and their annotations are shrunk, by averaging pixels, until the field of view is as wide as
that of a low-resolution camera. The shipped weights segment them with several smallest values of ``fov_diameter``. A
table in Markdown gives the Dice against the shrunk annotation, inside the field of view, per-image mean, threshold 0.5.
No test image is read.
"""

from __future__ import annotations

import argparse
from statistics import mean

import numpy as np
from annotated import Annotated, dice, validation_cases
from PIL import Image

import drive_seg
from drive_seg.fov import fov_diameter
from drive_seg.workflows import quiet


def shrunk(case: Annotated, diameter: int) -> Annotated:
    """The case shrunk to a field of view of this diameter, in pixels."""
    scale = diameter / fov_diameter(case.fov)
    photograph = Image.fromarray(case.photograph)
    size = round(photograph.width * scale), round(photograph.height * scale)
    label, fov = (
        np.asarray(Image.fromarray(mask).convert("L").resize(size, Image.Resampling.BOX)) > 127
        for mask in (case.label, case.fov)
    )
    return Annotated(np.asarray(photograph.resize(size, Image.Resampling.BOX)), label, fov)


def main() -> None:
    """Segment, score and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset-dir", nargs="+", required=True, help="datasets in the DRIVE layout, with FOV masks")
    parser.add_argument("--diameter", type=int, default=540, help="of the shrunk field of view, pixels; DRIVE has 540")
    parser.add_argument("--smallest", type=int, nargs="+", default=[540, 640, 720, 800, 960])
    arguments = parser.parse_args()
    quiet()
    cases = {
        folder: [shrunk(case, arguments.diameter) for case in validation_cases(folder)]
        for folder in arguments.dataset_dir
    }
    print("| enlarged to, pixels | " + " | ".join(f"{name}, {len(cases[name])} images" for name in cases) + " |")
    print("| --- |" + " --- |" * len(cases))
    for smallest in arguments.smallest:
        segment = drive_seg.load(fov_diameter=[smallest, max(smallest, 1280)])
        scores = [mean(dice(segment, case) for case in several) for several in cases.values()]
        print(f"| {smallest} | " + " | ".join(f"{score:.4f}" for score in scores) + " |", flush=True)


if __name__ == "__main__":
    main()
