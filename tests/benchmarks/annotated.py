"""Annotated photographs of a dataset and a segmenter's Dice on them, for benchmarks of the weights."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from drive_seg.data import load_datalist
from drive_seg.metrics import confusion
from drive_seg.readers import read_image
from drive_seg.segmenter import Segmenter

__all__ = ["Annotated", "annotated_cases", "dice", "validation_cases"]


class Annotated(NamedTuple):
    """A photograph, (H, W, 3), uint8; its annotation and its field of view, both (H, W), bool."""

    photograph: np.ndarray
    label: np.ndarray
    fov: np.ndarray


def annotated_cases(dataset_dir: str, section: str) -> list[tuple[str, Annotated]]:
    """Case ids and cases in a section of a dataset in the DRIVE layout with FOV masks."""
    return [
        (
            case["case_id"],
            Annotated(read_image(case["image"]), *(read_image(case[key], "binary") > 0 for key in ("label", "fov"))),
        )
        for case in load_datalist(dataset_dir, section, {"label": "1st_manual"})
    ]


def validation_cases(dataset_dir: str) -> list[Annotated]:
    """The validation cases, the only ones that choices may be based on."""
    return [case for _, case in annotated_cases(dataset_dir, "validation")]


def dice(segment: Segmenter, case: Annotated) -> float:
    """Dice inside the field of view, 0 to 1."""
    return confusion(segment(case.photograph, case.fov).mask, case.label, case.fov).scores()["dice"]
