"""Whose eye a case shows: a person's two eyes are alike, so a split between them scores what it was trained on."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

__all__ = ["person"]

_SIDE = re.compile(r"(?<=\d)[LR]$|(?<=\d)O[DS]$|[ ._-]+(L|R|OD|OS|LE|RE|left|right)$", re.IGNORECASE)


def person(case: Mapping[str, str]) -> str:
    """The case's ``person`` if it has one, else its id without a side at the end.

    Sides are ``L``, ``R``, ``OD`` and ``OS`` after a digit; and these, ``LE``, ``RE``, ``left`` and ``right`` after a
    space, a dot, an underscore or a hyphen. Upper and lower case are the same. Accents are composed, see
    ``drive_seg.names.picture_name``.

    >>> [person({"case_id": name}) for name in ("Image_01L", "p07_OD", "10_left", "21", "01_dr")]
    ['Image_01', 'p07', '10', '21', '01_dr']
    """
    name = case.get("person") or _SIDE.sub("", case["case_id"]) or case["case_id"]
    return unicodedata.normalize("NFC", name)
