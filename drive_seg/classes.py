"""Names of the vessel classes."""

from __future__ import annotations

from collections.abc import Sequence

from drive_seg.errors import ArgumentError

__all__ = ["class_names"]


def class_names(num_classes: int, names: Sequence[str] | None = None) -> list[str]:
    """One name for every vessel class, in order of their values from 1 on.

    Args:
        num_classes: number of classes, background included.
        names: the names, as in the key ``class_names`` of a config; None: "class 1", "class 2", …

    >>> class_names(3, ["artery", "vein"]), class_names(3)
    (['artery', 'vein'], ['class 1', 'class 2'])

    Raises:
        ArgumentError: if there are not as many different names as vessel classes.
    """
    if names is None:
        return [f"class {value}" for value in range(1, num_classes)]
    texts = isinstance(names, (list, tuple)) and all(isinstance(name, str) and name.strip() for name in names)
    if not texts or len(names) != num_classes - 1 or len(set(names)) < len(names):
        raise ArgumentError(
            f"class_names: expected {num_classes - 1} different names, one for each vessel class of num_classes "
            f"{num_classes}, or null, got {names!r}"
        )
    return list(names)
