"""Names of the vessel classes, and the colours that they are annotated in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from drive_seg.errors import ArgumentError
from drive_seg.names import alike

__all__ = ["classes_by_colour", "classes_of_colours", "in_names", "names_of_classes", "vessel_kind"]

Colour = tuple[int, int, int]


def names_of_classes(num_classes: int, names: Sequence[str] | None = None) -> list[str]:
    """One name for every vessel class, in order of their values from 1 on.

    Args:
        num_classes: number of classes, background included.
        names: the names, as in the key ``class_names`` of a config; None: "class 1", "class 2", …

    >>> names_of_classes(3, ["artery", "vein"]), names_of_classes(3)
    (['artery', 'vein'], ['class 1', 'class 2'])

    Raises:
        ArgumentError: if there are not as many names as vessel classes, or two of them are the same ``in_names``.
    """
    if names is None:
        return [f"class {value}" for value in range(1, num_classes)]
    texts = isinstance(names, (list, tuple)) and all(isinstance(name, str) and name.strip() for name in names)
    if not texts or not len({alike(in_names(name)) for name in names}) == len(names) == num_classes - 1:
        raise ArgumentError(
            f"class_names: expected {num_classes - 1} different names, one for each vessel class of num_classes "
            f"{num_classes}, or null, got {names!r}"
        )
    return [name.strip() for name in names]


def in_names(name: str) -> str:
    """A class's name as a part of the names of columns and files.

    >>> in_names("class 1")
    'class_1'
    """
    return re.sub(r"\W+", "_", name.strip())


def vessel_kind(name: str) -> str:
    """``artery`` or ``vein`` for a class that is called so, in the singular or plural, else ``vessel``.

    >>> vessel_kind("Arteries"), vessel_kind("class 1")
    ('artery', 'vessel')
    """
    return {"artery": "artery", "arteries": "artery", "vein": "vein", "veins": "vein"}.get(name.lower(), "vessel")


def classes_by_colour(colours: Mapping[Any, Any]) -> dict[Colour, int]:
    """The class value that each colour stands for.

    Args:
        colours: one colour (red, green, blue) or several for a class value, as in the key ``class_colours`` of a
            config, where class values are texts.

    >>> classes_by_colour({"1": [255, 0, 0], "255": [[0, 255, 0], [255, 255, 255]]})
    {(255, 0, 0): 1, (0, 255, 0): 255, (255, 255, 255): 255}

    Raises:
        ArgumentError: if a class value or a colour is none, or one colour is that of two classes.
    """
    classes: dict[Colour, int] = {}
    if not isinstance(colours, Mapping):
        raise ArgumentError(f"class_colours: expected colours by class value, or null, got {colours!r}")
    for value, named in colours.items():
        if not (str(value).isdecimal() and int(value) <= 255):
            raise ArgumentError(f"class_colours: expected class values from 0 to 255, got {value!r}")
        several = isinstance(named, (list, tuple)) and all(isinstance(colour, (list, tuple)) for colour in named)
        for colour in named if several else [named]:
            if not _is_colour(colour):
                raise ArgumentError(
                    f"class_colours: {value}: expected a colour, [red, green, blue] from 0 to 255, got {colour!r}"
                )
            if classes.setdefault(tuple(colour), int(value)) != int(value):
                raise ArgumentError(f"class_colours: expected one class for the colour {list(colour)}, got two")
    return classes


def classes_of_colours(pixels: np.ndarray, colours: Mapping[Colour, int]) -> np.ndarray:
    """Class values of a picture whose colours stand for classes.

    Args:
        pixels: (H, W, 3), uint8.
        colours: as from ``classes_by_colour``; black is 0, unless it is among them.

    Returns:
        (H, W), uint8.

    Raises:
        ValueError: if there are other colours, as at edges that were smoothed.
    """
    codes = pixels.astype(np.uint32) @ _CODE
    values = np.zeros(codes.shape, np.uint8)
    named = np.zeros(codes.shape, bool)
    for colour, value in {(0, 0, 0): 0, **colours}.items():
        found = codes == np.array(colour, np.uint32) @ _CODE
        values[found] = value
        named |= found
    if not named.all():
        others, counts = np.unique(pixels[~named], axis=0, return_counts=True)
        expected = ", ".join(f"{list(colour)} for {value}" for colour, value in colours.items())
        raise ValueError(
            f"{counts.sum()} of {named.size} pixels have colours that class_colours does not name, most often "
            f"{others[counts.argmax()].tolist()}; expected {expected} and [0, 0, 0] for the background "
            "(null: files hold class values)"
        )
    return values


_CODE = np.array([65536, 256, 1], np.uint32)
"""Makes one number of a colour, for fast comparisons."""


def _is_colour(colour: Any) -> bool:
    numbers = isinstance(colour, (list, tuple)) and all(type(level) is int and 0 <= level <= 255 for level in colour)
    return numbers and len(colour) == 3
