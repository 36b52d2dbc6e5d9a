"""The command line's arguments before they are parsed: what other shells and other commands make of them."""

from __future__ import annotations

import glob

__all__ = ["expanded", "with_flags"]


def expanded(arguments: list[str]) -> list[str]:
    """Put the files that ``*`` and ``?`` stand for in their place, which Windows leaves to the programs.

    Typer would replace environment variables, too, but ``$`` begins an expression in a config.
    """
    files = [it.replace("[", "[[]") for it in arguments]  # Windows has no sets of characters, but such folders
    named = [sorted(glob.glob(it)) if set("*?") & set(it) else [] for it in files]  # noqa: PTH207 - or absolute
    return [path for argument, paths in zip(arguments, named, strict=True) for path in paths or [argument]]


def with_flags(arguments: list[str]) -> list[str]:
    """Turn MONAI's spelling ``--resume true`` or ``--resume=true`` into ``--resume``, and drop it for false."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] == "--resume" and argument.lower() in ("true", "false"):
            joined[-1] = f"--resume={argument}"
        else:
            joined.append(argument)
    spelt = {"--resume=true": ["--resume"], "--resume=false": []}
    return [part for argument in joined for part in spelt.get(argument.lower(), [argument])]
