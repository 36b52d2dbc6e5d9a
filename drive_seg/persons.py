"""Whose eye a case is of: both eyes of a person are alike, so a split that parts them scores what it has trained on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

__all__ = ["every_nth_person", "person"]

_SIDE = re.compile(r"(?<=\d)[LR]$|(?<=\d)O[DS]$|[ ._-]+(L|R|OD|OS|LE|RE|left|right)$", re.IGNORECASE)


def person(case: Mapping[str, str]) -> str:
    """What the case names as its ``person``, else its id without the side, where it ends in one.

    Sides are ``L`` and ``R``, ``OD`` and ``OS`` after a digit, these, ``LE``, ``RE``, ``left`` and ``right`` after a
    space, a dot, an underscore or a hyphen, in capitals or not.

    >>> [person({"case_id": name}) for name in ("Image_01L", "p07_OD", "10_left", "21", "01_dr")]
    ['Image_01', 'p07', '10', '21', '01_dr']
    """
    return case.get("person") or _SIDE.sub("", case["case_id"]) or case["case_id"]


def every_nth_person(cases: Sequence[Mapping[str, str]], first: int, step: int) -> set[str]:
    """Every ``step``-th person in the order of the cases, beginning with the one at position ``first``."""
    return set(list(dict.fromkeys(map(person, cases)))[first::step])
