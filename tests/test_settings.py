"""What a resumed training is compared by."""

from __future__ import annotations

import operator
import re
from functools import partial
from typing import Any

import pytest
import torch
from monai.data import ImageReader, PILReader
from monai.handlers import IgniteMetricHandler
from monai.metrics import DiceMetric
from monai.transforms import Compose, EnsureTyped, Lambdad, LoadImaged, RandFlipd
from torch import nn

from drive_seg.losses import DiceCELoss
from drive_seg.networks import UNet
from drive_seg.readers import PhotographReader
from drive_seg.settings import described, network_described, where_they_differ


def val_dice(**arguments: Any) -> IgniteMetricHandler:
    return IgniteMetricHandler(metric_fn=DiceMetric(**arguments), output_transform=lambda output: output)


def load(reader: ImageReader, **arguments: Any) -> LoadImaged:
    return LoadImaged("label", reader=reader, **arguments)


@pytest.mark.parametrize(("one", "other"), [
    (DiceCELoss(), DiceCELoss(lambda_dice=0.5)),
    (Compose([RandFlipd("image", 0.5)]), Compose([RandFlipd("image", 0.25)])),
    ([torch.nn.ReLU()], [torch.nn.ELU()]),
    (torch.nn.functional.relu, torch.nn.functional.elu),
    (operator.add, operator.sub),
    (Lambdad("image", operator.neg), Lambdad("image", operator.pos)),
    (Lambdad("image", partial(pow, 2)), Lambdad("image", partial(pow, 3))),
    (Lambdad("image", partial(round, ndigits=2)), Lambdad("image", partial(round, ndigits=3))),
    (Lambdad("image", partial(operator.add, 1)), Lambdad("image", partial(operator.sub, 1))),
    (torch.nn.CrossEntropyLoss(torch.tensor([1.0, 2.0])), torch.nn.CrossEntropyLoss(torch.tensor([1.0, 3.0]))),
    (load(PhotographReader("binary")), load(PhotographReader("classes"))),
    (load(PhotographReader()), load(PhotographReader(), dtype=torch.uint8)),
    (load(PILReader(formats=["PNG"])), load(PILReader(formats=["TIFF"]))),
    (EnsureTyped("image", dtype=torch.float32), EnsureTyped("image", dtype=torch.float16)),
    ({"a": val_dice(include_background=True)}, {"a": val_dice(include_background=False)}),
])  # fmt: skip
def test_parts_that_differ(one: Any, other: Any) -> None:
    assert described(one) != described(other)


def test_optimizers_that_differ() -> None:
    weights = [torch.nn.Parameter(torch.zeros(1))]
    made = [torch.optim.AdamW(weights, eps=eps, amsgrad=amsgrad) for eps, amsgrad in ((1e-8, 0), (1e-7, 0), (1e-8, 1))]
    assert len({described(optimizer) for optimizer in [*made, torch.optim.Adam(weights)]}) == 4
    assert described(made[0]) == described(torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], amsgrad=0))


def test_the_same_made_twice() -> None:
    """No addresses and no random states."""
    for make in (val_dice, DiceCELoss, partial(RandFlipd, "image", 0.5), partial(Compose, [RandFlipd("image", 0.5)])):
        assert described(make()) == described(make())
    assert described(partial(operator.add, 1, second=object())) == "partial([add, 1], {second: object()})"


def test_lambdas_are_all_alike() -> None:
    """Whatever they compute, which depends on more than their code: a resumed training does not promise to see it."""
    one, other = (described(Lambdad("image", eval(f"lambda x: {number} * x"))) for number in (2, 3))
    assert one == other and "<lambda>" in one


def test_a_network_in_a_line() -> None:
    small = network_described(UNet(base_channels=2, depth=2))
    assert re.fullmatch(r"UNet, base_channels 2, depth 2, 1962 parameters, layers [0-9a-f]{8}", small), small
    assert network_described(UNet(base_channels=2, depth=2)) == small
    assert network_described(nn.SyncBatchNorm.convert_sync_batchnorm(UNet(base_channels=2, depth=2))) == small
    assert network_described(UNet(base_channels=2, depth=2, adaptation=0.5)) != small


def test_long_texts_are_shown_where_they_differ() -> None:
    assert where_they_differ("0.1", "0.2") == ("0.1", "0.2")
    one, other = where_they_differ("a" * 200 + "prob=0.5" + "b" * 200, "a" * 200 + "prob=0.25" + "b" * 200)
    assert "prob=0.5" in one and "prob=0.25" in other and max(len(one), len(other)) < 70
