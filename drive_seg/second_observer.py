"""Reading the second observer's annotation, which is compared with the reference but never needed for a score."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import Transform

from drive_seg.arrays import like, without_metadata
from drive_seg.errors import DriveSegError, unwrapped

__all__ = ["SecondObserverd"]

_logger = logging.getLogger(__name__)


class SecondObserverd(Transform):
    """Reads the second observer's annotation in the first of several ways that succeeds, or leaves it out.

    Datasets of arteries and veins often have a second observer who drew vessels alone.

    Args:
        readings: transforms that read and check the annotation, in the order in which to try them.
        num_classes: number of classes, background included.
        ignore_index: value of vessels of unknown class. With several vessel classes, it becomes that of all vessels of
            an annotation that has only one value besides 0.
        key: the annotation's file, replaced by its class values, (1, H, W), uint8; a case may have none.
    """

    def __init__(
        self,
        readings: Sequence[Sequence[Callable[[dict[Hashable, Any]], Any]]],
        num_classes: int,
        ignore_index: int,
        key: str = "second",
    ) -> None:
        self.readings = readings
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.key = key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The case with its second annotation, or without it if no reading succeeds, which is logged."""
        case = dict(data)
        if self.key not in case:
            return case
        reasons = []
        for reading in self.readings:
            try:
                case = self._read(case, reading)
                break
            except DriveSegError as error:
                reasons.append(error)
        else:
            del case[self.key]
            _logger.warning("the second observer of case %s is left out: %s", case.get("case_id"), reasons[0])
        return case

    def _read(
        self, case: dict[Hashable, Any], reading: Sequence[Callable[[dict[Hashable, Any]], Any]]
    ) -> dict[Hashable, Any]:
        with unwrapped():
            for transform in reading:
                case = transform(case)
        values = without_metadata(case[self.key])
        if self.num_classes > 2 and len(values[values > 0].unique()) == 1:
            case[self.key] = like((values > 0).to(torch.uint8) * self.ignore_index, case[self.key])
        return case
