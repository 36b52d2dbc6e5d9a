"""HTML pages from the package's templates; jinja2 comes with the extra ``report``."""

from __future__ import annotations

import os
from importlib import resources
from typing import Any
from urllib.parse import quote

__all__ = ["render"]


def render(template: str, **values: Any) -> str:
    """A page filled with the values, escaped for HTML.

    Args:
        template: a file in ``drive_seg/templates``.
        values: the variables it names.

    Raises:
        ModuleNotFoundError: without jinja2.
    """
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["urlencode"] = lambda name: quote(os.fsencode(name))  # jinja's own needs names in Unicode
    text = (resources.files("drive_seg") / "templates" / template).read_text(encoding="utf-8")
    return environment.from_string(text).render(**values)
