"""A network in PyTorch, ONNX Runtime and OpenVINO: seconds per image and agreement, measured in one run.

The image is scikit-image's photograph of a retina, prepared as in ``drive-seg predict``. The engines take turns, so
that any drift in the machine's speed affects all of them. Prints medians, as a table in Markdown.

    .venv/bin/python tests/benchmarks/engines.py
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import skimage.data
import torch

from drive_seg.checkpoints import load_weights, save_checkpoint
from drive_seg.configs import bundle_root, config_files
from drive_seg.export import FILE_NAMES, export_network
from drive_seg.inference import PrecisionInferer
from drive_seg.networks import UNet
from drive_seg.openvino_network import openvino_network
from drive_seg.scale_to_fov import resize
from drive_seg.segmenter import Segmenter
from drive_seg.workflows import quiet

Compute = Callable[[torch.Tensor], torch.Tensor]


def photograph(size: int) -> torch.Tensor:
    """The photograph, (1, 3, size, size), float32, normalised inside its field of view."""
    segmenter = Segmenter.from_config(config_files(bundle_root(), "inference"), {"bundle_root": str(bundle_root())})
    case = segmenter.preprocessing({"image": str(Path(skimage.data.data_dir) / "retina.jpg")})
    return resize(case["image"].as_tensor(), (size, size))[None]


def engines(network: UNet, exported: Path, threads: int) -> Iterator[tuple[str, Compute]]:
    """Name and function of each engine; prints which are not installed."""
    reference = copy.deepcopy(network)
    yield "PyTorch, float32", reference
    fast, inferer = copy.deepcopy(network).to(memory_format=torch.channels_last), PrecisionInferer()
    yield "PyTorch as `drive-seg predict` runs it", lambda image: inferer(image, fast)
    traced = torch.jit.load(exported / FILE_NAMES["torchscript"])
    yield "TorchScript, float32", traced
    if find_spec("onnxruntime") is None:
        print("ONNX Runtime is not installed")
    else:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(exported / FILE_NAMES["onnx"], options)
        name = session.get_inputs()[0].name
        yield "ONNX Runtime, float32", lambda image: torch.from_numpy(session.run(None, {name: image.numpy()})[0])
    if find_spec("openvino") is None:
        print("OpenVINO is not installed")
    else:
        yield "OpenVINO, float32", openvino_network(network, "float32")
        yield "OpenVINO as `drive-seg predict` runs it", openvino_network(network, "auto")


@torch.inference_mode()
def compare(network: UNet, width: int, title: str, image: torch.Tensor, rounds: int) -> None:
    """Print a row for each engine."""
    with tempfile.TemporaryDirectory() as temporary:
        weights = Path(temporary) / "model.pt"
        save_checkpoint(network.state_dict(), weights)
        settings = {"checkpoint": str(weights), "base_channels": width}
        with torch.inference_mode(False):
            list(export_network(bundle_root(), Path(temporary), settings))
        candidates = dict(engines(network, Path(temporary), torch.get_num_threads()))
    logits = {name: compute(image).float() for name, compute in candidates.items()}
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, compute in candidates.items():
            begun = time.perf_counter()
            compute(image)
            seconds[name].append(time.perf_counter() - begun)
    first = next(iter(candidates))
    inside = image.abs().sum(dim=1)[0] > 0
    vessels = {name: (result.softmax(dim=1)[0, 1] >= 0.5)[inside] for name, result in logits.items()}
    for name in candidates:
        median = statistics.median(seconds[name])
        ratio = statistics.median(seconds[first]) / median
        largest = (logits[name] - logits[first]).abs().max().item()
        other = (vessels[name] != vessels[first]).float().mean().item()
        print(f"| {title} | {name} | {median:.3f} | {ratio:.1f} | {largest:.1e} | {100 * other:.3f} |", flush=True)


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=576, help="height and width, pixels")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    quiet()
    image = photograph(arguments.size)
    shipped = load_weights(UNet(base_channels=16), bundle_root() / "models" / "model.pt").eval()
    torch.manual_seed(0)
    wide = UNet(base_channels=32).eval()
    print(f"{torch.get_num_threads()} threads, one image of {arguments.size}×{arguments.size}\n")
    print("| network | engine | seconds | times as fast | largest difference of a logit | other pixels, % |")
    print("| --- | --- | --- | --- | --- | --- |")
    compare(shipped, 16, "16 channels, shipped weights", image, arguments.rounds)
    compare(wide, 32, "32 channels, random weights", image, arguments.rounds)


if __name__ == "__main__":
    main()
