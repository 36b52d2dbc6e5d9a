"""Photographs per second, from the file to the written pictures, compared with the bare network's speed.

    .venv/bin/python tests/benchmarks/predict_throughput.py --checkpoint bundle/models/model.pt

Prints two tables in Markdown. The first has, for each engine, photographs of DRIVE's size per second through
``drive-seg predict``, with its default output and with masks only, and through the network alone, all in one process
and run; and the peak memory for few and for many photographs. The second has, for sizes from 0.3 to 33 megapixels, each
in a process of its own, the seconds and memory for one photograph, cold start included, and the seconds per megapixel
in a folder of several. Further ``--key value`` pairs, such as ``--adaptation 0``, override ``inference.json``.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from drive_seg.configs import bundle_root, parse_overrides
from drive_seg.phantom import make_phantom

MASKS_ALONE = {"pictures": ["vessels"], "measure": False}
SIZES = {"0.3": (584, 565), "1": (1000, 1000), "8": (2336, 3504), "33": (4700, 7050)}
FORWARDS = 60
"""Runs of the bare network, before and again after the folder, because a machine's speed drifts."""

FOLDERS = {"0.3": 100, "1": 60, "8": 20, "33": 10}
"""Number of photographs in a folder by size, for seconds per megapixel."""


def measure(folder: Path, settings: dict[str, Any], bare: bool) -> dict[str, float]:
    """Seconds and memory for one folder in this process."""
    begun = time.perf_counter()
    import torch

    import drive_seg
    from drive_seg.predict import segment_photographs

    with tempfile.TemporaryDirectory() as out:
        count = len(list(folder.iterdir()))
        failed = segment_photographs(bundle_root(), [folder], Path(out), settings)
        assert not failed, failed
        whole = time.perf_counter() - begun
        with tempfile.TemporaryDirectory() as again:
            begun = time.perf_counter()
            segment_photographs(bundle_root(), [folder], Path(again), settings)
            warm = time.perf_counter() - begun
    result = {"photographs": count, "cold_s": whole, "warm_s": warm}
    result["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if bare:
        segment = drive_seg.load(**settings)
        prepared = segment._prepare({"image": str(next(folder.iterdir()))})
        seconds: list[float] = []

        @torch.inference_mode()
        def forward() -> None:
            for _ in range(FORWARDS):
                begun = time.perf_counter()
                segment._predict(prepared)
                seconds.append(time.perf_counter() - begun)

        forward()
        with tempfile.TemporaryDirectory() as out:
            begun = time.perf_counter()
            segment_photographs(bundle_root(), [folder], Path(out), {**settings, **MASKS_ALONE})
            result["masks_s"] = time.perf_counter() - begun
        forward()
        result["forward_s"] = float(np.median(seconds))
    return result


def photographs(folder: Path, count: int, height: int, width: int) -> Path:
    """A folder of phantoms of one size; as drawing is slow, only three are drawn, and large ones are enlarged."""
    folder.mkdir()
    drawn = [make_phantom(seed, min(height, 700), min(height, 700) * width // height).image for seed in range(3)]
    for number in range(count):
        picture = Image.fromarray(drawn[number % 3]).resize((width, height), Image.Resampling.BILINEAR)
        picture.save(folder / f"{number:04d}.jpg", quality=92)
    return folder


def in_a_process(folder: Path, settings: dict[str, Any], engine: str, bare: bool = False) -> dict[str, float]:
    """``measure`` in a process of its own, so that its memory is measured alone."""
    words = [
        sys.executable,
        "-W",
        "ignore",
        __file__,
        "--measure",
        str(folder),
        json.dumps({**settings, "engine": engine}),
    ]
    done = subprocess.run([*words, *(["bare"] if bare else [])], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=str(bundle_root() / "models" / "model.pt"), help="weights")
    parser.add_argument("--count", type=int, default=100, help="photographs of DRIVE's size")
    parser.add_argument("--engines", nargs="+", default=["torch", "openvino"])
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    arguments, further = parser.parse_known_args()
    if arguments.measure:
        folder, values, *bare = arguments.measure
        print(json.dumps(measure(Path(folder), json.loads(values), bool(bare))))
        return
    settings = {"checkpoint": arguments.checkpoint, **parse_overrides(further)}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        many = photographs(root / "many", arguments.count, *SIZES["0.3"])
        few = photographs(root / "few", 5, *SIZES["0.3"])
        print(f"| engine | everything, /s | masks alone, /s | network, /s | share | MiB, 5 | MiB, {arguments.count} |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for engine in arguments.engines:
            in_a_process(few, settings, engine)  # converts the network where that is needed
            small, large = (in_a_process(folder, settings, engine, True) for folder in (few, many))
            rate, masks = (large["photographs"] / large[key] for key in ("warm_s", "masks_s"))
            bare = 1 / large["forward_s"]
            print(
                f"| {engine} | {rate:.1f} | {masks:.1f} | {bare:.1f} | {rate / bare:.2f}, {masks / bare:.2f} "
                f"| {small['peak_mib']:.0f} | {large['peak_mib']:.0f} |",
                flush=True,
            )
        print("\n| megapixels | engine | cold start, s | again, s | MiB | in a folder, s per megapixel | MiB |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for name, (height, width) in SIZES.items():
            one = photographs(root / f"one{name}", 1, height, width)
            several = photographs(root / f"several{name}", FOLDERS[name], height, width)
            for engine in arguments.engines:
                alone, each = (in_a_process(folder, settings, engine) for folder in (one, several))
                pixels = height * width / 1e6
                per_megapixel = each["warm_s"] / each["photographs"] / pixels
                print(
                    f"| {pixels:.1f} | {engine} | {alone['cold_s']:.2f} | {alone['warm_s']:.2f} "
                    f"| {alone['peak_mib']:.0f} | {per_megapixel:.3f} | {each['peak_mib']:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
