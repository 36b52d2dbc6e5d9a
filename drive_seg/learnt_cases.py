"""Records beside weights which cases they come from, and at which scale, so that misuse is noticed.

``model.json`` beside ``model.pt`` lists the photographs that trained the network and those that chose the epoch, by the
SHA-256 of their files: a dataset may be moved and its files renamed, another hospital's ``01.jpg`` is another
photograph, and names may identify patients. ``fov_diameter`` is the one of the training.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.utils import ensure_tuple

from drive_seg.distributed import get_rank
from drive_seg.files import remove, sha256, write_text

__all__ = [
    "LearntCases",
    "another_scale",
    "case_described",
    "learnt_cases",
    "learnt_scale",
    "listed",
    "photograph_id",
    "write_learnt_cases",
]

_logger = logging.getLogger(__name__)

ROLES = ("training", "validation")
_KEYS = {role: f"{role}_sha256" for role in ROLES}

Scale = int | Sequence[int] | None
"""A ``fov_diameter``: pixels, or the smallest and the largest, see ``drive_seg.scale_to_fov.ScaleToFOVd``."""


def photograph_id(case: Mapping[str, Any]) -> str:
    """Identifies the photograph of a case: the first 16 digits of its file's SHA-256; the case id if there is no file.

    The file is the case's ``photograph``, or its ``image`` before that is loaded.
    """
    image = case.get("photograph", case.get("image"))
    if isinstance(image, (str, os.PathLike)) and Path(image).is_file():
        about = Path(image).stat()
        return _sha256(Path(image).absolute(), about.st_size, about.st_mtime_ns)[:16]
    return str(case.get("case_id"))


@functools.cache  # a case may be trained on at several scales
def _sha256(path: Path, size: int, changed: int) -> str:
    return sha256(path)


def case_described(case: Mapping[str, Any]) -> str:
    """A case as messages name it: id, ``photograph_id`` and zoom, if it has one, such as ``21 (0a1b…), zoom 0.5``."""
    return f"{case.get('case_id')} ({photograph_id(case)})" + (f", zoom {case['zoom']:g}" if "zoom" in case else "")


class LearntCases:
    """The photographs that a training's weights come from, to be ``listed`` beside these whenever they are written.

    Those that train the network are the cases of the trainer's dataset. It is saved in ``last.pt``, so that a resumed
    fine-tuning still knows what it began with.

    Args:
        validation: cases that choose the epoch.
        pretrained: weights that the training starts from; their cases are listed, too, and if these are not known,
            there is no list. None: none.
        fov_diameter: at which the network sees the cases; None: not noted.

    Attributes:
        photographs: what the weights will have learnt, by role; None if it is not known, as before the training starts:
            a federated site that evaluates its server's weights does not know what these have learnt.
    """

    def __init__(
        self,
        validation: Sequence[Mapping[str, Any]],
        pretrained: str | None = None,
        fov_diameter: Scale = None,
    ) -> None:
        self.fov_diameter = fov_diameter
        self.validation = validation
        self.pretrained = pretrained
        self.photographs: dict[str, list[str]] | None = None

    def attach(self, engine: Engine) -> None:
        """Attach to MONAI's trainer, before ``TrainingState``, which restores the photographs of a resumed training."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Note the photographs while their files are there, and with them those of the weights it starts from.

        In a later round of a federated training, the weights come from its server, and nothing is known.
        """
        earlier = learnt_cases([self.pretrained] if self.pretrained else [])
        if engine.state.epoch > 0 or earlier is None:
            self.photographs = None
            return
        cases = dict(zip(ROLES, (engine.data_loader.dataset.data, self.validation), strict=True))
        found = {role: set(map(photograph_id, cases[role])) for role in ROLES}
        both = len(set.intersection(*found.values()))
        if both and get_rank() == 0:
            _logger.warning(
                "%d photographs for validation are copies of ones that are trained on: the validation Dice will "
                "be too high",
                both,
            )
        self.photographs = {role: sorted(found[role] | earlier[role]) for role in ROLES}

    def state_dict(self) -> dict[str, Any]:
        """The photographs that the training has begun with."""
        return {"photographs": self.photographs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self.photographs = state["photographs"]


@contextlib.contextmanager
def listed(
    weights: str | os.PathLike, learnt: Mapping[str, Iterable[str]] | None = None, fov_diameter: Scale = None
) -> Iterator[None]:
    """Write the list beside a file of weights once the block has written these.

    Until then there is none, so that a process that is killed leaves no weights with the list of others. Arguments as
    for ``write_learnt_cases``.
    """
    remove(_list_of(weights))
    yield
    write_learnt_cases(weights, learnt, fov_diameter)


def write_learnt_cases(
    weights: str | os.PathLike, learnt: Mapping[str, Iterable[str]] | None, fov_diameter: Scale = None
) -> None:
    """Write the list beside a file of weights, in place of one of earlier weights.

    Args:
        weights: the file.
        learnt: photographs by role; None: not known, and not listed.
        fov_diameter: as for ``LearntCases``.
    """
    content = {
        **({} if fov_diameter is None else {"fov_diameter": fov_diameter}),
        **({} if learnt is None else {_KEYS[role]: sorted(learnt[role]) for role in ROLES}),
    }
    if content:
        write_text(_list_of(weights), json.dumps(content, indent=2) + "\n")
    else:
        remove(_list_of(weights))


def learnt_cases(weights: Sequence[str | os.PathLike]) -> dict[str, set[str]] | None:
    """The photographs that trained (``training``) and chose (``validation``) weights, see ``photograph_id``.

    Args:
        weights: files of weights, such as those of an ensemble, which has learnt whatever any of them has.

    Returns:
        The photographs by role; None if one of the files has no list beside it.
    """
    learnt: dict[str, set[str]] = {role: set() for role in ROLES}
    for path in weights:
        try:
            content = json.loads(_list_of(path).read_text(encoding="utf-8"))
            for role in ROLES:
                learnt[role].update(map(str, content[_KEYS[role]]))
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


def _list_of(weights: str | os.PathLike) -> Path:
    return Path(weights).with_suffix(".json")


def _scale_of(weights: str | os.PathLike) -> Scale:
    try:
        return json.loads(_list_of(weights).read_text(encoding="utf-8"))["fov_diameter"]
    except (OSError, ValueError, KeyError, TypeError):  # no such file, or one of something else
        return None


def _limits(scale: Any) -> tuple[float, ...]:
    """The smallest and the largest diameter, or one for both; nothing if it is not a scale."""
    limits = () if scale is None else ensure_tuple(scale)
    return limits if all(isinstance(limit, (int, float)) for limit in limits) else ()


def _written(limits: Sequence[float]) -> str:
    return f"{limits[0]}" if len(limits) == 1 else f'"[{limits[0]},{limits[-1]}]"'
