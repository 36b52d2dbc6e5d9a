"""The pictures of the model card: a photograph beside its vessels, and where the weights fail.

    .venv/bin/python tests/benchmarks/card_pictures.py --dataset-dir data/CHASE_DB1 data/HRF --output-dir bundle/docs

``retina.jpg`` is scikit-image's photograph of that name and its overlay. ``failures.jpg`` has a column for each group
of test images, those of HRF grouped by name ending. It shows, in the image with the lowest Dice, the square with the
largest share of errors relative to vessels: the photograph above, agreement with the annotation below. Prints which
images these are.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import skimage.data
from annotated import Annotated, annotated_cases
from PIL import Image
from scipy import ndimage

import drive_seg
from drive_seg.configs import bundle_root
from drive_seg.fov import fov_diameter
from drive_seg.metrics import confusion
from drive_seg.pictures import agreement, overlay, save_jpeg
from drive_seg.segmenter import Segmenter
from drive_seg.workflows import quiet

SIDE, GAP = 420, 8


def beside(pictures: list[np.ndarray], axis: int) -> np.ndarray:
    """Pictures (H, W, 3), uint8, in a row (axis 1) or column (axis 0), with white between them."""
    shape = [3, 3, 3]
    shape[axis], shape[1 - axis] = GAP, pictures[0].shape[1 - axis]
    white = np.full(shape, 255, np.uint8)
    return np.concatenate([part for picture in pictures for part in (white, picture)][1:], axis=axis)


def worst_square(mask: np.ndarray, case: Annotated) -> tuple[slice, slice]:
    """Worst square a third of the field of view wide, inside the picture, mostly retina, with enough vessels."""
    side = round(fov_diameter(case.fov) / 3)
    half = side // 2

    def shares(pixels: np.ndarray) -> np.ndarray:
        whole = ndimage.uniform_filter(pixels.astype(np.float32), side, mode="constant")
        return whole[half : whole.shape[0] - half, half : whole.shape[1] - half]

    vessels = shares((case.label | (mask > 0)) & case.fov)
    errors = shares((case.label != (mask > 0)) & case.fov)
    usable = (shares(case.fov) > 0.7) & (vessels > 0.05)
    row, column = np.unravel_index(np.where(usable, errors / np.maximum(vessels, 1e-6), -1).argmax(), vessels.shape)
    return slice(int(row), int(row) + side), slice(int(column), int(column) + side)


def failures(segment: Segmenter, folders: list[str]) -> np.ndarray:
    """The picture of failures, with a column for each group of test images."""
    groups: dict[str, list[tuple[float, str, Annotated, np.ndarray]]] = defaultdict(list)
    for folder in folders:
        for name, case in annotated_cases(folder, "test"):
            mask = segment(case.photograph, case.fov).mask
            score = confusion(mask, case.label, case.fov).scores()["dice"]
            group = name.partition("_")[2] if Path(folder).name == "HRF" else Path(folder).name
            groups[group].append((score, name, case, mask))
    columns = []
    for group, several in groups.items():
        score, name, case, mask = min(several, key=lambda entry: entry[0])
        print(f"{group}: {name}, Dice {score:.3f}", flush=True)
        square = worst_square(mask, case)
        drawn = agreement(mask, case.label, case.fov)
        tiles = [
            np.asarray(Image.fromarray(picture[square]).resize((SIDE, SIDE), resample))
            for picture, resample in ((case.photograph, Image.Resampling.LANCZOS), (drawn, Image.Resampling.BOX))
        ]
        columns.append(beside(tiles, 0))
    return beside(columns, 1)


def main() -> None:
    """Segment and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset-dir", nargs="+", required=True, help="datasets in the DRIVE layout, with FOV masks")
    parser.add_argument("--checkpoint", default=str(bundle_root() / "models" / "model.pt"))
    parser.add_argument("--output-dir", type=Path, required=True, help="where the pictures go")
    arguments = parser.parse_args()
    quiet()
    segment = drive_seg.load(arguments.checkpoint)
    retina = skimage.data.retina()
    pair = [retina, overlay(retina, segment(retina).mask)]
    small = [np.asarray(Image.fromarray(picture).resize((600, 600), Image.Resampling.LANCZOS)) for picture in pair]
    save_jpeg(beside(small, 1), arguments.output_dir / "retina.jpg", quality=90)
    save_jpeg(failures(segment, arguments.dataset_dir), arguments.output_dir / "failures.jpg", quality=85)


if __name__ == "__main__":
    main()
