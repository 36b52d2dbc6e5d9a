"""Training steps a second, this project's against stock MONAI's, in one run.

Stock is MONAI's documented way: ``SupervisedTrainer`` with its own iteration, float32, contiguous tensors. Both train
the same network on the same patches with the same loss and optimizer. The two take turns, so that a machine whose
speed drifts slows both; medians are printed.

    python tests/benchmarks/train_throughput.py --widths 16 32 64
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from typing import Any

import torch
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents

from drive_seg.distributed import best_device
from drive_seg.engines import TrainingStep, fast_dtype
from drive_seg.inference import PrecisionInferer
from drive_seg.losses import DiceCELoss
from drive_seg.networks import UNet

PARTS = ("forward", "loss", "backward", "step")


def make_trainer(width: int, size: int, batch: int, ours: bool) -> tuple[SupervisedTrainer, dict[str, list[float]]]:
    """A trainer that does one step a ``run`` and times its parts."""
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

    from ignite.engine import Events

    trainer.add_event_handler(Events.ITERATION_STARTED, lap(None))
    trainer.add_event_handler(IterationEvents.FORWARD_COMPLETED, lap("forward"))
    trainer.add_event_handler(IterationEvents.LOSS_COMPLETED, lap("loss"))
    trainer.add_event_handler(IterationEvents.BACKWARD_COMPLETED, lap("backward"))
    trainer.add_event_handler(IterationEvents.MODEL_COMPLETED, lap("step"))
    return trainer, times


def matrix_peak(dtype: torch.dtype, size: int = 2048, repeats: int = 8) -> float:
    """Multiply-adds a second, in 1e12, of a square matrix product: what the convolutions could reach at best."""
    device = best_device()
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        (a @ b).sum().item()
        seconds.append(time.perf_counter() - begun)
    return size**3 / min(seconds) / 1e12


def multiply_adds(width: int, size: int) -> float:
    """Multiply-adds of one forward pass over an image of ``size``², counted from the convolutions' shapes."""
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


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64], help="base_channels to try")
    parser.add_argument("--size", type=int, default=256, help="patch side, pixels")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6, help="timed steps each, after two that are not")
    options = parser.parse_args()

    device = best_device()
    dtype = fast_dtype(device)
    peak = matrix_peak(dtype)
    print(f"{device}, {torch.get_num_threads()} threads, {dtype}, matrix peak {peak:.2f} Tmadd/s")
    print(
        f"batch {options.batch} of {options.size}²; medians of {options.steps} steps; MB is the process's peak so far"
    )
    print("| base_channels | stock s/step | ours s/step | ratio | " + " | ".join(PARTS) + " | of peak | MB |")
    print("| --- " * (6 + len(PARTS)) + "|")
    for width in options.widths:
        trainers = {ours: make_trainer(width, options.size, options.batch, ours) for ours in (False, True)}
        for _ in range(options.steps + 2):
            for trainer, _ in trainers.values():
                trainer.state.epoch = trainer.state.iteration = 0
                trainer.run()
        medians = {
            ours: {part: statistics.median(values[2:]) for part, values in times.items()}
            for ours, (_, times) in trainers.items()
        }
        stock, ours_total = (sum(medians[ours].values()) for ours in (False, True))
        work = 3 * options.batch * multiply_adds(width, options.size)  # backward costs two forward passes
        split = " | ".join(f"{medians[True][part]:.3f}" for part in PARTS)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(
            f"| {width} | {stock:.3f} | {ours_total:.3f} | {stock / ours_total:.2f} | {split} "
            f"| {work / ours_total / peak / 1e12:.0%} | {memory} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
