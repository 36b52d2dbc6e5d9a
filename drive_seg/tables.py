"""Tables that the command line prints."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from drive_seg.scores import DIGITS, FOV, PREDICTION, SECOND_OBSERVER, of_fewer

__all__ = ["print_comparison", "print_scores"]


_UNDEFINED = "undefined"


def print_scores(summary: Mapping[str, Any]) -> None:
    """Print a ``summary.json``: means, standard deviations and intervals inside the field of view, and warnings."""
    headings = {PREDICTION: "prediction", SECOND_OBSERVER: "second observer"}
    rows = {row["comparison"]: row for row in summary["rows"] if row["region"] == FOV}
    shown = {heading: rows[key] for key, heading in headings.items() if key in rows}
    protocol = summary["protocol"]
    threshold = f"threshold {protocol['threshold']:g}, {protocol['threshold_source']}"
    scored = f"{protocol['cases']} cases ({', '.join(protocol['scored'])})"
    title = f"Inside the field of view, mean ± sd over {scored}"
    # Paths may contain brackets, which Rich would take for its markup.
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=escape(title), caption=escape(threshold))
    for heading in ("", "prediction", f"{100 * summary['scoring']['level']:g} % interval", *list(shown)[1:]):
        table.add_column(heading, justify="right" if heading else "left")
    for name, of_prediction in rows[PREDICTION]["per_image"].items():
        prediction, *others = (
            _printed_spread(name, row["per_image"].get(name), row["cases"]) for row in shown.values()
        )
        table.add_row(_with_unit(name), prediction, _interval(name, of_prediction["ci"]), *others)
    _print(table)
    for warning in protocol["warnings"]:
        typer.echo(f"warning: {warning}", err=True)


def print_comparison(compared: Mapping[str, Any]) -> None:
    """Print a result of ``drive_seg.compare``: both figures, their differences, and differences in settings."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=f"Second minus first, over {_counted(compared)}")
    for heading in ("", "first", "second", "change", f"{100 * compared['level']:g} % interval", "p"):
        table.add_column(heading, justify="right" if heading else "left", overflow="fold")
    for name, row in compared["figures"].items():
        means = [_printed(name, row[key]) for key in ("first", "second")]
        few = of_fewer(row["cases"], len(compared["cases"])) if row["cases"] else ""
        table.add_row(
            f"{_with_unit(name)}{few}",
            *means,
            _printed(name, row["difference"], "+"),
            _interval(name, row["ci"], "+"),
            _p_value(row["p"]),
        )
    table.caption = "p: Wilcoxon signed-rank test over persons, of each figure by itself"
    smallest = 2 * 0.5 ** compared["persons"]
    if smallest > 1 - compared["level"]:
        table.caption += (
            f". Of {compared['persons']} persons it cannot be below {smallest:g}, whatever the difference, and the "
            "interval is too narrow"
        )
    _print(table)
    for which, cases in zip(("first", "second"), compared["only"], strict=True):
        if cases:
            typer.echo(f"only in the {which}, left out: {', '.join(cases)}")
    for key, (one, other) in compared["unlike"].items():
        typer.echo(f"{key}: {one} | {other}")


def _print(table: Table) -> None:
    # A file or pipe has no width to fit, and figures must not be cut off.
    Console(width=None if sys.stdout.isatty() else 100).print(table)


def _with_unit(name: str) -> str:
    return f"{name} / px" if name in ("hd95", "asd") else name


def _counted(compared: Mapping[str, Any]) -> str:
    cases, persons = len(compared["cases"]), compared["persons"]
    return f"{cases} cases" + (f" of {persons} persons" if persons < cases else "")


def _p_value(p: float) -> str:
    if math.isnan(p):  # undefined if no case differs
        return "–"
    return f"{p:.4f}" if p >= 0.0001 else "<0.0001"


def _printed_spread(name: str, spread: Mapping[str, Any] | None, cases: int) -> str:
    if spread is None:
        return ""
    if spread["mean"] is None:
        return _UNDEFINED
    sd = "" if spread["sd"] is None else f" ± {_printed(name, spread['sd'])}"
    return f"{_printed(name, spread['mean'])}{sd}{of_fewer(spread['defined'], cases)}"


def _interval(name: str, ends: Sequence[float | None], sign: str = "") -> str:
    undefined = any(end is None or math.isnan(end) for end in ends)
    return "" if undefined else " to ".join(_printed(name, end, sign) for end in ends)


def _printed(name: str, value: float | None, sign: str = "") -> str:
    return _UNDEFINED if value is None or math.isnan(value) else f"{value:{sign}.{DIGITS.get(name, 4)}f}"
