"""Seconds per training step, this project compared with stock MONAI, in one run.

Stock is MONAI's documented way: ``SupervisedTrainer`` with its own iteration, float32, contiguous tensors. Both train
the same network on the same patches with the same loss and optimizer, each in a process of its own, because
``train.json`` sets how its process keeps memory. The two take turns, so that any drift in the machine's speed affects
both; medians are printed. Seconds per step exclude the data, which is the same for both. The time of the shipped random
transforms is measured on cached phantoms, for ``train.json`` and ``any_camera.json``, and printed beside the shipped
step of each.

    python tests/benchmarks/train_throughput.py --widths 16 32 64
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents

from drive_seg.configs import bundle_root, config_files
from drive_seg.devices import best_device, fast_dtype
from drive_seg.engines import TrainingStep
from drive_seg.inference import PrecisionInferer
from drive_seg.losses import DiceCELoss
from drive_seg.memory import keep_freed_memory
from drive_seg.networks import UNet
from drive_seg.phantom import write_phantom_dataset
from drive_seg.workflows import quiet

PARTS = ("forward", "loss", "backward", "step")


def make_trainer(width: int, size: int, batch: int, ours: bool) -> tuple[SupervisedTrainer, dict[str, list[float]]]:
    """A trainer that does one step per ``run``, and the times of its parts."""
    device = best_device()
    torch.manual_seed(0)
    network = UNet(base_channels=width).to(device)
    if ours:
        network = network.to(memory_format=torch.channels_last)
    images = torch.randn(batch, 3, size, size)
    labels = (torch.rand(batch, 1, size, size) > 0.9).float()
    trainer = SupervisedTrainer(
        device=device,
        max_epochs=1,
        train_data_loader=[{"image": images, "label": labels}],
        network=network,
        loss_function=DiceCELoss(),
        optimizer=torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, nesterov=True),
        inferer=PrecisionInferer() if ours else None,
        iteration_update=TrainingStep() if ours else None,
        decollate=False,
    )
    times: dict[str, list[float]] = {part: [] for part in PARTS}
    last = [0.0]

    def lap(part: str | None) -> Any:
        def note(engine: Any) -> None:
            if device.type == "cuda":
                torch.cuda.synchronize()
            now = time.perf_counter()
            if part is not None:
                times[part].append(now - last[0])
            last[0] = now

        return note

    trainer.add_event_handler(Events.ITERATION_STARTED, lap(None))
    trainer.add_event_handler(IterationEvents.FORWARD_COMPLETED, lap("forward"))
    trainer.add_event_handler(IterationEvents.LOSS_COMPLETED, lap("loss"))
    trainer.add_event_handler(IterationEvents.BACKWARD_COMPLETED, lap("backward"))
    trainer.add_event_handler(IterationEvents.MODEL_COMPLETED, lap("step"))
    return trainer, times


def matrix_peak(dtype: torch.dtype, size: int = 2048, repeats: int = 8) -> float:
    """Multiply-adds per second, in 1e12, of a square matrix product: the best that convolutions could reach."""
    device = best_device()
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        (a @ b).sum().item()
        seconds.append(time.perf_counter() - begun)
    return size**3 / min(seconds) / 1e12


def multiply_adds(width: int, size: int) -> float:
    """Multiply-adds of a forward pass over an image of ``size``², counted from the convolutions' shapes."""
    counted = [0.0]

    def count(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        weights = module.weight.numel()
        pixels = inputs[0][0, 0].numel() if isinstance(module, torch.nn.ConvTranspose2d) else output[0, 0].numel()
        counted[0] += weights * pixels

    network = UNet(base_channels=width).eval()
    for module in network.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
            module.register_forward_hook(count)
    with torch.inference_mode():
        network(torch.zeros(1, 3, size, size))
    return counted[0]


class Alone:
    """A trainer in a process of its own that does steps on request."""

    def __init__(self, width: int, size: int, batch: int, ours: bool) -> None:
        self.pool = ProcessPoolExecutor(1, get_context("spawn"), _start, (width, size, batch, ours))

    def step(self) -> dict[str, float]:
        """Do a step; return the seconds of its parts."""
        return self.pool.submit(_step).result()

    def close(self) -> float:
        """End the process; return its peak memory in MiB: the GPU's, or its own on Linux; NaN elsewhere."""
        peak = self.pool.submit(_peak_mib).result()
        self.pool.shutdown()
        return peak


_own: list[Any] = []
"""The trainer of this process and the times it records."""


def _start(width: int, size: int, batch: int, ours: bool) -> None:
    quiet()
    if ours:
        keep_freed_memory()
    _own[:] = make_trainer(width, size, batch, ours)


def _step() -> dict[str, float]:
    trainer, times = _own
    trainer.state.epoch = trainer.state.iteration = 0
    trainer.run()
    return {part: seconds[-1] for part, seconds in times.items()}


def _peak_mib() -> float:
    if best_device().type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    if not sys.platform.startswith("linux"):
        return float("nan")
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def config(names: list[str], dataset: Path, **overrides: Any) -> ConfigParser:
    """The shipped configs for a training on the dataset."""
    parser = ConfigParser()
    parser.read_config(config_files(bundle_root(), *names))
    parser.update({"bundle_root": str(bundle_root()), "dataset_dir": str(dataset), **overrides})
    return parser


def seconds_a_patch(parser: ConfigParser, repeats: int = 60) -> float:
    """Mean seconds from cached photograph to patch; not the median, because some transforms are rare."""
    dataset = parser.get_parsed_content("train::dataset")
    for index in range(len(dataset)):
        dataset[index]
    begun = time.perf_counter()
    for number in range(repeats):
        dataset.set_epoch(number)
        dataset[number % len(dataset)]
    return (time.perf_counter() - begun) / repeats


def median_parts(steps: list[dict[str, float]]) -> dict[str, float]:
    """Median seconds of each part, excluding the first two steps."""
    return {part: statistics.median(step[part] for step in steps[2:]) for part in PARTS}


def print_steps(options: argparse.Namespace, dataset: Path) -> None:
    """Print the table of training steps, one row per width."""
    device = best_device()
    dtype = fast_dtype(device)
    peak = matrix_peak(dtype)
    data = options.batch * seconds_a_patch(config(["train"], dataset, patch_size=[options.size] * 2))
    print(f"{device}, {torch.get_num_threads()} threads, {dtype}, matrix peak {peak:.2f} Tmadd/s")
    print(f"batch {options.batch} of {options.size}²; medians of {options.steps} steps; memory is each one's own peak")
    print("| base_channels | stock s/step | ours s/step | ratio | data | " + " | ".join(PARTS), end="")
    print(" | of peak | stock MiB | ours MiB |")
    print("| --- " * (8 + len(PARTS)) + "|")
    for width in options.widths:
        trainers = {ours: Alone(width, options.size, options.batch, ours) for ours in (False, True)}
        steps: dict[bool, list[dict[str, float]]] = {ours: [] for ours in trainers}
        for _ in range(options.steps + 2):
            for ours, trainer in trainers.items():
                steps[ours].append(trainer.step())
        medians = {ours: median_parts(each) for ours, each in steps.items()}
        stock, ours_total = (sum(medians[ours].values()) for ours in (False, True))
        work = 3 * options.batch * multiply_adds(width, options.size)  # a backward pass costs two forward passes
        split = " | ".join(f"{medians[True][part]:.3f}" for part in PARTS)
        memory = " | ".join(f"{trainer.close():.0f}" for trainer in trainers.values())
        print(
            f"| {width} | {stock:.3f} | {ours_total:.3f} | {stock / ours_total:.2f} | {data:.3f} | {split} "
            f"| {work / ours_total / peak / 1e12:.0%} | {memory} |",
            flush=True,
        )


def print_data(options: argparse.Namespace, dataset: Path) -> None:
    """Print the cost of the shipped random transforms beside the shipped step, one row per config."""
    print("\n| config | batch | step without data, s | data, ms a patch | data, s a step | share of both |")
    print("| --- | --- | --- | --- | --- | --- |")
    for names in (["train"], ["train", "any_camera"]):
        shipped = config(names, dataset)
        width, batch, (size, _) = (shipped.get(key) for key in ("base_channels", "batch_size", "patch_size"))
        trainer = Alone(width, size, batch, ours=True)
        step = sum(median_parts([trainer.step() for _ in range(options.steps + 2)]).values())
        trainer.close()
        patch = seconds_a_patch(shipped)
        data = batch * patch
        print(
            f"| {names[-1]}.json | {batch} of {size}² | {step:.3f} | {patch * 1e3:.1f} | {data:.3f} "
            f"| {data / (data + step):.0%} |",
            flush=True,
        )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64], help="base_channels to try")
    parser.add_argument("--size", type=int, default=256, help="patch side, pixels")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=12, help="timed steps each, after two that are not")
    options = parser.parse_args()

    quiet()
    keep_freed_memory()  # for the data, as in the shipped training
    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder)
        write_phantom_dataset(dataset, training=5, test=1, seed=0, height=700, width=720)
        print_steps(options, dataset)
        print_data(options, dataset)


if __name__ == "__main__":
    main()
