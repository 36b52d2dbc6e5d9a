"""The benefit of letting batch normalisation adapt to the photograph, by share and by size of the retina.

    .venv/bin/python tests/benchmarks/adaptation.py --dataset-dir data/CHASE_DB1 data/HRF \\
        --checkpoint bundle/models/model.pt

Prints a table in Markdown: for each checkpoint and share, Dice of the validation photographs against the annotation,
inside the field of view, per-image mean, threshold 0.5, at each diameter that the field of view is scaled to; float32
unless the machine has something faster. No test image is read.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean

from annotated import dice, validation_cases

import drive_seg
from drive_seg.adaptation import adapt_batch_norm
from drive_seg.configs import bundle_root
from drive_seg.segmenter import Segmenter
from drive_seg.workflows import quiet

AS_SHIPPED = [640, 1280]


def adapted(checkpoint: str, share: float, diameter: int, everywhere: bool) -> Segmenter:
    """A segmenter with a share of adaptation, in the layers that adapt as shipped or in all."""
    scale = [diameter, diameter] if diameter else AS_SHIPPED
    segment = drive_seg.load(checkpoint, engine="torch", fov_diameter=scale, adaptation=0.0 if everywhere else share)
    if everywhere:
        adapt_batch_norm(segment.network, share)
    return segment


def main() -> None:
    """Segment, score and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset-dir", nargs="+", required=True, help="datasets in the DRIVE layout, with FOV masks")
    parser.add_argument("--checkpoint", nargs="+", default=[str(bundle_root() / "models" / "model.pt")])
    parser.add_argument("--share", type=float, nargs="+", default=[0.0, 0.3, 0.5, 0.7, 1.0])
    parser.add_argument(
        "--diameter", type=int, nargs="+", default=[0, 640], help="pixels; 0: from 640 to 1280, as shipped"
    )
    parser.add_argument("--everywhere", action="store_true", help="in all layers")
    arguments = parser.parse_args()
    quiet()
    cases = {folder: validation_cases(folder) for folder in arguments.dataset_dir}
    columns = [(folder, diameter) for folder in cases for diameter in arguments.diameter]
    print(
        "| weights | share | " + " | ".join(f"{folder}, {pixels or 'as shipped'}" for folder, pixels in columns) + " |"
    )
    print("| --- | --- |" + " --- |" * len(columns))
    for checkpoint in arguments.checkpoint:
        for share in arguments.share:
            segmenters = {
                pixels: adapted(checkpoint, share, pixels, arguments.everywhere) for pixels in arguments.diameter
            }
            scores = [mean(dice(segmenters[pixels], case) for case in cases[folder]) for folder, pixels in columns]
            shown = " | ".join(f"{score:.4f}" for score in scores)
            print(f"| {Path(checkpoint).parent.name} | {share} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
