"""The cost of bad light, optics and files: validation photographs are altered, segmented and scored.

    .venv/bin/python tests/benchmarks/altered_photographs.py --dataset-dir data/CHASE_DB1 data/HRF

Prints a table in Markdown: for each alteration and dataset, Dice against the annotation, inside the field of view,
per-image mean, threshold 0.5, with one column for each checkpoint and share of adaptation. No test image is read.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from statistics import mean

import numpy as np
from annotated import Annotated, dice, validation_cases
from PIL import Image, ImageFilter

import drive_seg
from drive_seg.configs import bundle_root
from drive_seg.fov import fov_box, fov_diameter
from drive_seg.workflows import quiet


def tone(gamma: float) -> Callable[[Annotated], np.ndarray]:
    """Another tone curve, the same for all channels."""
    return lambda case: (255 * (case.photograph / 255) ** gamma).round().astype(np.uint8)


def gain(*of_channels: float) -> Callable[[Annotated], np.ndarray]:
    """Each channel multiplied by a number."""
    return lambda case: (case.photograph * np.array(of_channels)).clip(0, 255).round().astype(np.uint8)


def channel_alone(channel: int) -> Callable[[Annotated], np.ndarray]:
    """Grey, from one channel; green is much like red-free photographs."""
    return lambda case: np.repeat(case.photograph[..., channel : channel + 1], 3, axis=2)


def lit(least: float, across: bool) -> Callable[[Annotated], np.ndarray]:
    """Light that falls off to a share of itself, from left to right or from the centre to the rim."""

    def alter(case: Annotated) -> np.ndarray:
        rows, columns = fov_box(case.fov)
        radius = fov_diameter(case.fov) / 2
        down, right = np.indices(case.fov.shape, dtype=np.float32)
        right = (right - (columns.start + columns.stop) / 2) / radius
        down = (down - (rows.start + rows.stop) / 2) / radius
        away = (1 + right) / 2 if across else down**2 + right**2
        light = 1 - (1 - least) * away.clip(0, 1)
        return (case.photograph * light[..., None]).round().astype(np.uint8)

    return alter


def blurred(share: float) -> Callable[[Annotated], np.ndarray]:
    """Out of focus: blurred by a Gaussian, whose width is a share of the field of view's diameter."""

    def alter(case: Annotated) -> np.ndarray:
        blur = ImageFilter.GaussianBlur(share * fov_diameter(case.fov))
        return np.array(Image.fromarray(case.photograph).filter(blur))

    return alter


def noisy(deviation: float) -> Callable[[Annotated], np.ndarray]:
    """Independent Gaussian noise in every pixel and channel, in grey levels."""

    def alter(case: Annotated) -> np.ndarray:
        noise = np.random.default_rng(0).normal(0, deviation, case.photograph.shape)
        return (case.photograph + noise).clip(0, 255).round().astype(np.uint8)

    return alter


def as_jpeg(quality: int) -> Callable[[Annotated], np.ndarray]:
    """Saved as a JPEG file."""

    def alter(case: Annotated) -> np.ndarray:
        file = io.BytesIO()
        Image.fromarray(case.photograph).save(file, "JPEG", quality=quality)
        return np.array(Image.open(file))

    return alter


ALTERATIONS: dict[str, Callable[[Annotated], np.ndarray]] = {
    "as they are": lambda case: case.photograph,
    "green channel alone": channel_alone(1),
    "red channel alone": channel_alone(0),
    "blue 0.4 times as bright": gain(1, 1, 0.4),
    "gamma 0.5": tone(0.5),
    "gamma 2": tone(2),
    "light falls to 0.4 at the rim": lit(0.4, across=False),
    "light falls to 0.15 at the rim": lit(0.15, across=False),
    "light falls to 0.3 from left to right": lit(0.3, across=True),
    "blurred by 1/1000 of the diameter": blurred(0.001),
    "blurred by 2/1000 of the diameter": blurred(0.002),
    "noise of 5 grey levels": noisy(5),
    "noise of 10 grey levels": noisy(10),
    "JPEG of quality 30": as_jpeg(30),
}


def main() -> None:
    """Segment, score and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset-dir", nargs="+", required=True, help="datasets in the DRIVE layout, with FOV masks")
    parser.add_argument("--checkpoint", nargs="+", default=[str(bundle_root() / "models" / "model.pt")])
    parser.add_argument("--adaptation", type=float, nargs="+", default=[0.5, 0.0])
    arguments = parser.parse_args()
    quiet()
    cases = {folder: validation_cases(folder) for folder in arguments.dataset_dir}
    ways = [(checkpoint, share) for checkpoint in arguments.checkpoint for share in arguments.adaptation]
    segmenters = [drive_seg.load(checkpoint, adaptation=share) for checkpoint, share in ways]
    columns = [f"{folder}, {checkpoint}, {share}" for folder in cases for checkpoint, share in ways]
    print(f"| | {' | '.join(columns)} |")
    print("| --- |" + " --- |" * len(columns))
    for name, alter in ALTERATIONS.items():
        altered = [[case._replace(photograph=alter(case)) for case in several] for several in cases.values()]
        scores = [mean(dice(segment, case) for case in several) for several in altered for segment in segmenters]
        print(f"| {name} | {' | '.join(f'{score:.4f}' for score in scores)} |", flush=True)


if __name__ == "__main__":
    main()
