"""The benefit of enlarging small photographs before the network sees them.

    .venv/bin/python tests/benchmarks/small_photographs.py --dataset-dir data/CHASE_DB1 data/HRF

Validation photographs are shrunk, by averaging pixels, until the field of view is as wide as that of a low-resolution
camera. The weights segment them with several smallest values of ``fov_diameter``. A table in Markdown gives the Dice
inside the field of view, per-image mean, threshold 0.5, against the annotation shrunk in two ways: by area, where a
pixel is vessel if vessels cover half of it, and as drawn, where no vessel is thinner than a pixel
(``shrink_annotation``). Vessels' share of the field of view stands beside them. No test image is read.
"""

from __future__ import annotations

import argparse
from statistics import mean
from typing import NamedTuple

import numpy as np
import torch
from annotated import Annotated, validation_cases
from PIL import Image

import drive_seg
from drive_seg.fov import fov_diameter
from drive_seg.metrics import confusion
from drive_seg.scale_to_fov import shrink_annotation
from drive_seg.segmenter import Segmenter
from drive_seg.workflows import quiet


class Shrunk(NamedTuple):
    """A small photograph, (H, W, 3), uint8; its annotation, shrunk in two ways, and its field of view, (H, W), bool."""

    photograph: np.ndarray
    by_area: np.ndarray
    as_drawn: np.ndarray
    fov: np.ndarray


def shrunk(case: Annotated, diameter: int) -> Shrunk:
    """The case shrunk to a field of view of this diameter, in pixels."""
    scale = diameter / fov_diameter(case.fov)
    photograph = Image.fromarray(case.photograph)
    size = round(photograph.width * scale), round(photograph.height * scale)
    by_area, fov = (
        np.asarray(Image.fromarray(mask).convert("L").resize(size, Image.Resampling.BILINEAR)) > 127
        for mask in (case.label, case.fov)
    )
    as_drawn = shrink_annotation(torch.from_numpy(case.label[None].astype(np.uint8)), size[::-1])[0].numpy() > 0
    return Shrunk(np.asarray(photograph.resize(size, Image.Resampling.BOX)), by_area, as_drawn, fov)


def scores(segment: Segmenter, cases: list[Shrunk]) -> tuple[float, float, float]:
    """Dice by area and as drawn, and the share of the field of view that is vessel in the masks; means over cases."""
    masks = [segment(case.photograph, case.fov).mask for case in cases]
    pairs = list(zip(masks, cases, strict=True))
    return (
        mean(confusion(mask, case.by_area, case.fov).scores()["dice"] for mask, case in pairs),
        mean(confusion(mask, case.as_drawn, case.fov).scores()["dice"] for mask, case in pairs),
        mean(float((mask[case.fov] > 0).mean()) for mask, case in pairs),
    )


def main() -> None:
    """Segment, score and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset-dir", nargs="+", required=True, help="datasets in the DRIVE layout, with FOV masks")
    parser.add_argument("--checkpoint", help="weights to try; by default those that are shipped")
    parser.add_argument("--diameter", type=int, default=540, help="of the shrunk field of view, pixels; DRIVE has 540")
    parser.add_argument("--smallest", type=int, nargs="+", default=[540, 640, 720, 800, 960])
    arguments = parser.parse_args()
    quiet()
    checkpoint = {} if arguments.checkpoint is None else {"checkpoint": arguments.checkpoint}
    cases = {}
    print("vessels' share of the field of view, annotations:")
    for folder in arguments.dataset_dir:
        annotated = validation_cases(folder)
        cases[folder] = [shrunk(case, arguments.diameter) for case in annotated]
        shares = {
            "as annotated": [case.label[case.fov] for case in annotated],
            "by area": [case.by_area[case.fov] for case in cases[folder]],
            "as drawn": [case.as_drawn[case.fov] for case in cases[folder]],
        }
        row = ", ".join(
            f"{mean(float(inside.mean()) for inside in several):.4f} {name}" for name, several in shares.items()
        )
        print(f"{folder}, {len(annotated)} images: {row}")
    print("| enlarged to, pixels | " + " | ".join(f"{name}: by area | as drawn | share" for name in cases) + " |")
    print("| --- |" + " --- | --- | --- |" * len(cases))
    for smallest in arguments.smallest:
        segment = drive_seg.load(fov_diameter=[smallest, max(smallest, 1280)], **checkpoint)
        row = [figure for several in cases.values() for figure in scores(segment, several)]
        print(f"| {smallest} | " + " | ".join(f"{figure:.4f}" for figure in row) + " |", flush=True)


if __name__ == "__main__":
    main()
