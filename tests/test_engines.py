"""The training step inside MONAI's own trainer."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.losses import DeepSupervisionLoss
from monai.networks.nets import SegResNetDS
from torch import nn

from drive_seg.engines import TrainingStep
from drive_seg.errors import DriveSegError
from drive_seg.inference import PrecisionInferer
from drive_seg.losses import DiceCELoss
from drive_seg.networks import UNet

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def images_and_labels(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(count, 3, 8, 9, generator=generator),
        torch.randint(0, 2, (count, 1, 8, 9), generator=generator),
    )


def network() -> nn.Module:
    """Without batch statistics, so that gradients of several batches add up to that of one."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))


def trainer_of(
    batches: Sequence[int],
    accumulation_steps: int = 1,
    max_gradient_norm: float | None = None,
    learning_rate: float = 0.5,
    precision: str = "float32",
    epochs: int = 1,
    momentum: float = 0.0,
    step: TrainingStep | None = None,
) -> SupervisedTrainer:
    """A trainer over the same images, in batches of the given sizes, for one or more epochs."""
    images, labels = images_and_labels(sum(batches))
    trained = network()
    sizes = list(batches)
    return SupervisedTrainer(
        device=CPU,
        max_epochs=epochs,
        train_data_loader=[
            {"image": image, "label": label}
            for image, label in zip(images.split(sizes), labels.split(sizes), strict=True)
        ],
        network=trained,
        optimizer=torch.optim.SGD(trained.parameters(), lr=learning_rate, momentum=momentum),
        loss_function=DiceCELoss(),
        inferer=PrecisionInferer(precision=precision),
        iteration_update=step or TrainingStep(max_gradient_norm),
        accumulation_steps=accumulation_steps,
        decollate=False,
    )


def trained(*args: Any, **kwargs: Any) -> torch.Tensor:
    trainer = trainer_of(*args, **kwargs)
    trainer.run()
    return weights(trainer.network)


def weights(network: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def moved(*args: Any, **kwargs: Any) -> float:
    return (trained(*args, **kwargs) - weights(network())).norm().item()


def by_hand(groups: Sequence[int], learning_rate: float = 0.5) -> torch.Tensor:
    """One plain step for each group of images."""
    images, labels = images_and_labels(sum(groups))
    trained = network()
    for image, label in zip(images.split(list(groups)), labels.split(list(groups)), strict=True):
        loss = DiceCELoss()(trained(image), label)
        gradients = torch.autograd.grad(loss, list(trained.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(trained.parameters(), gradients, strict=True):
                parameter -= learning_rate * gradient
    return weights(trained)


@pytest.mark.parametrize(("batches", "accumulation_steps", "groups"), [
    ([4], 1, [4]),
    ([2, 2, 2], 1, [2, 2, 2]),
    ([2, 2], 2, [4]),
    ([1, 1, 1, 1], 4, [4]),
    ([2, 2, 2, 2], 2, [4, 4]),
    ([2, 2, 2], 2, [4, 2]),  # the last batch is a group of its own and counts in full
    ([1, 1, 1, 1, 1], 3, [3, 2]),
    ([2, 2], 5, [4]),  # more steps than the epoch has
])  # fmt: skip
def test_a_step_is_that_of_its_whole_group(batches: list[int], accumulation_steps: int, groups: list[int]) -> None:
    torch.testing.assert_close(trained(batches, accumulation_steps), by_hand(groups), atol=1e-6, rtol=1e-5)


def test_no_group_reaches_into_the_next_epoch() -> None:
    steps: list[int] = []
    trainer = trainer_of([2, 2, 2], accumulation_steps=2, epochs=2)
    trainer.optimizer.register_step_post_hook(lambda *_: steps.append(trainer.state.iteration))
    trainer.run()
    assert steps == [2, 3, 5, 6]


def test_further_arguments_of_a_batch_go_to_the_inferer() -> None:
    trainer = trainer_of([2])
    prepare, seen = trainer.prepare_batch, []
    trainer.prepare_batch = lambda *args, **kwargs: (*prepare(*args, **kwargs), ("scale",), {"flip": True})
    inferer = trainer.inferer

    def infer(images: torch.Tensor, network: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append((args, kwargs))
        return inferer(images, network)

    trainer.inferer = infer
    trainer.run()
    assert seen == [(("scale",), {"flip": True})]


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_gradients_are_clipped_once_they_are_whole(precision: str, accumulation_steps: int) -> None:
    # At rate 1 a single step moves the weights by the gradient; clipped, by no more than the norm that is allowed.
    setting = {"learning_rate": 1.0, "accumulation_steps": accumulation_steps, "precision": precision}
    batches = [2] * accumulation_steps
    assert moved(batches, **setting) > 0.1
    assert moved(batches, max_gradient_norm=0.05, **setting) == pytest.approx(0.05, rel=1e-3)
    assert moved(batches, max_gradient_norm=100.0, **setting) == pytest.approx(moved(batches, **setting), rel=1e-4)


@pytest.mark.parametrize(("precision", "scaled", "tolerance"), [
    ("float32", False, 1e-6), ("bfloat16", False, 0.02), ("float16", True, 0.005),
])  # fmt: skip
def test_precision_is_the_inferers(precision: str, scaled: bool, tolerance: float) -> None:
    step = TrainingStep()
    trainer = trainer_of([2, 2], precision=precision, step=step)
    trainer.run()
    assert step.scaler is not None and step.scaler.is_enabled() == scaled
    assert all(parameter.dtype is torch.float32 for parameter in trainer.network.parameters())
    assert trainer.state.output["loss"].dtype is trainer.state.output["pred"].dtype is torch.float32
    torch.testing.assert_close(weights(trainer.network), by_hand([2, 2]), atol=tolerance, rtol=0)


def test_networks_with_deep_supervision() -> None:
    """They return several logits in training, the first at full size."""
    trainer = trainer_of([2])
    label = torch.randint(0, 2, (2, 1, 16, 24)).to(torch.uint8)
    trainer.data_loader = [{"image": torch.randn(2, 3, 16, 24), "label": label}]
    trainer.network = SegResNetDS(spatial_dims=2, init_filters=4, in_channels=3, out_channels=2, dsdepth=2)
    trainer.optimizer = torch.optim.SGD(trainer.network.parameters(), lr=0.5)
    trainer.loss_function = DeepSupervisionLoss(DiceCELoss())
    before = weights(trainer.network)
    trainer.run()
    assert isinstance(trainer.state.output["pred"], list) and not torch.equal(weights(trainer.network), before)


def test_output_and_events_are_those_of_monai() -> None:
    trainer = trainer_of([2, 2], accumulation_steps=2)
    trainer.network.eval()
    fired: list[str] = []
    for event in IterationEvents:
        trainer.add_event_handler(event, lambda engine, name=event.name: fired.append(name))
    trainer.run()
    assert fired == ["FORWARD_COMPLETED", "LOSS_COMPLETED", "BACKWARD_COMPLETED", "MODEL_COMPLETED"] * 2
    output = trainer.state.output
    assert set(output) == {"image", "label", "pred", "loss"}
    assert output["pred"].shape == (2, 2, 8, 9)
    torch.testing.assert_close(output["loss"], DiceCELoss()(output["pred"], output["label"]))
    assert trainer.network.training


@pytest.mark.parametrize(("value", "shown"), [(float("nan"), "nan"), (float("inf"), "(nan|inf)")])
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_a_loss_that_is_not_finite_changes_nothing(value: float, shown: str, accumulation_steps: int) -> None:
    trainer = trainer_of([2, 2, 2, 2], accumulation_steps=accumulation_steps, momentum=0.9)
    trainer.data_loader[2]["image"][0, 0, 3, 3] = value
    kept: dict[str, Any] = {}

    def keep(engine: Any) -> None:
        if engine.state.iteration == 2:
            kept["weights"] = weights(engine.network)
            kept["optimizer"] = copy.deepcopy(engine.optimizer.state_dict())

    trainer.add_event_handler(IterationEvents.MODEL_COMPLETED, keep)
    with pytest.raises(DriveSegError, match=f"^the loss became {shown} in epoch 1, iteration 3: expected a finite"):
        trainer.run()
    assert torch.equal(weights(trainer.network), kept["weights"])
    momenta = [state["state"][0]["momentum_buffer"] for state in (trainer.optimizer.state_dict(), kept["optimizer"])]
    assert torch.equal(*momenta)


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_gradient_that_is_not_finite_changes_nothing(clip: float | None) -> None:
    network = UNet(base_channels=2, depth=1, norm=None)
    before = weights(network)
    # The square root of nothing is finite, its slope is not.
    step = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[{"image": torch.rand(1, 3, 8, 8), "label": torch.zeros(1, 1, 8, 8)}],
        network=network,
        loss_function=lambda logits, label: (logits * 0).abs().sum().sqrt(),
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        iteration_update=TrainingStep(max_gradient_norm=clip),
        decollate=False,
    )
    with pytest.raises(DriveSegError, match=r"^the gradient became (nan|inf) in epoch 1, iteration 1: expected"):
        step.run()
    assert torch.equal(weights(network), before)


def test_gradients_that_are_never_finite_end_the_run_in_float16_too() -> None:
    """A step now and then is left out; without end it would train nothing."""
    step = TrainingStep()
    trainer = trainer_of([1] * 40, precision="float16", step=step)
    before = weights(trainer.network)
    for parameter in trainer.network.parameters():
        parameter.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(DriveSegError, match=r"^the gradient became nan in epoch 1, iteration 27: expected"):
        trainer.run()
    assert torch.equal(weights(trainer.network), before)


def test_the_scale_of_the_gradients_goes_on_where_it_was() -> None:
    """Larger scales overflow in other steps, which are then left out."""
    step = TrainingStep()
    trainer_of([2, 2], precision="float16", step=step).run()
    assert step.scaler is not None
    step.scaler.update(1024.0)
    state = step.state_dict()
    resumed = TrainingStep()
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state, "before the first step, too"
    trainer_of([2], precision="float16", step=resumed).run()
    assert resumed.scaler is not None and resumed.scaler.get_scale() == 1024.0
    assert resumed.state_dict()["_growth_tracker"] == state["_growth_tracker"] + 1


def test_without_a_scaler_there_is_no_state() -> None:
    step = TrainingStep()
    assert step.state_dict() == {}
    step.load_state_dict({})
    trainer_of([2], step=step).run()
    assert step.state_dict() == {}
