"""How the measures of the shipped weights' masks compare with those of the annotations, and with themselves.

    python tests/benchmarks/measures.py --dataset-dir data/CHASE_DB1 data/HRF

For every test case, segmented as by ``drive-seg predict``: the measures of its mask over those of the annotation; the
change when the photograph is turned upside down, which is chance; and those of a copy with a field of view of 540
pixels, DRIVE's, in units of its diameter. Nothing is chosen by these figures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from annotated import annotated_cases
from PIL import Image

import drive_seg
from drive_seg.fov import fov_diameter
from drive_seg.measures import measure_vessels

SMALL = 540
"""Diameter of the field of view in DRIVE, pixels."""

IN_DIAMETERS = {"skeleton_length_px": 1, "calibre_mean_px": 1, "calibre_p50_px": 1, "length_density_per_px": -1}
"""Measures with a unit of length, and its power."""

SHOWN = (
    *("vessel_density_share", "skeleton_length_px", "calibre_mean_px", "calibre_p50_px", "branch_points"),
    *("end_points", "fractal_dimension", "tortuosity"),
)


def shrunk(photograph: np.ndarray, fov: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A copy with a field of view of ``SMALL`` pixels."""
    factor = SMALL / fov_diameter(fov)
    size = tuple(round(side * factor) for side in fov.shape[::-1])
    small = Image.fromarray(photograph).resize(size, Image.Resampling.BOX)
    return np.asarray(small), np.asarray(Image.fromarray(fov).resize(size, Image.Resampling.NEAREST))


def in_diameters(measures: dict[str, float], fov: np.ndarray) -> dict[str, float]:
    """Measures of which lengths are in diameters of the field of view."""
    diameter = fov_diameter(fov)
    return {name: value / diameter ** IN_DIAMETERS.get(name, 0) for name, value in measures.items()}


def main() -> None:
    """Print a table a dataset, and density and calibre by the groups that file names end in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset-dir", nargs="+", required=True, help="datasets in the DRIVE layout")
    datasets = parser.parse_args().dataset_dir
    segment = drive_seg.load()
    for dataset in datasets:
        found: dict[str, list[dict[str, float]]] = {"mask": [], "label": [], "turned": [], "small": []}
        cases = annotated_cases(dataset, "test")
        for _, (photograph, label, fov) in cases:
            turned, turned_fov = photograph[::-1, ::-1].copy(), fov[::-1, ::-1].copy()
            small, small_fov = shrunk(photograph, fov)
            for name, mask, within in (
                ("mask", segment(photograph, fov).mask, fov),
                ("label", label, fov),
                ("turned", segment(turned, turned_fov).mask, turned_fov),
                ("small", segment(small, small_fov).mask, small_fov),
            ):
                found[name].append(in_diameters(measure_vessels(mask, within), within))
        print(f"\n{Path(dataset).name}, {len(cases)} test photographs:\n")
        print("| measure | mask over annotation, mean | range | correlation | turned, % | 540 pixels over full size |")
        print("| --- | --- | --- | --- | --- | --- |")
        for name in SHOWN:
            of_mask, of_label, turned, small = (np.array([row[name] for row in rows]) for rows in found.values())
            ratio = of_mask / of_label
            change = 100 * np.abs(turned / of_mask - 1).mean()
            print(
                f"| `{name}` | {ratio.mean():.2f} | {ratio.min():.2f} to {ratio.max():.2f} | "
                f"{np.corrcoef(of_mask, of_label)[0, 1]:.2f} | {change:.1f} | {(small / of_mask).mean():.2f} |"
            )
        groups = {case_id.rpartition("_")[2] for case_id, _ in cases}
        if len(groups) < len(cases):
            print("\n| group | photographs | density of masks | of annotations | calibre, ‰ | of annotations, ‰ |")
            print("| --- | --- | --- | --- | --- | --- |")
            for group in sorted(groups):
                of_group = [number for number, (case_id, _) in enumerate(cases) if case_id.endswith(f"_{group}")]
                density, calibre = (
                    [
                        float(np.mean([found[source][number][name] for number in of_group]))
                        for source in ("mask", "label")
                    ]
                    for name in ("vessel_density_share", "calibre_mean_px")
                )
                print(
                    f"| {group} | {len(of_group)} | {density[0]:.4f} | {density[1]:.4f} | {1000 * calibre[0]:.2f} | "
                    f"{1000 * calibre[1]:.2f} |"
                )


if __name__ == "__main__":
    main()
