"""Records beside weights which cases they come from, and at which scale, so that misuse is noticed.

``model.json`` beside ``model.pt`` lists the photographs that trained the network and those that chose the epoch, by
name and size: a dataset may be moved, and another hospital's ``01.jpg`` is another photograph. ``fov_diameter`` is the
one of the training.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.utils import ensure_tuple

from drive_seg.files import write_text

__all__ = [
    "LearntCases",
    "another_scale",
    "case_described",
    "learnt_cases",
    "learnt_scale",
    "photograph_described",
    "write_learnt_cases",
]

ROLES = ("training", "validation")

Scale = int | Sequence[int] | None
"""A ``fov_diameter``: pixels, or the smallest and the largest, see ``drive_seg.transforms.ScaleToFOVd``."""


def photograph_described(case: Mapping[str, Any]) -> str:
    """The photograph of a case, such as ``21_training.tif, 381206 bytes``; the case id if there is no file."""
    image = case.get("image")
    if isinstance(image, (str, os.PathLike)) and Path(image).is_file():
        return f"{Path(image).name}, {Path(image).stat().st_size} bytes"
    return str(case.get("case_id"))


def case_described(case: Mapping[str, Any]) -> str:
    """The same, with the case's zoom, if it has one: ``…, zoom 0.5``."""
    return photograph_described(case) + (f", zoom {case['zoom']:g}" if "zoom" in case else "")


class LearntCases:
    """Lists the cases that a training's weights come from when the training starts.

    Args:
        weights: file of the weights, such as ``models/model.pt``; the list has the same name, but ends in ``.json``.
        training, validation: cases that train the network, and cases that choose the epoch.
        pretrained: weights that the training starts from; their cases, if known, are listed, too. None: none.
        fov_diameter: at which the network sees the cases; None: not noted.
        writes: False in all but one of several processes.
    """

    def __init__(
        self,
        weights: str,
        training: Sequence[Mapping[str, Any]],
        validation: Sequence[Mapping[str, Any]],
        pretrained: str | None = None,
        fov_diameter: Scale = None,
        writes: bool = True,
    ) -> None:
        self.weights = weights
        self.fov_diameter = fov_diameter
        self.cases = dict(zip(ROLES, (training, validation), strict=True))
        self.pretrained = pretrained
        self.writes = writes

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, after ``TrainingState``, which refuses a folder of another training."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the list."""
        if self.writes:
            # A resumed training's list has what it began with, whether or not it is told so again.
            begun_with = self.weights if engine.state.epoch > 0 else self.pretrained
            earlier = (learnt_cases([begun_with]) if begun_with else None) or {}
            described = {
                role: {*map(photograph_described, cases), *earlier.get(role, ())} for role, cases in self.cases.items()
            }
            write_learnt_cases(self.weights, described, self.fov_diameter)


def write_learnt_cases(
    weights: str | os.PathLike, learnt: Mapping[str, Iterable[str]] | None, fov_diameter: Scale = None
) -> None:
    """Write the list beside a file of weights; None: there is none, and one of earlier weights is removed."""
    path = Path(weights).with_suffix(".json")
    if learnt is None:
        path.unlink(missing_ok=True)
    else:
        scale = {} if fov_diameter is None else {"fov_diameter": fov_diameter}
        write_text(path, json.dumps({**scale, **{role: sorted(learnt[role]) for role in ROLES}}, indent=2) + "\n")


def learnt_cases(weights: Sequence[str | os.PathLike]) -> dict[str, set[str]] | None:
    """The photographs that trained (``training``) and chose (``validation``) weights, see ``photograph_described``.

    Args:
        weights: files of weights, such as those of an ensemble, which has learnt whatever any of them has.

    Returns:
        The photographs by role; None if one of the files has no list beside it.
    """
    learnt: dict[str, set[str]] = {role: set() for role in ROLES}
    for path in weights:
        try:
            listed = json.loads(Path(path).with_suffix(".json").read_text(encoding="utf-8"))
            for role in ROLES:
                learnt[role].update(map(str, listed[role]))
        except (OSError, ValueError, KeyError, TypeError):  # no such file, or one of something else
            return None
    return learnt


def learnt_scale(weights: Sequence[str | os.PathLike]) -> Scale:
    """The ``fov_diameter`` that weights were trained with; None if it is not known or not the same for all files."""
    scales = [_scale_of(path) for path in weights]
    return scales[0] if scales and all(scale == scales[0] for scale in scales) else None


def another_scale(weights: Sequence[str | os.PathLike], fov_diameter: Scale) -> str | None:
    """A warning if one of the weights is used at diameters beyond those of its training, as far as they are known."""
    for path in weights:
        trained, asked = _limits(_scale_of(path)), _limits(fov_diameter)
        if trained and asked and not (min(trained) <= min(asked) and max(asked) <= max(trained)):
            return (
                f"weights trained with --fov_diameter {_written(trained)} are used with {_written(asked)}; at another "
                "scale a network may miss vessels"
            )
    return None


def _scale_of(weights: str | os.PathLike) -> Scale:
    try:
        return json.loads(Path(weights).with_suffix(".json").read_text(encoding="utf-8"))["fov_diameter"]
    except (OSError, ValueError, KeyError, TypeError):  # no such file, or one of something else
        return None


def _limits(scale: Any) -> tuple[float, ...]:
    """The smallest and the largest diameter, or one for both; nothing if it is not a scale."""
    limits = () if scale is None else ensure_tuple(scale)
    return limits if all(isinstance(limit, (int, float)) for limit in limits) else ()


def _written(limits: Sequence[float]) -> str:
    return f"{limits[0]}" if len(limits) == 1 else f'"[{limits[0]},{limits[-1]}]"'
